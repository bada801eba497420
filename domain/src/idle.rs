//! The idle verdict: a pure function of what was observed. No data, no stop.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

use crate::activity::Evidence;

/// What the owner and the project decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Sleep after this long without a person's doing; `None` never sleeps.
    pub after: Option<Duration>,
    /// Warn this long before.
    pub warn: Duration,
    /// A gateway whose last answer is older than this is taken for silent.
    pub stale_after: Duration,
}

/// What one gateway said, and when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GatewayReport {
    /// Start of its unbroken memory: the gateway's own start.
    pub remembers_since: Timestamp,
    pub answered_at: Timestamp,
    pub last: Option<Evidence>,
    /// A person's requests being answered when it was asked.
    pub working: u32,
}

/// Everything known of one workload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observations {
    /// Since when it has been ready; `None` while it starts or loads.
    pub ready_since: Option<Timestamp>,
    /// Last wake asked for, and the last activity written down by an earlier controller.
    pub woken_at: Option<Timestamp>,
    pub remembered: Option<Timestamp>,
    /// One per gateway that is expected to exist; `None` for one that does not answer.
    pub gateways: Vec<Option<GatewayReport>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "verdict")]
pub enum Verdict {
    Keep {
        why: KeepReason,
    },
    /// Will sleep at `until` unless somebody does something.
    Warn {
        until: Timestamp,
    },
    Sleep {
        why: SleepReason,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "reason")]
