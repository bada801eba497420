use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, Patch, PatchParams, PostParams};
use kube::core::GroupVersionKind;
use kube::runtime::wait::{await_condition, conditions};
use serde_json::{Value, json};

use super::{Cluster, failure};

const DEFINITION: &str = r#"
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: widgets.test.example}
spec:
  group: test.example
  scope: Namespaced
  names: {plural: widgets, kind: Widget, shortNames: [wd], categories: [all]}
  versions:
  - name: v1
    served: true
    storage: true
    subresources:
      status: {}
      scale:
        specReplicasPath: .spec.replicas
        statusReplicasPath: .status.replicas
        labelSelectorPath: .status.selector
    additionalPrinterColumns:
    - {name: Owner, type: string, jsonPath: .spec.owner}
    - {name: Ready, type: string, jsonPath: '.status.conditions[?(@.type=="Ready")].status'}
    - {name: Seen, type: date, jsonPath: .status.seen}
    - {name: Note, type: string, jsonPath: .spec.note, priority: 1}
    schema:
      openAPIV3Schema:
        type: object
        required: [spec]
        properties:
          spec:
            type: object
            required: [owner]
            x-kubernetes-validations:
            - {rule: self.owner == oldSelf.owner, message: owner is immutable}
            - rule: self.size != 'large' || self.replicas > 0
              messageExpression: "'large needs replicas, not ' + string(self.replicas)"
            properties:
              owner: {type: string, minLength: 1}
              note: {type: string}
              replicas: {type: integer, default: 1, minimum: 0}
              size: {type: string, enum: [small, large], default: small}
              free: {type: object, x-kubernetes-preserve-unknown-fields: true}
              port: {x-kubernetes-int-or-string: true}
              env:
                type: array
                x-kubernetes-list-type: map
                x-kubernetes-list-map-keys: [name]
                items:
                  type: object
                  required: [name]
                  properties: {name: {type: string}, value: {type: string}}
          status:
            type: object
            properties:
              replicas: {type: integer}
              selector: {type: string}
              seen: {type: string, format: date-time}
              conditions:
                type: array
                x-kubernetes-list-type: map
                x-kubernetes-list-map-keys: [type]
                items:
                  type: object
                  required: [type]
                  properties: {type: {type: string}, status: {type: string}}
"#;

pub fn definition() -> Value {
    serde_yaml_ng::from_str(DEFINITION).unwrap()
}

pub async fn establish(client: &kube::Client) -> Api<DynamicObject> {
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    let params = PatchParams::apply("test").force();
    definitions.patch("widgets.test.example", &params, &Patch::Apply(&definition())).await.unwrap();
    let established =
        await_condition(definitions, "widgets.test.example", conditions::is_crd_established());
    tokio::time::timeout(std::time::Duration::from_secs(20), established).await.unwrap().unwrap();
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("test.example", "v1", "Widget"));
    Api::default_namespaced_with(client.clone(), &resource)
}

fn widget(spec: Value) -> DynamicObject {
    serde_json::from_value(json!({"apiVersion": "test.example/v1", "kind": "Widget", "metadata": {"name": "w"}, "spec": spec}))
        .unwrap()
}

#[tokio::test]
async fn schemas_are_enforced() {
    let cluster = Cluster::start().await;
    let api = establish(&cluster.client().await).await;
    let create = async |spec: Value| api.create(&PostParams::default(), &widget(spec)).await;
    for (spec, message) in [
        (json!({}), "Widget.test.example \"w\" is invalid: spec.owner: Required value"),
        (
            json!({"owner": 1}),
            "Widget.test.example \"w\" is invalid: spec.owner: Invalid value: \"integer\": spec.owner in body must be of type string: \"integer\"",
        ),
        (
            json!({"owner": "a", "size": "huge"}),
            "Widget.test.example \"w\" is invalid: spec.size: Unsupported value: \"huge\": supported values: \"small\", \"large\"",
        ),
        (
            json!({"owner": "a", "size": "large", "replicas": 0}),
            "Widget.test.example \"w\" is invalid: spec: Invalid value: \"object\": large needs replicas, not 0",
        ),
        (
            json!({"owner": "a", "env": [{"name": "x"}, {"name": "x"}]}),
            "Widget.test.example \"w\" is invalid: spec.env[1]: Duplicate value: {\"name\":\"x\"}",
        ),
    ] {
        let status = failure(create(spec).await);
        assert_eq!((status.code, status.message.as_str()), (422, message));
        assert!(!status.details.unwrap().causes.is_empty());
    }
    let made = create(json!({"owner": "a", "unknown": 1, "free": {"x": 1}, "port": "http"}))
        .await
        .unwrap();
    assert_eq!(
        made.data["spec"],
        json!({"owner": "a", "free": {"x": 1}, "port": "http", "replicas": 1, "size": "small"})
    );
    assert_eq!(made.metadata.generation, Some(1));
    let patch = json!({"spec": {"owner": "b"}});
    let status = failure(api.patch("w", &PatchParams::default(), &Patch::Merge(&patch)).await);
    assert!(
        status.message.ends_with("spec: Invalid value: \"object\": owner is immutable"),
        "{}",
        status.message
    );
}

