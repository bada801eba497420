//! What a StatefulSet must do next: a pure function of the set and what it has.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet, StatefulSetStatus};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;

use super::{pod, revision};
use crate::controllers::names::label;
use crate::controllers::pods::{self, Availability};

/// What a StatefulSet has: pods and revisions are its own, claims are all of its namespace.
pub struct Observed<'a> {
    pub set: &'a StatefulSet,
    pub history: &'a [Arc<ControllerRevision>],
    pub pods: &'a [Arc<Pod>],
    pub claims: &'a [Arc<PersistentVolumeClaim>],
    pub now: Timestamp,
}

#[derive(Debug, PartialEq)]
pub enum Action {
    CreateRevision(Box<ControllerRevision>),
    RenumberRevision(String, i64),
    DeleteRevision(Arc<ControllerRevision>),
    CreateClaim(Box<PersistentVolumeClaim>),
    SetClaimOwners(Arc<PersistentVolumeClaim>, Vec<OwnerReference>),
    CreatePod(Box<Pod>),
    DeletePod(Arc<Pod>, Reason),
}

/// Why a pod is deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// It ended; a new one takes its place.
    Finished,
    ScaledDown,
    Outdated,
}

pub struct Plan {
    /// In this order; the rest of a failed one waits for the next look.
    pub actions: Vec<Action>,
    pub status: StatefulSetStatus,
    /// When time alone changes the plan.
    pub again: Option<Duration>,
}

/// Plans one step. Every action changes what is observed, which asks for the next step.
pub fn plan(observed: &Observed<'_>) -> Plan {
    let Observed { set, history, .. } = observed;
    let newest = revision::current(set, history);
    let update_name = newest.revision().metadata.name.clone().unwrap_or_default();
    let update_template = set.spec.as_ref().map(|spec| spec.template.clone()).unwrap_or_default();
    let current_name = set
        .status
        .as_ref()
        .and_then(|status| status.current_revision.clone())
        .filter(|name| history.iter().any(|revision| revision.metadata.name.as_ref() == Some(name)))
        .unwrap_or_else(|| update_name.clone());
    let current_template = history
        .iter()
        .find(|revision| revision.metadata.name.as_ref() == Some(&current_name))
        .and_then(|revision| revision::template(revision))
        .unwrap_or_else(|| update_template.clone());
    let shape = Shape {
        replicas: set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1).max(0),
        start: set.spec.as_ref().and_then(|spec| spec.ordinals.as_ref()?.start).unwrap_or(0).max(0),
        min_ready: set.spec.as_ref().and_then(|spec| spec.min_ready_seconds).unwrap_or(0),
        parallel: set.spec.as_ref().and_then(|spec| spec.pod_management_policy.as_deref())
            == Some("Parallel"),
        partition: partition(set),
        current: (current_name, current_template),
        update: (update_name, update_template),
    };

    let mut by_ordinal: BTreeMap<i32, Arc<Pod>> = BTreeMap::new();
    for it in observed.pods {
        if let Some(ordinal) = pod::ordinal(set, it) {
            by_ordinal.insert(ordinal, it.clone());
        }
    }
    let (status, again) = status(observed, &shape, &by_ordinal);
    let mut actions = Vec::new();
    if set.metadata.deletion_timestamp.is_none() {
        match newest {
            revision::Current::Found(_) => {}
            revision::Current::Renumber(found, number) => {
                actions.push(Action::RenumberRevision(
                    found.metadata.name.clone().unwrap_or_default(),
                    number,
                ));
            }
            revision::Current::Create(made) => actions.push(Action::CreateRevision(made)),
        }
        claim_owners(observed, &shape, &by_ordinal, &mut actions);
        pods_step(observed, &shape, &by_ordinal, &mut actions);
        let in_use = |name: &str| {
            name == shape.current.0
                || name == shape.update.0
                || by_ordinal.values().any(|it| label(&it.metadata, pod::REVISION) == Some(name))
        };
        actions.extend(
            revision::outdated(set, history, in_use).into_iter().map(Action::DeleteRevision),
        );
    }
    Plan { actions, status, again }
}

struct Shape {
    replicas: i32,
    start: i32,
    min_ready: i32,
    parallel: bool,
    /// Pods from this ordinal on are updated; `None`: only when somebody deletes them.
    partition: Option<i32>,
    current: (String, PodTemplateSpec),
    update: (String, PodTemplateSpec),
}

impl Shape {
    fn wants(&self, ordinal: i32) -> bool {
        ordinal >= self.start && ordinal < self.start.saturating_add(self.replicas)
    }
}

fn partition(set: &StatefulSet) -> Option<i32> {
    let strategy = set.spec.as_ref().and_then(|spec| spec.update_strategy.as_ref());
    if strategy.and_then(|strategy| strategy.type_.as_deref()) == Some("OnDelete") {
        return None;
    }
    Some(
        strategy
            .and_then(|strategy| strategy.rolling_update.as_ref()?.partition)
            .unwrap_or(0)
            .max(0),
    )
}

