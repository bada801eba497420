//! What every write does with an object: pruning, defaulting, validation, identity.

use std::sync::Arc;

use jiff::Timestamp;
use rand::seq::IndexedRandom as _;
use serde_json::Value;

use super::options::{FieldValidation, Options};
use super::{App, Call};
use crate::api::fields::{Actor, Operation};
use crate::api::registry::Resource;
use crate::api::status::{ApiError, FieldError, FieldErrorKind};
use crate::api::{builtin, cel, crd, meta, names, schema};

impl Call {
    pub fn actor(&self, operation: Operation, subresource: &str, now: Timestamp) -> Actor {
        Actor {
            manager: self.options.field_manager.clone(),
            operation,
            subresource: subresource.to_owned(),
            api_version: self.resource.api_version(),
            time: meta::stamp(now),
        }
    }

    pub fn name(&self) -> &str {
        self.target.name.as_deref().unwrap_or("")
    }

    pub fn not_found(&self) -> ApiError {
        ApiError::not_found(&self.resource.group, &self.resource.plural, self.name())
    }
}

/// Checks that the body is of the type and namespace that the path says, and fills in
/// what it leaves out.
pub fn conform(call: &Call, object: &mut Value) -> Result<(), ApiError> {
    let resource = &call.resource;
    let (api_version, kind) = (resource.api_version(), resource.kind.as_str());
    for (field, wanted) in [("apiVersion", api_version.as_str()), ("kind", kind)] {
        match object.get(field).and_then(Value::as_str) {
            None | Some("") => object[field] = Value::String(wanted.to_owned()),
            Some(found) if found == wanted => {}
            Some(found) => {
                return Err(ApiError::bad_request(format!(
                    "the {field} in the data ({found}) does not match the expected {field} ({wanted})"
                )));
            }
        }
    }
    if object.get("metadata").is_some_and(|metadata| !metadata.is_object() && !metadata.is_null()) {
        return Err(ApiError::bad_request("metadata must be an object"));
    }
    let metadata = meta::metadata_mut(object);
    for field in ["name", "generateName", "namespace", "uid", "resourceVersion"] {
        if metadata.get(field).is_some_and(|value| !value.is_string()) {
            if metadata.get(field).is_some_and(Value::is_null) {
                metadata.remove(field);
            } else {
                return Err(ApiError::bad_request(format!("metadata.{field} must be a string")));
            }
        }
    }
    if resource.namespaced {
        let namespace = meta::namespace(object).to_owned();
        if namespace.is_empty() {
            object["metadata"]["namespace"] = Value::String(call.target.namespace.clone());
        } else if namespace != call.target.namespace {
            return Err(ApiError::bad_request(
                "the namespace of the provided object does not match the namespace sent on the request",
            ));
        }
    } else {
        meta::metadata_mut(object).remove("namespace");
    }
    if let Some(name) = &call.target.name {
        let found = meta::name(object);
        if found.is_empty() {
            object["metadata"]["name"] = Value::String(name.clone());
        } else if found != name {
            return Err(ApiError::bad_request(format!(
                "the name of the object ({found}) does not match the name on the URL ({name})"
            )));
        }
    }
    Ok(())
}

/// Removes unknown fields; says so as the client asked.
pub fn prune(
    resource: &Resource,
    options: &Options,
    object: &mut Value,
) -> Result<Vec<String>, ApiError> {
    let unknown = schema::prune(&resource.schema, object, true);
    if unknown.is_empty() || options.validation == FieldValidation::Ignore {
        return Ok(Vec::new());
    }
    let texts: Vec<String> =
        unknown.iter().map(|path| format!("unknown field \"{path}\"")).collect();
    if options.validation == FieldValidation::Strict {
        return Err(ApiError::bad_request(format!(
            "{} in version \"{}\" cannot be handled as a {}: strict decoding error: {}",
            resource.kind,
            resource.version,
            resource.kind,
            texts.join(", ")
        )));
    }
    Ok(texts)
}

