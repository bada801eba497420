//! A pod's status from what its containers do, as a kubelet writes it: phase, conditions, container statuses.

use super::model::{Kind, PodModel, Record, State, whole_seconds};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{HostIP, Pod, PodCondition, PodIP, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use std::net::IpAddr;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RestartPolicy {
    Always,
    OnFailure,
    Never,
}

impl RestartPolicy {
    pub fn of(pod: &Pod) -> Self {
        match pod.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref()) {
            Some("Never") => RestartPolicy::Never,
            Some("OnFailure") => RestartPolicy::OnFailure,
            _ => RestartPolicy::Always,
        }
    }

    /// Whether a container of `kind` that ended with `code` runs again.
    pub fn restarts(self, kind: Kind, code: i32) -> bool {
        match kind {
            Kind::Sidecar => true,
            Kind::Init => code != 0 && self != RestartPolicy::Never,
            Kind::Main => match self {
                RestartPolicy::Always => true,
                RestartPolicy::OnFailure => code != 0,
                RestartPolicy::Never => false,
            },
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    Pending,
    Running,
    Succeeded,
    Failed,
}

impl Phase {
    pub fn as_str(self) -> &'static str {
        match self {
            Phase::Pending => "Pending",
            Phase::Running => "Running",
            Phase::Succeeded => "Succeeded",
            Phase::Failed => "Failed",
        }
    }

    pub fn is_over(self) -> bool {
        matches!(self, Phase::Succeeded | Phase::Failed)
    }
}

/// The phase that the API has for the pod, if it is a final one.
pub fn final_phase(pod: &Pod) -> Option<Phase> {
    match pod.status.as_ref().and_then(|status| status.phase.as_deref()) {
        Some("Succeeded") => Some(Phase::Succeeded),
        Some("Failed") => Some(Phase::Failed),
        _ => None,
    }
}

pub fn phase(model: &PodModel, policy: RestartPolicy) -> Phase {
    if model.failure.is_some() {
        return Phase::Failed;
    }
    let failed_init = |record: &&Record| {
        record.kind == Kind::Init && record.ended().is_some_and(|end| end.code != 0)
    };
    if policy == RestartPolicy::Never && model.init.iter().any(|record| failed_init(&record)) {
        return Phase::Failed;
    }
    let ended = model.main.iter().filter(|record| record.ended().is_some()).count();
    let succeeded = model.main.iter().all(|record| record.ended().is_some_and(|end| end.code == 0));
    if model.over {
        return if succeeded { Phase::Succeeded } else { Phase::Failed };
    }
    let never_ran =
        |record: &Record| matches!(record.state, State::Waiting { .. }) && record.last.is_none();
    if model.main.iter().any(never_ran) {
        return Phase::Pending;
    }
    if ended < model.main.len() || policy == RestartPolicy::Always {
        return Phase::Running;
    }
    match (succeeded, policy) {
        (true, _) => Phase::Succeeded,
        (false, RestartPolicy::Never) => Phase::Failed,
        (false, _) => Phase::Running,
    }
}

fn is_initialized(record: &Record) -> bool {
    match record.kind {
        Kind::Init => matches!(&record.state, State::Terminated(end) if end.code == 0),
        Kind::Sidecar => record.started || record.last.is_some(),
        Kind::Main => true,
    }
}

fn names<'a>(records: impl Iterator<Item = &'a Record>) -> String {
    let names: Vec<&str> = records.map(|record| record.name.as_str()).collect();
    format!("[{}]", names.join(" "))
}

/// A condition without its times.
struct Verdict {
    holds: bool,
    reason: Option<&'static str>,
    message: Option<String>,
}

impl Verdict {
    fn yes() -> Self {
        Self { holds: true, reason: None, message: None }
    }

    fn no(reason: &'static str, message: impl Into<Option<String>>) -> Self {
        Self { holds: false, reason: Some(reason), message: message.into() }
    }
}

