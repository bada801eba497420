//! SSH keys, managed by their owner.
//!
//! A key lets its holder in for a year and its owner learns of nothing, so to register one takes a
//! sign-in of a moment ago, and a signature over a text of ours with the key itself: nobody can
//! register a colleague's public key and have their `ssh` end in a workspace that is not theirs.

use axum::{
    Json,
    extract::{Path, State, rejection::JsonRejection},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use domain::identity::CredentialKind;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{
    bearer::{AccountBearer, Actor, Bearer},
    error::ApiError,
    sign_in::seal,
};
use crate::{
    secret::{self, Purpose},
    server::{App, Server},
    ssh_key::PublicKey,
    ssh_signature,
    store::{NewSshKey, Person, Session, SshKey},
};

/// How long somebody may take to sign our text, in seconds.
const CHALLENGE_LIFETIME: i64 = 3600;

/// Random bytes of the text.
const RANDOM: usize = 18;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NewKey {
    name: String,
    /// From [`challenge`], unchanged.
    challenge: String,
    /// What `ssh-keygen -Y sign` printed.
    signature: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Which {
    name: Option<String>,
    public_key: Option<String>,
}

/// What has to be signed, and by whose key it is to be.
#[derive(Serialize, Deserialize)]
pub(super) struct Challenge {
    subject: String,
    /// The person's name is in it: whoever is talked into signing it sees whose key theirs would be.
    pub text: String,
    expires_at: i64,
}

impl Challenge {
    pub fn new(app: &Server, person: &Person, now: Timestamp) -> Self {
        let random = secret::random();
        let random = URL_SAFE_NO_PAD.encode(random.get(..RANDOM).unwrap_or(&random));
        let host = app.issuer.as_str().trim_start_matches("https://");
        Self {
            subject: person.subject.clone(),
            text: format!("{}@{host}/{random}", person.name),
            expires_at: now.as_second().saturating_add(CHALLENGE_LIFETIME),
        }
    }

    pub fn seal(&self, app: &Server) -> String {
        seal(app, Purpose::SshKey, self)
    }

    fn open(app: &Server, sealed: &str, person: &Person, now: Timestamp) -> Option<Self> {
        let bytes = app.sealer.open(Purpose::SshKey, sealed)?;
        let challenge: Self = serde_json::from_slice(&bytes).ok()?;
        let good = challenge.subject == person.subject && challenge.expires_at > now.as_second();
        good.then_some(challenge)
    }
}

pub(super) async fn list(
    State(app): State<App>,
    AccountBearer(bearer): AccountBearer,
) -> Result<Response, ApiError> {
    let keys = app.store.ssh_keys(&bearer.person.subject).await?;
    Ok(Json(json!({ "keys": keys })).into_response())
}

/// The session of the token, with its grant, if somebody proved a moment ago who they are. A personal token
/// registers no key: whoever finds one would have a way in that outlives it.
async fn fresh_session(app: &Server, bearer: &Bearer) -> Result<(String, Session), ApiError> {
    let credential = &bearer.identity.credential;
    if credential.kind != CredentialKind::AccessToken {
        return Err(ApiError::Forbidden(
            "a personal token registers no SSH key; add the key on your account page, or use a token \
             of a sign-in of the last 15 minutes",
        ));
    }
    bearer.fresh_session(app).await
}

/// What to sign with the key that is to be registered.
pub(super) async fn challenge(
    State(app): State<App>,
    AccountBearer(bearer): AccountBearer,
) -> Result<Response, ApiError> {
    fresh_session(&app, &bearer).await?;
    let challenge = Challenge::new(&app, &bearer.person, bearer.caller.now);
    let answer = json!({
        "text": challenge.text,
        "namespace": ssh_signature::NAMESPACE,
        "command": ssh_signature::command(&challenge.text),
        "challenge": challenge.seal(&app),
        "expires_in": CHALLENGE_LIFETIME,
    });
    Ok(Json(answer).into_response())
}

pub(super) async fn add(
    State(app): State<App>,
    AccountBearer(bearer): AccountBearer,
    body: Result<Json<NewKey>, JsonRejection>,
) -> Result<Response, ApiError> {
    let (grant, session) = fresh_session(&app, &bearer).await?;
    let Json(new) = body.map_err(|error| ApiError::BadRequest(error.body_text()))?;
    let proof = Proof {
        challenge: &new.challenge,
        signature: &new.signature,
        grant: Some((&grant, session.expires_at)),
    };
    let key = register(&app, &bearer.actor(), &new.name, &proof).await?;
    Ok((StatusCode::CREATED, Json(key)).into_response())
}

/// What somebody shows who registers a key.
pub(super) struct Proof<'a> {
    /// A sealed [`Challenge`].
    pub challenge: &'a str,
    pub signature: &'a str,
    /// The grant of the token that it is made with, and the end of its session.
    pub grant: Option<(&'a str, Timestamp)>,
}

pub(super) async fn register(
    app: &Server,
    actor: &Actor<'_>,
    name: &str,
    proof: &Proof<'_>,
) -> Result<SshKey, ApiError> {
    let now = actor.caller.now;
    let challenge = Challenge::open(app, proof.challenge, actor.person, now).ok_or_else(|| {
        ApiError::BadRequest(
            "the text to sign is too old; take the new one and sign that".to_owned(),
        )
    })?;
    let key = ssh_signature::signer(proof.signature, &challenge.text)
        .map_err(|error| ApiError::BadRequest(error.to_string()))?;
    let new = NewSshKey {
        name,
        key: &key,
        challenge: &challenge.text,
        challenge_ends: challenge.expires_at,
        lifetime: app.ssh_key_lifetime,
        grant: proof.grant,
    };
    let (key, lost) = app.store.register_ssh_key(actor.person, &new, now).await?;
    if let Some(holder) = lost {
        // They had registered it without showing that they have it.
        actor.record(app, "key-removed", &format!("Key {} of subject {holder}", key.fingerprint));
    }
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
