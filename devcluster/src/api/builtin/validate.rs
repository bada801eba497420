//! Validation of built-in types: what would be dangerous to accept is refused.

use serde_json::{Value, json};

use super::pod_rules::{pod_spec, pod_update, port_number};
use crate::api::names;
use crate::api::registry::Resource;
use crate::api::status::{FieldError, FieldErrorKind};
use crate::quantity::thousandths;

pub fn validate(resource: &Resource, object: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let spec = &object["spec"];
    match (resource.group.as_str(), resource.plural.as_str()) {
        ("", "pods") => {
            pod_spec(spec, "spec", &mut errors);
            if let Some(old) = old {
                pod_update(spec, &old["spec"], &mut errors);
            }
        }
        ("", "services") => service(spec, old, &mut errors),
        ("", "secrets") => secret(object, old, &mut errors),
        ("", "configmaps") => config_map(object, old, &mut errors),
        ("", "persistentvolumeclaims") => claim(spec, old, &mut errors),
        ("", "persistentvolumes") => {
            if spec["capacity"]["storage"].is_null() {
                errors.push(FieldError::required("spec.capacity"));
            }
            if spec["accessModes"].as_array().is_none_or(Vec::is_empty) {
                errors.push(FieldError::required("spec.accessModes"));
            }
        }
        ("coordination.k8s.io", "leases") => lease(spec, &mut errors),
        ("apps", "statefulsets") => {
            workload(&with_claim_volumes(spec), &mut errors);
            if let Some(old) = old {
                const MUTABLE: [&str; 7] = [
                    "replicas",
                    "ordinals",
                    "template",
                    "updateStrategy",
                    "persistentVolumeClaimRetentionPolicy",
                    "minReadySeconds",
                    "revisionHistoryLimit",
                ];
                let fixed = |spec: &Value| -> Vec<(String, Value)> {
                    let map = spec.as_object().into_iter().flatten();
                    map.filter(|(key, _)| !MUTABLE.contains(&key.as_str()))
                        .map(|(key, value)| (key.clone(), value.clone()))
                        .collect()
                };
                if fixed(spec) != fixed(&old["spec"]) {
                    errors.push(FieldError::forbidden(
                        "spec",
                        "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden",
                    ));
                }
            }
        }
        ("apps", "deployments" | "replicasets") => {
            workload(spec, &mut errors);
            if let Some(old) = old {
                immutable(
                    &spec["selector"],
                    &old["spec"]["selector"],
                    "spec.selector",
                    &mut errors,
                );
            }
        }
        ("batch", "jobs") => {
            pod_spec(&spec["template"]["spec"], "spec.template.spec", &mut errors);
            if !matches!(
                spec["template"]["spec"]["restartPolicy"].as_str(),
                Some("Never" | "OnFailure")
            ) {
                errors.push(FieldError::new(
                    "spec.template.spec.restartPolicy",
                    FieldErrorKind::NotSupported,
                    format!(
                        "{}: supported values: \"OnFailure\", \"Never\"",
                        spec["template"]["spec"]["restartPolicy"]
                    ),
                ));
            }
            if let Some(old) = old {
                for field in ["template", "selector", "completionMode"] {
                    if old["spec"]["suspend"] == true && field == "template" {
                        continue;
                    }
                    immutable(
                        &spec[field],
                        &old["spec"][field],
                        &format!("spec.{field}"),
                        &mut errors,
                    );
                }
            }
        }
        ("batch", "cronjobs") => {
            if spec["schedule"].as_str().unwrap_or("").is_empty() {
                errors.push(FieldError::required("spec.schedule"));
            }
            let template = &spec["jobTemplate"]["spec"]["template"]["spec"];
            pod_spec(template, "spec.jobTemplate.spec.template.spec", &mut errors);
        }
        ("discovery.k8s.io", "endpointslices") => endpoint_slice(object, old, &mut errors),
        ("", "nodes") => {
            if let Some(old) = old
                && !old["spec"]["podCIDR"].is_null()
            {
                immutable(&spec["podCIDR"], &old["spec"]["podCIDR"], "spec.podCIDR", &mut errors);
            }
        }
        ("storage.k8s.io", "storageclasses")
            if object["provisioner"].as_str().unwrap_or("").is_empty() =>
        {
            errors.push(FieldError::required("provisioner"));
        }
        _ => {}
    }
    errors
}

