//! Watches: what there is, then what changes, as lines of JSON.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use futures::Stream;
use http::{HeaderValue, Response, header};
use rand::Rng as _;
use serde_json::{Value, json};
use tokio::time::{Instant, Interval, MissedTickBehavior};

use super::respond::{self, Shape};
use super::{App, Call};
use crate::api::registry::Resource;
use crate::api::selector::Selector;
use crate::api::status::ApiError;
use crate::api::store::{Event, EventKind, WatchFrom, WatchStart};
use crate::api::{meta, table};

const BOOKMARK_EVERY: Duration = Duration::from_secs(30);
const INITIAL_EVENTS_END: &str = "k8s.io/initial-events-end";

pub fn watch(app: &Arc<App>, call: &Call) -> Result<Response<Body>, ApiError> {
    let options = &call.options;
    let mut selector = options.selector(call.resource.custom)?;
    if let Some(name) = &call.target.name {
        selector =
            Selector::parse(&options.label_selector, &format!("metadata.name={name}"), false)?;
    }
    if options.send_initial_events && !options.bookmarks {
        return Err(ApiError::bad_request(
            "sendInitialEvents: Forbidden: sendInitialEvents requires allowWatchBookmarks to be set",
        ));
    }
    let after = match options.resource_version.as_deref() {
        None | Some("0") => None,
        Some(text) => Some(text.parse::<u64>().map_err(|_| {
            ApiError::bad_request(format!(
                "resourceVersion: Invalid value: {text:?}: must be a number"
            ))
        })?),
    };
    let from = match after {
        Some(after) if !options.send_initial_events => WatchFrom::After(after),
        _ => WatchFrom::Now,
    };
    let view = View {
        app: app.clone(),
        resource: call.resource.clone(),
        namespace: call.target.namespace.clone(),
        selector,
        shape: call.shape,
        include: options.raw("includeObject").unwrap_or("").to_owned(),
    };
    let timeout = match options.timeout_seconds {
        Some(seconds) if seconds > 0 => Duration::from_secs(seconds.min(24 * 3600)),
        // Spread like API servers do, so that clients do not come back all at once.
        _ => Duration::from_secs(rand::rng().random_range(1800..3600)),
    };
    let body = match app.store.watch(&call.resource.store_key, &call.target.namespace, from) {
        Ok(watch) => {
            let initial = view.initial(watch.start, options.send_initial_events);
            let mut bookmarks = tokio::time::interval(BOOKMARK_EVERY);
            bookmarks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            bookmarks.reset();
            let state = Running {
                view,
                initial: Some(initial),
                live: watch.live,
                bookmarks: options.bookmarks.then_some(bookmarks),
                until: Instant::now() + timeout,
            };
            Body::from_stream(state.into_stream())
        }
        Err(error) => Body::from(line("ERROR", &error.to_status())),
    };
    let mut response = Response::new(body);
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}

/// How one watcher sees events.
struct View {
    app: Arc<App>,
    resource: Arc<Resource>,
    namespace: String,
    selector: Selector,
    shape: Shape,
    include: String,
}

struct Running {
    view: View,
    initial: Option<Bytes>,
    live: tokio::sync::mpsc::Receiver<Arc<Event>>,
    bookmarks: Option<Interval>,
    until: Instant,
}

impl Running {
    fn into_stream(self) -> impl Stream<Item = Result<Bytes, std::convert::Infallible>> {
        let shutdown = self.view.app.shutdown.clone();
        futures::stream::unfold((self, shutdown), |(mut state, shutdown)| async move {
            if let Some(initial) = state.initial.take()
                && !initial.is_empty()
            {
                return Some((Ok(initial), (state, shutdown)));
            }
            loop {
                let tick = async {
                    match state.bookmarks.as_mut() {
                        Some(interval) => {
                            interval.tick().await;
                        }
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    event = state.live.recv() => {
                        // Lagged behind, or the type is gone: the stream ends.
                        let event = event?;
                        let mut lines = state.view.event(&event).unwrap_or_default();
                        while lines.len() < 64 * 1024 && let Ok(event) = state.live.try_recv() {
                            lines.extend(state.view.event(&event).unwrap_or_default());
                        }
                        if !lines.is_empty() {
                            return Some((Ok(lines.into()), (state, shutdown)));
                        }
                    }
                    () = tick => {
                        if let Some(revision) = state.view.app.store.bookmark(&state.live) {
                            let line = state.view.bookmark(revision, false);
                            return Some((Ok(line.into()), (state, shutdown)));
                        }
                    }
                    () = tokio::time::sleep_until(state.until) => return None,
                    () = shutdown.cancelled() => return None,
                }
            }
        })
    }
}

impl View {
    fn sees(&self, object: &Value) -> bool {
        (self.namespace.is_empty() || meta::namespace(object) == self.namespace)
            && self.selector.matches(object)
    }

