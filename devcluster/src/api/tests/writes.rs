use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams, PropagationPolicy};
use serde_json::{Value, json};

use super::{Cluster, failure};

fn deployment(replicas: Option<i32>) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}, "spec": {
        "replicas": replicas,
        "selector": {"matchLabels": {"a": "b"}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "x"}]}},
    }})
}

#[tokio::test]
async fn stale_writes_conflict() {
    let cluster = Cluster::start().await;
    let api: Api<ConfigMap> = Api::default_namespaced(cluster.client().await);
    let map: ConfigMap =
        serde_json::from_value(json!({"metadata": {"name": "a"}, "data": {"k": "1"}})).unwrap();
    let first = api.create(&PostParams::default(), &map).await.unwrap();
    assert_eq!(failure(api.create(&PostParams::default(), &map).await).reason, "AlreadyExists");
    let mut second = first.clone();
    second.data = Some([("k".into(), "2".into())].into());
    let second = api.replace("a", &PostParams::default(), &second).await.unwrap();
    assert_ne!(first.metadata.resource_version, second.metadata.resource_version);
    let status = failure(api.replace("a", &PostParams::default(), &first).await);
    assert_eq!((status.code, status.reason.as_str()), (409, "Conflict"));
    // Replacing with the same changes nothing.
    let same = api.replace("a", &PostParams::default(), &second).await.unwrap();
    assert_eq!(same.metadata.resource_version, second.metadata.resource_version);
    // Preconditions of a deletion.
    let wrong = kube::api::Preconditions { uid: Some("other".into()), resource_version: None };
    assert_eq!(
        failure(api.delete("a", &DeleteParams::default().preconditions(wrong)).await).code,
        409
    );
}

#[tokio::test]
async fn dry_runs_leave_no_trace() {
    let cluster = Cluster::start().await;
    let api: Api<ConfigMap> = Api::default_namespaced(cluster.client().await);
    let map: ConfigMap =
        serde_json::from_value(json!({"metadata": {"name": "a"}, "data": {"k": "1"}})).unwrap();
    let dry = PostParams { dry_run: true, field_manager: None };
    let shown = api.create(&dry, &map).await.unwrap();
    assert!(shown.metadata.uid.is_some());
    assert_eq!(failure(api.get("a").await).code, 404);
    api.create(&PostParams::default(), &map).await.unwrap();
    let patch = json!({"data": {"k": "2"}});
    let params = PatchParams { dry_run: true, ..Default::default() };
    let shown = api.patch("a", &params, &Patch::Merge(&patch)).await.unwrap();
    assert_eq!(shown.data.unwrap()["k"], "2");
    assert_eq!(api.get("a").await.unwrap().data.unwrap()["k"], "1");
    api.delete("a", &DeleteParams { dry_run: true, ..Default::default() }).await.unwrap();
    assert!(api.get("a").await.is_ok());
}

#[tokio::test]
async fn generation_status_and_scale_are_apart() {
    let cluster = Cluster::start().await;
    let api: Api<Deployment> = Api::default_namespaced(cluster.client().await);
    let mut body = deployment(None);
    body["status"] = json!({"replicas": 7});
    let made =
        api.create(&PostParams::default(), &serde_json::from_value(body).unwrap()).await.unwrap();
    assert_eq!(made.spec.as_ref().unwrap().replicas, Some(1));
    assert_eq!(made.status.as_ref().and_then(|s| s.replicas), None);
    assert_eq!(made.metadata.generation, Some(1));

    let patch = json!({"status": {"replicas": 3}, "metadata": {"annotations": {"x": "y"}}});
    let through_main =
        api.patch("d", &PatchParams::default(), &Patch::Merge(&patch)).await.unwrap();
    assert_eq!(through_main.status.and_then(|s| s.replicas), None);
    assert_eq!(through_main.metadata.generation, Some(1));

    let patch = json!({"status": {"replicas": 3}, "spec": {"replicas": 9}});
    let through_status =
        api.patch_status("d", &PatchParams::default(), &Patch::Merge(&patch)).await.unwrap();
    assert_eq!(through_status.status.and_then(|s| s.replicas), Some(3));
    assert_eq!(through_status.spec.unwrap().replicas, Some(1));

    let scale = api.get_scale("d").await.unwrap();
    assert_eq!(scale.status.as_ref().unwrap().selector.as_deref(), Some("a=b"));
    let patch = json!({"spec": {"replicas": 4}});
    api.patch_scale("d", &PatchParams::default(), &Patch::Merge(&patch)).await.unwrap();
    let scaled = api.get("d").await.unwrap();
    assert_eq!(scaled.spec.unwrap().replicas, Some(4));
    assert_eq!(scaled.metadata.generation, Some(2));
    let patch = json!({"spec": {"replicas": -1}});
    assert_eq!(
        failure(api.patch_scale("d", &PatchParams::default(), &Patch::Merge(&patch)).await).code,
        422
    );
}

