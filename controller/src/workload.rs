//! Workspaces and apps: applies what lies under them and tells their state.

use std::sync::Arc;

use cluster::{
    labels,
    resources::{
        AgentStatus, App, CanaryStatus, Phase, SecretMount, WorkloadResource, WorkloadStatus,
        Workspace,
    },
};
use futures::StreamExt;
use jiff::Timestamp;
use k8s_openapi::{
    api::{
        apps::v1::{Deployment, StatefulSet},
        core::v1::{Pod, Secret, Service},
    },
    apimachinery::pkg::apis::meta::v1::OwnerReference,
};
use kube::{
    Api, Resource, ResourceExt,
    api::ListParams,
    runtime::{Controller, controller::Action, reflector::ObjectRef},
};
use serde_json::Value;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{
    Shared, Stores, acting, agent_key, canary, claim,
    keys_of_others::{self, Found},
    manifest,
    own::{self, Part, Scaled},
    phase::{Observed, Told, is_broken, tell},
    refusal::{Problem, Reason, ReconcileError},
    rivals::{self, Asked},
    status::{status, write},
};

pub fn controller<W: Reconciled>(shared: &Shared) -> Controller<W> {
    acting::controller(|_| acting::members(shared))
        .owns_stream(acting::made_by_us::<W::Under>(shared))
        .owns_stream(acting::made_by_us::<Service>(shared))
        .watches_stream(acting::made_by_us::<Pod>(shared), |pod| {
            let labels = pod.labels();
            let of_kind = labels.get(labels::KIND).is_some_and(|kind| kind == W::KIND.as_str());
            let name = labels.get(labels::WORKLOAD).filter(|_| of_kind);
            name.zip(pod.namespace())
                .map(|(name, namespace)| ObjectRef::new(name).within(&namespace))
        })
}

pub async fn run<W: Reconciled>(
    controller: Controller<W>,
    shared: Arc<Shared>,
    stores: Stores,
    shutdown: CancellationToken,
) {
    let context = Arc::new((shared, stores));
    controller
        .graceful_shutdown_on(shutdown.cancelled_owned())
        .run(
            |object, context| async move { reconcile(object.as_ref(), &context.0, &context.1).await },
            |object: Arc<W>, error: &ReconcileError, context| {
                context.0.metrics.reconcile_errors.with_label_values(&[W::KIND.as_str()]).inc();
                let error = error.told();
                tracing::warn!(
                    error, kind = %W::KIND, name = object.name_any(),
                    namespace = object.namespace(), "reconciliation failed; trying again",
                );
                Action::requeue(acting::retry())
            },
            context,
        )
        .for_each(|_| std::future::ready(()))
        .await;
}

/// What differs between the kinds.
pub trait Reconciled: WorkloadResource {
    /// The built-in kind that runs the pods.
    type Under: Scaled
        + Resource<Scope = kube::core::NamespaceResourceScope>
        + Send
        + Sync
        + 'static;

    fn counts(under: &Self::Under) -> Counts;

    fn secrets(&mut self) -> &mut Vec<SecretMount>;

    /// Ends its pods, before and whatever else is applied.
    fn halt(&self, place: &Place<'_>) -> impl Future<Output = Result<(), ReconcileError>> + Send;

    /// Applies everything but the Service, which all have. What fails keeps nothing else from being
    /// applied that does not need it.
    fn apply(
        &self,
        place: &Place<'_>,
        awake: bool,
        failed: &mut Failed,
    ) -> impl Future<Output = Applied<Self::Under>> + Send;

    /// Removes a pod that would hold up the change it needs.
    fn unblock(
        &self,
        _place: &Place<'_>,
        _under: &Self::Under,
        _pods: &[Pod],
    ) -> impl Future<Output = kube::Result<()>> + Send {
        std::future::ready(Ok(()))
    }
}

/// Where a workload's parts are, and whose they are.
pub struct Place<'a> {
    shared: &'a Shared,
    namespace: &'a str,
    owner: OwnerReference,
}

impl Place<'_> {
    fn api<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>,
    {
        Api::namespaced(self.shared.client.clone(), self.namespace)
    }

    async fn put<K>(&self, manifest: &Value) -> Result<K, ReconcileError>
    where
        K: Part + Resource<Scope = kube::core::NamespaceResourceScope>,
    {
        let name = manifest["metadata"]["name"].as_str().unwrap_or_default();
        let check = |found: &K| own::check(found, &self.owner);
        own::put(&self.api(), name, check, |_| Ok(manifest.clone())).await
    }

    /// What is there, if it is ours.
    async fn look<K>(&self, name: &str) -> kube::Result<Option<K>>
    where
        K: Part + Resource<Scope = kube::core::NamespaceResourceScope>,
    {
        let found = self.api::<K>().get_opt(name).await?;
        Ok(found.filter(|found| own::is_controlled_by(found.meta(), &self.owner)))
    }
}

