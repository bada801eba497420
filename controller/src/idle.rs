//! Gathers, decides, and writes down what was decided and why.

use std::{collections::HashMap, sync::Arc, time::Duration};

use cluster::resources::{IdleStatus, LastActivity, Phase, WorkloadResource};
use domain::{
    activity::Evidence,
    idle::{KeepReason, Missing, Observations, Policy, Verdict, decide},
    workload::WorkloadRef,
};
use jiff::{SignedDuration, Timestamp, Unit};
use kube::{
    Api,
    api::{Patch, PatchParams},
    runtime::reflector::{ObjectRef, Store},
};
use runtime::{
    audit::{Event, Outcome},
    service::Context,
};
use serde_json::json;
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::{Shared, Stores, gather::Gateway, status::announce};

/// How old an answer may be, in gathering intervals, before its gateway counts as silent.
const STALE_INTERVALS: u32 = 3;
/// The longest that one verdict may take to be written.
const JUDGE: Duration = Duration::from_secs(10);
/// Activity is written to the cluster at most this often per workload.
const WRITE_EVERY: SignedDuration = SignedDuration::from_secs(30);

/// Verdicts that could not be written yet, or of which nobody knows whether they were: each with the
/// sleep in it.
type Unwritten = HashMap<WorkloadRef, Option<Sleep>>;

#[derive(Debug, Clone)]
struct Sleep {
    at: Timestamp,
    why: String,
}

