//! Stopping, sleeping and going on depend on nothing else that is asked for.

use cluster::resources::{App, Workspace};
use k8s_openapi::api::{
    apps::v1::{Deployment, StatefulSet},
    core::v1::{PersistentVolumeClaim, Pod},
};
use kube::{Resource, ResourceExt};
use serde_json::json;

use crate::world::{World, applied, failure, said};

fn phase(workspace: &Workspace) -> &'static str {
    let status = workspace.status.as_ref();
    status.and_then(|status| status.phase).map_or("", |phase| phase.as_str())
}

fn replicas(set: &StatefulSet) -> Option<i32> {
    set.spec.as_ref()?.replicas
}

const POD: &str = "lab-0";

/// A workspace whose pod is ready, as a control plane would tell.
async fn running(world: &World, spec: serde_json::Value) {
    world.workspace("lab", spec).await;
    world.until("lab", |_: &StatefulSet| true).await;
    let labels = json!({"dormouse.dev/workload": "lab", "dormouse.dev/kind": "Workspace"});
    world
        .create::<Pod>(json!({"metadata": {"name": POD, "labels": labels},
            "spec": {"containers": [{"name": "main", "image": "jupyter"}]}}))
        .await;
    let ready = json!({"replicas": 1, "readyReplicas": 1, "observedGeneration": 100});
    world.merge_status::<StatefulSet>("lab", ready).await;
    world.until("lab", |it: &Workspace| phase(it) == "Running").await;
}

async fn bind(world: &World, class: Option<&str>) {
    let patch = json!({"spec": {"volumeName": "pv1", "storageClassName": class}});
    world.merge::<PersistentVolumeClaim>("lab-home", patch).await;
    let status = json!({"phase": "Bound", "capacity": {"storage": "10Gi"}});
    world.merge_status::<PersistentVolumeClaim>("lab-home", status).await;
}

