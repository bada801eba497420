//! What a Job must do next: a pure function of the job and its pods.
//!
//! Pods are counted once though any step may be repeated after a crash: an ended pod keeps a
//! finalizer until its uid is in `status.uncountedTerminatedPods`, and moves from there into the
//! counters when the finalizer is gone. Failure policies by index or exit code are not followed.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::{Job, JobCondition, JobStatus, UncountedTerminatedPods};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::indexes;
use super::pod::{index, is_indexed, is_tracked};
use crate::controllers::events::Note;
use crate::controllers::pods::{self, sooner};

const FIRST_BACKOFF: SignedDuration = SignedDuration::from_secs(10);
const LAST_BACKOFF: SignedDuration = SignedDuration::from_secs(600);

#[derive(Debug, Default)]
pub struct Plan {
    pub status: JobStatus,
    /// Pods to create: for which index, if the job is indexed.
    pub create: Vec<Option<u32>>,
    pub delete: Vec<Arc<Pod>>,
    /// Pods that are in the status now: their finalizer goes once the status is written.
    pub release: Vec<Arc<Pod>>,
    pub notes: Vec<Note>,
    /// Its time after the end is over: the job itself goes.
    pub expire: bool,
    pub again: Option<Duration>,
}

/// `pods` are the job's own.
pub fn plan(job: &Job, pods: &[Arc<Pod>], now: Timestamp) -> Plan {
    let before = job.status.clone().unwrap_or_default();
    let mut plan = Plan { status: before.clone(), ..Plan::default() };
    let tracked = || pods.iter().filter(|pod| is_tracked(pod));
    if job.metadata.deletion_timestamp.is_some() {
        plan.release = tracked().filter(|pod| !pods::is_active(pod)).cloned().collect();
        return plan;
    }
    if is_over(&before) {
        plan.delete = pods.iter().filter(|pod| pods::is_active(pod)).cloned().collect();
        plan.release = tracked().cloned().collect();
        expire(job, &mut plan, now);
        return plan;
    }
    let tally = count(job, &before, pods, &mut plan);
    let suspended = job.spec.as_ref().and_then(|spec| spec.suspend) == Some(true);
    if !suspended && plan.status.start_time.is_none() {
        plan.status.start_time = Some(Time(now));
    }
    judge(job, &tally, &mut plan, now);
    let ending = ["FailureTarget", "SuccessCriteriaMet"]
        .into_iter()
        .find(|type_| holds(&plan.status, type_));
    if let Some(ending) = ending {
        plan.delete.clone_from(&tally.active);
        let quiet = tally.active.is_empty() && tally.terminating == 0 && tally.uncounted == 0;
        if quiet {
            finish(&mut plan, ending, now);
        }
    } else if suspended {
        plan.delete.clone_from(&tally.active);
        suspend(&mut plan, true, now);
    } else {
        suspend(&mut plan, false, now);
        staff(job, pods, &tally, &mut plan, now);
    }
    let some = |count: usize| Some(i32::try_from(count).unwrap_or(i32::MAX));
    let ready = tally.active.iter().filter(|pod| pods::is_ready(pod)).count();
    plan.status.active = some(tally.active.len()).filter(|count| *count > 0);
    plan.status.ready = some(ready);
    plan.status.terminating = some(tally.terminating);
    plan
}

/// The job as it is now, with ended pods that are not in the counters yet.
struct Tally {
    active: Vec<Arc<Pod>>,
    terminating: usize,
    uncounted: usize,
    succeeded: usize,
    failed: usize,
    completed: BTreeSet<u32>,
}

fn completions(job: &Job) -> Option<usize> {
    job.spec
        .as_ref()
        .and_then(|spec| spec.completions)
        .map(|count| usize::try_from(count).unwrap_or(0))
}

fn is_failed(pod: &Pod) -> bool {
    pods::phase(pod) == "Failed" || (pods::is_terminating(pod) && pods::phase(pod) != "Succeeded")
}

