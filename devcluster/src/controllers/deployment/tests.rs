use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, DeploymentStrategy, ReplicaSet};
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, Time};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use proptest::prelude::*;

use super::plan::{Action, HASH, REVISION, bounds, plan, size};
use crate::controllers::names::{annotation, label, set};
use crate::controllers::pods::build::{at, pod};

struct World {
    deployment: Deployment,
    sets: Vec<Arc<ReplicaSet>>,
    now: i64,
}

impl World {
    fn new(replicas: i32) -> Self {
        let labels = Some([("app".to_owned(), "echo".to_owned())].into());
        let mut deployment = Deployment {
            spec: Some(DeploymentSpec {
                replicas: Some(replicas),
                selector: LabelSelector {
                    match_labels: labels.clone(),
                    ..LabelSelector::default()
                },
                template: PodTemplateSpec {
                    metadata: Some(ObjectMeta { labels, ..ObjectMeta::default() }),
                    spec: Some(PodSpec {
                        containers: vec![Container::default()],
                        ..PodSpec::default()
                    }),
                },
                ..DeploymentSpec::default()
            }),
            ..Deployment::default()
        };
        deployment.metadata.name = Some("echo".into());
        deployment.metadata.namespace = Some("a".into());
        deployment.metadata.uid = Some("d".into());
        Self { deployment, sets: vec![], now: 0 }
    }

    fn spec(&mut self) -> &mut DeploymentSpec {
        self.deployment.spec.as_mut().unwrap()
    }

    fn image(&mut self, image: &str) {
        self.spec().template.spec.as_mut().unwrap().containers[0].image = Some(image.into());
    }

    /// The pods that the sets have; a set's status says how many.
    fn pods(&self) -> Vec<Arc<Pod>> {
        let of = |set: &Arc<ReplicaSet>| {
            let count = set.status.as_ref().map_or(0, |status| status.replicas);
            let hash = label(&set.metadata, HASH).unwrap().to_owned();
            (0..count)
                .map(move |index| {
                    let mut it = pod("a", &format!("{hash}-{index}"));
                    crate::controllers::names::set(&mut it.metadata.labels, HASH, &hash);
                    Arc::new(it)
                })
                .collect::<Vec<_>>()
        };
        self.sets.iter().flat_map(of).collect()
    }

    fn now(&self) -> Timestamp {
        at(self.now)
    }

    fn step(&mut self) -> Vec<String> {
        let plan = plan(&self.deployment, &self.sets, &self.pods(), self.now());
        self.deployment.status = Some(plan.status.status);
        plan.actions.into_iter().map(|action| self.act(action)).collect()
    }

    fn edit(&mut self, set: &ReplicaSet, change: impl FnOnce(&mut ReplicaSet)) {
        let held = self.sets.iter_mut().find(|it| it.metadata.name == set.metadata.name).unwrap();
        change(Arc::make_mut(held));
    }

    fn act(&mut self, action: Action) -> String {
        let annotate = |it: &mut ReplicaSet, annotations: Vec<(&str, String)>| {
            annotations
                .into_iter()
                .for_each(|(name, value)| set(&mut it.metadata.annotations, name, value));
        };
        match action {
            Action::Create(mut made) => {
                assert!(self.sets.iter().all(|it| it.metadata.name != made.metadata.name), "twice");
                made.metadata.creation_timestamp = Some(Time(self.now()));
                let done = format!("create {}", size(&made));
                self.sets.push(Arc::new(*made));
                done
            }
            Action::Scale { set, replicas, annotations } => {
                let done = format!("scale {} to {replicas}", size(&set));
                self.edit(&set, |it| {
                    it.spec.as_mut().unwrap().replicas = Some(replicas);
                    annotate(it, annotations);
                });
                done
            }
            Action::Annotate { set, annotations } => {
                self.edit(&set, |it| annotate(it, annotations));
                "annotate".into()
            }
            Action::Delete(set) => {
                self.sets.retain(|it| it.metadata.name != set.metadata.name);
                "delete".into()
            }
            Action::Revision(number) => {
                set(&mut self.deployment.metadata.annotations, REVISION, &number);
                format!("revision {number}")
            }
        }
    }