/// What could not be applied.
#[derive(Default)]
pub struct Failed {
    problems: Vec<Problem>,
    /// The first failure that may pass by itself.
    passing: Option<ReconcileError>,
}

impl Failed {
    /// The result, or `None` when it is a failure, which is kept.
    fn note<T>(&mut self, result: Result<T, impl Into<ReconcileError>>) -> Option<T> {
        match result.map_err(Into::into) {
            Ok(value) => return Some(value),
            Err(error) => match error.problem() {
                Some(problem) => self.problems.push(problem),
                None => {
                    self.passing.get_or_insert(error);
                }
            },
        }
        None
    }
}

/// What the API server made of the manifests.
pub struct Applied<U> {
    /// As it is, also when it could not be applied; `None` when there is none of ours.
    under: Option<U>,
    agent: Option<AgentStatus>,
    canary: Option<CanaryStatus>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// Pods that exist.
    replicas: i32,
    ready: i32,
    /// Whether the last change has been seen by whoever counts.
    current: bool,
}

impl Counts {
    /// Pods that were ready before a wake are on their way out: they count only once the wake has
    /// been seen. While it runs, a change to it takes nothing away.
    fn ready(self, was: Option<Phase>) -> i32 {
        if self.current || was == Some(Phase::Running) { self.ready } else { 0 }
    }
}

impl Reconciled for Workspace {
    type Under = StatefulSet;

    fn secrets(&mut self) -> &mut Vec<SecretMount> {
        &mut self.spec.secrets
    }

    fn counts(under: &StatefulSet) -> Counts {
        let status = under.status.as_ref();
        let replicas = status.map_or(0, |status| status.replicas);
        let ready = status.and_then(|status| status.ready_replicas).unwrap_or(0);
        let seen = status.and_then(|status| status.observed_generation);
        Counts { replicas, ready, current: seen >= under.metadata.generation }
    }

    async fn halt(&self, place: &Place<'_>) -> Result<(), ReconcileError> {
        own::halt(&place.api::<StatefulSet>(), &self.name_any(), &place.owner).await
    }

    async fn apply(
        &self,
        place: &Place<'_>,
        awake: bool,
        failed: &mut Failed,
    ) -> Applied<StatefulSet> {
        let Place { shared, owner, .. } = place;
        let name = self.name_any();
        let agent = failed.note(agent_key(self, place).await);
        let claim = failed.note(claim::apply(&place.api(), self, owner).await);
        // A pod without the key nobody could trust; one with somebody else's volume must not be.
        let usable = agent.is_some() && claim.is_some();
        if let Some(kept) = claim.flatten() {
            failed.problems.push(kept);
        }
        let under = if usable || !awake {
            let check = |found: &StatefulSet| own::check(found, owner);
            let manifest = |found: Option<&StatefulSet>| {
                let policy =
                    found.and_then(|set| set.spec.as_ref()?.pod_management_policy.as_deref());
                Ok(manifest::stateful_set(self, awake, policy, &shared.config))
            };
            failed.note(own::put(&place.api(), &name, check, manifest).await)
        } else {
            if failed.problems.iter().any(|problem| problem.reason == Reason::NotOurs) {
                failed.note(self.halt(place).await);
            }
            None
        };
        let under = match under {
            Some(under) => Some(under),
            None => failed.note(place.look(&name).await).flatten(),
        };
        let agent = match agent {
            Some(key) => Some(AgentStatus { port: manifest::AGENT_PORT, host_key: key.public }),
            None => self.status.as_ref().and_then(|status| status.agent.clone()),
        };
        Applied { under, agent, canary: None }
    }

    async fn unblock(
        &self,
        place: &Place<'_>,
        under: &StatefulSet,
        pods: &[Pod],
    ) -> kube::Result<()> {
        let api: Api<Pod> = place.api();
        for pod in pods.iter().filter(|pod| holds_up(pod, under)) {
            tracing::info!(
                pod = pod.name_any(),
                namespace = place.namespace,
                "removing a broken pod, so that the corrected one can start"
            );
            own::delete(&api, pod).await?;
        }
        Ok(())
    }
}

