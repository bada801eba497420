use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{
    ControllerRevision, StatefulSet, StatefulSetPersistentVolumeClaimRetentionPolicy,
    StatefulSetSpec,
};
use k8s_openapi::api::core::v1::{Container, PersistentVolumeClaim, Pod, PodSpec, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, Time};
use proptest::prelude::*;

use super::plan::{Action, Observed, Plan, Reason, plan};
use super::pod;
use crate::controllers::names::label;
use crate::controllers::pods::build::{at, set_phase, set_ready};
use crate::controllers::pods::{is_active, is_ready};

/// A set and what it has; actions take effect at once, pods change as a test says.
#[derive(Clone)]
struct World {
    set: StatefulSet,
    history: Vec<Arc<ControllerRevision>>,
    pods: Vec<Arc<Pod>>,
    claims: Vec<Arc<PersistentVolumeClaim>>,
    now: Timestamp,
}

impl World {
    fn new(replicas: i32) -> Self {
        let labels = Some([("app".to_owned(), "lab".to_owned())].into());
        let claim = PersistentVolumeClaim {
            metadata: ObjectMeta { name: Some("home".into()), ..ObjectMeta::default() },
            ..PersistentVolumeClaim::default()
        };
        let spec = StatefulSetSpec {
            replicas: Some(replicas),
            service_name: Some("lab".into()),
            selector: LabelSelector { match_labels: labels.clone(), ..LabelSelector::default() },
            template: PodTemplateSpec {
                metadata: Some(ObjectMeta { labels, ..ObjectMeta::default() }),
                spec: Some(PodSpec {
                    containers: vec![Container::default()],
                    ..PodSpec::default()
                }),
            },
            volume_claim_templates: Some(vec![claim]),
            ..StatefulSetSpec::default()
        };
        let metadata = ObjectMeta {
            name: Some("lab".into()),
            namespace: Some("alice".into()),
            uid: Some("set".into()),
            generation: Some(1),
            ..ObjectMeta::default()
        };
        let set = StatefulSet { metadata, spec: Some(spec), status: None };
        Self { set, history: vec![], pods: vec![], claims: vec![], now: at(0) }
    }

    fn spec(&mut self) -> &mut StatefulSetSpec {
        self.set.spec.as_mut().unwrap()
    }

    fn image(&mut self, image: &str) {
        self.spec().template.spec.as_mut().unwrap().containers[0].image = Some(image.into());
    }

    fn plan(&self) -> Plan {
        let Self { set, history, pods, claims, now } = self;
        plan(&Observed { set, history, pods, claims, now: *now })
    }

    /// One reconcile; returns what it did.
    fn step(&mut self) -> Vec<String> {
        let plan = self.plan();
        self.set.status = Some(plan.status);
        plan.actions.into_iter().map(|action| self.act(action)).collect()
    }

    fn act(&mut self, action: Action) -> String {
        match action {
            Action::CreateRevision(revision) => {
                self.history.push(Arc::new(*revision));
                "revision".into()
            }
            Action::RenumberRevision(name, number) => {
                for revision in &mut self.history {
                    if revision.metadata.name.as_ref() == Some(&name) {
                        Arc::make_mut(revision).revision = number;
                    }
                }
                "renumber".into()
            }
            Action::DeleteRevision(gone) => {
                self.history.retain(|revision| revision.metadata.name != gone.metadata.name);
                "forget revision".into()
            }
            Action::CreateClaim(claim) => {
                let name = claim.metadata.name.clone().unwrap();
                assert!(
                    self.claims.iter().all(|have| have.metadata.name.as_ref() != Some(&name)),
                    "{name} twice"
                );
                self.claims.push(Arc::new(*claim));
                format!("claim {name}")
            }
            Action::SetClaimOwners(claim, owners) => {
                for held in &mut self.claims {
                    if held.metadata.name == claim.metadata.name {
                        Arc::make_mut(held).metadata.owner_references = Some(owners.clone());
                    }
                }
                format!("owners {}", claim.metadata.name.as_deref().unwrap())
            }
            Action::CreatePod(mut pod) => {
                let name = pod.metadata.name.clone().unwrap();
                assert!(
                    self.pods.iter().all(|have| have.metadata.name.as_ref() != Some(&name)),
                    "{name} twice"
                );
                pod.metadata.uid = Some(format!("uid-{name}"));
                self.pods.push(Arc::new(*pod));
                format!("create {name}")
            }
            Action::DeletePod(pod, reason) => {
                let name = pod.metadata.name.clone().unwrap();
                let deleted = Some(Time(self.now));
                self.edit(&name, |pod| pod.metadata.deletion_timestamp = deleted);
                match reason {
                    Reason::Finished => format!("replace {name}"),
                    Reason::ScaledDown => format!("remove {name}"),
                    Reason::Outdated => format!("update {name}"),
                }
            }
        }
    }

