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
mod keys_of_others;
pub mod lease;
mod manifest;
mod metrics;
mod own;
mod phase;
mod project;
mod quantity;
mod refusal;
mod rights;
mod rivals;
mod status;
mod workload;

use std::{sync::Arc, time::Duration};

use cluster::{
    resources::{App, Project, WorkloadResource, Workspace},
    watch::Watches,
};
use domain::workload::WorkloadKind;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{
    Client, ResourceExt,
    runtime::{
        events::Recorder,
        reflector::{ObjectRef, Store},
    },
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
    rivals: rivals::Rivals,
    watches: Watches,
    /// Nothing is written while it is not held.
    held: lease::Held,
}

/// Local copies of the custom resources, kept by the watches of the reconcilers.
#[derive(Clone)]
struct Stores {
    workspaces: Store<Workspace>,
    apps: Store<App>,
}

impl Stores {
    /// The workload of another kind that has the same host, if it is older than this one.
    fn older_namesake<W: WorkloadResource>(&self, object: &W) -> Option<String> {
        let (name, namespace) = (object.name_any(), object.namespace()?);
        let other = match W::KIND {
            WorkloadKind::Workspace => {
                let found = self.apps.get(&ObjectRef::new(&name).within(&namespace))?;
                (WorkloadKind::App, found.creation_timestamp())
            }
            WorkloadKind::App => {
                let found = self.workspaces.get(&ObjectRef::new(&name).within(&namespace))?;
                (WorkloadKind::Workspace, found.creation_timestamp())
            }
        };
        // The same order as the route table's: by time, then by kind.
        let age = |created: Option<Time>, kind| (created.map(|time| time.0), kind);
        let (mine, theirs) = (age(object.creation_timestamp(), W::KIND), age(other.1, other.0));
        (theirs < mine).then(|| format!("{} {name}", other.0))
    }
}

/// For reconciliations that are under way at the shutdown.
const DRAIN: Duration = Duration::from_secs(3);

/// The right to act.
pub struct Holding {
    pub claim: lease::Claim,
    /// If it is held already.
    pub term: Option<lease::Term>,
}

/// Stands by while another controller of the scope acts, then acts; until shutdown. Without the Lease nothing of
/// what acted is left, and it begins anew: an API server that is away for long ends no process.
///
/// # Errors
/// When metrics cannot be registered.
pub async fn serve(
    config: Config,
    client: Client,
    http: reqwest::Client,
    watches: Watches,
    holding: Holding,
    ctx: Context,
) -> anyhow::Result<()> {
    let metrics = Metrics::new(&ctx.registry)?;
    let rights = async {
        rights::run(client.clone(), holding.claim.namespace.clone(), ctx.clone()).await;
        // What is under way at the shutdown gets its time.
        std::future::pending::<()>().await;
    };
    let Holding { ref claim, term: mut first } = holding;
    let acting = async {
        loop {
            let term = match first.take() {
                Some(term) => term,
                None => tokio::select! {
                    term = stand_by(claim, &ctx) => term,
                    () = ctx.shutdown.cancelled() => return,
                },
            };
            let shared = Arc::new(Shared {
                client: client.clone(),
                config: config.clone(),
                recorder: recorder(client.clone()),
                metrics: metrics.clone(),
                failures: refusal::Failures::default(),
                rivals: rivals::Rivals::default(),
                watches: watches.clone(),
                held: term.held(),
            });
            ctx.health.warn("lease", None);
            tracing::info!(lease = claim.shown(), scope = %claim.scope, "acting");
            metrics.acting.set(1);
            let lost = tokio::select! {
                () = act(shared, http.clone(), &ctx) => None,
                lost = term.held().lost() => Some(lost),
            };
            metrics.acting.set(0);
            match lost {
                None => {
                    term.release().await;
                    return;
                }
                Some(lost) => {
                    tracing::error!(%lost, "nothing is acted upon any more; standing by");
                }
            }
        }
    };
    tokio::select! {
        () = acting => {}
        () = rights => {}
    }
    Ok(())
}

/// Waits for the Lease. Who stands by is ready: it could do no better.
async fn stand_by(claim: &lease::Claim, ctx: &Context) -> lease::Term {
    let lease = claim.shown();
    ctx.health.set("controller", Err(format!("the Lease {lease} has not been looked at yet")));
    let mut told = None;
    let acquired = claim.acquire(|waiting| {
        match waiting {
            lease::Waiting::For(by) => {
                let standby = format!("standby: {} holds the Lease {lease}", by.holder);
                if told.as_ref() != Some(&standby) {
                    tracing::info!(lease, holder = by.holder, "standby: another controller acts");
                    told = Some(standby.clone());
                }
                ctx.health.warn("lease", Some(standby));
                ctx.health.set("controller", Ok(()));
            }
            lease::Waiting::Failing { why, .. } => {
                let why = format!("the Lease {lease} cannot be had: {why}");
                if told.as_ref() != Some(&why) {
                    tracing::warn!(error = why, "standby");
                    told = Some(why.clone());
                }
                ctx.health.set("controller", Err(why));
            }
        }
        std::ops::ControlFlow::<std::convert::Infallible>::Continue(())
    });
    match acquired.await {
        Ok(term) => term,
        Err(never) => match never {},
    }
}

fn recorder(client: Client) -> Recorder {
    let reporter = kube::runtime::events::Reporter {
        controller: cluster::labels::MANAGER.to_owned(),
        instance: None,
    };
    Recorder::new(client, reporter)
}

/// Does the controller's work until shutdown. What is under way when this is dropped goes with it.
async fn act(shared: Arc<Shared>, http: reqwest::Client, ctx: &Context) {
    let shutdown = ctx.shutdown.clone();
    let workspaces = workload::controller::<Workspace>(&shared);
    let apps = workload::controller::<App>(&shared);
    let stores = Stores { workspaces: workspaces.store(), apps: apps.store() };
    // On the heap: together they are too large for a caller's stack.
    let projects = Box::pin(project::run(shared.clone(), ctx.shutdown.clone()));
    let workspaces =
        Box::pin(workload::run(workspaces, shared.clone(), stores.clone(), ctx.shutdown.clone()));
    let apps = Box::pin(workload::run(apps, shared.clone(), stores.clone(), ctx.shutdown.clone()));
    let telling = acting::tell_unreadable(shared.clone());
    let readiness = ready_once_listed(shared.watches.clone(), ctx.clone());
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
        () = async { tokio::join!(telling, readiness); } => {}
        () = late => {}
    }
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
