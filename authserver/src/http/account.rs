//! The page where people see to their own account: passkeys, access tokens and SSH keys are added
//! and removed there.

pub(super) mod ssh_keys;
pub(super) mod tokens;

use axum::{
    Json,
    extract::{RawForm, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use jiff::Timestamp;
use runtime::audit::{Event, Outcome};
use serde_json::json;
use uuid::Uuid;
use webauthn_rs::prelude::PasskeyRegistration;

use super::{
    Caller, authorize,
    error::{ApiError, PageError, sentence},
    pages::{self, AccountPage, PasskeyLine},
    params::Params,
    passkeys::{Challenge, check_script},
    sign_in::{self, Next, check_origin, form_cookie},
};
use crate::{
    passkey::PasskeyError,
    secret::Purpose,
    server::{App, Server},
    store::{Session, StoreError},
};

pub(super) const ACCOUNT: &str = "/account";

/// Where people prove again that it is them.
const CONFIRM: &str = "/account/confirm";

/// How long after signing in anything may be changed, in seconds: a browser that was left open, or
/// a stolen cookie, must not become a way in for good.
const FRESH: i64 = 15 * 60;

pub(super) async fn show(
    State(app): State<App>,
    caller: Caller,
    headers: HeaderMap,
) -> Result<Response, PageError> {
    match authorize::session(&app, &headers, caller.now).await? {
        Some(session) => page(&app, &headers, caller, &session, Answer::default()).await,
        None => sign_in::begin(&app, &headers, caller, &Next::Account).await,
    }
}

/// The sign-in page, whoever is signed in already.
pub(super) async fn confirm(
    State(app): State<App>,
    caller: Caller,
    headers: HeaderMap,
) -> Result<Response, PageError> {
    sign_in::begin(&app, &headers, caller, &Next::Account).await
}

/// What the page's script needs to have a passkey made.
pub(super) async fn options(
    State(app): State<App>,
    caller: Caller,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    check_script(&app, &headers)?;
    let session = authorize::session(&app, &headers, caller.now).await?;
    let session = session.filter(|session| is_fresh(session, caller.now));
    let again = ApiError::Forbidden("it is a while since you signed in; reload this page");
    let Some(session) = session else { return Err(again) };
    if !may_have_passkeys(&app, &session).await? {
        return Err(ApiError::Forbidden("you do not sign in here, so you need no passkey here"));
    }
    let person = &session.person;
    let known = app.store.passkey_ids(&person.subject).await?;
    let subject = Uuid::parse_str(&person.subject).map_err(|_| ApiError::Passkeys)?;
    let (options, state) = app
        .passkeys
        .begin_registration(subject, person.name.as_str(), known)
        .map_err(|_| ApiError::Passkeys)?;
    let purpose = Purpose::PasskeyRegistration;
    let challenge = Challenge::issue(&app, purpose, &headers, &session.id, state, caller.now)?;
    Ok(Json(json!({ "options": options, "challenge": challenge })).into_response())
}

pub(super) async fn add(
    State(app): State<App>,
    caller: Caller,
    headers: HeaderMap,
    RawForm(form): RawForm,
) -> Result<Response, PageError> {
    check_origin(&app, &headers)?;
    let Some(session) = authorize::session(&app, &headers, caller.now).await? else {
        return Ok(authorize::see_other(ACCOUNT));
    };
    let again = async |status, problem: String| {
        page(&app, &headers, caller, &session, Answer { status, problem, ..Answer::default() })
            .await
    };
    let form = Params::parse(&form);
    let challenge = Challenge::<PasskeyRegistration>::open(
        &app,
        Purpose::PasskeyRegistration,
        &headers,
        &form,
        caller.now,
    )
    .filter(|challenge| challenge.session == session.id);
    let expired = "That took too long. Please try again.".to_owned();
    let Some(challenge) = challenge else { return again(StatusCode::FORBIDDEN, expired).await };
    let answer = form.get("credential").unwrap_or_default();
    let credential = match app.passkeys.finish_registration(answer, &challenge.state) {
        Ok(credential) => credential,
        Err(error) => {
            tracing::info!(%error, "a passkey was not added");
            let text = match error {
                PasskeyError::NotDiscoverable => {
                    "That key cannot keep passkeys. Use another one, or this device itself."
                }
                _ => "Your browser sent something that is no passkey. Please try again.",
            };
            return again(StatusCode::BAD_REQUEST, text.to_owned()).await;
        }
    };
    let name = form.get("name").map(str::trim).unwrap_or_default();
    let person = &session.person;
    let added = app.store.add_passkey(person, name, &credential, &challenge.id, caller.now).await;
    match added {
        Ok(Some(passkey)) => {
            record(&app, caller, &session, "passkey-added", &passkey.name);
            Ok(authorize::see_other(ACCOUNT))
        }
        Ok(None) => again(StatusCode::FORBIDDEN, expired).await,
        Err(StoreError::NameTaken) => {
            let text = "You have a passkey of that name already. Choose another name.";
            again(StatusCode::CONFLICT, text.to_owned()).await
        }
        Err(
            error @ (StoreError::Invalid(_) | StoreError::PasskeyTaken | StoreError::TooMany(_)),
        ) => again(StatusCode::CONFLICT, sentence(&error.to_string())).await,
        Err(error) => Err(error.into()),
    }
}

pub(super) async fn remove(
    State(app): State<App>,
    caller: Caller,
    headers: HeaderMap,
    RawForm(form): RawForm,
) -> Result<Response, PageError> {
    check_origin(&app, &headers)?;
    let session = authorize::session(&app, &headers, caller.now).await?;
    let Some(session) = session.filter(|session| is_fresh(session, caller.now)) else {
        return Ok(authorize::see_other(ACCOUNT));
    };
    let form = Params::parse(&form);
    let id = form.get("id").unwrap_or_default();
    // One that is gone already is what was asked for.
    if let Some(name) = app.store.remove_passkey(&session.person.subject, id).await? {
        record(&app, caller, &session, "passkey-removed", &name);
    }
    Ok(authorize::see_other(ACCOUNT))
}

/// For who opens the address of a form.
pub(super) async fn back() -> Response {
    authorize::see_other(ACCOUNT)
}

/// What the page says to what was sent.
#[derive(Default)]
struct Answer {
    status: StatusCode,
    problem: String,
    /// Forms that are shown again, as they were filled in.
    token: Option<tokens::Form>,
    key: Option<ssh_keys::Form>,
}

impl Answer {
    fn late() -> Self {
        let problem = "It is a while since you signed in. Sign in again, then repeat that.";
        Self { status: StatusCode::FORBIDDEN, problem: problem.to_owned(), ..Self::default() }
    }
}

async fn page(
    app: &Server,
    headers: &HeaderMap,
    caller: Caller,
    session: &Session,
    answer: Answer,
) -> Result<Response, PageError> {
    let own_tokens = tokens::lines(app, session, caller.now).await?;
    let own_keys = app.store.ssh_keys(&session.person.subject).await?;
    let local = may_have_passkeys(app, session).await?;
    let passkeys = app.store.passkeys(&session.person.subject).await?;
    let lines = passkeys.iter().map(|passkey| PasskeyLine {
        id: &passkey.id,
        name: &passkey.name,
        added: day(passkey.created_at),
        used: passkey.used_at.map(day),
        blocked: passkey.blocked_at.is_some(),
    });
    let page = AccountPage {
        name: session.person.name.as_str(),
        email: session.person.email.as_deref(),
        portal: &app.portal,
        local,
        fresh: is_fresh(session, caller.now),
        confirm: CONFIRM,
        passkeys: lines.collect(),
        tokens: own_tokens,
        new_token: tokens::NewToken::new(app, answer.token),
        keys: own_keys.into_iter().map(ssh_keys::Line::from).collect(),
        new_key_opened: answer.key.is_some(),
        new_key: answer.key.unwrap_or_default(),
        problem: &answer.problem,
    };
    let mut response = pages::scripted_form(answer.status, &page, None);
    if let (_, Some(cookie)) = form_cookie(headers) {
        response.headers_mut().append(header::SET_COOKIE, cookie);
    }
    Ok(response)
}

async fn may_have_passkeys(app: &Server, session: &Session) -> Result<bool, StoreError> {
    Ok(app.federation.local && app.store.may_have_passkeys(&session.person.subject).await?)
}

fn is_fresh(session: &Session, now: Timestamp) -> bool {
    now.as_second() - session.signed_in_at.as_second() < FRESH
}

/// `2026-11-24`, in UTC.
fn day(time: Timestamp) -> String {
    time.strftime("%Y-%m-%d").to_string()
}

fn record(app: &Server, caller: Caller, session: &Session, did: &str, name: &str) {
    let event = Event {
        who: Some(session.person.name.as_str()),
        did,
        to: Some("Dormouse"),
        from: Some(caller.address),
        credential: None,
        outcome: Outcome::Allowed,
        detail: Some(name),
    };
    app.audit.record(caller.now, event);
}
