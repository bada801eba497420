//! Defaults of built-in types (source: the API reference of Kubernetes 1.33).

use base64::Engine as _;
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::pods;
use crate::api::meta;
use crate::api::registry::Resource;
use crate::api::rest::App;

/// Sets a field unless it has a value.
pub(super) fn set_default(map: &mut Map<String, Value>, field: &str, value: impl Into<Value>) {
    let missing = map.get(field).is_none_or(|v| v.is_null() || v.as_str() == Some(""));
    if missing {
        map.insert(field.to_owned(), value.into());
    }
}

/// Runs `f` on a child object, if there is one.
pub(super) fn within(value: &mut Value, field: &str, f: impl FnOnce(&mut Map<String, Value>)) {
    if let Some(map) = value.get_mut(field).and_then(Value::as_object_mut) {
        f(map);
    }
}

pub(super) fn items_mut<'a>(
    map: &'a mut Map<String, Value>,
    field: &str,
) -> impl Iterator<Item = &'a mut Map<String, Value>> {
    map.get_mut(field)
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
        .filter_map(Value::as_object_mut)
}

/// The child map of a map, made if it is missing.
pub(super) fn child<'a>(
    map: &'a mut Map<String, Value>,
    field: &str,
) -> Option<&'a mut Map<String, Value>> {
    let value = map.entry(field).or_insert_with(|| json!({}));
    if value.is_null() {
        *value = json!({});
    }
    value.as_object_mut()
}

pub fn defaults(app: &App, resource: &Resource, object: &mut Value, old: Option<&Value>) {
    match (resource.group.as_str(), resource.plural.as_str()) {
        ("", "pods") => pods::defaults(object, old),
        ("", "podtemplates") => within(object, "template", pods::template_defaults),
        ("", "namespaces") => namespace(object, old),
        ("", "nodes") => node(object, old),
        ("", "services") => service(app, object, old),
        ("", "secrets") => secret(object),
        ("", "persistentvolumes") => volume(object, old),
        ("", "persistentvolumeclaims") => claim(app, object, old),
        ("", "events") => event(object),
        ("apps", "deployments") => deployment(object),
        ("apps", "statefulsets") => stateful_set(object, old),
        ("apps", "replicasets") => workload(object, |spec| set_default(spec, "replicas", 1)),
        ("batch", "jobs") => job(object, old),
        ("batch", "cronjobs") => cron_job(object),
        ("storage.k8s.io", "storageclasses") => {
            if let Some(map) = object.as_object_mut() {
                set_default(map, "reclaimPolicy", "Delete");
                set_default(map, "volumeBindingMode", "Immediate");
            }
        }
        ("discovery.k8s.io", "endpointslices") => {
            if let Some(map) = object.as_object_mut() {
                for port in items_mut(map, "ports") {
                    set_default(port, "protocol", "TCP");
                    port.entry("name").or_insert_with(|| "".into());
                }
            }
        }
        ("apiextensions.k8s.io", _) => crate::api::crd::defaults(object, old, Timestamp::now()),
        _ => {}
    }
}

fn namespace(object: &mut Value, old: Option<&Value>) {
    let name = meta::name(object).to_owned();
    if old.is_none() {
        let spec = meta::map_mut(object, "spec");
        spec.insert("finalizers".to_owned(), json!(["kubernetes"]));
        object["status"] = json!({"phase": "Active"});
    }
    if let Some(labels) = child(meta::metadata_mut(object), "labels") {
        labels.insert("kubernetes.io/metadata.name".to_owned(), name.into());
    }
}

fn node(object: &mut Value, old: Option<&Value>) {
    if object.get("spec").is_none_or(Value::is_null) {
        object["spec"] = json!({});
    }
    if old.is_none() && object.get("status").is_none_or(Value::is_null) {
        object["status"] = json!({});
    }
}

