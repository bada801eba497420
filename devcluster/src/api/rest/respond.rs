//! Responses: plain objects, lists, tables and metadata only.

use std::borrow::Cow;

use axum::body::Body;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use serde_json::{Value, json};

use crate::api::registry::Resource;
use crate::api::status::ApiError;
use crate::api::table;

/// The form in which the client wants objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    Object,
    /// `meta.k8s.io` Table, of this version.
    Table(&'static str),
    /// `meta.k8s.io` PartialObjectMetadata.
    Metadata(&'static str),
}

impl Shape {
    /// Takes the first acceptable form that the `Accept` header names.
    pub fn negotiate(headers: &HeaderMap) -> Result<Self, ApiError> {
        let mut any = false;
        for value in headers.get_all(header::ACCEPT) {
            for part in value.to_str().unwrap_or("").split(',') {
                let mut words = part.split(';').map(str::trim);
                let media = words.next().unwrap_or("");
                if media.is_empty() {
                    continue;
                }
                any = true;
                if !matches!(media, "application/json" | "*/*" | "application/*") {
                    continue;
                }
                let (mut form, mut version) = (None, "v1");
                for word in words {
                    match word.split_once('=') {
                        Some(("as", value)) => form = Some(value),
                        Some(("v", "v1beta1")) => version = "v1beta1",
                        _ => {}
                    }
                }
                match form {
                    None => return Ok(Self::Object),
                    Some("Table") => return Ok(Self::Table(version)),
                    Some("PartialObjectMetadata" | "PartialObjectMetadataList") => {
                        return Ok(Self::Metadata(version));
                    }
                    Some(_) => {}
                }
            }
        }
        if any {
            return Err(ApiError::not_acceptable(
                "only the following media types are accepted: application/json",
            ));
        }
        Ok(Self::Object)
    }
}

/// A list of objects, shown without copying them.
#[derive(serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct List<'a> {
    pub kind: &'a str,
    pub api_version: String,
    pub metadata: Value,
    pub items: Vec<Cow<'a, Value>>,
}

pub fn json_response(status: StatusCode, value: &impl serde::Serialize) -> Response<Body> {
    let body = serde_json::to_vec(value).unwrap_or_default();
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

pub fn error(error: &ApiError) -> Response<Body> {
    let status = StatusCode::from_u16(error.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    json_response(status, &error.to_status())
}

/// Adds `Warning` headers (RFC 7234, code 299).
pub fn warn(response: &mut Response<Body>, warnings: &[String]) {
    for warning in warnings.iter().take(16) {
        let text: String = warning
            .chars()
            .filter(|c| !c.is_control())
            .flat_map(|c| if matches!(c, '"' | '\\') { vec!['\\', c] } else { vec![c] })
            .collect();
        if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{text}\"")) {
            response.headers_mut().append(header::WARNING, value);
        }
    }
}

/// One object in the form the client wants.
pub fn object(
    resource: &Resource,
    shape: Shape,
    status: StatusCode,
    object: &Value,
    include: &str,
) -> Response<Body> {
    let value = match shape {
        Shape::Object => return json_response(status, in_version(resource, object).as_ref()),
        Shape::Table(version) => table::table(
            resource,
            version,
            [object],
            include,
            object["metadata"]["resourceVersion"].as_str().unwrap_or(""),
            None,
            None,
        ),
        Shape::Metadata(version) => metadata_only(object, version),
    };
    json_response(status, &value)
}

/// The object as the requested version shows it.
pub fn in_version<'a>(resource: &Resource, object: &'a Value) -> Cow<'a, Value> {
    if resource.is_new_events() {
        return Cow::Owned(crate::api::events::to_new(object));
    }
    let wanted = resource.api_version();
    if object["apiVersion"] == wanted.as_str() {
        return Cow::Borrowed(object);
    }
    let mut shown = object.clone();
    shown["apiVersion"] = Value::String(wanted);
    Cow::Owned(shown)
}

pub fn metadata_only(object: &Value, version: &str) -> Value {
    json!({
        "kind": "PartialObjectMetadata",
        "apiVersion": format!("meta.k8s.io/{version}"),
        "metadata": object["metadata"],
    })
}
