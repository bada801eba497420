//! Deployments: a ReplicaSet for each pod template, rolled from one to the next.

mod plan;
mod status;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use kube::api::{DeleteParams, Patch};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::Error;
use super::cluster::Cluster;
use super::events::Note;
use super::names::{
    Claim, adopt_patch, claim, controller_named, controller_of, owned_by, release_patch,
};
use super::pods::selects;
use super::queue::{Again, Key, Queue, work};
use plan::Action;

const COMPONENT: &str = "deployment-controller";

/// Hears of changes from now on; works when the returned future runs.
pub fn start(
    cluster: Arc<Cluster>,
    shutdown: CancellationToken,
) -> impl Future<Output = ()> + Send {
    let queue = Queue::default();
    let to = queue.clone();
    cluster.deployments.on_change(move |change| change.sides().for_each(|it| to.add(Key::of(it))));
    let (to, deployments) = (queue.clone(), cluster.deployments.clone());
    cluster.replicasets.on_change(move |change| {
        for set in change.sides() {
            let namespace = set.metadata.namespace.as_deref().unwrap_or_default();
            if let Some(name) = controller_named::<Deployment>(&set.metadata) {
                to.add(Key::new(namespace, name));
            } else if change.new.is_some() && controller_of(&set.metadata).is_none() {
                for deployment in deployments.in_namespace(namespace) {
                    let selector = deployment.spec.as_ref().map(|spec| &spec.selector);
                    if selector
                        .is_some_and(|selector| selects(selector, set.metadata.labels.as_ref()))
                    {
                        to.add(Key::of(&*deployment));
                    }
                }
            }
        }
    });
    // Recreate waits for the last old pod to be gone.
    let (to, sets) = (queue.clone(), cluster.replicasets.clone());
    cluster.pods.on_change(move |change| {
        let ended = |pod: &k8s_openapi::api::core::v1::Pod| super::pods::is_finished(pod);
        if let Some(old) = change.old
            && change.new.is_none_or(ended)
            && let Some(set) = controller_named::<ReplicaSet>(&old.metadata)
        {
            let namespace = old.metadata.namespace.as_deref().unwrap_or_default();
            let set = sets.get(&Key::new(namespace, set));
            if let Some(name) =
                set.as_ref().and_then(|set| controller_named::<Deployment>(&set.metadata))
            {
                to.add(Key::new(namespace, name));
            }
        }
    });
    work(COMPONENT, queue, 8, shutdown, move |key| reconcile(cluster.clone(), key))
}

async fn reconcile(cluster: Arc<Cluster>, key: Key) -> Result<Again, Error> {
    let Some(deployment) = cluster.deployments.get(&key) else { return Ok(None) };
    let sets = own_sets(&cluster, &deployment).await?;
    let mut pods = cluster.pods.in_namespace(&key.namespace);
    pods.retain(|pod| {
        let owner = controller_of(&pod.metadata).map(|owner| owner.uid.as_str());
        owner.is_some() && sets.iter().any(|set| set.metadata.uid.as_deref() == owner)
    });
    let plan = plan::plan(&deployment, &sets, &pods, Timestamp::now());
    for action in plan.actions {
        act(&cluster, &deployment, action).await?;
    }
    if deployment.status.as_ref() != Some(&plan.status.status) {
        // The object may have been annotated above: write the status onto what it is now.
        let newest = cluster.deployments.get(&key).unwrap_or(deployment);
        let mut changed = (*newest).clone();
        changed.status = Some(plan.status.status);
        cluster.deployments.replace_status(&changed).await?;
    }
    Ok(plan.status.again)
}

async fn own_sets(
    cluster: &Cluster,
    deployment: &Deployment,
) -> Result<Vec<Arc<ReplicaSet>>, Error> {
    let namespace = deployment.metadata.namespace.as_deref().unwrap_or_default();
    let Some(spec) = &deployment.spec else { return Ok(Vec::new()) };
    let Claim { mut owned, adopt, release } =
        claim(&deployment.metadata, &spec.selector, cluster.replicasets.in_namespace(namespace));
    for it in adopt {
        let patch = adopt_patch(&it.metadata, owned_by(deployment));
        cluster.replicasets.patch(&Key::of(&*it), &Patch::Merge(patch)).await?;
        owned.push(it);
    }
    for it in release {
        let patch = release_patch(&it.metadata, deployment.metadata.uid.as_deref());
        cluster.replicasets.patch(&Key::of(&*it), &Patch::Merge(patch)).await?;
    }
    Ok(owned)
}

async fn act(cluster: &Cluster, deployment: &Deployment, action: Action) -> Result<(), Error> {
    let scaled = |name: &str, from: i32, to: i32| {
        let way = if to > from { "up" } else { "down" };
        let message = format!("Scaled {way} replica set {name} from {from} to {to}");
        cluster.events.record(COMPONENT, deployment, Note::normal("ScalingReplicaSet", message));
    };
    match action {
        Action::Create(set) => {
            let name = set.metadata.name.clone().unwrap_or_default();
            let replicas = plan::size(&set);
            cluster.replicasets.create(&set).await.inspect_err(|error| {
                let message = format!("Failed to create new replica set {name:?}: {error}");
                cluster.events.record(
                    COMPONENT,
                    deployment,
                    Note::warning("ReplicaSetCreateError", message),
                );
            })?;
            if replicas > 0 {
                scaled(&name, 0, replicas);
            }
        }
        Action::Scale { set, replicas, annotations } => {
            let patch = json!({"metadata": annotated(annotations), "spec": {"replicas": replicas}});
            cluster.replicasets.patch(&Key::of(&*set), &Patch::Merge(patch)).await?;
            scaled(set.metadata.name.as_deref().unwrap_or_default(), plan::size(&set), replicas);
        }
        Action::Annotate { set, annotations } => {
            let patch = json!({"metadata": annotated(annotations)});
            cluster.replicasets.patch(&Key::of(&*set), &Patch::Merge(patch)).await?;
        }
        Action::Delete(set) => cluster.replicasets.delete(&set, DeleteParams::background()).await?,
        Action::Revision(revision) => {
            let patch = json!({"metadata": annotated(vec![(plan::REVISION, revision)])});
            cluster.deployments.patch(&Key::of(deployment), &Patch::Merge(patch)).await?;
        }
    }
    Ok(())
}

fn annotated(annotations: Vec<(&'static str, String)>) -> serde_json::Value {
    let annotations: serde_json::Map<_, _> =
        annotations.into_iter().map(|(name, value)| (name.to_owned(), value.into())).collect();
    json!({"annotations": annotations})
}
