//! SSH keys, managed by their owner.

use axum::{
    Json,
    extract::{Path, State, rejection::JsonRejection},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde::Deserialize;
use serde_json::json;

use super::{
    bearer::{AccountBearer, Actor},
    error::ApiError,
};
use crate::{
    server::{App, Server},
    ssh_key::PublicKey,
    store::SshKey,
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
    let key = register(&app, &bearer.actor(), &new.name, &new.public_key).await?;
    Ok((StatusCode::CREATED, Json(key)).into_response())
}

/// `line` is a public key as people paste it.
pub(super) async fn register(
    app: &Server,
    actor: &Actor<'_>,
    name: &str,
    line: &str,
) -> Result<SshKey, ApiError> {
    let key = PublicKey::parse(line).map_err(|error| ApiError::BadRequest(error.to_string()))?;
    let key = app.store.register_ssh_key(actor.person, name, &key, actor.caller.now).await?;
    changed(app, actor, "key-added", &key.fingerprint).await?;
    Ok(key)
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
    take_away(&app, &bearer.actor(), &which).await
}

pub(super) async fn remove_by_id(
    State(app): State<App>,
    AccountBearer(bearer): AccountBearer,
    Path(id): Path<String>,
) -> Result<StatusCode, ApiError> {
    take_away(&app, &bearer.actor(), &id).await
}

/// By id, name or fingerprint.
pub(super) async fn take_away(
    app: &Server,
    actor: &Actor<'_>,
    which: &str,
) -> Result<StatusCode, ApiError> {
    if !app.store.remove_ssh_key(&actor.person.subject, which).await? {
        return Err(ApiError::NotFound("you have no such key"));
    }
    changed(app, actor, "key-removed", which).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn changed(app: &Server, actor: &Actor<'_>, did: &str, key: &str) -> Result<(), ApiError> {
    actor.record(app, did, &format!("Key {key}"));
    Ok(app.check_feed().await?)
}
