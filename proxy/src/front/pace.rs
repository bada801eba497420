//! How slowly a body may come of which the length was said.
//!
//! Who says how much will come has it ready. One that sends a byte now and then never stalls, and
//! holds a connection of ours and one of the workload's for as long as it likes: Slowloris by body.
//! Only the time is counted in which the client is waited for, never a workload that takes its time.

use std::time::Duration;

use tokio::time::Instant;

use crate::config;

/// A part this long was there before it was asked for.
const LARGE: usize = 4 * 1024;

#[derive(Debug, thiserror::Error)]
#[error("the body comes too slowly")]
pub struct TooSlow;

#[derive(Debug)]
pub struct Pace {
    /// Bytes per second.
    least: u64,
    /// Free of charge.
    grace: Duration,
    bytes: u64,
    waited: Duration,
    since: Option<Instant>,
}

impl Pace {
    /// `None` where there is no limit.
    pub fn new(limits: &config::Limits) -> Option<Self> {
        (limits.body_bytes_per_second > 0).then(|| Self {
            least: limits.body_bytes_per_second.into(),
            grace: limits.body_stall,
            bytes: 0,
            waited: Duration::ZERO,
            since: None,
        })
    }

    /// The client is waited for, if it is not already.
    pub fn waits(&mut self, now: Instant) {
        self.since.get_or_insert(now);
    }

    /// So much has come.
    pub fn came(&mut self, bytes: usize, now: Instant) -> Result<(), TooSlow> {
        if let Some(since) = self.since.take() {
            self.waited += now.saturating_duration_since(since);
        }
        self.check(bytes)
    }

    /// The same where nobody knows who was waited for: a large part tells that it was not the client,
    /// and so does a pause after which the client would not have been waited for any more.
    pub fn heard(&mut self, bytes: usize, now: Instant) -> Result<(), TooSlow> {
        let pause = self.since.replace(now).map(|since| now.saturating_duration_since(since));
        if let Some(pause) = pause.filter(|pause| bytes < LARGE && *pause <= self.grace) {
            self.waited += pause;
        }
        self.check(bytes)
    }

    fn check(&mut self, bytes: usize) -> Result<(), TooSlow> {
        self.bytes += bytes as u64;
        let earned = Duration::from_millis(self.bytes.saturating_mul(1000) / self.least);
        if self.waited > self.grace.saturating_add(earned) { Err(TooSlow) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: u64 = 120;

    fn pace(least: u32) -> Option<Pace> {
        let limits = config::Limits {
            body_bytes_per_second: least,
            body_stall: Duration::from_secs(GRACE),
            ..config::Limits::default()
        };
        Pace::new(&limits)
    }

    /// After how many seconds a client is cut of which something comes each second.
    fn cut_after(come: impl Fn(&mut Pace, Instant) -> Result<(), TooSlow>) -> u64 {
        let (mut pace, start) = (pace(500).unwrap(), Instant::now());
        (0..100_000)
            .find(|second| come(&mut pace, start + Duration::from_secs(*second)).is_err())
            .unwrap_or(u64::MAX)
    }

    #[test]
    fn attack_11_drop_by_drop_is_too_slow_and_the_least_is_enough() {
        let waited = |bytes: usize| {
            move |pace: &mut Pace, now: Instant| {
                pace.waits(now - Duration::from_secs(1));
                pace.came(bytes, now)
            }
        };
        let heard = |bytes: usize| move |pace: &mut Pace, now: Instant| pace.heard(bytes, now);
        for (bytes, expected) in [(1, 120..=122), (250, 240..=243), (500, u64::MAX..=u64::MAX)] {
            for after in [cut_after(waited(bytes)), cut_after(heard(bytes))] {
                assert!(expected.contains(&after), "{bytes} bytes a second: cut after {after} s");
            }
        }
    }

    #[test]
    fn a_workload_that_takes_its_time_costs_the_client_nothing() {
        let start = Instant::now();
        let at = |minutes: u64| start + Duration::from_secs(60 * minutes);
        let mut pace = pace(500).unwrap();
        for minute in 0..600 {
            // It is there at once, whenever it is asked for.
            pace.came(100, at(minute)).unwrap();
        }
        let mut pace = super::tests::pace(500).unwrap();
        for minute in 0..600 {
            // Large parts, or rarely.
            pace.heard(LARGE, at(minute)).unwrap();
            pace.heard(100, at(minute * 5)).unwrap();
        }
    }

    #[test]
    fn zero_is_no_limit() {
        assert!(pace(0).is_none());
    }
}
