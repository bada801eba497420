//! One container: its starts, hooks, probes, ends and restarts.

mod command;
mod probes;

use super::backoff::Backoff;
use super::context::NodeContext;
use super::events::Severity;
use super::logs;
use super::model::{Kind, Slot, State, Terminated, whole_seconds};
use super::pod::{PodShared, Surroundings};
use super::probe::action::Action;
use super::process::{self, Ended, Process, ProcessError};
use super::status::RestartPolicy;
use command::{NotReady, Plan};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Container;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// How soon a container whose configuration is not there is tried again: soon at first, for it is often on its way.
const FIRST_CONFIG_RETRY: Duration = Duration::from_millis(500);
const LAST_CONFIG_RETRY: Duration = Duration::from_secs(8);
/// The least time a process gets between SIGTERM and SIGKILL, as a kubelet gives it.
const LEAST_GRACE: Duration = Duration::from_secs(2);
/// Past the grace: how long until a container is given up that does not even die of SIGKILL.
const KILL_SLACK: Duration = Duration::from_secs(10);
/// How long the last lines of a dead container may take through its pipes.
const LOG_SLACK: Duration = Duration::from_secs(1);
/// Longest termination message, in bytes, as in Kubernetes.
const MAX_MESSAGE: usize = 4096;
/// The exit code container runtimes give for a program that could not be started.
const START_ERROR: i32 = 128;

/// By when a container must have ended; `None` while it may run.
pub type StopSignal = watch::Receiver<Option<Instant>>;

pub struct Runner {
    pub ctx: Arc<NodeContext>,
    pub pod: Arc<PodShared>,
    pub surroundings: Surroundings,
    pub slot: Slot,
    pub kind: Kind,
    pub container: Container,
    pub stop: StopSignal,
}

/// How one run of the container came to its end.
enum Attempt {
    Ended(Terminated),
    /// It was told to stop before it ran.
    NotRun,
}

impl Runner {
    /// Runs the container until it is done for good or told to stop. `true`: it has ended well.
    pub async fn run(mut self) -> bool {
        let policy = RestartPolicy::of(&self.pod.pod);
        let mut backoff = Backoff::default();
        loop {
            if self.stopping() {
                return false;
            }
            self.begin();
            let Attempt::Ended(end) = self.attempt().await else { return false };
            let code = end.code;
            let ended = end.finished;
            let will_restart = policy.restarts(self.kind, code) && !self.stopping();
            let delay = Duration::try_from(backoff.delay(ended)).unwrap_or_default();
            let shown = self.pod.shown();
            self.pod.update_record(self.slot, |record| {
                (record.started, record.ready) = (false, false);
                record.state = if will_restart && !delay.is_zero() {
                    record.last = Some(end);
                    let message = format!(
                        "back-off {} restarting failed container={} pod={shown}",
                        go_duration(delay),
                        record.name
                    );
                    State::waiting("CrashLoopBackOff", Some(message))
                } else {
                    State::Terminated(end)
                };
            });
            if !will_restart {
                return code == 0;
            }
            if !delay.is_zero() {
                let message = format!(
                    "Back-off restarting failed container {} in pod {shown}",
                    self.container.name
                );
                self.report(Severity::Warning, "BackOff", message);
                self.sleep(delay).await;
            }
            backoff.restarted(ended, Timestamp::now());
        }
    }

    fn stopping(&self) -> bool {
        self.stop.borrow().is_some()
    }

    fn report(&self, severity: Severity, reason: &'static str, message: String) {
        let about = self.pod.reference(Some((self.slot, &self.container.name)));
        self.ctx.recorder.report(about, severity, reason, message);
    }

    /// Sleeps unless told to stop.
    async fn sleep(&self, duration: Duration) {
        let mut stop = self.stop.clone();
        tokio::select! {
            () = tokio::time::sleep(duration) => {}
            _ = stop.wait_for(Option::is_some) => {}
        }
    }

    /// From the end of one run to the start of the next.
    fn begin(&self) {
        self.pod.update_record(self.slot, |record| {
            if let State::Terminated(end) = &record.state {
                record.last = Some(end.clone());
            }
            if record.last.is_some() {
                record.restarts += 1;
            }
            (record.started, record.ready) = (false, false);
            record.state = State::waiting("ContainerCreating", None);
        });
    }