    fn edit(&mut self, name: &str, change: impl FnOnce(&mut Pod)) {
        let it =
            self.pods.iter_mut().find(|pod| pod.metadata.name.as_deref() == Some(name)).unwrap();
        change(Arc::make_mut(it));
    }

    fn ready(&mut self, name: &str) {
        let now = self.now;
        self.edit(name, |pod| {
            pod.spec.as_mut().unwrap().node_name = Some("node".into());
            set_ready(pod, now);
        });
    }

    /// What a node does: terminating pods go, others become ready.
    fn node(&mut self) {
        self.pods.retain(|pod| pod.metadata.deletion_timestamp.is_none());
        let names: Vec<_> = self
            .pods
            .iter()
            .filter(|pod| is_active(pod))
            .map(|pod| pod.metadata.name.clone().unwrap())
            .collect();
        names.iter().for_each(|name| self.ready(name));
    }

    fn settle(&mut self) {
        for _ in 0..200 {
            let (before, done) = (self.pods.clone(), self.step());
            self.node();
            if done.is_empty() && before == self.pods {
                return;
            }
        }
        panic!("it does not come to rest: {:?}", self.step());
    }
}

#[test]
fn pods_come_in_order_each_when_the_one_before_is_ready() {
    let mut world = World::new(2);
    assert_eq!(world.step(), ["revision", "claim home-lab-0", "create lab-0"]);
    assert!(world.step().is_empty());
    world.ready("lab-0");
    assert_eq!(world.step(), ["claim home-lab-1", "create lab-1"]);
    world.ready("lab-1");
    assert!(world.step().is_empty());
    let status = world.set.status.clone().unwrap();
    assert_eq!(
        (status.replicas, status.ready_replicas, status.available_replicas),
        (2, Some(2), Some(2))
    );
    assert_eq!(status.current_revision, status.update_revision);
    assert_eq!(status.observed_generation, Some(1));
    let first = &world.pods[0];
    assert_eq!(label(&first.metadata, pod::POD_NAME), Some("lab-0"));
    assert_eq!(label(&first.metadata, pod::POD_INDEX), Some("0"));
    assert_eq!(label(&first.metadata, pod::REVISION), status.update_revision.as_deref());
    let spec = first.spec.as_ref().unwrap();
    assert_eq!((spec.hostname.as_deref(), spec.subdomain.as_deref()), (Some("lab-0"), Some("lab")));
    let claim = spec.volumes.as_ref().unwrap()[0].persistent_volume_claim.as_ref().unwrap();
    assert_eq!(claim.claim_name, "home-lab-0");
}

#[test]
fn parallel_sets_do_not_wait() {
    let mut world = World::new(3);
    world.spec().pod_management_policy = Some("Parallel".into());
    assert_eq!(world.step().iter().filter(|done| done.starts_with("create")).count(), 3);
}

#[test]
fn scaling_to_zero_keeps_the_claim_and_waking_finds_it_again() {
    let mut world = World::new(1);
    world.settle();
    world.spec().replicas = Some(0);
    assert_eq!(world.step(), ["remove lab-0"]);
    world.settle();
    assert!(world.pods.is_empty());
    assert_eq!(world.set.status.as_ref().unwrap().replicas, 0);
    assert_eq!(world.claims.len(), 1);
    world.spec().replicas = Some(1);
    assert_eq!(world.step(), ["create lab-0"]);
}

#[test]
fn an_ended_pod_is_replaced() {
    for phase in ["Failed", "Succeeded"] {
        let mut world = World::new(1);
        world.settle();
        world.edit("lab-0", |pod| set_phase(pod, phase));
        assert_eq!(world.step(), ["replace lab-0"]);
        assert!(world.step().is_empty());
        world.pods.clear();
        assert_eq!(world.step(), ["create lab-0"]);
    }
}

#[test]
fn a_new_template_rolls_from_the_highest_ordinal_down() {
    let mut world = World::new(2);
    world.settle();
    let before = world.set.status.clone().unwrap().update_revision;
    world.image("new");
    assert_eq!(world.step(), ["revision", "update lab-1"]);
    assert!(world.step().is_empty(), "one at a time");
    let status = world.set.status.clone().unwrap();
    assert_eq!(status.current_revision, before);
    assert_ne!(status.update_revision, before);
    world.node();
    assert_eq!(world.step(), ["create lab-1"]);
    assert!(world.step().is_empty(), "the next one waits until it is ready");
    world.ready("lab-1");
    assert_eq!(world.step(), ["update lab-0"]);
    world.settle();
    let status = world.set.status.clone().unwrap();
    assert_eq!(status.current_revision, status.update_revision);
    assert_eq!(status.updated_replicas, Some(2));
}

