//! How the controller asks a gateway what people did: `GET /activity?since=N` on the admin port.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::{Query, State},
    routing::get,
};
use domain::activity::{Change, Tracker};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// A gateway's answer. `gateway` is new at each start: a reader that sees another one starts over
/// from cursor 0, and knows that nothing is remembered from before `remembers_since`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    pub gateway: String,
    pub remembers_since: Timestamp,
    pub now: Timestamp,
    pub cursor: u64,
    pub changes: Vec<Change>,
}

#[derive(Deserialize)]
struct Since {
    #[serde(default)]
    since: u64,
}

struct Memory {
    gateway: String,
    remembers_since: Timestamp,
    tracker: Arc<Tracker>,
}

/// Mounted by the gateways beside health and metrics. `gateway` names this start of the process.
pub fn router(gateway: String, started_at: Timestamp, tracker: Arc<Tracker>) -> Router {
    let memory = Arc::new(Memory { gateway, remembers_since: started_at, tracker });
    Router::new().route("/activity", get(answer)).with_state(memory)
}

async fn answer(
    State(memory): State<Arc<Memory>>,
    Query(Since { since }): Query<Since>,
) -> Json<Report> {
    // The time first: what happens while the changes are read belongs to the next answer.
    let now = Timestamp::now();
    let changes = memory.tracker.changes(since);
    Json(Report {
        gateway: memory.gateway.clone(),
        remembers_since: memory.remembers_since,
        now,
        cursor: changes.cursor,
        changes: changes.changes,
    })
}
