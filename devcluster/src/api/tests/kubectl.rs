//! kubectl itself, where it is installed.

use std::process::{Output, Stdio};

use serde_json::json;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;

use super::{Cluster, definitions};

struct Kubectl<'a>(&'a Cluster);

impl Kubectl<'_> {
    fn command(&self, line: &str) -> Command {
        let mut command = Command::new("kubectl");
        command
            .env("KUBECONFIG", self.0.server.kubeconfig())
            .env("HOME", self.0.dir.path())
            .args(line.split_whitespace())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    async fn output(&self, line: &str, input: &str) -> Output {
        let mut child = self.command(line).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).await.unwrap();
        tokio::time::timeout(std::time::Duration::from_secs(60), child.wait_with_output())
            .await
            .unwrap()
            .unwrap()
    }

    /// Standard output of a command that succeeds.
    async fn run(&self, line: &str, input: &str) -> String {
        let output = self.output(line, input).await;
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "kubectl {line}: {error}");
        String::from_utf8(output.stdout).unwrap()
    }

    async fn fail(&self, line: &str, input: &str) -> String {
        let output = self.output(line, input).await;
        assert!(!output.status.success(), "kubectl {line} succeeded");
        String::from_utf8(output.stderr).unwrap()
    }
}

fn is_there() -> bool {
    let found = std::process::Command::new("kubectl").args(["version", "--client"]).output();
    let there = found.is_ok_and(|output| output.status.success());
    if !there {
        eprintln!("skipped: kubectl is not installed");
    }
    there
}

const DEPLOYMENT: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: d}
spec:
  selector: {matchLabels: {a: b}}
  template:
    metadata: {labels: {a: b}}
    spec: {containers: [{name: c, image: x, resources: {limits: {cpu: 2}}}]}
"#;

