//! What lies under a workload, as manifests for server-side apply: only the fields that are ours.

use std::collections::BTreeMap;

use cluster::{
    labels,
    resources::{
        App, AppProtocol, EnvVar, OnDelete, Resources, SecretMount, WorkloadResource, Workspace,
    },
};
use k8s_openapi::ByteString;
use kube::ResourceExt;
use serde_json::{Value, json};

use crate::{agent_key, config::Config};

/// Where the agent listens, on the pod's address.
pub const AGENT_PORT: u16 = 2022;
const AGENT_FOLDER: &str = "/run/dormouse";
const AGENT_KEYS: &str = "/run/dormouse-keys";

/// Labels of everything that is made for the workload.
pub fn labels_of<W: WorkloadResource>(object: &W) -> BTreeMap<&'static str, String> {
    [
        (labels::MANAGED_BY, labels::MANAGER.to_owned()),
        (labels::WORKLOAD, object.name_any()),
        (labels::KIND, W::KIND.to_string()),
    ]
    .into()
}

/// The labels of pods. The scope is in nothing that selects, for a Project may change it.
fn pod_labels<W: WorkloadResource>(object: &W, config: &Config) -> BTreeMap<&'static str, String> {
    let mut labels = labels_of(object);
    labels.extend(scope_label(config));
    labels
}

/// The scope's label on what is made in it.
pub fn scope_label(config: &Config) -> Option<(&'static str, String)> {
    config.scope.name().map(|name| (labels::SCOPE, name.to_owned()))
}

/// Selects the workload's pods. Immutable in a StatefulSet and a Deployment, so kept small.
pub fn selector_of<W: WorkloadResource>(object: &W) -> BTreeMap<&'static str, String> {
    let mut selector = labels_of(object);
    selector.remove(labels::MANAGED_BY);
    selector
}

/// As one line, for lists and for the scale subresource.
pub fn selector_text<W: WorkloadResource>(object: &W) -> String {
    let terms: Vec<_> =
        selector_of(object).into_iter().map(|(name, value)| format!("{name}={value}")).collect();
    terms.join(",")
}

fn metadata<W: WorkloadResource>(object: &W, name: &str) -> Value {
    json!({
        "name": name,
        "namespace": object.namespace(),
        "labels": labels_of(object),
        "ownerReferences": [object.controller_owner_ref(&())],
    })
}

/// Of what goes with its workload. A volume may outlive it, and its scope.
fn scoped<W: WorkloadResource>(object: &W, name: &str, config: &Config) -> Value {
    let mut metadata = metadata(object, name);
    metadata["labels"] = json!(pod_labels(object, config));
    metadata
}

/// A headless Service for a workspace, so that its pod has a name; a common one for an app.
pub fn service<W: WorkloadResource>(object: &W, config: &Config) -> Value {
    let mut http = json!({"name": "http", "port": object.port(), "targetPort": "http"});
    if object.app_protocol() != AppProtocol::Http {
        http["appProtocol"] = json!(object.app_protocol().as_str());
    }
    let mut ports = vec![http];
    let mut spec = json!({"selector": selector_of(object)});
    if W::KIND == domain::workload::WorkloadKind::Workspace {
        ports.push(json!({"name": "ssh", "port": AGENT_PORT, "targetPort": "ssh"}));
        spec["clusterIP"] = json!("None");
    }
    spec["ports"] = json!(ports);
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": scoped(object, &object.name_any(), config),
        "spec": spec,
    })
}

pub fn claim_name(workspace: &str) -> String {
    format!("{workspace}-home")
}

/// The volume that outlives every sleep.
pub fn claim(workspace: &Workspace) -> Value {
    let storage = &workspace.spec.storage;
    let mut metadata = metadata(workspace, &claim_name(&workspace.name_any()));
    metadata["annotations"] = json!({labels::OWNER: workspace.spec.owner});
    if storage.on_delete == OnDelete::Retain {
        metadata["ownerReferences"] = json!([]);
    }
    let mut spec = json!({
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": storage.size}},
    });
    if let Some(class) = &storage.storage_class_name {
        spec["storageClassName"] = json!(class);
    }
    json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": spec})
}

