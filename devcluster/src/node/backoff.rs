//! When a container that ended may start again, as a kubelet decides it: the first restart is immediate, then 10 s,
//! doubling to 5 min; a container that ran for 10 min is forgiven.

use jiff::{SignedDuration, Timestamp};

pub const FIRST: SignedDuration = SignedDuration::from_secs(10);
pub const LONGEST: SignedDuration = SignedDuration::from_mins(5);
/// After this long without a restart the delay begins anew.
pub const FORGIVEN: SignedDuration = SignedDuration::from_mins(10);

/// The restarts of one container.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Backoff {
    last: Option<Last>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Last {
    delay: SignedDuration,
    restarted: Timestamp,
}

impl Backoff {
    /// The container ended at `ended`: how long after that it has to wait. Zero at its first end.
    pub fn delay(&self, ended: Timestamp) -> SignedDuration {
        match self.last {
            Some(last) if ended.duration_since(last.restarted) <= FORGIVEN => last.delay,
            _ => SignedDuration::ZERO,
        }
    }

    /// The container, which ended at `ended`, is started again at `now`.
    pub fn restarted(&mut self, ended: Timestamp, now: Timestamp) {
        let delay = match self.last {
            Some(last) if ended.duration_since(last.restarted) <= FORGIVEN => {
                last.delay.saturating_mul(2).min(LONGEST)
            }
            _ => FIRST,
        };
        self.last = Some(Last { delay, restarted: now });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + seconds).unwrap()
    }

    #[test]
    fn the_first_restart_is_immediate_and_the_next_ones_double() {
        let mut backoff = Backoff::default();
        let mut now = 0;
        let mut delays = Vec::new();
        for _ in 0..8 {
            let delay = backoff.delay(at(now)).as_secs();
            delays.push(delay);
            let ended = now;
            now += delay;
            backoff.restarted(at(ended), at(now));
            now += 1;
        }
        assert_eq!(delays, [0, 10, 20, 40, 80, 160, 300, 300]);
    }

    #[test]
    fn a_long_run_is_forgiven() {
        let mut backoff = Backoff::default();
        backoff.restarted(at(0), at(0));
        backoff.restarted(at(1), at(11));
        assert_eq!(backoff.delay(at(611)).as_secs(), 20);
        assert_eq!(backoff.delay(at(612)).as_secs(), 0);
        backoff.restarted(at(612), at(612));
        assert_eq!(backoff.delay(at(613)).as_secs(), 10);
    }

    proptest! {
        #[test]
        fn a_delay_is_never_past_the_longest(runs in prop::collection::vec(0i64..2000, 0..40)) {
            let mut backoff = Backoff::default();
            let mut now = 0;
            for run in runs {
                let ended = now + run;
                let delay = backoff.delay(at(ended));
                prop_assert!(delay <= LONGEST && delay >= SignedDuration::ZERO);
                now = ended + delay.as_secs();
                backoff.restarted(at(ended), at(now));
            }
        }
    }
}