#[tokio::test]
async fn apply_owns_fields_and_names_who_conflicts() {
    let cluster = Cluster::start().await;
    let api: Api<Deployment> = Api::default_namespaced(cluster.client().await);
    let ours = PatchParams::apply("controller");
    let made = api.patch("d", &ours, &Patch::Apply(&deployment(Some(1)))).await.unwrap();
    // Applying the same again is not a change.
    let again = api.patch("d", &ours, &Patch::Apply(&deployment(Some(1)))).await.unwrap();
    assert_eq!(again.metadata.resource_version, made.metadata.resource_version);
    // kubectl scale takes the replicas over.
    let params = PatchParams { field_manager: Some("kubectl".into()), ..Default::default() };
    api.patch_scale("d", &params, &Patch::Merge(&json!({"spec": {"replicas": 5}}))).await.unwrap();
    let status = failure(api.patch("d", &ours, &Patch::Apply(&deployment(Some(1)))).await);
    assert_eq!(status.code, 409);
    assert_eq!(
        status.message,
        "Apply failed with 1 conflict: conflict with \"kubectl\" with subresource \"scale\" using apps/v1: .spec.replicas"
    );
    // Without the field there is no conflict, and its value stays.
    let left = api.patch("d", &ours, &Patch::Apply(&deployment(None))).await.unwrap();
    assert_eq!(left.spec.unwrap().replicas, Some(5));
    let forced =
        api.patch("d", &ours.clone().force(), &Patch::Apply(&deployment(Some(2)))).await.unwrap();
    assert_eq!(forced.spec.unwrap().replicas, Some(2));
    // A field that is no longer applied goes back to its default.
    let mut with_env = deployment(Some(2));
    with_env["spec"]["template"]["spec"]["containers"][0]["env"] =
        json!([{"name": "A", "value": "1"}, {"name": "B"}]);
    api.patch("d", &ours, &Patch::Apply(&with_env)).await.unwrap();
    with_env["spec"]["template"]["spec"]["containers"][0]["env"] = json!([{"name": "B"}]);
    let dep = api.patch("d", &ours, &Patch::Apply(&with_env)).await.unwrap();
    let container = &dep.spec.unwrap().template.spec.unwrap().containers[0];
    let names: Vec<_> = container.env.as_ref().unwrap().iter().map(|e| e.name.as_str()).collect();
    assert_eq!(names, ["B"]);
    assert!(container.image_pull_policy.is_some());
}

