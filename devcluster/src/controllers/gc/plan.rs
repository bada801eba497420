//! What the garbage collector does about one object: a pure function of the graph and of what
//! became of the object's owners (the cascade of kube-controller-manager's garbage collector).

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::PropagationPolicy;

use super::graph::{FOREGROUND, Graph, ORPHAN, Object};

/// What an owner reference points to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    Present,
    /// Being deleted, and waiting for its dependents to go first.
    Waiting,
    Absent,
}

#[derive(Debug, PartialEq)]
pub enum Step {
    Nothing,
    Delete(PropagationPolicy),
    /// Some owners are gone, others are not: keep only these.
    KeepOwners(Vec<OwnerReference>),
    RemoveFinalizer(&'static str),
    /// It waits for these dependents: look at each.
    LookAt(Vec<String>),
    /// Take it out of the owners of these, then remove the finalizer.
    Orphan(Vec<String>),
}

/// The step for an object that is being deleted, which needs no knowledge of its owners.
/// `None`: it is not being deleted.
pub fn deletion_step(object: &Object, graph: &Graph) -> Option<Step> {
    if !object.deleting {
        return None;
    }
    if object.has_finalizer(ORPHAN) {
        let dependents: Vec<_> = graph.dependents(&object.uid).map(|it| it.uid.clone()).collect();
        return Some(if dependents.is_empty() {
            Step::RemoveFinalizer(ORPHAN)
        } else {
            Step::Orphan(dependents)
        });
    }
    if object.has_finalizer(FOREGROUND) {
        let dependents: Vec<_> =
            graph.dependents(&object.uid).filter(|it| it.uid != object.uid).collect();
        if !dependents.iter().any(|it| it.blocks(&object.uid)) {
            return Some(Step::RemoveFinalizer(FOREGROUND));
        }
        let waiting =
            dependents.iter().filter(|it| !it.deleting).map(|it| it.uid.clone()).collect();
        return Some(Step::LookAt(waiting));
    }
    Some(Step::Nothing)
}

/// The step for an object that is not being deleted; `owners` says what each of its owner references points to.
pub fn ownership_step(object: &Object, graph: &Graph, owners: &[(OwnerReference, Owner)]) -> Step {
    if owners.is_empty() {
        return Step::Nothing;
    }
    let present: Vec<_> = owners
        .iter()
        .filter(|(_, state)| *state == Owner::Present)
        .map(|(owner, _)| owner.clone())
        .collect();
    if present.len() == owners.len() {
        return Step::Nothing;
    }
    if !present.is_empty() {
        return Step::KeepOwners(present);
    }
    let waited_for = owners.iter().any(|(_, state)| *state == Owner::Waiting);
    if object.has_finalizer(ORPHAN) {
        return Step::Delete(PropagationPolicy::Orphan);
    }
    // Who is waited for makes those wait that it waits for itself.
    if object.has_finalizer(FOREGROUND)
        || (waited_for && graph.dependents(&object.uid).next().is_some())
    {
        return Step::Delete(PropagationPolicy::Foreground);
    }
    Step::Delete(PropagationPolicy::Background)
}
