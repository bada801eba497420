//! The order of a pod's life: address, volumes, init containers, containers.

use crate::node::context::NodeContext;
use crate::node::events::Severity;
use crate::node::model::{Kind, PodModel, Record, Slot, State};
use crate::node::pod::{PodShared, Surroundings};
use crate::node::runner::{Runner, StopSignal};
use crate::node::status::RestartPolicy;
use crate::node::volumes::{self, Mounted};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// Between two tries to mount volumes: soon at first, for a claim is often bound a moment later.
const FIRST_MOUNT_RETRY: Duration = Duration::from_millis(100);
const LAST_MOUNT_RETRY: Duration = Duration::from_secs(5);
const MOUNT_DEADLINE: Duration = Duration::from_secs(30);
const ADDRESS_RETRY: Duration = Duration::from_secs(5);

pub struct Drive {
    ctx: Arc<NodeContext>,
    pod: Arc<PodShared>,
    stop: StopSignal,
}

/// The pod was told to stop, or cannot go on.
struct Over;

impl Drive {
    pub fn new(ctx: Arc<NodeContext>, pod: Arc<PodShared>, stop: StopSignal) -> Self {
        Self { ctx, pod, stop }
    }

    /// Returns when no container runs and none will.
    pub async fn run(self) {
        let policy = RestartPolicy::of(&self.pod.pod);
        if !needs_run(&self.pod.model(), policy) {
            return;
        }
        // Sidecars outlive the stop of the main containers.
        let (stop_sidecars, sidecar_stop) = watch::channel(None);
        let mut sidecars = JoinSet::new();
        let _ = self.run_all(policy, &sidecar_stop, &mut sidecars).await;
        let deadline =
            self.stop.borrow().unwrap_or_else(|| Instant::now() + Duration::from_secs(30));
        let _ = stop_sidecars.send(Some(deadline));
        let mut stop = self.stop.clone();
        loop {
            tokio::select! {
                ended = sidecars.join_next() => if ended.is_none() { return },
                changed = stop.changed() => {
                    if changed.is_err() {
                        return sidecars.join_all().await.into_iter().for_each(drop);
                    }
                    let _ = stop_sidecars.send(*stop.borrow());
                }
            }
        }
    }

    async fn run_all(
        &self,
        policy: RestartPolicy,
        sidecar_stop: &StopSignal,
        sidecars: &mut JoinSet<bool>,
    ) -> Result<(), Over> {
        let ip = self.address().await?;
        self.pod.update(|model| model.ip = Some(ip));
        let place = self.ctx.place(ip);
        let mounted = self.volumes(&place).await?;
        let surroundings = Surroundings { place, mounted };
        for (index, container) in self.pod.containers(true).iter().enumerate() {
            let slot = Slot { init: true, index };
            match Kind::of_init(container) {
                Kind::Sidecar => {
                    let runner =
                        self.runner(slot, Kind::Sidecar, &surroundings, sidecar_stop.clone());
                    sidecars.spawn(runner.ok_or(Over)?.run());
                    self.started(slot).await?;
                }
                Kind::Init | Kind::Main if self.is_initialized(slot, policy) => {}
                kind @ (Kind::Init | Kind::Main) => {
                    let runner =
                        self.runner(slot, kind, &surroundings, self.stop.clone()).ok_or(Over)?;
                    if !runner.run().await {
                        return Err(Over);
                    }
                }
            }
        }
        let mut main = JoinSet::new();
        for index in 0..self.pod.containers(false).len() {
            let slot = Slot { init: false, index };
            let record = self.pod.record(slot).ok_or(Over)?;
            let done = matches!(&record.state, State::Terminated(end) if !policy.restarts(Kind::Main, end.code));
            if !done {
                self.pod.update_record(slot, |record| {
                    if record.last.is_none() && matches!(record.state, State::Waiting { .. }) {
                        record.state = State::waiting("ContainerCreating", None);
                    }
                });
                main.spawn(
                    self.runner(slot, Kind::Main, &surroundings, self.stop.clone())
                        .ok_or(Over)?
                        .run(),
                );
            }
        }
        while main.join_next().await.is_some() {}
        Ok(())
    }

