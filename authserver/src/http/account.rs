//! The page where people see to their own account: passkeys, access tokens and SSH keys are added
//! and removed there.

pub(super) mod sessions;
pub(super) mod ssh_keys;
pub(super) mod tokens;

use axum::{
    Json,
    extract::{FromRequestParts, RawForm, RawQuery, State},
    http::{HeaderMap, StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
};
use jiff::Timestamp;
use runtime::audit::{Event, Outcome};
use serde_json::json;
use uuid::Uuid;
use webauthn_rs::prelude::PasskeyRegistration;

use super::{
    Caller, authorize,
    bearer::Actor,
    error::{ApiError, PageError, sentence},
    pages::{self, AccountPage, PasskeyLine},
    params::Params,
    passkeys::{Challenge, check_script},
    sign_in::{self, Next, Retry, check_origin, form_cookie},
    upstream,
};
use crate::{
    device::UserCode,
    passkey::PasskeyError,
    secret::Purpose,
    server::{App, Server},
    store::{Session, StoreError},
};

pub(super) const ACCOUNT: &str = "/account";

/// Where people prove again that it is them.
const CONFIRM: &str = "/account/confirm";

/// How long after somebody has proved who they are anything may be changed, in seconds: a browser that
/// was left open, or a stolen cookie, must not become a way in for good.
const FRESH: i64 = 15 * 60;

/// Somebody who is signed in.
pub(super) struct Visitor {
    app: App,
    caller: Caller,
    headers: HeaderMap,
    session: Session,
}

impl Visitor {
    fn actor(&self) -> Actor<'_> {
        Actor { person: &self.session.person, credential: None, caller: self.caller }
    }

    fn is_fresh(&self) -> bool {
        is_fresh(&self.session, self.caller.now)
    }

    async fn page(&self, answer: Answer) -> Result<Response, PageError> {
        page(&self.app, &self.headers, self.caller, &self.session, answer).await
    }

    /// The page again, with what they did wrong and the form that is kept.
    async fn told(&self, error: ApiError, kept: Answer) -> Result<Response, PageError> {
        let (status, problem) = error.on_page()?;
        self.page(Answer { status, problem, ..kept }).await
    }

    /// One that is gone already is what was asked for.
    async fn removed<T>(&self, done: Result<T, ApiError>) -> Result<Response, PageError> {
        match done {
            Ok(_) | Err(ApiError::NotFound(_)) => Ok(authorize::see_other(ACCOUNT)),
            Err(error) => self.told(error, Answer::default()).await,
        }
    }
}

/// By a form of the page itself. Whoever is not signed in is led to the page.
impl FromRequestParts<App> for Visitor {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Response> {
        let Ok(caller) = Caller::from_request_parts(parts, app).await;
        check_origin(app, &parts.headers).map_err(IntoResponse::into_response)?;
        let session = authorize::session(app, &parts.headers, caller.now).await;
        let session = session.map_err(|error| PageError::from(error).into_response())?;
        let Some(session) = session else {
            // What they sent is lost, and is not kept for whoever signs in next.
            let problem = "You are not signed in any more. Sign in, then repeat that.";
            let retry = Retry { status: StatusCode::FORBIDDEN, name: "", problem };
            let next = &Next::Account;
            return Err(sign_in::page(app, &parts.headers, caller.now, next, retry));
        };
        Ok(Self { app: app.clone(), caller, headers: parts.headers.clone(), session })
    }
}

/// A visitor who proved who they are a short while ago, and so may change something.
pub(super) struct Change(Visitor);

impl FromRequestParts<App> for Change {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Response> {
        let visitor = Visitor::from_request_parts(parts, app).await?;
        if visitor.is_fresh() {
            return Ok(Self(visitor));
        }
        let late = visitor.page(Answer::late()).await;
        Err(late.unwrap_or_else(IntoResponse::into_response))
    }
}

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

/// Where people prove once more who they are; afterwards they are back at the device of that code, or at
/// their account.
pub(super) fn confirm_address(code: Option<&str>) -> String {
    authorize::with_query(CONFIRM, &[("user_code", code)])
}

