//! What exists and was not made for the workload stays as it is.

use std::collections::BTreeSet;
use std::fmt::Debug;

use cluster::resources::{App, Workspace};
use k8s_openapi::api::{
    apps::v1::{Deployment, StatefulSet},
    core::v1::{PersistentVolumeClaim, Secret, Service},
};
use kube::{Resource, ResourceExt, api::DeleteParams, core::NamespaceResourceScope};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use crate::world::{World, applied, said};

fn claim(name: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {
        "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "10Gi"}},
    }})
}

fn pods(name: &str) -> Value {
    json!({
        "selector": {"matchLabels": {"app": name}}, "serviceName": name, "replicas": 1,
        "template": {
            "metadata": {"labels": {"app": name}},
            "spec": {"containers": [{"name": "main", "image": "theirs"}]},
        },
    })
}

/// The object as somebody else made it, and that it is still the same after `then`.
async fn stays<K>(world: &World, object: Value, then: impl AsyncFnOnce()) -> K
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + Debug
        + Serialize
        + DeserializeOwned,
{
    let made: K = world.create(object).await;
    then().await;
    let found = world.api::<K>().get(&made.name_any()).await.unwrap();
    assert_eq!(found.resource_version(), made.resource_version(), "it was written to");
    found
}

#[tokio::test]
async fn somebody_elses_claim_is_neither_used_nor_deleted() {
    let world = World::new().await;
    stays::<PersistentVolumeClaim>(&world, claim("lab-home"), async || {
        world.workspace("lab", json!({})).await;
        let lab = world.until_not_applied::<Workspace>("lab", "NotOurs").await;
        assert!(said(&lab).contains("PersistentVolumeClaim lab-home exists"), "{}", said(&lab));
        assert_eq!(lab.status.unwrap().phase.unwrap().as_str(), "Failed");
        let sets = world.api::<StatefulSet>().get_opt("lab").await.unwrap();
        assert!(sets.is_none(), "no pod may be given the claim");
    })
    .await;
}

#[tokio::test]
async fn whatever_has_a_workloads_name_already_is_left_alone_and_named() {
    let world = World::new().await;
    let ports = json!({"ports": [{"port": 80}]});
    stays::<Service>(&world, json!({"metadata": {"name": "a"}, "spec": ports}), async || {
        world.workspace("a", json!({})).await;
        let it = world.until_not_applied::<Workspace>("a", "NotOurs").await;
        assert!(said(&it).contains("Service a exists"), "{}", said(&it));
    })
    .await;
    let secret = json!({"metadata": {"name": "b-agent"}, "data": {"host_key": "AAAA"}});
    stays::<Secret>(&world, secret, async || {
        world.workspace("b", json!({})).await;
        let it = world.until_not_applied::<Workspace>("b", "NotOurs").await;
        assert!(said(&it).contains("Secret b-agent exists"), "{}", said(&it));
    })
    .await;
    let set = json!({"metadata": {"name": "c"}, "spec": pods("c")});
    stays::<StatefulSet>(&world, set, async || {
        world.workspace("c", json!({})).await;
        let it = world.until_not_applied::<Workspace>("c", "NotOurs").await;
        assert!(said(&it).contains("StatefulSet c exists"), "{}", said(&it));
        // Nor is it stopped with the workspace.
        world.merge::<Workspace>("c", json!({"spec": {"replicas": 0}})).await;
        world.until("c", |it: &Workspace| phase(it) == "Stopped").await;
    })
    .await;
    let deployment = |name: &str| {
        let mut spec = pods(name);
        spec.as_object_mut().unwrap().remove("serviceName");
        json!({"metadata": {"name": name}, "spec": spec})
    };
    stays::<Deployment>(&world, deployment("d"), async || {
        world.app("d", json!({})).await;
        let it = world.until_not_applied::<App>("d", "NotOurs").await;
        assert!(said(&it).contains("Deployment d exists"), "{}", said(&it));
    })
    .await;
    stays::<Deployment>(&world, deployment("e--canary"), async || {
        // An app without a canary deletes what an earlier one left, and nothing else.
        world.app("e", json!({})).await;
        world.until("e", |it: &App| applied(it.status.as_ref()).is_some()).await;
        world.merge::<App>("e", json!({"spec": {"canary": {"weight": 10}}})).await;
        let canary = |it: &App| it.status.as_ref().and_then(|status| status.canary.clone());
        let it = world.until("e", |it: &App| canary(it).is_some()).await;
        let message = canary(&it).unwrap().message.unwrap();
        assert!(message.contains("Deployment e--canary exists"), "{message}");
    })
    .await;
}

fn phase(workspace: &Workspace) -> &'static str {
    let status = workspace.status.as_ref();
    status.and_then(|status| status.phase).map_or("", |phase| phase.as_str())
}

