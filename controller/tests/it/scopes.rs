//! Several controllers on one cluster: each in its scope, and one at a time.

use std::sync::{Arc, Mutex};

use cluster::{
    labels,
    resources::{Phase, Project, Workspace},
};
use k8s_openapi::api::{
    apps::v1::StatefulSet,
    core::v1::{Namespace, PersistentVolumeClaim, Secret, Service},
};
use kube::{
    Api, ResourceExt,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use crate::world::{Controller, NAMESPACE, World, failure, until_warned};

fn image(set: &StatefulSet) -> Option<String> {
    let template = &set.spec.as_ref()?.template;
    template.spec.as_ref()?.init_containers.as_ref()?.first()?.image.clone()
}

fn label(set: &StatefulSet) -> Option<&String> {
    set.labels().get(labels::SCOPE)
}

/// Waits until the first controller has seen everything once.
async fn acts(world: &World) {
    world.workspace("first", json!({})).await;
    world.until("first", |_: &StatefulSet| true).await;
}

async fn project(world: &World, name: &str, scope: Option<&str>) -> Project {
    let labels = scope.map(|scope| json!({labels::SCOPE: scope}));
    let project = json!({"apiVersion": "dormouse.dev/v1alpha1", "kind": "Project",
        "metadata": {"name": name, "labels": labels}, "spec": {}});
    let project = serde_json::from_value(project).unwrap();
    let projects = Api::<Project>::all(world.client.clone());
    projects.create(&PostParams::default(), &project).await.unwrap()
}

/// What the workspace and all that lies under it are; not who applied it last.
async fn under(world: &World, name: &str) -> Value {
    let set = world.api::<StatefulSet>().get(name).await.unwrap();
    let service = world.api::<Service>().get(name).await.unwrap();
    let claim = world.api::<PersistentVolumeClaim>().get(&format!("{name}-home")).await.unwrap();
    let secrets = world.api::<Secret>().list(&Default::default()).await.unwrap().items;
    let workspace = world.api::<Workspace>().get(name).await.unwrap();
    json!([
        [set.uid(), set.labels(), set.metadata.generation, set.spec],
        [service.uid(), service.labels(), service.spec],
        [claim.uid(), claim.labels(), claim.spec],
        secrets.iter().map(|secret| json!([secret.uid(), secret.data])).collect::<Vec<_>>(),
        [workspace.uid(), workspace.spec, workspace.status],
    ])
}

/// Waits until the controller of `scope` has seen everything that was made before, by something of its own that
/// was made after it.
async fn has_caught_up(world: &World, scope: &str, name: &str) {
    project(world, name, Some(scope)).await;
    let lab = json!({"apiVersion": "dormouse.dev/v1alpha1", "kind": "Workspace",
        "metadata": {"name": "lab"}, "spec": {"owner": "alice", "image": "any"}});
    let namespaces = Api::<Namespace>::all(world.client.clone());
    world.until_of(&namespaces, name, |_: &Namespace| true).await;
    let labs = Api::<Workspace>::namespaced(world.client.clone(), name);
    let lab = serde_json::from_value(lab).unwrap();
    labs.create(&PostParams::default(), &lab).await.unwrap();
    let told = |lab: &Workspace| lab.status.as_ref().is_some_and(|status| status.phase.is_some());
    world.until_of(&labs, "lab", told).await;
}

/// The paths of all writes of one controller.
#[derive(Debug, Clone, Default)]
struct Writes(Arc<Mutex<Vec<String>>>);

impl Writes {
    fn noting(&self) -> impl Fn(&str, &str, &str) -> Option<(u16, Value)> + Send + 'static {
        let writes = self.0.clone();
        move |method, path, _| {
            if !matches!(method, "GET" | "WATCH") {
                writes.lock().unwrap().push(path.to_owned());
            }
            None
        }
    }

    fn are_of(&self, namespace: &str) -> bool {
        self.0.lock().unwrap().iter().any(|path| path.split('/').any(|part| part == namespace))
    }
}

