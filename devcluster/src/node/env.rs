//! A container's environment: literal values, the downward API, secrets and config maps, and `$(VAR)` references.

use super::pathmap::PathMap;
use crate::quantity;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{
    ConfigMap, Container, EnvVarSource, Pod, ResourceFieldSelector, Secret,
};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// What the downward API says about a pod's place.
#[derive(Debug, Clone)]
pub struct Place {
    pub pod_ip: IpAddr,
    pub host_ip: IpAddr,
    /// Allocatable `cpu` and `memory` of the node: the limits of a container that has none.
    pub allocatable: BTreeMap<String, String>,
}

/// The objects that a container's environment refers to, as far as they exist.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    pub config_maps: BTreeMap<String, ConfigMap>,
    pub secrets: BTreeMap<String, Secret>,
}

/// Why a container's environment cannot be made: its state is then `CreateContainerConfigError` with this message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EnvError {
    #[error("{kind} \"{name}\" not found")]
    Missing { kind: &'static str, name: String },
    #[error("couldn't find key {key} in {kind} {namespace}/{name}")]
    MissingKey { kind: &'static str, namespace: String, name: String, key: String },
    #[error("environment variable {name}: {what} is not a field of the downward API")]
    Field { name: String, what: String },
}

/// Names of the config maps and secrets that the container's environment refers to.
pub fn references(container: &Container) -> (BTreeSet<String>, BTreeSet<String>) {
    let mut config_maps = BTreeSet::new();
    let mut secrets = BTreeSet::new();
    for from in container.env_from.iter().flatten() {
        config_maps.extend(from.config_map_ref.as_ref().map(|r| r.name.clone()));
        secrets.extend(from.secret_ref.as_ref().map(|r| r.name.clone()));
    }
    for source in container.env.iter().flatten().filter_map(|var| var.value_from.as_ref()) {
        config_maps.extend(source.config_map_key_ref.as_ref().map(|r| r.name.clone()));
        secrets.extend(source.secret_key_ref.as_ref().map(|r| r.name.clone()));
    }
    (config_maps, secrets)
}

/// The environment of `container`: `base`, then `envFrom`, then `env`, later ones winning. Mount paths are replaced in
/// each value before its references are expanded, so that nothing is replaced twice.
pub fn resolve(
    pod: &Pod,
    container: &Container,
    place: &Place,
    sources: &Sources,
    paths: &PathMap,
    base: BTreeMap<String, String>,
) -> Result<BTreeMap<String, String>, EnvError> {
    let mut result = base;
    for from in container.env_from.iter().flatten() {
        let prefix = from.prefix.as_deref().unwrap_or_default();
        let mut add = |name: &str, value: String| {
            let name = format!("{prefix}{name}");
            if is_name(&name) {
                result.insert(name, paths.apply(&value));
            }
        };
        if let Some(reference) = &from.config_map_ref {
            match sources.config_maps.get(&reference.name) {
                Some(map) => {
                    map.data.iter().flatten().for_each(|(name, value)| add(name, value.clone()))
                }
                None if reference.optional == Some(true) => {}
                None => {
                    return Err(EnvError::Missing {
                        kind: "configmap",
                        name: reference.name.clone(),
                    });
                }
            }
        }
        if let Some(reference) = &from.secret_ref {
            match sources.secrets.get(&reference.name) {
                Some(secret) => {
                    secret.data.iter().flatten().for_each(|(name, value)| add(name, text(value)))
                }
                None if reference.optional == Some(true) => {}
                None => {
                    return Err(EnvError::Missing { kind: "secret", name: reference.name.clone() });
                }
            }
        }
    }
    // References in `env` see the variables of `env` before them, and not those of `envFrom`.
    let mut earlier: BTreeMap<String, String> = BTreeMap::new();
    for var in container.env.iter().flatten() {
        let value = match (&var.value, &var.value_from) {
            (Some(value), _) if !value.is_empty() => {
                expand(&paths.apply(value), |name| earlier.get(name).cloned())
            }
            (_, Some(source)) => {
                match from_source(pod, container, place, sources, &var.name, source)? {
                    Some(value) => paths.apply(&value),
                    None => continue,
                }
            }
            _ => String::new(),
        };
        earlier.insert(var.name.clone(), value.clone());
        result.insert(var.name.clone(), value);
    }
    Ok(result)
}

/// Names an environment can hold.
fn is_name(name: &str) -> bool {
    !name.is_empty() && !name.contains(['=', '\0'])
}

fn text(value: &ByteString) -> String {
    String::from_utf8_lossy(&value.0).into_owned()
}

/// `None`: the source is optional and not there.
fn from_source(
    pod: &Pod,
    container: &Container,
    place: &Place,
    sources: &Sources,
    name: &str,
    source: &EnvVarSource,
) -> Result<Option<String>, EnvError> {
    let namespace = || pod.metadata.namespace.clone().unwrap_or_default();
    if let Some(field) = &source.field_ref {
        let unknown = || EnvError::Field { name: name.to_owned(), what: field.field_path.clone() };
        return field_value(pod, place, &field.field_path).map(Some).ok_or_else(unknown);
    }
    if let Some(selector) = &source.resource_field_ref {
        let unknown = || EnvError::Field { name: name.to_owned(), what: selector.resource.clone() };
        return resource_value(pod, container, place, selector).map(Some).ok_or_else(unknown);
    }
    if let Some(selector) = &source.config_map_key_ref {
        let optional = selector.optional == Some(true);
        return match sources.config_maps.get(&selector.name) {
            None if optional => Ok(None),
            None => Err(EnvError::Missing { kind: "configmap", name: selector.name.clone() }),
            Some(map) => match map.data.as_ref().and_then(|data| data.get(&selector.key)) {
                Some(value) => Ok(Some(value.clone())),
                None if optional => Ok(None),
                None => Err(EnvError::MissingKey {
                    kind: "ConfigMap",
                    namespace: namespace(),
                    name: selector.name.clone(),
                    key: selector.key.clone(),
                }),
            },
        };
    }
    if let Some(selector) = &source.secret_key_ref {
        let optional = selector.optional == Some(true);
        return match sources.secrets.get(&selector.name) {
            None if optional => Ok(None),
            None => Err(EnvError::Missing { kind: "secret", name: selector.name.clone() }),
            Some(secret) => match secret.data.as_ref().and_then(|data| data.get(&selector.key)) {
                Some(value) => Ok(Some(text(value))),
                None if optional => Ok(None),
                None => Err(EnvError::MissingKey {
                    kind: "Secret",
                    namespace: namespace(),
                    name: selector.name.clone(),
                    key: selector.key.clone(),
                }),
            },
        };
    }
    Ok(Some(String::new()))
}

/// A field of the downward API; `None` if there is no such field. A label or annotation that is not set is empty.
pub fn field_value(pod: &Pod, place: &Place, path: &str) -> Option<String> {
    let meta = &pod.metadata;
    let spec = pod.spec.as_ref();
    if let Some((map, key)) = path.strip_suffix("']").and_then(|path| path.split_once("['")) {
        let entries = match map {
            "metadata.labels" => meta.labels.as_ref(),
            "metadata.annotations" => meta.annotations.as_ref(),
            _ => return None,
        };
        return Some(entries.and_then(|entries| entries.get(key)).cloned().unwrap_or_default());
    }
    let lines = |entries: Option<&BTreeMap<String, String>>| {
        let lines: Vec<String> =
            entries.into_iter().flatten().map(|(k, v)| format!("{k}={v:?}")).collect();
        lines.join("\n")
    };
    Some(match path {
        "metadata.name" => meta.name.clone().unwrap_or_default(),
        "metadata.namespace" => meta.namespace.clone().unwrap_or_default(),
        "metadata.uid" => meta.uid.clone().unwrap_or_default(),
        "metadata.labels" => lines(meta.labels.as_ref()),
        "metadata.annotations" => lines(meta.annotations.as_ref()),
        "spec.nodeName" => spec.and_then(|s| s.node_name.clone()).unwrap_or_default(),
        "spec.serviceAccountName" => {
            spec.and_then(|s| s.service_account_name.clone()).unwrap_or_default()
        }
        "status.podIP" | "status.podIPs" => place.pod_ip.to_string(),
        "status.hostIP" | "status.hostIPs" => place.host_ip.to_string(),
        _ => return None,
    })
}

/// A container's request or limit, in units of the divisor; `None` if there is no such resource.
pub fn resource_value(
    pod: &Pod,
    container: &Container,
    place: &Place,
    selector: &ResourceFieldSelector,
) -> Option<String> {
    let container = match &selector.container_name {
        None => container,
        Some(name) => pod.spec.as_ref()?.containers.iter().find(|c| &c.name == name)?,
    };
    let (kind, resource) = selector.resource.split_once('.')?;
    let resources = container.resources.as_ref();
    let limit = || resources.and_then(|r| r.limits.as_ref()?.get(resource)).map(|q| q.0.as_str());
    let value = match kind {
        "limits" => limit().or_else(|| place.allocatable.get(resource).map(String::as_str)),
        "requests" => resources
            .and_then(|r| r.requests.as_ref()?.get(resource))
            .map(|q| q.0.as_str())
            .or_else(limit)
            .or(Some("0")),
        _ => None,
    };
    quantity::in_units(value.unwrap_or("0"), selector.divisor.as_ref().map(|q| q.0.as_str()))
}

/// `$(NAME)` becomes the value of NAME, or stays as it is when there is none; `$$` is one `$`, so `$$(NAME)` is the
/// text `$(NAME)`. As in Kubernetes (`third_party/forked/golang/expansion`).
pub fn expand(input: &str, value: impl Fn(&str) -> Option<String>) -> String {
    let mut out = String::with_capacity(input.len());
    let mut rest = input;
    while let Some((before, after)) = rest.split_once('$') {
        out.push_str(before);
        rest = if let Some(after) = after.strip_prefix('$') {
            out.push('$');
            after
        } else if let Some((name, tail)) =
            after.strip_prefix('(').and_then(|open| open.split_once(')'))
        {
            match value(name) {
                Some(value) => out.push_str(&value),
                None => {
                    out.push_str("$(");
                    out.push_str(name);
                    out.push(')');
                }
            }
            tail
        } else {
            out.push('$');
            after
        };
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
#[path = "env_tests.rs"]
mod tests;