/// What a client is told of an object that is accepted.
pub fn warnings(resource: &Resource, object: &Value) -> Vec<String> {
    if resource.plural == crd::PLURAL {
        crd::warnings(object)
    } else {
        builtin::warnings(resource, object)
    }
}

/// Fills in defaults.
pub fn default(app: &App, resource: &Resource, object: &mut Value, old: Option<&Value>) {
    schema::apply_defaults(&resource.schema, object);
    if !resource.custom {
        builtin::defaults(app, resource, object, old);
    }
    // Empty is the same as absent, and is not kept.
    let metadata = meta::metadata_mut(object);
    for field in ["labels", "annotations", "finalizers", "ownerReferences"] {
        let empty = match metadata.get(field) {
            Some(Value::Object(map)) => map.is_empty(),
            Some(Value::Array(list)) => list.is_empty(),
            Some(Value::Null) => true,
            _ => false,
        };
        if empty {
            metadata.remove(field);
        }
    }
}

/// Everything that can be wrong with an object.
pub fn validate(
    app: &App,
    resource: &Resource,
    object: &Value,
    old: Option<&Value>,
) -> Result<(), ApiError> {
    let mut errors = metadata_errors(resource, object, old);
    let found = schema::validate(&resource.schema, object, old);
    if resource.custom {
        // Rules look at values that have the right types.
        let typed = found.is_empty();
        errors.extend(found);
        if typed {
            errors.extend(cel::validate(&resource.schema, object, old));
        }
    } else {
        if let Some(wrong) = found.iter().find(|error| error.kind == FieldErrorKind::TypeInvalid) {
            return Err(ApiError::bad_request(format!(
                "{} in version \"{}\" cannot be handled as a {}: {wrong}",
                resource.kind, resource.version, resource.kind
            )));
        }
        errors.extend(builtin::validate(resource, object, old));
        if resource.plural == crd::PLURAL {
            errors.extend(crd::validate(&app.registry(), object, old));
        }
    }
    if !errors.is_empty() {
        return Err(ApiError::invalid(
            &resource.group,
            &resource.kind,
            meta::name(object),
            &errors,
        ));
    }
    check_claim_growth(app, resource, object, old)
}

/// A claim grows only if its class says that its volumes can (the admission plug-in
/// `PersistentVolumeClaimResize`).
fn check_claim_growth(
    app: &App,
    resource: &Resource,
    claim: &Value,
    old: Option<&Value>,
) -> Result<(), ApiError> {
    let Some(old) = old.filter(|_| resource.is("", "persistentvolumeclaims")) else {
        return Ok(());
    };
    if builtin::requested(&claim["spec"]) <= builtin::requested(&old["spec"]) {
        return Ok(());
    }
    let class = claim["spec"]["storageClassName"].as_str().unwrap_or("");
    let class = app.store.get("storage.k8s.io/storageclasses", "", class);
    if class.is_some_and(|class| class["allowVolumeExpansion"] == true) {
        return Ok(());
    }
    Err(ApiError::forbidden(
        &resource.group,
        &resource.plural,
        meta::name(claim),
        "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize",
    ))
}

