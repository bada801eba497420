//! Probes: when to ask, and what the answers mean.

pub mod action;

use k8s_openapi::api::core::v1 as core;
use std::time::Duration;

/// How often a readiness probe asks in a container's first second. A server needs a moment to listen, and a whole
/// period for the sake of that moment would be long; these answers count only when they are good.
pub const EAGER_PERIOD: Duration = Duration::from_millis(100);
/// How long [`EAGER_PERIOD`] applies.
pub const EAGER_FOR: Duration = Duration::from_secs(1);

/// A probe's times and thresholds, with Kubernetes' defaults for what is not given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    pub initial_delay: Duration,
    pub period: Duration,
    pub timeout: Duration,
    pub success_threshold: u32,
    pub failure_threshold: u32,
}

impl Timing {
    pub fn of(probe: &core::Probe) -> Self {
        let seconds = |value: Option<i32>, default: u64, least: u64| {
            Duration::from_secs(
                value
                    .and_then(|v| u64::try_from(v).ok())
                    .filter(|&v| v >= least)
                    .unwrap_or(default),
            )
        };
        let times = |value: Option<i32>, default: u32| {
            value.and_then(|v| u32::try_from(v).ok()).filter(|&v| v >= 1).unwrap_or(default)
        };
        Self {
            initial_delay: seconds(probe.initial_delay_seconds, 0, 0),
            period: seconds(probe.period_seconds, 10, 1),
            timeout: seconds(probe.timeout_seconds, 1, 1),
            success_threshold: times(probe.success_threshold, 1),
            failure_threshold: times(probe.failure_threshold, 3),
        }
    }
}

/// The answers of one probe so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Answers {
    run: Option<(bool, u32)>,
}

impl Answers {
    /// Takes one answer in; `Some` once as many in a row as the threshold says agree.
    pub fn observe(&mut self, good: bool, timing: &Timing) -> Option<bool> {
        let length = match self.run {
            Some((last, length)) if last == good => length.saturating_add(1),
            _ => 1,
        };
        self.run = Some((good, length));
        let threshold = if good { timing.success_threshold } else { timing.failure_threshold };
        (length >= threshold).then_some(good)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn timing(success: u32, failure: u32) -> Timing {
        Timing {
            success_threshold: success,
            failure_threshold: failure,
            ..Timing::of(&core::Probe::default())
        }
    }

    #[test]
    fn defaults_are_kubernetes_own() {
        let timing = Timing::of(&core::Probe { period_seconds: Some(0), ..core::Probe::default() });
        assert_eq!(
            (timing.period.as_secs(), timing.timeout.as_secs(), timing.initial_delay.as_secs()),
            (10, 1, 0)
        );
        assert_eq!((timing.success_threshold, timing.failure_threshold), (1, 3));
    }

    #[test]
    fn only_answers_in_a_row_count() {
        let timing = timing(1, 3);
        let mut answers = Answers::default();
        let verdicts: Vec<_> = [false, false, true, false, false, false, true]
            .map(|good| answers.observe(good, &timing))
            .into();
        assert_eq!(verdicts, [None, None, Some(true), None, None, Some(false), Some(true)]);
    }

    proptest! {
        #[test]
        fn a_verdict_is_the_last_answers(
            stream in prop::collection::vec(any::<bool>(), 1..60), success in 1u32..4, failure in 1u32..4
        ) {
            let timing = timing(success, failure);
            let mut answers = Answers::default();
            for (i, &good) in stream.iter().enumerate() {
                let needed = if good { success } else { failure } as usize;
                let agrees = i + 1 >= needed && stream[i + 1 - needed..=i].iter().all(|&g| g == good);
                prop_assert_eq!(answers.observe(good, &timing), agrees.then_some(good));
            }
        }
    }
}