fn pods_step(
    observed: &Observed<'_>,
    shape: &Shape,
    have: &BTreeMap<i32, Arc<Pod>>,
    actions: &mut Vec<Action>,
) {
    let set = observed.set;
    let available = |it: &Pod| {
        pods::availability(it, shape.min_ready, observed.now) == Availability::Available
            && pods::is_active(it)
    };
    for ordinal in shape.start..shape.start.saturating_add(shape.replicas) {
        match have.get(&ordinal) {
            None => {
                create_claims(observed, ordinal, actions);
                // What is below the partition stays at the earlier revision.
                let (name, template) = match shape.partition {
                    Some(partition) if ordinal < partition => &shape.current,
                    _ => &shape.update,
                };
                actions.push(Action::CreatePod(Box::new(pod::make(set, template, name, ordinal))));
                if !shape.parallel {
                    return;
                }
            }
            Some(it) if pods::is_terminating(it) => {
                if !shape.parallel {
                    return;
                }
            }
            Some(it) if pods::is_finished(it) => {
                actions.push(Action::DeletePod(it.clone(), Reason::Finished));
                if !shape.parallel {
                    return;
                }
            }
            Some(it) => {
                if !pods::is_scheduled(it) {
                    create_claims(observed, ordinal, actions);
                }
                if !shape.parallel && !available(it) {
                    return;
                }
            }
        }
    }

    let condemned: Vec<_> =
        have.iter().rev().filter(|(ordinal, _)| !shape.wants(**ordinal)).collect();
    for (_, it) in &condemned {
        if !pods::is_terminating(it) {
            actions.push(Action::DeletePod((*it).clone(), Reason::ScaledDown));
        }
        if !shape.parallel {
            return;
        }
    }

    let Some(partition) = shape.partition else { return };
    let kept =
        have.iter().rev().filter(|(ordinal, _)| shape.wants(**ordinal) && **ordinal >= partition);
    for (_, it) in kept {
        if pods::is_terminating(it) {
            return;
        }
        if label(&it.metadata, pod::REVISION) != Some(&shape.update.0) {
            actions.push(Action::DeletePod(it.clone(), Reason::Outdated));
            return;
        }
        if !available(it) {
            return;
        }
    }
}

fn create_claims(observed: &Observed<'_>, ordinal: i32, actions: &mut Vec<Action>) {
    for mut claim in pod::claims(observed.set, ordinal) {
        if !observed.claims.iter().any(|have| have.metadata.name == claim.metadata.name) {
            let owners = pod::claim_owners(observed.set, None);
            if !owners.is_empty() {
                claim.metadata.owner_references.get_or_insert_default().extend(owners);
            }
            actions.push(Action::CreateClaim(Box::new(claim)));
        }
    }
}

/// Corrects the owners of the claims of every pod there is.
fn claim_owners(
    observed: &Observed<'_>,
    shape: &Shape,
    have: &BTreeMap<i32, Arc<Pod>>,
    actions: &mut Vec<Action>,
) {
    for (ordinal, it) in have {
        let wanted =
            pod::claim_owners(observed.set, (!shape.wants(*ordinal)).then_some(it.as_ref()));
        for claim in pod::claims(observed.set, *ordinal) {
            let held =
                observed.claims.iter().find(|have| have.metadata.name == claim.metadata.name);
            let Some(held) = held.filter(|held| held.metadata.deletion_timestamp.is_none()) else {
                continue;
            };
            let pod_name = pod::name(observed.set, *ordinal);
            let before = held.metadata.owner_references.clone().unwrap_or_default();
            let (present, mut owners): (Vec<_>, Vec<_>) = before
                .into_iter()
                .partition(|owner| pod::is_retention_owner(observed.set, owner, &pod_name));
            let same = present.len() == wanted.len()
                && wanted.iter().all(|wanted| present.iter().any(|owner| owner.uid == wanted.uid));
            if !same {
                owners.extend(wanted.iter().cloned());
                actions.push(Action::SetClaimOwners(held.clone(), owners));
            }
        }
    }
}

fn status(
    observed: &Observed<'_>,
    shape: &Shape,
    have: &BTreeMap<i32, Arc<Pod>>,
) -> (StatefulSetStatus, Option<Duration>) {
    let (mut replicas, mut ready, mut available, mut current, mut updated) = (0, 0, 0, 0, 0);
    let mut again = None;
    for it in have.values() {
        replicas += 1;
        if pods::is_ready(it) && pods::phase(it) == "Running" {
            ready += 1;
            match pods::availability(it, shape.min_ready, observed.now) {
                Availability::Available => available += 1,
                Availability::In(wait) => again = pods::sooner(again, Some(wait)),
                Availability::NotReady => {}
            }
        }
        if !pods::is_terminating(it) && !pods::is_finished(it) {
            let revision = label(&it.metadata, pod::REVISION);
            current += i32::from(revision == Some(&shape.current.0));
            updated += i32::from(revision == Some(&shape.update.0));
        }
    }
    let mut current_revision = shape.current.0.clone();
    // The update is complete: what was new is now the present.
    let complete = shape.partition == Some(0)
        && updated == shape.replicas
        && ready == shape.replicas
        && replicas == updated;
    if complete {
        current_revision.clone_from(&shape.update.0);
        current = updated;
    }
    let before = observed.set.status.clone().unwrap_or_default();
    let status = StatefulSetStatus {
        replicas,
        ready_replicas: Some(ready).filter(|count| *count > 0),
        available_replicas: Some(available),
        current_replicas: Some(current).filter(|count| *count > 0),
        updated_replicas: Some(updated).filter(|count| *count > 0),
        current_revision: Some(current_revision),
        update_revision: Some(shape.update.0.clone()),
        observed_generation: observed.set.metadata.generation,
        collision_count: Some(before.collision_count.unwrap_or(0)),
        conditions: before.conditions,
    };
    (status, again)
}
