//! The cluster: the embedded one, or another API server with this machine as one of its nodes.

use std::{
    ffi::OsString,
    net::{Ipv4Addr, SocketAddr},
    ops::ControlFlow,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use ::cluster::{labels, scope::Scope};
use anyhow::{Context as _, anyhow};
use controller::{
    Holding,
    lease::{self, Waiting},
};
use devcluster::{
    api::{self, ApiOptions, ApiServer},
    controllers,
    node::{self, NodeOptions, Only},
};
use kube::Client;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::place::Place;
use crate::service::kube_config;

/// On this machine as a node of another cluster: nothing is scheduled there but what tolerates it.
pub const TAINT: &str = "dormouse.dev/local-processes";

pub struct ClusterSide {
    client: Client,
    kubeconfig: PathBuf,
    api: Option<ApiServer>,
    holding: Holding,
    stop_api: CancellationToken,
    stop_node: CancellationToken,
    node: JoinHandle<()>,
    controllers: Option<JoinHandle<()>>,
}

impl ClusterSide {
    /// `scope` is this system's own, where the cluster is others' as well.
    ///
    /// # Errors
    /// When another controller of the scope is alive: nothing has been written to the cluster then.
    pub async fn start(
        foreign: Option<&Path>,
        scope: &Scope,
        place: &Place,
    ) -> anyhow::Result<Self> {
        let (stop_api, stop_node) = (CancellationToken::new(), CancellationToken::new());
        let (api, kubeconfig) = match foreign {
            Some(path) => (None, path.to_owned()),
            None => {
                let options = ApiOptions {
                    data_dir: place.folder("cluster")?,
                    listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
                };
                let api = api::serve(options, stop_api.clone()).await?;
                // Where people look for it.
                let kubeconfig = place.path("kubeconfig");
                link(&kubeconfig, api.kubeconfig())?;
                (Some(api), kubeconfig)
            }
        };
        let config = kube_config(Some(&kubeconfig)).await?;
        let client = Client::try_from(config.clone()).context("the API server cannot be used")?;
        client.apiserver_version().await.with_context(|| {
            format!("the API server of {} does not answer; is it running?", kubeconfig.display())
        })?;
        let controllers = api.is_some().then(|| {
            let (client, stop) = (client.clone(), stop_api.clone());
            tokio::spawn(async move {
                if let Err(error) = controllers::run(client, stop).await {
                    tracing::error!(%error, "the cluster's controllers failed");
                }
            })
        });
        let claim = lease::Claim {
            client: client.clone(),
            namespace: LEASE_NAMESPACE.to_owned(),
            scope: scope.clone(),
            holder: place.holder()?,
            timing: lease::Timing::USUAL,
        };
        let term = Some(take_lease(&claim).await?);
        let holding = Holding { claim, term };
        let only = foreign.is_some().then_some(scope);
        let node = start_node(place, &config, client.clone(), stop_node.clone(), only)?;
        Ok(Self { client, kubeconfig, api, holding, stop_api, stop_node, node, controllers })
    }

    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// The right to act on what is in the scope. Once.
    pub fn take_holding(&mut self) -> Holding {
        let Holding { claim, term } = &mut self.holding;
        Holding { claim: claim.clone(), term: term.take() }
    }

    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// Ends the pods' processes, then the API server.
    pub async fn end(self) {
        self.stop_node.cancel();
        if let Err(error) = self.node.await {
            tracing::error!(%error, "the node broke down");
        }
        self.stop_api.cancel();
        if let Some(controllers) = self.controllers
            && let Err(error) = controllers.await
        {
            tracing::error!(%error, "the cluster's controllers broke down");
        }
        if let Some(api) = self.api {
            api.ended().await;
        }
    }
}

fn start_node(
    place: &Place,
    config: &kube::Config,
    client: Client,
    stop: CancellationToken,
    only: Option<&Scope>,
) -> anyhow::Result<JoinHandle<()>> {
    let program = std::env::current_exe().context("this program's own path")?;
    let shim = vec![program.clone().into_os_string(), OsString::from("pod-shim")];
    let name = only.map_or_else(|| "local".to_owned(), node_name);
    let mut options = NodeOptions::new(&name, place.folder("node")?, shim, config);
    // Containers call `dormouse` by name, whatever this file is called.
    let bin = place.folder("bin")?;
    link(&bin.join("dormouse"), &program)?;
    options.path = vec![bin];
    // Whoever else may make pods on that cluster must not thereby run programs on this machine.
    options.only = only.map(|scope| Only {
        label: (labels::SCOPE.to_owned(), scope.to_string()),
        taint: (TAINT.to_owned(), scope.to_string()),
    });
    // The embedded API server has a certificate of its own for this; a foreign one may have none.
    options.trust_local_peers = only.is_some();
    Ok(tokio::spawn(async move {
        if let Err(error) = node::run(client, options, stop).await {
            tracing::error!(%error, "the node failed: no pod can run");
        }
    }))
}

/// Makes `link` lead to `target`, wherever it led before.
fn link(link: &Path, target: &Path) -> anyhow::Result<()> {
    match std::fs::remove_file(link) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot replace {}", link.display()));
        }
        _ => {}
    }
    std::os::unix::fs::symlink(target, link)
        .with_context(|| format!("cannot make {}", link.display()))
}

