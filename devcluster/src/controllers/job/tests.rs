use std::sync::Arc;

use k8s_openapi::api::batch::v1::{Job, JobSpec};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use proptest::prelude::*;

use super::plan::{Plan, is_over, plan};
use super::pod::{self, is_tracked};
use crate::controllers::pods::build::{at, set_phase};
use crate::controllers::pods::{is_active, is_finished, is_terminating};

struct World {
    job: Job,
    pods: Vec<Arc<Pod>>,
    made: usize,
    now: i64,
}

impl World {
    fn new(spec: JobSpec) -> Self {
        let mut job = Job { spec: Some(spec), ..Job::default() };
        job.metadata.name = Some("train".into());
        job.metadata.namespace = Some("a".into());
        job.metadata.uid = Some("job".into());
        Self { job, pods: vec![], made: 0, now: 0 }
    }

    fn plan(&self) -> Plan {
        plan(&self.job, &self.pods, at(self.now))
    }

    /// One reconcile; `crash` is after which part of it the process dies (0: nowhere).
    fn step(&mut self, crash: u8) -> Plan {
        let plan = self.plan();
        if crash == 1 {
            return plan;
        }
        self.job.status = Some(plan.status.clone());
        if crash == 2 {
            return plan;
        }
        for pod in &plan.release {
            self.edit(pod, |pod| pod.metadata.finalizers = None);
        }
        for pod in &plan.delete {
            let now = self.now;
            self.edit(pod, |pod| pod.metadata.deletion_timestamp = Some(Time(at(now))));
        }
        for index in &plan.create {
            self.made += 1;
            let mut pod = pod::make(&self.job, *index, &format!("{:05}", self.made));
            pod.metadata.uid = Some(format!("uid-{}", self.made));
            pod.metadata.creation_timestamp = Some(Time(at(self.now)));
            self.pods.push(Arc::new(pod));
        }
        plan
    }

    fn edit(&mut self, pod: &Pod, change: impl FnOnce(&mut Pod)) {
        if let Some(held) = self.pods.iter_mut().find(|it| it.metadata.uid == pod.metadata.uid) {
            change(Arc::make_mut(held));
        }
    }

    /// The API server: what is deleted and has no finalizer and no process goes.
    fn collect(&mut self) {
        self.pods.retain(|pod| !is_terminating(pod) || is_tracked(pod));
    }

    fn end(&mut self, number: usize, phase: &str) {
        let active: Vec<_> = self.pods.iter().filter(|pod| is_active(pod)).cloned().collect();
        if let Some(pod) = active.get(number % active.len().max(1)) {
            self.edit(pod, |pod| set_phase(pod, phase));
        }
    }

    fn active(&self) -> usize {
        self.pods.iter().filter(|pod| is_active(pod)).count()
    }

    /// Reconciles until nothing changes, `phase` being how pods end (or none).
    fn settle(&mut self, phase: Option<&str>) {
        for _ in 0..500 {
            self.now += 700;
            let (before, pods) = (self.job.status.clone(), self.pods.clone());
            self.step(0);
            if let Some(phase) = phase {
                self.end(0, phase);
            }
            self.collect();
            if before == self.job.status && pods == self.pods {
                return;
            }
        }
        panic!("it does not come to rest");
    }

    fn conditions(&self) -> Vec<String> {
        let all = self.job.status.as_ref().unwrap().conditions.clone().unwrap_or_default();
        all.into_iter().filter(|it| it.status == "True").map(|it| it.type_).collect()
    }
}

fn spec(completions: i32, parallelism: i32) -> JobSpec {
    JobSpec { completions: Some(completions), parallelism: Some(parallelism), ..JobSpec::default() }
}

#[test]
fn a_job_runs_as_many_as_it_may_and_completes() {
    let mut world = World::new(spec(3, 2));
    assert_eq!(world.step(0).create.len(), 2);
    assert_eq!(world.job.status.as_ref().unwrap().start_time, Some(Time(at(0))));
    assert!(world.step(0).create.is_empty());
    world.end(0, "Succeeded");
    assert_eq!(world.step(0).create.len(), 1);
    world.settle(Some("Succeeded"));
    let status = world.job.status.clone().unwrap();
    assert_eq!((status.succeeded, status.failed, status.active), (Some(3), None, None));
    assert_eq!(world.conditions(), ["SuccessCriteriaMet", "Complete"]);
    assert!(status.completion_time.is_some());
    assert!(world.pods.iter().all(|pod| !is_tracked(pod)), "ended pods stay, without finalizer");
    assert_eq!(world.pods.len(), 3);
}

#[test]
fn failures_are_tried_again_after_a_while_until_the_limit() {
    let mut world = World::new(JobSpec { backoff_limit: Some(1), ..spec(1, 1) });
    world.step(0);
    world.end(0, "Failed");
    let plan = world.step(0);
    assert!(plan.create.is_empty());
    assert_eq!(plan.again, Some(std::time::Duration::from_secs(10)));
    world.now = 10;
    assert_eq!(world.step(0).create.len(), 1);
    world.settle(Some("Failed"));
    assert_eq!(world.conditions(), ["FailureTarget", "Failed"]);
    let status = world.job.status.clone().unwrap();
    assert_eq!((status.failed, status.completion_time), (Some(2), None));
    assert_eq!(status.conditions.unwrap()[1].reason.as_deref(), Some("BackoffLimitExceeded"));
}

