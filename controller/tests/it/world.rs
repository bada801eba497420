use std::{
    fmt::Debug,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use cluster::resources::{App, WorkloadResource, WorkloadStatus, Workspace};
use controller::{Holding, lease};
use http::{Request, Response};
use k8s_openapi::{
    api::{
        apps::v1::StatefulSet,
        core::v1::{Secret, Service},
    },
    apimachinery::pkg::apis::meta::v1::Condition,
};
use kube::{
    Api, Client, Config, Resource, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
    client::Body,
    config::{KubeConfigOptions, Kubeconfig},
    core::NamespaceResourceScope,
};
use runtime::{audit::Audit, health::Health, service::Context};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::{CancellationToken, DropGuard};

pub const NAMESPACE: &str = "vision";

/// Longer than anything takes on a busy machine.
const DEADLINE: Duration = Duration::from_secs(60);

/// Says what the API server answers instead, for method (`WATCH` of a watch), path and content type of a
/// request.
pub type Answer = Arc<Mutex<Box<dyn Fn(&str, &str, &str) -> Option<(u16, Value)> + Send>>>;

pub struct World {
    /// Past whatever `answer` says.
    pub client: Client,
    pub ctx: Context,
    /// To the controller.
    pub answer: Answer,
    ended: Mutex<Option<JoinHandle<anyhow::Result<()>>>>,
    folder: TempDir,
    _stop: DropGuard,
}

/// One of several.
pub struct Controller {
    pub scope: &'static str,
    /// Of the agent, by which one sees who applied something.
    pub image: &'static str,
    pub holder: &'static str,
}

pub struct Running {
    pub ctx: Context,
    ended: JoinHandle<anyhow::Result<()>>,
}

impl Controller {
    pub fn start(self, world: &World) -> Running {
        self.start_through(world, |_, _, _| None)
    }

    pub fn start_through(
        self,
        world: &World,
        answer: impl Fn(&str, &str, &str) -> Option<(u16, Value)> + Send + 'static,
    ) -> Running {
        let through = altered(world.client.clone(), Arc::new(Mutex::new(Box::new(answer))));
        self.run(through, world.folder.path(), &CancellationToken::new())
    }

    fn run(self, client: Client, folder: &Path, stop: &CancellationToken) -> Running {
        let ctx = Context {
            registry: prometheus::Registry::new(),
            audit: Audit::to_file("test", &folder.join("audit")).unwrap(),
            health: Health::new(),
            shutdown: stop.child_token(),
        };
        let settings = json!({
            "scope": self.scope, "base_domain": "localhost", "gateways": [],
            "agent": {"image": self.image, "gateway_key": "ssh-ed25519 AAAA"},
        });
        let settings: controller::Config = serde_json::from_value(settings).unwrap();
        let http = runtime::http::client(None).unwrap();
        let claim = lease::Claim {
            client: client.clone(),
            namespace: "default".to_owned(),
            scope: settings.scope.clone(),
            holder: self.holder.to_owned(),
            timing: lease::Timing::USUAL,
        };
        let holding = Holding { claim, term: None };
        let serving =
            controller::serve(settings, client, http, Default::default(), holding, ctx.clone());
        Running { ctx, ended: tokio::spawn(serving) }
    }
}

impl Running {
    pub async fn stop(self) {
        self.ctx.shutdown.cancel();
        timeout(DEADLINE, self.ended).await.unwrap().unwrap().unwrap();
    }
}

/// Waits until the warning about the Lease is so.
pub async fn until_warned(ctx: &Context, holds: impl Fn(Option<&str>) -> bool) {
    let warned = async {
        loop {
            let warnings = ctx.health.warnings();
            let warning = warnings.iter().find(|(name, _)| *name == "lease");
            if holds(warning.map(|(_, warning)| warning.as_str())) {
                return;
            }
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(DEADLINE, warned).await.unwrap();
}

/// Deletes objects of one kind whose workspace is gone, as the cluster's garbage collector does.
async fn collect<K>(client: &Client)
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + Debug
        + DeserializeOwned,
{
    let api = Api::<K>::namespaced(client.clone(), NAMESPACE);
    let workspaces = Api::<Workspace>::namespaced(client.clone(), NAMESPACE);
    let Ok(all) = api.list(&ListParams::default()).await else { return };
    for object in all {
        let owners = object.owner_references().iter();
        for owner in owners.filter(|owner| owner.kind == "Workspace") {
            let Ok(found) = workspaces.get_opt(&owner.name).await else { continue };
            if found.and_then(|found| found.uid()).as_ref() != Some(&owner.uid) {
                let _ = api.delete(&object.name_any(), &DeleteParams::default()).await;
            }
        }
    }
}

impl World {
    /// An API server with the definitions and a namespace, and a controller beside it.
    pub async fn new() -> Self {
        Self::with(|_, _, _| None).await
    }

    pub async fn with(
        answer: impl Fn(&str, &str, &str) -> Option<(u16, Value)> + Send + 'static,
    ) -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let folder = tempfile::tempdir().unwrap();
        let shutdown = CancellationToken::new();
        let options = devcluster::api::ApiOptions {
            data_dir: folder.path().join("api"),
            listen: "127.0.0.1:0".parse().unwrap(),
        };
        let server = devcluster::api::serve(options, shutdown.clone()).await.unwrap();
        let kubeconfig = Kubeconfig::read_from(server.kubeconfig()).unwrap();
        let options = KubeConfigOptions::default();
        let config = Config::from_custom_kubeconfig(kubeconfig, &options).await.unwrap();
        let client = Client::try_from(config).unwrap();
        cluster::crds::apply(&client, cluster::crds::There::Replace, DEADLINE).await.unwrap();
        let namespace = json!({"metadata": {"name": NAMESPACE}});
        let namespace = serde_json::from_value(namespace).unwrap();
        let namespaces = Api::<k8s_openapi::api::core::v1::Namespace>::all(client.clone());
        namespaces.create(&PostParams::default(), &namespace).await.unwrap();

        let answer: Answer = Arc::new(Mutex::new(Box::new(answer)));
        let through = altered(client.clone(), answer.clone());
        let controller = Controller { scope: "default", image: "dormouse", holder: "test" };
        let Running { ctx, ended } = controller.run(through, folder.path(), &shutdown);
        let ended = Mutex::new(Some(ended));
        Self { client, ctx, answer, ended, folder, _stop: shutdown.drop_guard() }
    }

    /// How the controller ended. Once.
    pub async fn ended(&self) -> anyhow::Result<()> {
        let ended = self.ended.lock().unwrap().take().unwrap();
        timeout(DEADLINE, ended).await.unwrap().unwrap()
    }

    /// Deletes what was made for a workspace that is gone, until the guard is dropped: a reconciliation that
    /// is under way may make something anew behind its workspace's back.
    pub fn collect_garbage(&self) -> DropGuard {
        let stop = CancellationToken::new();
        let (client, stopped) = (self.client.clone(), stop.clone());
        tokio::spawn(stopped.run_until_cancelled_owned(async move {
            loop {
                collect::<StatefulSet>(&client).await;
                collect::<Service>(&client).await;
                collect::<Secret>(&client).await;
                sleep(Duration::from_millis(20)).await;
            }
        }));
        stop.drop_guard()
    }

    pub fn api<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), NAMESPACE)
    }

    pub async fn create<K>(&self, object: Value) -> K
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + Debug
            + Serialize
            + DeserializeOwned,
    {
        let object = serde_json::from_value(object).unwrap();
        self.api::<K>().create(&PostParams::default(), &object).await.unwrap()
    }

    pub async fn workspace(&self, name: &str, spec: Value) -> Workspace {
        let mut all = json!({"owner": "alice", "image": "jupyter"});
        all.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        self.create(json!({
            "apiVersion": "dormouse.dev/v1alpha1", "kind": "Workspace",
            "metadata": {"name": name}, "spec": all,
        }))
        .await
    }

    pub async fn app(&self, name: &str, spec: Value) -> App {
        let mut all = json!({"owner": "alice", "image": "web"});
        all.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        self.create(json!({
            "apiVersion": "dormouse.dev/v1alpha1", "kind": "App",
            "metadata": {"name": name}, "spec": all,
        }))
        .await
    }

    pub async fn merge<K>(&self, name: &str, patch: Value) -> K
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + Debug
            + DeserializeOwned,
    {
        self.api::<K>().patch(name, &PatchParams::default(), &Patch::Merge(patch)).await.unwrap()
    }

    pub async fn merge_status<K>(&self, name: &str, status: Value)
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + Debug
            + DeserializeOwned,
    {
        let patch = Patch::Merge(json!({"status": status}));
        self.api::<K>().patch_status(name, &PatchParams::default(), &patch).await.unwrap();
    }

    /// Waits until an object of that name is there and `holds` of it.
    pub async fn until<K>(&self, name: &str, holds: impl Fn(&K) -> bool) -> K
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + Debug
            + DeserializeOwned,
    {
        self.until_of(&self.api(), name, holds).await
    }

    pub async fn until_of<K>(&self, api: &Api<K>, name: &str, holds: impl Fn(&K) -> bool) -> K
    where
        K: Clone + Debug + DeserializeOwned,
    {
        let started = Instant::now();
        let mut last = None;
        while started.elapsed() < DEADLINE {
            last = api.get_opt(name).await.unwrap();
            if let Some(found) = last.as_ref().filter(|found| holds(found)) {
                return found.clone();
            }
            sleep(Duration::from_millis(20)).await;
        }
        panic!("it does not come to that: {last:#?}");
    }

    /// Waits until the workload's condition `Applied` is false for `reason`.
    pub async fn until_not_applied<W: WorkloadResource>(&self, name: &str, reason: &str) -> W {
        self.until(name, |found: &W| {
            applied(found.status()).is_some_and(|it| it.status == "False" && it.reason == reason)
        })
        .await
    }
}

