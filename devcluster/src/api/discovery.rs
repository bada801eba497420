//! What is served, in the words of discovery: `/version`, `/api`, `/apis`, and health.

use std::sync::Arc;

use axum::body::Body;
use http::{HeaderValue, Method, Response, StatusCode, header, request::Parts};
use serde_json::{Value, json};

use super::registry::{Registry, Resource, group_version};
use super::rest::App;
use super::status::ApiError;

/// The version of the API that is spoken.
const MINOR: &str = "33";

type Answer = Result<Response<Body>, ApiError>;

/// Answers paths that are not resources; `None` for the others.
pub fn answer(app: &Arc<App>, registry: &Registry, parts: &Parts) -> Option<Answer> {
    let path = parts.uri.path();
    let segments: Vec<&str> = path.trim_matches('/').split('/').collect();
    let get = parts.method == Method::GET || parts.method == Method::HEAD;
    let found = match segments.as_slice() {
        ["version"] => json(&version()),
        ["healthz" | "livez" | "readyz", ..] => health(app, path, parts),
        ["api"] if wants_aggregated(parts) => aggregated(registry, true),
        ["apis"] if wants_aggregated(parts) => aggregated(registry, false),
        ["api"] => json(&json!({
            "kind": "APIVersions",
            "versions": ["v1"],
            "serverAddressByClientCIDRs": [],
        })),
        ["apis"] => json(&json!({
            "kind": "APIGroupList",
            "apiVersion": "v1",
            "groups": named_groups(registry).map(|group| api_group(registry, group)).collect::<Vec<_>>(),
        })),
        ["apis", group] if registry.groups().contains(group) && !group.is_empty() => {
            json(&api_group(registry, group))
        }
        ["api", version] => resource_list(registry, "", version)?,
        ["apis", group, version] => resource_list(registry, group, version)?,
        ["openapi", ..] => return super::openapi::answer(registry, &segments, parts),
        ["apis", "authorization.k8s.io", ..] => return None,
        _ => return None,
    };
    if !get {
        return Some(Err(ApiError::method_not_allowed()));
    }
    Some(Ok(found))
}

fn json(value: &Value) -> Response<Body> {
    with_type(value, "application/json")
}

