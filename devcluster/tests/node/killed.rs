//! The node process is killed: nothing it ran survives, and the next one goes on where it was.

use super::cluster::{self, Cluster, PATIENCE, is_ready, processes_in};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

const KUBECONFIG: &str = "NODE_TEST_KUBECONFIG";
const DATA: &str = "NODE_TEST_DATA";

/// Not a test of its own: the process that [`spawn`] starts, and kills.
#[tokio::test(flavor = "multi_thread")]
async fn node_process() {
    let (Some(kubeconfig), Some(data)) = (std::env::var_os(KUBECONFIG), std::env::var_os(DATA))
    else {
        return;
    };
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let config = cluster::config(&PathBuf::from(kubeconfig)).await;
    let options = cluster::options(PathBuf::from(data), &config);
    let client = kube::Client::try_from(config).unwrap();
    devcluster::node::run(client, options, CancellationToken::new()).await.unwrap();
}

fn spawn(cluster: &Cluster) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "killed::node_process"])
        .env(KUBECONFIG, cluster.kubeconfig())
        .env(DATA, &cluster.data)
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn no_process_survives_a_killed_node_and_the_next_one_goes_on() {
    let cluster = Cluster::without_node().await;
    let mut node = spawn(&cluster);
    let script = "
        setsid sh -c '(trap \"\" TERM HUP; touch daemon; while :; do sleep 1; done) &'
        trap '' TERM HUP; touch main; while :; do sleep 1; done";
    let container = json!({
        "name": "c", "image": "any", "command": ["sh", "-c", script], "workingDir": "/work",
        "volumeMounts": [{"name": "work", "mountPath": "/work"}],
        "readinessProbe": {"exec": {"command": ["test", "-e", "/work/main", "-a", "-e", "/work/daemon"]}, "periodSeconds": 1},
    });
    let spec = json!({"containers": [container], "volumes": [{"name": "work", "emptyDir": {}}], "terminationGracePeriodSeconds": 1});
    cluster.create("hardy", spec).await;
    let before = cluster.until_ready("hardy").await;
    assert!(processes_in(&cluster.data).len() >= 2);

    node.kill().unwrap();
    node.wait().unwrap();
    let deadline = Instant::now() + PATIENCE;
    while !processes_in(&cluster.data).is_empty() {
        assert!(Instant::now() < deadline, "processes outlive their node");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }

    let mut node = spawn(&cluster);
    let again = |pod: &Value| {
        let container = &pod["status"]["containerStatuses"][0];
        is_ready(pod) && container["restartCount"] == 1
    };
    let after = cluster.until("hardy", "runs again", again).await;
    assert_eq!(after["status"]["podIP"], before["status"]["podIP"]);
    let last = &after["status"]["containerStatuses"][0]["lastState"]["terminated"];
    assert_eq!(last["reason"], "Unknown");
    cluster.delete("hardy").await;
    assert_eq!(processes_in(&cluster.data), Vec::<i32>::new());
    node.kill().unwrap();
    node.wait().unwrap();
    cluster.stop().await;
}
