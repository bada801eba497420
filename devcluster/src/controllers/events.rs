//! Events: what the controllers did and why, for `kubectl describe` and `kubectl get events`.

use std::collections::HashMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client, Resource};
use serde_json::json;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Events that wait to be written; more than this are dropped, for they are hints, not state.
const QUEUED: usize = 512;
/// Series that are remembered, so that a repetition counts up instead of filling the list.
const REMEMBERED: usize = 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Severity {
    Normal,
    Warning,
}

impl Severity {
    fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "Normal",
            Self::Warning => "Warning",
        }
    }
}

/// Something worth telling about the object that a plan is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Note {
    pub severity: Severity,
    pub reason: &'static str,
    pub message: String,
}

impl Note {
    pub fn normal(reason: &'static str, message: impl Into<String>) -> Self {
        Self { severity: Severity::Normal, reason, message: message.into() }
    }

    pub fn warning(reason: &'static str, message: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, reason, message: message.into() }
    }
}

struct Report {
    about: ObjectReference,
    component: &'static str,
    note: Note,
    at: Timestamp,
}

/// Hands events to the task that writes them; never waits.
#[derive(Clone)]
pub struct Recorder {
    reports: mpsc::Sender<Report>,
}

impl Recorder {
    /// The recorder, and the task that must run for it.
    pub fn new(
        client: Client,
        shutdown: CancellationToken,
    ) -> (Self, impl Future<Output = ()> + Send) {
        let (reports, received) = mpsc::channel(QUEUED);
        (Self { reports }, write(client, received, shutdown))
    }

    pub fn record<K: Resource<DynamicType = ()>>(
        &self,
        component: &'static str,
        about: &K,
        note: Note,
    ) {
        let about = reference(about);
        if self.reports.try_send(Report { about, component, note, at: Timestamp::now() }).is_err() {
            tracing::debug!(component, "an event was dropped: too many wait to be written");
        }
    }
}

pub fn reference<K: Resource<DynamicType = ()>>(object: &K) -> ObjectReference {
    let meta = object.meta();
    ObjectReference {
        api_version: Some(K::api_version(&()).into_owned()),
        kind: Some(K::kind(&()).into_owned()),
        name: meta.name.clone(),
        namespace: meta.namespace.clone(),
        uid: meta.uid.clone(),
        resource_version: meta.resource_version.clone(),
        ..ObjectReference::default()
    }
}

type Series = (Option<String>, &'static str, Note);

async fn write(client: Client, mut reports: mpsc::Receiver<Report>, shutdown: CancellationToken) {
    let mut known: HashMap<Series, (Arc<str>, i32)> = HashMap::new();
    loop {
        let report = tokio::select! {
            () = shutdown.cancelled() => return,
            report = reports.recv() => match report {
                Some(report) => report,
                None => return,
            },
        };
        let namespace = report.about.namespace.clone().unwrap_or_else(|| "default".to_owned());
        let api: Api<Event> = Api::namespaced(client.clone(), &namespace);
        let series = (report.about.uid.clone(), report.component, report.note.clone());
        if let Some((name, count)) = known.get_mut(&series) {
            *count = count.saturating_add(1);
            let patch = json!({"count": count, "lastTimestamp": Time(report.at)});
            match api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await {
                Ok(_) => continue,
                // It expired, or was deleted: start a new one.
                Err(error) => tracing::debug!(%error, "an event could not be counted up"),
            }
        }
        let event = first(&report, &namespace);
        let name: Arc<str> = event.metadata.name.clone().unwrap_or_default().into();
        match api.create(&PostParams::default(), &event).await {
            Ok(_) => {
                if known.len() >= REMEMBERED {
                    known.clear();
                }
                known.insert(series, (name, 1));
            }
            Err(error) => tracing::debug!(%error, "an event could not be written"),
        }
    }
}

fn first(report: &Report, namespace: &str) -> Event {
    let at = Some(Time(report.at));
    let subject = report.about.name.as_deref().unwrap_or("unknown");
    let mut event = Event {
        involved_object: report.about.clone(),
        reason: Some(report.note.reason.to_owned()),
        message: Some(report.note.message.clone()),
        type_: Some(report.note.severity.as_str().to_owned()),
        source: Some(EventSource { component: Some(report.component.to_owned()), host: None }),
        reporting_component: Some(report.component.to_owned()),
        reporting_instance: Some(String::new()),
        first_timestamp: at.clone(),
        last_timestamp: at,
        count: Some(1),
        ..Event::default()
    };
    event.metadata.namespace = Some(namespace.to_owned());
    event.metadata.name = Some(format!("{subject}.{:016x}", rand::random::<u64>()));
    event
}