#[test]
fn going_back_reuses_the_earlier_revision() {
    let mut world = World::new(1);
    world.image("one");
    world.settle();
    let first = world.set.status.clone().unwrap().update_revision;
    world.image("two");
    world.settle();
    world.image("one");
    assert_eq!(world.step(), ["renumber", "update lab-0"]);
    world.settle();
    assert_eq!(world.set.status.clone().unwrap().update_revision, first);
    assert_eq!(world.history.len(), 2);
}

#[test]
fn a_partition_holds_the_lower_pods_at_the_earlier_revision() {
    let mut world = World::new(2);
    world.settle();
    let before = world.set.status.clone().unwrap().update_revision;
    let rolling = k8s_openapi::api::apps::v1::RollingUpdateStatefulSetStrategy {
        partition: Some(1),
        ..Default::default()
    };
    world.spec().update_strategy = Some(k8s_openapi::api::apps::v1::StatefulSetUpdateStrategy {
        rolling_update: Some(rolling),
        type_: None,
    });
    world.image("new");
    world.settle();
    world.pods.retain(|pod| pod.metadata.name.as_deref() != Some("lab-0"));
    world.settle();
    let of = |name: &str| {
        world.pods.iter().find(|pod| pod.metadata.name.as_deref() == Some(name)).unwrap()
    };
    assert_eq!(label(&of("lab-0").metadata, pod::REVISION), before.as_deref());
    assert_ne!(label(&of("lab-1").metadata, pod::REVISION), before.as_deref());
}

#[test]
fn claims_go_with_the_set_or_the_pod_if_the_policy_says_so() {
    let mut world = World::new(2);
    world.spec().persistent_volume_claim_retention_policy =
        Some(StatefulSetPersistentVolumeClaimRetentionPolicy {
            when_deleted: Some("Delete".into()),
            when_scaled: Some("Delete".into()),
        });
    world.settle();
    let owner = |world: &World, index: usize| {
        world.claims[index].metadata.owner_references.clone().unwrap()[0].clone()
    };
    assert_eq!(
        (owner(&world, 1).kind.as_str(), owner(&world, 1).controller),
        ("StatefulSet", None)
    );
    world.spec().replicas = Some(1);
    assert_eq!(world.step(), ["owners home-lab-1", "remove lab-1"]);
    assert_eq!(
        (owner(&world, 1).kind.as_str(), owner(&world, 1).uid.as_str()),
        ("Pod", "uid-lab-1")
    );
    world.spec().persistent_volume_claim_retention_policy = None;
    assert_eq!(world.step().len(), 2, "both claims are let go");
}

#[test]
fn a_set_that_is_being_deleted_makes_nothing() {
    let mut world = World::new(1);
    world.set.metadata.deletion_timestamp = Some(Time(at(0)));
    assert!(world.step().is_empty());
}

proptest! {
    /// Whatever happens to pods and spec, it comes to rest with exactly the pods it should have,
    /// each at the newest revision and with its claim.
    #[test]
    fn it_always_converges(
        start in 0..4_i32,
        parallel: bool,
        events in proptest::collection::vec((0..6_u8, 0..4_i32), 0..12),
    ) {
        let mut world = World::new(start);
        world.spec().pod_management_policy = parallel.then(|| "Parallel".to_owned());
        for (event, number) in events {
            let name = format!("lab-{number}");
            let exists = world.pods.iter().any(|pod| pod.metadata.name.as_deref() == Some(&name));
            match event {
                0 => world.spec().replicas = Some(number),
                1 => world.image(&number.to_string()),
                2 => world.pods.retain(|pod| pod.metadata.name.as_deref() != Some(&name)),
                3 if exists => world.edit(&name, |pod| set_phase(pod, "Failed")),
                4 if exists => world.ready(&name),
                _ => drop(world.step()),
            }
        }
        world.settle();
        let wanted = world.set.spec.as_ref().unwrap().replicas.unwrap();
        let mut names: Vec<_> = world.pods.iter().map(|pod| pod.metadata.name.clone().unwrap()).collect();
        names.sort();
        prop_assert_eq!(names, (0..wanted).map(|ordinal| format!("lab-{ordinal}")).collect::<Vec<_>>());
        let status = world.set.status.clone().unwrap();
        for pod in &world.pods {
            prop_assert!(is_ready(pod));
            prop_assert_eq!(label(&pod.metadata, pod::REVISION), status.update_revision.as_deref());
        }
        prop_assert_eq!(status.current_revision, status.update_revision);
        prop_assert_eq!(status.ready_replicas.unwrap_or(0), wanted);
    }
}
