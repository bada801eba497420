//! PUT, and what every change of an existing object goes through.

use std::sync::Arc;

use axum::body::Body;
use http::{Response, StatusCode};
use jiff::Timestamp;
use serde_json::Value;

use super::{App, Call, finish, respond};
use crate::api::fields::{self, Operation};
use crate::api::meta;
use crate::api::registry::Resource;
use crate::api::status::{ApiError, FieldError};
use crate::api::store::{Change, Wrote};

pub async fn replace(
    app: &Arc<App>,
    call: Call,
    object: Value,
) -> Result<Response<Body>, ApiError> {
    replace_at(app, call, object, "").await
}

/// Replaces the object, or its `status`.
pub async fn replace_at(
    app: &Arc<App>,
    call: Call,
    mut object: Value,
    subresource: &str,
) -> Result<Response<Body>, ApiError> {
    if call.resource.is_new_events() {
        object = crate::api::events::to_core(&object);
        object["apiVersion"] = Value::String(call.resource.api_version());
    }
    finish::conform(&call, &mut object)?;
    let mut warnings = finish::prune(&call.resource, &call.options, &mut object)?;
    let resource = call.resource.clone();
    let (stored, _) = change(app, &call, |current| {
        let current = current.ok_or_else(|| call.not_found())?;
        if resource.custom && meta::text(&object, "resourceVersion").is_empty() {
            return Err(ApiError::invalid(
                &resource.group,
                &resource.kind,
                call.name(),
                &[FieldError::invalid(
                    "metadata.resourceVersion",
                    &Value::from(0),
                    "must be specified for an update",
                )],
            ));
        }
        update(app, &call, current, object, subresource, Timestamp::now())
    })
    .await?;
    warnings.extend(finish::warnings(&call.resource, &stored));
    let mut response = respond::object(&call.resource, call.shape, StatusCode::OK, &stored, "");
    respond::warn(&mut response, &warnings);
    Ok(response)
}

/// Runs `decide` on the object that the call names, with dry runs and follow-ups.
pub async fn change(
    app: &Arc<App>,
    call: &Call,
    decide: impl FnOnce(Option<&Arc<Value>>) -> Result<Change, ApiError>,
) -> Result<(Arc<Value>, Wrote), ApiError> {
    let resource = &call.resource;
    let dry_run = call.options.dry_run;
    let (stored, wrote) = app
        .store
        .write(&resource.store_key, &call.target.namespace, call.name(), |current| {
            match decide(current)? {
                Change::Put(object) | Change::Delete(object) if dry_run => {
                    Ok(Change::Keep(Arc::new(object)))
                }
                change => Ok(change),
            }
        })
        .await?;
    match wrote {
        Wrote::Unchanged => {}
        Wrote::Deleted => finish::after_write(app, resource, &stored, true),
        Wrote::Created | Wrote::Updated => finish::after_write(app, resource, &stored, false),
    }
    Ok((stored, wrote))
}

/// Decides what becomes of `current` when a client wants `new` instead, through the main
/// endpoint (`subresource` empty) or through `status`, `scale` or `finalize`.
pub fn update(
    app: &App,
    call: &Call,
    current: &Arc<Value>,
    new: Value,
    subresource: &str,
    now: Timestamp,
) -> Result<Change, ApiError> {
    let mut new = settle(app, call, current, new, subresource)?;
    let actor = call.actor(Operation::Update, subresource, now);
    fields::track_update(&call.resource.schema, Some(current), &mut new, &actor);
    conclude(&call.resource, current, new)
}

