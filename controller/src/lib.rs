//! Creates what lies under a workload, gathers activity from the gateways, and applies the idle
//! verdict.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod acting;
mod agent_key;
mod canary;
mod claim;
mod config;
mod gather;
mod idle;
mod manifest;
mod metrics;
mod own;
mod phase;
mod project;
mod quantity;
mod refusal;
mod rights;
mod status;
mod workload;

use std::{sync::Arc, time::Duration};

use cluster::{
    resources::{App, Project, Workspace},
    watch::Watches,
};
use kube::{
    Client,
    runtime::{events::Recorder, reflector::Store},
};
use runtime::service::Context;

pub use self::config::{AgentConfig, Config, IdleConfig};
use self::metrics::Metrics;

/// What every reconciler needs.
struct Shared {
    client: Client,
    config: Config,
    recorder: Recorder,
    metrics: Metrics,
    failures: refusal::Failures,
    watches: Watches,
}

/// Local copies of the custom resources, kept by the watches of the reconcilers.
#[derive(Clone)]
struct Stores {
    workspaces: Store<Workspace>,
    apps: Store<App>,
}

/// For reconciliations that are under way at the shutdown.
const DRAIN: Duration = Duration::from_secs(3);

/// Runs until shutdown.
pub async fn serve(
    config: Config,
    client: Client,
    http: reqwest::Client,
    watches: Watches,
    ctx: Context,
) -> anyhow::Result<()> {
    let shutdown = ctx.shutdown.clone();
    let metrics = Metrics::new(&ctx.registry)?;
    let reporter = kube::runtime::events::Reporter {
        controller: cluster::labels::MANAGER.to_owned(),
        instance: None,
    };
    let recorder = Recorder::new(client.clone(), reporter);
    let shared = Arc::new(Shared {
        client,
        config,
        recorder,
        metrics,
        failures: refusal::Failures::default(),
        watches,
    });

    let workspaces = workload::controller::<Workspace>(&shared);
    let apps = workload::controller::<App>(&shared);
    let stores = Stores { workspaces: workspaces.store(), apps: apps.store() };
    // On the heap: together they are too large for a caller's stack.
    let projects = Box::pin(project::run(shared.clone(), ctx.shutdown.clone()));
    let workspaces =
        Box::pin(workload::run(workspaces, shared.clone(), stores.clone(), ctx.shutdown.clone()));
    let apps = Box::pin(workload::run(apps, shared.clone(), stores.clone(), ctx.shutdown.clone()));
    let telling = acting::tell_unreadable(shared.watches.clone(), shared.recorder.clone());
    let readiness = ready_once_listed(shared.watches.clone(), ctx.clone());
    let rights = rights::run(shared.client.clone(), ctx.clone());
    let idle = Box::pin(idle::run(shared, stores, http, ctx.clone()));
    let work = async { tokio::join!(projects, workspaces, apps, idle) };
    // A reconciler that is stopped before its first list has arrived would wait for that list for
    // ever; one that is at work gets the time to finish.
    let late = async {
        shutdown.cancelled().await;
        tokio::time::sleep(DRAIN).await;
    };
    tokio::select! {
        _ = work => {}
        // None of them ends before the work does.
        () = async { tokio::join!(telling, readiness, rights); } => {}
        () = late => {}
    }
    Ok(())
}

/// Not ready before everything has been listed once, which says as well which right is missing. Later, what
/// is not seen is a warning: nobody else could do better.
async fn ready_once_listed(watches: Watches, ctx: Context) {
    let mut changes = watches.subscribe();
    loop {
        let unlisted = changes.borrow_and_update().unlisted();
        if unlisted.is_empty() {
            ctx.health.set("controller", Ok(()));
            break;
        }
        ctx.health.set("controller", Err(unlisted.join("; ")));
        if changes.changed().await.is_err() {
            break;
        }
    }
    ctx.shutdown.cancelled().await;
    // What is under way gets its time.
    std::future::pending::<()>().await;
}

/// The API of a project's namespace or of the cluster.
type Projects = kube::Api<Project>;
