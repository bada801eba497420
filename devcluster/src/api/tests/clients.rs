use k8s_openapi::api::core::v1::{
    ConfigMap, Event, Namespace, Node, Pod, Secret, Service, ServiceAccount,
};
use kube::api::{Api, DeleteParams, ListParams, ObjectMeta, Patch, PatchParams, PostParams};
use serde_json::json;

use super::{Cluster, failure};

fn config_map(name: &str, value: &str) -> ConfigMap {
    serde_json::from_value(
        json!({"metadata": {"name": name, "labels": {"n": name}}, "data": {"k": value}}),
    )
    .unwrap()
}

#[tokio::test]
async fn objects_survive_a_restart_on_the_same_port() {
    let cluster = Cluster::start().await;
    let address = cluster.server.address();
    let api: Api<ConfigMap> = Api::default_namespaced(cluster.client().await);
    let made = api.create(&PostParams::default(), &config_map("a", "1")).await.unwrap();
    let cluster = Cluster::start_in(cluster.stop().await).await;
    assert_eq!(cluster.server.address(), address);
    let api: Api<ConfigMap> = Api::default_namespaced(cluster.client().await);
    assert_eq!(api.get("a").await.unwrap(), made);
}

#[tokio::test]
async fn a_second_server_on_the_same_directory_is_refused() {
    let cluster = Cluster::start().await;
    let options = crate::api::ApiOptions {
        data_dir: cluster.dir.path().join("api"),
        listen: "127.0.0.1:0".parse().unwrap(),
    };
    let error =
        crate::api::serve(options, tokio_util::sync::CancellationToken::new()).await.err().unwrap();
    assert!(error.to_string().contains("another process"), "{error}");
}

#[tokio::test]
async fn without_the_credential_there_is_401() {
    let cluster = Cluster::start().await;
    for token in [None, Some("wrong")] {
        let client = with_token(cluster.config().await, token);
        let status =
            failure(Api::<Namespace>::all(client.clone()).list(&ListParams::default()).await);
        assert_eq!((status.code, status.reason.as_str()), (401, "Unauthorized"));
        assert!(client.apiserver_version().await.is_err());
    }
}

/// A client with another token, or none.
fn with_token(mut config: kube::Config, token: Option<&str>) -> kube::Client {
    config.auth_info = match token {
        Some(token) => serde_json::from_value(json!({ "token": token })).unwrap(),
        None => kube::config::AuthInfo::default(),
    };
    kube::Client::try_from(config).unwrap()
}

#[tokio::test]
async fn namespaces_come_with_an_account_and_end_with_their_finalizer() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let names: Vec<_> = namespaces
        .list(&ListParams::default())
        .await
        .unwrap()
        .into_iter()
        .filter_map(|n| n.metadata.name)
        .collect();
    assert_eq!(names, ["default", "kube-node-lease", "kube-public", "kube-system"]);
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), "team");
    let status = failure(api.create(&PostParams::default(), &config_map("a", "1")).await);
    assert_eq!((status.code, status.message.as_str()), (404, "namespaces \"team\" not found"));

    let team = Namespace {
        metadata: ObjectMeta { name: Some("team".into()), ..Default::default() },
        ..Default::default()
    };
    namespaces.create(&PostParams::default(), &team).await.unwrap();
    assert!(Api::<ServiceAccount>::namespaced(client.clone(), "team").get("default").await.is_ok());
    api.create(&PostParams::default(), &config_map("a", "1")).await.unwrap();

    assert_eq!(failure(namespaces.delete("default", &DeleteParams::default()).await).code, 403);
    let going = namespaces.delete("team", &DeleteParams::default()).await.unwrap().left().unwrap();
    assert_eq!(going.status.unwrap().phase.as_deref(), Some("Terminating"));
    let status = failure(api.create(&PostParams::default(), &config_map("b", "1")).await);
    assert_eq!(status.code, 403);
    assert!(status.message.contains("being terminated"), "{}", status.message);

    let mut team = namespaces.get("team").await.unwrap();
    team.spec.as_mut().unwrap().finalizers = None;
    let body = serde_json::to_vec(&team).unwrap();
    let request = http::Request::put("/api/v1/namespaces/team/finalize").body(body).unwrap();
    client.request::<serde_json::Value>(request).await.unwrap();
    assert_eq!(failure(namespaces.get("team").await).code, 404);
}