    /// Whether an init container has succeeded in an earlier life of the node and stays so. Under `Always` it runs
    /// again, as after a reboot; under the other policies the API lets no container leave its end.
    fn is_initialized(&self, slot: Slot, policy: RestartPolicy) -> bool {
        let succeeded =
            |record: Record| matches!(record.state, State::Terminated(end) if end.code == 0);
        policy != RestartPolicy::Always && self.pod.record(slot).is_some_and(succeeded)
    }

    fn runner(
        &self,
        slot: Slot,
        kind: Kind,
        surroundings: &Surroundings,
        stop: StopSignal,
    ) -> Option<Runner> {
        let container = self.pod.containers(slot.init).get(slot.index)?.clone();
        let (ctx, pod, surroundings) = (self.ctx.clone(), self.pod.clone(), surroundings.clone());
        Some(Runner { ctx, pod, surroundings, slot, kind, container, stop })
    }

    /// `Over` if told to stop while `wait` lasts.
    async fn unless_stopped<T>(&self, wait: impl Future<Output = T>) -> Result<T, Over> {
        let mut stop = self.stop.clone();
        tokio::select! {
            biased;
            _ = stop.wait_for(Option::is_some) => Err(Over),
            done = wait => Ok(done),
        }
    }

    /// Waits until the sidecar's startup probe has succeeded.
    async fn started(&self, slot: Slot) -> Result<(), Over> {
        let mut changes = self.pod.changes();
        loop {
            changes.mark_unchanged();
            if self.pod.record(slot).is_some_and(|record| record.started) {
                return Ok(());
            }
            if self.unless_stopped(changes.changed()).await?.is_err() {
                return Err(Over);
            }
        }
    }

    fn report(&self, reason: &'static str, message: String) {
        self.ctx.recorder.report(self.pod.reference(None), Severity::Warning, reason, message);
    }

    async fn address(&self) -> Result<IpAddr, Over> {
        let spec = self.pod.pod.spec.as_ref();
        if spec.and_then(|spec| spec.host_network) == Some(true) {
            return Ok(self.ctx.host_ip);
        }
        loop {
            let given = self.ctx.addresses.lock().assign(&self.pod.uid, self.pod.model().ip);
            if let Some(ip) = given {
                return Ok(ip);
            }
            self.report(
                "FailedCreatePodSandBox",
                "all addresses of the node's podCIDR are in use".to_owned(),
            );
            self.unless_stopped(tokio::time::sleep(ADDRESS_RETRY)).await?;
        }
    }

    async fn volumes(&self, place: &crate::node::env::Place) -> Result<Mounted, Over> {
        let mut retry = FIRST_MOUNT_RETRY;
        let mut told = None;
        loop {
            let mount = tokio::time::timeout(
                MOUNT_DEADLINE,
                volumes::mount(&self.ctx, &self.pod.pod, place),
            );
            let message = match self.unless_stopped(mount).await? {
                Ok(Ok(mounted)) => return Ok(mounted),
                Ok(Err(error)) => format!("MountVolume.SetUp failed: {error}"),
                Err(_) => {
                    "MountVolume.SetUp failed: the API server does not answer in time".to_owned()
                }
            };
            // A claim that is bound in the next moment is no news.
            if retry > Duration::from_secs(1) && told.as_ref() != Some(&message) {
                self.report("FailedMount", message.clone());
                told = Some(message);
            }
            self.unless_stopped(tokio::time::sleep(retry)).await?;
            retry = (retry * 2).min(LAST_MOUNT_RETRY);
        }
    }
}

/// Whether any container is to run: not if all that began before the node's restart are not restarted.
fn needs_run(model: &PodModel, policy: RestartPolicy) -> bool {
    let failed_init = model.init.iter().any(|record| {
        record.kind == Kind::Init
            && record.ended().is_some_and(|end| end.code != 0 && policy == RestartPolicy::Never)
    });
    !failed_init
        && model
            .main
            .iter()
            .any(|record| record.ended().is_none_or(|end| policy.restarts(Kind::Main, end.code)))
}
