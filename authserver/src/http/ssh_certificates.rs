//! The SSH authority: certificates for people's keys, and its public key.

use std::time::Duration;

use axum::{
    Json,
    extract::{State, rejection::JsonRejection},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use domain::identity::CredentialKind;
use jiff::Timestamp;
use runtime::audit::{Event, Outcome};
use serde::{Deserialize, Serialize};

use super::{
    bearer::Bearer,
    error::{ApiError, try_again_in},
};
use crate::{
    scope,
    secret::{digest, random},
    server::App,
    ssh_authority::Statement,
    ssh_key::PublicKey,
    throttle::Key,
};

/// How long before its making a certificate is valid: clocks differ.
const EARLY: Duration = Duration::from_secs(60);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wish {
    public_key: String,
}

#[derive(Serialize)]
struct Certificate {
    /// One line, for a `-cert.pub` file.
    certificate: String,
    serial: u64,
    key_id: String,
    principals: [String; 1],
    valid_after: Timestamp,
    valid_before: Timestamp,
}

/// A certificate for a key of the token's holder. Possession of the key is not proven here: a
/// certificate is of no use to whoever does not have the private key.
pub(super) async fn certify(
    State(app): State<App>,
    bearer: Bearer,
    body: Result<Json<Wish>, JsonRejection>,
) -> Result<Response, ApiError> {
    let (now, credential) = (bearer.caller.now, &bearer.identity.credential);
    // Whoever may register keys for good may have one for a day.
    if bearer.needs(scope::ACCOUNT).is_err() {
        bearer.needs("workload:use")?;
    }
    if credential.workload.is_some() {
        let text = "this token is limited to one workload, and a certificate reaches all of them";
        return Err(ApiError::Forbidden(text));
    }
    if !app.store.is_certifiable(&bearer.person.subject).await? {
        return Err(ApiError::Forbidden("service accounts use their tokens for SSH"));
    }
    let Json(wish) = body.map_err(|error| ApiError::BadRequest(error.body_text()))?;
    let key = PublicKey::parse(&wish.public_key)
        .map_err(|error| ApiError::BadRequest(error.to_string()))?;
    let subject = <[u8; 32]>::try_from(digest(&bearer.person.subject)).unwrap_or_default();
    let taken = app.limits().ssh_certificates.take(&[Key::Account(subject)], now);
    if let Err(wait) = taken {
        let text = format!("too many certificates at once; wait {wait} s and try again");
        let error = ApiError::BadRequest(text);
        let mut response = error.into_response();
        *response.status_mut() = StatusCode::TOO_MANY_REQUESTS;
        try_again_in(&mut response, wait);
        return Ok(response);
    }

    let mut until = now.saturating_add(app.ssh_certificate_lifetime).unwrap_or(Timestamp::MAX);
    if credential.kind == CredentialKind::PersonalAccessToken {
        // An access token lives for minutes and its session for days; this one says itself.
        until = until.min(credential.expires_at);
    }
    let from = now.saturating_sub(EARLY).unwrap_or(now);
    let seconds = |time: Timestamp| u64::try_from(time.as_second()).unwrap_or(0);
    let user = bearer.person.name.as_str();
    let key_id = format!("{user}/{}", credential.id);
    let serial = serial();
    let name = format!("session@{}", app.issuer.host());
    let statement = Statement {
        serial,
        key_id: &key_id,
        principal: user,
        valid_after: seconds(from),
        valid_before: seconds(until),
        session: credential.session.as_deref().map(|session| (name.as_str(), session)),
    };
    let certificate = app
        .store
        .ssh_authority()
        .await?
        .certify(&key, statement)
        .ok_or_else(|| ApiError::BadRequest("that public key is damaged".to_owned()))?;
    let event = Event {
        who: Some(user),
        did: "certificate-issued",
        to: Some(&format!("Key {}", key.fingerprint())),
        from: Some(bearer.caller.address),
        credential: Some(credential),
        outcome: Outcome::Allowed,
        detail: Some(&format!("serial {serial}, until {until}")),
    };
    app.audit.record(now, event);
    let certificate = Certificate {
        certificate,
        serial,
        key_id,
        principals: [user.to_owned()],
        valid_after: from,
        valid_before: until,
    };
    Ok((StatusCode::CREATED, Json(certificate)).into_response())
}

/// 53 random bits, which every reader of JSON keeps whole.
fn serial() -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = random();
    u64::from_be_bytes([a, b, c, d, e, f, g, h]) >> 11
}

/// The authority's public key, for `TrustedUserCAKeys` or `@cert-authority`.
pub(super) async fn authority(State(app): State<App>) -> Result<Response, ApiError> {
    let headers = [
        (header::CONTENT_TYPE, "text/plain; charset=utf-8"),
        (header::CACHE_CONTROL, "public, max-age=300"),
    ];
    let authority = app.store.ssh_authority().await?;
    let line = format!("{} {}\n", authority.public_key(), app.issuer.host());
    Ok((headers, line).into_response())
}
