//! Alice's project and her three workloads.

use std::time::Duration;

use cluster::resources::{App, Phase, Project, WorkloadResource, Workspace};
use domain::workload::{WorkloadKind, WorkloadRef};
use k8s_openapi::api::core::v1::{Namespace, Secret};
use kube::{
    Api, Client, Resource,
    api::PostParams,
    runtime::{conditions::Condition, wait::await_condition},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tokio::time::Instant;

const PROJECT: &str = "alice";
const SERVED_WITHIN: Duration = Duration::from_secs(15);
const NAMESPACE_WITHIN: Duration = Duration::from_secs(30);
/// JupyterLab's first start reads much from disk.
const SETTLED_WITHIN: Duration = Duration::from_secs(90);
const DASHBOARD: &str = include_str!("../../../config/dev/dashboard.py");

/// Makes what is not there; what is there stays as its owner left it.
pub async fn ensure(client: &Client) -> anyhow::Result<Vec<WorkloadRef>> {
    let project = json!({
        "apiVersion": "dormouse.dev/v1alpha1", "kind": "Project",
        "metadata": {"name": PROJECT},
        "spec": {"displayName": "Alice", "members": [{"user": "alice", "role": "Admin"}]},
    });
    create(Api::<Project>::all(client.clone()), project).await?;
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let active = await_condition(namespaces, PROJECT, |namespace: Option<&Namespace>| {
        let phase = namespace.and_then(|n| n.status.as_ref()?.phase.as_deref());
        phase == Some("Active")
    });
    let waited = tokio::time::timeout(NAMESPACE_WITHIN, active).await;
    anyhow::ensure!(
        waited.is_ok(),
        "the namespace {PROJECT} does not appear; look at it with: kubectl describe project {PROJECT}"
    );

    let mut created = Vec::new();
    if found("jupyter") {
        let lab = Api::<Workspace>::namespaced(client.clone(), PROJECT);
        created.push(create_workload(lab, "Workspace", "lab", lab_spec()).await?);
    } else {
        tracing::warn!(
            "JupyterLab is not installed, so there is no workspace `lab`: pip install jupyterlab, and start again"
        );
    }
    let apps = || Api::<App>::namespaced(client.clone(), PROJECT);
    if found("streamlit") {
        let code = json!({
            "apiVersion": "v1", "kind": "Secret",
            "metadata": {"name": "dashboard-code", "namespace": PROJECT},
            "stringData": {"dashboard.py": DASHBOARD},
        });
        create(Api::<Secret>::namespaced(client.clone(), PROJECT), code).await?;
        created.push(create_workload(apps(), "App", "dashboard", dashboard_spec()).await?);
    } else {
        tracing::warn!(
            "Streamlit is not installed, so there is no app `dashboard`: pip install streamlit, and start again"
        );
    }
    created.push(create_workload(apps(), "App", "echo", echo_spec()).await?);
    Ok(created)
}

fn lab_spec() -> Value {
    json!({
        "owner": "alice",
        "image": "jupyterlab",
        // The gate in front decides who gets in; the server itself trusts what reaches it.
        "command": [
            "jupyter", "lab", "--ip=$(POD_IP)", "--port=8888", "--port-retries=0", "--no-browser",
            "--allow-root", "--ServerApp.allow_remote_access=true", "--IdentityProvider.token=",
            "--ServerApp.root_dir=/home/work", "--LabApp.news_url=None", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
        ],
        "port": 8888,
        "protocol": "Jupyter",
        // The one that this node makes volumes of, whatever else the cluster has.
        "storage": {"size": "1Gi", "storageClassName": "dormouse-local"},
    })
}

fn dashboard_spec() -> Value {
    json!({
        "owner": "alice",
        "image": "streamlit",
        "command": [
            "streamlit", "run", "/srv/dashboard/dashboard.py", "--server.address=$(POD_IP)",
            "--server.port=8501", "--server.headless=true", "--server.fileWatcherType=none",
            "--browser.gatherUsageStats=false",
        ],
        "port": 8501,
        "protocol": "Streamlit",
        "probe": {"path": "/_stcore/health"},
        "secrets": [{"name": "dashboard-code", "mountPath": "/srv/dashboard"}],
    })
}

fn echo_spec() -> Value {
    json!({
        "owner": "alice",
        "image": "dormouse",
        "command": ["dormouse", "echo", "--listen", "$(POD_IP):8080"],
        "port": 8080,
    })
}

/// On the PATH that the workloads will have.
fn found(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

async fn create<K>(api: Api<K>, object: Value) -> anyhow::Result<()>
where
    K: Clone + std::fmt::Debug + DeserializeOwned + Serialize,
{
    let typed: K = serde_json::from_value(object)?;
    let deadline = Instant::now() + SERVED_WITHIN;
    loop {
        match api.create(&PostParams::default(), &typed).await {
            Ok(_) => return Ok(()),
            Err(kube::Error::Api(status)) if status.code == 409 => return Ok(()),
            // A definition may be established a moment before each API server serves it.
            Err(kube::Error::Api(status)) if status.code == 404 && Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

async fn create_workload<W: WorkloadResource>(
    api: Api<W>,
    kind: &str,
    name: &str,
    spec: Value,
) -> anyhow::Result<WorkloadRef> {
    let object = json!({
        "apiVersion": "dormouse.dev/v1alpha1", "kind": kind,
        "metadata": {"name": name, "namespace": PROJECT}, "spec": spec,
    });
    create(api, object).await?;
    Ok(WorkloadRef { kind: W::KIND, project: PROJECT.parse()?, name: name.parse()? })
}

/// Waits until each runs, sleeps, is stopped or has failed; says what does not come up, and goes on.
pub async fn wait_until_settled(client: &Client, workloads: &[WorkloadRef]) {
    let waits = workloads.iter().map(|workload| async {
        match workload.kind {
            WorkloadKind::Workspace => settled::<Workspace>(client, workload).await,
            WorkloadKind::App => settled::<App>(client, workload).await,
        }
    });
    futures::future::join_all(waits).await;
}

async fn settled<W>(client: &Client, workload: &WorkloadRef)
where
    W: WorkloadResource + Resource,
{
    let api: Api<W> = Api::namespaced(client.clone(), workload.project.as_str());
    let name = workload.name.as_str();
    let condition = |object: Option<&W>| {
        let phase = object.and_then(|object| object.status()?.phase);
        phase.is_some_and(|phase| phase != Phase::Starting)
    };
    let waited = tokio::time::timeout(
        SETTLED_WITHIN,
        await_condition(api, name, condition.or(|_: Option<&W>| false)),
    );
    let object = match waited.await {
        Ok(Ok(object)) => object,
        Ok(Err(error)) => {
            tracing::warn!(%workload, %error, "its state is not known");
            None
        }
        Err(_) => {
            tracing::warn!(%workload, "it is still starting; look at it with kubectl describe");
            None
        }
    };
    let status = object.as_ref().and_then(WorkloadResource::status);
    if status.and_then(|s| s.phase) == Some(Phase::Failed) {
        let message = status.and_then(|s| s.message.as_deref()).unwrap_or_default();
        tracing::warn!(%workload, message, "it does not start");
    }
}
