//! Jobs: pods that run to their end, a number of times.

mod indexes;
mod plan;
mod pod;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, Patch};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::Error;
use super::cluster::Cluster;
use super::events::Note;
use super::names::{controller_named, is_controlled_by, random_suffix};
use super::queue::{Again, Key, Queue, work};

const COMPONENT: &str = "job-controller";
/// Pods created at a time.
const AT_ONCE: usize = 16;

/// Hears of changes from now on; works when the returned future runs.
pub fn start(
    cluster: Arc<Cluster>,
    shutdown: CancellationToken,
) -> impl Future<Output = ()> + Send {
    let queue = Queue::default();
    let to = queue.clone();
    cluster.jobs.on_change(move |change| change.sides().for_each(|job| to.add(Key::of(job))));
    let to = queue.clone();
    cluster.pods.on_change(move |change| {
        for pod in change.sides() {
            if let Some(name) = controller_named::<Job>(&pod.metadata) {
                to.add(Key::new(pod.metadata.namespace.as_deref().unwrap_or_default(), name));
            }
        }
    });
    work(COMPONENT, queue, 8, shutdown, move |key| reconcile(cluster.clone(), key))
}

async fn reconcile(cluster: Arc<Cluster>, key: Key) -> Result<Again, Error> {
    let job = cluster.jobs.get(&key);
    let uid = job.as_ref().and_then(|job| job.metadata.uid.as_deref());
    let mut pods = cluster.pods.in_namespace(&key.namespace);
    pods.retain(|pod| controller_named::<Job>(&pod.metadata) == Some(&key.name));
    let (own, strangers): (Vec<_>, Vec<_>) =
        pods.into_iter().partition(|pod| uid.is_some() && is_controlled_by(&pod.metadata, uid));
    // Their job is gone: nobody counts them any more.
    for pod in strangers.into_iter().filter(|pod| pod::is_tracked(pod)) {
        release(&cluster, &pod).await?;
    }
    let Some(job) = job else { return Ok(None) };
    let plan = plan::plan(&job, &own, Timestamp::now());
    // The status first: it says which pods are counted, also after a crash.
    if job.status.as_ref() != Some(&plan.status) {
        let mut changed = (*job).clone();
        changed.status = Some(plan.status);
        cluster.jobs.replace_status(&changed).await?;
    }
    for note in plan.notes {
        cluster.events.record(COMPONENT, &*job, note);
    }
    for pod in plan.release {
        release(&cluster, &pod).await?;
    }
    for pod in plan.delete {
        cluster.pods.delete(&pod, DeleteParams::default()).await?;
        let message = format!("Deleted pod: {}", pod.metadata.name.as_deref().unwrap_or_default());
        cluster.events.record(COMPONENT, &*job, Note::normal("SuccessfulDelete", message));
    }
    let created = plan.create.into_iter().map(|index| create(&cluster, &job, index));
    futures::stream::iter(created).buffer_unordered(AT_ONCE).try_collect::<()>().await?;
    if plan.expire {
        cluster.jobs.delete(&job, DeleteParams::foreground()).await?;
    }
    Ok(plan.again)
}

async fn create(cluster: &Cluster, job: &Job, index: Option<u32>) -> Result<(), Error> {
    let pod = pod::make(job, index, &random_suffix());
    let (note, result) = match cluster.pods.create(&pod).await {
        Ok(made) => {
            let message = format!("Created pod: {}", made.metadata.name.unwrap_or_default());
            (Note::normal("SuccessfulCreate", message), Ok(()))
        }
        Err(error) => {
            (Note::warning("FailedCreate", format!("Error creating: {error}")), Err(error))
        }
    };
    cluster.events.record(COMPONENT, job, note);
    result
}

async fn release(cluster: &Cluster, pod: &Pod) -> Result<(), Error> {
    let mut finalizers = pod.metadata.finalizers.clone().unwrap_or_default();
    finalizers.retain(|finalizer| finalizer != pod::TRACKING);
    let patch = json!({"metadata": {
        "uid": pod.metadata.uid, "resourceVersion": pod.metadata.resource_version, "finalizers": finalizers,
    }});
    match cluster.pods.patch(&Key::of(pod), &Patch::Merge(patch)).await {
        Err(error) if error.is_not_found() => {
            cluster.pods.forget(pod);
            Ok(())
        }
        other => other,
    }
}
