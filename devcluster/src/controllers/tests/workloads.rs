use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Event, PersistentVolume, PersistentVolumeClaim, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::storage::v1::StorageClass;
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kube::runtime::watcher::{Config, watcher};
use kube::{Api, ResourceExt};
use serde_json::json;

use super::{PATIENCE, TestCluster, until, until_gone};

pub fn deployment(replicas: i32) -> serde_json::Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "echo"},
        "spec": {
            "replicas": replicas, "selector": {"matchLabels": {"app": "echo"}},
            "template": {
                "metadata": {"labels": {"app": "echo"}},
                "spec": {"containers": [{"name": "echo", "image": "one", "ports": [{"name": "http", "containerPort": 8080}]}]},
            },
        },
    })
}

pub fn statefulset() -> serde_json::Value {
    json!({
        "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "lab"},
        "spec": {
            "replicas": 1, "serviceName": "lab", "selector": {"matchLabels": {"app": "lab"}},
            "template": {
                "metadata": {"labels": {"app": "lab"}},
                "spec": {"containers": [{
                    "name": "lab", "image": "one", "volumeMounts": [{"name": "home", "mountPath": "/home/lab"}],
                }]},
            },
            "volumeClaimTemplates": [{
                "metadata": {"name": "home"},
                "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
            }],
        },
    })
}

