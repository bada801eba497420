//! The control-plane controllers, through a kube client alone.
//!
//! Each controller is a pure plan (what there is -> what to do next) and a thin driver: watches put keys on a queue,
//! the driver plans and acts. Nothing is kept between two looks that the cluster does not hold, so everything
//! converges after a restart at any point.

mod cache;
mod cluster;
mod deployment;
mod endpointslice;
mod events;
mod gc;
mod job;
mod names;
mod namespace;
mod node;
mod pods;
mod queue;
mod replicaset;
mod scheduler;
mod statefulset;
#[cfg(test)]
mod tests;
mod volume;

use std::sync::Arc;

use kube::Client;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Why a reconcile failed; it is tried again.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the API server refused or failed: {0}")]
    Api(#[source] Box<kube::Error>),
    #[error("the API server did not answer in time")]
    Deadline,
}

impl From<kube::Error> for Error {
    fn from(error: kube::Error) -> Self {
        Self::Api(Box::new(error))
    }
}

impl Error {
    fn status(&self) -> Option<&kube::core::Status> {
        match self {
            Self::Api(error) => match &**error {
                kube::Error::Api(status) => Some(status),
                _ => None,
            },
            Self::Deadline => None,
        }
    }

    fn is_not_found(&self) -> bool {
        self.status().is_some_and(|status| status.code == 404)
    }

    /// Somebody else changed the object, or it is gone: the next look sees how it is now.
    fn is_conflict(&self) -> bool {
        self.status().is_some_and(|status| status.code == 409 || status.code == 404)
    }
}

/// Runs all controllers until `shutdown`.
pub async fn run(client: Client, shutdown: CancellationToken) -> Result<(), Error> {
    let (events, record) = events::Recorder::new(client.clone(), shutdown.clone());
    let cluster = Arc::new(cluster::Cluster::new(client.clone(), events));
    let mut tasks = JoinSet::new();
    tasks.spawn(record);

    // Controllers hear of changes before the watches start, and work once all of them have begun.
    let inventory = gc::Inventory::new(client);
    let (c, stop) = (|| cluster.clone(), || shutdown.clone());
    let controllers: Vec<futures::future::BoxFuture<'static, ()>> = vec![
        Box::pin(statefulset::start(c(), stop())),
        Box::pin(deployment::start(c(), stop())),
        Box::pin(replicaset::start(c(), stop())),
        Box::pin(job::start(c(), stop())),
        Box::pin(endpointslice::start(c(), stop())),
        Box::pin(scheduler::start(c(), stop())),
        Box::pin(volume::start(c(), stop())),
        Box::pin(volume::start_protection(c(), stop())),
        Box::pin(node::start(c(), stop())),
        Box::pin(namespace::start(c(), inventory.clone(), stop())),
        Box::pin(gc::start(&cluster, inventory, stop())),
    ];

    cluster.follow(&mut tasks, &shutdown);
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = cluster.synced() => {
            for controller in controllers {
                tasks.spawn(controller);
            }
        }
    }
    while let Some(ended) = tasks.join_next().await {
        if let Err(error) = ended
            && error.is_panic()
        {
            tracing::error!("a controller ended by a fault of its own: {error}");
        }
    }
    Ok(())
}
