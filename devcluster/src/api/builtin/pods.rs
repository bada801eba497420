//! Defaults of pods and pod templates.

use serde_json::{Map, Value, json};

use super::defaults::{child, items_mut, set_default};

pub fn defaults(object: &mut Value, old: Option<&Value>) {
    if let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) {
        spec_defaults(spec);
        set_default(spec, "serviceAccountName", "default");
        let account = spec.get("serviceAccountName").cloned().unwrap_or_default();
        set_default(spec, "serviceAccount", account);
        spec.entry("enableServiceLinks").or_insert(Value::Bool(true));
        set_default(spec, "preemptionPolicy", "PreemptLowerPriority");
        spec.entry("priority").or_insert_with(|| 0.into());
        if old.is_none() {
            // What the admission plugins of a default cluster add.
            let tolerations = spec.entry("tolerations").or_insert_with(|| json!([]));
            if let Some(list) = tolerations.as_array_mut() {
                for key in ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"] {
                    if !list.iter().any(|toleration| toleration["key"] == key) {
                        list.push(json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}));
                    }
                }
            }
        }
    }
    if old.is_none() {
        let class = quality_of_service(&object["spec"]);
        object["status"] = json!({"phase": "Pending", "qosClass": class});
    }
}

pub fn template_defaults(template: &mut Map<String, Value>) {
    if let Some(spec) = template.get_mut("spec").and_then(Value::as_object_mut) {
        spec_defaults(spec);
    }
}

fn spec_defaults(spec: &mut Map<String, Value>) {
    set_default(spec, "restartPolicy", "Always");
    set_default(spec, "dnsPolicy", "ClusterFirst");
    set_default(spec, "schedulerName", "default-scheduler");
    set_default(spec, "terminationGracePeriodSeconds", 30);
    spec.entry("securityContext").or_insert_with(|| json!({}));
    for list in ["containers", "initContainers"] {
        for container in items_mut(spec, list) {
            container_defaults(container);
        }
    }
    for volume in items_mut(spec, "volumes") {
        for (kind, field, mode) in [
            ("secret", "defaultMode", 0o644),
            ("configMap", "defaultMode", 0o644),
            ("downwardAPI", "defaultMode", 0o644),
            ("projected", "defaultMode", 0o644),
        ] {
            if let Some(source) = volume.get_mut(kind).and_then(Value::as_object_mut) {
                set_default(source, field, mode);
            }
        }
        if let Some(path) = volume.get_mut("hostPath").and_then(Value::as_object_mut) {
            path.entry("type").or_insert_with(|| "".into());
        }
        let bare = volume.keys().all(|key| key == "name");
        if bare {
            volume.insert("emptyDir".to_owned(), json!({}));
        }
    }
}

fn container_defaults(container: &mut Map<String, Value>) {
    set_default(container, "terminationMessagePath", "/dev/termination-log");
    set_default(container, "terminationMessagePolicy", "File");
    let image = container.get("image").and_then(Value::as_str).unwrap_or("");
    let tag = image.rsplit('/').next().unwrap_or("").split_once(':').map(|(_, tag)| tag);
    let pull = if image.contains('@') || tag.is_some_and(|tag| tag != "latest") {
        "IfNotPresent"
    } else {
        "Always"
    };
    set_default(container, "imagePullPolicy", pull);
    container.entry("resources").or_insert_with(|| json!({}));
    if let Some(resources) = container.get_mut("resources").and_then(Value::as_object_mut)
        && let Some(limits) = resources.get("limits").and_then(Value::as_object).cloned()
        && let Some(requests) = child(resources, "requests")
    {
        for (name, amount) in limits {
            requests.entry(name).or_insert(amount);
        }
    }
    for port in items_mut(container, "ports") {
        set_default(port, "protocol", "TCP");
    }
    for env in items_mut(container, "env") {
        if let Some(source) = env.get_mut("valueFrom").and_then(Value::as_object_mut)
            && let Some(field) = source.get_mut("fieldRef").and_then(Value::as_object_mut)
        {
            set_default(field, "apiVersion", "v1");
        }
    }
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let Some(probe) = container.get_mut(probe).and_then(Value::as_object_mut) else { continue };
        set_default(probe, "timeoutSeconds", 1);
        set_default(probe, "periodSeconds", 10);
        set_default(probe, "successThreshold", 1);
        set_default(probe, "failureThreshold", 3);
        if let Some(get) = probe.get_mut("httpGet").and_then(Value::as_object_mut) {
            set_default(get, "path", "/");
            set_default(get, "scheme", "HTTP");
        }
    }
}

fn quality_of_service(spec: &Value) -> &'static str {
    let containers = spec["containers"].as_array().map(Vec::as_slice).unwrap_or_default();
    let has = |container: &Value, field: &str| {
        container["resources"][field].as_object().is_some_and(|m| !m.is_empty())
    };
    if !containers.iter().any(|c| has(c, "requests") || has(c, "limits")) {
        return "BestEffort";
    }
    let guaranteed = containers.iter().all(|container| {
        let (requests, limits) =
            (&container["resources"]["requests"], &container["resources"]["limits"]);
        ["cpu", "memory"]
            .iter()
            .all(|what| !limits[*what].is_null() && limits[*what] == requests[*what])
    });
    if guaranteed { "Guaranteed" } else { "Burstable" }
}