    /// Lets set `index` make progress towards its size: all its pods exist, `ready` of them serve.
    fn progress(&mut self, index: usize, ready: i32) {
        let status = Arc::make_mut(&mut self.sets[index]);
        let count = size(status);
        let status = status.status.get_or_insert_default();
        status.replicas = count;
        status.ready_replicas = Some(ready.min(count));
        status.available_replicas = Some(ready.min(count));
    }

    fn settle(&mut self) {
        for _ in 0..200 {
            self.now += 1;
            let done = self.step();
            let before = self.sets.clone();
            (0..self.sets.len()).for_each(|index| self.progress(index, i32::MAX));
            if done.is_empty() && before == self.sets {
                return;
            }
        }
        panic!("it does not come to rest");
    }

    fn condition(&self, type_: &str) -> (String, String) {
        let conditions = self.deployment.status.as_ref().unwrap().conditions.clone().unwrap();
        let it = conditions.into_iter().find(|it| it.type_ == type_).unwrap();
        (it.status, it.reason.unwrap())
    }
}

#[test]
fn a_new_deployment_makes_a_set_named_by_its_template() {
    let mut world = World::new(2);
    assert_eq!(world.step(), ["create 2"]);
    let set = world.sets[0].clone();
    let hash = label(&set.metadata, HASH).unwrap();
    assert_eq!(set.metadata.name.as_deref(), Some(format!("echo-{hash}").as_str()));
    let spec = set.spec.as_ref().unwrap();
    assert_eq!(spec.selector.match_labels.as_ref().unwrap()[HASH], hash);
    assert_eq!(label(spec.template.as_ref().unwrap().metadata.as_ref().unwrap(), HASH), Some(hash));
    assert_eq!(world.step(), ["revision 1"]);
    assert_eq!(world.condition("Available"), ("False".into(), "MinimumReplicasUnavailable".into()));
    assert_eq!(world.condition("Progressing"), ("True".into(), "NewReplicaSetCreated".into()));
    world.settle();
    assert_eq!(world.condition("Available"), ("True".into(), "MinimumReplicasAvailable".into()));
    assert_eq!(world.condition("Progressing"), ("True".into(), "NewReplicaSetAvailable".into()));
    let status = world.deployment.status.clone().unwrap();
    assert_eq!(
        (status.replicas, status.updated_replicas, status.available_replicas),
        (Some(2), Some(2), Some(2))
    );
    assert_eq!(status.unavailable_replicas, None);
}

#[test]
fn scaling_takes_one_step_and_is_no_new_rollout() {
    let mut world = World::new(1);
    world.settle();
    world.spec().replicas = Some(3);
    assert_eq!(world.step(), ["scale 1 to 3"]);
    world.settle();
    world.spec().replicas = Some(0);
    assert_eq!(world.step(), ["scale 3 to 0"]);
    world.settle();
    assert_eq!(world.deployment.status.clone().unwrap().replicas, None);
    world.spec().replicas = Some(1);
    assert_eq!(world.step(), ["scale 0 to 1"]);
    assert_eq!(world.condition("Progressing").1, "NewReplicaSetAvailable");
    assert_eq!(world.sets.len(), 1);
}

#[test]
fn a_new_template_is_rolled_out_within_surge_and_unavailability() {
    let mut world = World::new(4);
    world.settle();
    world.image("new");
    assert_eq!(world.step(), ["create 1"]);
    // Both bounds are a quarter of four: one of the old may go before the new one serves.
    assert_eq!(world.step(), ["revision 2", "scale 4 to 3"]);
    world.progress(0, i32::MAX);
    assert_eq!(world.step(), ["scale 1 to 2"]);
    world.settle();
    assert_eq!((size(&world.sets[0]), size(&world.sets[1])), (0, 4));
    assert_eq!(annotation(&world.sets[1].metadata, REVISION), Some("2"));
}

#[test]
fn going_back_reuses_the_old_set_with_a_new_revision() {
    let mut world = World::new(1);
    world.settle();
    world.image("new");
    world.settle();
    world.spec().template.spec.as_mut().unwrap().containers[0].image = None;
    world.settle();
    assert_eq!(world.sets.len(), 2);
    assert_eq!((size(&world.sets[0]), size(&world.sets[1])), (1, 0));
    assert_eq!(annotation(&world.deployment.metadata, REVISION), Some("3"));
}

