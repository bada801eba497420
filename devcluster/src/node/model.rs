//! What the node knows about a pod's containers, from which the pod's status is computed.

use super::shim::protocol::Exit;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateRunning, ContainerStateTerminated,
    ContainerStateWaiting, ContainerStatus, Pod,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use std::net::IpAddr;

/// Kubernetes writes times in whole seconds.
pub fn whole_seconds(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// Runs to its end before the next one starts.
    Init,
    /// An init container with `restartPolicy: Always`: runs beside the main containers.
    Sidecar,
    Main,
}

impl Kind {
    /// Of an init container.
    pub fn of_init(container: &Container) -> Self {
        if container.restart_policy.as_deref() == Some("Always") {
            Kind::Sidecar
        } else {
            Kind::Init
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Terminated {
    /// 128 and the signal's number for a process that a signal ended.
    pub code: i32,
    pub signal: Option<i32>,
    pub reason: String,
    pub message: Option<String>,
    pub started: Option<Timestamp>,
    pub finished: Timestamp,
    pub id: Option<String>,
}

impl Terminated {
    pub fn of_exit(
        exit: Exit,
        started: Timestamp,
        finished: Timestamp,
        id: Option<String>,
    ) -> Self {
        let (code, signal) = match exit {
            Exit::Code(code) => (code, None),
            Exit::Signal(signal) => (exit.code(), Some(signal)),
        };
        let reason = if code == 0 { "Completed" } else { "Error" }.to_owned();
        let (started, finished) = (Some(whole_seconds(started)), whole_seconds(finished));
        Self { code, signal, reason, message: None, started, finished, id }
    }

    /// Nobody saw how the process ended.
    pub fn unseen(
        message: &str,
        started: Option<Timestamp>,
        finished: Timestamp,
        id: Option<String>,
    ) -> Self {
        Self {
            code: 137,
            signal: None,
            reason: "Unknown".to_owned(),
            message: Some(message.to_owned()),
            started: started.map(whole_seconds),
            finished: whole_seconds(finished),
            id,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    Waiting { reason: String, message: Option<String> },
    Running { since: Timestamp },
    Terminated(Terminated),
}

impl State {
    pub fn waiting(reason: &str, message: Option<String>) -> Self {
        State::Waiting { reason: reason.to_owned(), message }
    }
}

/// One container of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    pub name: String,
    pub image: String,
    pub kind: Kind,
    pub state: State,
    pub last: Option<Terminated>,
    pub restarts: i32,
    /// Its startup probe, if any, has succeeded.
    pub started: bool,
    /// Its readiness probe, if any, says so.
    pub ready: bool,
    pub id: Option<String>,
}

impl Record {
    fn new(container: &Container, kind: Kind, reason: &str) -> Self {
        Self {
            name: container.name.clone(),
            image: container.image.clone().unwrap_or_default(),
            kind,
            state: State::waiting(reason, None),
            last: None,
            restarts: 0,
            started: false,
            ready: false,
            id: None,
        }
    }

    /// What an earlier life of the node wrote about the container: one that ran then does not run now.
    fn remember(&mut self, old: &ContainerStatus, now: Timestamp) {
        self.restarts = old.restart_count;
        self.id = old.container_id.clone();
        self.last = old
            .last_state
            .as_ref()
            .and_then(|state| state.terminated.as_ref())
            .map(|t| terminated(t, now));
        let Some(state) = &old.state else { return };
        if let Some(running) = &state.running {
            let since = running.started_at.as_ref().map(|time| time.0);
            let message = "the node stopped while the container ran";
            self.state = State::Terminated(Terminated::unseen(
                message,
                since,
                now,
                old.container_id.clone(),
            ));
        } else if let Some(ended) = &state.terminated {
            self.state = State::Terminated(terminated(ended, now));
        } else if let Some(waiting) = &state.waiting
            && self.last.is_some()
        {
            self.state = State::waiting(
                waiting.reason.as_deref().unwrap_or_default(),
                waiting.message.clone(),
            );
        }
    }

    /// How the container's present run, or the one before if it waits for the next, ended.
    pub fn ended(&self) -> Option<&Terminated> {
        match &self.state {
            State::Terminated(ended) => Some(ended),
            State::Waiting { .. } => self.last.as_ref(),
            State::Running { .. } => None,
        }
    }

    pub fn status(&self) -> ContainerStatus {
        let running = matches!(self.state, State::Running { .. });
        let succeeded = matches!(&self.state, State::Terminated(ended) if ended.code == 0);
        let ready = match self.kind {
            Kind::Init => succeeded,
            Kind::Sidecar | Kind::Main => running && self.ready && self.started,
        };
        ContainerStatus {
            name: self.name.clone(),
            image: self.image.clone(),
            image_id: String::new(),
            container_id: self.id.clone(),
            ready,
            started: Some(running && self.started),
            restart_count: self.restarts,
            state: Some(container_state(&self.state)),
            last_state: Some(ContainerState {
                terminated: self.last.as_ref().map(state_terminated),
                ..ContainerState::default()
            }),
            ..ContainerStatus::default()
        }
    }
}

fn terminated(old: &ContainerStateTerminated, now: Timestamp) -> Terminated {
    Terminated {
        code: old.exit_code,
        signal: old.signal,
        reason: old.reason.clone().unwrap_or_default(),
        message: old.message.clone(),
        started: old.started_at.as_ref().map(|time| time.0),
        finished: old.finished_at.as_ref().map_or(whole_seconds(now), |time| time.0),
        id: old.container_id.clone(),
    }
}

fn state_terminated(ended: &Terminated) -> ContainerStateTerminated {
    ContainerStateTerminated {
        container_id: ended.id.clone(),
        exit_code: ended.code,
        signal: ended.signal,
        reason: Some(ended.reason.clone()),
        message: ended.message.clone(),
        started_at: ended.started.map(Time),
        finished_at: Some(Time(ended.finished)),
    }
}

fn container_state(state: &State) -> ContainerState {
    let mut out = ContainerState::default();
    match state {
        State::Waiting { reason, message } => {
            out.waiting = Some(ContainerStateWaiting {
                reason: Some(reason.clone()),
                message: message.clone(),
            });
        }
        State::Running { since } => {
            out.running =
                Some(ContainerStateRunning { started_at: Some(Time(whole_seconds(*since))) });
        }
        State::Terminated(ended) => out.terminated = Some(state_terminated(ended)),
    }
    out
}

/// Why a pod's end is not its containers' doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub reason: String,
    pub message: String,
}

/// A pod on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodModel {
    pub ip: Option<IpAddr>,
    pub start_time: Timestamp,
    pub init: Vec<Record>,
    pub main: Vec<Record>,
    pub failure: Option<Failure>,
    /// No container runs and none will: the pod was deleted and its processes have ended.
    pub over: bool,
}

/// Which container of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Slot {
    pub init: bool,
    pub index: usize,
}

impl PodModel {
    /// A pod as the API has it: new, or begun by an earlier life of the node.
    pub fn restore(pod: &Pod, now: Timestamp) -> Self {
        let spec = pod.spec.clone().unwrap_or_default();
        let status = pod.status.clone().unwrap_or_default();
        let has_init = spec.init_containers.as_ref().is_some_and(|init| !init.is_empty());
        let reason = if has_init { "PodInitializing" } else { "ContainerCreating" };
        let remembered = |container: &Container, kind: Kind, old: Option<&Vec<ContainerStatus>>| {
            let mut record = Record::new(container, kind, reason);
            if let Some(old) = old.into_iter().flatten().find(|old| old.name == container.name) {
                record.remember(old, now);
            }
            record
        };
        Self {
            ip: status.pod_ip.as_deref().and_then(|ip| ip.parse().ok()),
            start_time: status.start_time.map_or(whole_seconds(now), |time| time.0),
            init: (spec.init_containers.iter().flatten())
                .map(|c| remembered(c, Kind::of_init(c), status.init_container_statuses.as_ref()))
                .collect(),
            main: (spec.containers.iter())
                .map(|c| remembered(c, Kind::Main, status.container_statuses.as_ref()))
                .collect(),
            failure: None,
            over: false,
        }
    }

    pub fn record(&self, slot: Slot) -> Option<&Record> {
        if slot.init { self.init.get(slot.index) } else { self.main.get(slot.index) }
    }

    pub fn record_mut(&mut self, slot: Slot) -> Option<&mut Record> {
        if slot.init { self.init.get_mut(slot.index) } else { self.main.get_mut(slot.index) }
    }

    pub fn find(&self, name: &str) -> Option<&Record> {
        self.init.iter().chain(&self.main).find(|record| record.name == name)
    }
}
