//! Keeps a claim (and its data) until the last pod that uses it is gone, as `pvc-protection` does.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::Patch;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::controllers::Error;
use crate::controllers::cluster::Cluster;
use crate::controllers::pods;
use crate::controllers::queue::{Again, Key, Queue, work};

pub const FINALIZER: &str = "kubernetes.io/pvc-protection";

/// Hears of changes from now on; works when the returned future runs.
pub fn start(
    cluster: Arc<Cluster>,
    shutdown: CancellationToken,
) -> impl Future<Output = ()> + Send {
    let queue = Queue::default();
    let to = queue.clone();
    cluster
        .claims
        .on_change(move |change| change.new.into_iter().for_each(|claim| to.add(Key::of(claim))));
    let to = queue.clone();
    cluster.pods.on_change(move |change| {
        if change.new.is_none_or(pods::is_finished)
            && let Some(pod) = change.old
        {
            let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
            claim_names(pod).for_each(|name| to.add(Key::new(namespace, name)));
        }
    });
    work("pvc-protection-controller", queue, 4, shutdown, move |key| {
        reconcile(cluster.clone(), key)
    })
}

fn claim_names(pod: &Pod) -> impl Iterator<Item = &str> {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    volumes
        .filter_map(|volume| volume.persistent_volume_claim.as_ref())
        .map(|source| source.claim_name.as_str())
}

/// The finalizers a claim should have, if they differ from what it has.
pub fn finalizers(claim: &ObjectMeta, in_use: bool) -> Option<Vec<String>> {
    let mut held = claim.finalizers.clone().unwrap_or_default();
    let protected = held.iter().any(|finalizer| finalizer == FINALIZER);
    match (claim.deletion_timestamp.is_some(), protected) {
        (false, false) => held.push(FINALIZER.to_owned()),
        (true, true) if !in_use => held.retain(|finalizer| finalizer != FINALIZER),
        _ => return None,
    }
    Some(held)
}

/// Whether a pod keeps the claim: one that never got a node holds no data.
pub fn uses(pod: &Pod, claim: &str) -> bool {
    !pods::is_finished(pod) && pods::is_scheduled(pod) && claim_names(pod).any(|name| name == claim)
}

async fn reconcile(cluster: Arc<Cluster>, key: Key) -> Result<Again, Error> {
    let Some(claim) = cluster.claims.get(&key) else { return Ok(None) };
    let in_use = cluster.pods.in_namespace(&key.namespace).iter().any(|pod| uses(pod, &key.name));
    if let Some(finalizers) = finalizers(&claim.metadata, in_use) {
        let patch = json!({"metadata": {
            "uid": claim.metadata.uid, "resourceVersion": claim.metadata.resource_version, "finalizers": finalizers,
        }});
        cluster.claims.patch(&key, &Patch::Merge(patch)).await?;
    }
    Ok(None)
}