    /// One run, from its configuration to its end.
    async fn attempt(&mut self) -> Attempt {
        let mut retry = FIRST_CONFIG_RETRY;
        let plan = loop {
            match self.plan().await {
                Ok(plan) => break plan,
                Err(NotReady::Config(message)) => {
                    self.report(Severity::Warning, "Failed", format!("Error: {message}"));
                    self.pod.update_record(self.slot, |record| {
                        record.state = State::waiting("CreateContainerConfigError", Some(message));
                    });
                    self.sleep(retry).await;
                    retry = (retry * 2).min(LAST_CONFIG_RETRY);
                }
                Err(NotReady::Start(message)) => return Attempt::Ended(self.start_error(message)),
            }
            if self.stopping() {
                return Attempt::NotRun;
            }
        };
        if self.stopping() {
            return Attempt::NotRun;
        }
        let run = uuid::Uuid::new_v4().simple().to_string();
        let mark = format!("{}.{}.{run}", self.ctx.mark, self.pod.uid);
        let started = match process::start(&self.ctx.options.shim, plan.command.clone(), &mark)
            .await
        {
            Ok(started) => started,
            Err(ProcessError::Start(message)) => return Attempt::Ended(self.start_error(message)),
            Err(error @ ProcessError::Shim { .. }) => {
                tracing::error!(%error, "a container cannot be started");
                return Attempt::Ended(self.start_error(error.to_string()));
            }
        };
        let began = Timestamp::now();
        let id = format!("process://{run}");
        self.report(
            Severity::Normal,
            "Created",
            format!("Created container: {}", self.container.name),
        );
        let process::Started { process, stdout, stderr } = started;
        let log = self.open_log();
        let (progress, live) = watch::channel(logs::Progress::default());
        let collector = logs::Collector::open(log.clone(), logs::MAX_FILE, progress);
        self.pod.log_opened(&self.container.name, log.clone(), live);
        let collector = tokio::spawn(collector.collect(stdout, stderr));

        let how = self.supervise(&process, &plan, began, &id).await;
        let finished = Timestamp::now();
        drop(process);
        // What a process of the tree still held is closed by now; the rest of it is in the pipe.
        let _ = tokio::time::timeout(LOG_SLACK, collector).await;
        let mut end = match how {
            Ended::Exited(exit) => Terminated::of_exit(exit, began, finished, Some(id)),
            Ended::Lost => Terminated::unseen(
                "the container's shim was killed",
                Some(began),
                finished,
                Some(id),
            ),
        };
        end.message = end.message.or_else(|| read_message(&plan.termination_log));
        let from_log =
            self.container.termination_message_policy.as_deref() == Some("FallbackToLogsOnError");
        if end.message.is_none() && end.code != 0 && from_log {
            end.message = logs::last(&log).await;
        }
        Attempt::Ended(end)
    }

    fn start_error(&self, message: String) -> Terminated {
        self.report(Severity::Warning, "Failed", format!("Error: {message}"));
        Terminated {
            code: START_ERROR,
            signal: None,
            reason: "StartError".to_owned(),
            message: Some(message),
            started: None,
            finished: whole_seconds(Timestamp::now()),
            id: None,
        }
    }

    fn open_log(&self) -> PathBuf {
        let restarts = self.pod.record(self.slot).map_or(0, |record| record.restarts);
        let dir = self.pod.container_logs(&self.container.name);
        logs::prune(&dir, restarts);
        logs::file(&dir, restarts)
    }