fn service(app: &App, object: &mut Value, old: Option<&Value>) {
    let used = || -> Vec<String> {
        let services = app.store.all("/services", "");
        services.iter().filter_map(|s| s["spec"]["clusterIP"].as_str().map(str::to_owned)).collect()
    };
    within(object, "spec", |spec| {
        set_default(spec, "type", "ClusterIP");
        set_default(spec, "sessionAffinity", "None");
        for port in items_mut(spec, "ports") {
            set_default(port, "protocol", "TCP");
            if let Some(number) = port.get("port").cloned() {
                set_default(port, "targetPort", number);
            }
        }
        if spec.get("type").is_some_and(|kind| kind == "ExternalName") {
            return;
        }
        set_default(spec, "internalTrafficPolicy", "Cluster");
        set_default(spec, "ipFamilyPolicy", "SingleStack");
        spec.entry("ipFamilies").or_insert_with(|| json!(["IPv4"]));
        let kept =
            old.and_then(|old| old["spec"]["clusterIP"].as_str()).filter(|ip| !ip.is_empty());
        if spec.get("clusterIP").and_then(Value::as_str).is_none_or(str::is_empty) {
            let address = kept.map(str::to_owned).or_else(|| free_address(&used()));
            if let Some(address) = address {
                spec.insert("clusterIP".to_owned(), address.into());
            }
        }
        if let Some(address) = spec.get("clusterIP").cloned() {
            spec.entry("clusterIPs").or_insert_with(|| json!([address]));
        }
    });
    if old.is_none() {
        object["status"] = json!({"loadBalancer": {}});
    }
}

/// A service address that nobody has, from 10.96.0.0/16.
fn free_address(used: &[String]) -> Option<String> {
    use rand::Rng as _;
    let mut random = rand::rng();
    (0..1000)
        .map(|_| {
            format!("10.96.{}.{}", random.random_range(0..=255u8), random.random_range(10..=250u8))
        })
        .find(|address| !used.contains(address))
}

fn secret(object: &mut Value) {
    let Some(map) = object.as_object_mut() else { return };
    set_default(map, "type", "Opaque");
    let Some(Value::Object(plain)) = map.remove("stringData") else { return };
    let Some(data) = child(map, "data") else { return };
    for (key, value) in plain {
        let text = value.as_str().unwrap_or_default();
        data.insert(key, base64::engine::general_purpose::STANDARD.encode(text).into());
    }
}

fn volume(object: &mut Value, old: Option<&Value>) {
    within(object, "spec", |spec| {
        set_default(spec, "persistentVolumeReclaimPolicy", "Retain");
        set_default(spec, "volumeMode", "Filesystem");
        if let Some(path) = spec.get_mut("hostPath").and_then(Value::as_object_mut) {
            path.entry("type").or_insert_with(|| "".into());
        }
    });
    if old.is_none() {
        object["status"] = json!({"phase": "Pending"});
    }
}

fn claim(app: &App, object: &mut Value, old: Option<&Value>) {
    within(object, "spec", |spec| {
        set_default(spec, "volumeMode", "Filesystem");
        if old.is_none()
            && !spec.contains_key("storageClassName")
            && let Some(class) = default_class(app)
        {
            spec.insert("storageClassName".to_owned(), class.into());
        }
    });
    if old.is_none() {
        object["status"] = json!({"phase": "Pending"});
    }
}

fn default_class(app: &App) -> Option<String> {
    let classes = app.store.all("storage.k8s.io/storageclasses", "");
    let default = |class: &Value| {
        class["metadata"]["annotations"]["storageclass.kubernetes.io/is-default-class"] == "true"
    };
    classes.iter().rev().find(|class| default(class)).map(|class| meta::name(class).to_owned())
}

fn event(object: &mut Value) {
    if let Some(map) = object.as_object_mut() {
        set_default(map, "type", "Normal");
        // Clients written in Go have these two as structs.
        for field in ["involvedObject", "source"] {
            child(map, field);
        }
    }
}

/// Defaults of what has a selector and a pod template.
fn workload(object: &mut Value, f: impl FnOnce(&mut Map<String, Value>)) {
    within(object, "spec", |spec| {
        if let Some(template) = spec.get_mut("template").and_then(Value::as_object_mut) {
            pods::template_defaults(template);
        }
        f(spec);
    });
    if object.get("status").is_none_or(Value::is_null) {
        object["status"] = json!({});
    }
}