fn count(job: &Job, before: &JobStatus, pods: &[Arc<Pod>], plan: &mut Plan) -> Tally {
    let held = before.uncounted_terminated_pods.clone().unwrap_or_default();
    let (mut succeeded, mut failed) = (before.succeeded.unwrap_or(0), before.failed.unwrap_or(0));
    let still = |uid: &String| {
        pods.iter().any(|pod| pod.metadata.uid.as_ref() == Some(uid) && is_tracked(pod))
    };
    // Their finalizer is gone: into the counters.
    let settle = |uids: Option<Vec<String>>, counter: &mut i32| {
        let (waiting, settled): (Vec<_>, Vec<_>) =
            uids.unwrap_or_default().into_iter().partition(still);
        *counter = counter.saturating_add(i32::try_from(settled.len()).unwrap_or(i32::MAX));
        waiting
    };
    let mut uncounted_succeeded = settle(held.succeeded, &mut succeeded);
    let mut uncounted_failed = settle(held.failed, &mut failed);
    let below = u32::try_from(completions(job).unwrap_or(0)).unwrap_or(u32::MAX);
    let mut completed =
        indexes::parse(before.completed_indexes.as_deref().unwrap_or_default(), below);
    for pod in pods.iter().filter(|pod| is_tracked(pod)) {
        let Some(uid) = &pod.metadata.uid else { continue };
        if pods::phase(pod) == "Succeeded" {
            completed.extend(index(pod).filter(|index| *index < below));
            if !uncounted_succeeded.contains(uid) {
                uncounted_succeeded.push(uid.clone());
            }
        } else if is_failed(pod) {
            if !uncounted_failed.contains(uid) {
                uncounted_failed.push(uid.clone());
            }
        } else {
            continue;
        }
        plan.release.push(pod.clone());
    }
    let whole = |counted: i32, uncounted: &[String]| {
        usize::try_from(counted).unwrap_or(0) + uncounted.len()
    };
    let indexed = is_indexed(job);
    let all_succeeded =
        if indexed { completed.len() } else { whole(succeeded, &uncounted_succeeded) };
    let tally = Tally {
        active: pods.iter().filter(|pod| pods::is_active(pod)).cloned().collect(),
        terminating: pods
            .iter()
            .filter(|pod| pods::is_terminating(pod) && !pods::is_finished(pod))
            .count(),
        uncounted: uncounted_succeeded.len() + uncounted_failed.len(),
        succeeded: all_succeeded,
        failed: whole(failed, &uncounted_failed),
        completed,
    };
    let status = &mut plan.status;
    if indexed {
        status.completed_indexes =
            Some(indexes::write(&tally.completed)).filter(|text| !text.is_empty());
        succeeded = i32::try_from(tally.completed.len()).unwrap_or(i32::MAX);
    }
    status.succeeded = Some(succeeded).filter(|count| *count > 0);
    status.failed = Some(failed).filter(|count| *count > 0);
    let list = |uids: Vec<String>| Some(uids).filter(|uids| !uids.is_empty());
    status.uncounted_terminated_pods = Some(UncountedTerminatedPods {
        succeeded: list(uncounted_succeeded),
        failed: list(uncounted_failed),
    });
    tally
}