/// Applies the Secret with the agent's keys.
async fn agent_key(
    workspace: &Workspace,
    place: &Place<'_>,
) -> Result<agent_key::AgentKey, ReconcileError> {
    let mut key = None;
    let name = agent_key::secret_name(&workspace.name_any());
    let check = |found: &Secret| own::check(found, &place.owner);
    let manifest = |found: Option<&Secret>| {
        let kept = agent_key::kept_or_new(found)?;
        let manifest = manifest::agent_secret(workspace, &kept.private, &place.shared.config);
        key = Some(kept);
        Ok(manifest)
    };
    own::put(&place.api(), &name, check, manifest).await?;
    key.ok_or_else(|| {
        ReconcileError::Told(Problem::new(Reason::Failing, "The agent's key is missing"))
    })
}

/// A set whose pods start in order waits for a pod that does not become ready, also when it is of an
/// earlier revision: what corrects it never arrives.
fn holds_up(pod: &Pod, set: &StatefulSet) -> bool {
    let status = set.status.as_ref();
    let seen = status.and_then(|status| status.observed_generation) >= set.metadata.generation;
    let newest = status.and_then(|status| status.update_revision.as_ref());
    let revision = pod.labels().get(REVISION_LABEL);
    let in_order = set.spec.as_ref().and_then(|spec| spec.pod_management_policy.as_deref())
        != Some("Parallel");
    let of_set = pod.owner_references().iter().any(|owner| {
        owner.controller == Some(true) && Some(&owner.uid) == set.metadata.uid.as_ref()
    });
    in_order
        && seen
        && of_set
        && newest.is_some()
        && revision != newest
        && stays(pod)
        && is_broken(pod)
}

/// The StatefulSet controller's label of a pod's revision.
const REVISION_LABEL: &str = "controller-revision-hash";

impl Reconciled for App {
    type Under = Deployment;

    fn secrets(&mut self) -> &mut Vec<SecretMount> {
        &mut self.spec.secrets
    }

    fn counts(under: &Deployment) -> Counts {
        let status = under.status.as_ref();
        let replicas = status.and_then(|status| status.replicas).unwrap_or(0);
        let ready = status.and_then(|status| status.ready_replicas).unwrap_or(0);
        let seen = status.and_then(|status| status.observed_generation);
        Counts { replicas, ready, current: seen >= under.metadata.generation }
    }

    async fn halt(&self, place: &Place<'_>) -> Result<(), ReconcileError> {
        let Place { shared, namespace, owner } = place;
        let canary = canary::halt(self, shared, namespace, owner).await;
        own::halt(&place.api::<Deployment>(), &self.name_any(), owner).await?;
        canary
    }

    async fn apply(
        &self,
        place: &Place<'_>,
        awake: bool,
        failed: &mut Failed,
    ) -> Applied<Deployment> {
        let Place { shared, namespace, owner } = place;
        let deployment = manifest::deployment(self, awake, &shared.config);
        let under = match failed.note(place.put(&deployment).await) {
            Some(under) => Some(under),
            None => failed.note(place.look(&self.name_any()).await).flatten(),
        };
        let canary = match canary::apply(self, shared, namespace, owner, awake).await {
            Ok(canary) => canary,
            Err(error) => match error.problem() {
                Some(problem) => canary::refused(self, problem.message),
                None => {
                    failed.note(Err::<(), _>(error));
                    self.status.as_ref().and_then(|status| status.canary.clone())
                }
            },
        };
        Applied { under, agent: None, canary }
    }
}

/// Takes Secrets with workspaces' keys off what is mounted. False while it is not known of each whether it
/// may be.
async fn take_off_keys<W: Reconciled>(
    object: &mut W,
    place: &Place<'_>,
    failed: &mut Failed,
) -> bool {
    let (mut known, mut mounted) = (true, Vec::new());
    for mount in std::mem::take(object.secrets()) {
        match failed.note(keys_of_others::look(&place.api(), &mount.name).await) {
            Some(Found::Usable) => mounted.push(mount),
            Some(Found::Keys(problem)) => failed.problems.push(problem),
            Some(Found::Missing(problem)) => {
                failed.problems.push(problem);
                known = false;
            }
            None => known = false,
        }
    }
    *object.secrets() = mounted;
    known
}

