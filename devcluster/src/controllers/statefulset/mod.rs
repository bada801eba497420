//! StatefulSets: pods with stable names, in order, each with its own volume claims.

mod plan;
mod pod;
mod revision;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, Patch};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::Error;
use super::cluster::Cluster;
use super::events::Note;
use super::names::{
    Claim, adopt_patch, claim, controller_named, controller_of, owned_by, owners_patch,
    release_patch,
};
use super::pods::selects;
use super::queue::{Again, Key, Queue, work};
use plan::{Action, Observed, Reason};

const COMPONENT: &str = "statefulset-controller";

/// Hears of changes from now on; works when the returned future runs.
pub fn start(
    cluster: Arc<Cluster>,
    shutdown: CancellationToken,
) -> impl Future<Output = ()> + Send {
    let queue = Queue::default();
    let to = queue.clone();
    cluster
        .statefulsets
        .on_change(move |change| change.sides().for_each(|set| to.add(Key::of(set))));
    let (to, sets) = (queue.clone(), cluster.statefulsets.clone());
    cluster.pods.on_change(move |change| {
        for pod in change.sides() {
            ask_owner(&to, &pod.metadata);
            if change.new.is_some() && controller_of(&pod.metadata).is_none() {
                let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
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
    let to = queue.clone();
    cluster
        .revisions
        .on_change(move |change| change.sides().for_each(|it| ask_owner(&to, &it.metadata)));
    // A claim that goes away while its pod waits for a node must come back.
    let (to, pods) = (queue.clone(), cluster.pods.clone());
    cluster.claims.on_change(move |change| {
        if let (Some(old), None) = (change.old, change.new) {
            let name = old.metadata.name.as_deref().unwrap_or_default();
            for pod in pods.in_namespace(old.metadata.namespace.as_deref().unwrap_or_default()) {
                if pod.metadata.name.as_deref().is_some_and(|pod| name.ends_with(pod)) {
                    ask_owner(&to, &pod.metadata);
                }
            }
        }
    });
    work(COMPONENT, queue, 8, shutdown, move |key| reconcile(cluster.clone(), key))
}

fn ask_owner(queue: &Queue, meta: &ObjectMeta) {
    if let Some(name) = controller_named::<StatefulSet>(meta) {
        queue.add(Key::new(meta.namespace.as_deref().unwrap_or_default(), name));
    }
}

async fn reconcile(cluster: Arc<Cluster>, key: Key) -> Result<Again, Error> {
    let Some(set) = cluster.statefulsets.get(&key) else { return Ok(None) };
    let pods = own_pods(&cluster, &set).await?;
    let history = own_history(&cluster, &set).await?;
    let claims = cluster.claims.in_namespace(&key.namespace);
    let plan = plan::plan(&Observed {
        set: &set,
        history: &history,
        pods: &pods,
        claims: &claims,
        now: Timestamp::now(),
    });
    for action in plan.actions {
        act(&cluster, &set, action).await?;
    }
    if set.status.as_ref() != Some(&plan.status) {
        let mut changed = (*set).clone();
        changed.status = Some(plan.status);
        cluster.statefulsets.replace_status(&changed).await?;
    }
    Ok(plan.again)
}

/// The set's pods, after taking those that match it and letting go those that no longer do.
async fn own_pods(cluster: &Cluster, set: &StatefulSet) -> Result<Vec<Arc<Pod>>, Error> {
    let namespace = set.metadata.namespace.as_deref().unwrap_or_default();
    let Some(spec) = &set.spec else { return Ok(Vec::new()) };
    let Claim { mut owned, adopt, release } =
        claim(&set.metadata, &spec.selector, cluster.pods.in_namespace(namespace));
    for it in adopt.into_iter().filter(|it| pod::ordinal(set, it).is_some()) {
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

/// The set's revisions, those included that an earlier set of its name left behind.
async fn own_history(
    cluster: &Cluster,
    set: &StatefulSet,
) -> Result<Vec<Arc<ControllerRevision>>, Error> {
    let namespace = set.metadata.namespace.as_deref().unwrap_or_default();
    let Some(spec) = &set.spec else { return Ok(Vec::new()) };
    let Claim { mut owned, adopt, release } =
        claim(&set.metadata, &spec.selector, cluster.revisions.in_namespace(namespace));
    // A revision keeps the labels of its time; it is the set's all the same.
    owned.extend(release);
    for it in adopt {
        let patch = adopt_patch(&it.metadata, owned_by(set));
        cluster.revisions.patch(&Key::of(&*it), &Patch::Merge(patch)).await?;
        owned.push(it);
    }
    Ok(owned)
}

async fn act(cluster: &Cluster, set: &StatefulSet, action: Action) -> Result<(), Error> {
    let namespace = set.metadata.namespace.as_deref().unwrap_or_default();
    let kind_and_name = format!("StatefulSet {}", set.metadata.name.as_deref().unwrap_or_default());
    let tell = |note| cluster.events.record(COMPONENT, set, note);
    match action {
        Action::CreateRevision(revision) => {
            cluster.revisions.create(&revision).await?;
        }
        Action::RenumberRevision(name, number) => {
            let patch = Patch::Merge(json!({"revision": number}));
            cluster.revisions.patch(&Key::new(namespace, &name), &patch).await?;
        }
        Action::DeleteRevision(revision) => {
            cluster.revisions.delete(&revision, DeleteParams::default()).await?;
        }
        Action::CreateClaim(claim) => {
            let name = claim.metadata.name.clone().unwrap_or_default();
            cluster.claims.create(&claim).await.inspect_err(|error| {
                tell(Note::warning(
                    "FailedCreate",
                    format!("create Claim {name} for {kind_and_name} failed: {error}"),
                ));
            })?;
            tell(Note::normal(
                "SuccessfulCreate",
                format!("create Claim {name} in {kind_and_name} success"),
            ));
        }
        Action::SetClaimOwners(claim, owners) => {
            let patch = Patch::Merge(owners_patch(&claim.metadata, &owners));
            cluster.claims.patch(&Key::of(&*claim), &patch).await?;
        }
        Action::CreatePod(pod) => {
            let name = pod.metadata.name.clone().unwrap_or_default();
            cluster.pods.create(&pod).await.inspect_err(|error| {
                tell(Note::warning(
                    "FailedCreate",
                    format!("create Pod {name} in {kind_and_name} failed: {error}"),
                ));
            })?;
            tell(Note::normal(
                "SuccessfulCreate",
                format!("create Pod {name} in {kind_and_name} successful"),
            ));
        }
        Action::DeletePod(pod, reason) => {
            let name = pod.metadata.name.clone().unwrap_or_default();
            if reason == Reason::Finished {
                tell(Note::warning(
                    "RecreatingTerminatedPod",
                    format!("{kind_and_name} is recreating terminated Pod {name}"),
                ));
            }
            cluster.pods.delete(&pod, DeleteParams::default()).await?;
            tell(Note::normal(
                "SuccessfulDelete",
                format!("delete Pod {name} in {kind_and_name} successful"),
            ));
        }
    }
    Ok(())
}
