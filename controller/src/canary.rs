//! The second revision of an app: a Deployment and a Service of its own, named `<app>--canary`, which
//! no app can be called.

use cluster::{
    labels,
    resources::{App, Canary, CanaryStatus},
};
use k8s_openapi::{
    api::{apps::v1::Deployment, core::v1::Service},
    apimachinery::pkg::apis::meta::v1::OwnerReference,
};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

use crate::{Shared, config::Config, manifest, own, refusal::ReconcileError};

fn name(app: &App) -> String {
    format!("{}--canary", app.name_any())
}

/// Makes what lies under it, or takes that away.
pub async fn apply(
    app: &App,
    shared: &Shared,
    namespace: &str,
    owner: &OwnerReference,
    awake: bool,
) -> Result<Option<CanaryStatus>, ReconcileError> {
    let services: Api<Service> = Api::namespaced(shared.client.clone(), namespace);
    let deployments: Api<Deployment> = Api::namespaced(shared.client.clone(), namespace);
    let Some(canary) = &app.spec.canary else {
        // Most apps never have one, so that is asked for after a change only. The status alone does not
        // tell: whoever made one may have ended before it could say so.
        let status = app.status.as_ref();
        let seen = status.and_then(|status| status.observed_generation);
        let had = status.is_some_and(|status| status.canary.is_some());
        if had || seen != app.metadata.generation {
            own::delete_ours(&services, &name(app), owner).await?;
            own::delete_ours(&deployments, &name(app), owner).await?;
        }
        return Ok(None);
    };
    let name = name(app);
    own::put(
        &services,
        &name,
        |found| own::check(found, owner),
        |_| Ok(service(app, &shared.config)),
    )
    .await?;
    let manifest = |_: Option<&Deployment>| Ok(deployment(app, canary, awake, &shared.config));
    let made = own::put(&deployments, &name, |found| own::check(found, owner), manifest).await?;
    let status = made.status.unwrap_or_default();
    Ok(Some(CanaryStatus {
        weight: canary.weight,
        replicas: status.replicas.unwrap_or(0),
        ready_replicas: status.ready_replicas.unwrap_or(0),
        message: None,
    }))
}

/// Ends its pods, whatever becomes of all else.
pub async fn halt(
    app: &App,
    shared: &Shared,
    namespace: &str,
    owner: &OwnerReference,
) -> Result<(), ReconcileError> {
    if app.spec.canary.is_none() && app.status.as_ref().is_none_or(|it| it.canary.is_none()) {
        return Ok(());
    }
    let deployments: Api<Deployment> = Api::namespaced(shared.client.clone(), namespace);
    own::halt(&deployments, &name(app), owner).await
}

/// Of one that the cluster refuses. The app itself is none the worse for it.
pub fn refused(app: &App, message: String) -> Option<CanaryStatus> {
    let weight = app.spec.canary.as_ref()?.weight;
    Some(CanaryStatus { weight, replicas: 0, ready_replicas: 0, message: Some(message) })
}

/// Of the canary's pods, which the app's own Service does not select.
fn pod_labels(app: &App) -> Value {
    let kind = manifest::selector_of(app).remove(labels::KIND);
    json!({labels::CANARY_OF: app.name_any(), labels::KIND: kind})
}

/// The object is the app's all the same, and its EndpointSlices say which revision they are of.
fn rename(manifest: &mut Value, app: &App) {
    manifest["metadata"]["name"] = json!(name(app));
    manifest["metadata"]["labels"][labels::REVISION] = json!(labels::CANARY);
}

fn service(app: &App, config: &Config) -> Value {
    let mut service = manifest::service(app, config);
    rename(&mut service, app);
    service["spec"]["selector"] = pod_labels(app);
    service
}

