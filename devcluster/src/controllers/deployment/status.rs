//! A Deployment's status and conditions.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::plan::{bounds, size};

#[derive(Debug, PartialEq)]
pub struct Outcome {
    pub status: DeploymentStatus,
    /// All pods are of the present template and available.
    pub complete: bool,
    /// When the rollout will have missed its deadline.
    pub again: Option<Duration>,
}

/// The status as the sets are now. `newest` is the set of the present template.
pub fn outcome(
    deployment: &Deployment,
    newest: Option<&Arc<ReplicaSet>>,
    sets: &[Arc<ReplicaSet>],
    now: Timestamp,
) -> Outcome {
    let before = deployment.status.clone().unwrap_or_default();
    let spec = deployment.spec.as_ref();
    let wanted = spec.and_then(|spec| spec.replicas).unwrap_or(1).max(0);
    let count = |of: fn(&k8s_openapi::api::apps::v1::ReplicaSetStatus) -> i32| -> i32 {
        sets.iter().filter_map(|set| set.status.as_ref()).map(of).sum()
    };
    let replicas = count(|status| status.replicas);
    let ready = count(|status| status.ready_replicas.unwrap_or(0));
    let available = count(|status| status.available_replicas.unwrap_or(0));
    let updated = newest.and_then(|set| set.status.as_ref()).map_or(0, |status| status.replicas);
    let total: i32 = sets.iter().map(|set| size(set)).sum();
    let some = |count: i32| Some(count).filter(|count| *count > 0);
    let mut status = DeploymentStatus {
        replicas: some(replicas),
        ready_replicas: some(ready),
        available_replicas: some(available),
        updated_replicas: some(updated),
        unavailable_replicas: some(total - available),
        observed_generation: deployment.metadata.generation,
        collision_count: before.collision_count,
        conditions: before.conditions.clone(),
        terminating_replicas: None,
    };
    let complete =
        newest.is_some() && updated == wanted && replicas == wanted && available == wanted;
    let (_, unavailable) = bounds(deployment);
    let enough = available >= wanted.saturating_sub(unavailable);
    let minimum = if enough {
        ("True", "MinimumReplicasAvailable", "Deployment has minimum availability.".to_owned())
    } else {
        (
            "False",
            "MinimumReplicasUnavailable",
            "Deployment does not have minimum availability.".to_owned(),
        )
    };
    set(&mut status, "Available", minimum, now, false);
    let again = progress(deployment, &before, &mut status, newest, complete, now);
    let failure = sets
        .iter()
        .filter_map(|set| {
            set.status.as_ref()?.conditions.as_ref()?.iter().find(|it| it.type_ == "ReplicaFailure")
        })
        .next();
    match failure {
        Some(failure) => {
            let reason = failure.reason.clone().unwrap_or_default();
            let message = failure.message.clone().unwrap_or_default();
            set(&mut status, "ReplicaFailure", ("True", &reason, message), now, false);
        }
        None => {
            if let Some(conditions) = &mut status.conditions {
                conditions.retain(|condition| condition.type_ != "ReplicaFailure");
            }
        }
    }
    Outcome { status, complete, again }
}

fn progress(
    deployment: &Deployment,
    before: &DeploymentStatus,
    status: &mut DeploymentStatus,
    newest: Option<&Arc<ReplicaSet>>,
    complete: bool,
    now: Timestamp,
) -> Option<Duration> {
    let spec = deployment.spec.as_ref();
    // The API server's default; MAX means "never".
    let deadline = spec.and_then(|spec| spec.progress_deadline_seconds).unwrap_or(600);
    let name = deployment.metadata.name.as_deref().unwrap_or_default();
    let held = condition(before, "Progressing").cloned();
    if spec.and_then(|spec| spec.paused) == Some(true) {
        set(
            status,
            "Progressing",
            ("Unknown", "DeploymentPaused", "Deployment is paused".to_owned()),
            now,
            false,
        );
        return None;
    }
    let Some(newest) = newest else {
        // The next step creates it.
        return None;
    };
    let set_name = newest.metadata.name.as_deref().unwrap_or_default();
    if complete {
        let message = format!("ReplicaSet \"{set_name}\" has successfully progressed.");
        set(status, "Progressing", ("True", "NewReplicaSetAvailable", message), now, false);
        return None;
    }
    let old = |status: &DeploymentStatus| {
        status.replicas.unwrap_or(0) - status.updated_replicas.unwrap_or(0)
    };
    let moved = status.updated_replicas > before.updated_replicas
        || old(status) < old(before)
        || status.ready_replicas > before.ready_replicas
        || status.available_replicas > before.available_replicas;
    let was_complete =
        held.as_ref().is_some_and(|held| held.reason.as_deref() == Some("NewReplicaSetAvailable"));
    match &held {
        None => {
            let message = format!("Created new replica set \"{set_name}\"");
            set(status, "Progressing", ("True", "NewReplicaSetCreated", message), now, true);
        }
        // A complete rollout that lost a pod is not a new rollout; only a new template is.
        Some(held)
            if was_complete
                && !moved
                && held
                    .message
                    .as_deref()
                    .is_some_and(|message| message.contains(&format!("\"{set_name}\""))) =>
        {
            return None;
        }
        Some(_) if moved || was_complete => {
            let message = format!("ReplicaSet \"{set_name}\" is progressing.");
            set(status, "Progressing", ("True", "ReplicaSetUpdated", message), now, true);
        }
        Some(held) => {
            if deadline == i32::MAX || held.reason.as_deref() == Some("ProgressDeadlineExceeded") {
                return None;
            }
            let since = held.last_update_time.as_ref().map_or(now, |at| at.0);
            let left = SignedDuration::from_secs(i64::from(deadline)) - now.duration_since(since);
            return match Duration::try_from(left) {
                Ok(left) if !left.is_zero() => Some(left),
                _ => {
                    let message = format!("ReplicaSet \"{set_name}\" has timed out progressing.");
                    set(
                        status,
                        "Progressing",
                        ("False", "ProgressDeadlineExceeded", message),
                        now,
                        false,
                    );
                    tracing::debug!(deployment = name, "the rollout missed its deadline");
                    None
                }
            };
        }
    }
    (deadline != i32::MAX).then(|| Duration::from_secs(u64::try_from(deadline).unwrap_or(0)))
}

fn condition<'a>(status: &'a DeploymentStatus, type_: &str) -> Option<&'a DeploymentCondition> {
    status.conditions.as_ref()?.iter().find(|condition| condition.type_ == type_)
}

/// Sets a condition; its times move only when its status or reason changes (or `touch` says it progressed).
fn set(
    status: &mut DeploymentStatus,
    type_: &str,
    to: (&str, &str, String),
    now: Timestamp,
    touch: bool,
) {
    let (value, reason, message) = to;
    let conditions = status.conditions.get_or_insert_default();
    let position = conditions.iter().position(|condition| condition.type_ == type_);
    let held = position.map(|position| conditions.remove(position));
    let turned = held.as_ref().is_none_or(|held| held.status != value);
    let changed =
        turned || touch || held.as_ref().is_none_or(|held| held.reason.as_deref() != Some(reason));
    let condition = DeploymentCondition {
        type_: type_.to_owned(),
        status: value.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message),
        last_transition_time: match &held {
            Some(held) if !turned => held.last_transition_time.clone(),
            _ => Some(Time(now)),
        },
        last_update_time: match &held {
            Some(held) if !changed => held.last_update_time.clone(),
            _ => Some(Time(now)),
        },
    };
    conditions.insert(position.unwrap_or(conditions.len()), condition);
}
