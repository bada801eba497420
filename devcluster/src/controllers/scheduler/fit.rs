//! Whether a pod can run on a node.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Container, Node, NodeSelectorRequirement, NodeSelectorTerm, Pod, PodSpec, Taint, Toleration,
};

use crate::quantity::{Amounts, add, amounts, at_least};

/// What a pod asks for: the larger of its containers' sum and any init container (a sidecar
/// stays, so it counts to the sum), its overhead, and itself as one pod.
pub fn requests(pod: &Pod) -> Amounts {
    let mut total = Amounts::new();
    if let Some(spec) = &pod.spec {
        for container in &spec.containers {
            add(&mut total, &of_container(container));
        }
        let mut sidecars = Amounts::new();
        let mut peak = Amounts::new();
        for container in spec.init_containers.iter().flatten() {
            let mut asked = of_container(container);
            if container.restart_policy.as_deref() == Some("Always") {
                add(&mut sidecars, &asked);
            } else {
                add(&mut asked, &sidecars);
                at_least(&mut peak, &asked);
            }
        }
        add(&mut total, &sidecars);
        at_least(&mut total, &peak);
        add(&mut total, &amounts(spec.overhead.as_ref()));
    }
    total.insert("pods".to_owned(), 1000);
    total
}

/// A limit without a request is a request.
fn of_container(container: &Container) -> Amounts {
    let Some(resources) = &container.resources else { return Amounts::new() };
    let mut asked = amounts(resources.limits.as_ref());
    asked.extend(amounts(resources.requests.as_ref()));
    asked
}

/// Why `spec` cannot run on `node`, in the words of kube-scheduler; `None` if it can.
/// `free` is what the node has left.
pub fn obstacle(spec: &PodSpec, asked: &Amounts, node: &Node, free: &Amounts) -> Option<String> {
    if node.spec.as_ref().and_then(|spec| spec.unschedulable) == Some(true) {
        return Some("node(s) were unschedulable".to_owned());
    }
    if !is_ready(node) {
        return Some("node(s) were not ready".to_owned());
    }
    if let Some(taint) = untolerated(spec, node) {
        let value = taint.value.as_deref().unwrap_or_default();
        return Some(format!("node(s) had untolerated taint {{{}: {value}}}", taint.key));
    }
    if !is_selected(spec, node) {
        return Some("node(s) didn't match Pod's node affinity/selector".to_owned());
    }
    let short = asked
        .iter()
        .find(|(name, amount)| **amount > 0 && free.get(*name).copied().unwrap_or(0) < **amount);
    short.map(|(name, _)| {
        if name == "pods" { "Too many pods".to_owned() } else { format!("Insufficient {name}") }
    })
}

pub fn is_ready(node: &Node) -> bool {
    let conditions =
        node.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

fn untolerated<'a>(spec: &PodSpec, node: &'a Node) -> Option<&'a Taint> {
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
    let tolerations = spec.tolerations.as_deref().unwrap_or_default();
    taints.iter().find(|taint| {
        // The node's readiness and `unschedulable` are judged by themselves above.
        matches!(taint.effect.as_str(), "NoSchedule" | "NoExecute")
            && !tolerations.iter().any(|toleration| tolerates(toleration, taint))
    })
}

pub fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let any = |value: &Option<String>| value.as_deref().is_none_or(str::is_empty);
    (any(&toleration.effect) || toleration.effect.as_deref() == Some(&taint.effect))
        && (any(&toleration.key) || toleration.key.as_deref() == Some(&taint.key))
        && match toleration.operator.as_deref().unwrap_or("Equal") {
            "Exists" => true,
            _ => {
                !any(&toleration.key)
                    && toleration.value.as_deref().unwrap_or_default()
                        == taint.value.as_deref().unwrap_or_default()
            }
        }
}

fn is_selected(spec: &PodSpec, node: &Node) -> bool {
    let labels = node.metadata.labels.as_ref();
    let mut wanted = spec.node_selector.iter().flatten();
    if !wanted.all(|(name, value)| labels.and_then(|labels| labels.get(name)) == Some(value)) {
        return false;
    }
    let affinity = spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
    let required =
        affinity.and_then(|it| it.required_during_scheduling_ignored_during_execution.as_ref());
    required.is_none_or(|required| matches_any(&required.node_selector_terms, node))
}

/// The terms of a node selector are alternatives; an empty one matches nothing.
pub fn matches_any(terms: &[NodeSelectorTerm], node: &Node) -> bool {
    let no_labels = BTreeMap::new();
    let labels = node.metadata.labels.as_ref().unwrap_or(&no_labels);
    let name = node.metadata.name.as_deref();
    terms.iter().any(|term| {
        let expressions = term.match_expressions.as_deref().unwrap_or_default();
        let fields = term.match_fields.as_deref().unwrap_or_default();
        !(expressions.is_empty() && fields.is_empty())
            && expressions.iter().all(|it| satisfies(it, labels.get(&it.key).map(String::as_str)))
            && fields.iter().all(|it| satisfies(it, name.filter(|_| it.key == "metadata.name")))
    })
}

fn satisfies(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let listed = || value.is_some_and(|value| values.iter().any(|it| it == value));
    let number = |text: Option<&str>| text.and_then(|text| text.parse::<i64>().ok());
    let compare = || Some((number(value)?, number(values.first().map(String::as_str))?));
    match requirement.operator.as_str() {
        "In" => listed(),
        "NotIn" => !listed(),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => compare().is_some_and(|(value, than)| value > than),
        "Lt" => compare().is_some_and(|(value, than)| value < than),
        _ => false,
    }
}