/// Decides whether the job has succeeded or failed; its pods then go before it is over.
fn judge(job: &Job, tally: &Tally, plan: &mut Plan, now: Timestamp) {
    if holds(&plan.status, "FailureTarget") || holds(&plan.status, "SuccessCriteriaMet") {
        return;
    }
    let Some(spec) = &job.spec else { return };
    let limit = usize::try_from(spec.backoff_limit.unwrap_or(6)).unwrap_or(0);
    let restarts_in_place = spec.template.spec.as_ref().and_then(|it| it.restart_policy.as_deref())
        == Some("OnFailure");
    let restarts =
        if restarts_in_place { tally.active.iter().map(|pod| restarts(pod)).sum() } else { 0 };
    let exceeded = tally.failed > limit || (restarts > 0 && restarts >= limit.max(1));
    let complete = match completions(job) {
        Some(wanted) => tally.succeeded >= wanted,
        // A work queue: one success, and the others end by themselves.
        None => tally.succeeded > 0 && tally.active.is_empty(),
    };
    if exceeded && !complete {
        let message = "Job has reached the specified backoff limit";
        condition(&mut plan.status, "FailureTarget", "BackoffLimitExceeded", message, now);
        plan.notes.push(Note::warning("BackoffLimitExceeded", message));
        return;
    }
    if complete {
        let message = "Reached expected number of succeeded pods";
        condition(&mut plan.status, "SuccessCriteriaMet", "CompletionsReached", message, now);
        return;
    }
    let deadline = spec.active_deadline_seconds.filter(|_| spec.suspend != Some(true));
    if let (Some(seconds), Some(start)) = (deadline, &plan.status.start_time) {
        match remaining(start.0, seconds, now) {
            Some(left) => plan.again = sooner(plan.again, Some(left)),
            None => {
                let message = "Job was active longer than specified deadline";
                condition(&mut plan.status, "FailureTarget", "DeadlineExceeded", message, now);
                plan.notes.push(Note::warning("DeadlineExceeded", message));
            }
        }
    }
}

fn restarts(pod: &Pod) -> usize {
    let status = pod.status.as_ref();
    let all = status.into_iter().flat_map(|status| {
        status
            .init_container_statuses
            .iter()
            .flatten()
            .chain(status.container_statuses.iter().flatten())
    });
    all.map(|container| usize::try_from(container.restart_count).unwrap_or(0)).sum()
}

/// Creates what is missing, deletes what is too much.
fn staff(job: &Job, pods: &[Arc<Pod>], tally: &Tally, plan: &mut Plan, now: Timestamp) {
    let parallelism = job.spec.as_ref().and_then(|spec| spec.parallelism).unwrap_or(1);
    let parallelism = usize::try_from(parallelism).unwrap_or(0);
    let active = tally.active.len();
    let wanted = match completions(job) {
        Some(completions) => parallelism.min(completions.saturating_sub(tally.succeeded)),
        None if tally.succeeded > 0 => active.min(parallelism),
        None => parallelism,
    };
    if active > wanted {
        let mut surplus = tally.active.clone();
        surplus.sort_by_key(|pod| {
            let created = pod.metadata.creation_timestamp.as_ref().map(|at| at.0);
            (pods::is_ready(pod), std::cmp::Reverse(created))
        });
        surplus.truncate(active - wanted);
        plan.delete = surplus;
        return;
    }
    // `Failed`: a terminating pod is replaced only when it has ended.
    let patient =
        job.spec.as_ref().and_then(|spec| spec.pod_replacement_policy.as_deref()) == Some("Failed");
    let missing = (wanted - active).saturating_sub(if patient { tally.terminating } else { 0 });
    if missing == 0 {
        return;
    }
    if let Some(wait) = backoff(pods, now) {
        plan.again = sooner(plan.again, Some(wait));
        return;
    }
    if !is_indexed(job) {
        plan.create = vec![None; missing];
        return;
    }
    let taken: BTreeSet<u32> = tally.active.iter().filter_map(|pod| index(pod)).collect();
    let all = 0..u32::try_from(completions(job).unwrap_or(0)).unwrap_or(u32::MAX);
    let free = all.filter(|index| !tally.completed.contains(index) && !taken.contains(index));
    plan.create = free.take(missing).map(Some).collect();
}

/// How long to wait after the latest failures: 10 s, doubled by each failure since the last success.
fn backoff(pods: &[Arc<Pod>], now: Timestamp) -> Option<Duration> {
    let ended = |phase: &'static str| {
        pods.iter().filter(move |pod| pods::phase(pod) == phase).filter_map(|pod| end(pod))
    };
    let success = ended("Succeeded").max();
    let failures: Vec<Timestamp> =
        ended("Failed").filter(|at| success.is_none_or(|success| *at > success)).collect();
    let last = failures.iter().max()?;
    let doublings = u32::try_from(failures.len() - 1).unwrap_or(u32::MAX).min(10);
    let delay = (FIRST_BACKOFF * (1 << doublings)).min(LAST_BACKOFF);
    Duration::try_from(delay - now.duration_since(*last)).ok().filter(|left| !left.is_zero())
}