#[tokio::test]
async fn status_scale_and_apply_on_custom_resources() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let api = establish(&client).await;
    let object = |spec: Value| json!({"apiVersion": "test.example/v1", "kind": "Widget", "metadata": {"name": "w"}, "spec": spec});
    let apply = PatchParams::apply("one");
    let first = object(json!({"owner": "a", "env": [{"name": "x", "value": "1"}]}));
    api.patch("w", &apply, &Patch::Apply(&first)).await.unwrap();
    let other = object(json!({"owner": "a", "env": [{"name": "y"}]}));
    let both = api.patch("w", &PatchParams::apply("two"), &Patch::Apply(&other)).await.unwrap();
    assert_eq!(both.data["spec"]["env"].as_array().unwrap().len(), 2);
    let status = json!({"apiVersion": "test.example/v1", "kind": "Widget", "status": {"replicas": 2, "selector": "a=b"}});
    let with = api
        .patch_status("w", &PatchParams::apply("one").force(), &Patch::Apply(&status))
        .await
        .unwrap();
    assert_eq!(with.data["status"]["replicas"], 2);
    assert_eq!(with.metadata.generation, Some(2));
    let scale = api.get_scale("w").await.unwrap();
    assert_eq!(scale.status.as_ref().unwrap().selector.as_deref(), Some("a=b"));
    api.patch_scale("w", &PatchParams::default(), &Patch::Merge(&json!({"spec": {"replicas": 0}})))
        .await
        .unwrap();
    let scaled = api.get("w").await.unwrap();
    assert_eq!(scaled.data["spec"]["replicas"], 0);
    assert_eq!(scaled.metadata.generation, Some(3));
    // A replacement must say what it replaces.
    let mut blind = scaled.clone();
    blind.metadata.resource_version = None;
    assert_eq!(failure(api.replace("w", &PostParams::default(), &blind).await).code, 422);
}

#[tokio::test]
async fn a_definition_takes_its_objects_along_and_survives_restarts() {
    let cluster = Cluster::start().await;
    let api = establish(&cluster.client().await).await;
    api.create(&PostParams::default(), &widget(json!({"owner": "a"}))).await.unwrap();
    let cluster = Cluster::start_in(cluster.stop().await).await;
    let client = cluster.client().await;
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("test.example", "v1", "Widget"));
    let api: Api<DynamicObject> = Api::default_namespaced_with(client.clone(), &resource);
    assert!(api.get("w").await.is_ok());
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    definitions.delete("widgets.test.example", &DeleteParams::default()).await.unwrap();
    let uid =
        definitions.get_opt("widgets.test.example").await.unwrap().and_then(|d| d.metadata.uid);
    if let Some(uid) = uid {
        let gone =
            await_condition(definitions, "widgets.test.example", conditions::is_deleted(&uid));
        tokio::time::timeout(std::time::Duration::from_secs(20), gone).await.unwrap().unwrap();
    }
    assert_eq!(failure(api.get("w").await).code, 404);
    // Defined again, it begins empty.
    let api = establish(&client).await;
    assert!(api.list(&Default::default()).await.unwrap().items.is_empty());
}

#[tokio::test]
async fn a_bad_definition_is_refused_with_the_place() {
    let cluster = Cluster::start().await;
    let definitions: Api<CustomResourceDefinition> = Api::all(cluster.client().await);
    let mut bad = definition();
    bad["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["owner"]
        ["pattern"] = json!("(");
    let made: CustomResourceDefinition = serde_json::from_value(bad).unwrap();
    let status = failure(definitions.create(&PostParams::default(), &made).await);
    assert!(status.message.contains("properties[owner]"), "{}", status.message);
    let mut bad = definition();
    bad["metadata"]["name"] = json!("other.test.example");
    let made: CustomResourceDefinition = serde_json::from_value(bad).unwrap();
    assert_eq!(failure(definitions.create(&PostParams::default(), &made).await).code, 422);
}