#[tokio::test]
async fn built_in_types_behave() {
    if !is_there() {
        return;
    }
    let cluster = Cluster::start().await;
    let kubectl = Kubectl(&cluster);
    assert!(kubectl.run("api-resources", "").await.contains("statefulsets"));
    assert_eq!(kubectl.run("apply -f -", DEPLOYMENT).await, "deployment.apps/d created\n");
    let changed = DEPLOYMENT.replace("image: x", "image: z");
    assert_eq!(kubectl.run("apply -f -", &changed).await, "deployment.apps/d configured\n");
    let error = kubectl.fail("apply -f -", &DEPLOYMENT.replace("image: x", "imagee: x")).await;
    assert!(error.contains("unknown field"), "{error}");
    kubectl.run("apply --server-side --force-conflicts -f -", &changed).await;
    assert_eq!(
        kubectl.run("scale deployment d --replicas 3", "").await,
        "deployment.apps/d scaled\n"
    );
    let table = kubectl.run("get deployments -o wide", "").await;
    let words: Vec<&str> = table.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!((words[0], words[1], words[6]), ("d", "0/3", "z"));
    assert!(kubectl.run("describe deployment d", "").await.contains("3 desired"));
    assert!(kubectl.run("get deployment d -o yaml", "").await.contains("replicas: 3"));
    assert!(
        kubectl
            .run("explain deployment.spec.replicas", "")
            .await
            .contains("Number of desired pods")
    );
    kubectl.run("label deployment d x=y", "").await;
    kubectl.run("annotate deployment d x=y", "").await;
    kubectl.run(r#"patch deployment d -p {"spec":{"paused":true}}"#, "").await;
    assert_eq!(
        kubectl.run("wait deployment/d --for=jsonpath={.spec.paused}=true --timeout=20s", "").await,
        "deployment.apps/d condition met\n"
    );
    assert_eq!(
        kubectl.run("delete deployment d --wait", "").await,
        "deployment.apps \"d\" deleted\n"
    );
    assert!(kubectl.fail("get deployment d", "").await.contains("NotFound"));
    assert!(kubectl.run("auth can-i create pods", "").await.starts_with("yes"));
}

#[tokio::test]
async fn a_table_can_be_watched() {
    if !is_there() {
        return;
    }
    let cluster = Cluster::start().await;
    let kubectl = Kubectl(&cluster);
    kubectl.run("create configmap first --from-literal=a=b", "").await;
    let mut child = kubectl.command("get configmaps --watch").stdin(Stdio::null()).spawn().unwrap();
    let mut lines = tokio::io::BufReader::new(child.stdout.take().unwrap()).lines();
    let mut next = async || {
        let line = tokio::time::timeout(std::time::Duration::from_secs(60), lines.next_line());
        let line = line.await.unwrap().unwrap().unwrap();
        line.split_whitespace().take(2).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(next().await, ["NAME", "DATA"]);
    assert_eq!(next().await, ["first", "1"]);
    kubectl.run("create configmap second --from-literal=a=b --from-literal=c=d", "").await;
    assert_eq!(next().await, ["second", "2"]);
    child.kill().await.unwrap();
}

#[tokio::test]
async fn typed_commands_behave() {
    if !is_there() {
        return;
    }
    let cluster = Cluster::start().await;
    let kubectl = Kubectl(&cluster);
    assert_eq!(kubectl.run("create namespace team", "").await, "namespace/team created\n");
    kubectl.run("create configmap c --from-literal=a=b -n team", "").await;
    assert_eq!(kubectl.run("get configmap c -n team -o jsonpath={.data.a}", "").await, "b");
    kubectl.run("create secret generic s --from-literal=a=b", "").await;
    assert_eq!(kubectl.run("get secret s -o jsonpath={.data.a}", "").await, "Yg==");
    kubectl.run("create serviceaccount robot", "").await;
    kubectl.run("create deployment web --image=web:1 --replicas=2", "").await;
    assert_eq!(kubectl.run("get deployment web -o jsonpath={.spec.replicas}", "").await, "2");
    kubectl.run("create job once --image=job:1 -- echo hello", "").await;
    assert_eq!(
        kubectl
            .run("get job once -o jsonpath={.spec.template.spec.containers[0].command[1]}", "")
            .await,
        "hello"
    );
}

#[tokio::test]
async fn custom_resources_behave() {
    if !is_there() {
        return;
    }
    let cluster = Cluster::start().await;
    let kubectl = Kubectl(&cluster);
    kubectl.run("apply -f -", &definitions::definition().to_string()).await;
    kubectl
        .run("wait crd/widgets.test.example --for=condition=Established --timeout=20s", "")
        .await;
    let widget = |owner: &str| {
        json!({"apiVersion": "test.example/v1", "kind": "Widget", "metadata": {"name": "w"}, "spec": {"owner": owner, "note": "long"}})
            .to_string()
    };
    assert_eq!(
        kubectl.run("apply -f -", &widget("alice")).await,
        "widget.test.example/w created\n"
    );
    let error = kubectl.fail("apply -f -", &widget("bob")).await;
    assert!(error.contains("owner is immutable"), "{error}");
    let error = kubectl
        .fail(
            "create -f -",
            r#"{"apiVersion":"test.example/v1","kind":"Widget","metadata":{"name":"v"},"spec":{}}"#,
        )
        .await;
    assert!(error.contains("\"v\" is invalid: spec.owner: Required value"), "{error}");
    let table = kubectl.run("get wd -o wide", "").await;
    let mut lines = table.lines();
    let header: Vec<&str> = lines.next().unwrap().split_whitespace().collect();
    assert_eq!(header, ["NAME", "OWNER", "READY", "SEEN", "NOTE"]);
    assert!(lines.next().unwrap().contains("alice"));
    assert_eq!(
        kubectl.run("scale widget w --replicas=3", "").await,
        "widget.test.example/w scaled\n"
    );
    assert!(kubectl.run("describe widget w", "").await.contains("Replicas:  3"));
    assert!(kubectl.run("explain widget.spec.size", "").await.contains("small"));
    assert!(kubectl.run("get all", "").await.contains("widget.test.example/w"));
    assert_eq!(kubectl.run("delete widget w", "").await, "widget.test.example \"w\" deleted\n");
    kubectl.run("delete crd widgets.test.example --timeout=20s", "").await;
}