#[test]
fn a_deadline_ends_the_job_and_its_pods() {
    let mut world = World::new(JobSpec { active_deadline_seconds: Some(60), ..spec(1, 1) });
    assert_eq!(world.step(0).again, Some(std::time::Duration::from_secs(60)));
    world.now = 60;
    assert_eq!(world.step(0).delete.len(), 1);
    assert_eq!(world.conditions(), ["FailureTarget"]);
    world.settle(None);
    assert_eq!(world.conditions(), ["FailureTarget", "Failed"]);
}

#[test]
fn each_index_is_done_once_and_pods_know_theirs() {
    let mut world = World::new(JobSpec { completion_mode: Some("Indexed".into()), ..spec(3, 3) });
    assert_eq!(world.step(0).create, [Some(0), Some(1), Some(2)]);
    let pod = world.pods[1].clone();
    assert_eq!(pod.metadata.name.as_deref(), Some("train-1-00002"));
    assert_eq!(pod.spec.as_ref().unwrap().hostname.as_deref(), Some("train-1"));
    assert_eq!(pod.metadata.labels.as_ref().unwrap()["job-name"], "train");
    world.end(1, "Failed");
    world.now = 20;
    assert_eq!(world.step(0).create, [Some(1)]);
    world.settle(Some("Succeeded"));
    let status = world.job.status.clone().unwrap();
    assert_eq!(
        (status.completed_indexes.as_deref(), status.succeeded, status.failed),
        (Some("0-2"), Some(3), Some(1))
    );
}

#[test]
fn suspending_ends_pods_and_resuming_starts_them_again() {
    let mut world = World::new(spec(1, 1));
    world.step(0);
    world.job.spec.as_mut().unwrap().suspend = Some(true);
    assert_eq!(world.step(0).delete.len(), 1);
    assert_eq!(world.conditions(), ["Suspended"]);
    assert_eq!(world.job.status.as_ref().unwrap().start_time, None);
    world.settle(None);
    world.job.spec.as_mut().unwrap().suspend = Some(false);
    world.now += 700;
    assert_eq!(world.step(0).create.len(), 1);
    assert!(world.conditions().is_empty());
}

#[test]
fn a_finished_job_goes_after_its_time_to_live() {
    let mut world = World::new(JobSpec { ttl_seconds_after_finished: Some(1000), ..spec(1, 1) });
    world.step(0);
    world.end(0, "Succeeded");
    (0..4).for_each(|_| drop(world.step(0)));
    assert_eq!(world.conditions(), ["SuccessCriteriaMet", "Complete"]);
    assert_eq!(world.plan().again, Some(std::time::Duration::from_secs(1000)));
    world.now += 1000;
    assert!(world.plan().expire);
}

#[test]
fn a_deleted_job_lets_its_pods_go() {
    let mut world = World::new(spec(1, 1));
    world.step(0);
    world.job.metadata.deletion_timestamp = Some(Time(at(0)));
    let pod = world.pods[0].clone();
    world.edit(&pod, |pod| pod.metadata.deletion_timestamp = Some(Time(at(0))));
    let plan = world.step(0);
    assert_eq!((plan.release.len(), plan.create.len()), (1, 0));
}

proptest! {
    /// Whatever happens, and wherever the process dies: every pod is counted exactly once, no more
    /// run than may, and the job ends.
    #[test]
    fn every_pod_counts_once(
        completions in 1..4_i32,
        parallelism in 1..4_i32,
        indexed: bool,
        events in proptest::collection::vec((0..6_u8, 0..4_usize, 0..4_u8), 0..40),
    ) {
        let completion_mode = indexed.then(|| "Indexed".to_owned());
        let mut world = World::new(JobSpec { completion_mode, backoff_limit: Some(2), ..spec(completions, parallelism) });
        let (mut succeeded, mut failed) = (0, 0);
        for (event, number, crash) in events {
            world.now += 700;
            let before = world.active();
            match event {
                0 => {
                    world.end(number, "Succeeded");
                    succeeded += before - world.active();
                }
                1 => {
                    world.end(number, "Failed");
                    failed += before - world.active();
                }
                _ => {
                    let plan = world.step(crash);
                    if crash == 0 || crash == 3 {
                        failed += plan.delete.len();
                    }
                    world.collect();
                }
            }
            prop_assert!(world.active() <= usize::try_from(parallelism).unwrap());
        }
        // From here on all that runs succeeds; count what is still to come.
        for _ in 0..200 {
            world.now += 700;
            let plan = world.step(0);
            failed += plan.delete.len();
            let before = world.active();
            world.end(0, "Succeeded");
            succeeded += before - world.active();
            world.collect();
        }
        let status = world.job.status.clone().unwrap();
        prop_assert!(is_over(&status), "{:?}", status);
        prop_assert_eq!(usize::try_from(status.failed.unwrap_or(0)).unwrap(), failed);
        if !indexed {
            prop_assert_eq!(usize::try_from(status.succeeded.unwrap_or(0)).unwrap(), succeeded);
        }
        prop_assert!(world.pods.iter().all(|pod| is_finished(pod) && !is_tracked(pod)));
    }
}
