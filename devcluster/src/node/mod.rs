//! The node: pods as local processes, through a kube client alone.
//!
//! It does what a kubelet does, without containers: a pod's containers are processes of this machine, their images
//! are only labels, their volumes are folders, and mount paths are replaced by those folders in what they are told.
//! It therefore serves as a node of any control plane.

mod address;
mod backoff;
mod context;
mod env;
mod events;
mod logs;
mod model;
mod pathmap;
mod pod;
mod probe;
mod process;
mod register;
mod runner;
mod server;
pub mod shim;
mod status;
mod storage;
mod volumes;
mod worker;

use address::{Cidr, PodAddresses};
use context::{Dirs, NodeContext};
use dashmap::DashMap;
use events::Recorder;
use futures::TryStreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::runtime::{WatchStreamExt, watcher};
use parking_lot::Mutex;
use register::{Readiness, Registration};
use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use worker::{View, Worker};

/// How long the control plane may take to give the node a range of addresses for its pods.
const POD_CIDR_PATIENCE: Duration = Duration::from_secs(30);
/// How long the machine may take to route that range to itself: whoever sets up the route may learn of the range as
/// late as the node does.
const ROUTE_PATIENCE: Duration = Duration::from_secs(10);
const ROUTE_RETRY: Duration = Duration::from_millis(250);
/// How long processes of an earlier life may take to end by themselves.
const LEFTOVER_PATIENCE: Duration = Duration::from_secs(2);

/// How the node is set up.
#[derive(Debug, Clone)]
pub struct NodeOptions {
    /// The Node object's name.
    pub name: String,
    /// Where the node keeps volumes, logs and its notes. Its alone.
    pub data_dir: PathBuf,
    /// Directories that come before all others in containers' `PATH`.
    pub path: Vec<PathBuf>,
    /// The command that starts the shim, up to its arguments: `["/usr/bin/dormouse", "pod-shim"]`.
    pub shim: Vec<OsString>,
    /// Variables that every container has, unless it sets them itself.
    pub env: Vec<(String, String)>,
    /// Port of the node's HTTPS endpoint; 0 for any.
    pub kubelet_port: u16,
    /// Whether the API server is on this machine's loopback, so that the node may be, too.
    pub api_on_loopback: bool,
    /// DER certificates of the authorities that sign the API server's client certificate.
    pub api_roots: Vec<Vec<u8>>,
    /// Which pods it takes, where others use the cluster, too: none but these may become processes of this machine.
    pub only: Option<Only>,
    /// Whether processes of this machine may read logs at the node's endpoint without such a certificate: needed
    /// where the API server's certificate is of an authority that the kubeconfig does not name.
    pub trust_local_peers: bool,
}

/// The pods that a node is kept for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Only {
    /// Name and value of a label that they have.
    pub label: (String, String),
    /// Key and value of the node's taint, which they tolerate. A scheduler sends no others, but who tolerates everything, as
    /// the pods of many DaemonSets do, is still refused for want of the label.
    pub taint: (String, String),
}

impl Only {
    fn takes(&self, pod: &Pod) -> bool {
        let (name, value) = &self.label;
        pod.metadata.labels.as_ref().and_then(|labels| labels.get(name)) == Some(value)
    }
}

impl NodeOptions {
    /// A node for the API server of `config`, with no extra `PATH` or environment.
    pub fn new(name: &str, data_dir: PathBuf, shim: Vec<OsString>, config: &kube::Config) -> Self {
        let host =
            config.cluster_url.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let api_on_loopback =
            host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
        Self {
            name: name.to_owned(),
            data_dir,
            path: Vec::new(),
            shim,
            env: Vec::new(),
            kubelet_port: 0,
            api_on_loopback,
            api_roots: config.root_cert.clone().unwrap_or_default(),
            only: None,
            trust_local_peers: true,
        }
    }
}

/// Why the node cannot run.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    #[error("pods run as local processes on Linux only; use a Linux machine or a virtual machine")]
    Unsupported,
    #[error("the node's folder {} cannot be used: {error}; give a data directory that this user can write", path.display())]
    DataDir { path: PathBuf, error: std::io::Error },
    #[error(
        "node {node} cannot register: {error}; check that the kubeconfig's user may create nodes"
    )]
    Register { node: String, error: Box<kube::Error> },
    #[error("another process runs node {node} of this cluster; stop it first")]
    Taken { node: String },
    #[error("the node's endpoint cannot listen at {address}: {error}; choose another port")]
    Listen { address: String, error: std::io::Error },
    #[error("the client of HTTP probes cannot be made: {0}")]
    Http(#[from] reqwest::Error),
    #[error("the node was stopped before it had started")]
    Stopped,
}

