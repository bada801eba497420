//! Watches the cluster and publishes route tables.

mod build;
mod endpoints;
pub(crate) mod mirror;

use std::sync::Arc;

use domain::{activity::Tracker, route::RouteTable};
use futures::{StreamExt, stream::select};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::{Client, core::PartialObjectMeta};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use self::build::Cluster;
use crate::{
    labels::WORKLOAD,
    resources::{App, Project, Workspace},
    scope::{Projects, Scope},
    watch::{News, Source, Watches, follow as changes_of},
};

/// What the table is made of.
#[derive(Debug, Clone)]
pub struct Options {
    /// Workloads of other scopes have no route.
    pub scope: Scope,
    /// Hosts are `<name>--<project>.<base_domain>`.
    pub base_domain: String,
}

/// Starts watching. The receiver holds an unsynced table until everything has been listed once;
/// after that it always holds the last whole picture, also while a watch is being made anew. An
/// object that becomes unreadable keeps the route that it had: what runs is not cut off.
pub fn watch(
    client: Client,
    options: Options,
    tracker: Arc<Tracker>,
    watches: Watches,
    shutdown: CancellationToken,
) -> watch::Receiver<Arc<RouteTable>> {
    let (table, receiver) = watch::channel(Arc::new(RouteTable::default()));
    tokio::spawn(async move {
        tokio::select! {
            () = follow(client, options, tracker, &watches, table) => {}
            () = shutdown.cancelled() => {}
        }
    });
    receiver
}

enum Change {
    /// Of Projects that cannot be read as well.
    Scope(News<PartialObjectMeta<Project>>),
    Project(News<Project>),
    Workspace(News<Workspace>),
    App(News<App>),
    Endpoints(News<EndpointSlice>),
}

/// Most changes that are taken in before a table is made of them.
const BATCH: usize = 512;

async fn follow(
    client: Client,
    options: Options,
    tracker: Arc<Tracker>,
    watches: &Watches,
    table: watch::Sender<Arc<RouteTable>>,
) {
    let mut cluster = Cluster::new(options, tracker);
    let source = || client.clone();
    let scopes = changes_of(Projects::source(source()), watches).map(Change::Scope);
    let projects = changes_of(Source::all(source()), watches).map(Change::Project);
    let workspaces = changes_of(Source::all(source()), watches).map(Change::Workspace);
    let apps = changes_of(Source::all(source()), watches).map(Change::App);
    let endpoints = Source::all(source()).labels(WORKLOAD);
    let endpoints = changes_of(endpoints, watches).map(Change::Endpoints);
    let changes = select(
        select(select(scopes.boxed(), projects.boxed()), workspaces.boxed()),
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