fn with_type(value: &Value, kind: &'static str) -> Response<Body> {
    let mut response = Response::new(Body::from(serde_json::to_vec(value).unwrap_or_default()));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

fn version() -> Value {
    json!({
        "major": "1",
        "minor": MINOR,
        "gitVersion": format!("v1.{MINOR}.0+devcluster"),
        "gitCommit": "",
        "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "",
        "compiler": "rustc",
        "platform": format!("{}/{}", std::env::consts::OS, architecture()),
    })
}

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn health(app: &App, path: &str, parts: &Parts) -> Response<Body> {
    let stopping = app.shutdown.is_cancelled() && !path.starts_with("/livez");
    let verbose = parts.uri.query().is_some_and(|query| query.contains("verbose"));
    let text = match (stopping, verbose) {
        (true, _) => "[-]shutdown failed: the server is stopping\n".to_owned(),
        (false, true) => {
            format!("[+]ping ok\n[+]storage ok\n{} check passed\n", path.trim_matches('/'))
        }
        (false, false) => "ok".to_owned(),
    };
    let mut response = Response::new(Body::from(text));
    if stopping {
        *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
    }
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

fn named_groups(registry: &Registry) -> impl Iterator<Item = &str> {
    let mut groups: Vec<&str> =
        registry.groups().into_iter().filter(|group| !group.is_empty()).collect();
    groups.push("authorization.k8s.io");
    groups.sort_unstable();
    groups.into_iter()
}

fn versions(registry: &Registry, group: &str) -> Vec<String> {
    if group == "authorization.k8s.io" {
        return vec!["v1".to_owned()];
    }
    registry.versions_of(group).into_iter().map(str::to_owned).collect()
}

fn api_group(registry: &Registry, group: &str) -> Value {
    let versions: Vec<Value> = versions(registry, group)
        .into_iter()
        .map(|version| json!({"groupVersion": group_version(group, &version), "version": version}))
        .collect();
    json!({
        "kind": "APIGroup",
        "apiVersion": "v1",
        "name": group,
        "preferredVersion": versions.first(),
        "versions": versions,
    })
}

const READ_WRITE: [&str; 8] =
    ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
const PART: [&str; 3] = ["get", "patch", "update"];

/// Subresources of a type: name, kind's group, version, kind, verbs.
fn subresources(resource: &Resource) -> Vec<(&str, &str, &str, String, Vec<&'static str>)> {
    let (group, version) = (resource.group.as_str(), resource.version.as_str());
    let mut list = Vec::new();
    if resource.status {
        list.push(("status", group, version, resource.kind.clone(), PART.to_vec()));
    }
    if resource.scale.is_some() {
        list.push(("scale", "autoscaling", "v1", "Scale".to_owned(), PART.to_vec()));
    }
    for (name, kind) in &resource.subresources {
        let (group, verbs) = match *name {
            "log" => (group, vec!["get"]),
            "finalize" => (group, vec!["update"]),
            "eviction" => ("policy", vec!["create"]),
            _ => (group, vec!["create"]),
        };
        list.push((name, group, "v1", (*kind).to_owned(), verbs));
    }
    list
}

fn resource_list(registry: &Registry, group: &str, version: &str) -> Option<Response<Body>> {
    let mut entries = Vec::new();
    for resource in registry.iter().filter(|r| r.group == group && r.version == version) {
        let mut entry = json!({
            "name": resource.plural,
            "singularName": resource.singular,
            "namespaced": resource.namespaced,
            "kind": resource.kind,
            "verbs": READ_WRITE,
            "storageVersionHash": "",
        });
        if !resource.short_names.is_empty() {
            entry["shortNames"] = json!(resource.short_names);
        }
        if !resource.categories.is_empty() {
            entry["categories"] = json!(resource.categories);
        }
        entries.push(entry);
        for (name, sub_group, sub_version, kind, verbs) in subresources(resource) {
            let mut entry = json!({
                "name": format!("{}/{name}", resource.plural),
                "singularName": "",
                "namespaced": resource.namespaced,
                "kind": kind,
                "verbs": verbs,
            });
            if (sub_group, sub_version) != (group, version) {
                entry["group"] = json!(sub_group);
                entry["version"] = json!(sub_version);
            }
            entries.push(entry);
        }
    }
    if group == "authorization.k8s.io" && version == "v1" {
        for (plural, kind, namespaced) in super::access::REVIEWS {
            entries.push(json!({
                "name": plural, "singularName": kind.to_lowercase(), "namespaced": namespaced, "kind": kind, "verbs": ["create"],
            }));
        }
    }
    if entries.is_empty() {
        return None;
    }
    Some(json(&json!({
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": group_version(group, version),
        "resources": entries,
    })))
}

fn wants_aggregated(parts: &Parts) -> bool {
    let accept = parts.headers.get(header::ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or("");
    accept.split(',').any(|part| {
        part.contains("as=APIGroupDiscoveryList")
            && part.contains("v=v2")
            && !part.contains("v=v2beta1")
            && part.contains("application/json")
    })
}

/// All groups with all their resources in one document (`apidiscovery.k8s.io/v2`).
fn aggregated(registry: &Registry, core: bool) -> Response<Body> {
    let groups: Vec<&str> = if core { vec![""] } else { named_groups(registry).collect() };
    let items: Vec<Value> = groups
        .into_iter()
        .map(|group| {
            let versions: Vec<Value> = versions(registry, group)
                .into_iter()
                .map(|version| {
                    json!({
                        "version": version,
                        "freshness": "Current",
                        "resources": aggregated_resources(registry, group, &version),
                    })
                })
                .collect();
            json!({"metadata": {"name": group, "creationTimestamp": null}, "versions": versions})
        })
        .collect();
    let list = json!({
        "kind": "APIGroupDiscoveryList",
        "apiVersion": "apidiscovery.k8s.io/v2",
        "metadata": {},
        "items": items,
    });
    with_type(&list, "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList")
}

fn aggregated_resources(registry: &Registry, group: &str, version: &str) -> Vec<Value> {
    let scope = |namespaced: bool| if namespaced { "Namespaced" } else { "Cluster" };
    let mut entries: Vec<Value> = registry
        .iter()
        .filter(|r| r.group == group && r.version == version)
        .map(|resource| {
            let mut entry = json!({
                "resource": resource.plural,
                "responseKind": {"group": group, "version": version, "kind": resource.kind},
                "scope": scope(resource.namespaced),
                "singularResource": resource.singular,
                "verbs": READ_WRITE,
            });
            if !resource.short_names.is_empty() {
                entry["shortNames"] = json!(resource.short_names);
            }
            if !resource.categories.is_empty() {
                entry["categories"] = json!(resource.categories);
            }
            let parts: Vec<Value> = subresources(resource)
                .into_iter()
                .map(|(name, group, version, kind, verbs)| {
                    json!({
                        "subresource": name,
                        "responseKind": {"group": group, "version": version, "kind": kind},
                        "verbs": verbs,
                    })
                })
                .collect();
            if !parts.is_empty() {
                entry["subresources"] = Value::Array(parts);
            }
            entry
        })
        .collect();
    if group == "authorization.k8s.io" {
        for (plural, kind, namespaced) in super::access::REVIEWS {
            entries.push(json!({
                "resource": plural,
                "responseKind": {"group": group, "version": version, "kind": kind},
                "scope": scope(*namespaced),
                "singularResource": kind.to_lowercase(),
                "verbs": ["create"],
            }));
        }
    }
    entries
}
