//! Workspaces and apps: applies what lies under them and tells their state.

use std::sync::Arc;

use cluster::{
    labels,
    resources::{AgentStatus, App, CanaryStatus, Phase, WorkloadResource, Workspace},
};
use domain::workload::WorkloadKind;
use futures::StreamExt;
use jiff::Timestamp;
use k8s_openapi::{
    api::{
        apps::v1::{Deployment, StatefulSet},
        core::v1::{PersistentVolumeClaim, Pod, Secret, Service},
    },
    apimachinery::pkg::apis::meta::v1::Time,
};
use kube::{
    Api, Resource, ResourceExt,
    api::{ListParams, Patch, PatchParams},
    runtime::{Controller, controller::Action, reflector::ObjectRef},
};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::{
    Shared, Stores, acting, agent_key, canary, manifest,
    phase::{Observed, Told, tell},
    status::{status, write},
};

#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    #[error(transparent)]
    Kube(#[from] kube::Error),
    #[error(transparent)]
    Key(#[from] agent_key::KeyError),
}

pub fn controller<W: Reconciled>(shared: &Shared) -> Controller<W> {
    acting::controller(shared)
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
                let error = match error {
                    ReconcileError::Kube(error) => cluster::watch::told(error),
                    ReconcileError::Key(error) => error.to_string(),
                };
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
    type Under: Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>
        + Clone
        + std::fmt::Debug
        + DeserializeOwned
        + Send
        + Sync
        + 'static;

    fn counts(under: &Self::Under) -> Counts;

    /// Applies everything but the Service, which all have.
    fn apply(
        &self,
        shared: &Shared,
        namespace: &str,
        awake: bool,
    ) -> impl Future<Output = Result<Applied<Self::Under>, ReconcileError>> + Send;
}

/// What the API server made of the manifests.
pub struct Applied<U> {
    under: U,
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

pub(crate) async fn apply_one<K>(
    shared: &Shared,
    namespace: &str,
    manifest: &Value,
) -> kube::Result<K>
where
    K: Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>
        + Clone
        + std::fmt::Debug
        + DeserializeOwned,
{
    let api: Api<K> = Api::namespaced(shared.client.clone(), namespace);
    let name = manifest["metadata"]["name"].as_str().unwrap_or_default();
    let params = PatchParams::apply(labels::MANAGER).force();
    api.patch(name, &params, &Patch::Apply(manifest)).await
}

impl Reconciled for Workspace {
    type Under = StatefulSet;

    fn counts(under: &StatefulSet) -> Counts {
        let status = under.status.as_ref();
        let replicas = status.map_or(0, |status| status.replicas);
        let ready = status.and_then(|status| status.ready_replicas).unwrap_or(0);
        let seen = status.and_then(|status| status.observed_generation);
        Counts { replicas, ready, current: seen >= under.metadata.generation }
    }

    async fn apply(
        &self,
        shared: &Shared,
        namespace: &str,
        awake: bool,
    ) -> Result<Applied<StatefulSet>, ReconcileError> {
        let agent = &shared.config.agent;
        let key = agent_key::read_or_make(&shared.client, namespace, &self.name_any()).await?;
        let secret = manifest::agent_secret(self, &key.private, &agent.gateway_key);
        apply_one::<Secret>(shared, namespace, &secret).await?;
        apply_one::<PersistentVolumeClaim>(shared, namespace, &manifest::claim(self)).await?;
        let set = manifest::stateful_set(self, awake, &shared.config);
        let under = apply_one(shared, namespace, &set).await?;
        let agent = Some(AgentStatus { port: manifest::AGENT_PORT, host_key: key.public });
        Ok(Applied { under, agent, canary: None })
    }
}

impl Reconciled for App {
    type Under = Deployment;

    fn counts(under: &Deployment) -> Counts {
        let status = under.status.as_ref();
        let replicas = status.and_then(|status| status.replicas).unwrap_or(0);
        let ready = status.and_then(|status| status.ready_replicas).unwrap_or(0);
        let seen = status.and_then(|status| status.observed_generation);
        Counts { replicas, ready, current: seen >= under.metadata.generation }
    }

    async fn apply(
        &self,
        shared: &Shared,
        namespace: &str,
        awake: bool,
    ) -> Result<Applied<Deployment>, ReconcileError> {
        let deployment = manifest::deployment(self, awake, &shared.config);
        let under = apply_one(shared, namespace, &deployment).await?;
        let canary = match canary::apply(self, shared, namespace, awake).await {
            Ok(canary) => canary,
            Err(error) => canary::refused(self, refusal(&error).ok_or(error)?),
        };
        Ok(Applied { under, agent: None, canary })
    }
}

async fn reconcile<W: Reconciled>(
    object: &W,
    shared: &Shared,
    stores: &Stores,
) -> Result<Action, ReconcileError> {
    let Some(workload) = object.workload() else { return Ok(Action::await_change()) };
    if object.meta().deletion_timestamp.is_some() {
        // What it owns goes with it, by garbage collection.
        return Ok(Action::await_change());
    }
    let namespace = workload.project.as_str();
    let before = object.status().cloned().unwrap_or_default();
    if let Some(other) = stores.older_namesake(object) {
        let message = format!("The name is taken by the older {other}: choose another name");
        let told = Told { phase: Phase::Failed, message: Some(message), progress: None };
        let after = status(object, &before, told, (0, 0), None, shared, Timestamp::now());
        write(object, &before, &after, shared).await?;
        return Ok(Action::await_change());
    }

    let asleep = object.is_asleep();
    let applied = async {
        apply_one::<Service>(shared, namespace, &manifest::service(object)).await?;
        object.apply(shared, namespace, !asleep).await
    };
    let Applied { under, agent, canary } = match applied.await {
        Ok(applied) => applied,
        Err(error) => {
            if let Some(message) = refusal(&error) {
                let told = Told { phase: Phase::Failed, message: Some(message), progress: None };
                let counts = (before.replicas, before.ready_replicas);
                let agent = before.agent.clone();
                let after = status(object, &before, told, counts, agent, shared, Timestamp::now());
                write(object, &before, &after, shared).await?;
            }
            return Err(error);
        }
    };
    let counts = W::counts(&under);
    let (replicas, ready) = (counts.replicas, counts.ready(before.phase));
    let coming = before.phase != Some(Phase::Running) || ready == 0;
    let pods = if coming && !asleep && object.replicas() > 0 {
        let pods: Api<Pod> = Api::namespaced(shared.client.clone(), namespace);
        pods.list(&ListParams::default().labels(&manifest::selector_text(object))).await?.items
    } else {
        Vec::new()
    };
    // A pod from before the wake counts as ready until it is gone, but nobody can be sent there.
    let ready = if coming && !pods.iter().any(stays) { 0 } else { ready };
    let told = tell(&Observed { wanted: object.replicas(), asleep, replicas, ready, pods: &pods });
    let mut after =
        status(object, &before, told, (replicas, ready), agent, shared, Timestamp::now());
    after.canary = canary;
    write(object, &before, &after, shared).await?;
    Ok(Action::await_change())
}

fn stays(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_none()
}

/// What to tell the person whose workload the API server finds wrong, or its rules forbid; `None` for what may
/// pass by itself.
fn refusal(error: &ReconcileError) -> Option<String> {
    match error {
        ReconcileError::Kube(kube::Error::Api(status))
            if matches!(status.code, 400 | 403 | 422) =>
        {
            Some(format!("The cluster refuses it: {}", status.message))
        }
        _ => None,
    }
}

impl Stores {
    /// The workload of another kind that has the same host, if it is older than this one.
    fn older_namesake<W: WorkloadResource>(&self, object: &W) -> Option<String> {
        let (name, namespace) = (object.name_any(), object.namespace()?);
        let other = match W::KIND {
            WorkloadKind::Workspace => {
                let found = self.apps.get(&ObjectRef::new(&name).within(&namespace))?;
                (WorkloadKind::App, found.creation_timestamp())
            }
            WorkloadKind::App => {
                let found = self.workspaces.get(&ObjectRef::new(&name).within(&namespace))?;
                (WorkloadKind::Workspace, found.creation_timestamp())
            }
        };
        // The same order as the route table's: by time, then by kind.
        let age = |created: Option<Time>, kind| (created.map(|time| time.0), kind);
        let (mine, theirs) = (age(object.creation_timestamp(), W::KIND), age(other.1, other.0));
        (theirs < mine).then(|| format!("{} {name}", other.0))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_refusal_is_told_and_a_conflict_is_not() {
        let answer = |code| {
            let status = json!({"code": code, "message": "no such amount", "status": "Failure"});
            let status = serde_json::from_value::<kube::core::Status>(status).unwrap();
            ReconcileError::Kube(kube::Error::Api(Box::new(status)))
        };
        let told = refusal(&answer(422)).unwrap();
        assert_eq!(told, "The cluster refuses it: no such amount");
        for passing in [404, 409, 429, 500, 503] {
            assert_eq!(refusal(&answer(passing)), None, "{passing}");
        }
    }

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