pub fn applied(status: Option<&WorkloadStatus>) -> Option<&Condition> {
    status?.conditions.iter().find(|condition| condition.type_ == "Applied")
}

pub fn said<W: WorkloadResource>(found: &W) -> &str {
    &applied(found.status()).unwrap().message
}

/// A client whose requests `answer` sees first.
fn altered(client: Client, answer: Answer) -> Client {
    let service = tower::service_fn(move |request: Request<Body>| {
        let kind = request.headers().get("content-type").and_then(|kind| kind.to_str().ok());
        let watches = request.uri().query().is_some_and(|query| query.contains("watch="));
        let method = if watches { "WATCH" } else { request.method().as_str() };
        let path = request.uri().path();
        let instead = answer.lock().unwrap()(method, path, kind.unwrap_or_default());
        let client = client.clone();
        async move {
            match instead {
                Some((code, body)) => {
                    let body = match body {
                        Value::Null => Vec::new(),
                        body => serde_json::to_vec(&body).unwrap(),
                    };
                    Ok(Response::builder().status(code).body(Body::from(body)).unwrap())
                }
                None => client.send(request).await,
            }
        }
    });
    Client::new(service, "default")
}

/// A failure as a real API server words it.
pub fn failure(code: u16, message: &str) -> (u16, Value) {
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {},
        "status": "Failure", "message": message, "code": code});
    (code, status)
}
