//! One pod: from the API's order to run it to the end of its last process, with its status kept true.

mod drive;
mod report;

use super::context::NodeContext;
use super::events::Severity;
use super::model::{Failure, PodModel, whole_seconds};
use super::pod::PodShared;
use super::status::final_phase;
use drive::Drive;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use report::Reporter;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How long containers may take to end when the node stops.
pub const SHUTDOWN_GRACE: Duration = Duration::from_secs(5);
/// Grace of a pod whose object was removed without waiting for its processes.
const VANISHED_GRACE: Duration = Duration::from_secs(1);
/// How long the last status may take when the node stops: its API server may be stopping, too.
const LAST_WORD: Duration = Duration::from_secs(3);
const LAST_WORD_RETRY: Duration = Duration::from_millis(100);
/// Why a pod fails that the node does not take.
const NOT_FOR_THIS_NODE: &str = "NotForThisNode";
/// How often the files of secrets and config maps are brought up to date.
const REFRESH: Duration = Duration::from_secs(60);

/// The pod as the API has it; `None` once it is gone there.
pub type View = Option<Arc<Pod>>;

pub struct Worker {
    ctx: Arc<NodeContext>,
    shared: Arc<PodShared>,
    view: watch::Receiver<View>,
    stop: watch::Sender<Option<Instant>>,
    shutdown: CancellationToken,
    reporter: Reporter,
}

impl Worker {
    /// Runs the pod; returns when nothing is left to do for it.
    pub async fn run(
        ctx: Arc<NodeContext>,
        pod: Arc<Pod>,
        view: watch::Receiver<View>,
        shutdown: CancellationToken,
    ) {
        let model = PodModel::restore(&pod, Timestamp::now());
        let shared = Arc::new(PodShared::new((*pod).clone(), model, &ctx.dirs.logs()));
        let key = (shared.namespace.clone(), shared.name.clone());
        ctx.pods.insert(key.clone(), shared.clone());
        let (stop, _) = watch::channel(None);
        let reporter = Reporter::new(ctx.clone(), (*pod).clone());
        let worker =
            Worker { ctx: ctx.clone(), shared: shared.clone(), view, stop, shutdown, reporter };
        Box::pin(worker.work()).await;
        ctx.pods.remove_if(&key, |_, current| Arc::ptr_eq(current, &shared));
    }

    async fn work(mut self) {
        let deleted = self.reporter.pod.metadata.deletion_timestamp.is_some();
        let over = final_phase(&self.reporter.pod).is_some();
        let mut drive = None;
        if !over && !self.is_for_this_node() {
            self.refuse();
        } else if !deleted && !over {
            let drive_parts =
                Drive::new(self.ctx.clone(), self.shared.clone(), self.stop.subscribe());
            drive = Some(tokio::spawn(drive_parts.run()));
        }
        let mut changes = self.shared.changes();
        let mut refresh = tokio::time::interval_at(Instant::now() + REFRESH, REFRESH);
        let refreshes = super::volumes::can_change(&self.reporter.pod);
        let mut leaving = false;
        loop {
            if drive.is_none() {
                if leaving {
                    return self.say_last_word().await;
                }
                if self.is_gone() || self.is_deleted() {
                    return self.finish().await;
                }
                self.rest();
            }
            changes.mark_unchanged();
            let retry = match leaving {
                // The last word comes when all is said.
                true => None,
                false => tokio::select! {
                    retry = self.reporter.write(&self.shared) => retry,
                    () = self.shutdown.cancelled() => None,
                },
            };
            let deadline = self.active_deadline();
            tokio::select! {
                biased;
                _ = async { if let Some(drive) = &mut drive { let _ = drive.await; } }, if drive.is_some() => {
                    drive = None;
                }
                () = self.shutdown.cancelled(), if !leaving => {
                    leaving = true;
                    self.stop_by(Instant::now() + SHUTDOWN_GRACE);
                }
                seen = self.view.changed() => {
                    if seen.is_err() {
                        // The manager ended, which it does only with the node.
                        self.stop_by(Instant::now() + SHUTDOWN_GRACE);
                        if let Some(drive) = drive.take() { let _ = drive.await; }
                        return;
                    }
                    self.look();
                }
                _ = changes.changed() => {}
                () = sleep_until(retry) => {}
                () = sleep_until(deadline), if !leaving && self.stop.borrow().is_none() => self.too_long(),
                _ = refresh.tick(), if refreshes && drive.is_some() => self.refresh().await,
            }
        }
    }

    /// The status that stays while the node is away: nothing runs.
    async fn say_last_word(&mut self) {
        let write = async {
            while self.reporter.write(&self.shared).await.is_some() {
                tokio::time::sleep(LAST_WORD_RETRY).await;
            }
        };
        if tokio::time::timeout(LAST_WORD, write).await.is_err() {
            tracing::debug!(
                pod = self.shared.shown(),
                "the API server did not take the last status"
            );
        }
    }

