//! Alice's project and her three workloads.

use std::time::Duration;

use anyhow::Context as _;
use cluster::{
    labels,
    resources::{App, Phase, Project, WorkloadResource, Workspace},
    scope::Scope,
};
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
/// Of a Project's name.
const NAME_MAX: usize = 30;
const SERVED_WITHIN: Duration = Duration::from_secs(15);
const NAMESPACE_WITHIN: Duration = Duration::from_secs(30);
/// JupyterLab's first start reads much from disk.
const SETTLED_WITHIN: Duration = Duration::from_secs(90);
const DASHBOARD: &str = include_str!("../../../config/dev/dashboard.py");

/// What alice's project is called, so that it is nobody else's: after the scope, where the cluster is others'.
///
/// # Errors
/// When a Project of another scope has the name all the same.
pub async fn project(client: &Client, scope: &Scope) -> anyhow::Result<String> {
    let name = scope.name().map_or_else(|| PROJECT.to_owned(), project_name);
    // A definition may be established a moment before each API server serves it; nothing is there then.
    let found = match cluster::scope::project(client, &name).await {
        Err(kube::Error::Api(status)) if status.code == 404 => None,
        found => found.context("the cluster's Projects cannot be listed")?,
    };
    if let Some(found) = found {
        let label = labels::SCOPE;
        let theirs = found.labels.as_ref().and_then(|labels| labels.get(label));
        anyhow::ensure!(
            scope.has(&found),
            "the Project {name} is of the scope `{}` and not of `{scope}`, and is left as it is; choose another scope with --scope NAME, or hand it over: kubectl label project {name} --overwrite {label}={scope}",
            theirs.map_or("default", String::as_str)
        );
    }
    Ok(name)
}

/// `alice-` and the scope; what is too long or no name ends with digits that are the scope's alone.
fn project_name(scope: &str) -> String {
    let whole = format!("{PROJECT}-{scope}");
    if whole.len() <= NAME_MAX && !whole.contains("--") {
        return whole;
    }
    // FNV-1a: the same in each version of this program.
    let hash = scope
        .bytes()
        .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    let words = whole.split('-').filter(|word| !word.is_empty());
    let mut short = words.collect::<Vec<_>>().join("-");
    short.truncate(NAME_MAX - 9);
    format!("{}-{hash:08x}", short.trim_end_matches('-'))
}

/// Makes what is not there; what is there stays as its owner left it. `name` is [`project`]'s.
pub async fn ensure(
    client: &Client,
    scope: &Scope,
    name: &str,
) -> anyhow::Result<Vec<WorkloadRef>> {
    let project = json!({
        "apiVersion": "dormouse.dev/v1alpha1", "kind": "Project",
        "metadata": {
            "name": name,
            "labels": scope.name().map(|scope| json!({labels::SCOPE: scope})),
        },
        "spec": {"displayName": "Alice", "members": [{"user": "alice", "role": "Admin"}]},
    });
    create(Api::<Project>::all(client.clone()), project).await?;
    // Somebody else may have made it at the same moment.
    self::project(client, scope).await?;
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let active = await_condition(namespaces, name, |namespace: Option<&Namespace>| {
        let phase = namespace.and_then(|n| n.status.as_ref()?.phase.as_deref());
        phase == Some("Active")
    });
    let waited = tokio::time::timeout(NAMESPACE_WITHIN, active).await;
    anyhow::ensure!(
        waited.is_ok(),
        "the namespace {name} does not appear; look at it with: kubectl describe project {name}"
    );

    let mut created = Vec::new();
    if found("jupyter") {
        let lab = Api::<Workspace>::namespaced(client.clone(), name);
        created.push(create_workload(lab, "Workspace", (name, "lab"), lab_spec()).await?);
    } else {
        tracing::warn!(
            "JupyterLab is not installed, so there is no workspace `lab`: pip install jupyterlab, and start again"
        );
    }
    let apps = || Api::<App>::namespaced(client.clone(), name);
    if found("streamlit") {
        let code = json!({
            "apiVersion": "v1", "kind": "Secret",
            "metadata": {"name": "dashboard-code", "namespace": name},
            "stringData": {"dashboard.py": DASHBOARD},
        });
        create(Api::<Secret>::namespaced(client.clone(), name), code).await?;
        created.push(create_workload(apps(), "App", (name, "dashboard"), dashboard_spec()).await?);
    } else {
        tracing::warn!(
            "Streamlit is not installed, so there is no app `dashboard`: pip install streamlit, and start again"
        );
    }
    created.push(create_workload(apps(), "App", (name, "echo"), echo_spec()).await?);
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
    (project, name): (&str, &str),
    spec: Value,
) -> anyhow::Result<WorkloadRef> {
    let object = json!({
        "apiVersion": "dormouse.dev/v1alpha1", "kind": kind,
        "metadata": {"name": name, "namespace": project}, "spec": spec,
    });
    create(api, object).await?;
    Ok(WorkloadRef { kind: W::KIND, project: project.parse()?, name: name.parse()? })
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

#[cfg(test)]
mod tests {
    use domain::name::ProjectName;

    use super::*;

    #[test]
    fn the_project_is_called_after_the_scope() {
        assert_eq!(project_name("dev-host"), "alice-dev-host");
        let long = "dev-a-host-whose-name-is-rather-long";
        let odd = ["9", "a--b", "dev---", long, &format!("{long}er")];
        let mut names: Vec<_> = odd.map(project_name).to_vec();
        for name in &names {
            assert!(name.parse::<ProjectName>().is_ok() && name.len() <= NAME_MAX, "{name}");
            assert!(name.starts_with("alice-") && !name.contains("--"), "{name}");
        }
        names.sort();
        names.dedup();
        assert_eq!(names.len(), odd.len());
    }
}
