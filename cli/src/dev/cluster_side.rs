//! The cluster: the embedded one, or another API server with this machine as one of its nodes.

use std::{
    ffi::OsString,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};

use ::cluster::labels;
use anyhow::Context as _;
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
    stop_api: CancellationToken,
    stop_node: CancellationToken,
    node: JoinHandle<()>,
    controllers: Option<JoinHandle<()>>,
}

impl ClusterSide {
    pub async fn start(foreign: Option<&Path>, place: &Place) -> anyhow::Result<Self> {
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
        let node =
            start_node(place, &config, client.clone(), stop_node.clone(), foreign.is_some())?;
        Ok(Self { client, kubeconfig, api, stop_api, stop_node, node, controllers })
    }

    pub fn client(&self) -> Client {
        self.client.clone()
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
    foreign: bool,
) -> anyhow::Result<JoinHandle<()>> {
    let program = std::env::current_exe().context("this program's own path")?;
    let shim = vec![program.clone().into_os_string(), OsString::from("pod-shim")];
    let name = if foreign { node_name() } else { "local".to_owned() };
    let mut options = NodeOptions::new(&name, place.folder("node")?, shim, config);
    // Containers call `dormouse` by name, whatever this file is called.
    let bin = place.folder("bin")?;
    link(&bin.join("dormouse"), &program)?;
    options.path = vec![bin];
    // Whoever else may make pods on that cluster must not thereby run programs on this machine.
    options.only = foreign.then(|| Only {
        label: (labels::MANAGED_BY.to_owned(), labels::MANAGER.to_owned()),
        taint: TAINT.to_owned(),
    });
    // The embedded API server has a certificate of its own for this; a foreign one may have none.
    options.trust_local_peers = foreign;
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

/// This machine's name among others, as a node may be called.
fn node_name() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host: String = host
        .trim()
        .to_ascii_lowercase()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' })
        .take(40)
        .collect();
    let host = host.trim_matches(['-', '.']);
    if host.is_empty() { "dormouse-dev".to_owned() } else { format!("dormouse-{host}") }
}
