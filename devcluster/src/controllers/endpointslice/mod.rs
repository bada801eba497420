//! EndpointSlices: which pods stand behind a Service, at which addresses and ports.

mod plan;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{DeleteParams, PostParams};
use tokio_util::sync::CancellationToken;

use super::Error;
use super::cluster::Cluster;
use super::names::{label, random_suffix};
use super::queue::{Again, Key, Queue, work};
use plan::{Action, MANAGED_BY, MANAGER, SERVICE_NAME, is_selected};

/// Hears of changes from now on; works when the returned future runs.
pub fn start(
    cluster: Arc<Cluster>,
    shutdown: CancellationToken,
) -> impl Future<Output = ()> + Send {
    let queue = Queue::default();
    let to = queue.clone();
    cluster
        .services
        .on_change(move |change| change.sides().for_each(|service| to.add(Key::of(service))));
    let (to, services) = (queue.clone(), cluster.services.clone());
    cluster.pods.on_change(move |change| {
        for pod in change.sides() {
            for service in
                services.in_namespace(pod.metadata.namespace.as_deref().unwrap_or_default())
            {
                if is_selected(&service, pod) {
                    to.add(Key::of(&*service));
                }
            }
        }
    });
    let to = queue.clone();
    cluster.slices.on_change(move |change| {
        for slice in change.sides().filter(|slice| is_ours(slice)) {
            if let Some(service) = label(&slice.metadata, SERVICE_NAME) {
                to.add(Key::new(slice.metadata.namespace.as_deref().unwrap_or_default(), service));
            }
        }
    });
    work("endpointslice-controller", queue, 8, shutdown, move |key| reconcile(cluster.clone(), key))
}

fn is_ours(slice: &EndpointSlice) -> bool {
    label(&slice.metadata, MANAGED_BY) == Some(MANAGER)
}

async fn reconcile(cluster: Arc<Cluster>, key: Key) -> Result<Again, Error> {
    // A service that is gone takes its slices along by ownership.
    let Some(service) = cluster.services.get(&key) else { return Ok(None) };
    let pods = cluster.pods.in_namespace(&key.namespace);
    let mut slices = cluster.slices.in_namespace(&key.namespace);
    slices
        .retain(|slice| is_ours(slice) && label(&slice.metadata, SERVICE_NAME) == Some(&key.name));
    for action in plan::plan(&service, &pods, &slices, random_suffix) {
        match action {
            Action::Create(slice) => {
                cluster.slices.create(&slice).await?;
            }
            Action::Update(slice) => {
                let name = slice.metadata.name.as_deref().unwrap_or_default();
                let api = cluster.slices.api(&key.namespace);
                cluster.slices.record(api.replace(name, &PostParams::default(), &slice).await?);
            }
            Action::Delete(slice) => cluster.slices.delete(&slice, DeleteParams::default()).await?,
        }
    }
    Ok(None)
}
