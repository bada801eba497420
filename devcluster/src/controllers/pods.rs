//! What a pod's status says, in the terms controllers decide by.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Pod, PodCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::core::{Selector, SelectorExt};
use std::collections::BTreeMap;
use std::time::Duration;

pub fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("Pending")
}

/// All its containers ended for good.
pub fn is_finished(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

pub fn is_terminating(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

/// Runs or will run: neither ended nor being deleted.
pub fn is_active(pod: &Pod) -> bool {
    !is_finished(pod) && !is_terminating(pod)
}

pub fn condition<'a>(pod: &'a Pod, type_: &str) -> Option<&'a PodCondition> {
    pod.status.as_ref()?.conditions.as_ref()?.iter().find(|condition| condition.type_ == type_)
}

pub fn is_ready(pod: &Pod) -> bool {
    condition(pod, "Ready").is_some_and(|condition| condition.status == "True")
}

pub fn is_scheduled(pod: &Pod) -> bool {
    node_name(pod).is_some()
}

pub fn node_name(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref().filter(|name| !name.is_empty())
}

/// Whether a pod has been ready for `minReadySeconds`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Availability {
    NotReady,
    /// It will be available after this long, if it stays ready.
    In(Duration),
    Available,
}

pub fn availability(pod: &Pod, min_ready_seconds: i32, now: Timestamp) -> Availability {
    let Some(ready) = condition(pod, "Ready").filter(|condition| condition.status == "True") else {
        return Availability::NotReady;
    };
    let since = ready.last_transition_time.as_ref().map(|time| time.0);
    let wait = SignedDuration::from_secs(i64::from(min_ready_seconds.max(0)));
    match since {
        _ if wait.is_zero() => Availability::Available,
        None => Availability::Available,
        Some(since) => match Duration::try_from(wait - now.duration_since(since)) {
            Ok(left) if !left.is_zero() => Availability::In(left),
            _ => Availability::Available,
        },
    }
}

/// Whether `labels` match. An empty selector matches everything, an invalid one nothing.
pub fn selects(selector: &LabelSelector, labels: Option<&BTreeMap<String, String>>) -> bool {
    let none = BTreeMap::new();
    Selector::try_from(selector.clone())
        .is_ok_and(|selector| selector.matches(labels.unwrap_or(&none)))
}

/// The earlier of two waits.
pub fn sooner(a: Option<Duration>, b: Option<Duration>) -> Option<Duration> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

#[cfg(test)]
pub(crate) mod build {
    //! Pods for tests.
    use super::*;
    use k8s_openapi::api::core::v1::{PodSpec, PodStatus};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    pub fn pod(namespace: &str, name: &str) -> Pod {
        let mut pod = Pod {
            spec: Some(PodSpec::default()),
            status: Some(PodStatus::default()),
            ..Pod::default()
        };
        pod.metadata.namespace = Some(namespace.to_owned());
        pod.metadata.name = Some(name.to_owned());
        pod.metadata.uid = Some(format!("uid-{name}"));
        pod
    }

    pub fn set_phase(pod: &mut Pod, phase: &str) {
        pod.status.get_or_insert_default().phase = Some(phase.to_owned());
    }

    pub fn set_condition(pod: &mut Pod, type_: &str, status: bool, since: Timestamp) {
        let conditions = pod.status.get_or_insert_default().conditions.get_or_insert_default();
        conditions.retain(|condition| condition.type_ != type_);
        conditions.push(PodCondition {
            type_: type_.to_owned(),
            status: if status { "True" } else { "False" }.to_owned(),
            last_transition_time: Some(Time(since)),
            ..PodCondition::default()
        });
    }

    pub fn set_ready(pod: &mut Pod, since: Timestamp) {
        set_phase(pod, "Running");
        set_condition(pod, "Ready", true, since);
    }

    pub fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + second).unwrap()
    }
}

#[cfg(test)]
mod tests {
    use super::build::{at, pod, set_ready};
    use super::*;

    #[test]
    fn availability_waits_for_min_ready_seconds() {
        let mut it = pod("a", "x");
        assert_eq!(availability(&it, 0, at(0)), Availability::NotReady);
        set_ready(&mut it, at(0));
        assert_eq!(availability(&it, 0, at(0)), Availability::Available);
        assert_eq!(availability(&it, 10, at(4)), Availability::In(Duration::from_secs(6)));
        assert_eq!(availability(&it, 10, at(10)), Availability::Available);
    }
}