#[tokio::test]
async fn a_volume_that_cannot_change_holds_up_neither_the_rest_nor_the_stop() {
    let world = World::new().await;
    running(&world, json!({})).await;
    bind(&world, None).await;
    let change =
        json!({"spec": {"storage": {"size": "5Gi"}, "env": [{"name": "A", "value": "1"}]}});
    world.merge::<Workspace>("lab", change).await;
    let lab = world.until_not_applied::<Workspace>("lab", "VolumeKept").await;
    assert!(said(&lab).contains("cannot be made smaller"), "{}", said(&lab));
    assert_eq!(phase(&lab), "Running", "it goes on, and may sleep");
    let message = lab.status.unwrap().message.unwrap();
    assert!(message.contains("cannot be made smaller"), "{message}");
    let has_a = |set: &StatefulSet| serde_json::to_string(set).unwrap().contains(r#""name":"A""#);
    world.until("lab", has_a).await;

    world.merge::<Workspace>("lab", json!({"spec": {"replicas": 0}})).await;
    world.until("lab", |set: &StatefulSet| replicas(set) == Some(0)).await;
    world.until("lab", |it: &Workspace| phase(it) == "Stopped").await;
    let claim = world.api::<PersistentVolumeClaim>().get("lab-home").await.unwrap();
    let size = claim.spec.unwrap().resources.unwrap().requests.unwrap()["storage"].0.clone();
    assert_eq!(size, "10Gi");
}

#[tokio::test]
async fn a_claim_without_a_volume_gets_the_class_that_was_corrected() {
    let world = World::new().await;
    world.workspace("lab", json!({"storage": {"storageClassName": "nosuch"}})).await;
    let first = world.until("lab-home", |_: &PersistentVolumeClaim| true).await;
    let correct = json!({"spec": {"storage": {"storageClassName": "fast"}}});
    world.merge::<Workspace>("lab", correct).await;
    let class = |claim: &PersistentVolumeClaim| claim.spec.as_ref()?.storage_class_name.clone();
    let fast = |claim: &PersistentVolumeClaim| class(claim).as_deref() == Some("fast");
    let second = world.until("lab-home", fast).await;
    assert_ne!(first.uid(), second.uid(), "it was made anew and not changed");
    let well = |it: &Workspace| applied(it.status.as_ref()).is_some_and(|it| it.status == "True");
    world.until("lab", well).await;
}

const TWICE: &str = "failed to create typed patch object (vision/lab; apps/v1, Kind=StatefulSet): .spec.template.spec.containers[name=\"main\"].env: duplicate entries for key [name=\"A\"]";

#[tokio::test]
async fn what_the_api_server_can_never_take_is_told_and_stops_all_the_same() {
    let world = World::new().await;
    running(&world, json!({})).await;
    *world.answer.lock().unwrap() = Box::new(|method, _, kind| {
        (method == "PATCH" && kind.contains("apply-patch")).then(|| failure(500, TWICE))
    });
    world.merge::<Workspace>("lab", json!({"spec": {"args": ["x"]}})).await;
    let lab = world.until_not_applied::<Workspace>("lab", "Refused").await;
    assert!(said(&lab).contains("duplicate entries"), "{}", said(&lab));
    assert_eq!(phase(&lab), "Running");
    world.merge::<Workspace>("lab", json!({"spec": {"replicas": 0}})).await;
    world.until("lab", |set: &StatefulSet| replicas(set) == Some(0)).await;
    world.until("lab", |it: &Workspace| phase(it) == "Stopped").await;
}

#[tokio::test]
async fn an_error_that_comes_back_is_told_and_a_sleep_does_not_wait_for_it() {
    let world = World::new().await;
    running(&world, json!({})).await;
    // Nothing but the set can be read or written.
    *world.answer.lock().unwrap() = Box::new(|_, path, _| {
        let other = ["/services/", "/secrets/", "/persistentvolumeclaims/"];
        other.iter().any(|part| path.contains(part)).then(|| failure(500, "etcdserver: no leader"))
    });
    let now = "2026-03-01T00:00:00Z";
    world.merge_status::<Workspace>("lab", json!({"sleepAt": now})).await;
    world.until("lab", |set: &StatefulSet| replicas(set) == Some(0)).await;
    world.until("lab", |it: &Workspace| phase(it) == "Sleeping").await;
    let lab = world.until_not_applied::<Workspace>("lab", "Failing").await;
    assert!(said(&lab).contains("500 etcdserver: no leader"), "{}", said(&lab));
}

#[tokio::test]
async fn a_workload_that_could_never_be_applied_says_so() {
    let world = World::with(|method, path, _| {
        let made = method == "POST" && path.ends_with("/deployments");
        made.then(|| failure(500, "an admission webhook is not there"))
    })
    .await;
    world.app("web", json!({})).await;
    let web = world.until_not_applied::<App>("web", "Failing").await;
    assert!(said(&web).contains("an admission webhook is not there"), "{}", said(&web));
    assert_eq!(web.status.unwrap().phase.unwrap().as_str(), "Failed");
    *world.answer.lock().unwrap() = Box::new(|_, _, _| None);
    world.until("web", |_: &Deployment| true).await;
}

#[tokio::test]
async fn a_corrected_command_reaches_a_pod_that_crashes() {
    let world = World::new().await;
    world.workspace("lab", json!({})).await;
    let set = world.until("lab", |_: &StatefulSet| true).await;
    let policy = set.spec.as_ref().unwrap().pod_management_policy.as_deref();
    assert_eq!(policy, Some("Parallel"), "a control plane replaces the pod by itself");

    // A set of an earlier version waits for the broken pod. The controller is kept from making one.
    *world.answer.lock().unwrap() = Box::new(|method, path, _| {
        let makes = method == "POST" && path.ends_with("/statefulsets");
        makes.then(|| failure(500, "not now"))
    });
    world.api::<StatefulSet>().delete("lab", &kube::api::DeleteParams::default()).await.unwrap();
    let mut old = set.clone();
    old.metadata.resource_version = None;
    old.metadata.uid = None;
    old.metadata.managed_fields = None;
    old.spec.as_mut().unwrap().pod_management_policy = Some("OrderedReady".to_owned());
    let params = kube::api::PostParams::default();
    let set = world.api::<StatefulSet>().create(&params, &old).await.unwrap();
    *world.answer.lock().unwrap() = Box::new(|_, _, _| None);
    let owner = set.controller_owner_ref(&()).unwrap();
    let labels = json!({
        "dormouse.dev/workload": "lab", "dormouse.dev/kind": "Workspace",
        "controller-revision-hash": "lab-1",
    });
    world
        .create::<Pod>(
            json!({"metadata": {"name": POD, "labels": labels, "ownerReferences": [owner]},
            "spec": {"containers": [{"name": "main", "image": "jupyter"}]}}),
        )
        .await;
    let status = |revision: &str| json!({"replicas": 1, "observedGeneration": 100, "updateRevision": revision});
    let crashing = json!({"phase": "Running", "containerStatuses": [{"name": "main", "ready": false,
        "image": "", "imageID": "", "restartCount": 3,
        "state": {"waiting": {"reason": "CrashLoopBackOff"}}}]});
    world.merge_status::<Pod>(POD, crashing).await;
    world.merge_status::<StatefulSet>("lab", status("lab-1")).await;
    world.until("lab", |it: &Workspace| phase(it) == "Failed").await;
    assert!(world.api::<Pod>().get_opt(POD).await.unwrap().is_some(), "of the newest revision");
    world.merge_status::<StatefulSet>("lab", status("lab-2")).await;
    let started = tokio::time::Instant::now();
    while let Some(pod) = world.api::<Pod>().get_opt(POD).await.unwrap() {
        if pod.meta().deletion_timestamp.is_some() {
            break;
        }
        assert!(started.elapsed() < std::time::Duration::from_secs(60), "it is still there");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}
