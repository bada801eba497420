//! Kubernetes events, written off the path of whoever reports them, and counted up when they repeat.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::json;
use std::collections::{HashMap, VecDeque};
use std::time::Duration;
use tokio::sync::mpsc;

/// Events that may wait to be written; more are dropped, for they are only news.
const QUEUE: usize = 256;
/// Events that are remembered so that a repetition is counted instead of written anew.
const REMEMBERED: usize = 512;
const DEADLINE: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Severity {
    Normal,
    Warning,
}

#[derive(Debug, Clone)]
struct News {
    about: ObjectReference,
    severity: Severity,
    reason: &'static str,
    message: String,
    at: Timestamp,
}

/// Where events are reported.
#[derive(Debug, Clone)]
pub struct Recorder {
    queue: mpsc::Sender<News>,
}

impl Recorder {
    /// The writing ends when the last recorder is dropped.
    pub fn start(client: kube::Client, node: &str) -> Self {
        let (queue, mut news) = mpsc::channel::<News>(QUEUE);
        let mut writer =
            Writer { client, node: node.to_owned(), known: HashMap::new(), order: VecDeque::new() };
        tokio::spawn(async move {
            while let Some(news) = news.recv().await {
                match tokio::time::timeout(DEADLINE, writer.write(&news)).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => {
                        tracing::debug!(reason = news.reason, %error, "an event was not written")
                    }
                    Err(_) => {
                        tracing::debug!(reason = news.reason, "an event was not written in time")
                    }
                }
            }
        });
        Self { queue }
    }

    pub fn report(
        &self,
        about: ObjectReference,
        severity: Severity,
        reason: &'static str,
        message: String,
    ) {
        tracing::debug!(pod = about.name, reason, message, "event");
        let _ =
            self.queue.try_send(News { about, severity, reason, message, at: Timestamp::now() });
    }
}

type Key = (Option<String>, Option<String>, Severity, &'static str, String);

struct Writer {
    client: kube::Client,
    node: String,
    known: HashMap<Key, Known>,
    order: VecDeque<Key>,
}

struct Known {
    name: String,
    count: i32,
}

impl Writer {
    async fn write(&mut self, news: &News) -> kube::Result<()> {
        let about = &news.about;
        let key = (
            about.uid.clone(),
            about.field_path.clone(),
            news.severity,
            news.reason,
            news.message.clone(),
        );
        let namespace = about.namespace.as_deref().filter(|ns| !ns.is_empty()).unwrap_or("default");
        let api: Api<Event> = Api::namespaced(self.client.clone(), namespace);
        if let Some(known) = self.known.get_mut(&key) {
            let again = json!({"count": known.count + 1, "lastTimestamp": Time(news.at)});
            match api.patch(&known.name, &PatchParams::default(), &Patch::Merge(again)).await {
                Ok(_) => {
                    known.count += 1;
                    return Ok(());
                }
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                Err(error) => return Err(error),
            }
        }
        let subject = about.name.as_deref().unwrap_or("node");
        let name = format!("{subject}.{:x}", news.at.as_nanosecond());
        let source =
            EventSource { component: Some("kubelet".to_owned()), host: Some(self.node.clone()) };
        let severity = match news.severity {
            Severity::Normal => "Normal",
            Severity::Warning => "Warning",
        };
        let event = Event {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                namespace: Some(namespace.to_owned()),
                ..ObjectMeta::default()
            },
            involved_object: about.clone(),
            type_: Some(severity.to_owned()),
            reason: Some(news.reason.to_owned()),
            message: Some(news.message.clone()),
            count: Some(1),
            first_timestamp: Some(Time(news.at)),
            last_timestamp: Some(Time(news.at)),
            source: Some(source),
            reporting_component: Some("kubelet".to_owned()),
            reporting_instance: Some(self.node.clone()),
            ..Event::default()
        };
        api.create(&PostParams::default(), &event).await?;
        if self.known.insert(key.clone(), Known { name, count: 1 }).is_none() {
            self.order.push_back(key);
        }
        if self.order.len() > REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
        Ok(())
    }
}
