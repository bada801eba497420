//! One address of a workload, and what has been seen of it: exchanges outstanding, failures, and
//! whether it is left alone for a while. Written on the request path without a lock.

use std::{
    net::SocketAddr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

/// Failures in a row after which an endpoint is ejected.
pub const FAILURES_MAX: u32 = 3;
/// How long the first ejection lasts; each further one lasts twice as long as the one before.
pub const EJECTION: Duration = Duration::from_secs(1);
pub const EJECTION_MAX: Duration = Duration::from_secs(60);
/// Doing well for this long after an ejection, an endpoint begins anew.
pub const FORGIVEN_AFTER: Duration = Duration::from_secs(60);

/// What the cluster says of an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointSpec {
    pub address: SocketAddr,
    /// Names the pod, so that another one that gets the same address begins without its past.
    pub pod: Option<String>,
    pub serving: Serving,
    pub revision: Revision,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Serving {
    Ready,
    /// On its way out: what is open goes on, and nothing new begins.
    Draining,
}

/// Which of an app's two revisions runs behind an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Revision {
    Stable,
    Canary,
}

impl From<SocketAddr> for EndpointSpec {
    fn from(address: SocketAddr) -> Self {
        let (serving, revision) = (Serving::Ready, Revision::Stable);
        Self { address, pod: None, serving, revision }
    }
}

/// An address with its state, which outlives the route table's snapshots.
#[derive(Debug, Clone)]
pub struct Endpoint {
    spec: EndpointSpec,
    load: Arc<Load>,
}

impl Endpoint {
    /// Takes over the state of the same pod at the same address.
    pub(crate) fn new(spec: EndpointSpec, before: &[Endpoint]) -> Self {
        let same = |old: &&Endpoint| old.spec.address == spec.address && old.spec.pod == spec.pod;
        let load = before.iter().find(same).map(|old| old.load.clone()).unwrap_or_default();
        Self { spec, load }
    }

    pub fn address(&self) -> SocketAddr {
        self.spec.address
    }

    pub fn pod(&self) -> Option<&str> {
        self.spec.pod.as_deref()
    }

    pub fn is_ready(&self) -> bool {
        self.spec.serving == Serving::Ready
    }

    pub fn revision(&self) -> Revision {
        self.spec.revision
    }

    pub fn load(&self) -> &Arc<Load> {
        &self.load
    }
}

/// Whether an endpoint may be given something to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    Good,
    /// Left alone until this time.
    Ejected(Duration),
    /// The ejection is over: one exchange may try.
    HalfOpen,
    /// That one exchange is under way.
    Probing,
}

/// Every `now` is a time since one fixed moment, the same for all calls.
#[derive(Debug)]
pub struct Load {
    id: u64,
    outstanding: AtomicU32,
    /// In a row.
    failures: AtomicU32,
    out: AtomicBool,
    /// When the last ejection ends, in milliseconds.
    until: AtomicU64,
    /// Without being forgiven in between.
    ejections: AtomicU32,
    probing: AtomicBool,
    tag: OnceLock<[u8; 16]>,
}

impl Default for Load {
    fn default() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            outstanding: AtomicU32::new(0),
            failures: AtomicU32::new(0),
            out: AtomicBool::new(false),
            until: AtomicU64::new(0),
            ejections: AtomicU32::new(0),
            probing: AtomicBool::new(false),
            tag: OnceLock::new(),
        }
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

impl Load {
    /// Different for every endpoint of this process: connections may be kept under it.
    pub fn id(&self) -> u64 {
        self.id
    }

    pub fn outstanding(&self) -> u32 {
        self.outstanding.load(Ordering::Relaxed)
    }

    /// A name for cookies, made once by `make`.
    pub fn tag(&self, make: impl FnOnce() -> [u8; 16]) -> [u8; 16] {
        *self.tag.get_or_init(make)
    }

    pub fn standing(&self, now: Duration) -> Standing {
        if !self.out.load(Ordering::Acquire) {
            return Standing::Good;
        }
        let until = self.until.load(Ordering::Acquire);
        if milliseconds(now) < until {
            Standing::Ejected(Duration::from_millis(until))
        } else if self.probing.load(Ordering::Acquire) {
            Standing::Probing
        } else {
            Standing::HalfOpen
        }
    }

    /// Counts an exchange until the guard is dropped. After an ejection the first one is the probe.
    pub fn begin(self: &Arc<Self>, now: Duration) -> Outstanding {
        self.outstanding.fetch_add(1, Ordering::Relaxed);
        let probe =
            self.standing(now) == Standing::HalfOpen && !self.probing.swap(true, Ordering::AcqRel);
        Outstanding { load: self.clone(), probe, told: false }
    }

    /// True when this call ejected it.
    fn failed(&self, probe: bool, now: Duration) -> bool {
        if !probe {
            let failures = self.failures.fetch_add(1, Ordering::AcqRel).saturating_add(1);
            if failures < FAILURES_MAX || self.out.load(Ordering::Acquire) {
                return false;
            }
        }
        let times = self.ejections.load(Ordering::Acquire);
        let length = EJECTION.saturating_mul(1 << times.min(16)).min(EJECTION_MAX);
        let was = self.until.load(Ordering::Acquire);
        let until = milliseconds(now.saturating_add(length));
        // Of several that fail at once, one ejects.
        let first = self.until.compare_exchange(was, until, Ordering::AcqRel, Ordering::Acquire);
        if first.is_err() || (self.out.swap(true, Ordering::AcqRel) && !probe) {
            return false;
        }
        self.ejections.store(times.saturating_add(1), Ordering::Release);
        self.failures.store(0, Ordering::Release);
        true
    }

    fn answered(&self, now: Duration) {
        // Nearly always there is nothing to write, and the cache line stays shared.
        if self.failures.load(Ordering::Relaxed) != 0 {
            self.failures.store(0, Ordering::Release);
        }
        if self.out.load(Ordering::Relaxed) {
            self.out.store(false, Ordering::Release);
        } else if self.ejections.load(Ordering::Relaxed) != 0 {
            let until = self.until.load(Ordering::Acquire);
            if milliseconds(now) > until.saturating_add(milliseconds(FORGIVEN_AFTER)) {
                self.ejections.store(0, Ordering::Release);
            }
        }
    }
}

/// One exchange with an endpoint. What became of it is told once; without, it was nobody's fault.
#[derive(Debug)]
pub struct Outstanding {
    load: Arc<Load>,
    probe: bool,
    told: bool,
}

impl Outstanding {
    /// The first byte of an answer has come.
    pub fn answered(&mut self, now: Duration) {
        if !std::mem::replace(&mut self.told, true) {
            self.load.answered(now);
            self.probe_over();
        }
    }

    /// No connection could be made, or it broke before an answer. True when the endpoint is ejected
    /// for it.
    pub fn failed(&mut self, now: Duration) -> bool {
        if std::mem::replace(&mut self.told, true) {
            return false;
        }
        let ejected = self.load.failed(self.probe, now);
        self.probe_over();
        ejected
    }

    /// Once it is known how a probe went, another one may follow: what was answered may be a stream
    /// that lives for days.
    fn probe_over(&mut self) {
        if std::mem::take(&mut self.probe) {
            self.load.probing.store(false, Ordering::Release);
        }
    }
}

impl Drop for Outstanding {
    fn drop(&mut self) {
        self.load.outstanding.fetch_sub(1, Ordering::Relaxed);
        self.probe_over();
    }
}

#[cfg(test)]
mod tests;
