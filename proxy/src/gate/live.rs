//! Streams that are open, so that a right that is lost ends them.
//!
//! Entered when a stream opens and left when it ends; looked through when the route table has
//! changed, at most once a second. No request waits for it.

use std::{collections::HashMap, sync::Arc, time::Duration};

use domain::{access::Grant, route::RouteTable};
use parking_lot::Mutex;
use runtime::revocations::Revocations;
use tokio::{sync::watch, time::sleep};
use tokio_util::sync::CancellationToken;

use super::Destination;

/// Between two looks: together with the way from the API, well under the five seconds in which a
/// lost right must have taken effect.
pub const LOOK_EVERY: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
pub struct Live {
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    next: u64,
    streams: HashMap<u64, Stream>,
}

#[derive(Debug)]
struct Stream {
    grant: Grant,
    lost: CancellationToken,
}

/// A stream that is open; leaves when dropped.
#[derive(Debug)]
pub struct Presence {
    live: Arc<Live>,
    number: u64,
    lost: CancellationToken,
}

impl Presence {
    /// Resolves when the right to the workload is lost.
    pub async fn lost(&self) {
        self.lost.cancelled().await;
    }

    /// Cancelled when the right to the workload is lost.
    pub fn token(&self) -> CancellationToken {
        self.lost.clone()
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        self.live.open.lock().streams.remove(&self.number);
    }
}

impl Live {
    pub fn enter(self: &Arc<Self>, grant: Grant) -> Presence {
        let lost = CancellationToken::new();
        let mut open = self.open.lock();
        let number = open.next;
        open.next += 1;
        open.streams.insert(number, Stream { grant, lost: lost.clone() });
        Presence { live: self.clone(), number, lost }
    }

    /// Ends what may not go on. Returns how many that were.
    fn look(&self, may_go_on: impl Fn(&Grant) -> bool) -> usize {
        let open = self.open.lock();
        let ended = open.streams.values().filter(|stream| !may_go_on(&stream.grant));
        ended.inspect(|stream| stream.lost.cancel()).count()
    }

    /// Follows routes and revocations until the senders of the routes are gone.
    async fn follow(
        &self,
        mut routes: watch::Receiver<Arc<RouteTable>>,
        revocations: &Revocations,
    ) {
        let mut withdrawn = revocations.changes();
        loop {
            let changed = tokio::select! {
                changed = routes.changed() => changed,
                changed = withdrawn.changed() => changed,
            };
            if changed.is_err() {
                return;
            }
            withdrawn.mark_unchanged();
            let table = routes.borrow_and_update().clone();
            let ended = self.look(|grant| may_go_on(grant, &table, revocations));
            if ended > 0 {
                tracing::info!(ended, "ended streams whose right was lost");
            }
            sleep(LOOK_EVERY).await;
        }
    }
}

/// An unsynced table knows nothing, and nothing is lost by it.
fn may_go_on(grant: &Grant, table: &RouteTable, revocations: &Revocations) -> bool {
    let allowed = !table.is_synced() || grant.renew(table).is_some();
    allowed && !revocations.is_revoked(grant.identity())
}

impl super::Gate {
    /// Counts a stream as open, so that it ends when the right to it is lost.
    pub fn enter(&self, destination: &Destination) -> Option<Presence> {
        match destination {
            Destination::Workload(grant) => {
                let presence = self.live.enter(grant.clone());
                // Lost while the request waited or was on its way: no change will tell any more.
                if !self.may_go_on(destination) {
                    presence.lost.cancel();
                }
                Some(presence)
            }
            Destination::Service { .. } => None,
        }
    }

    /// Whether what was admitted may go on.
    pub fn may_go_on(&self, destination: &Destination) -> bool {
        match destination {
            Destination::Workload(grant) => {
                may_go_on(grant, &self.routes.borrow(), &self.revocations)
            }
            Destination::Service { .. } => true,
        }
    }

    /// Ends open streams whose right is lost, until the routes end.
    pub async fn follow_rights(&self) {
        self.live.follow(self.routes.clone(), &self.revocations).await;
    }
}