pub fn agent_secret(workspace: &Workspace, host_key: &str, config: &Config) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Secret",
        "metadata": scoped(workspace, &agent_key::secret_name(&workspace.name_any()), config),
        "type": "Opaque",
        // Not stringData, which the API server never gives back: it would differ at every apply.
        "data": {
            agent_key::HOST_KEY: ByteString(host_key.into()),
            agent_key::AUTHORIZED_KEY: ByteString(config.agent.gateway_key.clone().into()),
        },
    })
}

/// `policy` is the pod management policy of a set that exists, which cannot be changed. A new one's is
/// `Parallel`: with the default one a pod that never becomes ready is not replaced after its
/// specification was corrected.
pub fn stateful_set(
    workspace: &Workspace,
    awake: bool,
    policy: Option<&str>,
    config: &Config,
) -> Value {
    let spec = &workspace.spec;
    let name = workspace.name_any();
    let home = &spec.storage.mount_path;
    let mut env = vec![
        pod_ip(),
        json!({"name": "HOME", "value": home}),
        json!({"name": "DORMOUSE_AGENT_LISTEN", "value": format!("$(POD_IP):{AGENT_PORT}")}),
        json!({"name": "DORMOUSE_AGENT_KEYS", "value": AGENT_KEYS}),
    ];
    add_env(&spec.env, &mut env);
    let mut mounts = vec![
        json!({"name": "home", "mountPath": home}),
        json!({"name": "agent", "mountPath": AGENT_FOLDER}),
        json!({"name": "agent-keys", "mountPath": AGENT_KEYS, "readOnly": true}),
    ];
    let mut volumes = vec![
        json!({"name": "home", "persistentVolumeClaim": {"claimName": claim_name(&name)}}),
        json!({"name": "agent", "emptyDir": {}}),
        json!({"name": "agent-keys", "secret": {
            "secretName": agent_key::secret_name(&name), "defaultMode": 0o444,
        }}),
    ];
    add_secrets(&spec.secrets, &mut mounts, &mut volumes);
    let program = format!("{AGENT_FOLDER}/dormouse");
    let mut container = container(&spec.image, &spec.command, &spec.args, &spec.resources);
    container["workingDir"] = json!(home);
    container["env"] = json!(env);
    container["envFrom"] = json!(env_from(&spec.secrets));
    container["volumeMounts"] = json!(mounts);
    container["ports"] = json!([
        {"name": "http", "containerPort": spec.port},
        {"name": "ssh", "containerPort": AGENT_PORT},
    ]);
    container["readinessProbe"] = probe(None);
    container["lifecycle"] = json!({
        "postStart": {"exec": {"command": [program, "agent", "serve", "--detach"]}},
    });
    let mut pod = json!({
        "automountServiceAccountToken": false,
        "enableServiceLinks": false,
        "terminationGracePeriodSeconds": 10,
        "initContainers": [{
            "name": "agent",
            "image": config.agent.image,
            "command": ["dormouse", "agent", "install", "--to", AGENT_FOLDER],
            "volumeMounts": [{"name": "agent", "mountPath": AGENT_FOLDER}],
        }],
        "containers": [container],
        "volumes": volumes,
    });
    place(&mut pod, config);
    json!({
        "apiVersion": "apps/v1", "kind": "StatefulSet",
        "metadata": scoped(workspace, &name, config),
        "spec": {
            "replicas": if awake { spec.replicas } else { 0 },
            "serviceName": name,
            "podManagementPolicy": policy.unwrap_or("Parallel"),
            "selector": {"matchLabels": selector_of(workspace)},
            "template": {"metadata": {"labels": pod_labels(workspace, config)}, "spec": pod},
        },
    })
}