/// Preconditions, what a client cannot change, defaults, validation and generation.
pub fn settle(
    app: &App,
    call: &Call,
    current: &Arc<Value>,
    mut new: Value,
    subresource: &str,
) -> Result<Value, ApiError> {
    let resource = &call.resource;
    let wanted = meta::text(&new, "resourceVersion");
    if !wanted.is_empty() && wanted != meta::text(current, "resourceVersion") {
        return Err(ApiError::stale(&resource.group, &resource.plural, call.name()));
    }
    let (asked, found) = (meta::text(&new, "uid"), meta::text(current, "uid"));
    if !asked.is_empty() && asked != found {
        return Err(ApiError::conflict(
            &resource.group,
            &resource.plural,
            call.name(),
            format!(
                "Precondition failed: UID in precondition: {asked}, UID in object meta: {found}"
            ),
        ));
    }
    if subresource == "status" {
        let mut merged = (**current).clone();
        // Field ownership may be edited through any endpoint.
        let managed = new["metadata"].get("managedFields").cloned();
        match new.as_object_mut().and_then(|map| map.remove("status")) {
            Some(status) => merged["status"] = status,
            None => {
                if let Some(map) = merged.as_object_mut() {
                    map.remove("status");
                }
            }
        }
        if let Some(managed) = managed {
            merged["metadata"]["managedFields"] = managed;
        }
        new = merged;
    } else if resource.status {
        carry(current, &mut new, "status");
    }
    new["apiVersion"] = Value::String(resource.storage_api_version.clone());
    new["kind"] = Value::String(resource.kind.clone());
    keep_identity(current, &mut new);
    if subresource != "finalize" && resource.is("", "namespaces") {
        let finalizers = current["spec"].get("finalizers").cloned();
        if let Some(finalizers) = finalizers {
            meta::map_mut(&mut new, "spec").insert("finalizers".to_owned(), finalizers);
        }
    }
    finish::default(app, resource, &mut new, Some(current));
    finish::validate(app, resource, &new, Some(current))?;
    no_new_finalizers(resource, current, &new)?;
    if resource.generation {
        let before = current["metadata"]["generation"].as_i64().unwrap_or(1);
        let moved = subresource != "status"
            && finish::spec_differs(current, &new, resource.status || !resource.custom);
        new["metadata"]["generation"] = Value::from(if moved { before + 1 } else { before });
    }
    Ok(new)
}

fn carry(from: &Value, to: &mut Value, field: &str) {
    let Some(map) = to.as_object_mut() else { return };
    match from.get(field) {
        Some(value) => {
            map.insert(field.to_owned(), value.clone());
        }
        None => {
            map.remove(field);
        }
    }
}

fn keep_identity(current: &Value, new: &mut Value) {
    let kept = &current["metadata"];
    let metadata = meta::metadata_mut(new);
    for field in [
        "name",
        "generateName",
        "namespace",
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "resourceVersion",
        "generation",
        "selfLink",
    ] {
        match kept.get(field) {
            Some(value) => {
                metadata.insert(field.to_owned(), value.clone());
            }
            None => {
                metadata.remove(field);
            }
        }
    }
}

fn no_new_finalizers(resource: &Resource, current: &Value, new: &Value) -> Result<(), ApiError> {
    if !meta::is_terminating(current) {
        return Ok(());
    }
    let before = meta::finalizers(current);
    let added: Vec<&str> =
        meta::finalizers(new).into_iter().filter(|f| !before.contains(f)).collect();
    if added.is_empty() {
        return Ok(());
    }
    Err(ApiError::invalid(
        &resource.group,
        &resource.kind,
        meta::name(new),
        &[FieldError::forbidden(
            "metadata.finalizers",
            format!(
                "no new finalizers can be added if the object is being deleted, found new finalizers {added:?}"
            ),
        )],
    ))
}

/// The change that makes `new` the stored object: nothing when it is the same, and the
/// end of an object whose last finalizer went.
pub fn conclude(resource: &Resource, current: &Arc<Value>, new: Value) -> Result<Change, ApiError> {
    if same(current, &new) {
        return Ok(Change::Keep(current.clone()));
    }
    if meta::is_terminating(&new) && super::delete::may_end(resource, &new) {
        return Ok(Change::Delete(new));
    }
    Ok(Change::Put(new))
}

/// Equal but for times of field ownership.
fn same(current: &Value, new: &Value) -> bool {
    let (Some(a), Some(b)) = (current.as_object(), new.as_object()) else { return false };
    if a.len() != b.len()
        || a.iter().any(|(key, value)| key != "metadata" && b.get(key) != Some(value))
    {
        return false;
    }
    let (Some(a), Some(b)) = (current["metadata"].as_object(), new["metadata"].as_object()) else {
        return false;
    };
    let rest = |map: &serde_json::Map<String, Value>| {
        map.keys().filter(|key| *key != "managedFields").count()
    };
    if rest(a) != rest(b)
        || a.iter().any(|(key, value)| key != "managedFields" && b.get(key) != Some(value))
    {
        return false;
    }
    let untimed = |map: &serde_json::Map<String, Value>| -> Vec<Value> {
        let mut entries =
            map.get("managedFields").and_then(Value::as_array).cloned().unwrap_or_default();
        for entry in &mut entries {
            if let Some(entry) = entry.as_object_mut() {
                entry.remove("time");
            }
        }
        entries.sort_by_cached_key(Value::to_string);
        entries
    };
    a.get("managedFields") == b.get("managedFields") || untimed(a) == untimed(b)
}