    fn is_for_this_node(&self) -> bool {
        self.ctx.options.only.as_ref().is_none_or(|only| only.takes(&self.reporter.pod))
    }

    /// The pod fails without having begun.
    fn refuse(&self) {
        let message =
            "This node runs pods as processes of its machine, and only those that it is kept for.";
        self.ctx.recorder.report(
            self.shared.reference(None),
            Severity::Warning,
            NOT_FOR_THIS_NODE,
            message.to_owned(),
        );
        self.shared.update(|model| {
            model.failure =
                Some(Failure { reason: NOT_FOR_THIS_NODE.to_owned(), message: message.to_owned() });
        });
    }

    fn is_gone(&self) -> bool {
        self.view.borrow().is_none()
    }

    fn is_deleted(&self) -> bool {
        self.reporter.pod.metadata.deletion_timestamp.is_some()
    }

    /// Takes in what the API says now.
    fn look(&mut self) {
        let Some(pod) = self.view.borrow_and_update().clone() else {
            return self.stop_by(Instant::now() + VANISHED_GRACE);
        };
        self.reporter.seen(&pod);
        if pod.metadata.deletion_timestamp.is_some() {
            let grace = pod
                .metadata
                .deletion_grace_period_seconds
                .and_then(|s| u64::try_from(s).ok())
                .unwrap_or(30);
            self.stop_by(Instant::now() + Duration::from_secs(grace));
        }
    }

    /// A stop can be brought nearer, and never put off.
    fn stop_by(&self, deadline: Instant) {
        self.stop.send_if_modified(|stop| {
            let nearer = stop.is_none_or(|old| deadline < old);
            if nearer {
                *stop = Some(deadline);
            }
            nearer
        });
    }

    fn active_deadline(&self) -> Option<Instant> {
        let seconds = self.reporter.pod.spec.as_ref()?.active_deadline_seconds?;
        if self.shared.model().failure.is_some() {
            return None;
        }
        let end = self
            .shared
            .model()
            .start_time
            .saturating_add(SignedDuration::from_secs(seconds))
            .ok()?;
        let left = end.duration_since(Timestamp::now()).max(SignedDuration::ZERO);
        Some(Instant::now() + Duration::try_from(left).unwrap_or_default())
    }

    fn too_long(&self) {
        let message = "Pod was active on the node longer than the specified deadline".to_owned();
        self.ctx.recorder.report(
            self.shared.reference(None),
            Severity::Normal,
            "DeadlineExceeded",
            message.clone(),
        );
        self.shared.update(|model| {
            model.failure = Some(Failure { reason: "DeadlineExceeded".to_owned(), message })
        });
        let grace =
            self.reporter.pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds);
        let grace = grace.and_then(|s| u64::try_from(s).ok()).unwrap_or(30);
        self.stop_by(Instant::now() + Duration::from_secs(grace));
    }

    async fn refresh(&self) {
        let model = self.shared.model();
        let Some(place) = model.ip.map(|ip| self.ctx.place(ip)) else { return };
        let mount = super::volumes::mount(&self.ctx, &self.reporter.pod, &place);
        match tokio::time::timeout(REFRESH / 2, mount).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => {
                tracing::debug!(pod = self.shared.shown(), %error, "volumes stay as they are")
            }
            Err(_) => {
                tracing::debug!(pod = self.shared.shown(), "volumes stay as they are: no answer")
            }
        }
    }

    /// All containers are done for good: the address is free again.
    fn rest(&self) {
        if super::status::phase(
            &self.shared.model(),
            super::status::RestartPolicy::of(&self.reporter.pod),
        )
        .is_over()
        {
            self.ctx.addresses.lock().release(&self.shared.uid);
        }
    }

    /// Nothing of the pod runs any more, and the API wants it gone.
    async fn finish(mut self) {
        let now = whole_seconds(Timestamp::now());
        self.shared.update(|model| {
            model.over = true;
            tracing::debug!(pod = self.shared.name, at = %now, "all processes of the pod have ended");
        });
        loop {
            if self.is_gone() {
                break;
            }
            let wait = match self.reporter.write(&self.shared).await {
                Some(retry) => Some(retry),
                None => self.reporter.delete().await,
            };
            let Some(wait) = wait else { break };
            tokio::select! {
                () = tokio::time::sleep_until(wait) => {}
                () = self.shutdown.cancelled() => return,
                seen = self.view.changed() => if seen.is_err() { return },
            }
        }
        self.ctx.addresses.lock().release(&self.shared.uid);
        let (pod, logs) = (self.ctx.dirs.pod(&self.shared.uid), self.shared.log_dir.clone());
        let _ = tokio::task::spawn_blocking(move || {
            for dir in [pod, logs] {
                if let Err(error) = std::fs::remove_dir_all(&dir)
                    && error.kind() != std::io::ErrorKind::NotFound
                {
                    tracing::warn!(dir = %dir.display(), %error, "a deleted pod's files stay behind");
                }
            }
        })
        .await;
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