    fn initial(&self, start: WatchStart, mark_end: bool) -> Bytes {
        let mut lines = Vec::new();
        match start {
            WatchStart::Snapshot(objects, revision) => {
                for object in objects.iter().filter(|object| self.sees(object)) {
                    lines.extend(line("ADDED", &self.shown(object)));
                }
                if mark_end {
                    lines.extend(self.bookmark(revision, true));
                }
            }
            WatchStart::Replay(events) => {
                for event in events {
                    lines.extend(self.event(&event).unwrap_or_default());
                }
            }
        }
        lines.into()
    }

    /// The event as this watcher sees it: objects that begin to match are added, those
    /// that stop are deleted.
    fn event(&self, event: &Event) -> Option<Vec<u8>> {
        let now = event.kind != EventKind::Deleted && self.sees(&event.object);
        let before = event.previous.as_ref().is_some_and(|object| self.sees(object));
        let kind = match (before, now) {
            (false, true) => "ADDED",
            (true, true) => "MODIFIED",
            (true, false) => "DELETED",
            (false, false) => return None,
        };
        if kind == "DELETED" && event.kind != EventKind::Deleted {
            // The last state that matched, at the revision of the change.
            let mut object = (**event.previous.as_ref()?).clone();
            object["metadata"]["resourceVersion"] = Value::String(event.revision.to_string());
            return Some(line(kind, &self.shown(&object)));
        }
        Some(line(kind, &self.shown(&event.object)))
    }

    fn shown<'a>(&self, object: &'a Value) -> Cow<'a, Value> {
        match self.shape {
            Shape::Object => respond::in_version(&self.resource, object),
            Shape::Metadata(version) => Cow::Owned(respond::metadata_only(object, version)),
            Shape::Table(version) => {
                let revision = meta::text(object, "resourceVersion");
                Cow::Owned(table::table(
                    &self.resource,
                    version,
                    [object],
                    &self.include,
                    revision,
                    None,
                    None,
                ))
            }
        }
    }

    fn bookmark(&self, revision: u64, initial_end: bool) -> Vec<u8> {
        let mut metadata =
            json!({"resourceVersion": revision.to_string(), "creationTimestamp": null});
        if initial_end {
            metadata["annotations"] = json!({ INITIAL_EVENTS_END: "true" });
        }
        let object = match self.shape {
            Shape::Metadata(version) => json!({
                "kind": "PartialObjectMetadata",
                "apiVersion": format!("meta.k8s.io/{version}"),
                "metadata": metadata,
            }),
            Shape::Table(version) => json!({
                "kind": "Table",
                "apiVersion": format!("meta.k8s.io/{version}"),
                "metadata": {"resourceVersion": revision.to_string()},
                "columnDefinitions": null,
                "rows": [],
            }),
            Shape::Object => json!({
                "kind": self.resource.kind,
                "apiVersion": self.resource.api_version(),
                "metadata": metadata,
            }),
        };
        line("BOOKMARK", &object)
    }
}

fn line(kind: &str, object: &Value) -> Vec<u8> {
    #[derive(serde::Serialize)]
    struct Line<'a> {
        r#type: &'a str,
        object: &'a Value,
    }
    let mut line = serde_json::to_vec(&Line { r#type: kind, object }).unwrap_or_default();
    line.push(b'\n');
    line
}
