//! DELETE: grace, finalizers and propagation.

use std::sync::Arc;

use axum::body::Body;
use http::{Response, StatusCode, request::Parts};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::{App, Call, respond, update};
use crate::api::meta;
use crate::api::registry::Resource;
use crate::api::status::ApiError;
use crate::api::store::{Change, Wrote};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Propagation {
    Orphan,
    Background,
    Foreground,
}

#[derive(Debug, Clone, Default)]
pub struct DeleteOptions {
    pub grace: Option<i64>,
    pub propagation: Option<Propagation>,
    pub uid: Option<String>,
    pub resource_version: Option<String>,
    pub dry_run: bool,
}

impl DeleteOptions {
    pub fn parse(body: &Value, parts: &Parts) -> Result<Self, ApiError> {
        let query = super::Options::parse(parts)?;
        let given = |key: &str| {
            body[key].as_str().map(str::to_owned).or_else(|| query.raw(key).map(str::to_owned))
        };
        let propagation = match given("propagationPolicy").as_deref() {
            Some("Orphan") => Some(Propagation::Orphan),
            Some("Background") => Some(Propagation::Background),
            Some("Foreground") => Some(Propagation::Foreground),
            None | Some("") => match body["orphanDependents"].as_bool() {
                Some(true) => Some(Propagation::Orphan),
                Some(false) => Some(Propagation::Background),
                None => None,
            },
            Some(other) => {
                return Err(ApiError::bad_request(format!(
                    "propagationPolicy: Unsupported value: {other:?}: supported values: \"Foreground\", \"Background\", \"Orphan\""
                )));
            }
        };
        let grace = match &body["gracePeriodSeconds"] {
            Value::Null => query.raw("gracePeriodSeconds").and_then(|text| text.parse().ok()),
            value => value.as_i64(),
        };
        if grace.is_some_and(|grace| grace < 0) {
            return Err(ApiError::bad_request(
                "gracePeriodSeconds: Invalid value: must be greater than or equal to 0",
            ));
        }
        let dry = body["dryRun"].as_array().is_some_and(|list| !list.is_empty());
        Ok(Self {
            grace,
            propagation,
            uid: body["preconditions"]["uid"].as_str().map(str::to_owned),
            resource_version: body["preconditions"]["resourceVersion"].as_str().map(str::to_owned),
            dry_run: dry || query.dry_run,
        })
    }
}

pub async fn delete(
    app: &Arc<App>,
    mut call: Call,
    options: DeleteOptions,
) -> Result<Response<Body>, ApiError> {
    call.options.dry_run |= options.dry_run;
    let (object, wrote) = delete_one(app, &call, &options).await?;
    let ended = wrote == Wrote::Deleted;
    // What is gone is answered with a Status, what is on its way with the object.
    if ended && !call.resource.is("", "pods") {
        let status = json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Success",
            "details": {
                "name": call.name(),
                "group": call.resource.group,
                "kind": call.resource.plural,
                "uid": object["metadata"]["uid"],
            },
        });
        return Ok(respond::json_response(StatusCode::OK, &status));
    }
    let status =
        if ended || wrote == Wrote::Unchanged { StatusCode::OK } else { StatusCode::ACCEPTED };
    let status = if call.resource.is("", "pods") { StatusCode::OK } else { status };
    Ok(respond::object(&call.resource, call.shape, status, &object, ""))
}

pub async fn delete_one(
    app: &Arc<App>,
    call: &Call,
    options: &DeleteOptions,
) -> Result<(Arc<Value>, Wrote), ApiError> {
    update::change(app, call, |current| {
        let current = current.ok_or_else(|| call.not_found())?;
        let name = call.name();
        if call.resource.is("", "namespaces")
            && matches!(name, "default" | "kube-system" | "kube-public")
        {
            return Err(ApiError::forbidden(
                "",
                "namespaces",
                name,
                "this namespace may not be deleted",
            ));
        }
        preconditions(call, current, options)?;
        Ok(decide(&call.resource, current, options, Timestamp::now()))
    })
    .await
}

fn preconditions(call: &Call, current: &Value, options: &DeleteOptions) -> Result<(), ApiError> {
    let fails = |what: &str, asked: &str, found: &str| {
        ApiError::conflict(
            &call.resource.group,
            &call.resource.plural,
            call.name(),
            format!(
                "Precondition failed: {what} in precondition: {asked}, {what} in object meta: {found}"
            ),
        )
    };
    for (what, field, asked) in [
        ("UID", "uid", &options.uid),
        ("ResourceVersion", "resourceVersion", &options.resource_version),
    ] {
        let found = meta::text(current, field);
        if let Some(asked) = asked
            && asked != found
        {
            return Err(fails(what, asked, found));
        }
    }
    Ok(())
}

