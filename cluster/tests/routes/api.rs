//! An API server that keeps objects and breaks its watches when told to.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex},
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Path, Query, State},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use futures::StreamExt;
use serde_json::{Value, json};
use tokio::sync::mpsc;

#[derive(Clone, Default)]
pub struct FaultyApi(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    version: u64,
    kinds: HashMap<String, Kind>,
}

#[derive(Default)]
struct Kind {
    objects: BTreeMap<String, Value>,
    /// All events so far, as lines of a watch.
    history: Vec<(u64, String)>,
    watches: Vec<mpsc::UnboundedSender<String>>,
    lists: usize,
    /// Lists that are still to fail, and how.
    failing: Vec<StatusCode>,
}

impl FaultyApi {
    pub fn client(&self) -> kube::Client {
        let app = Router::new()
            .route("/apis/{group}/{version}/{kind}", axum::routing::get(serve))
            .with_state(self.clone());
        kube::Client::new(app, "default")
    }

    fn with<R>(&self, kind: &str, change: impl FnOnce(&mut Kind, &mut u64) -> R) -> R {
        let mut inner = self.0.lock().unwrap();
        let Inner { version, kinds } = &mut *inner;
        change(kinds.entry(kind.to_owned()).or_default(), version)
    }

    /// Creates or replaces an object; watches hear of it if `told`.
    pub fn put(&self, kind: &str, mut object: Value, told: bool) {
        self.with(kind, |kind, version| {
            *version += 1;
            object["metadata"]["resourceVersion"] = json!(version.to_string());
            let name = object["metadata"]["name"].as_str().unwrap().to_owned();
            let known = kind.objects.insert(name, object.clone()).is_some();
            let what = if known { "MODIFIED" } else { "ADDED" };
            kind.happened(*version, json!({"type": what, "object": object}), told);
        });
    }

    pub fn delete(&self, kind: &str, name: &str, told: bool) {
        self.with(kind, |kind, version| {
            *version += 1;
            let object = kind.objects.remove(name).unwrap();
            kind.happened(*version, json!({"type": "DELETED", "object": object}), told);
        });
    }

    /// Ends all watches of the kind, with a last line or without.
    pub fn break_watches(&self, kind: &str, last: Option<&str>) {
        self.with(kind, |kind, _| {
            for watch in kind.watches.drain(..) {
                if let Some(last) = last {
                    let _ = watch.send(last.to_owned());
                }
            }
        });
    }

    /// Tells everything once more that was ever told.
    pub fn repeat(&self, kind: &str) {
        self.with(kind, |kind, _| {
            for watch in &kind.watches {
                for (_, line) in &kind.history {
                    let _ = watch.send(line.clone());
                }
            }
        });
    }

    pub fn fail_lists(&self, kind: &str, how: &[StatusCode]) {
        self.with(kind, |kind, _| kind.failing = how.to_vec());
    }

    pub fn lists(&self, kind: &str) -> usize {
        self.with(kind, |kind, _| kind.lists)
    }
}

impl Kind {
    fn happened(&mut self, version: u64, event: Value, told: bool) {
        let line = format!("{event}\n");
        if told {
            self.watches.retain(|watch| watch.send(line.clone()).is_ok());
        }
        self.history.push((version, line));
    }
}

async fn serve(
    State(api): State<FaultyApi>,
    Path((group, version, kind)): Path<(String, String, String)>,
    Query(query): Query<HashMap<String, String>>,
) -> Response {
    let mut inner = api.0.lock().unwrap();
    let current = inner.version;
    let kind = inner.kinds.entry(kind).or_default();
    if query.contains_key("watch") {
        let from: u64 = query["resourceVersion"].parse().unwrap();
        let (sender, receiver) = mpsc::unbounded_channel();
        for (_, line) in kind.history.iter().filter(|(version, _)| *version > from) {
            let _ = sender.send(line.clone());
        }
        kind.watches.push(sender);
        let lines = futures::stream::unfold(receiver, |mut receiver| async {
            let line = receiver.recv().await?;
            Some((Ok::<_, std::convert::Infallible>(Bytes::from(line)), receiver))
        });
        return Body::from_stream(lines.boxed()).into_response();
    }
    kind.lists += 1;
    if !kind.failing.is_empty() {
        let status = kind.failing.remove(0);
        let body = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure",
            "code": status.as_u16(), "reason": "Expired", "message": "made to fail"});
        return (status, body.to_string()).into_response();
    }
    let list = json!({
        "apiVersion": format!("{group}/{version}"),
        "kind": "List",
        "metadata": {"resourceVersion": current.to_string()},
        "items": kind.objects.values().collect::<Vec<_>>(),
    });
    list.to_string().into_response()
}
