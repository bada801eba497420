//! Volumes: claims and volumes find each other, and a claim in use is not deleted.

mod plan;
mod protection;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use kube::api::Patch;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::Error;
use super::cluster::Cluster;
use super::queue::{Again, Key, Queue, work};
use plan::{BIND_COMPLETED, BOUND_BY_CONTROLLER, ClaimStep, PROVISIONERS, Phase};
pub use protection::start as start_protection;

const COMPONENT: &str = "persistentvolume-controller";

/// Hears of changes from now on; works when the returned future runs.
pub fn start(
    cluster: Arc<Cluster>,
    shutdown: CancellationToken,
) -> impl Future<Output = ()> + Send {
    // One queue for both kinds: claims have a namespace, volumes have none.
    let queue = Queue::default();
    let (to, volumes) = (queue.clone(), cluster.volumes.clone());
    cluster.claims.on_change(move |change| {
        for claim in change.sides() {
            to.add(Key::of(claim));
            if let Some(volume) = claim.spec.as_ref().and_then(|spec| spec.volume_name.as_deref()) {
                to.add(Key::new("", volume));
            }
        }
        if let (Some(gone), None) = (change.old, change.new) {
            for volume in volumes.all().iter().filter(|volume| plan::is_claimed_by(volume, gone)) {
                to.add(Key::of(&**volume));
            }
        }
    });
    let (to, claims) = (queue.clone(), cluster.claims.clone());
    cluster.volumes.on_change(move |change| {
        for volume in change.sides() {
            to.add(Key::of(volume));
            match volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref()) {
                Some(held) => {
                    let namespace = held.namespace.as_deref().unwrap_or_default();
                    to.add(Key::new(namespace, held.name.as_deref().unwrap_or_default()));
                }
                // It may suit any claim that waits.
                None => claims
                    .all()
                    .iter()
                    .filter(|claim| !is_bound(claim))
                    .for_each(|claim| to.add(Key::of(&**claim))),
            }
        }
    });
    let (to, claims) = (queue.clone(), cluster.claims.clone());
    cluster.classes.on_change(move |_| {
        claims
            .all()
            .iter()
            .filter(|claim| !is_bound(claim))
            .for_each(|claim| to.add(Key::of(&**claim)));
    });
    // One at a time: two claims must not take the same volume.
    work(COMPONENT, queue, 1, shutdown, move |key| reconcile(cluster.clone(), key))
}

fn is_bound(claim: &PersistentVolumeClaim) -> bool {
    claim.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Bound")
}

async fn reconcile(cluster: Arc<Cluster>, key: Key) -> Result<Again, Error> {
    if key.namespace.is_empty() {
        reconcile_volume(&cluster, &key).await?;
    } else {
        reconcile_claim(&cluster, &key).await?;
    }
    Ok(None)
}

async fn reconcile_claim(cluster: &Cluster, key: &Key) -> Result<(), Error> {
    let Some(claim) = cluster.claims.get(key) else { return Ok(()) };
    let tell = |note| cluster.events.record(COMPONENT, &*claim, note);
    match plan::claim_step(&claim, &cluster.volumes.all(), &cluster.classes.all()) {
        ClaimStep::Nothing => Ok(()),
        ClaimStep::Tell(note) => {
            tell(note);
            Ok(())
        }
        ClaimStep::SetClass(class) => {
            let patch = json!({"spec": {"storageClassName": class}});
            cluster.claims.patch(key, &Patch::Merge(patch)).await
        }
        ClaimStep::Provision(provisioner, note) => {
            tell(note);
            let [name, old_name] = PROVISIONERS;
            let patch =
                json!({"metadata": {"annotations": {name: provisioner, old_name: provisioner}}});
            cluster.claims.patch(key, &Patch::Merge(patch)).await
        }
        ClaimStep::Status(status, note) => {
            if let Some(note) = note {
                tell(note);
            }
            let mut changed = (*claim).clone();
            changed.status = Some(*status);
            cluster.claims.replace_status(&changed).await
        }
        ClaimStep::Bind { volume, by_controller } => {
            bind(cluster, &claim, &volume, by_controller).await
        }
    }
}

/// The volume first, then the claim: a crash in between leaves a reserved volume, which the next look completes.
async fn bind(
    cluster: &Cluster,
    claim: &PersistentVolumeClaim,
    volume: &PersistentVolume,
    by_controller: bool,
) -> Result<(), Error> {
    let held = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
    if held.is_none_or(|held| held.uid != claim.metadata.uid) {
        let mut patch = json!({
            "metadata": {"resourceVersion": volume.metadata.resource_version},
            "spec": {"claimRef": plan::claim_reference(claim)},
        });
        if by_controller {
            patch["metadata"]["annotations"] = json!({BOUND_BY_CONTROLLER: "yes"});
        }
        cluster.volumes.patch(&Key::of(volume), &Patch::Merge(patch)).await?;
    }
    let name = volume.metadata.name.clone().unwrap_or_default();
    let mut annotations = json!({BIND_COMPLETED: "yes"});
    if claim.spec.as_ref().is_none_or(|spec| spec.volume_name.is_none()) {
        annotations[BOUND_BY_CONTROLLER] = json!("yes");
    }
    let patch = json!({
        "metadata": {"uid": claim.metadata.uid, "annotations": annotations},
        "spec": {"volumeName": name},
    });
    cluster.claims.patch(&Key::of(claim), &Patch::Merge(patch)).await
}

async fn reconcile_volume(cluster: &Cluster, key: &Key) -> Result<(), Error> {
    let Some(volume) = cluster.volumes.get(key) else { return Ok(()) };
    let held = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
    let claim_key = held.map(|held| {
        Key::new(
            held.namespace.as_deref().unwrap_or_default(),
            held.name.as_deref().unwrap_or_default(),
        )
    });
    let claim = claim_key.as_ref().and_then(|key| cluster.claims.get(key));
    let mut phase = plan::volume_phase(&volume, claim.as_deref());
    if let (Some(Phase::Released), Some(claim_key)) = (phase, &claim_key) {
        // A released volume is wiped: the copy of the claims may lag, so ask the API itself.
        let live = cluster.claims.api(&claim_key.namespace).get_opt(&claim_key.name).await?;
        phase = plan::volume_phase(&volume, live.as_ref());
        if let Some(live) = live {
            cluster.claims.record(live);
        }
    }
    let Some(phase) = phase else { return Ok(()) };
    if volume.status.as_ref().and_then(|status| status.phase.as_deref()) == Some(phase.as_str()) {
        return Ok(());
    }
    let patch =
        json!({"status": {"phase": phase.as_str(), "lastPhaseTransitionTime": Timestamp::now()}});
    cluster.volumes.patch_status(key, &Patch::Merge(patch)).await
}