#[tokio::test]
async fn lists_come_in_pages_with_one_revision() {
    let cluster = Cluster::start().await;
    let api: Api<ConfigMap> = Api::default_namespaced(cluster.client().await);
    for name in ["a", "b", "c", "d", "e"] {
        api.create(&PostParams::default(), &config_map(name, "1")).await.unwrap();
    }
    let mut params = ListParams::default().limit(2);
    let first = api.list(&params).await.unwrap();
    assert_eq!(first.items.len(), 2);
    assert_eq!(first.metadata.remaining_item_count, Some(3));
    api.create(&PostParams::default(), &config_map("z", "1")).await.unwrap();
    params = params.continue_token(first.metadata.continue_.as_deref().unwrap());
    let second = api.list(&params).await.unwrap();
    assert_eq!(second.metadata.resource_version, first.metadata.resource_version);
    let names: Vec<_> = second.items.iter().filter_map(|c| c.metadata.name.as_deref()).collect();
    assert_eq!(names, ["c", "d"]);
    let bad = api.list(&ListParams::default().limit(1).continue_token("nonsense")).await;
    assert_eq!(failure(bad).code, 400);
    let selected = api.list(&ListParams::default().labels("n in (a,e)")).await.unwrap();
    assert_eq!(selected.items.len(), 2);
    let selected = api.list(&ListParams::default().fields("metadata.name=b")).await.unwrap();
    assert_eq!(selected.items.len(), 1);
}

#[tokio::test]
async fn pods_are_defaulted_bound_once_and_end_gracefully() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let pods: Api<Pod> = Api::default_namespaced(client.clone());
    let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": {"containers": [
        {"name": "c", "image": "x", "ports": [{"containerPort": 80}], "readinessProbe": {"httpGet": {"port": 80}}}]}}))
    .unwrap();
    let mut stranger = pod.clone();
    stranger.spec.as_mut().unwrap().service_account_name = Some("nobody".into());
    let status = failure(pods.create(&PostParams::default(), &stranger).await);
    assert!(status.message.ends_with("serviceaccount \"nobody\" not found"), "{}", status.message);
    let made = pods.create(&PostParams::default(), &pod).await.unwrap();
    let spec = made.spec.unwrap();
    assert_eq!(spec.restart_policy.as_deref(), Some("Always"));
    assert_eq!(spec.termination_grace_period_seconds, Some(30));
    assert_eq!(spec.containers[0].ports.as_ref().unwrap()[0].protocol.as_deref(), Some("TCP"));
    assert_eq!(spec.containers[0].readiness_probe.as_ref().unwrap().period_seconds, Some(10));
    assert_eq!(made.status.unwrap().phase.as_deref(), Some("Pending"));

    let bind = |node: &str| {
        let body = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "p"}, "target": {"kind": "Node", "name": node}});
        http::Request::post("/api/v1/namespaces/default/pods/p/binding")
            .body(serde_json::to_vec(&body).unwrap())
            .unwrap()
    };
    client.request::<serde_json::Value>(bind("n1")).await.unwrap();
    assert_eq!(failure(client.request::<serde_json::Value>(bind("n2")).await).code, 409);
    let on_node = pods
        .list(&ListParams::default().fields("spec.nodeName=n1,status.phase=Pending"))
        .await
        .unwrap();
    assert_eq!(on_node.items.len(), 1);

    // The specification of a pod is fixed.
    let patch = json!({"spec": {"nodeName": "n2"}});
    assert_eq!(
        failure(pods.patch("p", &PatchParams::default(), &Patch::Merge(&patch)).await).code,
        422
    );

    let going = pods.delete("p", &DeleteParams::default()).await.unwrap().left().unwrap();
    assert_eq!(going.metadata.deletion_grace_period_seconds, Some(30));
    assert!(going.metadata.deletion_timestamp.is_some());
    pods.delete("p", &DeleteParams::default().grace_period(0)).await.unwrap();
    assert_eq!(failure(pods.get("p").await).code, 404);
}

