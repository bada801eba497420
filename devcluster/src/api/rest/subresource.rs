//! Subresources: status, scale, binding, eviction, log, finalize.

use std::sync::Arc;

use axum::body::Body;
use http::{Method, Response, StatusCode, request::Parts};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{
    App, Call, delete, delete_options, patch, read, read_body, read_object, respond, scale, update,
};
use crate::api::meta;
use crate::api::status::ApiError;
use crate::api::store::Change;

pub async fn serve(
    app: &Arc<App>,
    call: Call,
    name: &str,
    parts: &Parts,
    body: Body,
) -> Result<Response<Body>, ApiError> {
    let resource = call.resource.clone();
    match (name, &parts.method) {
        ("status", method) if resource.status => match *method {
            Method::GET => read::get(app, &call),
            Method::PUT => {
                let object = read_object(parts, body).await?;
                update::replace_at(app, call, object, "status").await
            }
            Method::PATCH => {
                let patch = patch::Patch::read(parts, read_body(body).await?)?;
                patch::patch(app, call, patch, "status").await
            }
            _ => Err(ApiError::method_not_allowed()),
        },
        ("scale", method) if resource.scale.is_some() => match *method {
            Method::GET => scale::get(app, &call),
            Method::PUT => {
                let wanted = read_object(parts, body).await?;
                scale::replace(app, call, wanted).await
            }
            Method::PATCH => {
                let patch = patch::Patch::read(parts, read_body(body).await?)?;
                scale::patch(app, call, patch).await
            }
            _ => Err(ApiError::method_not_allowed()),
        },
        ("binding", &Method::POST) if resource.is("", "pods") => {
            let binding = read_object(parts, body).await?;
            bind(app, &call, &binding).await
        }
        ("eviction", &Method::POST) if resource.is("", "pods") => {
            let eviction = read_object(parts, body).await?;
            let options = delete::DeleteOptions::parse(&eviction["deleteOptions"], parts)?;
            delete::delete_one(app, &call, &options).await?;
            Ok(success(StatusCode::CREATED))
        }
        ("log", &Method::GET) if resource.is("", "pods") => app.kubelets.log(app, &call).await,
        ("finalize", &Method::PUT) if resource.is("", "namespaces") => {
            let object = read_object(parts, body).await?;
            update::replace_at(app, call, object, "finalize").await
        }
        _ => {
            // Nothing may be left hanging in a body that nobody reads.
            let _ = delete_options(parts, body).await;
            Err(ApiError::no_such_resource())
        }
    }
}

fn success(status: StatusCode) -> Response<Body> {
    respond::json_response(
        status,
        &json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": status.as_u16()}),
    )
}

/// Assigns a pod to a node, once.
async fn bind(app: &Arc<App>, call: &Call, binding: &Value) -> Result<Response<Body>, ApiError> {
    let node = binding["target"]["name"].as_str().unwrap_or("").to_owned();
    if node.is_empty() || !matches!(binding["target"]["kind"].as_str(), None | Some("" | "Node")) {
        return Err(ApiError::bad_request("a binding must have a target of kind Node with a name"));
    }
    let uid = meta::text(binding, "uid").to_owned();
    let now = Timestamp::now();
    update::change(app, call, |current| {
        let current = current.ok_or_else(|| call.not_found())?;
        let conflict = |why: String| ApiError::conflict("", "pods/binding", call.name(), why);
        if !uid.is_empty() && uid != meta::text(current, "uid") {
            return Err(conflict(format!("the pod's UID is not {uid}")));
        }
        if meta::is_terminating(current) {
            return Err(conflict(format!(
                "pod {} is being deleted, cannot be assigned to a host",
                call.name()
            )));
        }
        if let Some(bound) = current["spec"]["nodeName"].as_str().filter(|node| !node.is_empty()) {
            return Err(conflict(format!(
                "pod {} is already assigned to node {bound:?}",
                call.name()
            )));
        }
        let mut pod = (**current).clone();
        meta::map_mut(&mut pod, "spec").insert("nodeName".to_owned(), node.into());
        for (key, value) in binding["metadata"]["annotations"].as_object().into_iter().flatten() {
            let metadata = meta::metadata_mut(&mut pod);
            let annotations = metadata.entry("annotations").or_insert_with(|| json!({}));
            if let Some(annotations) = annotations.as_object_mut() {
                annotations.insert(key.clone(), value.clone());
            }
        }
        let status = meta::map_mut(&mut pod, "status");
        let mut conditions: Vec<Value> =
            status.get("conditions").and_then(Value::as_array).cloned().unwrap_or_default();
        conditions.retain(|condition| condition["type"] != "PodScheduled");
        conditions.push(json!({
            "type": "PodScheduled",
            "status": "True",
            "lastProbeTime": null,
            "lastTransitionTime": meta::stamp(now),
        }));
        status.insert("conditions".to_owned(), conditions.into());
        Ok(Change::Put(pod))
    })
    .await?;
    Ok(success(StatusCode::CREATED))
}
