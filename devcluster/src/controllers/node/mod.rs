//! Nodes: a range of pod addresses for each, and what their silence means for their pods.

mod cidr;
mod plan;
mod silence;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{DeleteParams, Patch};
use parking_lot::Mutex;
use serde_json::json;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Error;
use super::cluster::Cluster;
use super::events::Note;
use super::pods::{condition, is_ready, is_terminating, node_name, sooner};
use super::queue::{Again, Key, Queue, work};
use plan::{Fate, Health};
use silence::{Silence, Verdict};

const COMPONENT: &str = "node-controller";
/// How long pods of a node that does not exist are left alone.
const QUARANTINE: Duration = Duration::from_secs(40);
const LEASES: &str = "kube-node-lease";

struct Controller {
    cluster: Arc<Cluster>,
    silence: Mutex<Silence>,
    /// Since when pods have been seen on nodes that do not exist.
    missing: Mutex<HashMap<String, Instant>>,
}

/// Hears of changes from now on; works when the returned future runs.
pub fn start(
    cluster: Arc<Cluster>,
    shutdown: CancellationToken,
) -> impl Future<Output = ()> + Send {
    let queue = Queue::default();
    let controller = Arc::new(Controller {
        cluster: cluster.clone(),
        silence: Mutex::default(),
        missing: Mutex::default(),
    });
    let (to, this) = (queue.clone(), Arc::downgrade(&controller));
    cluster.nodes.on_change(move |change| {
        let Some(this) = this.upgrade() else { return };
        let heartbeat = |node: &Node| {
            let conditions = node.status.as_ref().and_then(|status| status.conditions.clone());
            conditions
                .and_then(|it| it.into_iter().find(|it| it.type_ == "Ready"))
                .map(|it| (it.status, it.last_heartbeat_time))
        };
        for node in change.sides() {
            let name = node.metadata.name.clone().unwrap_or_default();
            if change.new.is_none() {
                this.silence.lock().forget(&name);
            } else if change.new.map(heartbeat) != change.old.map(heartbeat)
                && change.new.and_then(heartbeat).is_none_or(|(status, _)| status != "Unknown")
            {
                this.silence.lock().hear(&name, Instant::now());
            }
            to.add(Key::new("", &name));
        }
    });
    let (to, this) = (queue.clone(), Arc::downgrade(&controller));
    cluster.leases.on_change(move |change| {
        let Some((this, lease)) = this.upgrade().zip(change.new) else { return };
        if lease.metadata.namespace.as_deref() == Some(LEASES) {
            let name = lease.metadata.name.clone().unwrap_or_default();
            this.silence.lock().hear(&name, Instant::now());
            to.add(Key::new("", &name));
        }
    });
    let to = queue.clone();
    cluster.pods.on_change(move |change| {
        for pod in change.sides() {
            // An unbound pod has no node: its deletion is this controller's, under the empty name.
            to.add(Key::new("", node_name(pod).unwrap_or_default()));
        }
    });
    // One at a time: two nodes must not get the same range.
    work(COMPONENT, queue, 1, shutdown, move |key| reconcile(controller.clone(), key))
}