/// A StatefulSet's spec with a volume for each claim template, as its pods will have it.
fn with_claim_volumes(spec: &Value) -> Value {
    let mut spec = spec.clone();
    let claims = spec["volumeClaimTemplates"].as_array().cloned().unwrap_or_default();
    let names = claims.into_iter().filter_map(|claim| claim.pointer("/metadata/name").cloned());
    if let Some(pod) = spec.pointer_mut("/template/spec").and_then(Value::as_object_mut)
        && let Some(volumes) = pod.entry("volumes").or_insert_with(|| json!([])).as_array_mut()
    {
        for name in names {
            if volumes.iter().all(|volume| volume["name"] != name) {
                volumes.push(json!({"name": name}));
            }
        }
    }
    spec
}

fn immutable(new: &Value, old: &Value, path: &str, errors: &mut Vec<FieldError>) {
    if new != old {
        errors.push(FieldError::invalid(path, new, "field is immutable"));
    }
}

fn workload(spec: &Value, errors: &mut Vec<FieldError>) {
    if spec["replicas"].as_i64().is_some_and(|replicas| replicas < 0) {
        errors.push(FieldError::invalid(
            "spec.replicas",
            &spec["replicas"],
            "must be greater than or equal to 0",
        ));
    }
    let selector = &spec["selector"];
    let labels = &spec["template"]["metadata"]["labels"];
    let wanted = selector["matchLabels"].as_object();
    let expressions = selector["matchExpressions"].as_array().is_some_and(|list| !list.is_empty());
    if wanted.is_none_or(serde_json::Map::is_empty) && !expressions {
        errors.push(FieldError::required("spec.selector"));
    } else if wanted.into_iter().flatten().any(|(key, value)| labels.get(key) != Some(value)) {
        errors.push(FieldError::invalid(
            "spec.template.metadata.labels",
            labels,
            "`selector` does not match template `labels`",
        ));
    }
    errors.extend(names::labels_problems(labels, "spec.template.labels"));
    pod_spec(&spec["template"]["spec"], "spec.template.spec", errors);
    if spec["template"]["spec"]["restartPolicy"].as_str().is_some_and(|policy| policy != "Always") {
        errors.push(FieldError::new(
            "spec.template.spec.restartPolicy",
            FieldErrorKind::NotSupported,
            format!("{}: supported values: \"Always\"", spec["template"]["spec"]["restartPolicy"]),
        ));
    }
}

fn lease(spec: &Value, errors: &mut Vec<FieldError>) {
    let mut whole = |field: &str, least: i64, must: &str| {
        let path = format!("spec.{field}");
        if spec[field].as_i64().is_some_and(|is| is < least) {
            errors.push(FieldError::invalid(&path, &spec[field], must));
        }
    };
    whole("leaseDurationSeconds", 1, "must be greater than 0");
    whole("leaseTransitions", 0, "must be greater than or equal to 0");
    let strategy = &spec["strategy"];
    if !spec["preferredHolder"].is_null() && strategy.is_null() {
        errors.push(FieldError::forbidden(
            "spec.preferredHolder",
            "may only be specified when `strategy` is defined",
        ));
    }
}

