//! Which pending pod goes where: a pure function of the pods, nodes and volumes.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod, PodSpec};
use k8s_openapi::api::storage::v1::StorageClass;

use super::fit;
use crate::controllers::names::annotation;
use crate::controllers::pods;
use crate::quantity::{Amounts, add, amounts};

/// On a claim: the node its volume must be made on.
pub const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";

pub struct Observed<'a> {
    pub pods: &'a [Arc<Pod>],
    pub nodes: &'a [Arc<Node>],
    pub claims: &'a [Arc<PersistentVolumeClaim>],
    pub volumes: &'a [Arc<PersistentVolume>],
    pub classes: &'a [Arc<StorageClass>],
    /// Pods (by uid) that were bound a moment ago, where the copy does not show it yet.
    pub assumed: &'a HashMap<String, String>,
}

#[derive(Debug, PartialEq)]
pub enum Action {
    Bind {
        pod: Arc<Pod>,
        node: String,
    },
    /// The pod will go to this node once the volumes of its claims are there.
    SelectNode {
        claim: Arc<PersistentVolumeClaim>,
        node: String,
    },
    /// No node now; the message says why.
    Unschedulable {
        pod: Arc<Pod>,
        message: String,
    },
}

/// Whether this scheduler must find a node for the pod.
pub fn is_pending(pod: &Pod) -> bool {
    let Some(spec) = &pod.spec else { return false };
    let ours = spec
        .scheduler_name
        .as_deref()
        .is_none_or(|name| name.is_empty() || name == "default-scheduler");
    ours && !pods::is_scheduled(pod)
        && pods::is_active(pod)
        && spec.scheduling_gates.as_ref().is_none_or(Vec::is_empty)
}

/// Plans for all pending pods, the most important and oldest first.
pub fn plan(observed: &Observed<'_>) -> Vec<Action> {
    let mut free: BTreeMap<&str, Amounts> = BTreeMap::new();
    for node in observed.nodes {
        let allocatable = node.status.as_ref().and_then(|status| status.allocatable.as_ref());
        let mut has = amounts(allocatable);
        has.entry("pods".to_owned()).or_insert(110_000);
        free.insert(name(node), has);
    }
    let placed = |pod: &Pod| {
        let assumed = pod.metadata.uid.as_ref().and_then(|uid| observed.assumed.get(uid));
        pods::node_name(pod).map(str::to_owned).or_else(|| assumed.cloned())
    };
    let mut pending = Vec::new();
    for pod in observed.pods {
        match placed(pod) {
            Some(node) if !pods::is_finished(pod) => take(&mut free, &node, &fit::requests(pod)),
            None if is_pending(pod) => pending.push(pod),
            _ => {}
        }
    }
    pending.sort_by_key(|pod| {
        let priority = pod.spec.as_ref().and_then(|spec| spec.priority).unwrap_or(0);
        let created = pod.metadata.creation_timestamp.as_ref().map(|at| at.0);
        (Reverse(priority), created, pod.metadata.namespace.clone(), pod.metadata.name.clone())
    });
    let mut actions = Vec::new();
    for pod in pending {
        place(observed, pod, &mut free, &mut actions);
    }
    actions
}

fn take(free: &mut BTreeMap<&str, Amounts>, node: &str, asked: &Amounts) {
    if let Some(has) = free.get_mut(node) {
        let negative = asked.iter().map(|(name, amount)| (name.clone(), -amount)).collect();
        add(has, &negative);
    }
}

fn place(
    observed: &Observed<'_>,
    pod: &Arc<Pod>,
    free: &mut BTreeMap<&str, Amounts>,
    actions: &mut Vec<Action>,
) {
    let Some(spec) = &pod.spec else { return };
    let needs = match volumes(observed, pod) {
        Ok(needs) => needs,
        Err(message) => {
            let message = format!("0/{} nodes are available: {message}.", observed.nodes.len());
            actions.push(Action::Unschedulable { pod: pod.clone(), message });
            return;
        }
    };
    let asked = fit::requests(pod);
    let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
    let mut best: Option<(Reverse<bool>, i128, &str)> = None;
    for node in observed.nodes {
        let Some(has) = free.get(name(node)) else { continue };
        match obstacle(spec, &asked, &needs, node, has) {
            Some(reason) => *reasons.entry(reason).or_default() += 1,
            None => {
                // Where volumes are being made already, then where most is left.
                let chosen = needs.waiting.iter().any(|claim| selected(claim) == Some(name(node)));
                let rank = (Reverse(chosen), load(node, has, &asked), name(node));
                if best.is_none_or(|best| rank < best) {
                    best = Some(rank);
                }
            }
        }
    }
    let Some((_, _, node)) = best else {
        let message = if observed.nodes.is_empty() {
            "no nodes available to schedule pods".to_owned()
        } else {
            let reasons: Vec<_> =
                reasons.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
            format!("0/{} nodes are available: {}.", observed.nodes.len(), reasons.join(", "))
        };
        actions.push(Action::Unschedulable { pod: pod.clone(), message });
        return;
    };
    take(free, node, &asked);
    if needs.waiting.is_empty() {
        actions.push(Action::Bind { pod: pod.clone(), node: node.to_owned() });
        return;
    }
    for claim in needs.waiting {
        if selected(&claim) != Some(node) {
            actions.push(Action::SelectNode { claim, node: node.to_owned() });
        }
    }
}

