//! Personal access tokens, managed by their owner.

use std::time::Duration;

use axum::{
    Json,
    extract::{Path, State, rejection::JsonRejection},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use domain::{identity::CredentialKind, token::TYP};
use jiff::SignedDuration;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{
    bearer::{AccountBearer, Actor},
    error::ApiError,
};
use crate::{
    scope,
    server::{App, Server},
    store::{NewPersonalToken, PersonalToken, StoreError},
};

/// A life nobody named.
const LIFETIME: Duration = Duration::from_secs(30 * 24 * 3600);

/// Shortest life, in seconds.
const LIFETIME_MIN: u64 = 60;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NewToken {
    name: String,
    /// Seconds; 30 days if absent.
    expires_in: Option<u64>,
    /// What the token that asks has, if absent.
    scope: Option<String>,
    /// The only workload that it reaches, as `project/name`.
    workload: Option<String>,
}

#[derive(Serialize)]
pub(super) struct Created {
    /// Shown this once.
    pub token: String,
    #[serde(flatten)]
    pub record: PersonalToken,
}

pub(super) async fn list(
    State(app): State<App>,
    AccountBearer(bearer): AccountBearer,
) -> Result<Response, ApiError> {
    let tokens = app.store.personal_tokens(&bearer.person.subject).await?;
    Ok(Json(json!({ "tokens": tokens })).into_response())
}

/// A token made with a personal token neither outlives it nor can do more: who finds one cannot
/// keep the door open with it. Nor can who finds a token of a sign-in that is a while ago.
pub(super) async fn create(
    State(app): State<App>,
    AccountBearer(bearer): AccountBearer,
    body: Result<Json<NewToken>, JsonRejection>,
) -> Result<Response, ApiError> {
    let Json(new) = body.map_err(|error| ApiError::BadRequest(error.body_text()))?;
    let credential = &bearer.identity.credential;
    let own = credential.scopes.join(" ");
    let scope = match &new.scope {
        Some(requested) => narrowed(requested, &own)?,
        None => {
            let most = if new.workload.is_some() { scope::LIMITED } else { scope::PERSONAL };
            scope::allowed(most, |one| scope::contains(&own, one)).join(" ")
        }
    };
    let lifetime = lifetime(&app, new.expires_in)?;
    if credential.kind == CredentialKind::AccessToken {
        bearer.fresh_session(&app).await?;
    }
    if credential.kind == CredentialKind::PersonalAccessToken {
        let left = credential.expires_at.duration_since(bearer.caller.now);
        if SignedDuration::try_from(lifetime).is_ok_and(|lifetime| lifetime > left) {
            let text = "a token made with a personal token may not outlive it; give a shorter \
                        expires_in, or ask an operator for one";
            return Err(ApiError::Forbidden(text));
        }
    }
    let new = NewPersonalToken {
        name: &new.name,
        lifetime,
        audience: &app.audience,
        scope: &scope,
        workload: new.workload.as_deref(),
    };
    let created = issue(&app, &bearer.actor(), &new).await?;
    Ok((StatusCode::CREATED, Json(created)).into_response())
}

/// All of `requested`, if that is no more than `own`.
pub(super) fn narrowed(requested: &str, own: &str) -> Result<String, ApiError> {
    let granted = scope::allowed(requested, |one| scope::contains(own, one));
    if granted.is_empty() || granted.len() != requested.split_ascii_whitespace().count() {
        let text = format!("a token may have these scopes: {own}");
        return Err(ApiError::BadRequest(text));
    }
    Ok(granted.join(" "))
}

/// `expires_in` is in seconds.
pub(super) fn lifetime(app: &Server, expires_in: Option<u64>) -> Result<Duration, ApiError> {
    let lifetime = expires_in.map_or(LIFETIME.min(app.personal_token_max), Duration::from_secs);
    let longest = app.personal_token_max.as_secs();
    if !(LIFETIME_MIN..=longest).contains(&lifetime.as_secs()) {
        let text = format!("expires_in must be between {LIFETIME_MIN} and {longest} seconds");
        return Err(ApiError::BadRequest(text));
    }
    Ok(lifetime)
}

pub(super) async fn issue(
    app: &Server,
    actor: &Actor<'_>,
    new: &NewPersonalToken<'_>,
) -> Result<Created, ApiError> {
    let made = app.store.record_personal_token(&app.issuer, actor.person, new, actor.caller.now);
    let (claims, record) = made.await?;
    let token = app.ring.sign(TYP, &claims).map_err(StoreError::from)?;
    app.metrics.tokens_issued.with_label_values(&["personal"]).inc();
    actor.record(app, "token-issued", &format!("Token {}", record.id));
    Ok(Created { token, record })
}

pub(super) async fn revoke(
    State(app): State<App>,
    AccountBearer(bearer): AccountBearer,
    Path(id): Path<String>,
) -> Result<StatusCode, ApiError> {
    withdraw(&app, &bearer.actor(), &id).await
}

pub(super) async fn withdraw(
    app: &Server,
    actor: &Actor<'_>,
    id: &str,
) -> Result<StatusCode, ApiError> {
    if !app.store.revoke_personal_token(&actor.person.subject, id, actor.caller.now).await? {
        return Err(ApiError::NotFound("you have no such token"));
    }
    actor.record(app, "token-revoked", &format!("Token {id}"));
    Ok(StatusCode::NO_CONTENT)
}