fn service(spec: &Value, old: Option<&Value>, errors: &mut Vec<FieldError>) {
    let kind = spec["type"].as_str().unwrap_or("");
    if !matches!(kind, "ClusterIP" | "NodePort" | "LoadBalancer" | "ExternalName") {
        errors.push(FieldError::new(
            "spec.type",
            FieldErrorKind::NotSupported,
            format!("{kind:?}: supported values: \"ClusterIP\", \"ExternalName\", \"LoadBalancer\", \"NodePort\""),
        ));
    }
    let headless = spec["clusterIP"] == "None";
    let ports = spec["ports"].as_array().map(Vec::as_slice).unwrap_or_default();
    if ports.is_empty() && !headless && kind != "ExternalName" {
        errors.push(FieldError::required("spec.ports"));
    }
    let mut seen: Vec<(&str, &Value, &Value)> = Vec::new();
    for (i, port) in ports.iter().enumerate() {
        let at = format!("spec.ports[{i}]");
        port_number(&port["port"], &format!("{at}.port"), errors);
        let name = port["name"].as_str().unwrap_or("");
        if ports.len() > 1 && name.is_empty() {
            errors.push(FieldError::required(format!("{at}.name")));
        }
        if seen.iter().any(|(known, number, protocol)| {
            (*known == name && !name.is_empty())
                || (*number == &port["port"] && *protocol == &port["protocol"])
        }) {
            errors.push(FieldError::new(at, FieldErrorKind::Duplicate, port.to_string()));
        }
        seen.push((name, &port["port"], &port["protocol"]));
    }
    if let Some(old) = old {
        let before = old["spec"]["clusterIP"].as_str().unwrap_or("");
        let after = spec["clusterIP"].as_str().unwrap_or("");
        if !before.is_empty()
            && before != after
            && kind != "ExternalName"
            && old["spec"]["type"] != "ExternalName"
        {
            errors.push(FieldError::invalid(
                "spec.clusterIPs[0]",
                &spec["clusterIP"],
                "may not change once set",
            ));
        }
    }
}

fn data_keys(data: &Value, path: &str, errors: &mut Vec<FieldError>) -> usize {
    let mut size = 0;
    for (key, value) in data.as_object().into_iter().flatten() {
        size += value.as_str().map_or(0, str::len);
        let ok = !key.is_empty()
            && key.len() <= 253
            && key != "."
            && key != ".."
            && key.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'));
        if !ok {
            errors.push(FieldError::invalid(
                format!("{path}[{key}]"),
                &Value::from(key.as_str()),
                "a valid config key must consist of alphanumeric characters, '-', '_' or '.'",
            ));
        }
    }
    size
}

fn secret(object: &Value, old: Option<&Value>, errors: &mut Vec<FieldError>) {
    use base64::Engine as _;
    let size = data_keys(&object["data"], "data", errors);
    for (key, value) in object["data"].as_object().into_iter().flatten() {
        let ok = value
            .as_str()
            .is_some_and(|text| base64::engine::general_purpose::STANDARD.decode(text).is_ok());
        if !ok {
            // The value itself stays out of the message.
            errors.push(FieldError::new(
                format!("data[{key}]"),
                FieldErrorKind::Invalid,
                "must be standard base64",
            ));
        }
    }
    if size > 1_500_000 {
        errors.push(FieldError::new(
            "data",
            FieldErrorKind::TooLong,
            "may not be more than 1048576 bytes",
        ));
    }
    if let Some(old) = old {
        immutable(&object["type"], &old["type"], "type", errors);
        frozen(object, old, &["data"], errors);
    }
}

fn config_map(object: &Value, old: Option<&Value>, errors: &mut Vec<FieldError>) {
    let size = data_keys(&object["data"], "data", errors)
        + data_keys(&object["binaryData"], "binaryData", errors);
    if size > 1_500_000 {
        errors.push(FieldError::new(
            "",
            FieldErrorKind::TooLong,
            "may not be more than 1048576 bytes",
        ));
    }
    if let Some(old) = old {
        frozen(object, old, &["data", "binaryData"], errors);
    }
}

/// `immutable: true` is for good.
fn frozen(new: &Value, old: &Value, fields: &[&str], errors: &mut Vec<FieldError>) {
    if old["immutable"] != true {
        return;
    }
    if new["immutable"] != true {
        errors
            .push(FieldError::forbidden("immutable", "field is immutable when `immutable` is set"));
    }
    for field in fields {
        if new[*field] != old[*field] {
            errors
                .push(FieldError::forbidden(*field, "field is immutable when `immutable` is set"));
        }
    }
}