/// What deleting does to an object now: its end, or the marks of a deletion under way.
fn decide(
    resource: &Resource,
    current: &Arc<Value>,
    options: &DeleteOptions,
    now: Timestamp,
) -> Change {
    let mut object = (**current).clone();
    set_propagation_finalizers(resource, &mut object, options.propagation);
    let grace = grace_of(resource, current, options);
    let already = meta::is_terminating(current);
    let before = current["metadata"]["deletionGracePeriodSeconds"].as_i64();
    // A second deletion can only shorten the grace.
    let grace = match (already, before) {
        (true, Some(before)) => grace.min(before),
        _ => grace,
    };
    if !already || before != Some(grace) {
        let at = now.checked_add(SignedDuration::from_secs(grace)).unwrap_or(now);
        let metadata = meta::metadata_mut(&mut object);
        metadata.insert("deletionTimestamp".to_owned(), meta::stamp(at).into());
        metadata.insert("deletionGracePeriodSeconds".to_owned(), grace.into());
        if resource.generation
            && !already
            && let Some(generation) = object["metadata"]["generation"].as_i64()
        {
            object["metadata"]["generation"] = Value::from(generation + 1);
        }
    }
    if resource.is("", "namespaces") {
        meta::map_mut(&mut object, "status").insert("phase".to_owned(), "Terminating".into());
    }
    if may_end(resource, &object) {
        return Change::Delete(object);
    }
    if object == **current { Change::Keep(current.clone()) } else { Change::Put(object) }
}

/// Whether an object that is being deleted has nothing left to wait for.
pub fn may_end(resource: &Resource, object: &Value) -> bool {
    let grace = object["metadata"]["deletionGracePeriodSeconds"].as_i64().unwrap_or(0);
    let pending = resource.is("", "namespaces")
        && object["spec"]["finalizers"].as_array().is_some_and(|list| !list.is_empty());
    meta::finalizers(object).is_empty() && !pending && !(resource.is("", "pods") && grace > 0)
}

/// Only pods that a node runs are given time to stop.
fn grace_of(resource: &Resource, current: &Value, options: &DeleteOptions) -> i64 {
    if !resource.is("", "pods") {
        return 0;
    }
    let bound = current["spec"]["nodeName"].as_str().is_some_and(|node| !node.is_empty());
    let over = matches!(current["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
    if !bound || over {
        return 0;
    }
    options
        .grace
        .or_else(|| current["spec"]["terminationGracePeriodSeconds"].as_i64())
        .unwrap_or(30)
        .max(0)
}

/// Marks for the garbage collector: `orphan` and `foregroundDeletion`.
fn set_propagation_finalizers(
    resource: &Resource,
    object: &mut Value,
    policy: Option<Propagation>,
) {
    let before: Vec<String> = meta::finalizers(object).into_iter().map(str::to_owned).collect();
    // batch/v1 jobs orphan unless told otherwise, for compatibility (as in Kubernetes).
    let policy = policy.or_else(|| resource.is("batch", "jobs").then_some(Propagation::Orphan));
    let mut after = before.clone();
    match policy {
        None => return,
        Some(policy) => {
            after.retain(|f| f != "orphan" && f != "foregroundDeletion");
            match policy {
                Propagation::Orphan => after.push("orphan".to_owned()),
                Propagation::Foreground => after.push("foregroundDeletion".to_owned()),
                Propagation::Background => {}
            }
        }
    }
    if after == before {
        return;
    }
    let metadata = meta::metadata_mut(object);
    if after.is_empty() {
        metadata.remove("finalizers");
    } else {
        metadata.insert("finalizers".to_owned(), after.into());
    }
}

/// The deletion of a custom resource without any options.
pub fn plain(current: &Arc<Value>, now: Timestamp) -> Change {
    if meta::finalizers(current).is_empty() {
        return Change::Delete((**current).clone());
    }
    if meta::is_terminating(current) {
        return Change::Keep(current.clone());
    }
    let mut object = (**current).clone();
    let metadata = meta::metadata_mut(&mut object);
    metadata.insert("deletionTimestamp".to_owned(), meta::stamp(now).into());
    metadata.insert("deletionGracePeriodSeconds".to_owned(), 0.into());
    Change::Put(object)
}

pub async fn delete_collection(
    app: &Arc<App>,
    call: Call,
    options: DeleteOptions,
) -> Result<Response<Body>, ApiError> {
    if call.resource.namespaced && call.target.namespace.is_empty() {
        return Err(ApiError::method_not_allowed());
    }
    let selector = call.options.selector(call.resource.custom)?;
    let found = app.store.list(
        &call.resource.store_key,
        &call.target.namespace,
        None,
        usize::MAX,
        |object| selector.matches(object),
    );
    let mut items = Vec::new();
    let mut call = call;
    call.options.dry_run |= options.dry_run;
    for object in found.items {
        call.target.name = Some(meta::name(&object).to_owned());
        match delete_one(app, &call, &options).await {
            Ok((object, _)) => {
                items.push(respond::in_version(&call.resource, &object).into_owned())
            }
            Err(error) if error.code == 404 => {}
            Err(error) => return Err(error),
        }
    }
    let list = json!({
        "kind": call.resource.list_kind,
        "apiVersion": call.resource.api_version(),
        "metadata": {"resourceVersion": app.store.revision().to_string()},
        "items": items,
    });
    Ok(respond::json_response(StatusCode::OK, &list))
}