#[tokio::test]
async fn what_would_be_dangerous_is_refused() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let post = |path: &str, body: serde_json::Value| {
        http::Request::post(path)
            .header("content-type", "application/json")
            .body(serde_json::to_vec(&body).unwrap())
            .unwrap()
    };
    let base = "/api/v1/namespaces/default";
    for (path, body, code, words) in [
        (
            "pods",
            json!({"metadata": {"name": "p"}, "spec": {}}),
            422,
            "spec.containers: Required value",
        ),
        ("configmaps", json!({"metadata": {}}), 422, "name or generateName is required"),
        ("configmaps", json!({"metadata": {"name": "A"}}), 422, "RFC 1123"),
        (
            "configmaps",
            json!({"metadata": {"name": "a", "labels": {"k": "b c"}}}),
            422,
            "a valid label",
        ),
        ("configmaps", json!({"metadata": {"name": "a", "namespace": "other"}}), 400, "namespace"),
        ("configmaps", json!({"kind": "Secret", "metadata": {"name": "a"}}), 400, "does not match"),
        (
            "configmaps",
            json!({"metadata": {"name": "a"}, "data": {"k": 1}}),
            400,
            "must be of type string",
        ),
        ("configmaps", json!({"metadata": {"name": "a"}, "dataa": {}}), 0, ""),
        (
            "services",
            json!({"metadata": {"name": "s"}, "spec": {"ports": [{"port": 0}]}}),
            422,
            "between 1 and 65535",
        ),
        ("unknowns", json!({}), 404, "could not find the requested resource"),
    ] {
        let result =
            client.request::<serde_json::Value>(post(&format!("{base}/{path}"), body)).await;
        if code == 0 {
            result.unwrap();
            continue;
        }
        let status = failure(result);
        assert_eq!(status.code, code, "{}", status.message);
        assert!(status.message.contains(words), "{}", status.message);
    }
    let strict = post(
        &format!("{base}/configmaps?fieldValidation=Strict"),
        json!({"metadata": {"name": "b"}, "dataa": {}}),
    );
    let status = failure(client.request::<serde_json::Value>(strict).await);
    assert!(
        status.message.contains("strict decoding error: unknown field \"dataa\""),
        "{}",
        status.message
    );
}

#[tokio::test]
async fn secrets_and_services_get_what_they_lack() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let secrets: Api<Secret> = Api::default_namespaced(client.clone());
    let secret: Secret = serde_json::from_value(
        json!({"metadata": {"generateName": "s-"}, "stringData": {"k": "v"}}),
    )
    .unwrap();
    let made = secrets.create(&PostParams::default(), &secret).await.unwrap();
    assert!(made.metadata.name.unwrap().len() == 7);
    assert_eq!(made.data.unwrap()["k"].0, b"v");
    assert!(made.string_data.is_none());
    let services: Api<Service> = Api::default_namespaced(client.clone());
    let service = |name: &str, ip: Option<&str>| -> Service {
        serde_json::from_value(
            json!({"metadata": {"name": name}, "spec": {"clusterIP": ip, "ports": [{"port": 80}]}}),
        )
        .unwrap()
    };
    let made =
        services.create(&PostParams::default(), &service("a", None)).await.unwrap().spec.unwrap();
    assert!(made.cluster_ip.unwrap().starts_with("10.96."));
    let port = &made.ports.unwrap()[0];
    assert_eq!(port.protocol.as_deref(), Some("TCP"));
    let made = services
        .create(&PostParams::default(), &service("b", Some("None")))
        .await
        .unwrap()
        .spec
        .unwrap();
    assert_eq!(made.cluster_ip.as_deref(), Some("None"));
}

#[tokio::test]
async fn events_have_two_forms_and_one_store() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let node: Node = serde_json::from_value(json!({"metadata": {"name": "n1"}})).unwrap();
    let node =
        Api::<Node>::all(client.clone()).create(&PostParams::default(), &node).await.unwrap();
    let recorder = kube::runtime::events::Recorder::new(client.clone(), "tester".into());
    let event = kube::runtime::events::Event {
        type_: kube::runtime::events::EventType::Warning,
        reason: "Because".into(),
        note: Some("a note".into()),
        action: "Testing".into(),
        secondary: None,
    };
    recorder.publish(&event, &kube::Resource::object_ref(&node, &())).await.unwrap();
    let events: Api<Event> = Api::default_namespaced(client);
    let found = events
        .list(&ListParams::default().fields("involvedObject.name=n1,involvedObject.kind=Node"))
        .await
        .unwrap();
    assert_eq!(found.items[0].message.as_deref(), Some("a note"));
    assert_eq!(found.items[0].reason.as_deref(), Some("Because"));
}
