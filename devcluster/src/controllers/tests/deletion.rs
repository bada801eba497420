use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{ApiResource, DeleteParams, DynamicObject, ListParams, PostParams};
use kube::core::GroupVersionKind;
use kube::{Api, ResourceExt};
use serde_json::json;

use super::workloads::{add_class, deployment, statefulset};
use super::{TestCluster, until, until_gone};

async fn define_widgets(cluster: &TestCluster) -> Api<DynamicObject> {
    let definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "widgets.example.com"},
        "spec": {
            "group": "example.com", "scope": "Namespaced",
            "names": {"plural": "widgets", "singular": "widget", "kind": "Widget"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {
                "type": "object", "x-kubernetes-preserve-unknown-fields": true,
            }}}],
        },
    });
    let definitions: Api<CustomResourceDefinition> = Api::all(cluster.client.clone());
    definitions
        .create(&PostParams::default(), &serde_json::from_value(definition).unwrap())
        .await
        .unwrap();
    until(&definitions, "widgets.example.com", "established", |it| {
        let conditions =
            it.and_then(|it| it.status.as_ref()?.conditions.clone()).unwrap_or_default();
        conditions.iter().any(|it| it.type_ == "Established" && it.status == "True")
    })
    .await;
    Api::namespaced_with(cluster.client.clone(), "default", &widget_kind())
}

fn widget_kind() -> ApiResource {
    ApiResource::from_gvk_with_plural(
        &GroupVersionKind::gvk("example.com", "v1", "Widget"),
        "widgets",
    )
}

async fn widget(api: &Api<DynamicObject>, name: &str) -> DynamicObject {
    api.create(&PostParams::default(), &DynamicObject::new(name, &widget_kind())).await.unwrap()
}

