//! Namespaces that are being deleted: emptied in order, then let go.

mod plan;

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Event, Namespace};
use kube::Api;
use kube::api::{DeleteParams, ListParams, PostParams, Preconditions};
use tokio_util::sync::CancellationToken;

use super::Error;
use super::cluster::Cluster;
use super::gc::{Inventory, Object};
use super::queue::{Again, Key, Queue, work};
use plan::{Step, step};

const FINALIZER: &str = "kubernetes";
/// When the API still holds what the copies do not show (any more).
const LAG: Duration = Duration::from_millis(100);

/// Hears of changes from now on; works when the returned future runs.
pub fn start(
    cluster: Arc<Cluster>,
    inventory: Arc<Inventory>,
    shutdown: CancellationToken,
) -> impl Future<Output = ()> + Send {
    let queue = Queue::default();
    let to = queue.clone();
    cluster.namespaces.on_change(move |change| {
        change.new.filter(|it| is_terminating(it)).into_iter().for_each(|it| to.add(Key::of(it)));
    });
    let (to, namespaces) = (queue.clone(), Arc::downgrade(&cluster));
    inventory.on_change(move |object| {
        let Some((namespace, cluster)) = object.namespace.as_deref().zip(namespaces.upgrade())
        else {
            return;
        };
        let key = Key::new("", namespace);
        if cluster.namespaces.get(&key).is_some_and(|it| is_terminating(&it)) {
            to.add(key);
        }
    });
    async move {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = inventory.synced() => {}
        }
        work("namespace-controller", queue, 4, shutdown, move |key| {
            reconcile(cluster.clone(), inventory.clone(), key)
        })
        .await;
    }
}

fn is_terminating(namespace: &Namespace) -> bool {
    let finalizers =
        namespace.spec.as_ref().and_then(|spec| spec.finalizers.as_deref()).unwrap_or_default();
    namespace.metadata.deletion_timestamp.is_some() && finalizers.iter().any(|it| it == FINALIZER)
}

async fn reconcile(
    cluster: Arc<Cluster>,
    inventory: Arc<Inventory>,
    key: Key,
) -> Result<Again, Error> {
    let Some(namespace) = cluster.namespaces.get(&key).filter(|it| is_terminating(it)) else {
        return Ok(None);
    };
    match step(inventory.in_namespace(&key.name)) {
        Step::Wait => Ok(None),
        Step::Delete(objects) => {
            for object in objects {
                delete(&inventory, &object).await?;
            }
            Ok(None)
        }
        Step::Finish => {
            if !is_empty(&cluster, &inventory, &key.name).await? {
                return Ok(Some(LAG));
            }
            finish(&cluster, &namespace).await?;
            Ok(None)
        }
    }
}

async fn delete(inventory: &Inventory, object: &Object) -> Result<(), Error> {
    let Some(served) = inventory.kinds.get(&object.kind) else { return Ok(()) };
    let only_this = Preconditions { uid: Some(object.uid.clone()), resource_version: None };
    let params = DeleteParams::background().preconditions(only_this);
    match inventory.api(&served, object.namespace.as_deref()).delete(&object.name, &params).await {
        // Gone, or replaced by another one, which the watch will show.
        Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => Ok(()),
        other => other.map(drop).map_err(Error::from),
    }
}

/// Asks the API itself, kind by kind. Events go here too; they are not watched.
async fn is_empty(
    cluster: &Cluster,
    inventory: &Inventory,
    namespace: &str,
) -> Result<bool, Error> {
    let events: Api<Event> = Api::namespaced(cluster.client.clone(), namespace);
    events.delete_collection(&DeleteParams::default(), &ListParams::default()).await?;
    for served in inventory.kinds.all().into_iter().filter(|served| served.namespaced) {
        let one = ListParams::default().limit(1);
        match inventory.api(&served, Some(namespace)).list_metadata(&one).await {
            Ok(list) if list.items.is_empty() => {}
            Ok(_) => return Ok(false),
            // The kind itself went meanwhile.
            Err(kube::Error::Api(status)) if status.is_not_found() => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(true)
}

async fn finish(cluster: &Cluster, namespace: &Namespace) -> Result<(), Error> {
    let name = namespace.metadata.name.as_deref().unwrap_or_default();
    let mut changed = namespace.clone();
    if let Some(finalizers) = changed.spec.as_mut().and_then(|spec| spec.finalizers.as_mut()) {
        finalizers.retain(|finalizer| finalizer != FINALIZER);
    }
    let api = cluster.namespaces.api("");
    match api.replace_subresource("finalize", name, &PostParams::default(), &changed).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
        Err(error) => Err(error.into()),
    }
}