pub fn deployment(app: &App, awake: bool, config: &Config) -> Value {
    let spec = &app.spec;
    let mut env = vec![pod_ip()];
    add_env(&spec.env, &mut env);
    let (mut mounts, mut volumes) = (Vec::new(), Vec::new());
    add_secrets(&spec.secrets, &mut mounts, &mut volumes);
    let mut container = container(&spec.image, &spec.command, &spec.args, &spec.resources);
    container["env"] = json!(env);
    container["envFrom"] = json!(env_from(&spec.secrets));
    container["volumeMounts"] = json!(mounts);
    container["ports"] = json!([{"name": "http", "containerPort": spec.port}]);
    container["readinessProbe"] = probe(spec.probe.as_ref().map(|probe| probe.path.as_str()));
    if spec.probe.is_some() && spec.app_protocol == AppProtocol::Https {
        container["readinessProbe"]["httpGet"]["scheme"] = json!("HTTPS");
    }
    let mut pod = json!({
        "automountServiceAccountToken": false,
        "enableServiceLinks": false,
        "terminationGracePeriodSeconds": 10,
        "containers": [container],
        "volumes": volumes,
    });
    place(&mut pod, config);
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": scoped(app, &app.name_any(), config),
        "spec": {
            "replicas": if awake { spec.replicas } else { 0 },
            "selector": {"matchLabels": selector_of(app)},
            "template": {"metadata": {"labels": pod_labels(app, config)}, "spec": pod},
        },
    })
}

/// On which nodes.
fn place(pod: &mut Value, config: &Config) {
    if !config.node_selector.is_empty() {
        pod["nodeSelector"] = json!(config.node_selector);
    }
    let taints = config.tolerate_taints.iter();
    let tolerations = taints.map(|taint| match taint.split_once('=') {
        Some((key, value)) => json!({"key": key, "operator": "Equal", "value": value}),
        None => json!({"key": taint, "operator": "Exists"}),
    });
    let tolerations: Vec<_> = tolerations.collect();
    if !tolerations.is_empty() {
        pod["tolerations"] = json!(tolerations);
    }
}

fn container(image: &str, command: &[String], args: &[String], resources: &Resources) -> Value {
    let mut container = json!({"name": "main", "image": image, "resources": resources});
    if !command.is_empty() {
        container["command"] = json!(command);
    }
    if !args.is_empty() {
        container["args"] = json!(args);
    }
    container
}

/// Ready as soon as the program takes connections, or answers the path well.
fn probe(path: Option<&str>) -> Value {
    let mut probe = match path {
        Some(path) => json!({"httpGet": {"path": path, "port": "http"}}),
        None => json!({"tcpSocket": {"port": "http"}}),
    };
    probe["periodSeconds"] = json!(1);
    probe["timeoutSeconds"] = json!(5);
    probe["failureThreshold"] = json!(3);
    probe
}