pub async fn run(shared: Arc<Shared>, stores: Stores, http: reqwest::Client, ctx: Context) {
    let mut gateways: Vec<Gateway> =
        shared.config.gateways.iter().cloned().map(Gateway::new).collect();
    let mut ticks = interval(shared.config.idle.gather_every.max(Duration::from_millis(100)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut unwritten = Unwritten::new();
    loop {
        tokio::select! {
            () = ctx.shutdown.cancelled() => return,
            _ = ticks.tick() => {}
        }
        ask_all(&mut gateways, &http, &shared).await;
        // A wake could have been missed, and a sleep would not be carried out.
        let blind = shared.watches.blind_since().is_some() || !shared.held.now();
        if !blind {
            judge_all(&stores.workspaces, &gateways, &mut unwritten, &shared, &ctx).await;
            judge_all(&stores.apps, &gateways, &mut unwritten, &shared, &ctx).await;
        }
        unwritten.retain(|workload, _| stores.contains(workload));
        shared.rivals.retain(|workload| stores.contains(workload));
        shared.metrics.unwritten.set(i64::try_from(unwritten.len()).unwrap_or(i64::MAX));
        shared.metrics.verdicts_paused.set(blind.into());
        for gateway in &mut gateways {
            gateway.retain(|workload| stores.contains(workload));
        }
    }
}

async fn ask_all(gateways: &mut [Gateway], http: &reqwest::Client, shared: &Shared) {
    let answers = gateways.iter_mut().map(|gateway| gateway.ask(http));
    let answers = futures::future::join_all(answers).await;
    let silent = answers.iter().filter(|answered| !**answered).count();
    shared.metrics.silent_gateways.set(i64::try_from(silent).unwrap_or(i64::MAX));
}

impl Stores {
    fn contains(&self, workload: &WorkloadRef) -> bool {
        let (project, name) = (workload.project.as_str(), workload.name.as_str());
        match workload.kind {
            domain::workload::WorkloadKind::Workspace => {
                self.workspaces.get(&ObjectRef::new(name).within(project)).is_some()
            }
            domain::workload::WorkloadKind::App => {
                self.apps.get(&ObjectRef::new(name).within(project)).is_some()
            }
        }
    }
}

async fn judge_all<W: WorkloadResource>(
    store: &Store<W>,
    gateways: &[Gateway],
    unwritten: &mut Unwritten,
    shared: &Shared,
    ctx: &Context,
) where
    ObjectRef<W>: std::hash::Hash,
{
    // Only what runs is looked at: the sleeping cost nothing.
    let running = |object: &Arc<W>| {
        let phase = object.status().and_then(|status| status.phase);
        matches!(phase, Some(Phase::Running | Phase::Starting)) && !object.is_asleep()
    };
    for object in store.state() {
        let Some(workload) = object.workload() else { continue };
        // The answer to a sleep was lost, and the sleep was not.
        if let Some(Some(sleep)) = unwritten.get(&workload)
            && object.status().and_then(|status| status.sleep_at) == Some(sleep.at)
        {
            put_to_sleep(object.as_ref(), &workload, &sleep.why, shared, ctx, sleep.at).await;
            unwritten.remove(&workload);
        }
        if !running(&object) {
            unwritten.remove(&workload);
            continue;
        }
        // Anew for each: when the ones before it took long, the observations have grown old, and an
        // old observation puts nothing to sleep.
        let now = Timestamp::now();
        let mut sleep = None;
        let judging = judge(object.as_ref(), &workload, gateways, shared, ctx, now, &mut sleep);
        let error = match timeout(JUDGE, judging).await {
            Ok(Ok(())) => {
                if unwritten.remove(&workload).is_some() {
                    tracing::info!(%workload, "verdicts are written again");
                }
                continue;
            }
            Ok(Err(error)) => cluster::watch::told(&error),
            // One slow answer must not make the others' observations old.
            Err(_) => "the API server did not answer in time".to_owned(),
        };
        if unwritten.insert(workload.clone(), sleep).is_none() {
            tracing::warn!(error, %workload, "a verdict could not be written; trying again");
        } else {
            tracing::debug!(error, %workload, "a verdict could still not be written");
        }
    }
}

/// Writes the verdict. `asked` holds the sleep that was asked for, also when no answer to it comes.
async fn judge<W: WorkloadResource>(
    object: &W,
    workload: &WorkloadRef,
    gateways: &[Gateway],
    shared: &Shared,
    ctx: &Context,
    now: Timestamp,
    asked: &mut Option<Sleep>,
) -> kube::Result<()> {
    let status = object.status().cloned().unwrap_or_default();
    let policy = policy(object, shared);
    let observations = Observations {
        ready_since: status.ready_since,
        woken_at: object.woken_at(),
        remembered: status.last_activity.as_ref().map(|last| last.at),
        gateways: gateways.iter().map(|gateway| gateway.report(workload)).collect(),
    };
    let verdict = decide(&observations, &policy, now);
    let reports = observations.gateways.iter().flatten();
    let last = reports.filter_map(|report| report.last.as_ref()).max_by_key(|last| last.at);
    let idle = explain(&verdict, status.idle.as_ref(), now);
    let activity = newer_activity(status.last_activity.as_ref(), last, &policy);
    shared.metrics.verdicts.with_label_values(&[idle.verdict.as_str()]).inc();

    let mut changes = serde_json::Map::new();
    if status.idle.as_ref() != Some(&idle) {
        changes.insert("idle".to_owned(), json!(idle));
    }
    if let Some(activity) = activity {
        changes.insert("lastActivity".to_owned(), json!(activity));
    }
    if let Verdict::Sleep { why } = &verdict {
        changes.insert("sleepAt".to_owned(), json!(why.observed_until));
        *asked = Some(Sleep { at: why.observed_until, why: idle.message.clone() });
    }
    if changes.is_empty() {
        return Ok(());
    }
    // A Project may have changed hands a moment ago.
    if !shared.config.scope.holds(&shared.client, workload.project.as_str()).await? {
        *asked = None;
        return Ok(());
    }
    // With the version that was judged: a wake that was written meanwhile makes this fail, and the
    // next round sees it.
    let version = object.meta().resource_version.clone();
    let patch = json!({"metadata": {"resourceVersion": version}, "status": changes});
    let api: Api<W> = Api::namespaced(shared.client.clone(), workload.project.as_str());
    let written = api
        .patch_status(workload.name.as_str(), &PatchParams::default(), &Patch::Merge(patch))
        .await;
    match written {
        Ok(_) => {}
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => return Ok(()),
        Err(error) => return Err(error),
    }
    if let Some(sleep) = asked {
        put_to_sleep(object, workload, &sleep.why, shared, ctx, now).await;
    }
    Ok(())
}

/// Tells of a sleep that is written.
async fn put_to_sleep<W: WorkloadResource>(
    object: &W,
    workload: &WorkloadRef,
    why: &str,
    shared: &Shared,
    ctx: &Context,
    at: Timestamp,
) {
    shared.metrics.sleeps.inc();
    let target = workload.to_string();
    ctx.audit.record(
        at,
        Event {
            who: None,
            did: "put-to-sleep",
            to: Some(&target),
            from: None,
            credential: None,
            outcome: Outcome::Allowed,
            detail: Some(why),
        },
    );
    tracing::info!(%workload, why, "put to sleep");
    announce(object, shared, "PutToSleep", why.to_owned(), false).await;
}

fn policy<W: WorkloadResource>(object: &W, shared: &Shared) -> Policy {
    let config = &shared.config.idle;
    // A text that cannot be read never sleeps, like `never`.
    let after = match &object.idle().after {
        Some(text) => text.duration(),
        None => Some(config.after),
    };
    Policy {
        after,
        warn: config.warn_before.min(after.unwrap_or_default() / 2),
        stale_after: config.gather_every * STALE_INTERVALS + Duration::from_secs(2),
    }
}

/// What is worth writing down: a newer doing, not more often than people can tell.
fn newer_activity(
    written: Option<&LastActivity>,
    seen: Option<&Evidence>,
    policy: &Policy,
) -> Option<LastActivity> {
    let seen = seen?;
    let quarter = policy.after.and_then(|after| SignedDuration::try_from(after / 4).ok());
    let pause = quarter.map_or(WRITE_EVERY, |quarter| quarter.min(WRITE_EVERY));
    if written.is_some_and(|written| seen.at.duration_since(written.at) < pause) {
        return None;
    }
    Some(LastActivity {
        at: seen.at,
        who: seen.who.to_string(),
        how: format!("{:?}", seen.how),
        what: seen.what.clone(),
    })
}

/// The verdict in words. Times are rounded so that it stays the same while nothing happens.
fn explain(verdict: &Verdict, before: Option<&IdleStatus>, now: Timestamp) -> IdleStatus {
    let time = |at: &Timestamp| at.round(Unit::Second).unwrap_or(*at).to_string();
    let (verdict, reason, message) = match verdict {
        Verdict::Keep { why } => {
            let (reason, message) = match why {
                KeepReason::NeverSleeps => ("NeverSleeps", "It is set to never sleep".to_owned()),
                KeepReason::NotReady => ("NotReady", "It is starting".to_owned()),
                KeepReason::InUse => ("InUse", "A person's request is being answered".to_owned()),
                KeepReason::RecentlyUsed { .. } => (
                    "RecentlyUsed",
                    "Somebody used it lately, or it has only just started".to_owned(),
                ),
                KeepReason::Unknown { missing } => (
                    "Unknown",
                    match missing {
                        Missing::NoGateway => {
                            "No gateway is configured, so nobody knows whether it is in use"
                        }
                        Missing::SilentGateway => {
                            "A gateway does not answer, so nobody knows whether it is in use"
                        }
                        Missing::ClockJumped => {
                            "An activity lies in the future: a clock has jumped"
                        }
                    }
                    .to_owned(),
                ),
            };
            ("Keep", reason, message)
        }
        Verdict::Warn { until } => (
            "Warn",
            "Unused",
            format!("Unused: it sleeps at {} unless somebody uses it", time(until)),
        ),
        Verdict::Sleep { why } => {
            let message = match &why.last {
                Some(last) => format!(
                    "Unused since {}, when {} last {} ({:?})",
                    time(&why.idle_since),
                    last.who,
                    last.what,
                    last.how
                ),
                None => format!("Unused since {}", time(&why.idle_since)),
            };
            ("Sleep", "Unused", message)
        }
    };
    let same =
        before.filter(|b| b.verdict == verdict && b.reason == reason && b.message == message);
    IdleStatus {
        since: same.map_or(now, |before| before.since),
        verdict: verdict.to_owned(),
        reason: reason.to_owned(),
        message,
    }
}

#[cfg(test)]
mod tests {
    use domain::{activity::How, idle::SleepReason};

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn used(second: i64) -> Evidence {
        let who = "alice".parse().unwrap();
        Evidence {
            at: at(second),
            who,
            how: How::WebSocket,
            what: "typed in a terminal".to_owned(),
        }
    }

    #[test]
    fn a_sleep_says_who_did_what_last() {
        let why = SleepReason { idle_since: at(0), last: Some(used(0)), observed_until: at(1800) };
        let told = explain(&Verdict::Sleep { why }, None, at(1801));
        assert_eq!(
            told.message,
            "Unused since 1970-01-01T00:00:00Z, when alice last typed in a terminal (WebSocket)"
        );
    }

    #[test]
    fn an_unchanged_verdict_is_not_written_again() {
        let keep = |until| Verdict::Keep { why: KeepReason::RecentlyUsed { until: at(until) } };
        let first = explain(&keep(100), None, at(1));
        assert_eq!(explain(&keep(105), Some(&first), at(6)), first);
        let warned = explain(&Verdict::Warn { until: at(105) }, Some(&first), at(7));
        assert_eq!(warned.since, at(7));
    }

    #[test]
    fn activity_is_written_sparingly() {
        let policy = Policy {
            after: Some(Duration::from_secs(1800)),
            warn: Duration::ZERO,
            stale_after: Duration::ZERO,
        };
        let first = newer_activity(None, Some(&used(100)), &policy).unwrap();
        assert_eq!(newer_activity(Some(&first), Some(&used(120)), &policy), None);
        assert!(newer_activity(Some(&first), Some(&used(130)), &policy).is_some());
        assert_eq!(newer_activity(Some(&first), None, &policy), None);
    }
}