async fn owned(cluster: &TestCluster, name: &str, owner: &DynamicObject) -> ConfigMap {
    cluster
        .create(json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "ownerReferences": [{
            "apiVersion": "example.com/v1", "kind": "Widget", "name": owner.name_any(), "uid": owner.uid(),
            "controller": true, "blockOwnerDeletion": true,
        }]}}))
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_deployment_takes_everything_along_however_it_is_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = TestCluster::start(dir.path()).await;
    let deployments: Api<Deployment> = cluster.api();
    for params in [DeleteParams::background(), DeleteParams::foreground()] {
        let _: Deployment = cluster.create(deployment(2)).await;
        until(&deployments, "echo", "available", |it| {
            it.and_then(|it| it.status.as_ref()?.available_replicas) == Some(2)
        })
        .await;
        let set =
            cluster.api::<ReplicaSet>().list(&ListParams::default()).await.unwrap().items.remove(0);
        let pods = cluster.api::<Pod>().list(&ListParams::default()).await.unwrap();
        deployments.delete("echo", &params).await.unwrap();
        until_gone(&deployments, "echo").await;
        until_gone(&cluster.api::<ReplicaSet>(), &set.name_any()).await;
        for pod in pods {
            until_gone(&cluster.api::<Pod>(), &pod.name_any()).await;
        }
    }
    // Orphaned, the set and its pods stay, and a new deployment takes them over.
    let _: Deployment = cluster.create(deployment(1)).await;
    until(&deployments, "echo", "available", |it| {
        it.and_then(|it| it.status.as_ref()?.available_replicas) == Some(1)
    })
    .await;
    let set =
        cluster.api::<ReplicaSet>().list(&ListParams::default()).await.unwrap().items.remove(0);
    deployments.delete("echo", &DeleteParams::orphan()).await.unwrap();
    until_gone(&deployments, "echo").await;
    let orphan = cluster.api::<ReplicaSet>().get(&set.name_any()).await.unwrap();
    assert!(orphan.owner_references().is_empty());
    let new: Deployment = cluster.create(deployment(1)).await;
    let adopted = |it: Option<&ReplicaSet>| {
        it.is_some_and(|it| {
            it.owner_references().iter().any(|owner| Some(&owner.uid) == new.metadata.uid.as_ref())
        })
    };
    until(&cluster.api::<ReplicaSet>(), &set.name_any(), "adopted", adopted).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn owners_of_kinds_defined_at_run_time_count_and_late_dependents_go() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = TestCluster::start(dir.path()).await;
    let widgets = define_widgets(&cluster).await;
    let maps: Api<ConfigMap> = cluster.api();
    let owner = widget(&widgets, "w").await;
    owned(&cluster, "child", &owner).await;
    let kept = widget(&widgets, "kept").await;
    owned(&cluster, "kept", &kept).await;
    widgets.delete("w", &DeleteParams::background()).await.unwrap();
    until_gone(&maps, "child").await;
    owned(&cluster, "late", &owner).await;
    until_gone(&maps, "late").await;
    maps.get("kept").await.unwrap();
    widgets.delete("kept", &DeleteParams::foreground()).await.unwrap();
    until_gone(&widgets, "kept").await;
    assert!(maps.get_opt("kept").await.unwrap().is_none(), "foreground: the child goes first");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn deletions_go_on_after_a_restart_of_everything() {
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = TestCluster::start(dir.path()).await;
    let widgets = define_widgets(&cluster).await;
    let _: Deployment = cluster.create(deployment(1)).await;
    let deployments: Api<Deployment> = cluster.api();
    until(&deployments, "echo", "available", |it| {
        it.and_then(|it| it.status.as_ref()?.available_replicas) == Some(1)
    })
    .await;
    let owner = widget(&widgets, "w").await;
    owned(&cluster, "child", &owner).await;
    let namespaces: Api<Namespace> = Api::all(cluster.client.clone());
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "team"}});
    namespaces
        .create(&PostParams::default(), &serde_json::from_value(namespace).unwrap())
        .await
        .unwrap();
    let inside: Api<ConfigMap> = Api::namespaced(cluster.client.clone(), "team");
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m"}});
    inside.create(&PostParams::default(), &serde_json::from_value(map).unwrap()).await.unwrap();

    // All is deleted while nobody is there to see it.
    cluster.stop_node().await;
    cluster.stop_controllers().await;
    deployments.delete("echo", &DeleteParams::foreground()).await.unwrap();
    widgets.delete("w", &DeleteParams::background()).await.unwrap();
    namespaces.delete("team", &DeleteParams::default()).await.unwrap();
    assert!(
        deployments.get_opt("echo").await.unwrap().is_some()
            && namespaces.get_opt("team").await.unwrap().is_some()
    );
    cluster.stop().await;

    let cluster = TestCluster::start(dir.path()).await;
    until_gone(&cluster.api::<Deployment>(), "echo").await;
    assert!(cluster.api::<Pod>().list(&ListParams::default()).await.unwrap().items.is_empty());
    until_gone(&cluster.api::<ConfigMap>(), "child").await;
    until_gone(&Api::<Namespace>::all(cluster.client.clone()), "team").await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_namespace_is_emptied_custom_objects_and_pods_included() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = TestCluster::start(dir.path()).await;
    define_widgets(&cluster).await;
    let namespaces: Api<Namespace> = Api::all(cluster.client.clone());
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "team"}});
    namespaces
        .create(&PostParams::default(), &serde_json::from_value(namespace).unwrap())
        .await
        .unwrap();
    let widgets: Api<DynamicObject> =
        Api::namespaced_with(cluster.client.clone(), "team", &widget_kind());
    widget(&widgets, "w").await;
    let deployments: Api<Deployment> = Api::namespaced(cluster.client.clone(), "team");
    deployments
        .create(&PostParams::default(), &serde_json::from_value(deployment(2)).unwrap())
        .await
        .unwrap();
    until(&deployments, "echo", "available", |it| {
        it.and_then(|it| it.status.as_ref()?.available_replicas) == Some(2)
    })
    .await;
    namespaces.delete("team", &DeleteParams::default()).await.unwrap();
    until_gone(&namespaces, "team").await;
    assert!(widgets.list(&ListParams::default()).await.unwrap().items.is_empty());
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_statefulset_takes_over_what_an_orphaned_one_left() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = TestCluster::start(dir.path()).await;
    add_class(&cluster).await;
    let (sets, pods): (Api<StatefulSet>, Api<Pod>) = (cluster.api(), cluster.api());
    let is_complete = |set: Option<&StatefulSet>| {
        set.and_then(|set| set.status.as_ref()).is_some_and(|status| {
            status.ready_replicas == Some(1) && status.updated_replicas == Some(1)
        })
    };
    let _: StatefulSet = cluster.create(statefulset()).await;
    until(&sets, "lab", "complete", is_complete).await;
    let before = pods.get("lab-0").await.unwrap();
    sets.delete("lab", &DeleteParams::orphan()).await.unwrap();
    until_gone(&sets, "lab").await;
    let new: StatefulSet = cluster.create(statefulset()).await;
    until(&sets, "lab", "complete", is_complete).await;
    let after = pods.get("lab-0").await.unwrap();
    assert_eq!(after.uid(), before.uid());
    assert_eq!(after.owner_references()[0].uid, new.uid().unwrap());
    cluster.stop().await;
}