fn deployment(object: &mut Value) {
    workload(object, |spec| {
        set_default(spec, "replicas", 1);
        set_default(spec, "revisionHistoryLimit", 10);
        set_default(spec, "progressDeadlineSeconds", 600);
        if let Some(strategy) = child(spec, "strategy") {
            set_default(strategy, "type", "RollingUpdate");
            if strategy.get("type").is_some_and(|kind| kind == "RollingUpdate")
                && let Some(rolling) = child(strategy, "rollingUpdate")
            {
                set_default(rolling, "maxUnavailable", "25%");
                set_default(rolling, "maxSurge", "25%");
            }
        }
    });
}

fn stateful_set(object: &mut Value, old: Option<&Value>) {
    workload(object, |spec| {
        set_default(spec, "replicas", 1);
        set_default(spec, "podManagementPolicy", "OrderedReady");
        set_default(spec, "revisionHistoryLimit", 10);
        if let Some(retention) = child(spec, "persistentVolumeClaimRetentionPolicy") {
            set_default(retention, "whenDeleted", "Retain");
            set_default(retention, "whenScaled", "Retain");
        }
        if let Some(strategy) = child(spec, "updateStrategy") {
            set_default(strategy, "type", "RollingUpdate");
            if strategy.get("type").is_some_and(|kind| kind == "RollingUpdate")
                && let Some(rolling) = child(strategy, "rollingUpdate")
            {
                set_default(rolling, "partition", 0);
            }
        }
        for claim in items_mut(spec, "volumeClaimTemplates") {
            set_default(claim, "apiVersion", "v1");
            set_default(claim, "kind", "PersistentVolumeClaim");
            if let Some(spec) = claim.get_mut("spec").and_then(Value::as_object_mut) {
                set_default(spec, "volumeMode", "Filesystem");
            }
            if let Some(status) = child(claim, "status") {
                set_default(status, "phase", "Pending");
            }
        }
    });
    if old.is_none() && object["status"].get("replicas").is_none() {
        object["status"] = json!({"replicas": 0});
    }
}

fn job(object: &mut Value, old: Option<&Value>) {
    let uid = meta::text(object, "uid").to_owned();
    let name = meta::name(object).to_owned();
    workload(object, |spec| {
        let parallelism_only =
            spec.contains_key("parallelism") && !spec.contains_key("completions");
        if !parallelism_only {
            set_default(spec, "completions", 1);
        }
        set_default(spec, "parallelism", 1);
        set_default(spec, "backoffLimit", 6);
        set_default(spec, "completionMode", "NonIndexed");
        spec.entry("suspend").or_insert(Value::Bool(false));
        spec.entry("manualSelector").or_insert(Value::Bool(false));
        set_default(spec, "podReplacementPolicy", "TerminatingOrFailed");
        if old.is_some() || spec.get("manualSelector") == Some(&Value::Bool(true)) || uid.is_empty()
        {
            return;
        }
        // Jobs select their pods by labels that nobody else can have.
        spec.insert(
            "selector".to_owned(),
            json!({"matchLabels": {"batch.kubernetes.io/controller-uid": uid}}),
        );
        if let Some(template) = child(spec, "template")
            && let Some(metadata) = child(template, "metadata")
            && let Some(labels) = child(metadata, "labels")
        {
            for (key, value) in [
                ("batch.kubernetes.io/controller-uid", &uid),
                ("controller-uid", &uid),
                ("batch.kubernetes.io/job-name", &name),
                ("job-name", &name),
            ] {
                labels.insert(key.to_owned(), value.clone().into());
            }
        }
    });
    if object["spec"]["manualSelector"] == false {
        meta::map_mut(object, "spec").remove("manualSelector");
    }
}

fn cron_job(object: &mut Value) {
    within(object, "spec", |spec| {
        set_default(spec, "concurrencyPolicy", "Allow");
        spec.entry("suspend").or_insert(Value::Bool(false));
        set_default(spec, "successfulJobsHistoryLimit", 3);
        set_default(spec, "failedJobsHistoryLimit", 1);
        if let Some(template) = spec.get_mut("jobTemplate")
            && let Some(spec) = template.get_mut("spec").and_then(Value::as_object_mut)
            && let Some(template) = spec.get_mut("template").and_then(Value::as_object_mut)
        {
            pods::template_defaults(template);
        }
    });
    if object.get("status").is_none_or(Value::is_null) {
        object["status"] = json!({});
    }
}
