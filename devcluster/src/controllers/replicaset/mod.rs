//! ReplicaSets: a number of equal pods.

mod plan;

use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, Patch};
use tokio_util::sync::CancellationToken;

use super::Error;
use super::cluster::Cluster;
use super::events::Note;
use super::names::{
    Claim, adopt_patch, claim, controller_named, controller_of, owned_by, random_suffix,
    release_patch,
};
use super::pods::selects;
use super::queue::{Again, Key, Queue, work};

const COMPONENT: &str = "replicaset-controller";
/// Pods created or deleted at a time.
const AT_ONCE: usize = 16;

/// Hears of changes from now on; works when the returned future runs.
pub fn start(
    cluster: Arc<Cluster>,
    shutdown: CancellationToken,
) -> impl Future<Output = ()> + Send {
    let queue = Queue::default();
    let to = queue.clone();
    cluster
        .replicasets
        .on_change(move |change| change.sides().for_each(|set| to.add(Key::of(set))));
    let (to, sets) = (queue.clone(), cluster.replicasets.clone());
    cluster.pods.on_change(move |change| {
        for pod in change.sides() {
            let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
            if let Some(name) = controller_named::<ReplicaSet>(&pod.metadata) {
                to.add(Key::new(namespace, name));
            } else if change.new.is_some() && controller_of(&pod.metadata).is_none() {
                for set in sets.in_namespace(namespace) {
                    let selector = set.spec.as_ref().map(|spec| &spec.selector);
                    if selector
                        .is_some_and(|selector| selects(selector, pod.metadata.labels.as_ref()))
                    {
                        to.add(Key::of(&*set));
                    }
                }
            }
        }
    });
    work(COMPONENT, queue, 8, shutdown, move |key| reconcile(cluster.clone(), key))
}

async fn reconcile(cluster: Arc<Cluster>, key: Key) -> Result<Again, Error> {
    let Some(set) = cluster.replicasets.get(&key) else { return Ok(None) };
    let pods = own_pods(&cluster, &set).await?;
    let mut plan = plan::plan(&set, &pods, Timestamp::now());
    let done = if plan.create > 0 && plan::is_endless(&set) {
        tracing::debug!(replicaset = %key, "the template does not match the selector");
        Ok(())
    } else {
        scale(&cluster, &set, &plan).await
    };
    let failure = done.as_ref().err().map(|error| {
        (if plan.create > 0 { "FailedCreate" } else { "FailedDelete" }, error.to_string())
    });
    plan::set_failure(&mut plan.status, failure, Timestamp::now());
    if set.status.as_ref() != Some(&plan.status) {
        let mut changed = (*set).clone();
        changed.status = Some(plan.status);
        cluster.replicasets.replace_status(&changed).await?;
    }
    done.map(|()| plan.again)
}

async fn own_pods(cluster: &Cluster, set: &ReplicaSet) -> Result<Vec<Arc<Pod>>, Error> {
    let namespace = set.metadata.namespace.as_deref().unwrap_or_default();
    let Some(spec) = &set.spec else { return Ok(Vec::new()) };
    let Claim { mut owned, adopt, release } =
        claim(&set.metadata, &spec.selector, cluster.pods.in_namespace(namespace));
    for it in adopt {
        cluster
            .pods
            .patch(&Key::of(&*it), &Patch::Merge(adopt_patch(&it.metadata, owned_by(set))))
            .await?;
        owned.push(it);
    }
    for it in release {
        let patch = release_patch(&it.metadata, set.metadata.uid.as_deref());
        cluster.pods.patch(&Key::of(&*it), &Patch::Merge(patch)).await?;
    }
    Ok(owned)
}

async fn scale(cluster: &Cluster, set: &ReplicaSet, plan: &plan::Plan) -> Result<(), Error> {
    let created = (0..plan.create).map(|_| create(cluster, set));
    futures::stream::iter(created).buffer_unordered(AT_ONCE).try_collect::<()>().await?;
    let deleted = plan.delete.iter().cloned().map(|pod| delete(cluster, set, pod));
    futures::stream::iter(deleted).buffer_unordered(AT_ONCE).try_collect::<()>().await
}

async fn create(cluster: &Cluster, set: &ReplicaSet) -> Result<(), Error> {
    let pod = plan::make_pod(set, &random_suffix());
    let note = match cluster.pods.create(&pod).await {
        Ok(made) => Note::normal(
            "SuccessfulCreate",
            format!("Created pod: {}", made.metadata.name.unwrap_or_default()),
        ),
        Err(error) => {
            let note = Note::warning("FailedCreate", format!("Error creating: {error}"));
            cluster.events.record(COMPONENT, set, note);
            return Err(error);
        }
    };
    cluster.events.record(COMPONENT, set, note);
    Ok(())
}

async fn delete(cluster: &Cluster, set: &ReplicaSet, pod: Arc<Pod>) -> Result<(), Error> {
    let name = pod.metadata.name.clone().unwrap_or_default();
    if let Err(error) = cluster.pods.delete(&pod, DeleteParams::default()).await {
        let note = Note::warning("FailedDelete", format!("Error deleting: {error}"));
        cluster.events.record(COMPONENT, set, note);
        return Err(error);
    }
    cluster.events.record(
        COMPONENT,
        set,
        Note::normal("SuccessfulDelete", format!("Deleted pod: {name}")),
    );
    Ok(())
}
