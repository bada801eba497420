//! SSH keys, managed by their owner.

use axum::{
    Json,
    extract::{Path, State, rejection::JsonRejection},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use runtime::audit::{Event, Outcome};
use serde::Deserialize;
use serde_json::json;

use super::{
    bearer::{AccountBearer, Bearer},
    error::ApiError,
};
use crate::{
    server::{App, Server},
    ssh_key::PublicKey,
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NewKey {
    name: String,
    public_key: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Which {
    name: Option<String>,
    public_key: Option<String>,
}

pub(super) async fn list(
    State(app): State<App>,
    AccountBearer(bearer): AccountBearer,
) -> Result<Response, ApiError> {
    let keys = app.store.ssh_keys(&bearer.person.subject).await?;
    Ok(Json(json!({ "keys": keys })).into_response())
}

pub(super) async fn add(
    State(app): State<App>,
    AccountBearer(bearer): AccountBearer,
    body: Result<Json<NewKey>, JsonRejection>,
) -> Result<Response, ApiError> {
    let Json(new) = body.map_err(|error| ApiError::BadRequest(error.body_text()))?;
    let key = PublicKey::parse(&new.public_key)
        .map_err(|error| ApiError::BadRequest(error.to_string()))?;
    let key =
        app.store.register_ssh_key(&bearer.person, &new.name, &key, bearer.caller.now).await?;
    changed(&app, &bearer, "key-added", &key.fingerprint).await?;
    Ok((StatusCode::CREATED, Json(key)).into_response())
}

/// By `name`, or by `public_key`.
pub(super) async fn remove(
    State(app): State<App>,
    AccountBearer(bearer): AccountBearer,
    body: Result<Json<Which>, JsonRejection>,
) -> Result<StatusCode, ApiError> {
    let Json(which) = body.map_err(|error| ApiError::BadRequest(error.body_text()))?;
    let which = match (which.name, which.public_key) {
        (Some(name), None) => name,
        (None, Some(key)) => PublicKey::parse(&key)
            .map_err(|error| ApiError::BadRequest(error.to_string()))?
            .fingerprint()
            .to_owned(),
        _ => return Err(ApiError::BadRequest("give either name or public_key".to_owned())),
    };
    take_away(&app, &bearer, &which).await
}

pub(super) async fn remove_by_id(
    State(app): State<App>,
    AccountBearer(bearer): AccountBearer,
    Path(id): Path<String>,
) -> Result<StatusCode, ApiError> {
    take_away(&app, &bearer, &id).await
}

async fn take_away(app: &Server, bearer: &Bearer, which: &str) -> Result<StatusCode, ApiError> {
    if !app.store.remove_ssh_key(&bearer.person.subject, which).await? {
        return Err(ApiError::NotFound("you have no such key"));
    }
    changed(app, bearer, "key-removed", which).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn changed(app: &Server, bearer: &Bearer, did: &str, key: &str) -> Result<(), ApiError> {
    let event = Event {
        who: Some(bearer.person.name.as_str()),
        did,
        to: Some(&format!("Key {key}")),
        from: Some(bearer.caller.address),
        credential: Some(&bearer.identity.credential),
        outcome: Outcome::Allowed,
        detail: None,
    };
    app.audit.record(bearer.caller.now, event);
    Ok(app.check_feed().await?)
}
