//! How soon a watch that failed is tried again. Pure: the randomness is a parameter.

use std::time::Duration;

/// Why a watch or a list failed, as far as it matters for the pause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// 410: the version that the watch began at is not known any more. No failure, but a reason to list.
    Expired,
    /// The API server answered with an error, or with what cannot be read.
    Answered { retry_after: Option<Duration> },
    /// No answer: nobody listens, the connection broke, or a deadline passed.
    Unreached,
}

const FIRST: Duration = Duration::from_millis(100);
/// While the API server starts anew it answers 503, 403 and 429 for seconds, and each means "soon".
const CAP: Duration = Duration::from_secs(2);
/// After so many errors in a row, about a minute of them, it is no restart: a right is missing, for one.
const PATIENCE: u32 = 30;
const CAP_IMPATIENT: Duration = Duration::from_secs(15);
/// A longer `retryAfterSeconds` is cut to this.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(5);

/// The pauses of one watch; no two watches share them.
#[derive(Debug, Default)]
pub struct Pauses {
    failures: u32,
    /// Of those, the last ones that the API server answered, in a row.
    answered: u32,
    /// A 410 came, and no watch has worked since.
    expired: bool,
}

impl Pauses {
    /// The pause after a failure. `spread` in `0.0..1.0` keeps clients from coming back all at once.
    pub fn failed(&mut self, cause: Cause, spread: f64) -> Duration {
        if cause == Cause::Expired && !std::mem::replace(&mut self.expired, true) {
            return Duration::ZERO;
        }
        self.failures = self.failures.saturating_add(1);
        self.answered = match cause {
            Cause::Unreached => 0,
            _ => self.answered.saturating_add(1),
        };
        let cap = if self.answered < PATIENCE { CAP } else { CAP_IMPATIENT };
        let doublings = (self.failures - 1).min(16);
        let pause = (FIRST * 2u32.pow(doublings)).min(cap).mul_f64(0.5 + spread / 2.0);
        match cause {
            Cause::Answered { retry_after: Some(after) } => pause.max(after.min(RETRY_AFTER_MAX)),
            _ => pause,
        }
    }

    /// A watch has worked: the next failure is the first one.
    pub fn works(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const REFUSED: Cause = Cause::Answered { retry_after: None };

    fn cause() -> impl Strategy<Value = Cause> {
        let after = prop::option::of((0u64..100).prop_map(Duration::from_secs));
        prop_oneof![
            Just(Cause::Expired),
            Just(Cause::Unreached),
            after.prop_map(|retry_after| Cause::Answered { retry_after }),
        ]
    }

    #[test]
    fn an_expired_version_is_listed_at_once_but_not_again_and_again() {
        let mut pauses = Pauses::default();
        for _ in 0..5 {
            pauses.failed(REFUSED, 0.5);
        }
        assert_eq!(pauses.failed(Cause::Expired, 0.5), Duration::ZERO);
        assert!(pauses.failed(Cause::Expired, 0.5) > Duration::ZERO, "no loop without a pause");
        pauses.works();
        assert_eq!(pauses.failed(Cause::Expired, 0.5), Duration::ZERO);
    }

    #[test]
    fn what_the_server_asks_for_is_honoured_within_bounds() {
        let after = |seconds| Cause::Answered { retry_after: Some(Duration::from_secs(seconds)) };
        assert_eq!(Pauses::default().failed(after(1), 0.0), Duration::from_secs(1));
        assert_eq!(Pauses::default().failed(after(600), 0.0), RETRY_AFTER_MAX);
    }

    #[test]
    fn a_server_that_is_away_for_long_is_found_within_two_seconds() {
        let mut pauses = Pauses::default();
        let longest = (0..1000).map(|_| pauses.failed(Cause::Unreached, 0.999)).max().unwrap();
        assert!(longest <= CAP);
        assert!(pauses.failed(REFUSED, 0.999) <= CAP, "its first answers are no verdict");
    }

    #[test]
    fn a_right_that_is_missing_is_not_asked_for_all_the_time() {
        let mut pauses = Pauses::default();
        let last = (0..100).map(|_| pauses.failed(REFUSED, 0.0)).last().unwrap();
        assert!(last > CAP && last <= CAP_IMPATIENT);
    }

    proptest! {
        #[test]
        fn every_pause_is_bounded_and_only_one_between_two_that_work_is_none(
            causes in prop::collection::vec((cause(), 0.0f64..1.0), 1..200),
        ) {
            let mut pauses = Pauses::default();
            let took: Vec<_> = causes.iter().map(|(cause, spread)| pauses.failed(*cause, *spread)).collect();
            prop_assert!(took.iter().all(|pause| *pause <= CAP_IMPATIENT));
            prop_assert!(took.iter().filter(|pause| pause.is_zero()).count() <= 1);
        }
    }
}
