//! The feed of revocations: a snapshot, and the events that follow it (server-sent events). Only
//! the gateways read it.

use std::{convert::Infallible, time::Duration};

use axum::{
    Json,
    extract::{RawQuery, State},
    http::HeaderMap,
    response::{
        IntoResponse, Response,
        sse::{Event, Sse},
    },
};
use futures::{Stream, stream};
use serde_json::json;
use tokio::{sync::watch, time::sleep};

use super::{error::ApiError, internal, params::Params};
use crate::server::App;

/// How often a reader hears that there is nothing new.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// Revocations in one event at most.
const BATCH: i64 = 1_000;
/// A reader that is further behind than this takes a snapshot instead.
const BEHIND_MAX: i64 = 100_000;

/// All that is revoked, and from where the events go on.
pub(super) async fn snapshot(
    State(app): State<App>,
    headers: HeaderMap,
) -> Result<Response, Response> {
    internal::check_gate(&app, &headers).await?;
    let read = app.store.revocations(app.now()).await;
    let (version, revocations) = read.map_err(|error| ApiError::from(error).into_response())?;
    let cursor = cursor(&app, version);
    Ok(Json(json!({ "cursor": cursor, "revocations": revocations })).into_response())
}

/// `revoked` with a cursor and a list, `heartbeat` with a cursor, both with the version of the signing keys, and `reset` when the cursor that
/// was given leads nowhere: then the reader has to take a snapshot.
pub(super) async fn events(
    State(app): State<App>,
    headers: HeaderMap,
    RawQuery(query): RawQuery,
) -> Result<Response, Response> {
    internal::check_gate(&app, &headers).await?;
    let query = Params::parse(query.unwrap_or_default().as_bytes());
    let current = app.store.revocation_version().await;
    let current = current.map_err(|error| ApiError::from(error).into_response())?;
    let after = query
        .get("after")
        .and_then(|cursor| cursor.strip_prefix(app.revocation_epoch.as_str()))
        .and_then(|rest| rest.strip_prefix('.')?.parse().ok())
        .filter(|after| *after <= current && current - after <= BEHIND_MAX);
    let Some(after) = after else {
        let reset = Event::default().event("reset").data("{}");
        return Ok(Sse::new(stream::iter([Ok::<_, Infallible>(reset)])).into_response());
    };
    // From here on it is told of what the watch does not know of yet.
    let (versions, keys) = (app.revoked.subscribe(), app.key_version.subscribe());
    Ok(Sse::new(follow(Reader { app, versions, keys, after, greeted: false })).into_response())
}

struct Reader {
    app: App,
    versions: watch::Receiver<i64>,
    /// Of the signing keys, as each event says it.
    keys: watch::Receiver<i64>,
    /// The version that the reader has.
    after: i64,
    greeted: bool,
}

fn follow(reader: Reader) -> impl Stream<Item = Result<Event, Infallible>> {
    stream::unfold(reader, async |mut reader| {
        // Ends when the database does not answer: the reader comes again, perhaps elsewhere.
        let event = reader.next().await?;
        Some((Ok(event), reader))
    })
}

impl Reader {
    async fn next(&mut self) -> Option<Event> {
        loop {
            self.versions.borrow_and_update();
            let found = self.app.store.revocations_after(self.after, BATCH).await;
            let found =
                found.inspect_err(|error| tracing::warn!(%error, "the feed breaks off")).ok()?;
            if let Some(last) = found.last() {
                self.after = last.version;
                return Some(self.event("revoked", json!({ "revocations": found })));
            }
            if !std::mem::replace(&mut self.greeted, true) {
                return Some(self.event("heartbeat", json!({})));
            }
            tokio::select! {
                changed = self.versions.changed() => changed.ok()?,
                changed = self.keys.changed() => {
                    changed.ok()?;
                    return Some(self.event("heartbeat", json!({})));
                }
                () = sleep(HEARTBEAT) => return Some(self.event("heartbeat", json!({}))),
                () = self.app.shutdown.cancelled() => return None,
            }
        }
    }

    fn event(&self, name: &str, mut data: serde_json::Value) -> Event {
        data["cursor"] = cursor(&self.app, self.after).into();
        data["keys"] = (*self.keys.borrow()).into();
        Event::default().event(name).data(data.to_string())
    }
}

fn cursor(app: &App, version: i64) -> String {
    format!("{}.{version}", app.revocation_epoch)
}