/// Runs the node until `shutdown`; returns after all processes it started have ended.
pub async fn run(
    client: kube::Client,
    options: NodeOptions,
    shutdown: CancellationToken,
) -> Result<(), NodeError> {
    if !cfg!(target_os = "linux") {
        return Err(NodeError::Unsupported);
    }
    let data_dir = |error| NodeError::DataDir { path: options.data_dir.clone(), error };
    let dirs = Dirs::create(&options.data_dir).map_err(data_dir)?;
    let mark = dirs.mark().map_err(data_dir)?;
    let leftovers = tokio::spawn(end_leftovers(mark.clone()));

    let mut registration =
        match Registration::begin(client.clone(), &options, &mark, &shutdown).await {
            Err(NodeError::Stopped) => return Ok(()),
            other => other?,
        };
    let recorder = Recorder::start(client.clone(), &options.name);
    // Seen as starting until its pods can have addresses: an old address would mislead. Not a node that only starts
    // again, for its pods would be taken for unreachable.
    if !registration.has_range()
        && let Err(error) = registration.write_status(&Readiness::Starting).await
    {
        tracing::debug!(%error, "the node's first status is not written");
    }
    let cidr = tokio::select! {
        cidr = registration.pod_cidr(POD_CIDR_PATIENCE) => cidr,
        () = shutdown.cancelled() => return Ok(()),
    };
    let host_ip = node_address(&options, cidr);
    let range = tokio::select! {
        range = usable(cidr, host_ip) => range,
        () = shutdown.cancelled() => return Ok(()),
    };
    let server = server::Server::bind(host_ip, options.kubelet_port, &options.name).await;
    let listen =
        |error| NodeError::Listen { address: format!("{host_ip}:{}", options.kubelet_port), error };
    let server = server.map_err(listen)?;
    let readiness =
        Readiness::Ready { address: host_ip, kubelet_port: server.port().map_err(listen)? };

    let addresses = PodAddresses::open(dirs.node().join("addresses.json"), range, host_ip);
    let ctx = Arc::new(NodeContext {
        client: client.clone(),
        recorder: recorder.clone(),
        http: probe::action::http_client()?,
        dirs,
        host_ip,
        allocatable: register::allocatable(),
        addresses: Mutex::new(addresses),
        mark,
        pods: DashMap::new(),
        options,
    });
    let _ = leftovers.await;
    recorder.report(
        registration.reference(),
        events::Severity::Normal,
        "Starting",
        "Starting the node.".to_owned(),
    );

    // The endpoint outlives the workers: the last lines of a log can be read while pods end. So does the lease, for
    // until then nobody else may run them.
    let late = CancellationToken::new();
    let mut helpers = JoinSet::new();
    helpers.spawn(server.serve(ctx.clone(), late.clone()));
    helpers.spawn(storage::run(ctx.clone(), shutdown.clone()));
    let ready = registration.write_status(&readiness).await;
    if let Err(error) = ready {
        tracing::warn!(%error, "the node's status cannot be written yet");
    }
    helpers.spawn(registration.keep(readiness, late.clone()));
    tracing::info!(node = ctx.options.name, address = %host_ip, "the node runs pods");
    manage(ctx, &shutdown).await;
    late.cancel();
    while helpers.join_next().await.is_some() {}
    Ok(())
}

/// The machine's address towards the cluster.
fn node_address(options: &NodeOptions, cidr: Option<Cidr>) -> IpAddr {
    let loopback = options.api_on_loopback && cidr.is_none_or(Cidr::is_loopback);
    if loopback {
        return IpAddr::V4(Ipv4Addr::LOCALHOST);
    }
    match address::primary() {
        Some(ip) => IpAddr::V4(ip),
        None => {
            tracing::warn!(
                "the machine has no IPv4 address but loopback: pods are reachable on this machine only"
            );
            IpAddr::V4(Ipv4Addr::LOCALHOST)
        }
    }
}

/// The range that pods get addresses from, if this machine takes connections there.
async fn usable(cidr: Option<Cidr>, node: IpAddr) -> Option<Cidr> {
    match cidr {
        Some(cidr) => {
            let deadline = tokio::time::Instant::now() + ROUTE_PATIENCE;
            while tokio::time::Instant::now() < deadline {
                if cidr.is_local() {
                    return Some(cidr);
                }
                tokio::time::sleep(ROUTE_RETRY).await;
            }
            tracing::warn!(address = %node, "this machine does not route spec.podCIDR locally: pods share the node's address");
            None
        }
        None => {
            tracing::warn!(address = %node, "the node was given no spec.podCIDR: pods share the node's address");
            None
        }
    }
}