async fn reconcile<W: Reconciled>(
    object: &W,
    shared: &Shared,
    stores: &Stores,
) -> Result<Action, ReconcileError> {
    let Some(workload) = object.workload() else { return Ok(Action::await_change()) };
    if !shared.held.now() {
        return Ok(Action::requeue(acting::retry()));
    }
    let Some(owner) = object.controller_owner_ref(&()) else { return Ok(Action::await_change()) };
    if object.meta().deletion_timestamp.is_some() {
        // What it owns goes with it, by garbage collection.
        return Ok(Action::await_change());
    }
    let namespace = workload.project.as_str();
    // What is followed may be a moment behind, and whose it is must not be a guess.
    if !shared.config.scope.holds(&shared.client, namespace).await? {
        return Ok(Action::requeue(acting::retry()));
    }
    let place = Place { shared, namespace, owner };
    let before = object.status().cloned().unwrap_or_default();
    let asleep = object.is_asleep();
    let awake = !asleep && object.replicas() > 0;
    let asked = Asked { generation: object.meta().generation.unwrap_or(0), awake };
    if let Some(pause) = shared.rivals.pause(&workload, asked, Instant::now()) {
        return Ok(Action::requeue(pause));
    }
    let mut failed = Failed::default();
    if !awake {
        failed.note(object.halt(&place).await);
    }
    if let Some(other) = stores.older_namesake(object) {
        let message = format!("The name is taken by the older {other}: choose another name");
        let told = Told { phase: Phase::Failed, message: Some(message), progress: None };
        let after = status(object, &before, told, &[], (0, 0), None, shared, Timestamp::now());
        write(object, &before, &after, shared).await?;
        return failed.passing.map_or_else(|| Ok(Action::await_change()), Err);
    }

    failed.note(place.put::<Service>(&manifest::service(object, &shared.config)).await);
    let mut object = object.clone();
    // A pod that runs is not changed on what is not known.
    let known = take_off_keys(&mut object, &place, &mut failed).await;
    let object = &object;
    let Applied { under, agent, canary } = if known {
        object.apply(&place, awake, &mut failed).await
    } else {
        let under = failed.note(place.look(&object.name_any()).await).flatten();
        Applied { under, agent: before.agent.clone(), canary: before.canary.clone() }
    };
    let key = workload.to_string();
    let generation = under.as_ref().and_then(|under| under.meta().generation);
    if let Some(generation) = generation
        && shared.rivals.applied(&workload, asked, generation, Instant::now())
    {
        rivals::tell(object, &workload, shared).await;
    }
    match &failed.passing {
        Some(error) => failed.problems.extend(shared.failures.again(&key, error)),
        None => shared.failures.over(&key),
    }
    let observed = observe(object, &place, under.as_ref(), awake, &before).await;
    let (replicas, ready, pods) = match observed {
        Ok(observed) => observed,
        Err(error) => {
            failed.note(Err::<(), _>(error));
            (before.replicas, before.ready_replicas, Vec::new())
        }
    };
    if under.is_some() || !failed.problems.is_empty() {
        let told =
            tell(&Observed { wanted: object.replicas(), asleep, replicas, ready, pods: &pods });
        let told = told.with(&failed.problems, under.is_some());
        let counts = (replicas, ready);
        let now = Timestamp::now();
        let mut after = status(object, &before, told, &failed.problems, counts, agent, shared, now);
        after.canary = canary;
        write(object, &before, &after, shared).await?;
    }
    match failed.passing {
        Some(error) => Err(error),
        None => Ok(match failed.problems.iter().map(|problem| problem.reason.again()).min() {
            Some(again) => Action::requeue(again),
            None => Action::await_change(),
        }),
    }
}

/// How many pods there are and how many are ready, and while it comes up the pods themselves.
async fn observe<W: Reconciled>(
    object: &W,
    place: &Place<'_>,
    under: Option<&W::Under>,
    awake: bool,
    before: &WorkloadStatus,
) -> kube::Result<(i32, i32, Vec<Pod>)> {
    let Some(under) = under else { return Ok((0, 0, Vec::new())) };
    let counts = W::counts(under);
    let ready = counts.ready(before.phase);
    let coming = before.phase != Some(Phase::Running) || ready == 0;
    if !coming {
        return Ok((counts.replicas, ready, Vec::new()));
    }
    let mut pods = Vec::new();
    if awake {
        let params = ListParams::default().labels(&manifest::selector_text(object));
        pods = place.api::<Pod>().list(&params).await?.items;
        object.unblock(place, under, &pods).await?;
    }
    // A pod from before the wake counts as ready until it is gone, but nobody can be sent there.
    let ready = if pods.iter().any(stays) { ready } else { 0 };
    Ok((counts.replicas, ready, pods))
}

fn stays(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_none()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn pods_from_before_a_wake_are_not_ready_for_it() {
        let set = |observed: i64| {
            let set = json!({
                "metadata": {"name": "lab", "generation": 3},
                "status": {"replicas": 1, "readyReplicas": 1, "observedGeneration": observed},
            });
            serde_json::from_value::<StatefulSet>(set).unwrap()
        };
        let ready = |observed, was| Workspace::counts(&set(observed)).ready(Some(was));
        assert_eq!(ready(2, Phase::Sleeping), 0);
        assert_eq!(ready(3, Phase::Sleeping), 1);
        assert_eq!(ready(2, Phase::Running), 1, "a change takes nothing away");
    }
}
