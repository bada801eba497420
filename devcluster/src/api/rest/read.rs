//! GET of one object, and lists in pages.

use std::borrow::Cow;
use std::sync::Arc;

use axum::body::Body;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::{Response, StatusCode};
use serde_json::{Value, json};

use super::respond::{self, Shape};
use super::{App, Call};
use crate::api::status::ApiError;
use crate::api::store::Key;
use crate::api::table;

pub fn get(app: &Arc<App>, call: &Call) -> Result<Response<Body>, ApiError> {
    let object = app
        .store
        .get(&call.resource.store_key, &call.target.namespace, call.name())
        .ok_or_else(|| call.not_found())?;
    let include = call.options.raw("includeObject").unwrap_or("");
    Ok(respond::object(&call.resource, call.shape, StatusCode::OK, &object, include))
}

/// Where a list goes on: the revision of its first page, and the next key.
#[derive(serde::Serialize, serde::Deserialize)]
struct Token {
    revision: u64,
    namespace: String,
    name: String,
}

pub fn list(app: &Arc<App>, call: &Call) -> Result<Response<Body>, ApiError> {
    let resource = &call.resource;
    let selector = call.options.selector(resource.custom)?;
    let token = match &call.options.continue_token {
        None => None,
        Some(text) => Some(decode_token(text)?),
    };
    let (start, first_revision) = match token {
        None => (None, None),
        Some(token) => (Some((token.namespace, token.name)), Some(token.revision)),
    };
    if let Some(revision) = first_revision
        && app.store.is_compacted(&resource.store_key, revision)
    {
        return Err(ApiError::expired(
            "The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue parameter.",
        ));
    }
    check_revision(app, call)?;
    let page = app.store.list(
        &resource.store_key,
        &call.target.namespace,
        start.as_ref(),
        call.options.limit,
        |object| selector.matches(object),
    );
    // All pages carry the revision of the first: a watch from there brings what changed
    // while the later pages were read.
    let revision = first_revision.unwrap_or(page.revision);
    let next = page.next.as_ref().map(|key| encode_token(revision, key));
    let remaining = (page.next.is_some() && selector.is_empty()).then_some(page.remaining);
    let revision = revision.to_string();
    if let Shape::Table(version) = call.shape {
        let include = call.options.raw("includeObject").unwrap_or("");
        let objects = page.items.iter().map(AsRef::as_ref);
        let table = table::table(
            resource,
            version,
            objects,
            include,
            &revision,
            next.as_deref(),
            remaining,
        );
        return Ok(respond::json_response(StatusCode::OK, &table));
    }
    let mut metadata = json!({ "resourceVersion": revision });
    if let Some(next) = next {
        metadata["continue"] = Value::String(next);
    }
    if let Some(remaining) = remaining {
        metadata["remainingItemCount"] = Value::from(remaining);
    }
    let list = match call.shape {
        Shape::Metadata(version) => respond::List {
            kind: "PartialObjectMetadataList",
            api_version: format!("meta.k8s.io/{version}"),
            metadata,
            items: page
                .items
                .iter()
                .map(|object| Cow::Owned(respond::metadata_only(object, version)))
                .collect(),
        },
        _ => respond::List {
            kind: &resource.list_kind,
            api_version: resource.api_version(),
            metadata,
            items: page.items.iter().map(|object| respond::in_version(resource, object)).collect(),
        },
    };
    Ok(respond::json_response(StatusCode::OK, &list))
}

/// Lists show the present, so only revisions that the present satisfies can be asked for.
fn check_revision(app: &App, call: &Call) -> Result<(), ApiError> {
    let asked = match call.options.resource_version.as_deref() {
        None | Some("0") => return Ok(()),
        Some(text) => text.parse::<u64>().map_err(|_| {
            ApiError::bad_request(format!(
                "resourceVersion: Invalid value: {text:?}: must be a number"
            ))
        })?,
    };
    let now = app.store.revision();
    if asked > now {
        return Err(ApiError::expired(format!(
            "Too large resource version: {asked}, current: {now}"
        )));
    }
    if call.options.resource_version_match.as_deref() == Some("Exact") && asked < now {
        return Err(crate::api::store::too_old(asked, now));
    }
    Ok(())
}

fn encode_token(revision: u64, key: &Key) -> String {
    let token = Token { revision, namespace: key.0.clone(), name: key.1.clone() };
    URL_SAFE_NO_PAD.encode(serde_json::to_vec(&token).unwrap_or_default())
}

fn decode_token(text: &str) -> Result<Token, ApiError> {
    URL_SAFE_NO_PAD
        .decode(text)
        .ok()
        .and_then(|bytes| serde_json::from_slice(&bytes).ok())
        .ok_or_else(|| ApiError::bad_request("continue key is not valid"))
}
