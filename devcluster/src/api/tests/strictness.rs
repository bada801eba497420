//! What a real API server refuses, is refused here: seen on Kubernetes 1.36.

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use k8s_openapi::api::storage::v1::StorageClass;
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use super::{Cluster, failure};

fn deployment(container: Value) -> Value {
    let mut container = container;
    container["name"] = "m".into();
    container["image"] = "x".into();
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}, "spec": {
        "selector": {"matchLabels": {"a": "b"}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [container]}},
    }})
}

#[tokio::test]
async fn apply_refuses_what_is_not_typed_with_500_and_no_reason() {
    let cluster = Cluster::start().await;
    let api: Api<Deployment> = Api::default_namespaced(cluster.client().await);
    let params = PatchParams::apply("test").force();
    let twice = json!({"env": [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]});
    let what = "failed to create typed patch object (default/d; apps/v1, Kind=Deployment): ";
    for (container, why) in [
        (
            twice.clone(),
            r#".spec.template.spec.containers[name="m"].env: duplicate entries for key [name="A"]"#,
        ),
        (
            json!({"typo": true}),
            r#".spec.template.spec.containers[name="m"].typo: field not declared in schema"#,
        ),
    ] {
        let patch = Patch::Apply(deployment(container));
        let status = failure(api.patch("d", &params, &patch).await);
        assert_eq!((status.code, status.reason.as_str()), (500, ""));
        assert_eq!(status.message, format!("{what}{why}"));
    }
    let bad = json!({"resources": {"limits": {"memory": "much"}}});
    let status = failure(api.patch("d", &params, &Patch::Apply(deployment(bad))).await);
    assert_eq!(status.code, 500);
    assert!(status.message.starts_with("failed to convert new object"), "{}", status.message);
    assert!(api.get_opt("d").await.unwrap().is_none(), "nothing was created");

    // The same by POST is accepted, and by apply refused on what exists as well.
    let made = serde_json::from_value(deployment(twice.clone())).unwrap();
    api.create(&PostParams::default(), &made).await.unwrap();
    assert_eq!(failure(api.patch("d", &params, &Patch::Apply(deployment(twice))).await).code, 500);
}

fn claim(size: &str, class: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "c"}, "spec": {
        "accessModes": ["ReadWriteOnce"], "storageClassName": class,
        "resources": {"requests": {"storage": size}},
    }})
}

#[tokio::test]
async fn claims_are_as_fixed_as_on_a_cluster() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let classes: Api<StorageClass> = Api::all(client.clone());
    for (name, grows) in [("grows", true), ("fixed", false)] {
        let class = json!({"metadata": {"name": name}, "provisioner": "test.example/none", "allowVolumeExpansion": grows});
        classes
            .create(&PostParams::default(), &serde_json::from_value(class).unwrap())
            .await
            .unwrap();
    }
    let api: Api<PersistentVolumeClaim> = Api::default_namespaced(client);
    let apply = |claim: Value| {
        let api = api.clone();
        async move { api.patch("c", &PatchParams::apply("test").force(), &Patch::Apply(claim)).await }
    };
    apply(claim("10Gi", "fixed")).await.unwrap();
    for other in [claim("20Gi", "fixed"), claim("5Gi", "fixed"), claim("10Gi", "grows")] {
        let status = failure(apply(other).await);
        assert_eq!(status.code, 422, "before it is bound: {}", status.message);
        assert!(status.message.contains("spec is immutable after creation"), "{}", status.message);
    }
    apply(claim("10240Mi", "fixed")).await.unwrap();

    let bound = json!({"status": {"phase": "Bound", "capacity": {"storage": "10Gi"}}});
    api.patch_status("c", &PatchParams::default(), &Patch::Merge(bound)).await.unwrap();
    let smaller = failure(apply(claim("5Gi", "fixed")).await);
    assert_eq!(smaller.code, 422);
    assert!(
        smaller.message.ends_with(
            "spec.resources.requests.storage: Forbidden: field can not be less than status.capacity"
        ),
        "{}",
        smaller.message
    );
    let larger = failure(apply(claim("20Gi", "fixed")).await);
    assert_eq!((larger.code, larger.reason.as_str()), (403, "Forbidden"));
    assert_eq!(failure(apply(claim("10Gi", "grows")).await).code, 422, "another class");
    let mut without = claim("10Gi", "fixed");
    without["spec"].as_object_mut().unwrap().remove("storageClassName");
    assert_eq!(failure(apply(without).await).code, 422, "a class that is left out again");
    let mut unchanged = claim("10Gi", "fixed");
    unchanged["metadata"]["labels"] = json!({"a": "b"});
    apply(unchanged).await.unwrap();
}

#[tokio::test]
async fn a_claim_whose_class_can_grow_grows() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let class = json!({"metadata": {"name": "grows"}, "provisioner": "test.example/none", "allowVolumeExpansion": true});
    Api::<StorageClass>::all(client.clone())
        .create(&PostParams::default(), &serde_json::from_value(class).unwrap())
        .await
        .unwrap();
    let api: Api<PersistentVolumeClaim> = Api::default_namespaced(client);
    let params = PatchParams::apply("test").force();
    api.patch("c", &params, &Patch::Apply(claim("10Gi", "grows"))).await.unwrap();
    let bound = json!({"status": {"phase": "Bound", "capacity": {"storage": "10Gi"}}});
    api.patch_status("c", &PatchParams::default(), &Patch::Merge(bound)).await.unwrap();
    let grown = api.patch("c", &params, &Patch::Apply(claim("20Gi", "grows"))).await.unwrap();
    assert_eq!(grown.spec.unwrap().resources.unwrap().requests.unwrap()["storage"].0, "20Gi");
}

#[tokio::test]
async fn a_lease_lasts_and_is_written_on_the_version_that_was_read() {
    let cluster = Cluster::start().await;
    let api: Api<Lease> = Api::default_namespaced(cluster.client().await);
    let lease = |spec: Value| -> Lease {
        serde_json::from_value(json!({"metadata": {"name": "l"}, "spec": spec})).unwrap()
    };
    let params = PostParams::default();
    for (spec, why) in [
        (
            json!({"leaseDurationSeconds": 0}),
            "spec.leaseDurationSeconds: Invalid value: 0: must be greater than 0",
        ),
        (json!({"leaseTransitions": -1}), "must be greater than or equal to 0"),
        (json!({"preferredHolder": "a"}), "may only be specified when `strategy` is defined"),
    ] {
        let status = failure(api.create(&params, &lease(spec)).await);
        assert_eq!(status.code, 422);
        assert!(status.message.contains(why), "{}", status.message);
    }
    let spec = json!({"holderIdentity": "a", "leaseDurationSeconds": 15});
    let first = api.create(&params, &lease(spec.clone())).await.unwrap();
    assert_eq!(failure(api.create(&params, &lease(spec)).await).code, 409);
    let mut next = first.clone();
    next.spec.as_mut().unwrap().holder_identity = Some("b".to_owned());
    api.replace("l", &params, &next).await.unwrap();
    assert_eq!(failure(api.replace("l", &params, &first).await).code, 409, "an older version");
}
