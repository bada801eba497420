//! OpenAPI documents: version 3 per group for validation and `kubectl explain`; version 2
//! in the smallest form that clients accept.

use axum::body::Body;
use http::{HeaderValue, Response, header, request::Parts};
use serde_json::{Map, Value, json};

use super::registry::{Registry, Resource, definition_name, group_version};
use super::schema::builtin::DEFINITIONS;
use super::status::ApiError;

type Answer = Result<Response<Body>, ApiError>;

pub fn answer(registry: &Registry, segments: &[&str], parts: &Parts) -> Option<Answer> {
    match segments {
        ["openapi", "v2"] => Some(Ok(version_2(parts))),
        ["openapi", "v3"] => Some(Ok(json(&index(registry)))),
        ["openapi", "v3", "api", version] => Some(document(registry, "", version)),
        ["openapi", "v3", "apis", group, version] => Some(document(registry, group, version)),
        _ => None,
    }
}

fn json(value: &Value) -> Response<Body> {
    let mut response = Response::new(Body::from(serde_json::to_vec(value).unwrap_or_default()));
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// Old clients validate by this document, and skip what it does not define: the server
/// validates anyway. It is asked for as protobuf (field numbers of OpenAPIv2.proto).
fn version_2(parts: &Parts) -> Response<Body> {
    let accept = parts.headers.get(header::ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or("");
    if !accept.contains("proto-openapi.spec.v2") {
        return json(&json!({
            "swagger": "2.0",
            "info": {"title": "Kubernetes", "version": "v1.33.0"},
            "paths": {},
            "definitions": {},
        }));
    }
    let mut document = Vec::new();
    bytes_field(&mut document, 1, b"2.0");
    let mut info = Vec::new();
    bytes_field(&mut info, 1, b"Kubernetes");
    bytes_field(&mut info, 2, b"v1.33.0");
    bytes_field(&mut document, 2, &info);
    bytes_field(&mut document, 8, b"");
    bytes_field(&mut document, 9, b"");
    let mut response = Response::new(Body::from(document));
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/com.github.proto-openapi.spec.v2.v1.0+protobuf"),
    );
    response
}

/// A length-delimited protobuf field shorter than 128 bytes.
fn bytes_field(out: &mut Vec<u8>, number: u8, bytes: &[u8]) {
    out.push(number << 3 | 2);
    out.push(u8::try_from(bytes.len()).unwrap_or(0));
    out.extend_from_slice(bytes);
}

fn index(registry: &Registry) -> Value {
    let mut paths = Map::new();
    for resource in registry.iter() {
        let path = match resource.group.as_str() {
            "" => format!("api/{}", resource.version),
            group => format!("apis/{group}/{}", resource.version),
        };
        // Without a hash, as the documents of custom resources change.
        paths
            .entry(path.clone())
            .or_insert_with(|| json!({"serverRelativeURL": format!("/openapi/v3/{path}")}));
    }
    json!({ "paths": paths })
}

fn document(registry: &Registry, group: &str, version: &str) -> Answer {
    let resources: Vec<&Resource> = registry
        .iter()
        .map(AsRef::as_ref)
        .filter(|r| r.group == group && r.version == version)
        .collect();
    if resources.is_empty() {
        return Err(ApiError::no_such_resource());
    }
    let mut schemas = Map::new();
    let mut paths = Map::new();
    for resource in resources {
        let gvk = json!({"group": group, "version": version, "kind": resource.kind});
        let name = match definition_name(resource) {
            Some(name) => {
                include(&name, &mut schemas);
                if let Some(schema) = schemas.get_mut(&name) {
                    schema["x-kubernetes-group-version-kind"] = json!([gvk]);
                }
                name
            }
            None => {
                let name = custom_name(resource);
                let mut schema =
                    resource.published.clone().unwrap_or_else(|| json!({"type": "object"}));
                schema["x-kubernetes-group-version-kind"] = json!([gvk]);
                let meta = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";
                include(meta, &mut schemas);
                schema["properties"]["metadata"] = json!({"allOf": [{"$ref": format!("#/components/schemas/{meta}")}], "default": {}});
                for field in ["apiVersion", "kind"] {
                    if schema["properties"].get(field).is_none() {
                        schema["properties"][field] = json!({"type": "string"});
                    }
                }
                schemas.insert(name.clone(), schema);
                name
            }
        };
        let base = match group {
            "" => format!("/api/{version}"),
            _ => format!("/apis/{}", group_version(group, version)),
        };
        let scope = if resource.namespaced { "/namespaces/{namespace}" } else { "" };
        let collection = format!("{base}{scope}/{}", resource.plural);
        paths.insert(collection.clone(), operations(&["get", "post", "delete"], &gvk, &name));
        paths.insert(
            format!("{collection}/{{name}}"),
            operations(&["get", "put", "patch", "delete"], &gvk, &name),
        );
    }
    Ok(json(&json!({
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": "v1.33.0"},
        "paths": paths,
        "components": {"schemas": schemas},
    })))
}

fn custom_name(resource: &Resource) -> String {
    let mut parts: Vec<&str> = resource.group.split('.').collect();
    parts.reverse();
    format!("{}.{}.{}", parts.join("."), resource.version, resource.kind)
}

/// Adds a definition and all that it refers to.
fn include(name: &str, schemas: &mut Map<String, Value>) {
    if schemas.contains_key(name) {
        return;
    }
    let Some(schema) = DEFINITIONS.get(name) else { return };
    schemas.insert(name.to_owned(), schema.clone());
    let mut references = Vec::new();
    collect(schema, &mut references);
    for reference in references {
        include(&reference, schemas);
    }
}

fn collect(value: &Value, references: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            if let Some(target) = map.get("$ref").and_then(Value::as_str)
                && let Some(name) = target.rsplit('/').next()
            {
                references.push(name.to_owned());
            }
            map.values().for_each(|child| collect(child, references));
        }
        Value::Array(list) => list.iter().for_each(|child| collect(child, references)),
        _ => {}
    }
}

/// Operations with the parameters that clients look for: `fieldValidation` and `dryRun`.
fn operations(methods: &[&str], gvk: &Value, schema: &str) -> Value {
    let parameters: Vec<Value> = ["dryRun", "fieldManager", "fieldValidation"]
        .iter()
        .map(|name| json!({"name": name, "in": "query", "schema": {"type": "string", "uniqueItems": true}}))
        .collect();
    let mut operations = Map::new();
    for method in methods {
        let mut operation = json!({
            "x-kubernetes-action": method,
            "x-kubernetes-group-version-kind": gvk,
            "responses": {"200": {"description": "OK", "content": {"application/json": {
                "schema": {"$ref": format!("#/components/schemas/{schema}")}}}}},
        });
        if *method != "get" {
            operation["parameters"] = Value::Array(parameters.clone());
        }
        operations.insert((*method).to_owned(), operation);
    }
    Value::Object(operations)
}