#[tokio::test]
async fn what_another_scope_made_is_left_as_it_is() {
    let world = World::new().await;
    world.workspace("lab", json!({})).await;
    let settled = |lab: &Workspace| {
        lab.status.as_ref().is_some_and(|status| status.phase == Some(Phase::Starting))
    };
    world.until("lab", settled).await;
    let before = under(&world, "lab").await;
    // Whatever its settings are.
    let (writes, first_writes) = (Writes::default(), Writes::default());
    *world.answer.lock().unwrap() = Box::new(first_writes.noting());
    let dev = Controller { scope: "dev", image: "another", holder: "b" };
    let dev = dev.start_through(&world, writes.noting());
    has_caught_up(&world, "dev", "dev-one").await;
    assert_eq!(under(&world, "lab").await, before);
    assert!(writes.are_of("dev-one") && !writes.are_of(NAMESPACE), "{writes:?}");
    let namespaces = Api::<Namespace>::all(world.client.clone());
    assert!(namespaces.get(NAMESPACE).await.unwrap().labels().get(labels::PROJECT).is_none());

    // Nor does the first one touch the second one's, whichever acts first.
    let sets = Api::<StatefulSet>::namespaced(world.client.clone(), "dev-one");
    let set = sets.get("lab").await.unwrap();
    assert_eq!(
        (image(&set).as_deref(), label(&set).map(String::as_str)),
        (Some("another"), Some("dev"))
    );
    world.merge::<Workspace>("lab", json!({"spec": {"args": ["x"]}})).await;
    let changed =
        |set: &StatefulSet| serde_json::to_string(set).unwrap().contains(r#""args":["x"]"#);
    world.until("lab", changed).await;
    assert_eq!(sets.get("lab").await.unwrap().spec, set.spec);
    assert!(first_writes.are_of(NAMESPACE) && !first_writes.are_of("dev-one"), "{first_writes:?}");
    dev.stop().await;
}

#[tokio::test]
async fn a_project_that_changes_its_scope_takes_what_is_in_it_along() {
    let world = World::new().await;
    let dev = Controller { scope: "dev", image: "another", holder: "b" }.start(&world);
    has_caught_up(&world, "dev", "dev-one").await;
    let sets = Api::<StatefulSet>::namespaced(world.client.clone(), "dev-one");
    let of = |wanted: &'static str| move |set: &StatefulSet| image(set).as_deref() == Some(wanted);
    world.until_of(&sets, "lab", of("another")).await;
    let projects = Api::<Project>::all(world.client.clone());
    let labelled =
        |scope: Value| Patch::Merge(json!({"metadata": {"labels": {labels::SCOPE: scope}}}));
    let params = PatchParams::default();
    projects.patch("dev-one", &params, &labelled(json!(null))).await.unwrap();
    let set = world.until_of(&sets, "lab", of("dormouse")).await;
    assert_eq!(label(&set), None);
    projects.patch("dev-one", &params, &labelled(json!("dev"))).await.unwrap();
    let set = world.until_of(&sets, "lab", of("another")).await;
    assert_eq!(label(&set).map(String::as_str), Some("dev"));
    dev.stop().await;
}

/// The API server's answer is what counts, and not what a watch has told so far.
#[tokio::test]
async fn a_workload_whose_project_was_not_seen_yet_waits() {
    // The controller's watch of Projects says nothing of what is made later.
    let world = World::with(|method, path, _| {
        (method == "WATCH" && path.ends_with("/projects")).then_some((200, Value::Null))
    })
    .await;
    acts(&world).await;
    project(&world, "dev-one", Some("dev")).await;
    let namespace = serde_json::from_value(json!({"metadata": {"name": "dev-one"}})).unwrap();
    let namespaces = Api::<Namespace>::all(world.client.clone());
    namespaces.create(&PostParams::default(), &namespace).await.unwrap();
    let labs = Api::<Workspace>::namespaced(world.client.clone(), "dev-one");
    let lab = json!({"apiVersion": "dormouse.dev/v1alpha1", "kind": "Workspace",
        "metadata": {"name": "lab"}, "spec": {"owner": "alice", "image": "any"}});
    labs.create(&PostParams::default(), &serde_json::from_value(lab).unwrap()).await.unwrap();
    // One of its own that was made later is done.
    world.workspace("later", json!({})).await;
    world.until("later", |_: &StatefulSet| true).await;
    let sets = Api::<StatefulSet>::namespaced(world.client.clone(), "dev-one");
    assert!(sets.list(&Default::default()).await.unwrap().items.is_empty());
    assert_eq!(labs.get("lab").await.unwrap().status, None);
}

#[tokio::test]
async fn a_second_controller_stands_by_and_follows_one_that_is_cut_off() {
    let world = World::new().await;
    world.workspace("lab", json!({})).await;
    world.until("lab", |set: &StatefulSet| image(set).as_deref() == Some("dormouse")).await;
    let second = Controller { scope: "default", image: "another", holder: "b" }.start(&world);
    let standby = "standby: test holds the Lease default/dormouse-controller";
    until_warned(&second.ctx, |warning| warning == Some(standby)).await;
    let problems = second.ctx.health.problems();
    assert!(problems.iter().all(|(name, _)| *name != "controller"), "it is ready: {problems:?}");
    world.workspace("other", json!({})).await;
    world.until("other", |set: &StatefulSet| image(set).as_deref() == Some("dormouse")).await;

    *world.answer.lock().unwrap() = Box::new(|_, _, _| Some(failure(503, "cut off")));
    world.until("lab", |set: &StatefulSet| image(set).as_deref() == Some("another")).await;
    until_warned(&second.ctx, |warning| warning.is_none()).await;
    // The first one comes back, and is the one that waits.
    *world.answer.lock().unwrap() = Box::new(|_, _, _| None);
    let standby = "standby: b holds the Lease default/dormouse-controller";
    until_warned(&world.ctx, |warning| warning == Some(standby)).await;
    world.merge::<Workspace>("lab", json!({"spec": {"args": ["x"]}})).await;
    let changed =
        |set: &StatefulSet| serde_json::to_string(set).unwrap().contains(r#""args":["x"]"#);
    let set = world.until("lab", changed).await;
    assert_eq!(image(&set).as_deref(), Some("another"));
    second.stop().await;
}

#[tokio::test]
async fn a_clean_end_lets_the_next_one_start_at_once() {
    let world = World::new().await;
    acts(&world).await;
    let second = Controller { scope: "default", image: "another", holder: "b" }.start(&world);
    until_warned(&second.ctx, |warning| warning.is_some_and(|it| it.starts_with("standby: ")))
        .await;
    world.ctx.shutdown.cancel();
    world.ended().await.unwrap();
    world.workspace("lab", json!({})).await;
    let set = world.until("lab", |_: &StatefulSet| true).await;
    assert_eq!(image(&set).as_deref(), Some("another"));
    second.stop().await;
}
