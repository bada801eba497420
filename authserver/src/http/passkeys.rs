//! Signing in with a passkey, or showing with one that it is still you: a challenge for the page's
//! script, and the form that it sends.
//!
//! A challenge is sealed and carried by the browser, like the sign-in form, so strangers leave
//! nothing here. It is good for minutes, for the browser that asked, and once: answered challenges
//! are kept in the database until they expire.

use axum::{
    Json,
    extract::{RawForm, State},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::json;
use webauthn_rs::prelude::DiscoverableAuthentication;

use super::{
    Caller,
    attempt::{Attempt, Slow},
    authorize, cookie,
    error::{ApiError, PageError},
    params::Params,
    sign_in::{self, Opened, Retry, check_origin, form_cookie, is_browser, seal},
};
use crate::{
    passkey::{Assertion, CHALLENGE_LIFETIME, PasskeyError},
    secret::{Purpose, Secret},
    server::{App, Server},
    store::{FoundPasskey, Person, Session, StoreError, seconds},
};

/// Proof of possession of a key (`amr`, RFC 8176, section 2).
pub(super) const METHOD: &str = "pop";

const REFUSED: &str =
    "That passkey does not work here any more. Use your password, or another one.";
const EXPIRED: &str = "That took too long. Please try again.";

/// A challenge under way. `S` is what the library needs to check the answer.
#[derive(Serialize, Deserialize)]
pub(super) struct Challenge<S> {
    /// By which it is known once it is used up.
    pub id: String,
    /// SHA-256 of the browser's form cookie.
    browser: String,
    /// The session that adds a passkey, or has to be confirmed; empty for a sign-in.
    pub session: String,
    expires_at: i64,
    pub state: S,
}

impl<S: Serialize + DeserializeOwned> Challenge<S> {
    /// Sealed for the browser, which has the form cookie already: it comes with the page.
    pub fn issue(
        app: &Server,
        purpose: Purpose,
        headers: &HeaderMap,
        session: &str,
        state: S,
        now: Timestamp,
    ) -> Result<String, ApiError> {
        if cookie::get(headers, cookie::FORM).is_none() {
            let text = "your browser did not send back our cookie; allow cookies for this site";
            return Err(ApiError::Forbidden(text));
        }
        let (browser, _) = form_cookie(headers);
        let id = Secret::generate().as_str().to_owned();
        let expires_at = now.as_second().saturating_add(seconds(CHALLENGE_LIFETIME));
        let session = session.to_owned();
        Ok(seal(app, purpose, &Self { id, browser, session, expires_at, state }))
    }

    /// None for one that is too old, of another browser, or made up.
    pub fn open(
        app: &Server,
        purpose: Purpose,
        headers: &HeaderMap,
        form: &Params,
        now: Timestamp,
    ) -> Option<Self> {
        let bytes = app.sealer.open(purpose, form.get("challenge")?)?;
        let challenge: Self = serde_json::from_slice(&bytes).ok()?;
        let good =
            is_browser(headers, &challenge.browser) && challenge.expires_at > now.as_second();
        good.then_some(challenge)
    }
}

/// Only our own pages' scripts get a challenge.
pub(super) fn check_script(app: &Server, headers: &HeaderMap) -> Result<(), ApiError> {
    check_origin(app, headers).map_err(|_| ApiError::Forbidden("this is for our own pages"))
}

pub(super) async fn options(
    State(app): State<App>,
    caller: Caller,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    check_script(&app, &headers)?;
    let (options, state) = app.passkeys.begin_sign_in().map_err(|_| ApiError::Passkeys)?;
    let challenge =
        Challenge::issue(&app, Purpose::PasskeySignIn, &headers, "", state, caller.now)?;
    Ok(Json(json!({ "options": options, "challenge": challenge })).into_response())
}

pub(super) async fn submit(
    State(app): State<App>,
    caller: Caller,
    headers: HeaderMap,
    RawForm(form): RawForm,
) -> Result<Response, authorize::Refusal> {
    check_origin(&app, &headers)?;
    let form = Params::parse(&form);
    if !app.federation.local {
        return Err(PageError::bad_request("Nobody signs in by passkey here.").into());
    }
    let next = match sign_in::open(&app, &headers, caller, &form).await? {
        Opened::Next(next) => next,
        Opened::Answered(response) => return Ok(response),
    };
    let again = |problem| {
        let retry = Retry { status: StatusCode::FORBIDDEN, name: "", problem };
        sign_in::page(&app, &headers, caller.now, &next, retry)
    };
    match check(&app, &headers, caller, &form, None).await? {
        Checked::Good(person, attempt) => {
            attempt.succeeded(&app);
            sign_in::finish(&app, &headers, caller, &next, person, METHOD).await
        }
        Checked::Refused(problem) => Ok(again(problem)),
        Checked::Slow(slow) => Ok(slow.page(&app, &headers, caller, &next, "")),
    }
}

/// What came of an answer to a challenge.
pub(super) enum Checked {
    /// Whose passkey it is.
    Good(Person, Attempt),
    /// Counted and written down, and this is what there is to say.
    Refused(&'static str),
    Slow(Slow),
}

/// Checks a form's answer: of anybody who may sign in with a passkey, or of the session's person.
pub(super) async fn check(
    app: &Server,
    headers: &HeaderMap,
    caller: Caller,
    form: &Params,
    session: Option<&Session>,
) -> Result<Checked, StoreError> {
    let purpose = match session {
        None => Purpose::PasskeySignIn,
        Some(_) => Purpose::PasskeyProof,
    };
    let challenge =
        Challenge::<DiscoverableAuthentication>::open(app, purpose, headers, form, caller.now)
            .filter(|challenge| challenge.session == session.map_or("", |session| &session.id));
    let Some(challenge) = challenge else { return Ok(Checked::Refused(EXPIRED)) };
    let Ok(assertion) = Assertion::parse(form.get("credential").unwrap_or_default()) else {
        let text = "Your browser sent something that is no passkey. Please try again.";
        return Ok(Checked::Refused(text));
    };
    let mut found = app.store.find_passkey(assertion.subject, assertion.credential_id()).await?;
    if let Some(whose) = found.as_ref().map(|found| &found.person.subject) {
        let good = match session {
            None => app.store.signs_in_here(whose).await?,
            Some(session) => session.person.subject == *whose,
        };
        found = found.filter(|_| good);
    }
    let name = found.as_ref().map(|found| found.person.name.clone());
    let attempt = Attempt::by_passkey(app, headers, name, assertion.credential_id(), caller);
    if let Err(slow) = attempt.begin(app) {
        return Ok(Checked::Slow(slow));
    }
    let Some(FoundPasskey { id, person, credential }) = found else {
        attempt.refused(app, Some("removed, blocked, or of somebody whom it does not let in"));
        return Ok(Checked::Refused(REFUSED));
    };
    let first = match app.passkeys.finish_sign_in(&assertion, challenge.state, credential) {
        Ok(used) => app.store.passkey_used(&id, &used, &challenge.id, caller.now).await?,
        Err(error) => {
            let first = match error {
                PasskeyError::CounterWentBack => {
                    app.store.block_passkey(&id, &challenge.id, caller.now).await?
                }
                _ => true,
            };
            if first {
                attempt.refused(app, Some(&error.to_string()));
                return Ok(Checked::Refused(REFUSED));
            }
            false
        }
    };
    if !first {
        attempt.refused(app, Some("the challenge was answered before"));
        return Ok(Checked::Refused(EXPIRED));
    }
    Ok(Checked::Good(person, attempt))
}
