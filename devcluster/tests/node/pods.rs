//! Pods, from the API to processes and back.

use super::cluster::{Cluster, condition, is_ready, processes_in};
use devcluster::node::Only;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{Api, LogParams, Patch, PatchParams};
use kube::runtime::wait::await_condition;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

/// Runs until it is told to end, and then ends at once.
const OBEY: &str = "trap 'exit 0' TERM; while :; do sleep 0.02; done";

fn shell(name: &str, script: &str) -> Value {
    json!({"name": name, "image": "any", "command": ["sh", "-c", script]})
}

fn first(pod: &Value) -> &Value {
    &pod["status"]["containerStatuses"][0]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_runs_from_its_init_container_to_its_deletion() {
    let cluster = Cluster::start().await;
    cluster.apply(json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings"}, "data": {"greeting": "hello"}})).await;
    cluster.apply(json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "keys"}, "stringData": {"token": "s3cret"}})).await;
    let mut main = shell(
        "main",
        &format!(
            "cat /work/made; cat /etc/keys/token; echo; stat -c %a /etc/keys/token
            echo $WHERE $1 $POD_IP $DORMOUSE_POD_LOOPBACK $TOKEN $FROM_NODE; pwd; {OBEY}"
        ),
    );
    main["args"] = json!(["sh", "$(GREETING):$(WHERE)"]);
    main["workingDir"] = json!("/work/deep");
    main["env"] = json!([
        {"name": "GREETING", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "greeting"}}},
        {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "token"}}},
        {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
        {"name": "WHERE", "value": "/work/deep"},
    ]);
    main["volumeMounts"] =
        json!([{"name": "work", "mountPath": "/work"}, {"name": "keys", "mountPath": "/etc/keys"}]);
    main["lifecycle"] = json!({"postStart": {"exec": {"command": ["sh", "-c", "echo hooked > /work/hooked; sleep 1000 &"]}}});
    main["readinessProbe"] =
        json!({"exec": {"command": ["test", "-e", "/work/hooked"]}, "periodSeconds": 1});
    let mut init = shell("prepare", "mkdir -p /work/deep; echo made by init > /work/made");
    init["volumeMounts"] = json!([{"name": "work", "mountPath": "/work"}]);
    let created = cluster
        .create("full", json!({
            "initContainers": [init], "containers": [main],
            "volumes": [{"name": "work", "emptyDir": {}}, {"name": "keys", "secret": {"secretName": "keys"}}],
        }))
        .await;

    let pod = cluster.until_ready("full").await;
    assert_eq!(pod["status"]["phase"], "Running");
    let ip = pod["status"]["podIP"].as_str().unwrap();
    assert!(ip.starts_with("127.78."), "{ip}");
    assert_eq!(pod["status"]["podIPs"], json!([{"ip": ip}]));
    assert_eq!(pod["status"]["hostIP"], "127.0.0.1");
    assert!(pod["status"]["startTime"].is_string());
    for type_ in ["Initialized", "ContainersReady", "PodReadyToStartContainers"] {
        assert_eq!(condition(&pod, type_), Some("True"), "{type_}");
    }
    assert_eq!(
        pod["status"]["initContainerStatuses"][0]["state"]["terminated"]["reason"],
        "Completed"
    );
    assert_eq!(first(&pod)["restartCount"], 0);

    let uid = created.metadata.uid.unwrap();
    let work = cluster.data.canonicalize().unwrap().join("pods").join(&uid).join("volumes/work");
    let work = work.display();
    let follow =
        LogParams { container: Some("main".to_owned()), follow: true, ..LogParams::default() };
    let log = cluster.follow("full", follow, 5).await;
    assert_eq!(
        log,
        format!(
            "made by init\ns3cret\n600\n{work}/deep hello:{work}/deep {ip} {ip} s3cret yes\n{work}/deep\n"
        )
    );
    let tail = LogParams {
        container: Some("main".to_owned()),
        tail_lines: Some(1),
        timestamps: true,
        ..LogParams::default()
    };
    let tail = cluster.logs("full", tail).await;
    let (time, text) = tail.split_once(' ').unwrap();
    assert!(time.parse::<jiff::Timestamp>().is_ok() && text == format!("{work}/deep\n"), "{tail}");

    assert!(!processes_in(&cluster.data).is_empty());
    cluster.delete("full").await;
    assert_eq!(processes_in(&cluster.data), Vec::<i32>::new(), "the hook's daemon included");
    let reasons: Vec<_> =
        cluster.until_event("full", "Killing").await.into_iter().filter_map(|e| e.reason).collect();
    for reason in ["Created", "Started"] {
        assert!(reasons.iter().any(|r| r == reason), "{reason} in {reasons:?}");
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ends_are_told_by_the_restart_policy() {
    let cluster = Cluster::start().await;
    cluster
        .create("good", json!({"restartPolicy": "Never", "containers": [shell("c", "exit 0")]}))
        .await;
    cluster.create("bad", json!({"restartPolicy": "Never", "containers": [shell("c", "echo why > /dev/termination-log; exit 3")]})).await;
    cluster.create("again", json!({"containers": [shell("c", "echo run; exit 4")]})).await;
    cluster
        .create(
            "absent",
            json!({"containers": [{"name": "c", "image": "any", "command": ["no-such-program", "x"]}]}),
        )
        .await;
    cluster.create("late", json!({"activeDeadlineSeconds": 1, "terminationGracePeriodSeconds": 5, "containers": [shell("c", OBEY)]})).await;

    let good =
        cluster.until("good", "succeeded", |pod| pod["status"]["phase"] == "Succeeded").await;
    assert_eq!(condition(&good, "Ready"), Some("False"));
    let bad = cluster.until("bad", "failed", |pod| pod["status"]["phase"] == "Failed").await;
    let end = &first(&bad)["state"]["terminated"];
    assert_eq!(
        (&end["exitCode"], &end["reason"], &end["message"]),
        (&json!(3), &json!("Error"), &json!("why\n"))
    );

    let looping = |pod: &Value| first(pod)["state"]["waiting"]["reason"] == "CrashLoopBackOff";
    let again = cluster.until("again", "backs off", looping).await;
    assert_eq!(again["status"]["phase"], "Running");
    assert_eq!(first(&again)["restartCount"], 1);
    assert_eq!(first(&again)["lastState"]["terminated"]["exitCode"], 4);
    let message = first(&again)["state"]["waiting"]["message"].as_str().unwrap().to_owned();
    assert!(
        message.starts_with("back-off 10s restarting failed container=c pod=again_default("),
        "{message}"
    );
    assert_eq!(cluster.logs("again", LogParams::default()).await, "run\n");
    assert_eq!(
        cluster.logs("again", LogParams { previous: true, ..LogParams::default() }).await,
        "run\n"
    );
    cluster.until_event("again", "BackOff").await;

    let absent = cluster.until("absent", "backs off", looping).await;
    let end = &first(&absent)["lastState"]["terminated"];
    assert_eq!((&end["reason"], &end["exitCode"]), (&json!("StartError"), &json!(128)));
    let message = end["message"].as_str().unwrap();
    assert!(message.contains("no-such-program") && message.contains("PATH"), "{message}");

    let late = cluster.until("late", "failed", |pod| pod["status"]["phase"] == "Failed").await;
    assert_eq!(late["status"]["reason"], "DeadlineExceeded");
    for name in ["good", "bad", "again", "absent", "late"] {
        cluster.delete(name).await;
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hooks_run_and_a_failed_one_ends_the_container() {
    let cluster = Cluster::start().await;
    let dir = tempfile::tempdir().unwrap();
    let volumes = json!([{"name": "out", "hostPath": {"path": dir.path()}}]);
    let mut c = shell("c", OBEY);
    c["volumeMounts"] = json!([{"name": "out", "mountPath": "/out"}]);
    c["lifecycle"] =
        json!({"preStop": {"exec": {"command": ["sh", "-c", "echo bye > /out/said"]}}});
    cluster.create("polite", json!({"containers": [c], "volumes": volumes})).await;
    let mut c = shell("c", OBEY);
    c["terminationMessagePolicy"] = json!("FallbackToLogsOnError");
    c["command"] = json!([
        "sh",
        "-c",
        "echo last words; trap 'exit 7' TERM; touch ready; while :; do sleep 0.02; done"
    ]);
    let hook = "while ! [ -e ready ]; do sleep 0.02; done; echo no luck; exit 9";
    c["lifecycle"] = json!({"postStart": {"exec": {"command": ["sh", "-c", hook]}}});
    cluster.create("unlucky", json!({"restartPolicy": "Never", "containers": [c]})).await;

    cluster.until_ready("polite").await;
    cluster.delete("polite").await;
    assert_eq!(std::fs::read_to_string(dir.path().join("said")).unwrap(), "bye\n");
    let unlucky =
        cluster.until("unlucky", "failed", |pod| pod["status"]["phase"] == "Failed").await;
    let end = &first(&unlucky)["state"]["terminated"];
    assert_eq!(end["exitCode"], 7);
    assert!(end["message"].as_str().unwrap().starts_with("last words\n"), "{end}");
    let events = cluster.until_event("unlucky", "FailedPostStartHook").await;
    let told = "PostStartHook failed: command exited with code 9: no luck";
    assert!(events.iter().any(|event| event.message.as_deref() == Some(told)));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sidecars_start_first_and_end_last() {
    let cluster = Cluster::start().await;
    let mount = json!([{"name": "work", "mountPath": "/work"}]);
    let mut sidecar = shell("proxy", &format!("touch /work/up; {OBEY}"));
    sidecar["restartPolicy"] = json!("Always");
    sidecar["startupProbe"] =
        json!({"exec": {"command": ["test", "-e", "/work/up"]}, "periodSeconds": 1});
    sidecar["volumeMounts"] = mount.clone();
    let mut main = shell("main", "test -e /work/up");
    main["volumeMounts"] = mount;
    let spec = json!({
        "restartPolicy": "Never", "initContainers": [sidecar], "containers": [main],
        "volumes": [{"name": "work", "emptyDir": {}}],
    });
    cluster.create("helped", spec).await;
    let ended = |pod: &Value| {
        pod["status"]["phase"] == "Succeeded"
            && pod["status"]["initContainerStatuses"][0]["state"]["terminated"].is_object()
    };
    let pod = cluster.until("helped", "succeeded", ended).await;
    assert_eq!(first(&pod)["state"]["terminated"]["exitCode"], 0);
    assert_eq!(processes_in(&cluster.data), Vec::<i32>::new());
    cluster.delete("helped").await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_waits_for_its_configuration() {
    let cluster = Cluster::start().await;
    let mut c = shell("c", OBEY);
    c["envFrom"] = json!([{"configMapRef": {"name": "later"}}]);
    cluster.create("waits", json!({"containers": [c]})).await;
    let waiting =
        |pod: &Value| first(pod)["state"]["waiting"]["reason"] == "CreateContainerConfigError";
    let pod = cluster.until("waits", "waits", waiting).await;
    assert_eq!(first(&pod)["state"]["waiting"]["message"], "configmap \"later\" not found");
    assert_eq!(pod["status"]["phase"], "Pending");
    let log = cluster.pods().logs("waits", &LogParams::default()).await.unwrap_err().to_string();
    assert!(log.contains("waiting to start"), "{log}");
    cluster.apply(json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "later"}, "data": {"A": "1"}})).await;
    cluster.until_ready("waits").await;
    cluster.delete("waits").await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn probes_decide_readiness_and_life() {
    let cluster = Cluster::start().await;
    let health = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = health.local_addr().unwrap().port();
    let (answer, status) = tokio::sync::watch::channel("503 No");
    tokio::spawn(async move {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        loop {
            let (mut stream, _) = health.accept().await.unwrap();
            let _ = stream.read(&mut [0; 1024]).await;
            let text = format!(
                "HTTP/1.1 {}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
                *status.borrow()
            );
            let _ = stream.write_all(text.as_bytes()).await;
        }
    });
    let mut c = shell("c", OBEY);
    c["readinessProbe"] = json!({"httpGet": {"host": "127.0.0.1", "port": port, "path": "/"}, "periodSeconds": 1, "failureThreshold": 1});
    c["livenessProbe"] = json!({"exec": {"command": ["test", "!", "-e", "/work/unwell"]}, "periodSeconds": 1, "failureThreshold": 1});
    c["startupProbe"] =
        json!({"tcpSocket": {"host": "127.0.0.1", "port": port}, "periodSeconds": 1});
    c["volumeMounts"] = json!([{"name": "work", "mountPath": "/work"}]);
    let spec = json!({"containers": [c], "volumes": [{"name": "work", "emptyDir": {}}]});
    let created = cluster.create("probed", spec).await;
    cluster.until_event("probed", "Unhealthy").await;
    let pod = cluster.until("probed", "started", |pod| first(pod)["started"] == true).await;
    assert!(!is_ready(&pod));
    answer.send("200 OK").unwrap();
    cluster.until_ready("probed").await;
    answer.send("503 No").unwrap();
    cluster.until("probed", "not ready", |pod| !is_ready(pod)).await;
    let work = cluster.data.join("pods").join(created.metadata.uid.unwrap()).join("volumes/work");
    std::fs::write(work.join("unwell"), "").unwrap();
    let pod = cluster
        .until("probed", "restarted", |pod| first(pod)["restartCount"].as_i64() >= Some(1))
        .await;
    assert_eq!(first(&pod)["lastState"]["terminated"]["exitCode"], 0);
    let events = cluster.until_event("probed", "Killing").await;
    assert!(
        events.iter().any(|e| e.message.as_deref()
            == Some("Container c failed liveness probe, will be restarted"))
    );
    cluster.delete("probed").await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_begin_again_with_the_node_at_their_address() {
    let mut cluster = Cluster::start().await;
    cluster.create("a", json!({"containers": [shell("c", OBEY)]})).await;
    cluster.create("b", json!({"containers": [shell("c", "trap '' TERM; while :; do sleep 0.02; done")], "terminationGracePeriodSeconds": 1})).await;
    let before = [cluster.until_ready("a").await, cluster.until_ready("b").await];
    cluster.stop_node().await;
    assert_eq!(processes_in(&cluster.data), Vec::<i32>::new());
    let down = cluster.until("a", "not ready", |pod| !is_ready(pod)).await;
    assert!(down["metadata"]["deletionTimestamp"].is_null());
    cluster.start_node().await;
    for before in &before {
        let name = before["metadata"]["name"].as_str().unwrap();
        let restarted = |pod: &Value| is_ready(pod) && first(pod)["restartCount"] == 1;
        let after = cluster.until(name, "runs again", restarted).await;
        assert_eq!(after["status"]["podIP"], before["status"]["podIP"]);
        assert!(first(&after)["lastState"]["terminated"].is_object());
    }
    // One that obeys nothing is gone after its grace.
    cluster.delete("b").await;
    cluster.delete("a").await;
    assert_eq!(processes_in(&cluster.data), Vec::<i32>::new());
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn claims_are_provisioned_on_the_nodes_disk_and_removed() {
    let cluster = Cluster::start().await;
    let claim = json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim",
        "metadata": {"name": "home", "annotations": {"volume.kubernetes.io/selected-node": "here"}},
        "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "dormouse-local", "resources": {"requests": {"storage": "1Gi"}}},
    });
    cluster.apply(claim).await;
    let mut c = shell("c", &format!("echo kept > /home/me/file; {OBEY}"));
    c["volumeMounts"] = json!([{"name": "home", "mountPath": "/home/me"}]);
    let volumes = json!([{"name": "home", "persistentVolumeClaim": {"claimName": "home"}}]);
    cluster.create("claims", json!({"containers": [c], "volumes": volumes})).await;

    // The part of the control plane's binder.
    use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(cluster.client.clone(), "default");
    let volumes: Api<PersistentVolume> = Api::all(cluster.client.clone());
    let uid = claims.get("home").await.unwrap().metadata.uid.unwrap();
    let name = format!("pvc-{uid}");
    let there = kube::runtime::wait::await_condition(
        volumes.clone(),
        &name,
        |v: Option<&PersistentVolume>| v.is_some(),
    );
    let volume =
        tokio::time::timeout(super::cluster::PATIENCE, there).await.unwrap().unwrap().unwrap();
    let spec = volume.spec.unwrap();
    let folder = std::path::PathBuf::from(spec.local.unwrap().path);
    assert!(folder.is_dir() && spec.claim_ref.unwrap().uid == Some(uid));
    let params = PatchParams::default();
    claims
        .patch("home", &params, &Patch::Merge(json!({"spec": {"volumeName": name}})))
        .await
        .unwrap();
    claims
        .patch_status("home", &params, &Patch::Merge(json!({"status": {"phase": "Bound"}})))
        .await
        .unwrap();

    cluster.until_ready("claims").await;
    cluster.delete("claims").await;
    assert_eq!(std::fs::read_to_string(folder.join("file")).unwrap(), "kept\n");
    volumes
        .patch_status(&name, &params, &Patch::Merge(json!({"status": {"phase": "Released"}})))
        .await
        .unwrap();
    let gone =
        kube::runtime::wait::await_condition(volumes, &name, |v: Option<&PersistentVolume>| {
            v.is_none()
        });
    tokio::time::timeout(super::cluster::PATIENCE, gone).await.unwrap().unwrap();
    assert!(!folder.exists());
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_kept_for_some_pods_starts_no_others() {
    let mut cluster = Cluster::without_node().await;
    let label = ("app".to_owned(), "wanted".to_owned());
    cluster.only = Some(Only { label, taint: ("example.org/kept".to_owned(), "here".to_owned()) });
    let pod = || json!({"containers": [shell("main", &format!("touch /work/ran; {OBEY}"))]});
    cluster.create("unwanted", pod()).await;
    cluster.create("wanted", pod()).await;
    cluster.start_node().await;

    let refused =
        cluster.until("unwanted", "refused", |pod| pod["status"]["phase"] == "Failed").await;
    assert_eq!(refused["status"]["reason"], "NotForThisNode");
    assert!(first(&refused)["state"]["waiting"].is_object(), "it has not begun: {refused}");
    cluster.until_event("unwanted", "NotForThisNode").await;
    cluster.until_ready("wanted").await;
    cluster.delete("unwanted").await;

    // The taint is set on a node that was there already, once, and beside others.
    cluster.stop_node().await;
    cluster.start_node().await;
    let node = Api::<Node>::all(cluster.client.clone()).get(super::cluster::NODE).await.unwrap();
    let taints = serde_json::to_value(node.spec.unwrap().taints).unwrap();
    let ours =
        |taint: &&Value| taint["key"] == "example.org/kept" && taint["effect"] == "NoSchedule";
    assert_eq!(taints.as_array().unwrap().iter().filter(ours).count(), 1, "{taints}");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_another_process_runs_is_left_to_it() {
    let mut cluster = Cluster::start().await;
    let leases: Api<Lease> = Api::namespaced(cluster.client.clone(), "kube-node-lease");
    let held = |lease: Option<&Lease>| lease.is_some_and(|lease| holder(lease).is_some());
    await_condition(leases.clone(), super::cluster::NODE, held).await.unwrap();
    cluster.stop_node().await;
    let lease = leases.get(super::cluster::NODE).await.unwrap();
    assert_eq!(holder(&lease), None, "it is given back");

    cluster.data = cluster.data.with_extension("other");
    let other = cluster.run_node(CancellationToken::new());
    let mut other = std::pin::pin!(other);
    let renew = || {
        let spec =
            json!({"holderIdentity": "somebody", "renewTime": MicroTime(jiff::Timestamp::now())});
        Patch::Merge(json!({"spec": spec}))
    };
    leases.patch(super::cluster::NODE, &PatchParams::default(), &renew()).await.unwrap();
    let error = loop {
        tokio::select! {
            ended = &mut other => break ended.unwrap_err(),
            () = tokio::time::sleep(std::time::Duration::from_millis(100)) => {
                leases.patch(super::cluster::NODE, &PatchParams::default(), &renew()).await.unwrap();
            }
        }
    };
    assert!(error.to_string().contains("another process runs node"), "{error}");
    cluster.stop().await;
}

fn holder(lease: &Lease) -> Option<&str> {
    lease.spec.as_ref()?.holder_identity.as_deref()
}
