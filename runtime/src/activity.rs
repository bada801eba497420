//! How the controller asks a gateway what people did: `GET /activity?since=N` on the admin port.
//!
//! After a hand-over ([`crate::handover`]) it asks the new process. The old one, in which sessions go
//! on, tells the new one what is done there: a [`Change`] in JSON per line, every second.

use std::{io, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::{Query, State},
    routing::get,
};
use domain::activity::{Change, Tracker};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::UnixStream,
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::handover;

/// How often the successor is told.
const TELL: Duration = Duration::from_secs(1);

/// How long it may take to read what it is told.
const PATIENCE: Duration = Duration::from_secs(5);

/// Longest line, in bytes: names have bounds of their own.
const LINE_MAX: u64 = 16 << 10;

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
    memory.tracker.settle(now);
    let changes = memory.tracker.changes(since);
    Json(Report {
        gateway: memory.gateway.clone(),
        remembers_since: memory.remembers_since,
        now,
        cursor: changes.cursor,
        changes: changes.changes,
    })
}

/// What goes on between a process and the one that takes over from it.
pub struct Relay {
    served: CancellationToken,
    tasks: TaskTracker,
}

impl Relay {
    pub fn start(tracker: Arc<Tracker>) -> Self {
        let (served, tasks) = (CancellationToken::new(), TaskTracker::new());
        if let Some(predecessor) = handover::predecessor() {
            let tracker = tracker.clone();
            tasks.spawn(async move {
                if let Err(error) = hear(predecessor, &tracker).await {
                    tracing::warn!(%error, "the process before is not heard any more");
                }
                tracker.heard_all();
            });
        }
        let until = served.clone();
        tasks.spawn(async move {
            // Without a successor nobody is told.
            let successor = tokio::select! {
                successor = handover::successor() => successor,
                () = until.cancelled() => return,
            };
            if let Err(error) = tell(successor, &tracker, until).await {
                tracing::warn!(%error, "the process that took over does not hear what is done here");
            }
        });
        tasks.close();
        Self { served, tasks }
    }

    /// Nothing more is done here. The successor is told the last of it; and of what the processes
    /// before did, for as long as they go on.
    pub async fn end(self) {
        if handover::is_replaced() {
            // All but the one that tells, which waits for us.
            while self.tasks.len() > 1 {
                tokio::time::sleep(TELL).await;
            }
        }
        self.served.cancel();
        if handover::is_replaced() {
            self.tasks.wait().await;
        }
    }
}

async fn tell(
    mut successor: UnixStream,
    tracker: &Tracker,
    until: CancellationToken,
) -> io::Result<()> {
    let (mut cursor, mut ticks) = (0, interval(TELL));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let last = tokio::select! {
            _ = ticks.tick() => false,
            () = until.cancelled() => true,
        };
        tracker.settle(Timestamp::now());
        let news = tracker.changes(cursor);
        cursor = news.cursor;
        for change in news.changes {
            let mut line = serde_json::to_vec(&change)?;
            line.push(b'\n');
            timeout(PATIENCE, successor.write_all(&line)).await??;
        }
        if last {
            return Ok(());
        }
    }
}

async fn hear(predecessor: UnixStream, tracker: &Tracker) -> io::Result<()> {
    let mut lines = BufReader::new(predecessor);
    loop {
        let mut line = String::new();
        if (&mut lines).take(LINE_MAX).read_line(&mut line).await? == 0 {
            return Ok(());
        }
        tracker.hear(serde_json::from_str(&line)?);
    }
}

#[cfg(test)]
mod tests {
    use domain::{
        activity::{Evidence, How},
        workload::{WorkloadKind, WorkloadRef},
    };

    use super::*;

    fn lab() -> WorkloadRef {
        WorkloadRef {
            kind: WorkloadKind::Workspace,
            project: "alice".parse().unwrap(),
            name: "lab".parse().unwrap(),
        }
    }

    fn tracker() -> Tracker {
        let tracker = Tracker::new();
        tracker.cell(&lab());
        tracker
    }

    #[tokio::test(start_paused = true)]
    async fn a_successor_knows_what_is_done_in_sessions_that_go_on() {
        let (before, after) = (tracker(), tracker());
        let (ours, theirs) = UnixStream::pair().unwrap();
        let evidence = |second| Evidence {
            at: Timestamp::from_second(second).unwrap(),
            who: "alice".parse().unwrap(),
            how: How::Ssh,
            what: "typed in a shell".to_owned(),
        };
        let does = |second, working| {
            let last = Some(evidence(second));
            before.hear(Change { workload: lab(), last, open: 1, working });
        };
        does(100, 1);
        let served = CancellationToken::new();
        let story = async {
            // Told by and by, and the last of it at the end.
            while after.changes(0).changes.is_empty() {
                tokio::time::sleep(TELL).await;
            }
            let change = after.changes(0).changes.remove(0);
            assert_eq!((change.last, change.working), (Some(evidence(100)), 1));
            does(200, 1);
            served.cancel();
        };
        let (told, heard, ()) =
            tokio::join!(tell(ours, &before, served.clone()), hear(theirs, &after), story);
        told.unwrap();
        heard.unwrap();
        assert_eq!(after.changes(0).changes[0].last, Some(evidence(200)));
    }

    #[tokio::test]
    async fn what_is_no_news_ends_the_hearing() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        ours.write_all(b"{}\n").await.unwrap();
        assert_eq!(hear(theirs, &tracker()).await.unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
