//! POST, and the creating half of server-side apply.

use std::sync::Arc;

use axum::body::Body;
use http::{Response, StatusCode};
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::{App, Call, finish, respond};
use crate::api::fields::{self, Operation};
use crate::api::meta;
use crate::api::registry::Resource;
use crate::api::status::ApiError;
use crate::api::store::Change;

pub async fn create(
    app: &Arc<App>,
    call: Call,
    mut object: Value,
) -> Result<Response<Body>, ApiError> {
    if call.resource.is_new_events() {
        object = crate::api::events::to_core(&object);
    }
    let (stored, warnings) = create_object(app, &call, object).await?;
    let mut response =
        respond::object(&call.resource, call.shape, StatusCode::CREATED, &stored, "");
    respond::warn(&mut response, &warnings);
    Ok(response)
}

/// Creates an object as a client sent it. Returns it as stored, and warnings.
pub async fn create_object(
    app: &Arc<App>,
    call: &Call,
    mut object: Value,
) -> Result<(Arc<Value>, Vec<String>), ApiError> {
    let now = Timestamp::now();
    if call.resource.is_new_events() {
        object["apiVersion"] = Value::String(call.resource.api_version());
    }
    finish::conform(call, &mut object)?;
    if !meta::text(&object, "resourceVersion").is_empty() {
        return Err(ApiError::bad_request(
            "resourceVersion should not be set on objects to be created",
        ));
    }
    let mut warnings = finish::prune(&call.resource, &call.options, &mut object)?;
    let generated =
        meta::name(&object).is_empty() && !meta::text(&object, "generateName").is_empty();
    if generated {
        let name = finish::generate_name(meta::text(&object, "generateName"));
        object["metadata"]["name"] = Value::String(name);
    }
    object = initial(app, &call.resource, object, now);
    finish::validate(app, &call.resource, &object, None)?;
    let actor = call.actor(Operation::Update, "", now);
    fields::track_update(&call.resource.schema, None, &mut object, &actor);
    let stored = insert(app, call, object).await?;
    warnings.extend(finish::warnings(&call.resource, &stored));
    Ok((stored, warnings))
}

/// Puts a new, complete object into the store.
async fn insert(app: &Arc<App>, call: &Call, object: Value) -> Result<Arc<Value>, ApiError> {
    let resource = &call.resource;
    let name = meta::name(&object).to_owned();
    let namespace = call.target.namespace.clone();
    let mut dry = None;
    let result = app
        .store
        .write(&resource.store_key, &namespace, &name, |current| {
            if let Some(current) = current {
                let mut error = ApiError::already_exists(&resource.group, &resource.plural, &name);
                if meta::is_terminating(current) {
                    error.message = format!("object is being deleted: {}", error.message);
                }
                return Err(error);
            }
            finish::check_namespace(app, resource, &namespace, &name)?;
            finish::check_service_account(app, resource, &object)?;
            if call.options.dry_run {
                let object = Arc::new(object);
                dry = Some(object.clone());
                return Ok(Change::Keep(object));
            }
            Ok(Change::Put(object))
        })
        .await;
    let (stored, _) = result?;
    if let Some(object) = dry {
        return Ok(object);
    }
    finish::after_write(app, resource, &stored, false);
    if resource.is("", "namespaces") {
        make_service_account(app, &name).await;
    }
    Ok(stored)
}

/// A new object's identity and defaults.
pub fn initial(app: &App, resource: &Resource, mut object: Value, now: Timestamp) -> Value {
    let metadata = meta::metadata_mut(&mut object);
    for field in [
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "selfLink",
        "resourceVersion",
        "generation",
    ] {
        metadata.remove(field);
    }
    metadata.insert("uid".to_owned(), uuid::Uuid::new_v4().to_string().into());
    metadata.insert("creationTimestamp".to_owned(), meta::stamp(now).into());
    if resource.generation {
        metadata.insert("generation".to_owned(), 1.into());
    }
    object["apiVersion"] = Value::String(resource.storage_api_version.clone());
    if resource.status
        && let Some(map) = object.as_object_mut()
    {
        map.remove("status");
    }
    finish::default(app, resource, &mut object, None);
    object
}

/// Creates by server-side apply: `config` is what the manager owns.
pub async fn create_applied(
    app: &Arc<App>,
    call: &Call,
    config: Value,
) -> Result<Arc<Value>, ApiError> {
    let now = Timestamp::now();
    let mut config = config;
    if call.resource.status
        && let Some(map) = config.as_object_mut()
    {
        map.remove("status");
    }
    let actor = call.actor(Operation::Apply, "", now);
    let applied = fields::apply(&call.resource.schema, None, &config, &actor, call.options.force)?;
    let managed = applied["metadata"].get("managedFields").cloned();
    let mut object = initial(app, &call.resource, applied, now);
    if let Some(managed) = managed {
        meta::metadata_mut(&mut object).insert("managedFields".to_owned(), managed);
    }
    finish::validate(app, &call.resource, &object, None)?;
    insert(app, call, object).await
}

/// Each namespace has a service account `default`.
pub async fn make_service_account(app: &Arc<App>, namespace: &str) {
    let registry = app.registry();
    let Some(resource) = registry.find("", "v1", "serviceaccounts") else { return };
    let object = initial(
        app,
        resource,
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": namespace}}),
        Timestamp::now(),
    );
    let made = app
        .store
        .write(&resource.store_key, namespace, "default", |current| match current {
            Some(current) => Ok(Change::Keep(current.clone())),
            None => Ok(Change::Put(object)),
        })
        .await;
    if let Err(error) = made {
        tracing::warn!(%error, namespace, "cannot create the default service account");
    }
}

/// The namespaces every cluster has.
pub async fn bootstrap(app: &Arc<App>) -> Result<(), ApiError> {
    let registry = app.registry();
    let Some(resource) = registry.find("", "v1", "namespaces") else {
        return Err(ApiError::internal("namespaces are not served"));
    };
    for name in ["default", "kube-system", "kube-public", "kube-node-lease"] {
        let mut object =
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        object["spec"] = Value::Object(Map::new());
        let object = initial(app, resource, object, Timestamp::now());
        app.store
            .write(&resource.store_key, "", name, |current| match current {
                Some(current) => Ok(Change::Keep(current.clone())),
                None => Ok(Change::Put(object)),
            })
            .await?;
        make_service_account(app, name).await;
    }
    Ok(())
}