pub async fn add_class(cluster: &TestCluster) {
    let class = json!({
        "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass",
        "metadata": {"name": "dormouse-local", "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}},
        "provisioner": "dormouse.dev/local", "volumeBindingMode": "WaitForFirstConsumer", "reclaimPolicy": "Delete",
    });
    let classes: Api<StorageClass> = Api::all(cluster.client.clone());
    classes.create(&PostParams::default(), &serde_json::from_value(class).unwrap()).await.unwrap();
}

fn available(deployment: Option<&Deployment>) -> Option<i32> {
    let status = deployment?.status.as_ref()?;
    (status.observed_generation == deployment?.metadata.generation)
        .then_some(status.available_replicas.unwrap_or(0))
}

/// Waits until an event with this reason is there.
async fn until_event(cluster: &TestCluster, reason: &str) -> Event {
    let events = watcher(cluster.api::<Event>(), Config::default());
    let found = futures::StreamExt::filter_map(
        kube::runtime::WatchStreamExt::applied_objects(events),
        |event| {
            let event = event.ok().filter(|event| event.reason.as_deref() == Some(reason));
            std::future::ready(event)
        },
    );
    let next = async { futures::StreamExt::next(&mut std::pin::pin!(found)).await };
    tokio::time::timeout(PATIENCE, next)
        .await
        .unwrap_or_else(|_| panic!("no event {reason}"))
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deployment_scales_and_rolls_and_its_service_follows() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = TestCluster::start(dir.path()).await;
    let service: Service = cluster
        .create(json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "echo", "labels": {"team": "red"}},
            "spec": {"selector": {"app": "echo"}, "ports": [{"name": "http", "port": 80, "targetPort": "http"}]},
        }))
        .await;
    let _: Deployment = cluster.create(deployment(1)).await;
    let deployments: Api<Deployment> = cluster.api();
    until(&deployments, "echo", "1 available", |it| available(it) == Some(1)).await;

    let pods = cluster.api::<Pod>().list(&ListParams::default()).await.unwrap();
    let hash = pods.items[0].labels()["pod-template-hash"].clone();
    assert!(pods.items[0].name_any().starts_with(&format!("echo-{hash}-")));
    let sets = cluster.api::<ReplicaSet>().list(&ListParams::default()).await.unwrap();
    assert_eq!(sets.items[0].name_any(), format!("echo-{hash}"));
    let owner = &pods.items[0].owner_references()[0];
    assert_eq!((owner.kind.as_str(), owner.controller), ("ReplicaSet", Some(true)));

    let slices = cluster.api::<EndpointSlice>().list(&ListParams::default()).await.unwrap();
    let slice = slices.items[0].name_any();
    let ready = |count: usize| {
        move |slice: Option<&EndpointSlice>| {
            let endpoints = slice.map(|slice| slice.endpoints.as_slice()).unwrap_or_default();
            endpoints
                .iter()
                .filter(|it| it.conditions.as_ref().unwrap().ready == Some(true))
                .count()
                == count
        }
    };
    let slice = until(&cluster.api::<EndpointSlice>(), &slice, "1 ready", ready(1)).await.unwrap();
    assert_eq!(slice.labels()["kubernetes.io/service-name"], "echo");
    assert_eq!(slice.labels()["team"], "red");
    assert_eq!(slice.ports.as_ref().unwrap()[0].port, Some(8080));
    assert_eq!(slice.owner_references()[0].uid, service.uid().unwrap());

    let scale = json!({"spec": {"replicas": 3}});
    deployments.patch_scale("echo", &PatchParams::default(), &Patch::Merge(scale)).await.unwrap();
    until(&deployments, "echo", "3 available", |it| available(it) == Some(3)).await;
    until(&cluster.api::<EndpointSlice>(), &slice.name_any(), "3 ready", ready(3)).await;

    let image =
        json!({"spec": {"template": {"spec": {"containers": [{"name": "echo", "image": "two"}]}}}});
    deployments.patch("echo", &PatchParams::default(), &Patch::Strategic(image)).await.unwrap();
    until(&deployments, "echo", "rolled out", |it| {
        let status = it.and_then(|it| it.status.as_ref());
        available(it) == Some(3)
            && status.is_some_and(|status| {
                status.updated_replicas == Some(3) && status.replicas == Some(3)
            })
    })
    .await;
    let rolled = deployments.get("echo").await.unwrap();
    assert_eq!(rolled.annotations()["deployment.kubernetes.io/revision"], "2");

    until_event(&cluster, "ScalingReplicaSet").await;
    until_event(&cluster, "SuccessfulCreate").await;
    until_event(&cluster, "Scheduled").await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_statefulset_gets_its_volume_sleeps_and_wakes_on_the_same_one() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = TestCluster::start(dir.path()).await;
    add_class(&cluster).await;
    let _: StatefulSet = cluster.create(statefulset()).await;
    let (pods, sets): (Api<Pod>, Api<StatefulSet>) = (cluster.api(), cluster.api());
    let is_ready = |pod: Option<&Pod>| pod.is_some_and(crate::controllers::pods::is_ready);
    let pod = until(&pods, "lab-0", "ready", is_ready).await.unwrap();
    assert_eq!(pod.labels()["statefulset.kubernetes.io/pod-name"], "lab-0");
    assert_eq!(pod.spec.as_ref().unwrap().subdomain.as_deref(), Some("lab"));
    let claims: Api<PersistentVolumeClaim> = cluster.api();
    let is_bound = |claim: Option<&PersistentVolumeClaim>| {
        claim.and_then(|it| it.status.as_ref()?.phase.as_deref()) == Some("Bound")
    };
    let claim = until(&claims, "home-lab-0", "bound", is_bound).await.unwrap();
    assert_eq!(claim.annotations()["volume.kubernetes.io/selected-node"], "node");
    let volume = claim.spec.as_ref().unwrap().volume_name.clone();
    let ready_replicas = |count: i32| {
        move |it: Option<&StatefulSet>| {
            it.and_then(|it| it.status.as_ref()).is_some_and(|status| {
                status.ready_replicas.unwrap_or(0) == count && status.replicas == count
            })
        }
    };
    until(&sets, "lab", "one ready", ready_replicas(1)).await;

    for count in [0, 1] {
        let scale = json!({"spec": {"replicas": count}});
        sets.patch_scale("lab", &PatchParams::default(), &Patch::Merge(scale)).await.unwrap();
        until(&sets, "lab", "scaled", ready_replicas(count)).await;
    }
    let again = until(&pods, "lab-0", "ready", is_ready).await.unwrap();
    assert_ne!(again.uid(), pod.uid());
    assert_eq!(claims.get("home-lab-0").await.unwrap().spec.unwrap().volume_name, volume);

    // A pod that ended is replaced.
    let failed = json!({"status": {"phase": "Failed"}});
    pods.patch_status("lab-0", &PatchParams::default(), &Patch::Merge(failed)).await.unwrap();
    let uid = again.uid();
    until(&pods, "lab-0", "replaced", |pod| is_ready(pod) && pod.and_then(ResourceExt::uid) != uid)
        .await;

    // The claim outlives the set; when it goes, its volume is released.
    sets.delete("lab", &Default::default()).await.unwrap();
    until_gone(&pods, "lab-0").await;
    claims.delete("home-lab-0", &Default::default()).await.unwrap();
    until_gone(&claims, "home-lab-0").await;
    let volumes: Api<PersistentVolume> = Api::all(cluster.client.clone());
    until(&volumes, &volume.unwrap(), "released", |it| {
        it.and_then(|it| it.status.as_ref()?.phase.as_deref()) == Some("Released")
    })
    .await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_without_a_node_says_why_and_is_bound_when_one_comes() {
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = TestCluster::server(dir.path()).await;
    cluster.start_controllers();
    let _: Pod = cluster
        .create(json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"},
            "spec": {"containers": [{"name": "x", "image": "x"}]}}))
        .await;
    let pods: Api<Pod> = cluster.api();
    let unschedulable = |pod: Option<&Pod>| {
        let condition =
            pod.and_then(|pod| crate::controllers::pods::condition(pod, "PodScheduled"));
        condition
            .is_some_and(|it| it.status == "False" && it.reason.as_deref() == Some("Unschedulable"))
    };
    until(&pods, "x", "unschedulable", unschedulable).await;
    until_event(&cluster, "FailedScheduling").await;
    cluster.start_node().await;
    until(&pods, "x", "ready", |pod| pod.is_some_and(crate::controllers::pods::is_ready)).await;
    let nodes: Api<k8s_openapi::api::core::v1::Node> = Api::all(cluster.client.clone());
    let node = nodes.get("node").await.unwrap();
    assert!(node.spec.unwrap().pod_cidr.is_some_and(|range| range.starts_with("127.")));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_counts_its_pods_and_lets_them_go() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = TestCluster::start(dir.path()).await;
    let _: Job = cluster
        .create(json!({
            "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "train"},
            "spec": {
                "completions": 2, "parallelism": 2, "completionMode": "Indexed",
                "template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "t", "image": "t"}]}},
            },
        }))
        .await;
    let (jobs, pods): (Api<Job>, Api<Pod>) = (cluster.api(), cluster.api());
    until(&jobs, "train", "2 ready", |job| {
        job.and_then(|job| job.status.as_ref()?.ready) == Some(2)
    })
    .await;
    let ended = json!({"status": {"phase": "Succeeded"}});
    let names: Vec<_> = pods
        .list(&ListParams::default().labels("job-name=train"))
        .await
        .unwrap()
        .iter()
        .map(ResourceExt::name_any)
        .collect();
    for name in &names {
        pods.patch_status(name, &PatchParams::default(), &Patch::Merge(&ended)).await.unwrap();
    }
    let complete = |job: Option<&Job>| {
        let conditions =
            job.and_then(|job| job.status.as_ref()?.conditions.clone()).unwrap_or_default();
        conditions.iter().any(|it| it.type_ == "Complete" && it.status == "True")
    };
    let job = until(&jobs, "train", "complete", complete).await.unwrap();
    let status = job.status.unwrap();
    assert_eq!((status.succeeded, status.completed_indexes.as_deref()), (Some(2), Some("0,1")));
    jobs.delete("train", &kube::api::DeleteParams::foreground()).await.unwrap();
    until_gone(&jobs, "train").await;
    for name in &names {
        until_gone(&pods, name).await;
    }
    cluster.stop().await;
}