#[tokio::test]
async fn patches_of_each_kind() {
    let cluster = Cluster::start().await;
    let api: Api<Deployment> = Api::default_namespaced(cluster.client().await);
    api.create(&PostParams::default(), &serde_json::from_value(deployment(Some(1))).unwrap())
        .await
        .unwrap();
    let strategic =
        json!({"spec": {"template": {"spec": {"containers": [{"name": "side", "image": "y"}]}}}});
    let two = api.patch("d", &PatchParams::default(), &Patch::Strategic(&strategic)).await.unwrap();
    assert_eq!(two.spec.unwrap().template.spec.unwrap().containers.len(), 2);
    let json_patch: json_patch::Patch = serde_json::from_value(json!([
        {"op": "test", "path": "/spec/replicas", "value": 1},
        {"op": "replace", "path": "/spec/replicas", "value": 2},
    ]))
    .unwrap();
    // The version of the patch type that kube uses is another one; send it as it is.
    let request = http::Request::patch("/apis/apps/v1/namespaces/default/deployments/d")
        .header("content-type", "application/json-patch+json")
        .body(serde_json::to_vec(&json_patch).unwrap())
        .unwrap();
    let client = cluster.client().await;
    let patched: Value = client.request(request).await.unwrap();
    assert_eq!(patched["spec"]["replicas"], 2);
    let failing = http::Request::patch("/apis/apps/v1/namespaces/default/deployments/d")
        .header("content-type", "application/json-patch+json")
        .body(br#"[{"op": "test", "path": "/spec/replicas", "value": 7}]"#.to_vec())
        .unwrap();
    assert_eq!(failure(client.request::<Value>(failing).await).code, 422);
}

#[tokio::test]
async fn finalizers_hold_an_object_and_policies_leave_marks() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let api: Api<ConfigMap> = Api::default_namespaced(client.clone());
    let map: ConfigMap =
        serde_json::from_value(json!({"metadata": {"name": "a", "finalizers": ["test/hold"]}}))
            .unwrap();
    api.create(&PostParams::default(), &map).await.unwrap();
    let going = api.delete("a", &DeleteParams::default()).await.unwrap().left().unwrap();
    assert!(going.metadata.deletion_timestamp.is_some());
    let add = json!({"metadata": {"finalizers": ["test/hold", "test/other"]}});
    assert_eq!(
        failure(api.patch("a", &PatchParams::default(), &Patch::Merge(&add)).await).code,
        422
    );
    let release = json!({"metadata": {"finalizers": null}});
    api.patch("a", &PatchParams::default(), &Patch::Merge(&release)).await.unwrap();
    assert_eq!(failure(api.get("a").await).code, 404);

    let deployments: Api<Deployment> = Api::default_namespaced(client.clone());
    for (policy, finalizer) in [
        (PropagationPolicy::Foreground, "foregroundDeletion"),
        (PropagationPolicy::Orphan, "orphan"),
    ] {
        deployments
            .create(&PostParams::default(), &serde_json::from_value(deployment(None)).unwrap())
            .await
            .unwrap();
        let params = DeleteParams { propagation_policy: Some(policy), ..Default::default() };
        let going = deployments.delete("d", &params).await.unwrap().left().unwrap();
        assert_eq!(going.metadata.finalizers.unwrap(), [finalizer]);
        deployments.patch("d", &PatchParams::default(), &Patch::Merge(&release)).await.unwrap();
        assert_eq!(failure(deployments.get("d").await).code, 404);
    }
}

#[tokio::test]
async fn what_is_fixed_cannot_be_changed() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let sets: Api<StatefulSet> = Api::default_namespaced(client.clone());
    let mut set = deployment(Some(1));
    set["kind"] = json!("StatefulSet");
    set["spec"]["serviceName"] = json!("s");
    let made =
        sets.create(&PostParams::default(), &serde_json::from_value(set).unwrap()).await.unwrap();
    assert_eq!(made.spec.unwrap().pod_management_policy.as_deref(), Some("OrderedReady"));
    let patch = json!({"spec": {"serviceName": "other"}});
    let status = failure(sets.patch("d", &PatchParams::default(), &Patch::Merge(&patch)).await);
    assert!(status.message.contains("updates to statefulset spec"), "{}", status.message);
    let jobs: Api<Job> = Api::default_namespaced(client);
    let job = json!({"metadata": {"name": "j"}, "spec": {"template": {"spec": {"restartPolicy": "Never",
        "containers": [{"name": "c", "image": "x"}]}}}});
    let made =
        jobs.create(&PostParams::default(), &serde_json::from_value(job).unwrap()).await.unwrap();
    let spec = made.spec.unwrap();
    assert_eq!(
        (spec.completions, spec.parallelism, spec.backoff_limit),
        (Some(1), Some(1), Some(6))
    );
    assert!(
        spec.selector
            .unwrap()
            .match_labels
            .unwrap()
            .contains_key("batch.kubernetes.io/controller-uid")
    );
}

#[tokio::test]
async fn concurrent_writers_lose_nothing() {
    let cluster = Cluster::start().await;
    let api: Api<ConfigMap> = Api::default_namespaced(cluster.client().await);
    let map: ConfigMap =
        serde_json::from_value(json!({"metadata": {"name": "a"}, "data": {"n": "0"}})).unwrap();
    api.create(&PostParams::default(), &map).await.unwrap();
    let writer = |api: Api<ConfigMap>| async move {
        for _ in 0..10 {
            loop {
                let mut map = api.get("a").await.unwrap();
                let data = map.data.get_or_insert_default();
                let next = data["n"].parse::<u32>().unwrap() + 1;
                data.insert("n".into(), next.to_string());
                match api.replace("a", &PostParams::default(), &map).await {
                    Ok(_) => break,
                    Err(error) => assert_eq!(failure::<()>(Err(error)).code, 409),
                }
            }
        }
    };
    futures::future::join_all((0..4).map(|_| writer(api.clone()))).await;
    assert_eq!(api.get("a").await.unwrap().data.unwrap()["n"], "40");
}