#[test]
fn recreate_waits_until_all_of_the_old_is_gone() {
    let mut world = World::new(2);
    world.spec().strategy =
        Some(DeploymentStrategy { type_: Some("Recreate".into()), rolling_update: None });
    world.settle();
    world.image("new");
    assert_eq!(world.step(), ["scale 2 to 0"]);
    assert!(world.step().is_empty(), "its pods still run");
    world.progress(0, 0);
    assert_eq!(world.step(), ["create 2"]);
}

#[test]
fn a_paused_deployment_scales_but_does_not_roll() {
    let mut world = World::new(1);
    world.settle();
    world.spec().paused = Some(true);
    world.image("new");
    world.spec().replicas = Some(2);
    assert_eq!(world.step(), ["scale 1 to 2"]);
    assert_eq!(world.sets.len(), 1);
    assert_eq!(world.condition("Progressing").1, "DeploymentPaused");
}

#[test]
fn a_rollout_that_does_not_move_misses_its_deadline() {
    let mut world = World::new(1);
    world.spec().progress_deadline_seconds = Some(60);
    world.settle();
    world.image("broken");
    world.step();
    world.step();
    let started = world.now;
    world.progress(1, 0);
    world.step();
    world.now = started + 40;
    let waiting = plan(&world.deployment, &world.sets, &world.pods(), world.now());
    assert_eq!(waiting.status.again, Some(std::time::Duration::from_secs(20)));
    world.now = started + 61;
    world.step();
    assert_eq!(world.condition("Progressing"), ("False".into(), "ProgressDeadlineExceeded".into()));
}

#[test]
fn old_sets_beyond_the_limit_are_dropped() {
    let mut world = World::new(1);
    world.spec().revision_history_limit = Some(2);
    for image in 0..6 {
        world.image(&image.to_string());
        world.settle();
    }
    assert_eq!(world.sets.len(), 3);
}

#[test]
fn bounds_round_as_kubernetes_does() {
    let mut world = World::new(10);
    assert_eq!(bounds(&world.deployment), (3, 2));
    let strategy = DeploymentStrategy {
        rolling_update: Some(k8s_openapi::api::apps::v1::RollingUpdateDeployment {
            max_surge: Some(IntOrString::Int(0)),
            max_unavailable: Some(IntOrString::String("5%".into())),
        }),
        type_: None,
    };
    world.spec().strategy = Some(strategy);
    assert_eq!(bounds(&world.deployment), (0, 1), "never both zero");
}

proptest! {
    /// Whatever happens, a rollout never exceeds the surge, never takes away what is needed, and ends.
    #[test]
    fn rollouts_keep_their_bounds_and_end(
        replicas in 0..6_i32,
        surge in 0..3_i32,
        unavailable in 0..3_i32,
        events in proptest::collection::vec((0..5_u8, 0..6_i32), 0..30),
    ) {
        let mut world = World::new(replicas);
        let rolling = k8s_openapi::api::apps::v1::RollingUpdateDeployment {
            max_surge: Some(IntOrString::Int(surge)),
            max_unavailable: Some(IntOrString::Int(unavailable)),
        };
        world.spec().strategy = Some(DeploymentStrategy { rolling_update: Some(rolling), type_: None });
        let serving = |world: &World| -> i32 {
            // A set's pods beyond its size are about to go: the least useful first.
            world.sets.iter().map(|set| size(set).min(set.status.as_ref().and_then(|it| it.available_replicas).unwrap_or(0))).sum()
        };
        for (event, number) in events {
            world.now += 1;
            match event {
                0 => world.image(&number.to_string()),
                1 if !world.sets.is_empty() => {
                    let index = usize::try_from(number).unwrap() % world.sets.len();
                    world.progress(index, number);
                }
                _ => {
                    let (before, total) = (serving(&world), world.sets.iter().map(|set| size(set)).sum::<i32>());
                    world.step();
                    let (surge, unavailable) = bounds(&world.deployment);
                    let after: i32 = world.sets.iter().map(|set| size(set)).sum();
                    prop_assert!(after <= (replicas + surge).max(total), "{after} of {replicas}+{surge}");
                    prop_assert!(serving(&world) >= before.min(replicas - unavailable));
                }
            }
        }
        world.settle();
        prop_assert_eq!(world.sets.iter().map(|set| size(set)).sum::<i32>(), replicas);
        prop_assert_eq!(world.condition("Progressing").1, "NewReplicaSetAvailable");
    }
}