async fn reconcile(controller: Arc<Controller>, key: Key) -> Result<Again, Error> {
    let cluster = &controller.cluster;
    let Some(node) = cluster.nodes.get(&key) else {
        return orphaned(&controller, &key.name).await;
    };
    controller.missing.lock().remove(&key.name);
    if node.spec.as_ref().is_none_or(|spec| spec.pod_cidr.is_none()) {
        give_range(cluster, &node).await?;
    }
    let verdict = controller.silence.lock().judge(&key.name, Instant::now());
    let health = plan::health(&node, verdict == Verdict::Silent);
    let now = Timestamp::now();
    let mut again = match verdict {
        Verdict::Lives(again) => Some(again),
        Verdict::Silent => None,
    };
    if health == Health::Unreachable
        && let Some(conditions) = plan::unknown_conditions(&node, now)
    {
        tracing::warn!(node = %key.name, "the node is silent: taking it for dead");
        let message = format!("Node {} status is now: NodeNotReady", key.name);
        cluster.events.record(COMPONENT, &*node, Note::normal("NodeNotReady", message));
        let patch = json!({"status": {"conditions": conditions}});
        cluster.nodes.patch_status(&key, &Patch::Strategic(patch)).await?;
    }
    if let Some(taints) = plan::taints(&node, health, now) {
        let patch = json!({
            "metadata": {"resourceVersion": cluster.nodes.get(&key).and_then(|node| node.metadata.resource_version.clone())},
            "spec": {"taints": taints},
        });
        cluster.nodes.patch(&key, &Patch::Merge(patch)).await?;
        return Ok(Some(Duration::ZERO));
    }
    let mut guests = cluster.pods.all();
    guests.retain(|pod| node_name(pod) == Some(&key.name));
    for pod in guests {
        if health == Health::Unreachable && is_ready(&pod) {
            mark_unready(cluster, &pod).await?;
        }
        match plan::fate(&pod, &node, health, now) {
            Fate::Stays => {}
            Fate::EvictIn(wait) | Fate::ForgetIn(wait) => again = sooner(again, Some(wait)),
            Fate::Evict => {
                let message = format!("Marking for deletion Pod {}", Key::of(&*pod));
                cluster.events.record(
                    "taint-eviction-controller",
                    &*pod,
                    Note::normal("TaintManagerEviction", message),
                );
                cluster.pods.delete(&pod, DeleteParams::default()).await?;
            }
            Fate::Forget => forget(cluster, &pod).await?,
        }
    }
    Ok(again)
}

async fn give_range(cluster: &Cluster, node: &Node) -> Result<(), Error> {
    let nodes = cluster.nodes.all();
    let taken = nodes.iter().filter_map(|node| node.spec.as_ref()?.pod_cidr.as_deref());
    let uid = node.metadata.uid.as_deref().unwrap_or_default();
    let Some(range) = cidr::next(uid, taken) else {
        let note = Note::warning("CIDRNotAvailable", "all ranges of pod addresses are taken");
        cluster.events.record(COMPONENT, node, note);
        return Ok(());
    };
    let patch = json!({"metadata": {"uid": node.metadata.uid}, "spec": {"podCIDR": range, "podCIDRs": [range]}});
    cluster.nodes.patch(&Key::of(node), &Patch::Merge(patch)).await
}

/// Whoever asks for ready pods must not be sent to a dead node.
async fn mark_unready(cluster: &Cluster, pod: &Pod) -> Result<(), Error> {
    let held = condition(pod, "Ready");
    let patch = json!({"status": {"conditions": [{
        "type": "Ready", "status": "False", "reason": held.and_then(|held| held.reason.clone()),
        "lastTransitionTime": Time(Timestamp::now()),
    }]}});
    cluster.pods.patch_status(&Key::of(pod), &Patch::Strategic(patch)).await
}

async fn forget(cluster: &Cluster, pod: &Pod) -> Result<(), Error> {
    cluster.pods.delete(pod, DeleteParams::default().grace_period(0)).await
}

/// Pods whose node does not exist (any more), and deleted pods that never got one: nobody else ends
/// them. A node may come back under its name, so it is given as long as a silent one.
async fn orphaned(controller: &Controller, node: &str) -> Result<Again, Error> {
    let cluster = &controller.cluster;
    let mut stranded = cluster.pods.all();
    // A pod without node only matters once it is deleted.
    stranded.retain(|pod| {
        node_name(pod).unwrap_or_default() == node && (!node.is_empty() || is_terminating(pod))
    });
    if stranded.is_empty() {
        controller.missing.lock().remove(node);
        return Ok(None);
    }
    if !node.is_empty() {
        let since = *controller.missing.lock().entry(node.to_owned()).or_insert_with(Instant::now);
        let left = QUARANTINE.saturating_sub(since.elapsed());
        if !left.is_zero() {
            return Ok(Some(left));
        }
        // The copy of the nodes may lag behind the pods': ask before ending anything.
        if cluster.nodes.api("").get_opt(node).await?.is_some() {
            return Ok(None);
        }
    }
    for pod in stranded {
        tracing::debug!(pod = %Key::of(&*pod), node, "no node can end this pod: forgetting it");
        forget(cluster, &pod).await?;
    }
    Ok(None)
}