/// The pod's status now. What the node does not own (other conditions, `qosClass`, ...) stays as `pod` has it.
pub fn compute(pod: &Pod, model: &PodModel, host_ip: IpAddr, now: Timestamp) -> PodStatus {
    let policy = RestartPolicy::of(pod);
    let phase = final_phase(pod).unwrap_or_else(|| phase(model, policy));
    let mut status = pod.status.clone().unwrap_or_default();
    status.phase = Some(phase.as_str().to_owned());
    status.start_time = Some(Time(model.start_time));
    status.host_ip = Some(host_ip.to_string());
    status.host_ips = Some(vec![HostIP { ip: host_ip.to_string() }]);
    status.pod_ip = model.ip.map(|ip| ip.to_string());
    status.pod_ips = model.ip.map(|ip| vec![PodIP { ip: ip.to_string() }]);
    if let Some(failure) = &model.failure {
        status.reason = Some(failure.reason.clone());
        status.message = Some(failure.message.clone());
    }
    let statuses = |records: &[Record]| records.iter().map(Record::status).collect::<Vec<_>>();
    status.init_container_statuses = (!model.init.is_empty()).then(|| statuses(&model.init));
    status.container_statuses = Some(statuses(&model.main));

    let ready_to_start = if model.ip.is_some() && !phase.is_over() {
        Verdict::yes()
    } else {
        Verdict { holds: false, reason: None, message: None }
    };
    let mut conditions = status.conditions.take().unwrap_or_default();
    let containers = containers_ready(model, phase);
    let ready = pod_ready(pod, &conditions, &containers);
    set(&mut conditions, "PodReadyToStartContainers", ready_to_start, now);
    set(&mut conditions, "Initialized", initialized(model, phase), now);
    set(&mut conditions, "Ready", ready, now);
    set(&mut conditions, "ContainersReady", containers, now);
    status.conditions = Some(conditions);
    status
}

fn initialized(model: &PodModel, phase: Phase) -> Verdict {
    if phase == Phase::Succeeded {
        return Verdict { holds: true, reason: Some("PodCompleted"), message: None };
    }
    if model.init.iter().all(is_initialized) {
        return Verdict::yes();
    }
    let incomplete = names(model.init.iter().filter(|record| !is_initialized(record)));
    Verdict::no(
        "ContainersNotInitialized",
        format!("containers with incomplete status: {incomplete}"),
    )
}

fn containers_ready(model: &PodModel, phase: Phase) -> Verdict {
    match phase {
        Phase::Succeeded => return Verdict::no("PodCompleted", None),
        Phase::Failed => return Verdict::no("PodFailed", None),
        Phase::Pending | Phase::Running => {}
    }
    let mut unready = (model.init.iter().filter(|record| record.kind == Kind::Sidecar))
        .chain(&model.main)
        .filter(|record| !record.status().ready)
        .peekable();
    if unready.peek().is_none() {
        return Verdict::yes();
    }
    Verdict::no("ContainersNotReady", format!("containers with unready status: {}", names(unready)))
}

fn pod_ready(pod: &Pod, conditions: &[PodCondition], containers: &Verdict) -> Verdict {
    if !containers.holds {
        return Verdict::no(containers.reason.unwrap_or_default(), containers.message.clone());
    }
    let gates = pod.spec.iter().flat_map(|spec| spec.readiness_gates.iter().flatten());
    let closed: Vec<String> = gates
        .filter_map(|gate| {
            let gate = &gate.condition_type;
            match conditions.iter().find(|condition| &condition.type_ == gate) {
                None => Some(format!(
                    "corresponding condition of pod readiness gate {gate:?} does not exist."
                )),
                Some(condition) if condition.status == "True" => None,
                Some(_) => Some(format!(
                    "the status of pod readiness gate {gate:?} is not \"True\", but False"
                )),
            }
        })
        .collect();
    if closed.is_empty() {
        Verdict::yes()
    } else {
        Verdict::no("ReadinessGatesNotReady", closed.join(", "))
    }
}

/// Sets a condition; its transition time moves only when its status changes.
fn set(conditions: &mut Vec<PodCondition>, type_: &str, verdict: Verdict, now: Timestamp) {
    let status = if verdict.holds { "True" } else { "False" };
    let fresh = PodCondition {
        type_: type_.to_owned(),
        status: status.to_owned(),
        reason: verdict.reason.map(str::to_owned),
        message: verdict.message,
        last_transition_time: Some(Time(whole_seconds(now))),
        ..PodCondition::default()
    };
    match conditions.iter_mut().find(|condition| condition.type_ == type_) {
        None => conditions.push(fresh),
        Some(old) => {
            let since =
                if old.status == fresh.status { old.last_transition_time.take() } else { None };
            let observed_generation = old.observed_generation;
            let last_transition_time = since.or(fresh.last_transition_time);
            *old = PodCondition { last_transition_time, observed_generation, ..fresh };
        }
    }
}

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
