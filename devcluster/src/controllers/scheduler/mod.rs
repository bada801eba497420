//! The scheduler: gives each pending pod a node.

mod fit;
mod plan;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Binding, Node, ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::{Patch, PostParams};
use parking_lot::Mutex;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::Error;
use super::cluster::Cluster;
use super::events::Note;
use super::pods::{condition, is_finished, node_name};
use super::queue::{Again, Key, Queue, work};
pub use fit::tolerates;
pub use plan::SELECTED_NODE;
use plan::{Action, Observed, is_pending, plan};

const COMPONENT: &str = "default-scheduler";

struct Scheduler {
    cluster: Arc<Cluster>,
    /// Bound pods by uid, until the watch shows them bound.
    assumed: Mutex<HashMap<String, String>>,
}

/// Hears of changes from now on; works when the returned future runs.
pub fn start(
    cluster: Arc<Cluster>,
    shutdown: CancellationToken,
) -> impl Future<Output = ()> + Send {
    let queue = Queue::default();
    // All pending pods are planned together: there is one key.
    let ask = |queue: &Queue| queue.add(Key::new("", "pods"));
    let scheduler = Arc::new(Scheduler { cluster: cluster.clone(), assumed: Mutex::default() });
    let (to, this) = (queue.clone(), Arc::downgrade(&scheduler));
    cluster.pods.on_change(move |change| {
        if let Some(this) = this.upgrade() {
            this.settle(change.old, change.new);
        }
        let freed = change.old.is_some_and(|pod| node_name(pod).is_some())
            && change.new.is_none_or(is_finished);
        if freed || change.new.is_some_and(is_pending) {
            ask(&to);
        }
    });
    let to = queue.clone();
    cluster.nodes.on_change(move |change| {
        if change.old.map(offer) != change.new.map(offer) {
            ask(&to);
        }
    });
    let to = queue.clone();
    cluster.claims.on_change(move |_| ask(&to));
    let to = queue.clone();
    cluster.volumes.on_change(move |_| ask(&to));
    let to = queue.clone();
    cluster.classes.on_change(move |_| ask(&to));
    work(COMPONENT, queue, 1, shutdown, move |_| reconcile(scheduler.clone()))
}

/// What of a node matters here; heartbeats do not.
fn offer(node: &Node) -> impl PartialEq + use<> {
    let allocatable = node.status.as_ref().and_then(|status| status.allocatable.clone());
    (node.metadata.labels.clone(), node.spec.clone(), allocatable, fit::is_ready(node))
}

impl Scheduler {
    fn settle(&self, old: Option<&Pod>, new: Option<&Pod>) {
        let uid = |pod: &Pod| pod.metadata.uid.clone();
        if new.is_none_or(|pod| node_name(pod).is_some())
            && let Some(uid) = new.or(old).and_then(uid)
        {
            self.assumed.lock().remove(&uid);
        }
    }
}

async fn reconcile(scheduler: Arc<Scheduler>) -> Result<Again, Error> {
    let cluster = &scheduler.cluster;
    let pods = cluster.pods.all();
    if !pods.iter().any(|pod| is_pending(pod)) {
        return Ok(None);
    }
    let (nodes, claims) = (cluster.nodes.all(), cluster.claims.all());
    let (volumes, classes) = (cluster.volumes.all(), cluster.classes.all());
    let assumed = scheduler.assumed.lock().clone();
    let observed = Observed {
        pods: &pods,
        nodes: &nodes,
        claims: &claims,
        volumes: &volumes,
        classes: &classes,
        assumed: &assumed,
    };
    // One pod's trouble must not keep the others waiting.
    let mut failed = None;
    for action in plan(&observed) {
        if let Err(error) = act(&scheduler, action).await {
            failed = Some(error);
        }
    }
    failed.map_or(Ok(None), Err)
}

async fn act(scheduler: &Scheduler, action: Action) -> Result<(), Error> {
    let cluster = &scheduler.cluster;
    match action {
        Action::Bind { pod, node } => bind(scheduler, &pod, node).await,
        Action::SelectNode { claim, node } => {
            let patch = json!({"metadata": {"annotations": {SELECTED_NODE: node}}});
            cluster.claims.patch(&Key::of(&*claim), &Patch::Merge(patch)).await
        }
        Action::Unschedulable { pod, message } => {
            let held = condition(&pod, "PodScheduled");
            if held.is_some_and(|held| {
                held.status == "False" && held.message.as_ref() == Some(&message)
            }) {
                return Ok(());
            }
            cluster.events.record(
                COMPONENT,
                &*pod,
                Note::warning("FailedScheduling", message.clone()),
            );
            let since = held
                .filter(|held| held.status == "False")
                .and_then(|held| held.last_transition_time.clone());
            let patch = json!({"status": {"conditions": [{
                "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message,
                "lastTransitionTime": since.unwrap_or(Time(Timestamp::now())),
            }]}});
            cluster.pods.patch_status(&Key::of(&*pod), &Patch::Strategic(patch)).await
        }
    }
}

async fn bind(scheduler: &Scheduler, pod: &Arc<Pod>, node: String) -> Result<(), Error> {
    let cluster = &scheduler.cluster;
    let key = Key::of(&**pod);
    let binding = Binding {
        metadata: ObjectMeta {
            name: Some(key.name.clone()),
            namespace: Some(key.namespace.clone()),
            uid: pod.metadata.uid.clone(),
            ..ObjectMeta::default()
        },
        target: ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Node".to_owned()),
            name: Some(node.clone()),
            ..ObjectReference::default()
        },
    };
    let uid = pod.metadata.uid.clone().unwrap_or_default();
    scheduler.assumed.lock().insert(uid.clone(), node.clone());
    let api = cluster.pods.api(&key.namespace);
    let bound = api
        .create_subresource::<_, serde_json::Value>(
            "binding",
            &key.name,
            &PostParams::default(),
            &binding,
        )
        .await;
    // The watch may have shown it already, or shown it gone.
    if bound.is_err() || cluster.pods.get(&key).is_none_or(|pod| node_name(&pod).is_some()) {
        scheduler.assumed.lock().remove(&uid);
    }
    bound?;
    let message = format!("Successfully assigned {key} to {node}");
    cluster.events.record(COMPONENT, &**pod, Note::normal("Scheduled", message));
    Ok(())
}
