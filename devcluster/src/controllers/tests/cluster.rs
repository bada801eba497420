//! An API server and the controllers, which can be stopped and started again, and a stand-in for
//! the node: it makes bound pods ready at once and ends deleted ones.

use std::path::Path;

use futures::{StreamExt, TryStreamExt};
use jiff::Timestamp;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::watcher::{Config, watcher};
use kube::runtime::{WatchStreamExt, watcher::Event};
use kube::{Api, Client, Resource, ResourceExt};
use serde_json::json;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::api::{ApiOptions, ApiServer, serve};
use crate::controllers;

pub struct TestCluster {
    pub client: Client,
    server: ApiServer,
    stop_server: CancellationToken,
    controllers: Option<(CancellationToken, JoinHandle<()>)>,
    node: Option<(CancellationToken, JoinHandle<()>)>,
}

impl TestCluster {
    /// All of it, with one node named `node`.
    pub async fn start(dir: &Path) -> Self {
        let mut cluster = Self::server(dir).await;
        cluster.start_controllers();
        cluster.start_node().await;
        cluster
    }

    pub async fn server(dir: &Path) -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let options = ApiOptions { data_dir: dir.to_owned(), listen: ([127, 0, 0, 1], 0).into() };
        let stop_server = CancellationToken::new();
        let server = serve(options, stop_server.clone()).await.unwrap();
        let file = Kubeconfig::read_from(server.kubeconfig()).unwrap();
        let config = kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
            .await
            .unwrap();
        let client = Client::try_from(config).unwrap();
        Self { client, server, stop_server, controllers: None, node: None }
    }

    pub fn start_controllers(&mut self) {
        let stop = CancellationToken::new();
        let (client, shutdown) = (self.client.clone(), stop.clone());
        let task = tokio::spawn(async move { controllers::run(client, shutdown).await.unwrap() });
        self.controllers = Some((stop, task));
    }

    pub async fn stop_controllers(&mut self) {
        if let Some((stop, task)) = self.controllers.take() {
            stop.cancel();
            task.await.unwrap();
        }
    }

    pub async fn start_node(&mut self) {
        register(&self.client, "node").await;
        let stop = CancellationToken::new();
        let task = tokio::spawn(run_node(self.client.clone(), stop.clone()));
        self.node = Some((stop, task));
    }

    pub async fn stop_node(&mut self) {
        if let Some((stop, task)) = self.node.take() {
            stop.cancel();
            task.await.unwrap();
        }
    }

    /// Stops everything, as a reboot would; the data stay.
    pub async fn stop(mut self) {
        self.stop_node().await;
        self.stop_controllers().await;
        self.stop_server.cancel();
        self.server.ended().await;
    }

    pub fn api<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), "default")
    }

    /// Creates an object in the namespace `default` from its JSON.
    pub async fn create<K>(&self, object: serde_json::Value) -> K
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + std::fmt::Debug
            + serde::Serialize
            + serde::de::DeserializeOwned,
    {
        let object: K = serde_json::from_value(object).unwrap();
        self.api::<K>().create(&PostParams::default(), &object).await.unwrap()
    }
}

async fn register(client: &Client, name: &str) {
    let nodes: Api<Node> = Api::all(client.clone());
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {
        "name": name, "labels": {"kubernetes.io/hostname": name},
    }});
    if nodes.get_opt(name).await.unwrap().is_none() {
        nodes.create(&PostParams::default(), &serde_json::from_value(node).unwrap()).await.unwrap();
    }
    let status = json!({"status": {
        "allocatable": {"cpu": "4", "memory": "8Gi", "pods": "110"},
        "conditions": [{"type": "Ready", "status": "True", "lastHeartbeatTime": Timestamp::now()}],
    }});
    nodes.patch_status(name, &PatchParams::default(), &Patch::Strategic(status)).await.unwrap();
}

async fn run_node(client: Client, stop: CancellationToken) {
    let provision = provision(client.clone(), stop.clone());
    let run = run_pods(client, stop);
    tokio::join!(provision, run);
}

async fn run_pods(client: Client, stop: CancellationToken) {
    let bound = Config::default().fields("spec.nodeName=node");
    let pods = watcher(Api::<Pod>::all(client.clone()), bound).default_backoff();
    let mut pods = pods.take_until(stop.cancelled_owned()).boxed();
    let mut addresses = 1_u8;
    loop {
        let pod = match pods.try_next().await {
            Ok(Some(Event::Apply(pod) | Event::InitApply(pod))) => pod,
            Ok(Some(_)) | Err(_) => continue,
            Ok(None) => return,
        };
        let api: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace().unwrap());
        let name = pod.name_any();
        if pod.metadata.deletion_timestamp.is_some() {
            let _ = api.delete(&name, &DeleteParams::default().grace_period(0)).await;
            continue;
        }
        let fresh =
            pod.status.as_ref().is_none_or(|status| status.phase.as_deref() == Some("Pending"));
        let hold = pod.annotations().contains_key("test/hold");
        if fresh && !hold {
            addresses += 1;
            let status = json!({"status": {
                "phase": "Running", "podIP": format!("127.77.0.{addresses}"),
                "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": Timestamp::now()}],
            }});
            let _ =
                api.patch_status(&name, &PatchParams::default(), &Patch::Strategic(status)).await;
        }
    }
}

/// Makes a volume for each claim that waits for one on this node.
async fn provision(client: Client, stop: CancellationToken) {
    let claims = watcher(Api::<PersistentVolumeClaim>::all(client.clone()), Config::default())
        .default_backoff();
    let mut claims = claims.applied_objects().take_until(stop.cancelled_owned()).boxed();
    let volumes: Api<PersistentVolume> = Api::all(client);
    loop {
        let claim = match claims.try_next().await {
            Ok(Some(claim)) => claim,
            Err(_) => continue,
            Ok(None) => return,
        };
        let wanted =
            claim.annotations().get("volume.kubernetes.io/storage-provisioner").map(String::as_str);
        let bound = claim.spec.as_ref().is_some_and(|spec| spec.volume_name.is_some());
        if wanted != Some("dormouse.dev/local") || bound {
            continue;
        }
        let volume = json!({
            "apiVersion": "v1", "kind": "PersistentVolume",
            "metadata": {"name": format!("pvc-{}", claim.uid().unwrap())},
            "spec": {
                "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"],
                "persistentVolumeReclaimPolicy": "Delete", "storageClassName": "dormouse-local",
                "hostPath": {"path": "/nowhere"},
                "claimRef": {"kind": "PersistentVolumeClaim", "apiVersion": "v1", "uid": claim.uid(),
                             "name": claim.name_any(), "namespace": claim.namespace()},
            },
        });
        let _ =
            volumes.create(&PostParams::default(), &serde_json::from_value(volume).unwrap()).await;
    }
}
