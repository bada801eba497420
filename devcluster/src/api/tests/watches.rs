use std::time::Duration;

use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams};
use kube::core::PartialObjectMeta;
use kube::runtime::{WatchStreamExt as _, watcher};
use serde_json::json;

use super::Cluster;

fn config_map(name: &str, tier: &str) -> ConfigMap {
    serde_json::from_value(json!({"metadata": {"name": name, "labels": {"tier": tier}}})).unwrap()
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), future).await.expect("nothing came in time")
}

#[tokio::test]
async fn both_kinds_of_watcher_follow_the_store() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let api: Api<ConfigMap> = Api::default_namespaced(client.clone());
    api.create(&PostParams::default(), &config_map("first", "a")).await.unwrap();
    for config in [watcher::Config::default(), watcher::Config::default().streaming_lists()] {
        let mut stream = watcher(api.clone(), config).boxed();
        let mut initial = Vec::new();
        loop {
            match soon(stream.try_next()).await.unwrap().unwrap() {
                watcher::Event::Init => {}
                watcher::Event::InitApply(object) => initial.push(object.metadata.name.unwrap()),
                watcher::Event::InitDone => break,
                other => panic!("unexpected {other:?}"),
            }
        }
        assert_eq!(initial, ["first"]);
        api.create(&PostParams::default(), &config_map("second", "a")).await.unwrap();
        match soon(stream.try_next()).await.unwrap().unwrap() {
            watcher::Event::Apply(object) => {
                assert_eq!(object.metadata.name.as_deref(), Some("second"))
            }
            other => panic!("unexpected {other:?}"),
        }
        api.delete("second", &DeleteParams::default()).await.unwrap();
        match soon(stream.try_next()).await.unwrap().unwrap() {
            watcher::Event::Delete(object) => {
                assert_eq!(object.metadata.name.as_deref(), Some("second"))
            }
            other => panic!("unexpected {other:?}"),
        }
    }
}

#[tokio::test]
async fn metadata_alone_can_be_watched() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let api: Api<ConfigMap> = Api::default_namespaced(client.clone());
    api.create(&PostParams::default(), &config_map("first", "a")).await.unwrap();
    let meta: Api<PartialObjectMeta<ConfigMap>> = Api::default_namespaced(client);
    let mut stream = watcher(meta, watcher::Config::default()).applied_objects().boxed();
    let first = soon(stream.try_next()).await.unwrap().unwrap();
    assert_eq!(first.metadata.name.as_deref(), Some("first"));
}

#[tokio::test]
async fn selectors_turn_changes_into_arrivals_and_departures() {
    let cluster = Cluster::start().await;
    let api: Api<ConfigMap> = Api::default_namespaced(cluster.client().await);
    let list = api.list(&Default::default()).await.unwrap();
    let revision = list.metadata.resource_version.unwrap();
    let mut stream =
        api.watch(&WatchParams::default().labels("tier=a"), &revision).await.unwrap().boxed();
    api.create(&PostParams::default(), &config_map("x", "b")).await.unwrap();
    let label = |tier: &str| json!({"metadata": {"labels": {"tier": tier}}});
    api.patch("x", &PatchParams::default(), &Patch::Merge(&label("a"))).await.unwrap();
    api.patch("x", &PatchParams::default(), &Patch::Merge(&label("b"))).await.unwrap();
    assert!(matches!(soon(stream.try_next()).await.unwrap(), Some(WatchEvent::Added(_))));
    match soon(stream.try_next()).await.unwrap() {
        Some(WatchEvent::Deleted(object)) => {
            assert_eq!(object.metadata.labels.unwrap()["tier"], "a")
        }
        other => panic!("unexpected {other:?}"),
    }
}

#[tokio::test]
async fn a_revision_of_another_life_is_gone() {
    let cluster = Cluster::start().await;
    let api: Api<ConfigMap> = Api::default_namespaced(cluster.client().await);
    for _ in 0..2 {
        api.create(&PostParams::default(), &config_map("x", "b")).await.unwrap();
        api.delete("x", &DeleteParams::default()).await.unwrap();
    }
    let cluster = Cluster::start_in(cluster.stop().await).await;
    let api: Api<ConfigMap> = Api::default_namespaced(cluster.client().await);
    let mut stream = api.watch(&WatchParams::default(), "1").await.unwrap().boxed();
    match soon(stream.try_next()).await.unwrap() {
        Some(WatchEvent::Error(status)) => {
            assert_eq!((status.code, status.reason.as_str()), (410, "Expired"))
        }
        other => panic!("unexpected {other:?}"),
    }
    // And a watch ends when its time is over.
    let revision = api.list(&Default::default()).await.unwrap().metadata.resource_version.unwrap();
    let stream = api.watch(&WatchParams::default().timeout(1), &revision).await.unwrap();
    assert!(soon(stream.try_collect::<Vec<_>>()).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_controller_reconciles_to_its_end() {
    use kube::runtime::Controller;
    use kube::runtime::controller::Action;
    use std::sync::Arc;

    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let api: Api<ConfigMap> = Api::default_namespaced(client.clone());
    api.create(&PostParams::default(), &config_map("x", "a")).await.unwrap();
    let reconcile = |object: Arc<ConfigMap>, api: Arc<Api<ConfigMap>>| async move {
        let name = object.metadata.name.clone().unwrap();
        let patch = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"seen": "yes"}});
        api.patch(&name, &PatchParams::apply("controller").force(), &Patch::Apply(&patch)).await?;
        Ok::<_, kube::Error>(Action::await_change())
    };
    let config = watcher::Config::default().streaming_lists();
    let mut runs = Controller::new(api.clone(), config)
        .run(reconcile, |_, _, _| Action::await_change(), Arc::new(api.clone()))
        .boxed();
    for _ in 0..2 {
        soon(runs.next()).await.unwrap().unwrap();
    }
    assert_eq!(api.get("x").await.unwrap().data.unwrap()["seen"], "yes");
    // The second run changed nothing, so there is no third.
    assert!(tokio::time::timeout(Duration::from_millis(500), runs.next()).await.is_err());
}