    /// From the started process to its end: hook, probes, and whatever ends it.
    async fn supervise(
        &mut self,
        process: &Process,
        plan: &Plan,
        began: Timestamp,
        id: &str,
    ) -> Ended {
        let mut stop = self.stop.clone();
        if let Some(hook) = &plan.post_start {
            let outcome = tokio::select! {
                how = process.ended() => return how,
                _ = stop.wait_for(Option::is_some) => Ok(()),
                outcome = hook.run(process, &self.ctx.http, None) => outcome,
            };
            if let Err(why) = outcome {
                self.report(
                    Severity::Warning,
                    "FailedPostStartHook",
                    format!("PostStartHook failed: {why}"),
                );
                self.report(Severity::Normal, "Killing", "FailedPostStartHook".to_owned());
                let grace = self.grace();
                return self.terminate(process, plan, Instant::now() + grace).await;
            }
        }
        self.report(
            Severity::Normal,
            "Started",
            format!("Started container {}", self.container.name),
        );
        self.pod.update_record(self.slot, |record| {
            record.state = State::Running { since: whole_seconds(began) };
            record.id = Some(id.to_owned());
            record.started = plan.startup.is_none();
            record.ready = plan.startup.is_none() && plan.readiness.is_none();
        });
        let unfit = tokio::select! {
            how = process.ended() => return how,
            _ = stop.wait_for(Option::is_some) => None,
            unfit = self.probe(process, plan) => Some(unfit),
        };
        match unfit {
            Some(unfit) => {
                let name = &self.container.name;
                let message =
                    format!("Container {name} failed {} probe, will be restarted", unfit.probe);
                self.report(Severity::Normal, "Killing", message);
                self.pod.update_record(self.slot, |record| record.ready = false);
                let grace = unfit.grace.unwrap_or_else(|| self.grace());
                self.terminate(process, plan, Instant::now() + grace).await
            }
            None => {
                self.report(
                    Severity::Normal,
                    "Killing",
                    format!("Stopping container {}", self.container.name),
                );
                let deadline = stop.borrow().unwrap_or_else(Instant::now);
                self.terminate(process, plan, deadline).await
            }
        }
    }

    fn grace(&self) -> Duration {
        let seconds =
            self.pod.pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds);
        Duration::from_secs(seconds.and_then(|s| u64::try_from(s).ok()).unwrap_or(30))
    }

    /// preStop hook, SIGTERM, and SIGKILL at the deadline; a stop that comes meanwhile can only bring it nearer.
    async fn terminate(&self, process: &Process, plan: &Plan, deadline: Instant) -> Ended {
        let mut stop = self.stop.clone();
        stop.mark_unchanged();
        let until = |stop: &StopSignal, deadline: Instant| {
            stop.borrow().map_or(deadline, |stop| stop.min(deadline))
        };
        let mut deadline = until(&stop, deadline);
        if let Some(hook) = &plan.pre_stop {
            let left =
                deadline.saturating_duration_since(Instant::now()).max(Duration::from_secs(1));
            tokio::select! {
                how = process.ended() => return how,
                outcome = tokio::time::timeout(left, hook.run(process, &self.ctx.http, Some(left))) => {
                    if let Ok(Err(why)) = outcome {
                        self.report(Severity::Warning, "FailedPreStopHook", format!("PreStopHook failed: {why}"));
                    }
                }
            }
        }
        // Somebody in a hurry has said so with a deadline that is nearer than the least grace.
        let hurry = |deadline: Instant| deadline.saturating_duration_since(Instant::now());
        let least = if plan.pre_stop.is_some() { LEAST_GRACE } else { Duration::ZERO };
        process.stop(hurry(deadline).max(least)).await;
        loop {
            tokio::select! {
                how = process.ended() => return how,
                changed = stop.changed(), if stop.has_changed().is_ok() => {
                    if changed.is_ok() {
                        deadline = until(&stop, deadline);
                        process.stop(hurry(deadline)).await;
                    }
                }
                () = tokio::time::sleep_until(deadline + least + KILL_SLACK) => {
                    tracing::error!(pod = self.pod.shown(), container = self.container.name,
                        "a process does not end although it was killed; it is left to the system");
                    return Ended::Lost;
                }
            }
        }
    }

    /// Hooks and probes of the plan are those of the container.
    fn action<T>(source: Option<T>, make: impl FnOnce(T) -> Action) -> Option<Action> {
        source.map(make)
    }
}

/// A time as Go prints it, and so as people know it from kubectl: `10s`, `2m40s`.
fn go_duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match (seconds / 60, seconds % 60) {
        (0, s) => format!("{s}s"),
        (m, s) => format!("{m}m{s}s"),
    }
}

/// What the container wrote to its termination log.
fn read_message(path: &std::path::Path) -> Option<String> {
    use std::io::Read;
    let mut bytes = Vec::new();
    std::fs::File::open(path).ok()?.take(MAX_MESSAGE as u64).read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_look_like_gos() {
        assert_eq!(go_duration(Duration::from_secs(10)), "10s");
        assert_eq!(go_duration(Duration::from_secs(160)), "2m40s");
        assert_eq!(go_duration(Duration::from_secs(300)), "5m0s");
    }
}
