//! What a node's silence means for it and its pods: pure functions.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Node, Pod, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::controllers::pods;
use crate::controllers::scheduler::tolerates;

/// How long pods stay on a dead node when they do not say (the API server's DefaultTolerationSeconds).
const DEFAULT_TOLERATION: i64 = 300;
pub const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
pub const NOT_READY: &str = "node.kubernetes.io/not-ready";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    Ready,
    /// It says itself that it is not.
    NotReady,
    /// It is silent.
    Unreachable,
}

/// `silent`: neither its lease nor its status change any more.
pub fn health(node: &Node, silent: bool) -> Health {
    if silent {
        return Health::Unreachable;
    }
    match ready_status(node) {
        Some("True") => Health::Ready,
        // Written by us when it was silent: it lives again and will say so itself.
        _ => Health::NotReady,
    }
}

fn ready_status(node: &Node) -> Option<&str> {
    let conditions = node.status.as_ref()?.conditions.as_deref()?;
    conditions.iter().find(|it| it.type_ == "Ready").map(|it| it.status.as_str())
}

/// The conditions to write on a silent node: all that a kubelet reports, as unknown.
pub fn unknown_conditions(node: &Node, now: Timestamp) -> Option<Vec<serde_json::Value>> {
    let held =
        node.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    let reported = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];
    let mut changed = Vec::new();
    for type_ in reported {
        let held = held.iter().find(|it| it.type_ == type_);
        if held.is_some_and(|held| held.status == "Unknown") || (held.is_none() && type_ != "Ready")
        {
            continue;
        }
        changed.push(serde_json::json!({
            "type": type_, "status": "Unknown", "reason": "NodeStatusUnknown",
            "message": "Kubelet stopped posting node status.", "lastTransitionTime": Time(now),
            "lastHeartbeatTime": held.and_then(|held| held.last_heartbeat_time.clone()),
        }));
    }
    (!changed.is_empty()).then_some(changed)
}

/// The taints a node should have, if they differ from those it has.
pub fn taints(node: &Node, health: Health, now: Timestamp) -> Option<Vec<Taint>> {
    let held = node.spec.as_ref().and_then(|spec| spec.taints.clone()).unwrap_or_default();
    let key = match health {
        Health::Ready => None,
        Health::NotReady => Some(NOT_READY),
        Health::Unreachable => Some(UNREACHABLE),
    };
    let mut wanted: Vec<Taint> = held
        .iter()
        .filter(|taint| {
            ![NOT_READY, UNREACHABLE].contains(&taint.key.as_str())
                || Some(taint.key.as_str()) == key
        })
        .cloned()
        .collect();
    for effect in ["NoSchedule", "NoExecute"] {
        if let Some(key) = key
            && !wanted.iter().any(|taint| taint.key == key && taint.effect == effect)
        {
            let time_added = (effect == "NoExecute").then_some(Time(now));
            wanted.push(Taint {
                key: key.to_owned(),
                effect: effect.to_owned(),
                time_added,
                value: None,
            });
        }
    }
    (wanted != held).then_some(wanted)
}

/// What to do with a pod whose node is not well.
#[derive(Debug, PartialEq, Eq)]
pub enum Fate {
    Stays,
    /// It must go after this long, if the node does not come back.
    EvictIn(Duration),
    Evict,
    /// Its node is dead and cannot end it: forget it. The node's processes died with it.
    Forget,
    ForgetIn(Duration),
}

