//! Which of several controllers of a scope may act: the one that holds the Lease.
//!
//! No time that another process wrote is ever compared with ours. A holder counts as silent when the version
//! of the Lease that we saw stays the same for as long as it may last, by our own monotonic clock from when
//! we first saw it. A holder stops before that, counted from when it *sent* its last renewal that was answered.

mod hold;

use std::time::Duration;

use tokio::time::Instant;

pub use self::hold::{Claim, Held, HeldBy, NotHeld, Term, Waiting};

#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// How long others wait for a holder that is silent.
    pub duration: Duration,
    /// A holder stops this much earlier. Covers clocks that do not run alike, and what was sent a moment before.
    pub margin: Duration,
    /// Between two renewals.
    pub renew: Duration,
}

impl Timing {
    pub const USUAL: Self = Self {
        duration: Duration::from_secs(15),
        margin: Duration::from_secs(5),
        renew: Duration::from_secs(3),
    };
}

/// The longest that another's Lease is waited for, whatever it says.
const LONGEST: Duration = Duration::from_secs(600);

/// What was read of the Lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Changes with every write, and never comes back: uid and resourceVersion.
    pub version: String,
    /// `None` once it was released.
    pub holder: Option<String>,
    pub duration: Option<Duration>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// To be written as ours, on the version that was looked at.
    Acquire,
    /// Ours, to be written anew.
    Renew,
    /// Another's; to be looked at until then at the least.
    Wait(Instant),
    /// It was ours. Nothing may be done any more.
    Lost,
}

/// One process's view of a Lease.
#[derive(Debug)]
pub struct Candidate {
    me: String,
    timing: Timing,
    other: Option<Other>,
    /// When the last renewal was sent that was answered.
    held: Option<Instant>,
}

#[derive(Debug)]
struct Other {
    version: String,
    first_seen: Instant,
    patience: Duration,
}

impl Candidate {
    pub fn new(me: String, timing: Timing) -> Self {
        Self { me, timing, other: None, held: None }
    }

    pub fn me(&self) -> &str {
        &self.me
    }

    /// Until when it may be acted upon; `None` while it is not ours.
    pub fn until(&self) -> Option<Instant> {
        self.held.map(|sent| sent + (self.timing.duration - self.timing.margin))
    }

    pub fn holds(&self, now: Instant) -> bool {
        self.until().is_some_and(|until| now < until)
    }

    /// What to do, after an answer that arrived at `now`.
    pub fn decide(&mut self, found: Option<&Found>, now: Instant) -> Decision {
        if self.held.is_some() && !self.holds(now) {
            self.held = None;
            return Decision::Lost;
        }
        let holder = found.and_then(|found| found.holder.as_deref());
        if holder == Some(self.me.as_str()) {
            self.other = None;
            return Decision::Renew;
        }
        match (found, holder) {
            (Some(found), Some(_)) => self.see(found, now),
            // Released, by whoever held it.
            (Some(_), None) => self.other = None,
            // Deleted: whoever holds it may not know that yet.
            (None, _) if self.held.is_some() => return Decision::Renew,
            (None, _) => {}
        }
        if self.held.take().is_some() {
            return Decision::Lost;
        }
        match &self.other {
            Some(other) if now < other.first_seen + other.patience => {
                Decision::Wait(other.first_seen + other.patience)
            }
            _ => Decision::Acquire,
        }
    }

    fn see(&mut self, found: &Found, now: Instant) {
        if self.other.as_ref().is_some_and(|other| other.version == found.version) {
            return;
        }
        let says = found.duration.unwrap_or(self.timing.duration);
        self.other = Some(Other {
            version: found.version.clone(),
            first_seen: now,
            patience: says.clamp(self.timing.duration, LONGEST.max(self.timing.duration)),
        });
    }

    /// A write with our name was answered well; it was sent at `sent`.
    pub fn written(&mut self, sent: Instant) {
        self.other = None;
        self.held = self.held.max(Some(sent));
    }

    pub fn lose(&mut self) {
        self.held = None;
    }
}

/// Who holds a Lease, for people and unlike any other: the host, which is a pod's name in a cluster, the
/// process, and something random.
pub fn holder() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = match host.trim() {
        "" => "unknown-host",
        host => host,
    };
    format!("{host}_{}_{:08x}", std::process::id(), rand::random::<u32>())
}

#[cfg(test)]
mod tests;