/// Waits for the shims of an earlier life to end what they ran, then ends what is left.
async fn end_leftovers(mark: String) {
    #[cfg(target_os = "linux")]
    {
        let prefix = format!("{mark}.");
        let deadline = tokio::time::Instant::now() + LEFTOVER_PATIENCE;
        loop {
            let late = tokio::time::Instant::now() > deadline;
            let prefix = prefix.clone();
            let count = tokio::task::spawn_blocking(move || match late {
                true => shim::tree::kill_marked(shim::MARK, &prefix),
                false => shim::tree::marked(shim::MARK, &prefix).len(),
            });
            match count.await {
                Ok(0) | Err(_) => return,
                Ok(count) if late => {
                    tracing::warn!(count, "processes of an earlier life were killed")
                }
                Ok(_) => {}
            }
            if tokio::time::Instant::now() > deadline + LEFTOVER_PATIENCE {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    #[cfg(not(target_os = "linux"))]
    drop(mark);
}

/// The pods of this node, each with its worker.
async fn manage(ctx: Arc<NodeContext>, shutdown: &CancellationToken) {
    let api: Api<Pod> = Api::all(ctx.client.clone());
    let mine = watcher::Config::default().fields(&format!("spec.nodeName={}", ctx.options.name));
    let mut events = pin!(watcher(api, mine).default_backoff());
    let mut pods =
        Pods { ctx, shutdown: shutdown.clone(), views: HashMap::new(), workers: JoinSet::new() };
    let mut listed: Option<HashSet<String>> = None;
    let mut first = true;
    loop {
        let event = tokio::select! {
            () = shutdown.cancelled() => break,
            Some(_) = pods.workers.join_next() => continue,
            event = events.try_next() => event,
        };
        match event {
            Ok(Some(watcher::Event::Init)) => listed = Some(HashSet::new()),
            Ok(Some(watcher::Event::InitApply(pod))) => {
                if let (Some(listed), Some(uid)) = (&mut listed, &pod.metadata.uid) {
                    listed.insert(uid.clone());
                }
                pods.seen(pod);
            }
            Ok(Some(watcher::Event::InitDone)) => {
                if let Some(listed) = listed.take() {
                    pods.only(&listed);
                    if std::mem::take(&mut first) {
                        pods.forget_others(&listed);
                    }
                }
            }
            Ok(Some(watcher::Event::Apply(pod))) => pods.seen(pod),
            Ok(Some(watcher::Event::Delete(pod))) => pods.gone(&pod),
            Ok(None) => break,
            Err(error) => tracing::debug!(%error, "the watch of pods is begun again"),
        }
    }
    // Workers see the shutdown themselves.
    while pods.workers.join_next().await.is_some() {}
}

struct Pods {
    ctx: Arc<NodeContext>,
    shutdown: CancellationToken,
    /// What each worker was last told, by the pod's uid. Kept until the object is gone, so that a pod whose worker is
    /// done, but whose object others still hold, does not begin again.
    views: HashMap<String, watch::Sender<View>>,
    workers: JoinSet<()>,
}

impl Pods {
    fn seen(&mut self, pod: Pod) {
        let Some(uid) = pod.metadata.uid.clone() else { return };
        let is_mine = pod.spec.as_ref().and_then(|spec| spec.node_name.as_ref())
            == Some(&self.ctx.options.name);
        if !is_mine {
            return;
        }
        let pod = Arc::new(pod);
        if let Some(view) = self.views.get(&uid) {
            view.send_replace(Some(pod));
            return;
        }
        let (sender, view) = watch::channel(Some(pod.clone()));
        self.views.insert(uid, sender);
        self.workers.spawn(Worker::run(self.ctx.clone(), pod, view, self.shutdown.clone()));
    }

    fn gone(&mut self, pod: &Pod) {
        if let Some(view) = pod.metadata.uid.as_ref().and_then(|uid| self.views.remove(uid)) {
            view.send_replace(None);
            // The worker's own copy of the channel stays readable; it learns of the end by the value.
            self.keep_until_done(view);
        }
    }

    /// A dropped sender would look like the node's end to the worker.
    fn keep_until_done(&mut self, view: watch::Sender<View>) {
        self.workers.spawn(async move { view.closed().await });
    }

    /// After a new list: what is not in it is gone.
    fn only(&mut self, listed: &HashSet<String>) {
        let gone: Vec<String> =
            self.views.keys().filter(|uid| !listed.contains(*uid)).cloned().collect();
        for uid in gone {
            if let Some(view) = self.views.remove(&uid) {
                view.send_replace(None);
                self.keep_until_done(view);
            }
        }
    }

    /// Removes what is left of pods that went away while the node was not there.
    fn forget_others(&self, listed: &HashSet<String>) {
        self.ctx.addresses.lock().retain(|uid| listed.contains(uid));
        let dirs = [(self.ctx.dirs.pods(), None), (self.ctx.dirs.logs(), Some('_'))];
        let listed = listed.clone();
        tokio::task::spawn_blocking(move || {
            for (dir, separator) in dirs {
                for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
                    let name = entry.file_name().to_string_lossy().into_owned();
                    let uid = separator
                        .map_or(name.as_str(), |s| name.rsplit(s).next().unwrap_or_default());
                    if !listed.contains(uid) {
                        let _ = std::fs::remove_dir_all(entry.path());
                    }
                }
            }
        });
    }
}
