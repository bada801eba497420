//! What a ReplicaSet must do next: a pure function of the set and its pods.

use std::cmp::Reverse;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};

use crate::controllers::names::{bounded_name, owned_by};
use crate::controllers::pods::{self, Availability, selects};

#[derive(Debug, PartialEq)]
pub struct Plan {
    /// How many pods to create.
    pub create: usize,
    pub delete: Vec<Arc<Pod>>,
    pub status: ReplicaSetStatus,
    pub again: Option<Duration>,
}

/// `pods` are the set's own, ended and terminating ones included.
pub fn plan(set: &ReplicaSet, pods: &[Arc<Pod>], now: Timestamp) -> Plan {
    let spec = set.spec.as_ref();
    let wanted = usize::try_from(spec.and_then(|spec| spec.replicas).unwrap_or(1)).unwrap_or(0);
    let min_ready = spec.and_then(|spec| spec.min_ready_seconds).unwrap_or(0);
    let active: Vec<_> = pods.iter().filter(|pod| pods::is_active(pod)).cloned().collect();
    let (mut create, mut delete) = (0, Vec::new());
    if set.metadata.deletion_timestamp.is_none() {
        create = wanted.saturating_sub(active.len());
        let surplus = active.len().saturating_sub(wanted);
        if surplus > 0 {
            delete = active.clone();
            delete.sort_by_key(|pod| deletion_rank(pod));
            delete.truncate(surplus);
        }
    }
    let (status, again) = status(set, &active, min_ready, now);
    Plan { create, delete, status, again }
}

/// The least useful pod first: not bound, then not running, then not ready, then the youngest
/// (kube-controller-manager's `ActivePodsWithRanks`).
fn deletion_rank(pod: &Pod) -> impl Ord + use<> {
    let phase = match pods::phase(pod) {
        "Pending" => 0,
        "Unknown" => 1,
        _ => 2,
    };
    let ready_since = pods::condition(pod, "Ready")
        .and_then(|ready| ready.last_transition_time.as_ref())
        .map(|at| at.0);
    (
        pods::is_scheduled(pod),
        phase,
        pods::is_ready(pod),
        Reverse(ready_since),
        Reverse(pod.metadata.creation_timestamp.as_ref().map(|at| at.0)),
        pod.metadata.name.clone(),
    )
}

fn status(
    set: &ReplicaSet,
    active: &[Arc<Pod>],
    min_ready: i32,
    now: Timestamp,
) -> (ReplicaSetStatus, Option<Duration>) {
    let template_labels = set
        .spec
        .as_ref()
        .and_then(|spec| spec.template.as_ref()?.metadata.as_ref()?.labels.clone())
        .unwrap_or_default();
    let (mut labelled, mut ready, mut available) = (0, 0, 0);
    let mut again = None;
    for pod in active {
        let labels = pod.metadata.labels.clone().unwrap_or_default();
        labelled +=
            i32::from(template_labels.iter().all(|(name, value)| labels.get(name) == Some(value)));
        ready += i32::from(pods::is_ready(pod));
        match pods::availability(pod, min_ready, now) {
            Availability::Available => available += 1,
            Availability::In(wait) => again = pods::sooner(again, Some(wait)),
            Availability::NotReady => {}
        }
    }
    let some = |count: i32| Some(count).filter(|count| *count > 0);
    let status = ReplicaSetStatus {
        replicas: i32::try_from(active.len()).unwrap_or(i32::MAX),
        fully_labeled_replicas: some(labelled),
        ready_replicas: some(ready),
        available_replicas: some(available),
        observed_generation: set.metadata.generation,
        conditions: set.status.as_ref().and_then(|status| status.conditions.clone()),
        terminating_replicas: None,
    };
    (status, again)
}

/// Sets or clears the condition that says why pods could not be created or deleted.
pub fn set_failure(status: &mut ReplicaSetStatus, failure: Option<(&str, String)>, now: Timestamp) {
    let mut conditions = status.conditions.take().unwrap_or_default();
    match failure {
        None => conditions.retain(|condition| condition.type_ != "ReplicaFailure"),
        Some((reason, message)) => {
            let held = conditions.iter_mut().find(|condition| condition.type_ == "ReplicaFailure");
            if let Some(held) = held {
                held.reason = Some(reason.to_owned());
                held.message = Some(message);
            } else {
                conditions.push(ReplicaSetCondition {
                    type_: "ReplicaFailure".to_owned(),
                    status: "True".to_owned(),
                    reason: Some(reason.to_owned()),
                    message: Some(message),
                    last_transition_time: Some(Time(now)),
                });
            }
        }
    }
    status.conditions = Some(conditions).filter(|conditions| !conditions.is_empty());
}

