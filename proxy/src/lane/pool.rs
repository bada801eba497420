//! Connections to pods that wait for the next request. Each has the number of the pod it was made to
//! ([`crate::upstream::Picked::pool`]), so that nobody else gets it who has its address meanwhile.

use std::{collections::HashMap, io, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::{
    net::TcpStream,
    time::{Instant, MissedTickBehavior, interval},
};

use crate::upstream::POOL_IDLE;

/// Between two rounds in which what waited too long is closed.
const SWEEP_EVERY: Duration = Duration::from_secs(1);
/// Connections that wait for one pod, and in all.
const PER_POD_MAX: usize = 512;
const ALL_MAX: usize = 4096;
/// A connection that waited for less is taken for open without asking the kernel when the request
/// may be sent twice.
const SURELY_OPEN: Duration = Duration::from_millis(1);

#[derive(Debug, Default)]
pub struct Pool {
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    all: usize,
    /// The one that came last is at the end.
    by_pod: HashMap<u64, Vec<Idle>>,
}

#[derive(Debug)]
struct Idle {
    stream: TcpStream,
    since: Instant,
}

impl Pool {
    pub fn new() -> Arc<Self> {
        let pool = Arc::new(Self::default());
        let weak = Arc::downgrade(&pool);
        tokio::spawn(async move {
            let mut ticks = interval(SWEEP_EVERY);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                let Some(pool) = weak.upgrade() else { return };
                pool.sweep(Instant::now());
            }
        });
        pool
    }

    /// One that is still open. `twice` tells whether the request may be sent again should the
    /// connection turn out to be closed after all.
    pub fn take(&self, pod: u64, twice: bool, now: Instant) -> Option<TcpStream> {
        loop {
            let idle = {
                let mut waiting = self.waiting.lock();
                let idle = waiting.by_pod.get_mut(&pod)?.pop()?;
                waiting.all -= 1;
                idle
            };
            let waited = now.saturating_duration_since(idle.since);
            let sure = || twice || waited < SURELY_OPEN || is_silent(&idle.stream);
            if waited < POOL_IDLE && is_open(&idle.stream) && sure() {
                return Some(idle.stream);
            }
        }
    }

    pub fn put(&self, pod: u64, stream: TcpStream, now: Instant) {
        let mut waiting = self.waiting.lock();
        if waiting.all >= ALL_MAX {
            return;
        }
        let here = waiting.by_pod.entry(pod).or_default();
        if here.len() >= PER_POD_MAX {
            return;
        }
        here.push(Idle { stream, since: now });
        waiting.all += 1;
    }

    fn sweep(&self, now: Instant) {
        let mut gone = Vec::new();
        let mut waiting = self.waiting.lock();
        let Waiting { all, by_pod } = &mut *waiting;
        by_pod.retain(|_, here| {
            let closed = here.extract_if(.., |idle| {
                now.saturating_duration_since(idle.since) >= POOL_IDLE || !is_open(&idle.stream)
            });
            gone.extend(closed);
            !here.is_empty()
        });
        *all -= gone.len();
        drop(waiting);
        // Closed here, outside of the lock.
        drop(gone);
    }
}

/// Whether nothing has come, not even an end, as far as the runtime has heard: no system call.
fn is_open(stream: &TcpStream) -> bool {
    matches!(stream.try_read(&mut [0]), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
}

/// The same, asked of the kernel.
fn is_silent(stream: &TcpStream) -> bool {
    use nix::sys::socket::{MsgFlags, recv};
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
    let peeked = recv(std::os::fd::AsRawFd::as_raw_fd(stream), &mut [0], flags);
    peeked == Err(nix::errno::Errno::EAGAIN)
}

#[cfg(test)]
mod tests {
    use tokio::{io::AsyncWriteExt, net::TcpListener};

    use super::*;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let near = TcpStream::connect(address).await.unwrap();
        (near, listener.accept().await.unwrap().0)
    }

    #[tokio::test]
    async fn a_connection_is_used_again_for_its_pod_only() {
        let (pool, now) = (Pool::new(), Instant::now());
        let (near, _far) = pair().await;
        let port = near.local_addr().unwrap().port();
        pool.put(1, near, now);
        let back = pool.take(1, true, now).unwrap();
        assert_eq!(back.local_addr().unwrap().port(), port);
        assert!(pool.take(1, true, now).is_none());
        pool.put(1, back, now);
        assert!(pool.take(2, true, now).is_none());
        assert_eq!(pool.waiting.lock().all, 1);
    }

    #[tokio::test]
    async fn what_is_closed_late_or_talks_unasked_is_not_used() {
        let (pool, now) = (Pool::new(), Instant::now());
        let late = now + POOL_IDLE;
        let (near, _far) = pair().await;
        pool.put(1, near, now);
        assert!(pool.take(1, true, late).is_none());
        for talks in [false, true] {
            let (near, mut far) = pair().await;
            if talks {
                far.write_all(b"x").await.unwrap();
            } else {
                drop(far);
            }
            near.readable().await.unwrap();
            pool.put(1, near, now);
            assert!(pool.take(1, true, now).is_none());
        }
        let (near, far) = pair().await;
        pool.put(1, near, now);
        pool.sweep(now);
        assert_eq!(pool.waiting.lock().all, 1);
        drop(far);
        // Not heard of by the runtime, perhaps, but by the kernel.
        let after = now + SURELY_OPEN;
        assert!(pool.take(1, false, after).is_none());
        pool.sweep(late);
        assert!(pool.waiting.lock().by_pod.is_empty());
    }
}