/// Where all development systems look for each other.
const LEASE_NAMESPACE: &str = "default";
/// For an API server that does not answer well. A holder that is silent is waited for.
const LEASE_PATIENCE: Duration = Duration::from_secs(30);

/// The Lease of the scope, unless another controller of it lives.
async fn take_lease(claim: &lease::Claim) -> anyhow::Result<lease::Term> {
    let (lease, scope) = (claim.shown(), &claim.scope);
    let began = Instant::now();
    let mut waits = false;
    let taken = claim.acquire(|waiting| match waiting {
        Waiting::For(by) if by.alive => {
            let holder = &by.holder;
            let since = by.since.map_or_else(String::new, |since| format!(" since {since:.0}"));
            ControlFlow::Break(anyhow!(
                "another controller of the scope `{scope}` is alive: {holder} holds the Lease {lease}{since}; stop it, or choose another scope with --scope NAME. Nothing was changed"
            ))
        }
        Waiting::For(by) => {
            if !std::mem::replace(&mut waits, true) {
                let holder = &by.holder;
                tracing::info!(%scope, holder, lease, "looking whether another controller of the scope is alive");
            }
            ControlFlow::Continue(())
        }
        Waiting::Failing { why, code } => {
            let refused = matches!(code, Some(401 | 403 | 404 | 422));
            if refused || began.elapsed() > LEASE_PATIENCE {
                ControlFlow::Break(anyhow!("the Lease {lease} cannot be had: {why}"))
            } else {
                ControlFlow::Continue(())
            }
        }
    });
    taken.await
}

/// The scope of this machine's development system, where others use the cluster, too.
pub fn own_scope() -> Scope {
    let host = host_name().replace('.', "-");
    let host = host.trim_matches('-');
    let name = if host.is_empty() { "dev".to_owned() } else { format!("dev-{host}") };
    // At most 44 characters of what a scope may be made of.
    name.parse().unwrap_or_default()
}

/// This node's name among others: one for each system of this machine.
pub fn node_name(scope: &Scope) -> String {
    let host = host_name();
    if *scope != own_scope() {
        format!("dormouse-{scope}")
    } else if host.is_empty() {
        "dormouse-dev".to_owned()
    } else {
        format!("dormouse-{host}")
    }
}

/// As a node may be called.
fn host_name() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host: String = host
        .trim()
        .to_ascii_lowercase()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' })
        .take(40)
        .collect();
    host.trim_matches(['-', '.']).to_owned()
}
