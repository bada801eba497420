//! A work queue of object keys: a key waits at most once, is worked on by one reconcile at a time,
//! and comes back after a failure with growing delays.

use std::collections::{HashMap, HashSet, VecDeque};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use kube::Resource;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::time::DelayQueue;
use tokio_util::time::delay_queue;

use super::Error;

const FIRST_RETRY: Duration = Duration::from_millis(5);
const LAST_RETRY: Duration = Duration::from_secs(10);
/// A reconcile that takes longer is stuck on a dead connection: it is dropped and tried again.
const RECONCILE_DEADLINE: Duration = Duration::from_secs(30);

/// Which object; the namespace is empty for kinds without namespaces.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    pub namespace: String,
    pub name: String,
}

impl Key {
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.to_owned(), name: name.to_owned() }
    }

    pub fn of<K: Resource>(object: &K) -> Self {
        let meta = object.meta();
        Self::new(
            meta.namespace.as_deref().unwrap_or_default(),
            meta.name.as_deref().unwrap_or_default(),
        )
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.namespace.is_empty() {
            f.write_str(&self.name)
        } else {
            write!(f, "{}/{}", self.namespace, self.name)
        }
    }
}

#[derive(Default)]
struct State {
    ready: VecDeque<Key>,
    dirty: HashSet<Key>,
    busy: HashSet<Key>,
}

/// Clones share one queue. It holds each key once, so the number of objects bounds it.
#[derive(Clone, Default)]
pub struct Queue {
    state: Arc<Mutex<State>>,
    wake: Arc<Notify>,
}

impl Queue {
    /// Asks for a look at `key`; while one is under way, for another one after it.
    pub fn add(&self, key: Key) {
        let mut state = self.state.lock();
        if state.dirty.insert(key.clone()) && !state.busy.contains(&key) {
            state.ready.push_back(key);
            self.wake.notify_one();
        }
    }

    async fn take(&self) -> Key {
        loop {
            {
                let mut state = self.state.lock();
                if let Some(key) = state.ready.pop_front() {
                    state.dirty.remove(&key);
                    state.busy.insert(key.clone());
                    return key;
                }
            }
            self.wake.notified().await;
        }
    }

    fn done(&self, key: &Key) {
        let mut state = self.state.lock();
        state.busy.remove(key);
        if state.dirty.contains(key) {
            state.ready.push_back(key.clone());
            self.wake.notify_one();
        }
    }
}

/// When a key must be looked at again though nothing changed.
pub type Again = Option<Duration>;

/// Works the queue off until `shutdown`, at most `concurrency` keys at a time.
pub async fn work<F, Fut>(
    controller: &'static str,
    queue: Queue,
    concurrency: usize,
    shutdown: CancellationToken,
    reconcile: F,
) where
    F: Fn(Key) -> Fut,
    Fut: Future<Output = Result<Again, Error>>,
{
    let mut running = FuturesUnordered::new();
    let mut delays = Delays::default();
    let mut failures: HashMap<Key, u32> = HashMap::new();
    loop {
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            Some((key, result)) = running.next(), if !running.is_empty() => {
                queue.done(&key);
                let result: Result<Again, Error> = result;
                let again = match result {
                    Ok(again) => {
                        failures.remove(&key);
                        again
                    }
                    Err(error) => {
                        let failed = failures.entry(key.clone()).or_default();
                        let delay = FIRST_RETRY.saturating_mul(1 << (*failed).min(20)).min(LAST_RETRY);
                        *failed = failed.saturating_add(1);
                        if error.is_conflict() {
                            tracing::debug!(controller, %key, "the object changed meanwhile; trying again");
                        } else {
                            tracing::warn!(controller, %key, %error, retry_in = ?delay, "could not reconcile");
                        }
                        Some(delay)
                    }
                };
                delays.set(key, again);
            }
            key = queue.take(), if running.len() < concurrency => {
                let work = tokio::time::timeout(RECONCILE_DEADLINE, reconcile(key.clone()));
                running.push(async move { (key, work.await.unwrap_or(Err(Error::Deadline))) });
            }
            Some(key) = delays.next(), if !delays.is_empty() => queue.add(key),
        }
    }
}

/// At most one timer for each key.
#[derive(Default)]
struct Delays {
    queue: DelayQueue<Key>,
    timers: HashMap<Key, delay_queue::Key>,
}

impl Delays {
    fn set(&mut self, key: Key, after: Again) {
        if let Some(timer) = self.timers.remove(&key) {
            self.queue.try_remove(&timer);
        }
        if let Some(after) = after {
            let timer = self.queue.insert(key.clone(), after);
            self.timers.insert(key, timer);
        }
    }

    fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    async fn next(&mut self) -> Option<Key> {
        let key = self.queue.next().await?.into_inner();
        self.timers.remove(&key);
        Some(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[tokio::test(start_paused = true)]
    async fn a_key_waits_once_and_never_runs_twice_at_a_time() {
        let queue = Queue::default();
        let (runs, at_once) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let shutdown = CancellationToken::new();
        for _ in 0..5 {
            queue.add(Key::new("a", "x"));
        }
        let inner = queue.clone();
        let (runs_in, stop) = (runs.clone(), shutdown.clone());
        work("test", queue, 8, shutdown, move |key| {
            let (queue, runs, at_once, stop) =
                (inner.clone(), runs_in.clone(), at_once.clone(), stop.clone());
            async move {
                assert_eq!(at_once.fetch_add(1, Ordering::SeqCst), 0);
                if runs.fetch_add(1, Ordering::SeqCst) == 0 {
                    queue.add(key.clone());
                    queue.add(key);
                } else {
                    stop.cancel();
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
                at_once.fetch_sub(1, Ordering::SeqCst);
                Ok(None)
            }
        })
        .await;
        assert_eq!(runs.load(Ordering::SeqCst), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_is_tried_again_later_and_later() {
        let queue = Queue::default();
        queue.add(Key::new("", "x"));
        let started = tokio::time::Instant::now();
        let shutdown = CancellationToken::new();
        let stop = shutdown.clone();
        let times = Arc::new(Mutex::new(Vec::new()));
        let seen = times.clone();
        work("test", queue, 1, shutdown, move |_| {
            let (seen, stop) = (seen.clone(), stop.clone());
            async move {
                let mut seen = seen.lock();
                seen.push(started.elapsed().as_millis());
                if seen.len() == 4 {
                    stop.cancel();
                }
                Err(Error::Deadline)
            }
        })
        .await;
        let times = times.lock();
        let gaps: Vec<_> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(gaps.is_sorted() && gaps[0] >= 5 && gaps[2] >= 20, "{gaps:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_later_look_replaces_the_timer_of_an_earlier_one() {
        let mut delays = Delays::default();
        delays.set(Key::new("", "x"), Some(Duration::from_secs(1)));
        delays.set(Key::new("", "x"), Some(Duration::from_secs(5)));
        let started = tokio::time::Instant::now();
        assert_eq!(delays.next().await, Some(Key::new("", "x")));
        assert!(started.elapsed() >= Duration::from_secs(5));
        assert!(delays.is_empty());
    }
}