fn end(pod: &Pod) -> Option<Timestamp> {
    let statuses = pod
        .status
        .as_ref()
        .and_then(|status| status.container_statuses.as_deref())
        .unwrap_or_default();
    let ended = statuses
        .iter()
        .filter_map(|status| status.state.as_ref()?.terminated.as_ref()?.finished_at.as_ref());
    let created = pod.metadata.creation_timestamp.as_ref();
    ended.max().or(created).map(|at| at.0)
}

fn remaining(since: Timestamp, seconds: i64, now: Timestamp) -> Option<Duration> {
    let left = SignedDuration::from_secs(seconds.max(0)) - now.duration_since(since);
    Duration::try_from(left).ok().filter(|left| !left.is_zero())
}

fn finish(plan: &mut Plan, ending: &str, now: Timestamp) {
    let held = plan
        .status
        .conditions
        .iter()
        .flatten()
        .find(|it| it.type_ == ending)
        .cloned()
        .unwrap_or_default();
    let (reason, message) = (held.reason.unwrap_or_default(), held.message.unwrap_or_default());
    if ending == "FailureTarget" {
        condition(&mut plan.status, "Failed", &reason, &message, now);
    } else {
        condition(&mut plan.status, "Complete", &reason, &message, now);
        plan.status.completion_time = Some(Time(now));
        plan.notes.push(Note::normal("Completed", "Job completed"));
    }
}

fn suspend(plan: &mut Plan, suspended: bool, now: Timestamp) {
    let held = plan.status.conditions.iter().flatten().find(|it| it.type_ == "Suspended");
    let was = held.is_some_and(|held| held.status == "True");
    if was == suspended {
        return;
    }
    plan.status.conditions.iter_mut().for_each(|all| all.retain(|it| it.type_ != "Suspended"));
    if suspended {
        condition(&mut plan.status, "Suspended", "JobSuspended", "Job suspended", now);
        plan.status.start_time = None;
        plan.notes.push(Note::normal("Suspended", "Job suspended"));
    } else {
        condition(&mut plan.status, "Suspended", "JobResumed", "Job resumed", now);
        if let Some(resumed) =
            plan.status.conditions.iter_mut().flatten().find(|it| it.type_ == "Suspended")
        {
            resumed.status = "False".to_owned();
        }
        plan.status.start_time = Some(Time(now));
        plan.notes.push(Note::normal("Resumed", "Job resumed"));
    }
}

fn expire(job: &Job, plan: &mut Plan, now: Timestamp) {
    let Some(seconds) = job.spec.as_ref().and_then(|spec| spec.ttl_seconds_after_finished) else {
        return;
    };
    let over = plan
        .status
        .conditions
        .iter()
        .flatten()
        .find(|it| ["Complete", "Failed"].contains(&it.type_.as_str()));
    let Some(ended) = over.and_then(|over| over.last_transition_time.as_ref()) else { return };
    match remaining(ended.0, i64::from(seconds), now) {
        Some(left) => plan.again = Some(left),
        None => plan.expire = true,
    }
}

pub fn is_over(status: &JobStatus) -> bool {
    holds(status, "Complete") || holds(status, "Failed")
}

fn holds(status: &JobStatus, type_: &str) -> bool {
    status.conditions.iter().flatten().any(|it| it.type_ == type_ && it.status == "True")
}

fn condition(status: &mut JobStatus, type_: &str, reason: &str, message: &str, now: Timestamp) {
    status.conditions.get_or_insert_default().push(JobCondition {
        type_: type_.to_owned(),
        status: "True".to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_probe_time: Some(Time(now)),
        last_transition_time: Some(Time(now)),
    });
}