/// The sign-in page, whoever is signed in already. Who came from a provider is asked by it: it may have
/// disabled them since.
pub(super) async fn confirm(
    State(app): State<App>,
    caller: Caller,
    headers: HeaderMap,
    RawQuery(query): RawQuery,
) -> Result<Response, PageError> {
    let query = Params::parse(query.unwrap_or_default().as_bytes());
    let code = query.get("user_code").and_then(UserCode::parse);
    let next = Next::Confirm(code.map(|code| code.to_string()));
    let session = authorize::session(&app, &headers, caller.now).await?;
    let from = match session.filter(|session| session.authentication.is_federated()) {
        Some(session) => app.store.upstream_of(&session.id).await?,
        None => None,
    };
    match from.and_then(|(id, _)| app.federation.provider(&id)) {
        Some(provider) => upstream::send(&app, &headers, caller, provider, &next).await,
        None => sign_in::begin(&app, &headers, caller, &next).await,
    }
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
    let again = ApiError::Forbidden("show first that it is still you; reload this page");
    let Some(session) = session else { return Err(again) };
    if use_of_passkeys(&app, &session).await? == UseOfPasskeys::None {
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

pub(super) async fn add(visitor: Visitor, RawForm(form): RawForm) -> Result<Response, PageError> {
    let Visitor { app, caller, headers, session } = &visitor;
    let again = async |status, problem: String| {
        visitor.page(Answer { status, problem, ..Answer::default() }).await
    };
    let form = Params::parse(&form);
    let challenge = Challenge::<PasskeyRegistration>::open(
        app,
        Purpose::PasskeyRegistration,
        headers,
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
            record(app, *caller, session, "passkey-added", &passkey.name);
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
    Change(visitor): Change,
    RawForm(form): RawForm,
) -> Result<Response, PageError> {
    let Visitor { app, caller, session, .. } = &visitor;
    let form = Params::parse(&form);
    let id = form.get("id").unwrap_or_default();
    // One that is gone already is what was asked for.
    if let Some(name) = app.store.remove_passkey(&session.person.subject, id).await? {
        record(app, *caller, session, "passkey-removed", &name);
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
        let problem = "It is a while since you showed who you are, or not known. Sign in again, then \
                       repeat that.";
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
    let own_sessions = sessions::lines(app, session, caller.now).await?;
    let applications = sessions::applications(app, session, caller.now).await?;
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
        use_of_passkeys: use_of_passkeys(app, session).await?,
        fresh: is_fresh(session, caller.now),
        confirm: CONFIRM,
        passkeys: lines.collect(),
        sessions: own_sessions,
        applications,
        tokens: own_tokens,
        new_token: tokens::NewToken::new(app, answer.token),
        keys: own_keys.into_iter().map(|key| ssh_keys::Line::new(key, caller.now)).collect(),
        new_key: ssh_keys::NewKey::new(app, session, answer.key, caller.now),
        problem: &answer.problem,
    };
    let mut response = pages::scripted_form(answer.status, &page, None);
    if let (_, Some(cookie)) = form_cookie(headers) {
        response.headers_mut().append(header::SET_COOKIE, cookie);
    }
    Ok(response)
}

/// What passkeys are to somebody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum UseOfPasskeys {
    SignIn,
    /// For who comes from a provider: only what shows, once they are signed in, that it is still them.
    SecondProof,
    None,
}

async fn use_of_passkeys(app: &Server, session: &Session) -> Result<UseOfPasskeys, StoreError> {
    Ok(if app.federation.local && app.store.signs_in_here(&session.person.subject).await? {
        UseOfPasskeys::SignIn
    } else if session.authentication.is_federated() {
        UseOfPasskeys::SecondProof
    } else {
        UseOfPasskeys::None
    })
}

/// Not when it is not known when the person last proved who they are.
pub(super) fn is_fresh(session: &Session, now: Timestamp) -> bool {
    is_recent(session.authentication.at, now)
}

pub(super) fn is_recent(at: Option<Timestamp>, now: Timestamp) -> bool {
    at.is_some_and(|at| now.as_second().saturating_sub(at.as_second()) < FRESH)
}

/// `2026-11-24`, in UTC.
fn day(time: Timestamp) -> String {
    time.strftime("%Y-%m-%d").to_string()
}

/// `2026-11-24 09:30 UTC`
pub(super) fn minute(time: Timestamp) -> String {
    time.strftime("%Y-%m-%d %H:%M UTC").to_string()
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
