//! Asking for sleeping workloads, and holding requests until they are there. All of it bounded.

use std::{collections::HashMap, sync::Arc, time::Duration};

use domain::{
    access::{Grant, Readiness},
    route::RouteTable,
    wake::WakeRequest,
    workload::WorkloadRef,
};
use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, timeout_at},
};

use crate::{answer::Refusal, metrics::Metrics};

/// One request for a workload in this time is enough, however many people wait.
const ASK_EVERY: Duration = Duration::from_secs(2);

/// Sends wake requests without ever waiting, and not more often than useful.
pub struct Waker {
    queue: mpsc::Sender<WakeRequest>,
    /// When each workload was last asked for. Entries are dropped when they no longer matter.
    asked: Mutex<HashMap<WorkloadRef, Instant>>,
    metrics: Metrics,
}

impl Waker {
    pub fn new(queue: mpsc::Sender<WakeRequest>, metrics: Metrics) -> Self {
        Self { queue, asked: Mutex::default(), metrics }
    }

    pub fn ask(&self, grant: &Grant) {
        let now = Instant::now();
        {
            let mut asked = self.asked.lock();
            if asked.get(grant.workload()).is_some_and(|&at| now < at + ASK_EVERY) {
                return;
            }
            asked.retain(|_, &mut at| now < at + ASK_EVERY);
            asked.insert(grant.workload().clone(), now);
        }
        let request = WakeRequest {
            workload: grant.workload().clone(),
            at: Timestamp::now(),
            who: grant.identity().user.clone(),
        };
        let outcome = match self.queue.try_send(request) {
            Ok(()) => "queued",
            Err(_) => {
                // Whoever waits asks again.
                self.asked.lock().remove(grant.workload());
                "full"
            }
        };
        self.metrics.wakes.with_label_values(&[outcome]).inc();
    }
}

/// Places for requests that wait.
pub struct Holds {
    all: usize,
    per_workload: usize,
    taken: Arc<Mutex<Taken>>,
    metrics: Metrics,
}

#[derive(Default)]
struct Taken {
    all: usize,
    by_workload: HashMap<WorkloadRef, usize>,
}

/// A place, given back when dropped.
pub struct Place {
    taken: Arc<Mutex<Taken>>,
    workload: WorkloadRef,
    metrics: Metrics,
}

impl Holds {
    pub fn new(all: usize, per_workload: usize, metrics: Metrics) -> Self {
        Self { all, per_workload, taken: Arc::default(), metrics }
    }

    pub fn take(&self, workload: &WorkloadRef) -> Option<Place> {
        let mut taken = self.taken.lock();
        let mine = taken.by_workload.get(workload).copied().unwrap_or(0);
        if taken.all >= self.all || mine >= self.per_workload {
            return None;
        }
        taken.all += 1;
        taken.by_workload.insert(workload.clone(), mine + 1);
        self.metrics.held.inc();
        Some(Place {
            taken: self.taken.clone(),
            workload: workload.clone(),
            metrics: self.metrics.clone(),
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.taken.lock();
        taken.all = taken.all.saturating_sub(1);
        if let Some(mine) = taken.by_workload.get_mut(&self.workload) {
            *mine = mine.saturating_sub(1);
            if *mine == 0 {
                taken.by_workload.remove(&self.workload);
            }
        }
        self.metrics.held.dec();
    }
}

/// Waits until the workload can be dialled, asking for it as long as it sleeps. Every new route table
/// proves the access anew. The place is held for as long as this runs.
pub async fn until_ready(
    mut grant: Grant,
    mut routes: watch::Receiver<Arc<RouteTable>>,
    waker: &Waker,
    deadline: Instant,
    _place: Place,
) -> Result<Grant, Refusal> {
    loop {
        match grant.readiness() {
            Readiness::Ready(_) => return Ok(grant),
            Readiness::Stopped => return Err(Refusal::Stopped(grant.workload().clone())),
            Readiness::Failed(message) => {
                return Err(Refusal::Failed(grant.workload().clone(), message.to_owned()));
            }
            Readiness::Asleep => waker.ask(&grant),
            Readiness::Waking(_) => {}
        }
        let ask_again = (Instant::now() + ASK_EVERY).min(deadline);
        match timeout_at(ask_again, routes.changed()).await {
            Ok(Ok(())) => {}
            // The sender is gone: nothing will change any more.
            Ok(Err(_)) => return Err(Refusal::NotYet),
            Err(_) if Instant::now() >= deadline => {
                return Err(Refusal::StillStarting(grant.workload().clone()));
            }
            Err(_) => {}
        }
        let table = routes.borrow_and_update().clone();
        grant = grant.renew(&table).ok_or(Refusal::NotFound)?;
    }
}