fn pod_ip() -> Value {
    json!({"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}})
}

/// The names that are there already are ours and win; of two of the person's the last one does, as in
/// a container. The API server refuses an apply with a name that is there twice.
fn add_env(more: &[EnvVar], env: &mut Vec<Value>) {
    let ours = env.len();
    for var in more {
        let same = env.iter().position(|known| known["name"] == var.name.as_str());
        match same {
            Some(place) if place < ours => {}
            Some(place) => env[place]["value"] = json!(var.value),
            None => env.push(json!({"name": var.name, "value": var.value})),
        }
    }
}

fn env_from(secrets: &[SecretMount]) -> Vec<Value> {
    let as_env = secrets.iter().filter(|secret| secret.as_env == Some(true));
    as_env.map(|secret| json!({"secretRef": {"name": secret.name}})).collect()
}

fn add_secrets(secrets: &[SecretMount], mounts: &mut Vec<Value>, volumes: &mut Vec<Value>) {
    for (number, secret) in secrets.iter().enumerate() {
        let Some(path) = &secret.mount_path else { continue };
        let name = format!("secret-{number}");
        mounts.push(json!({"name": name, "mountPath": path, "readOnly": true}));
        volumes.push(json!({"name": name, "secret": {"secretName": secret.name}}));
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::{
        apps::v1::{Deployment, StatefulSet},
        core::v1::{PersistentVolumeClaim, Secret, Service},
    };
    use serde::de::DeserializeOwned;

    use super::*;

    fn workspace(spec: Value) -> Workspace {
        let mut all = json!({"owner": "alice", "image": "jupyter"});
        all.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        serde_json::from_value(json!({
            "apiVersion": "dormouse.dev/v1alpha1", "kind": "Workspace",
            "metadata": {"name": "lab", "namespace": "alice", "uid": "u1"}, "spec": all,
        }))
        .unwrap()
    }

    fn config() -> Config {
        serde_json::from_value(json!({
            "base_domain": "localhost", "gateways": [],
            "tolerate_taints": ["dormouse.dev/a", "dormouse.dev/b=dev"],
            "agent": {"image": "dormouse", "gateway_key": "ssh-ed25519 AAAA"},
        }))
        .unwrap()
    }

    /// A misspelt field would be dropped on the way through the typed object.
    fn typed<T: DeserializeOwned + serde::Serialize>(manifest: &Value) -> T {
        let typed: T = serde_json::from_value(manifest.clone()).unwrap();
        let back = serde_json::to_value(&typed).unwrap();
        check(manifest, &back, "");
        typed
    }

    fn check(sent: &Value, kept: &Value, path: &str) {
        match (sent, kept) {
            (Value::Object(sent), kept) => {
                for (name, value) in sent {
                    let empty = value.as_array().is_some_and(Vec::is_empty)
                        || value.as_object().is_some_and(serde_json::Map::is_empty);
                    assert!(empty || !kept[name].is_null(), "{path}.{name} is no field");
                    check(value, &kept[name], &format!("{path}.{name}"));
                }
            }
            (Value::Array(sent), Value::Array(kept)) => {
                for (sent, kept) in sent.iter().zip(kept) {
                    check(sent, kept, path);
                }
            }
            _ => {}
        }
    }

    #[test]
    fn every_field_exists_in_kubernetes() {
        let lab = workspace(json!({
            "args": ["lab"], "command": ["jupyter"], "env": [{"name": "A", "value": "b"}],
            "secrets": [{"name": "s", "mountPath": "/s"}, {"name": "t", "asEnv": true}],
            "resources": {"limits": {"cpu": "1"}}, "storage": {"storageClassName": "fast"},
        }));
        typed::<StatefulSet>(&stateful_set(&lab, true, None, &config()));
        typed::<Service>(&service(&lab, &config()));
        typed::<PersistentVolumeClaim>(&claim(&lab));
        let secret: Secret = typed(&agent_secret(&lab, "private", &config()));
        assert_eq!(secret.data.unwrap()[agent_key::HOST_KEY].0, b"private");
        let app: App = serde_json::from_value(json!({
            "apiVersion": "dormouse.dev/v1alpha1", "kind": "App",
            "metadata": {"name": "web", "namespace": "alice", "uid": "u2"},
            "spec": {
                "owner": "alice", "image": "web", "probe": {"path": "/health"},
                "appProtocol": "https",
            },
        }))
        .unwrap();
        let pod = &deployment(&app, true, &config())["spec"]["template"]["spec"];
        assert_eq!(pod["containers"][0]["readinessProbe"]["httpGet"]["scheme"], "HTTPS");
        assert_eq!(service(&app, &config())["spec"]["ports"][0]["appProtocol"], "https");
        typed::<Deployment>(&deployment(&app, true, &config()));
        typed::<Service>(&service(&app, &config()));
    }

    #[test]
    fn asleep_is_zero_replicas_and_the_volume_stays() {
        let lab = workspace(json!({}));
        let asleep: StatefulSet = typed(&stateful_set(&lab, false, None, &config()));
        assert_eq!(asleep.spec.unwrap().replicas, Some(0));
        let awake: StatefulSet = typed(&stateful_set(&lab, true, None, &config()));
        assert_eq!(awake.spec.unwrap().replicas, Some(1));
    }

    #[test]
    fn pods_tolerate_the_taints_of_nodes_that_are_kept_for_them() {
        let lab = stateful_set(&workspace(json!({})), true, None, &config());
        let tolerations = &lab["spec"]["template"]["spec"]["tolerations"];
        assert!(lab["spec"]["template"]["spec"]["nodeSelector"].is_null());
        assert_eq!(
            *tolerations,
            json!([
                {"key": "dormouse.dev/a", "operator": "Exists"},
                {"key": "dormouse.dev/b", "operator": "Equal", "value": "dev"},
            ])
        );
    }

    #[test]
    fn the_scope_is_on_what_is_made_and_in_nothing_that_selects() {
        let label = |labels: &Value| labels[labels::SCOPE].clone();
        let mut config = config();
        let lab = workspace(json!({}));
        config.node_selector = [("host".to_owned(), "a".to_owned())].into();
        for (scope, shown) in [("default", json!(null)), ("dev", json!("dev"))] {
            config.scope = scope.parse().unwrap();
            let set = stateful_set(&lab, true, None, &config);
            let pod = &set["spec"]["template"];
            let made =
                [pod, &set, &service(&lab, &config)].map(|it| label(&it["metadata"]["labels"]));
            assert_eq!(made, [shown.clone(), shown.clone(), shown]);
            assert_eq!(pod["spec"]["nodeSelector"], json!({"host": "a"}));
            assert!(label(&set["spec"]["selector"]["matchLabels"]).is_null());
            assert!(label(&service(&lab, &config)["spec"]["selector"]).is_null());
        }
    }

    #[test]
    fn everything_is_owned_but_a_retained_volume() {
        let owned = |manifest: &Value| manifest["metadata"]["ownerReferences"][0]["uid"] == "u1";
        let lab = workspace(json!({}));
        assert!(owned(&stateful_set(&lab, true, None, &config())) && owned(&claim(&lab)));
        let keep = workspace(json!({"storage": {"onDelete": "Retain"}}));
        assert!(!owned(&claim(&keep)) && owned(&service(&keep, &config())));
    }

    #[test]
    fn a_name_is_there_once_and_ours_wins() {
        let lab = workspace(json!({"env": [
            {"name": "A", "value": "1"}, {"name": "HOME", "value": "/elsewhere"},
            {"name": "POD_IP", "value": "10.0.0.1"}, {"name": "A", "value": "2"},
        ]}));
        let set = stateful_set(&lab, true, None, &config());
        let env = set["spec"]["template"]["spec"]["containers"][0]["env"].as_array().unwrap();
        let value = |name: &str| {
            let found: Vec<_> = env.iter().filter(|var| var["name"] == name).collect();
            assert_eq!(found.len(), 1, "{name}");
            found[0]["value"].clone()
        };
        assert_eq!((value("A"), value("HOME")), (json!("2"), json!("/home/work")));
        assert!(value("POD_IP").is_null(), "it comes from the pod's status");
    }

    #[test]
    fn a_set_that_exists_keeps_its_pod_management_policy() {
        let policy = |found| stateful_set(&workspace(json!({})), true, found, &config());
        assert_eq!(policy(None)["spec"]["podManagementPolicy"], "Parallel");
        assert_eq!(policy(Some("OrderedReady"))["spec"]["podManagementPolicy"], "OrderedReady");
    }
}
