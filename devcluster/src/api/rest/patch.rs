//! PATCH in its four forms: JSON patch (RFC 6902), merge patch (RFC 7396), strategic
//! merge patch, and server-side apply.

use std::sync::Arc;

use axum::body::Body;
use bytes::Bytes;
use http::{Response, StatusCode, request::Parts};
use jiff::Timestamp;
use serde_json::Value;

use super::{App, Call, content_type, create, finish, parse_object, respond, update};
use crate::api::fields::{self, Operation};
use crate::api::meta;
use crate::api::registry::Resource;
use crate::api::schema::{self, Schema};
use crate::api::status::ApiError;
use crate::api::store::{Change, Wrote};
use crate::api::strategic;

pub enum Patch {
    Json(json_patch::Patch),
    Merge(Value),
    Strategic(Value),
    Apply(Value),
}

impl Patch {
    pub fn read(parts: &Parts, body: Bytes) -> Result<Self, ApiError> {
        match content_type(parts) {
            "application/json-patch+json" => {
                serde_json::from_slice(&body).map(Self::Json).map_err(|error| {
                    ApiError::bad_request(format!("error decoding JSON patch: {error}"))
                })
            }
            "application/merge-patch+json" => parse_object(&body).map(Self::Merge),
            "application/strategic-merge-patch+json" => parse_object(&body).map(Self::Strategic),
            "application/apply-patch+yaml" | "application/apply-patch+json" => {
                parse_object(&body).map(Self::Apply)
            }
            other => Err(ApiError::unsupported_media_type(format!(
                "the body of the request was in an unknown format - accepted media types include: application/json-patch+json, application/merge-patch+json, application/strategic-merge-patch+json, application/apply-patch+yaml (got {other:?})"
            ))),
        }
    }

    /// The patched value; apply patches are not values, and are an error here.
    pub fn on(&self, schema: Option<&Schema>, value: &Value) -> Result<Value, ApiError> {
        let mut patched = value.clone();
        match self {
            Self::Json(patch) => json_patch::patch(&mut patched, patch).map_err(|error| {
                let mut invalid =
                    ApiError::bad_request(format!("the patch cannot be applied: {error}"));
                invalid.code = 422;
                invalid.reason = "Invalid";
                invalid
            })?,
            Self::Merge(patch) => json_patch::merge(&mut patched, patch),
            Self::Strategic(patch) => {
                strategic::merge(schema, &mut patched, patch).map_err(|why| {
                    ApiError::bad_request(format!("the strategic merge patch is not valid: {why}"))
                })?
            }
            Self::Apply(_) => {
                return Err(ApiError::unsupported_media_type(
                    "server-side apply is not possible here",
                ));
            }
        }
        if patched.is_object() {
            Ok(patched)
        } else {
            Err(ApiError::bad_request("the patch does not leave an object"))
        }
    }
}

/// Patches the object, or one of its subresources that is part of it.
pub async fn patch(
    app: &Arc<App>,
    call: Call,
    patch: Patch,
    subresource: &str,
) -> Result<Response<Body>, ApiError> {
    if matches!(patch, Patch::Strategic(_)) && call.resource.custom {
        return Err(ApiError::unsupported_media_type(
            "the body of the request was in an unknown format - accepted media types include: application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml",
        ));
    }
    if let Patch::Apply(config) = patch {
        return apply(app, call, config, subresource).await;
    }
    if call.options.force {
        return Err(ApiError::bad_request(
            "force: Forbidden: may not be specified for non-apply patch",
        ));
    }
    let mut warnings = Vec::new();
    let (stored, _) = update::change(app, &call, |current| {
        let current = current.ok_or_else(|| call.not_found())?;
        let shown = respond::in_version(&call.resource, current);
        let mut patched = patch.on(Some(&call.resource.schema), &shown)?;
        check_unmoved(&call.resource, &shown, &patched)?;
        if call.resource.is_new_events() {
            patched = crate::api::events::to_core(&patched);
            patched["apiVersion"] = Value::String(call.resource.api_version());
        }
        finish::conform(&call, &mut patched)?;
        warnings = finish::prune(&call.resource, &call.options, &mut patched)?;
        update::update(app, &call, current, patched, subresource, Timestamp::now())
    })
    .await?;
    warnings.extend(finish::warnings(&call.resource, &stored));
    let mut response = respond::object(&call.resource, call.shape, StatusCode::OK, &stored, "");
    respond::warn(&mut response, &warnings);
    Ok(response)
}

fn check_unmoved(resource: &Resource, before: &Value, after: &Value) -> Result<(), ApiError> {
    for field in ["name", "namespace"] {
        if before["metadata"][field] != after["metadata"][field] {
            return Err(ApiError::bad_request(format!(
                "{}: metadata.{field} cannot be changed by a patch",
                resource.kind
            )));
        }
    }
    Ok(())
}