fn obstacle(
    spec: &PodSpec,
    asked: &Amounts,
    needs: &Needs,
    node: &Node,
    free: &Amounts,
) -> Option<String> {
    let reachable = needs.bound.iter().all(|volume| {
        let affinity =
            volume.spec.as_ref().and_then(|spec| spec.node_affinity.as_ref()?.required.as_ref());
        affinity.is_none_or(|affinity| fit::matches_any(&affinity.node_selector_terms, node))
    });
    let volume = (!reachable).then(|| "node(s) had volume node affinity conflict".to_owned());
    fit::obstacle(spec, asked, node, free).or(volume)
}

/// How full the fuller of processor and memory would be, in millionths.
fn load(node: &Node, free: &Amounts, asked: &Amounts) -> i128 {
    let all = amounts(node.status.as_ref().and_then(|status| status.allocatable.as_ref()));
    let of = |resource: &str| {
        let total = all.get(resource).copied().filter(|total| *total > 0)?;
        let left =
            free.get(resource).copied().unwrap_or(0) - asked.get(resource).copied().unwrap_or(0);
        Some((total - left).saturating_mul(1_000_000) / total)
    };
    of("cpu").max(of("memory")).unwrap_or(0)
}

fn name(node: &Node) -> &str {
    node.metadata.name.as_deref().unwrap_or_default()
}

fn selected(claim: &PersistentVolumeClaim) -> Option<&str> {
    annotation(&claim.metadata, SELECTED_NODE).filter(|node| !node.is_empty())
}

/// The volumes a pod needs.
struct Needs {
    bound: Vec<Arc<PersistentVolume>>,
    /// Claims whose volume is made once a node is selected.
    waiting: Vec<Arc<PersistentVolumeClaim>>,
}

fn volumes(observed: &Observed<'_>, pod: &Pod) -> Result<Needs, String> {
    let mut needs = Needs { bound: Vec::new(), waiting: Vec::new() };
    for volume in pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()) {
        let wanted = match (&volume.persistent_volume_claim, &volume.ephemeral) {
            (Some(source), _) => source.claim_name.clone(),
            (None, Some(_)) => {
                format!("{}-{}", pod.metadata.name.as_deref().unwrap_or_default(), volume.name)
            }
            (None, None) => continue,
        };
        let claim = observed.claims.iter().find(|claim| {
            claim.metadata.namespace == pod.metadata.namespace
                && claim.metadata.name.as_ref() == Some(&wanted)
        });
        let Some(claim) = claim else {
            return Err(format!("persistentvolumeclaim \"{wanted}\" not found"));
        };
        if claim.metadata.deletion_timestamp.is_some() {
            return Err(format!("persistentvolumeclaim \"{wanted}\" is being deleted"));
        }
        let phase = claim.status.as_ref().and_then(|status| status.phase.as_deref());
        let bound = claim
            .spec
            .as_ref()
            .and_then(|spec| spec.volume_name.as_deref())
            .filter(|name| !name.is_empty());
        match (bound, phase) {
            (_, Some("Lost")) => {
                return Err(format!(
                    "persistentvolumeclaim \"{wanted}\" bound to non-existent persistentvolume"
                ));
            }
            (Some(bound), Some("Bound")) => {
                let volume = observed
                    .volumes
                    .iter()
                    .find(|volume| volume.metadata.name.as_deref() == Some(bound));
                let Some(volume) = volume else {
                    return Err(format!("persistentvolume \"{bound}\" not found"));
                };
                needs.bound.push(volume.clone());
            }
            _ if waits_for_consumer(observed, claim) => needs.waiting.push(claim.clone()),
            _ => return Err("pod has unbound immediate PersistentVolumeClaims".to_owned()),
        }
    }
    Ok(needs)
}

fn waits_for_consumer(observed: &Observed<'_>, claim: &PersistentVolumeClaim) -> bool {
    let class = claim.spec.as_ref().and_then(|spec| spec.storage_class_name.as_deref());
    let class =
        observed.classes.iter().find(|it| class.is_some() && it.metadata.name.as_deref() == class);
    class.and_then(|class| class.volume_binding_mode.as_deref()) == Some("WaitForFirstConsumer")
}