fn metadata_errors(resource: &Resource, object: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let metadata = &object["metadata"];
    let name = meta::name(object);
    if name.is_empty() {
        errors.push(FieldError::new(
            "metadata.name",
            FieldErrorKind::Required,
            "name or generateName is required",
        ));
    } else if old.is_none()
        && let Some(why) = builtin::name_problem(resource, name)
    {
        errors.push(FieldError::invalid("metadata.name", &metadata["name"], why));
    }
    errors.extend(names::labels_problems(&metadata["labels"], "metadata.labels"));
    errors.extend(names::annotations_problems(&metadata["annotations"], "metadata.annotations"));
    for finalizer in meta::finalizers(object) {
        if let Some(why) = names::label_key_problem(finalizer) {
            errors.push(FieldError::invalid("metadata.finalizers", &Value::from(finalizer), why));
        }
    }
    let owners = metadata["ownerReferences"].as_array();
    let mut controllers = 0;
    for (i, owner) in owners.into_iter().flatten().enumerate() {
        for field in ["apiVersion", "kind", "name", "uid"] {
            if owner[field].as_str().unwrap_or("").is_empty() {
                errors.push(FieldError::required(format!("metadata.ownerReferences[{i}].{field}")));
            }
        }
        controllers += usize::from(owner["controller"] == true);
    }
    if controllers > 1 {
        errors.push(FieldError::invalid(
            "metadata.ownerReferences",
            &metadata["ownerReferences"],
            "Only one reference can have Controller set to true",
        ));
    }
    errors
}

/// A name for an object that asks for one: the base and five letters and digits that
/// spell no words (as Kubernetes' name generator does).
pub fn generate_name(base: &str) -> String {
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let base: String = base.chars().take(58).collect();
    let mut random = rand::rng();
    let suffix: String =
        (0..5).filter_map(|_| ALPHABET.choose(&mut random)).map(|byte| char::from(*byte)).collect();
    format!("{base}{suffix}")
}

/// Namespaced objects are created in namespaces that exist and are not going away.
pub fn check_namespace(
    app: &App,
    resource: &Resource,
    namespace: &str,
    name: &str,
) -> Result<(), ApiError> {
    if !resource.namespaced {
        return Ok(());
    }
    let Some(found) = app.store.get("/namespaces", "", namespace) else {
        return Err(ApiError::not_found("", "namespaces", namespace));
    };
    if meta::is_terminating(&found) {
        let mut error = ApiError::forbidden(
            &resource.group,
            &resource.plural,
            name,
            format!(
                "unable to create new content in namespace {namespace} because it is being terminated"
            ),
        );
        if let Some(details) = error.details.as_mut() {
            details["causes"] = serde_json::json!([{
                "reason": "NamespaceTerminating",
                "message": format!("namespace {namespace} is being terminated"),
                "field": "metadata.namespace",
            }]);
        }
        return Err(error);
    }
    Ok(())
}

/// A pod runs under an account that exists (`default` always does).
pub fn check_service_account(app: &App, resource: &Resource, pod: &Value) -> Result<(), ApiError> {
    let account = pod["spec"]["serviceAccountName"].as_str().unwrap_or("default");
    let namespace = meta::namespace(pod);
    if !resource.is("", "pods")
        || account == "default"
        || app.store.get("/serviceaccounts", namespace, account).is_some()
    {
        return Ok(());
    }
    Err(ApiError::forbidden(
        "",
        "pods",
        meta::name(pod),
        format!(
            "error looking up service account {namespace}/{account}: serviceaccount \"{account}\" not found"
        ),
    ))
}

/// Whether the specification (everything but metadata and status) differs.
pub fn spec_differs(old: &Value, new: &Value, has_status: bool) -> bool {
    let (Some(old), Some(new)) = (old.as_object(), new.as_object()) else { return true };
    let counts = |key: &str| match key {
        "metadata" | "apiVersion" | "kind" => false,
        "status" => !has_status,
        _ => true,
    };
    old.iter().filter(|(key, _)| counts(key)).any(|(key, value)| new.get(key) != Some(value))
        || new.iter().filter(|(key, _)| counts(key)).any(|(key, _)| !old.contains_key(key))
}

/// What is done when a definition was written or removed.
pub fn after_write(app: &Arc<App>, resource: &Resource, object: &Value, removed: bool) {
    if resource.plural != crd::PLURAL || resource.group != crd::GROUP {
        return;
    }
    app.sync_definition(object);
    if !removed && meta::is_terminating(object) {
        crd::clean_up(app.clone(), meta::name(object).to_owned());
    }
}