async fn apply(
    app: &Arc<App>,
    call: Call,
    mut config: Value,
    subresource: &str,
) -> Result<Response<Body>, ApiError> {
    if !call.options.manager_given {
        return Err(ApiError::bad_request(
            "fieldManager: Required value: is required for apply patch; set the query parameter fieldManager",
        ));
    }
    if config["metadata"]
        .get("managedFields")
        .is_some_and(|m| m.as_array().is_none_or(|list| !list.is_empty()))
    {
        return Err(ApiError::bad_request("metadata.managedFields must be nil"));
    }
    for field in ["apiVersion", "kind"] {
        if config[field].as_str().unwrap_or("").is_empty() {
            return Err(ApiError::bad_request(format!("an applied object must say its {field}")));
        }
    }
    finish::conform(&call, &mut config)?;
    check_typed(&call.resource, &config)?;
    let respond_with = |stored: &Value, status| {
        let mut response = respond::object(&call.resource, call.shape, status, stored, "");
        respond::warn(&mut response, &finish::warnings(&call.resource, stored));
        response
    };
    let exists =
        app.store.get(&call.resource.store_key, &call.target.namespace, call.name()).is_some();
    if !exists && subresource.is_empty() {
        let asked = meta::text(&config, "uid");
        if !asked.is_empty() {
            return Err(ApiError::conflict(
                &call.resource.group,
                &call.resource.plural,
                call.name(),
                format!(
                    "uid mismatch: the provided object specified uid {asked}, and no existing object was found"
                ),
            ));
        }
        match create::create_applied(app, &call, config.clone()).await {
            // Somebody was faster: apply onto what is there now.
            Err(error) if error.reason == "AlreadyExists" => {}
            result => return result.map(|stored| respond_with(&stored, StatusCode::CREATED)),
        }
    }
    let (stored, wrote) = update::change(app, &call, |current| {
        let current = current.ok_or_else(|| call.not_found())?;
        apply_on(app, &call, current, config, subresource)
    })
    .await?;
    let status = if wrote == Wrote::Created { StatusCode::CREATED } else { StatusCode::OK };
    Ok(respond_with(&stored, status))
}

/// Refuses a configuration that is no typed value, as API servers do: with 500 and no reason, whatever
/// `fieldValidation` says.
fn check_typed(resource: &Resource, config: &Value) -> Result<(), ApiError> {
    let what = || {
        let group_version = if resource.group.is_empty() {
            format!("/{}", resource.version)
        } else {
            resource.api_version()
        };
        let (namespace, name) = (meta::namespace(config), meta::name(config));
        format!("({namespace}/{name}; {group_version}, Kind={})", resource.kind)
    };
    match schema::untyped(&resource.schema, config).as_slice() {
        [] => {}
        [one] => {
            return Err(ApiError::untyped(format!(
                "failed to create typed patch object {}: {one}",
                what()
            )));
        }
        many => {
            let lines: Vec<String> = many.iter().map(|error| format!("  {error}")).collect();
            return Err(ApiError::untyped(format!(
                "failed to create typed patch object {}: errors:\n{}",
                what(),
                lines.join("\n")
            )));
        }
    }
    if schema::bad_quantity(&resource.schema, config).is_some() {
        return Err(ApiError::untyped(format!(
            "failed to convert new object {} to proper version ({}): quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
            what(),
            resource.api_version()
        )));
    }
    Ok(())
}

fn apply_on(
    app: &App,
    call: &Call,
    current: &Arc<Value>,
    mut config: Value,
    subresource: &str,
) -> Result<Change, ApiError> {
    let resource = &call.resource;
    let now = Timestamp::now();
    let wanted = meta::text(&config, "resourceVersion").to_owned();
    if !wanted.is_empty() && wanted != meta::text(current, "resourceVersion") {
        return Err(ApiError::stale(&resource.group, &resource.plural, call.name()));
    }
    if let Some(map) = config.as_object_mut() {
        if subresource == "status" {
            map.retain(|key, _| {
                matches!(key.as_str(), "apiVersion" | "kind" | "metadata" | "status")
            });
            if let Some(metadata) = map.get_mut("metadata").and_then(Value::as_object_mut) {
                metadata.retain(|key, _| matches!(key.as_str(), "name" | "namespace" | "uid"));
            }
        } else if resource.status {
            map.remove("status");
        }
    }
    let actor = call.actor(Operation::Apply, subresource, now);
    let merged =
        fields::apply(&resource.schema, Some(current), &config, &actor, call.options.force)?;
    let managed = merged["metadata"].get("managedFields").cloned();
    let mut new = update::settle(app, call, current, merged, subresource)?;
    let metadata = meta::metadata_mut(&mut new);
    match managed {
        Some(managed) => metadata.insert("managedFields".to_owned(), managed),
        None => metadata.remove("managedFields"),
    };
    update::conclude(resource, current, new)
}