/// A new pod of the set; `suffix` makes its name unique.
pub fn make_pod(set: &ReplicaSet, suffix: &str) -> Pod {
    let template = set.spec.as_ref().and_then(|spec| spec.template.clone()).unwrap_or_default();
    let from = template.metadata.unwrap_or_default();
    let base = set.metadata.name.as_deref().unwrap_or_default();
    let metadata = ObjectMeta {
        name: Some(bounded_name(base, &format!("-{suffix}"))),
        generate_name: Some(format!("{base}-")),
        namespace: set.metadata.namespace.clone(),
        labels: from.labels,
        annotations: from.annotations,
        finalizers: from.finalizers,
        owner_references: Some(vec![owned_by(set)]),
        ..ObjectMeta::default()
    };
    Pod { metadata, spec: template.spec, status: None }
}

/// Whether the set's own template makes pods it would not own: it would never stop making them.
pub fn is_endless(set: &ReplicaSet) -> bool {
    let Some(spec) = &set.spec else { return true };
    let labels =
        spec.template.as_ref().and_then(|template| template.metadata.as_ref()?.labels.as_ref());
    !selects(&spec.selector, labels)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controllers::pods::build::{at, pod, set_phase, set_ready};
    use proptest::prelude::*;

    fn set(replicas: i32) -> ReplicaSet {
        let mut set = ReplicaSet::default();
        set.spec.get_or_insert_default().replicas = Some(replicas);
        set.metadata.name = Some("echo-abc".into());
        set
    }

    fn ready(name: &str, since: i64) -> Arc<Pod> {
        let mut it = pod("a", name);
        it.spec.as_mut().unwrap().node_name = Some("node".into());
        set_ready(&mut it, at(since));
        Arc::new(it)
    }

    fn names(pods: &[Arc<Pod>]) -> Vec<&str> {
        pods.iter().map(|pod| pod.metadata.name.as_deref().unwrap()).collect()
    }

    #[test]
    fn the_least_useful_pods_go_first() {
        let mut bound = pod("a", "bound");
        bound.spec.as_mut().unwrap().node_name = Some("node".into());
        let pods =
            [ready("old", 0), ready("young", 50), Arc::new(bound), Arc::new(pod("a", "pending"))];
        assert_eq!(names(&plan(&set(3), &pods, at(100)).delete), ["pending"]);
        assert_eq!(names(&plan(&set(1), &pods, at(100)).delete), ["pending", "bound", "young"]);
    }

    #[test]
    fn ended_and_terminating_pods_do_not_count() {
        let mut failed = pod("a", "failed");
        set_phase(&mut failed, "Failed");
        let mut leaving = pod("a", "leaving");
        leaving.metadata.deletion_timestamp = Some(Time(at(0)));
        let plan = plan(&set(2), &[Arc::new(failed), Arc::new(leaving), ready("fine", 0)], at(1));
        assert_eq!((plan.create, plan.delete.len(), plan.status.replicas), (1, 0, 1));
    }

    #[test]
    fn a_pod_is_available_after_min_ready_seconds() {
        let mut set = set(1);
        set.spec.as_mut().unwrap().min_ready_seconds = Some(30);
        let early = plan(&set, &[ready("x", 0)], at(10));
        assert_eq!((early.status.ready_replicas, early.status.available_replicas), (Some(1), None));
        assert_eq!(early.again, Some(Duration::from_secs(20)));
        let late = plan(&set, &[ready("x", 0)], at(30));
        assert_eq!((late.status.available_replicas, late.again), (Some(1), None));
    }

    #[test]
    fn a_failure_shows_until_it_is_over() {
        let mut status = ReplicaSetStatus::default();
        set_failure(&mut status, Some(("FailedCreate", "no".into())), at(0));
        set_failure(&mut status, Some(("FailedCreate", "still no".into())), at(9));
        let conditions = status.conditions.clone().unwrap();
        assert_eq!(conditions.len(), 1);
        assert_eq!(conditions[0].message.as_deref(), Some("still no"));
        assert_eq!(conditions[0].last_transition_time, Some(Time(at(0))));
        set_failure(&mut status, None, at(10));
        assert_eq!(status.conditions, None);
    }

    proptest! {
        /// One step makes the number of active pods right, and it never creates and deletes at once.
        #[test]
        fn one_step_makes_the_number_right(wanted in 0..8_i32, kinds in proptest::collection::vec(0..4_u8, 0..10)) {
            let pods: Vec<_> = kinds.iter().enumerate().map(|(index, kind)| {
                let mut it = pod("a", &format!("p{index}"));
                match kind {
                    0 => set_ready(&mut it, at(0)),
                    1 => set_phase(&mut it, "Failed"),
                    2 => it.metadata.deletion_timestamp = Some(Time(at(0))),
                    _ => {}
                }
                Arc::new(it)
            }).collect();
            let active = pods.iter().filter(|pod| pods::is_active(pod)).count();
            let plan = plan(&set(wanted), &pods, at(1));
            prop_assert!(plan.create == 0 || plan.delete.is_empty());
            prop_assert_eq!(active + plan.create - plan.delete.len(), usize::try_from(wanted).unwrap());
        }
    }
}
