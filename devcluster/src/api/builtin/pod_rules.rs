//! Validation of pods and of the pods in templates.

use serde_json::Value;

use crate::api::names;
use crate::api::registry::Resource;
use crate::api::status::{FieldError, FieldErrorKind};

pub fn pod_spec(spec: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let containers = spec["containers"].as_array().map(Vec::as_slice).unwrap_or_default();
    if containers.is_empty() {
        errors.push(FieldError::required(format!("{path}.containers")));
    }
    if !matches!(spec["restartPolicy"].as_str(), Some("Always" | "OnFailure" | "Never")) {
        errors.push(FieldError::new(
            format!("{path}.restartPolicy"),
            FieldErrorKind::NotSupported,
            format!(
                "{}: supported values: \"Always\", \"OnFailure\", \"Never\"",
                spec["restartPolicy"]
            ),
        ));
    }
    let mut volumes: Vec<&str> = Vec::new();
    for (i, volume) in spec["volumes"].as_array().into_iter().flatten().enumerate() {
        let at = format!("{path}.volumes[{i}].name");
        let name = volume["name"].as_str().unwrap_or("");
        check_name(name, &at, errors);
        if volumes.contains(&name) {
            errors.push(FieldError::new(at, FieldErrorKind::Duplicate, format!("{name:?}")));
        }
        volumes.push(name);
    }
    let mut seen: Vec<&str> = Vec::new();
    for list in ["initContainers", "containers"] {
        for (i, container) in spec[list].as_array().into_iter().flatten().enumerate() {
            let at = format!("{path}.{list}[{i}]");
            let name = container["name"].as_str().unwrap_or("");
            check_name(name, &format!("{at}.name"), errors);
            if seen.contains(&name) {
                errors.push(FieldError::new(
                    format!("{at}.name"),
                    FieldErrorKind::Duplicate,
                    format!("{name:?}"),
                ));
            }
            seen.push(name);
            if container["image"].as_str().unwrap_or("").is_empty() {
                errors.push(FieldError::required(format!("{at}.image")));
            }
            let mut paths: Vec<&str> = Vec::new();
            for (j, mount) in container["volumeMounts"].as_array().into_iter().flatten().enumerate()
            {
                let name = mount["name"].as_str().unwrap_or("");
                if !volumes.contains(&name) {
                    errors.push(FieldError::new(
                        format!("{at}.volumeMounts[{j}].name"),
                        FieldErrorKind::NotFound,
                        format!("{name:?}"),
                    ));
                }
                let path = mount["mountPath"].as_str().unwrap_or("");
                let at = format!("{at}.volumeMounts[{j}].mountPath");
                if path.is_empty() {
                    errors.push(FieldError::required(at));
                } else if paths.contains(&path) {
                    errors.push(FieldError::invalid(at, &mount["mountPath"], "must be unique"));
                }
                paths.push(path);
            }
            for (j, port) in container["ports"].as_array().into_iter().flatten().enumerate() {
                port_number(
                    &port["containerPort"],
                    &format!("{at}.ports[{j}].containerPort"),
                    errors,
                );
            }
            for (j, env) in container["env"].as_array().into_iter().flatten().enumerate() {
                if env["name"].as_str().unwrap_or("").is_empty() {
                    errors.push(FieldError::required(format!("{at}.env[{j}].name")));
                }
            }
        }
    }
}

/// An environment variable that is there twice is accepted on every way but server-side apply.
pub fn warnings(resource: &Resource, object: &Value) -> Vec<String> {
    let (spec, path) = match (resource.group.as_str(), resource.plural.as_str()) {
        ("", "pods") => (&object["spec"], "spec"),
        ("apps", _) | ("batch", "jobs") => {
            (&object["spec"]["template"]["spec"], "spec.template.spec")
        }
        _ => return Vec::new(),
    };
    let mut warnings = Vec::new();
    for list in ["initContainers", "containers"] {
        for (i, container) in spec[list].as_array().into_iter().flatten().enumerate() {
            let env = container["env"].as_array().map(Vec::as_slice).unwrap_or_default();
            for (j, variable) in env.iter().enumerate() {
                if env[..j].iter().any(|before| before["name"] == variable["name"]) {
                    warnings.push(format!(
                        "{path}.{list}[{i}].env[{j}]: hides previous definition of {}, which may be dropped when using apply",
                        variable["name"]
                    ));
                }
            }
        }
    }
    warnings
}

fn check_name(name: &str, path: &str, errors: &mut Vec<FieldError>) {
    if name.is_empty() {
        errors.push(FieldError::required(path));
    } else if let Some(why) = names::label_problem(name) {
        errors.push(FieldError::invalid(path, &Value::from(name), why));
    }
}

pub fn port_number(port: &Value, path: &str, errors: &mut Vec<FieldError>) {
    match port {
        Value::Null => errors.push(FieldError::required(path)),
        port if port.as_i64().is_some_and(|n| (1..=65535).contains(&n)) => {}
        port => {
            errors.push(FieldError::invalid(path, port, "must be between 1 and 65535, inclusive"))
        }
    }
}

/// A pod's specification stays as it is, but for images and what only adds time or tolerance.
pub fn pod_update(new: &Value, old: &Value, errors: &mut Vec<FieldError>) {
    let fixed = |spec: &Value| -> Value {
        let mut spec = spec.clone();
        if let Some(map) = spec.as_object_mut() {
            for field in [
                "activeDeadlineSeconds",
                "tolerations",
                "terminationGracePeriodSeconds",
                "schedulingGates",
                "ephemeralContainers",
            ] {
                map.remove(field);
            }
            for list in ["containers", "initContainers"] {
                for container in
                    map.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten()
                {
                    if let Some(container) = container.as_object_mut() {
                        container.remove("image");
                        container.remove("imagePullPolicy");
                    }
                }
            }
        }
        spec
    };
    if fixed(new) != fixed(old) {
        errors.push(FieldError::forbidden(
            "spec",
            "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)",
        ));
    }
}
