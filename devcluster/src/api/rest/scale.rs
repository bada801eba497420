//! The `scale` subresource: `autoscaling/v1` Scale in front of an object's replicas.

use std::sync::Arc;

use axum::body::Body;
use http::{Response, StatusCode};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::patch::Patch;
use super::{App, Call, respond, update};
use crate::api::meta;
use crate::api::registry::{Resource, ScalePaths};
use crate::api::status::{ApiError, FieldError};

fn paths(resource: &Resource) -> Result<&ScalePaths, ApiError> {
    resource.scale.as_ref().ok_or_else(ApiError::no_such_resource)
}

fn scale_of(resource: &Resource, object: &Value) -> Result<Value, ApiError> {
    let paths = paths(resource)?;
    let number = |path: &[String]| meta::at(object, path).and_then(Value::as_i64).unwrap_or(0);
    let metadata = &object["metadata"];
    let mut scale = json!({
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": {
            "name": metadata["name"],
            "namespace": metadata["namespace"],
            "uid": metadata["uid"],
            "resourceVersion": metadata["resourceVersion"],
            "creationTimestamp": metadata["creationTimestamp"],
        },
        "spec": {"replicas": number(&paths.spec)},
        "status": {"replicas": number(&paths.status)},
    });
    let selector = match &paths.selector {
        Some(path) => meta::at(object, path).and_then(Value::as_str).map(str::to_owned),
        None => Some(selector_text(&object["spec"]["selector"])).filter(|text| !text.is_empty()),
    };
    if let Some(selector) = selector {
        scale["status"]["selector"] = Value::String(selector);
    }
    Ok(scale)
}

/// A label selector as a query writes it.
pub fn selector_text(selector: &Value) -> String {
    let mut terms: Vec<String> = selector["matchLabels"]
        .as_object()
        .into_iter()
        .flatten()
        .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or("")))
        .collect();
    for expression in selector["matchExpressions"].as_array().into_iter().flatten() {
        let key = expression["key"].as_str().unwrap_or("");
        let values: Vec<&str> = expression["values"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        terms.push(match expression["operator"].as_str() {
            Some("In") => format!("{key} in ({})", values.join(",")),
            Some("NotIn") => format!("{key} notin ({})", values.join(",")),
            Some("DoesNotExist") => format!("!{key}"),
            _ => key.to_owned(),
        });
    }
    terms.join(",")
}

pub fn get(app: &Arc<App>, call: &Call) -> Result<Response<Body>, ApiError> {
    let object = app
        .store
        .get(&call.resource.store_key, &call.target.namespace, call.name())
        .ok_or_else(|| call.not_found())?;
    Ok(respond::json_response(StatusCode::OK, &scale_of(&call.resource, &object)?))
}

pub async fn replace(
    app: &Arc<App>,
    call: Call,
    wanted: Value,
) -> Result<Response<Body>, ApiError> {
    change(app, call, |_| Ok(wanted)).await
}

pub async fn patch(app: &Arc<App>, call: Call, patch: Patch) -> Result<Response<Body>, ApiError> {
    if let Patch::Apply(wanted) = patch {
        // Only the replicas can be applied here: that is the same as a merge.
        let patch = Patch::Merge(json!({ "spec": wanted["spec"] }));
        return change(app, call, |scale| patch.on(None, scale)).await;
    }
    change(app, call, |scale| patch.on(None, scale)).await
}

async fn change(
    app: &Arc<App>,
    call: Call,
    decide: impl FnOnce(&Value) -> Result<Value, ApiError>,
) -> Result<Response<Body>, ApiError> {
    let resource = call.resource.clone();
    let paths = paths(&resource)?;
    let (stored, _) = update::change(app, &call, |current| {
        let current = current.ok_or_else(|| call.not_found())?;
        let wanted = decide(&scale_of(&resource, current)?)?;
        let replicas = match &wanted["spec"]["replicas"] {
            Value::Null => 0,
            value => value.as_i64().unwrap_or(-1),
        };
        if !(0..=i64::from(i32::MAX)).contains(&replicas) {
            return Err(ApiError::invalid(
                "autoscaling",
                "Scale",
                call.name(),
                &[FieldError::invalid(
                    "spec.replicas",
                    &wanted["spec"]["replicas"],
                    "must be greater than or equal to 0",
                )],
            ));
        }
        let mut new = (**current).clone();
        meta::set(&mut new, &paths.spec, replicas.into());
        for field in ["resourceVersion", "uid"] {
            if let Some(value) = wanted["metadata"][field].as_str().filter(|text| !text.is_empty())
            {
                new["metadata"][field] = Value::String(value.to_owned());
            }
        }
        update::update(app, &call, current, new, "scale", Timestamp::now())
    })
    .await?;
    Ok(respond::json_response(StatusCode::OK, &scale_of(&resource, &stored)?))
}