#[tokio::test]
async fn a_volume_that_alice_kept_is_not_given_to_bob_but_to_alice() {
    let world = World::new().await;
    let _collected = world.collect_garbage();
    let keep = json!({"storage": {"onDelete": "Retain"}});
    world.workspace("lab", keep).await;
    let kept = world.until("lab-home", |_: &PersistentVolumeClaim| true).await;
    world.until("lab", |set: &StatefulSet| set.spec.is_some()).await;
    assert!(kept.owner_references().is_empty());
    world.api::<Workspace>().delete("lab", &DeleteParams::default()).await.unwrap();

    world.workspace("lab", json!({"owner": "bob"})).await;
    let lab = world.until_not_applied::<Workspace>("lab", "NotOurs").await;
    assert!(said(&lab).contains("lab-home is alice's and not bob's"), "{}", said(&lab));
    let pods = world.api::<StatefulSet>().get_opt("lab").await.unwrap();
    let bobs = |set: &StatefulSet| {
        set.owner_references().iter().any(|it| Some(&it.uid) == lab.uid().as_ref())
    };
    assert!(!pods.is_some_and(|set| bobs(&set)));
    let found = world.api::<PersistentVolumeClaim>().get("lab-home").await.unwrap();
    assert_eq!((found.uid(), found.owner_references()), (kept.uid(), &[][..]));

    // Handing it over takes a decision about the volume itself.
    let hand_over = json!({"metadata": {"annotations": {"dormouse.dev/owner": "bob"}}});
    world.merge::<PersistentVolumeClaim>("lab-home", hand_over).await;
    world.until("lab", bobs).await;
}

#[tokio::test]
async fn a_part_that_was_created_is_ours_to_change() {
    let world = World::new().await;
    world.workspace("lab", json!({"env": [{"name": "A", "value": "1"}]})).await;
    world.until("lab", |it: &Workspace| applied(it.status.as_ref()).is_some()).await;
    world.merge::<Workspace>("lab", json!({"spec": {"env": null, "port": 9000}})).await;
    let ports = |service: &Service| {
        let ports = service.spec.as_ref().and_then(|spec| spec.ports.clone());
        ports.unwrap_or_default().iter().map(|port| port.port).collect::<BTreeSet<_>>()
    };
    // What a creation set and the next apply leaves out is taken away, and not left beside it.
    world.until("lab", |service: &Service| ports(service) == [2022, 9000].into()).await;
    let env = |set: &StatefulSet| {
        let pod = set.spec.as_ref().and_then(|spec| spec.template.spec.clone()).unwrap();
        pod.containers[0].env.clone().unwrap_or_default()
    };
    world.until("lab", |set: &StatefulSet| env(set).iter().all(|var| var.name != "A")).await;
}

#[tokio::test]
async fn a_workspaces_keys_are_mounted_by_no_colleague() {
    let world = World::new().await;
    let names = |name: &str| json!({"secrets": [{"name": name, "mountPath": "/keys"}]});
    let mounted = |set: &StatefulSet| {
        let spec = set.spec.as_ref().unwrap().template.spec.as_ref().unwrap();
        let volumes = spec.volumes.iter().flatten();
        let names = volumes.filter_map(|volume| volume.secret.as_ref()?.secret_name.clone());
        names.collect::<BTreeSet<_>>()
    };
    // Before the colleague's workspace exists, and when it does.
    world.workspace("spy", names("lab-agent")).await;
    let spy = world.until_not_applied::<Workspace>("spy", "NotOurs").await;
    assert!(said(&spy).contains("Secret lab-agent does not exist"), "{}", said(&spy));
    world.workspace("lab", json!({})).await;
    world.until::<StatefulSet>("lab", |_| true).await;
    world.app("peek", names("lab-agent")).await;
    let peek = world.until_not_applied::<App>("peek", "NotOurs").await;
    assert!(said(&peek).contains("keys of Workspace lab"), "{}", said(&peek));
    let own = |name: &str| BTreeSet::from([format!("{name}-agent")]);
    world.until::<StatefulSet>("spy", |set| mounted(set) == own("spy")).await;
    // A Secret of somebody's own may have such a name.
    let secret = json!({"metadata": {"name": "my-agent"}});
    world.create::<Secret>(secret).await;
    world.workspace("own", names("my-agent")).await;
    let wanted = BTreeSet::from(["my-agent".to_owned(), "own-agent".to_owned()]);
    let runs = world.until::<StatefulSet>("own", |set| mounted(set) == wanted).await;
    // When it goes, nothing that runs is started anew.
    world.api::<Secret>().delete("my-agent", &DeleteParams::default()).await.unwrap();
    world.merge::<Workspace>("own", json!({"metadata": {"labels": {"touched": "yes"}}})).await;
    world.until_not_applied::<Workspace>("own", "NotOurs").await;
    let still = world.api::<StatefulSet>().get("own").await.unwrap();
    assert_eq!(still.metadata.generation, runs.metadata.generation);
    assert_eq!(mounted(&still), wanted);
}