fn deployment(app: &App, canary: &Canary, awake: bool, config: &Config) -> Value {
    let mut other = app.clone();
    let spec = &mut other.spec;
    spec.replicas = if spec.replicas == 0 { 0 } else { canary.replicas };
    spec.image = canary.image.clone().unwrap_or(std::mem::take(&mut spec.image));
    spec.command = canary.command.clone().unwrap_or(std::mem::take(&mut spec.command));
    spec.args = canary.args.clone().unwrap_or(std::mem::take(&mut spec.args));
    // A variable that is there twice is refused.
    spec.env.retain(|old| canary.env.iter().all(|new| new.name != old.name));
    spec.env.extend(canary.env.iter().cloned());
    let mut deployment = manifest::deployment(&other, awake, config);
    rename(&mut deployment, app);
    deployment["spec"]["selector"]["matchLabels"] = pod_labels(app);
    let mut labels = pod_labels(app);
    labels[labels::MANAGED_BY] = json!(labels::MANAGER);
    if let Some((name, value)) = manifest::scope_label(config) {
        labels[name] = json!(value);
    }
    deployment["spec"]["template"]["metadata"]["labels"] = labels;
    deployment
}

#[cfg(test)]
mod tests {
    use super::*;

    fn app(replicas: i32) -> App {
        serde_json::from_value(json!({
            "apiVersion": "dormouse.dev/v1alpha1", "kind": "App",
            "metadata": {"name": "web", "namespace": "alice", "uid": "u2"},
            "spec": {
                "owner": "alice", "image": "web:1", "args": ["serve"], "replicas": replicas,
                "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "1"}],
                "canary": {
                    "weight": 10, "image": "web:2", "env": [{"name": "B", "value": "2"}],
                },
            },
        }))
        .unwrap()
    }

    fn config() -> Config {
        let config = json!({"base_domain": "localhost", "gateways": [],
            "agent": {"image": "dormouse", "gateway_key": "ssh-ed25519 AAAA"}});
        serde_json::from_value(config).unwrap()
    }

    fn manifest_of(app: &App, awake: bool) -> Value {
        deployment(app, app.spec.canary.as_ref().unwrap(), awake, &config())
    }

    #[test]
    fn it_is_the_app_but_for_what_is_set() {
        let made = manifest_of(&app(3), true);
        assert_eq!(made["metadata"]["name"], "web--canary");
        assert_eq!(made["metadata"]["ownerReferences"][0]["uid"], "u2");
        assert_eq!(made["spec"]["replicas"], 1);
        let container = &made["spec"]["template"]["spec"]["containers"][0];
        assert_eq!((&container["image"], &container["args"]), (&json!("web:2"), &json!(["serve"])));
        let env: Vec<_> = container["env"].as_array().unwrap().iter().skip(1).collect();
        let expected = [json!({"name": "A", "value": "1"}), json!({"name": "B", "value": "2"})];
        assert_eq!(env, expected.iter().collect::<Vec<_>>());
    }

    #[test]
    fn it_sleeps_and_stops_with_the_app() {
        assert_eq!(manifest_of(&app(3), false)["spec"]["replicas"], 0);
        assert_eq!(manifest_of(&app(0), true)["spec"]["replicas"], 0);
    }

    #[test]
    fn neither_service_selects_the_others_pods() {
        let app = app(1);
        let made = manifest_of(&app, true);
        let selects = |service: &Value, labels: &Value| {
            let selector = service["spec"]["selector"].as_object().unwrap();
            selector.iter().all(|(name, value)| labels[name] == *value)
        };
        let canary_pods = &made["spec"]["template"]["metadata"]["labels"];
        let stable_pods = json!(manifest::labels_of(&app));
        let (stable, canary) = (manifest::service(&app, &config()), service(&app, &config()));
        assert!(selects(&canary, canary_pods) && selects(&stable, &stable_pods));
        assert!(!selects(&stable, canary_pods) && !selects(&canary, &stable_pods));
        assert_eq!(canary["metadata"]["labels"]["dormouse.dev/workload"], "web");
        assert_eq!(canary["metadata"]["labels"]["dormouse.dev/revision"], "canary");
        assert!(stable["metadata"]["labels"]["dormouse.dev/revision"].is_null());
    }
}