pub enum KeepReason {
    /// Its policy says that it never sleeps.
    NeverSleeps,
    /// It is loading: a start is never cut short.
    NotReady,
    /// An observation is missing, late or from the future: doubt keeps the workload.
    Unknown { missing: Missing },
    /// A person's request is being answered.
    InUse,
    /// Somebody did something; it may sleep at `until` at the earliest.
    RecentlyUsed { until: Timestamp },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Missing {
    NoGateway,
    SilentGateway,
    ClockJumped,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SleepReason {
    /// Nothing that a person did was seen after this.
    pub idle_since: Timestamp,
    /// The last doing itself, when a gateway remembers it.
    pub last: Option<Evidence>,
    /// The time up to which every gateway has been heard: a wake after it wins.
    pub observed_until: Timestamp,
}

/// Longest step ahead of `now` that is put down to clocks that differ, and not to one that jumped.
const CLOCK_TOLERANCE: SignedDuration = SignedDuration::from_secs(5);

pub fn decide(observations: &Observations, policy: &Policy, now: Timestamp) -> Verdict {
    let keep = |why| Verdict::Keep { why };
    let unknown = |missing| keep(KeepReason::Unknown { missing });
    let Some(after) = policy.after else {
        return keep(KeepReason::NeverSleeps);
    };
    let Some(ready_since) = observations.ready_since else {
        return keep(KeepReason::NotReady);
    };
    if observations.gateways.is_empty() {
        return unknown(Missing::NoGateway);
    }

    let mut observed_until = now;
    let mut idle_since = ready_since;
    let mut last: Option<&Evidence> = None;
    for report in &observations.gateways {
        let Some(report) = report else {
            return unknown(Missing::SilentGateway);
        };
        if now.duration_since(report.answered_at) > signed(policy.stale_after) {
            return unknown(Missing::SilentGateway);
        }
        if report.working > 0 {
            return keep(KeepReason::InUse);
        }
        observed_until = observed_until.min(report.answered_at);
        // What happened before a gateway's memory begins is unknown, so it counts as use.
        idle_since = idle_since.max(report.remembers_since);
        if let Some(evidence) = &report.last {
            idle_since = idle_since.max(evidence.at);
            if last.is_none_or(|known| known.at < evidence.at) {
                last = Some(evidence);
            }
        }
    }
    for known in [observations.woken_at, observations.remembered].into_iter().flatten() {
        idle_since = idle_since.max(known);
    }
    if idle_since.duration_since(now) > CLOCK_TOLERANCE {
        return unknown(Missing::ClockJumped);
    }

    // Measured up to what was heard, not up to now: the time in between is unknown.
    let idle_for = observed_until.duration_since(idle_since);
    let until = idle_since.checked_add(signed(after)).unwrap_or(Timestamp::MAX);
    if idle_for >= signed(after) {
        let why = SleepReason { idle_since, last: last.cloned(), observed_until };
        return Verdict::Sleep { why };
    }
    if idle_for.saturating_add(signed(policy.warn)) >= signed(after) && !policy.warn.is_zero() {
        return Verdict::Warn { until };
    }
    keep(KeepReason::RecentlyUsed { until })
}

fn signed(duration: Duration) -> SignedDuration {
    SignedDuration::try_from(duration).unwrap_or(SignedDuration::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::activity::How;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn used(second: i64) -> Option<Evidence> {
        let who = "alice".parse().unwrap();
        Some(Evidence { at: at(second), who, how: How::Http, what: "edit".to_owned() })
    }

    const POLICY: Policy = Policy {
        after: Some(Duration::from_secs(60)),
        warn: Duration::from_secs(10),
        stale_after: Duration::from_secs(15),
    };

    fn report(answered: i64, last: Option<Evidence>) -> Option<GatewayReport> {
        Some(GatewayReport { remembers_since: at(0), answered_at: at(answered), last, working: 0 })
    }

    fn observed(gateways: Vec<Option<GatewayReport>>) -> Observations {
        Observations { ready_since: Some(at(10)), woken_at: None, remembered: None, gateways }
    }

    fn reason(verdict: Verdict) -> KeepReason {
        match verdict {
            Verdict::Keep { why } => why,
            other => panic!("not kept: {other:?}"),
        }
    }

    #[test]
    fn sleeps_only_after_the_whole_time_and_says_since_when() {
        let o = |answered| observed(vec![report(answered, used(100))]);
        assert_eq!(
            reason(decide(&o(149), &POLICY, at(149))),
            KeepReason::RecentlyUsed { until: at(160) }
        );
        assert_eq!(decide(&o(155), &POLICY, at(155)), Verdict::Warn { until: at(160) });
        let Verdict::Sleep { why } = decide(&o(160), &POLICY, at(161)) else { panic!() };
        assert_eq!((why.idle_since, why.observed_until, why.last), (at(100), at(160), used(100)));
    }

    #[test]
    fn doubt_keeps() {
        let silent = observed(vec![report(1000, None), None]);
        let none = observed(vec![]);
        let late = observed(vec![report(980, None)]);
        let future = observed(vec![report(1000, used(2000))]);
        for (observations, missing) in [
            (silent, Missing::SilentGateway),
            (none, Missing::NoGateway),
            (late, Missing::SilentGateway),
            (future, Missing::ClockJumped),
        ] {
            let verdict = decide(&observations, &POLICY, at(1000));
            assert_eq!(reason(verdict), KeepReason::Unknown { missing });
        }
    }

    #[test]
    fn a_gateway_that_restarted_starts_the_time_anew() {
        let mut fresh = report(1000, None).unwrap();
        fresh.remembers_since = at(990);
        let verdict = decide(&observed(vec![Some(fresh)]), &POLICY, at(1000));
        assert_eq!(reason(verdict), KeepReason::RecentlyUsed { until: at(1050) });
    }

    #[test]
    fn work_and_loading_and_wishes_keep() {
        let mut working = report(1000, None).unwrap();
        working.working = 1;
        let verdict = decide(&observed(vec![Some(working)]), &POLICY, at(1000));
        assert_eq!(reason(verdict), KeepReason::InUse);

        let mut loading = observed(vec![report(1000, None)]);
        loading.ready_since = None;
        assert_eq!(reason(decide(&loading, &POLICY, at(1000))), KeepReason::NotReady);

        let mut woken = observed(vec![report(1000, None)]);
        woken.woken_at = Some(at(999));
        assert!(matches!(decide(&woken, &POLICY, at(1000)), Verdict::Keep { .. }));

        let never = Policy { after: None, ..POLICY };
        let verdict = decide(&observed(vec![report(1000, None)]), &never, at(1000));
        assert_eq!(reason(verdict), KeepReason::NeverSleeps);
    }

    proptest! {
        /// Whatever was observed: never asleep within the time after a person's doing that a
        /// gateway knows of, and never with a gateway missing.
        #[test]
        fn nobody_at_work_is_stopped(
            ready in 0i64..2000,
            gateways in prop::collection::vec(
                prop::option::of((0i64..2000, 0i64..2000, prop::option::of(0i64..2000), 0u32..2)), 0..4),
            after in 1u64..500,
            now in 0i64..2000,
        ) {
            let policy = Policy { after: Some(Duration::from_secs(after)), ..POLICY };
            let reports: Vec<_> = gateways.into_iter().map(|g| g.map(|(since, answered, last, working)| {
                GatewayReport {
                    remembers_since: at(since), answered_at: at(answered),
                    last: last.and_then(used), working,
                }
            })).collect();
            let observations = Observations { ready_since: Some(at(ready)), ..observed(reports.clone()) };
            if let Verdict::Sleep { .. } = decide(&observations, &policy, at(now)) {
                prop_assert!(!reports.is_empty());
                for report in &reports {
                    let report = report.as_ref().expect("no stop without every gateway");
                    prop_assert_eq!(report.working, 0);
                    for used in report.last.iter().map(|e| e.at).chain([report.remembers_since, at(ready)]) {
                        prop_assert!(at(now).duration_since(used).as_secs() >= after as i64);
                    }
                }
            }
        }
    }
}
