//! The part of a workload's status that the reconciler writes, and the events that tell of it.

use cluster::resources::{AgentStatus, Phase, WorkloadResource, WorkloadStatus};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{
    Api, ResourceExt,
    api::{Patch, PatchParams},
    runtime::events::{Event, EventType},
};
use serde_json::json;

use crate::{Shared, manifest, phase::Told, refusal::Problem};

/// The parts of the status that are the reconciler's; activity and verdict are the idle loop's.
#[allow(clippy::too_many_arguments)] // Each is another part of the status.
pub fn status<W: WorkloadResource>(
    object: &W,
    before: &WorkloadStatus,
    told: Told,
    problems: &[Problem],
    (replicas, ready_replicas): (i32, i32),
    agent: Option<AgentStatus>,
    shared: &Shared,
    now: Timestamp,
) -> WorkloadStatus {
    let running = told.phase == Phase::Running;
    let generation = object.meta().generation;
    let condition = |type_: &str, holds: bool, reason: &str, message: String| {
        let status = if holds { "True" } else { "False" };
        let old = before.conditions.iter().find(|c| c.type_ == type_ && c.status == status);
        Condition {
            type_: type_.to_owned(),
            status: status.to_owned(),
            reason: reason.to_owned(),
            message,
            last_transition_time: old.map_or(Time(now), |c| c.last_transition_time.clone()),
            observed_generation: generation,
        }
    };
    let worst = problems.iter().find(|problem| problem.reason.blocks()).or(problems.first());
    let why = worst.map_or("AsAsked", |problem| problem.reason.as_str());
    let words: Vec<_> = problems.iter().map(|problem| problem.message.as_str()).collect();
    let ready =
        condition("Ready", running, told.phase.as_str(), told.message.clone().unwrap_or_default());
    let applied = condition("Applied", problems.is_empty(), why, words.join(". "));
    // Others' conditions stay.
    let others =
        before.conditions.iter().filter(|c| !matches!(c.type_.as_str(), "Ready" | "Applied"));
    let conditions = [ready, applied].into_iter().chain(others.cloned()).collect();
    let config = &shared.config;
    let port = config.external_port.filter(|port| *port != 443);
    let port = port.map(|port| format!(":{port}")).unwrap_or_default();
    let url = object
        .workload()
        .map(|w| format!("https://{}.{}{port}/", w.host_label(), config.base_domain));
    WorkloadStatus {
        conditions,
        phase: Some(told.phase),
        message: told.message,
        progress: told.progress,
        url,
        ready_since: running.then(|| before.ready_since.unwrap_or(now)),
        agent,
        replicas,
        ready_replicas,
        selector: Some(manifest::selector_text(object)),
        observed_generation: generation,
        ..before.clone()
    }
}

pub async fn write<W: WorkloadResource>(
    object: &W,
    before: &WorkloadStatus,
    after: &WorkloadStatus,
    shared: &Shared,
) -> kube::Result<()> {
    if before == after {
        return Ok(());
    }
    // A merge patch of our fields alone: null takes away what is gone.
    let patch = json!({"status": {
        "phase": after.phase,
        "message": after.message,
        "progress": after.progress,
        "url": after.url,
        "readySince": after.ready_since,
        "agent": after.agent,
        "canary": after.canary,
        "replicas": after.replicas,
        "readyReplicas": after.ready_replicas,
        "selector": after.selector,
        "observedGeneration": after.observed_generation,
        "conditions": after.conditions,
    }});
    let namespace = object.namespace().unwrap_or_default();
    let api: Api<W> = Api::namespaced(shared.client.clone(), &namespace);
    let name = object.name_any();
    match api.patch_status(&name, &PatchParams::default(), &Patch::Merge(patch)).await {
        Ok(_) => {}
        // Deleted meanwhile.
        Err(kube::Error::Api(status)) if status.code == 404 => return Ok(()),
        Err(error) => return Err(error),
    }
    if before.phase != after.phase
        && let Some(phase) = after.phase
    {
        tracing::info!(kind = %W::KIND, namespace, name, phase = phase.as_str(), message = after.message, "changed");
        let note = after.message.clone().unwrap_or_else(|| format!("It is now {}", phase.as_str()));
        announce(object, shared, phase.as_str(), note, phase == Phase::Failed).await;
    }
    Ok(())
}

/// Bytes; with a longer note the whole event is refused.
const NOTE_MAX: usize = 1024;

/// An event for `kubectl describe`. Failing to write one is no reason to fail what it tells of.
pub async fn announce<W: WorkloadResource>(
    object: &W,
    shared: &Shared,
    reason: &str,
    mut note: String,
    warning: bool,
) {
    note.truncate(note.floor_char_boundary(NOTE_MAX));
    let event = Event {
        type_: if warning { EventType::Warning } else { EventType::Normal },
        reason: reason.to_owned(),
        note: Some(note),
        action: reason.to_owned(),
        secondary: None,
    };
    if let Err(error) = shared.recorder.publish(&event, &object.object_ref(&())).await {
        tracing::debug!(%error, reason, "an event could not be written");
    }
}