pub fn fate(pod: &Pod, node: &Node, health: Health, now: Timestamp) -> Fate {
    let left = |until: Timestamp| {
        Duration::try_from(until.duration_since(now)).ok().filter(|left| !left.is_zero())
    };
    if let Some(deadline) = &pod.metadata.deletion_timestamp {
        if health != Health::Unreachable {
            return Fate::Stays;
        }
        return left(deadline.0).map_or(Fate::Forget, Fate::ForgetIn);
    }
    if pods::is_finished(pod) {
        return Fate::Stays;
    }
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
    let tolerations =
        pod.spec.as_ref().and_then(|spec| spec.tolerations.as_deref()).unwrap_or_default();
    let mut fate = Fate::Stays;
    for taint in taints.iter().filter(|taint| taint.effect == "NoExecute") {
        let since = taint.time_added.as_ref().map_or(now, |at| at.0);
        let mut matching =
            tolerations.iter().filter(|toleration| tolerates(toleration, taint)).peekable();
        let ours = [NOT_READY, UNREACHABLE].contains(&taint.key.as_str());
        let seconds = if matching.peek().is_none() {
            if ours { Some(DEFAULT_TOLERATION) } else { Some(0) }
        } else {
            matching.filter_map(|toleration| toleration.toleration_seconds).min()
        };
        let Some(seconds) = seconds else { continue };
        let until = since
            .saturating_add(SignedDuration::from_secs(seconds.max(0)))
            .unwrap_or(Timestamp::MAX);
        match (left(until), &fate) {
            (None, _) => return Fate::Evict,
            (Some(left), Fate::EvictIn(sooner)) if *sooner <= left => {}
            (Some(left), _) => fate = Fate::EvictIn(left),
        }
    }
    fate
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controllers::pods::build::{at, pod};
    use k8s_openapi::api::core::v1::{NodeCondition, Toleration};

    fn node(ready: &str) -> Node {
        let mut node = Node::default();
        node.status.get_or_insert_default().conditions = Some(vec![NodeCondition {
            type_: "Ready".into(),
            status: ready.into(),
            ..NodeCondition::default()
        }]);
        node
    }

    #[test]
    fn a_silent_node_is_marked_and_cleared_again() {
        let mut it = node("True");
        assert_eq!(health(&it, false), Health::Ready);
        assert_eq!(taints(&it, Health::Ready, at(0)), None);
        assert_eq!(health(&it, true), Health::Unreachable);
        let conditions = unknown_conditions(&it, at(0)).unwrap();
        assert_eq!(conditions.len(), 1, "only what the node reports");
        it.spec.get_or_insert_default().taints = taints(&it, Health::Unreachable, at(0));
        assert_eq!(it.spec.as_ref().unwrap().taints.as_ref().unwrap().len(), 2);
        assert_eq!(taints(&it, Health::Unreachable, at(9)), None, "once is enough");
        it.status = node("Unknown").status;
        assert_eq!(unknown_conditions(&it, at(1)), None);
        assert_eq!(health(&it, false), Health::NotReady);
        assert_eq!(taints(&it, Health::Ready, at(9)), Some(vec![]));
    }

    #[test]
    fn pods_of_a_dead_node_go_after_their_toleration() {
        let mut it = node("Unknown");
        it.spec.get_or_insert_default().taints = taints(&it, Health::Unreachable, at(0));
        let fate_at = |pod: &Pod, second| fate(pod, &it, Health::Unreachable, at(second));
        let mut guest = pod("a", "x");
        assert_eq!(fate_at(&guest, 100), Fate::EvictIn(Duration::from_secs(200)));
        assert_eq!(fate_at(&guest, 300), Fate::Evict);
        let toleration = Toleration {
            key: Some(UNREACHABLE.into()),
            operator: Some("Exists".into()),
            toleration_seconds: Some(10),
            ..Toleration::default()
        };
        guest.spec.as_mut().unwrap().tolerations = Some(vec![toleration]);
        assert_eq!(fate_at(&guest, 5), Fate::EvictIn(Duration::from_secs(5)));
        guest.spec.as_mut().unwrap().tolerations.as_mut().unwrap()[0].toleration_seconds = None;
        assert_eq!(fate_at(&guest, 5000), Fate::Stays);
        assert_eq!(fate(&guest, &node("True"), Health::Ready, at(0)), Fate::Stays);
        guest.metadata.deletion_timestamp = Some(Time(at(30)));
        assert_eq!(fate_at(&guest, 10), Fate::ForgetIn(Duration::from_secs(20)));
        assert_eq!(fate_at(&guest, 30), Fate::Forget);
        assert_eq!(
            fate(&guest, &it, Health::NotReady, at(99)),
            Fate::Stays,
            "it lives: it ends its pods itself"
        );
    }
}
