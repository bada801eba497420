//! An API server and a node, without scheduler and controllers: tests bind pods themselves.

use devcluster::api::{ApiOptions, ApiServer, serve};
use devcluster::node::{self, NodeError, NodeOptions, Only};
use futures::{AsyncBufReadExt, TryStreamExt};
use k8s_openapi::api::core::v1::{Event, Node, Pod};
use kube::api::{Api, DeleteParams, ListParams, LogParams, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::wait::await_condition;
use serde_json::{Value, json};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Longer than anything here takes on a busy machine; only a failure waits for it.
pub const PATIENCE: Duration = Duration::from_secs(60);
pub const NODE: &str = "here";

/// Each cluster of a test run has a range of its own, so that pods of two tests can use one port.
static RANGES: AtomicU8 = AtomicU8::new(1);

pub struct Cluster {
    pub client: kube::Client,
    pub data: PathBuf,
    /// The only pods that the node takes.
    pub only: Option<Only>,
    config: kube::Config,
    node: Option<(JoinHandle<()>, CancellationToken)>,
    api: Option<(ApiServer, CancellationToken)>,
    _dir: tempfile::TempDir,
}

impl Cluster {
    pub async fn start() -> Self {
        let mut cluster = Self::without_node().await;
        cluster.start_node().await;
        cluster
    }

    pub async fn without_node() -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let dir = tempfile::tempdir().unwrap();
        let shutdown = CancellationToken::new();
        let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let options = ApiOptions { data_dir: dir.path().join("api"), listen };
        let api = serve(options, shutdown.clone()).await.unwrap();
        let kubeconfig = Kubeconfig::read_from(api.kubeconfig()).unwrap();
        let config =
            kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
                .await
                .unwrap();
        let client = kube::Client::try_from(config.clone()).unwrap();
        let range = format!("127.78.{}.0/24", RANGES.fetch_add(1, Ordering::Relaxed));
        let object = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE}, "spec": {"podCIDR": range}});
        let nodes: Api<Node> = Api::all(client.clone());
        nodes
            .create(&PostParams::default(), &serde_json::from_value(object).unwrap())
            .await
            .unwrap();
        let data = dir.path().join("node");
        Self { client, data, only: None, config, node: None, api: Some((api, shutdown)), _dir: dir }
    }

    /// The node, until `shutdown` or an error of its.
    pub fn run_node(
        &self,
        shutdown: CancellationToken,
    ) -> impl Future<Output = Result<(), NodeError>> + Send + use<> {
        let mut options = options(self.data.clone(), &self.config);
        options.only = self.only.clone();
        node::run(self.client.clone(), options, shutdown)
    }

    pub async fn start_node(&mut self) {
        let shutdown = CancellationToken::new();
        let running = self.run_node(shutdown.clone());
        let task = tokio::spawn(async move { running.await.unwrap() });
        self.node = Some((task, shutdown));
        self.until_node_is_ready().await;
    }

    pub async fn until_node_is_ready(&self) {
        let ready = |node: Option<&Node>| {
            let conditions = node.and_then(|node| node.status.as_ref()?.conditions.as_ref());
            conditions
                .is_some_and(|all| all.iter().any(|c| c.type_ == "Ready" && c.status == "True"))
        };
        let wait = await_condition(Api::<Node>::all(self.client.clone()), NODE, ready);
        tokio::time::timeout(PATIENCE, wait).await.unwrap().unwrap();
    }

    /// Stops the node as a signal would.
    pub async fn stop_node(&mut self) {
        let (task, shutdown) = self.node.take().unwrap();
        shutdown.cancel();
        tokio::time::timeout(PATIENCE, task).await.unwrap().unwrap();
    }

    pub async fn stop(mut self) {
        if self.node.is_some() {
            self.stop_node().await;
        }
        let (api, shutdown) = self.api.take().unwrap();
        shutdown.cancel();
        tokio::time::timeout(PATIENCE, api.ended()).await.unwrap();
    }

    pub fn kubeconfig(&self) -> &Path {
        self.api.as_ref().unwrap().0.kubeconfig()
    }

    pub fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), "default")
    }

    /// Creates a pod that is bound to the node.
    pub async fn create(&self, name: &str, mut spec: Value) -> Pod {
        spec["nodeName"] = json!(NODE);
        let pod = json!({"metadata": {"name": name, "labels": {"app": name}}, "spec": spec});
        self.pods()
            .create(&PostParams::default(), &serde_json::from_value(pod).unwrap())
            .await
            .unwrap()
    }

    /// Creates any object of the core API.
    pub async fn apply(&self, object: Value) {
        let gvk = kube::core::GroupVersionKind::gvk("", "v1", object["kind"].as_str().unwrap());
        let resource = kube::core::ApiResource::from_gvk(&gvk);
        let api: Api<kube::core::DynamicObject> =
            Api::namespaced_with(self.client.clone(), "default", &resource);
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        api.patch(&name, &PatchParams::apply("test"), &Patch::Apply(object)).await.unwrap();
    }

    /// The pod as JSON, once `check` holds.
    pub async fn until(&self, name: &str, what: &str, check: impl Fn(&Value) -> bool) -> Value {
        let holds =
            |pod: Option<&Pod>| pod.is_some_and(|pod| check(&serde_json::to_value(pod).unwrap()));
        let wait = await_condition(self.pods(), name, holds);
        match tokio::time::timeout(PATIENCE, wait).await {
            Ok(pod) => serde_json::to_value(pod.unwrap()).unwrap(),
            Err(_) => {
                let pod = self.pods().get_opt(name).await.unwrap();
                panic!(
                    "{name} never: {what}; it is {}",
                    serde_json::to_string_pretty(&pod).unwrap()
                );
            }
        }
    }

    pub async fn until_ready(&self, name: &str) -> Value {
        self.until(name, "ready", is_ready).await
    }

    pub async fn delete(&self, name: &str) {
        self.pods().delete(name, &DeleteParams::default()).await.unwrap();
        let wait = await_condition(self.pods(), name, |pod: Option<&Pod>| pod.is_none());
        tokio::time::timeout(PATIENCE, wait).await.unwrap().unwrap();
    }

    pub async fn logs(&self, name: &str, params: LogParams) -> String {
        self.pods().logs(name, &params).await.unwrap()
    }

    /// The first `lines` of a log that is being written.
    pub async fn follow(&self, name: &str, params: LogParams, lines: usize) -> String {
        let read = async {
            let mut log = self.pods().log_stream(name, &params).await.unwrap().lines();
            let mut text = String::new();
            for _ in 0..lines {
                text.push_str(&log.try_next().await.unwrap().expect("the log ends early"));
                text.push('\n');
            }
            text
        };
        tokio::time::timeout(PATIENCE, read).await.unwrap()
    }

    /// Reasons of the pod's events, once `reason` is among them.
    pub async fn until_event(&self, name: &str, reason: &str) -> Vec<Event> {
        let api: Api<Event> = Api::namespaced(self.client.clone(), "default");
        let params = ListParams::default().fields(&format!("involvedObject.name={name}"));
        let find = async {
            loop {
                let events = api.list(&params).await.unwrap().items;
                if events.iter().any(|event| event.reason.as_deref() == Some(reason)) {
                    return events;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, find)
            .await
            .unwrap_or_else(|_| panic!("{name} has no event {reason}"))
    }
}

pub fn options(data: PathBuf, config: &kube::Config) -> NodeOptions {
    let mut options =
        NodeOptions::new(NODE, data, vec![env!("CARGO_BIN_EXE_pod-shim").into()], config);
    options.trust_local_peers = false;
    options.env = vec![("FROM_NODE".to_owned(), "yes".to_owned())];
    options
}

pub async fn config(kubeconfig: &Path) -> kube::Config {
    let kubeconfig = Kubeconfig::read_from(kubeconfig).unwrap();
    kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap()
}

pub fn is_ready(pod: &Value) -> bool {
    condition(pod, "Ready") == Some("True")
}

pub fn condition<'a>(pod: &'a Value, type_: &str) -> Option<&'a str> {
    pod["status"]["conditions"].as_array()?.iter().find(|c| c["type"] == type_)?["status"].as_str()
}

/// Processes whose working directory is below `dir`.
pub fn processes_in(dir: &Path) -> Vec<i32> {
    let dir = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
    std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok())
        .filter(|pid: &i32| {
            std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd.starts_with(&dir))
        })
        .collect()
}