fn claim(spec: &Value, old: Option<&Value>, errors: &mut Vec<FieldError>) {
    if spec["accessModes"].as_array().is_none_or(Vec::is_empty) {
        errors.push(FieldError::required("spec.accessModes"));
    }
    if spec["resources"]["requests"]["storage"].is_null() {
        errors.push(FieldError::required("spec.resources[storage]"));
    }
    let Some(old) = old else { return };
    let is_bound = old["status"]["phase"] == "Bound";
    let fixed = |spec: &Value| -> Value {
        let mut spec = spec.clone();
        if is_bound && let Some(map) = spec.as_object_mut() {
            map.remove("resources");
            map.remove("volumeAttributesClassName");
        } else if let Some(storage) = requested(&spec) {
            // `1024Mi` is `1Gi`.
            spec["resources"]["requests"]["storage"] = storage.to_string().into();
        }
        spec
    };
    let (mut before, after) = (fixed(&old["spec"]), fixed(spec));
    // Binding sets the volume's name, once; a class may be given late.
    for field in ["volumeName", "storageClassName"] {
        if before[field].is_null()
            && let (Some(map), Some(value)) = (before.as_object_mut(), after.get(field))
        {
            map.insert(field.to_owned(), value.clone());
        }
    }
    if before != after {
        errors.push(FieldError::forbidden(
            "spec",
            "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims",
        ));
        return;
    }
    let (Some(wanted), Some(asked)) = (requested(spec), requested(&old["spec"])) else { return };
    let has = old["status"]["capacity"]["storage"].as_str().and_then(thousandths).unwrap_or(asked);
    if is_bound && wanted < asked && wanted < has {
        errors.push(FieldError::forbidden(
            "spec.resources.requests.storage",
            "field can not be less than status.capacity",
        ));
    }
}

/// The size that a claim asks for, in thousandths of a byte.
pub fn requested(claim_spec: &Value) -> Option<i128> {
    thousandths(claim_spec["resources"]["requests"]["storage"].as_str()?)
}

fn endpoint_slice(object: &Value, old: Option<&Value>, errors: &mut Vec<FieldError>) {
    let kind = object["addressType"].as_str().unwrap_or("");
    if kind.is_empty() {
        errors.push(FieldError::required("addressType"));
    } else if !matches!(kind, "IPv4" | "IPv6" | "FQDN") {
        errors.push(FieldError::new(
            "addressType",
            FieldErrorKind::NotSupported,
            format!("{kind:?}: supported values: \"FQDN\", \"IPv4\", \"IPv6\""),
        ));
    }
    if let Some(old) = old {
        immutable(&object["addressType"], &old["addressType"], "addressType", errors);
    }
    let endpoints = object["endpoints"].as_array().map(Vec::as_slice).unwrap_or_default();
    if endpoints.len() > 1000 {
        errors.push(FieldError::new(
            "endpoints",
            FieldErrorKind::TooMany,
            "must have at most 1000 items",
        ));
    }
    for (i, endpoint) in endpoints.iter().enumerate() {
        let addresses = endpoint["addresses"].as_array().map(Vec::as_slice).unwrap_or_default();
        if addresses.is_empty() {
            errors.push(FieldError::new(
                format!("endpoints[{i}].addresses"),
                FieldErrorKind::Required,
                "must contain at least 1 address",
            ));
        }
        for (j, address) in addresses.iter().enumerate() {
            let text = address.as_str().unwrap_or("");
            let ok = match kind {
                "IPv4" => text.parse::<std::net::Ipv4Addr>().is_ok(),
                "IPv6" => text.parse::<std::net::Ipv6Addr>().is_ok(),
                _ => !text.is_empty(),
            };
            if !ok {
                errors.push(FieldError::invalid(
                    format!("endpoints[{i}].addresses[{j}]"),
                    address,
                    format!("must be a valid {kind} address"),
                ));
            }
        }
    }
}
