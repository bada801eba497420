//! Watches the cluster and publishes route tables.

mod build;
mod endpoints;
pub(crate) mod mirror;

use std::sync::Arc;

use domain::{activity::Tracker, route::RouteTable};
use futures::{Stream, StreamExt, stream::select};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::{
    Api, Client,
    runtime::{WatchStreamExt, watcher},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use self::build::Cluster;
use crate::{
    labels::WORKLOAD,
    resources::{App, Project, Workspace},
};

/// What the table's hosts are made of.
#[derive(Debug, Clone)]
pub struct Options {
    /// Hosts are `<name>--<project>.<base_domain>`.
    pub base_domain: String,
}

/// Starts watching. The receiver holds an unsynced table until everything has been listed once;
/// after that it always holds the last whole picture, also while a watch is being made anew.
pub fn watch(
    client: Client,
    options: Options,
    tracker: Arc<Tracker>,
    shutdown: CancellationToken,
) -> watch::Receiver<Arc<RouteTable>> {
    let (table, receiver) = watch::channel(Arc::new(RouteTable::default()));
    tokio::spawn(async move {
        tokio::select! {
            () = follow(client, options, tracker, table) => {}
            () = shutdown.cancelled() => {}
        }
    });
    receiver
}

enum Change {
    Project(watcher::Event<Project>),
    Workspace(watcher::Event<Workspace>),
    App(watcher::Event<App>),
    Endpoints(watcher::Event<EndpointSlice>),
}

/// Most changes that are taken in before a table is made of them.
const BATCH: usize = 512;

async fn follow(
    client: Client,
    options: Options,
    tracker: Arc<Tracker>,
    table: watch::Sender<Arc<RouteTable>>,
) {
    let mut cluster = Cluster::new(options, tracker);
    let all = watcher::Config::default();
    let ours = watcher::Config::default().labels(WORKLOAD);
    let projects = events(Api::<Project>::all(client.clone()), all.clone()).map(Change::Project);
    let workspaces =
        events(Api::<Workspace>::all(client.clone()), all.clone()).map(Change::Workspace);
    let apps = events(Api::<App>::all(client.clone()), all).map(Change::App);
    let endpoints = events(Api::<EndpointSlice>::all(client), ours).map(Change::Endpoints);
    let changes = select(
        select(projects.boxed(), workspaces.boxed()),
        select(apps.boxed(), endpoints.boxed()),
    );
    let mut batches = changes.ready_chunks(BATCH);
    while let Some(batch) = batches.next().await {
        batch.into_iter().for_each(|change| cluster.apply(change));
        if let Some(next) = cluster.next() {
            table.send_replace(Arc::new(next));
        }
    }
}

/// A watch that lists again after errors, with growing pauses, for ever.
pub(crate) fn events<K>(
    api: Api<K>,
    config: watcher::Config,
) -> impl Stream<Item = watcher::Event<K>>
where
    K: kube::Resource<DynamicType = ()> + Clone + std::fmt::Debug + Send + 'static,
    K: serde::de::DeserializeOwned,
{
    watcher(api, config).default_backoff().filter_map(|event| async {
        event
            .inspect_err(|error| {
                tracing::warn!(%error, kind = %K::kind(&()), "a watch broke off; listing again");
            })
            .ok()
    })
}
