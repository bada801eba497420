//! A second proof of who somebody is: for people of a provider that does not say when it last had one, or
//! asked for none. A passkey or a password of theirs counts here, in the session that has just begun with
//! the provider's word; by itself it signs nobody in.

use axum::{
    Json,
    extract::{RawForm, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{
    Caller,
    account::{self, minute},
    attempt::Attempt,
    authorize,
    error::{ApiError, PageError},
    pages::{self, SecondProofPage},
    params::Params,
    passkeys::{self, Challenge, Checked, check_script},
    sign_in::{Goal, Next, Retry, check_origin, form_cookie, is_browser, seal},
    upstream,
};
use crate::{
    password::PASSWORD_MAX,
    secret::Purpose,
    server::{App, Server},
    store::{Session, StoreError},
};

/// How long the question may stay open, in seconds: for so long the provider's word counts.
const TICKET_LIFETIME: i64 = 600;

/// Bound to the browser and to the session that it asks about.
#[derive(Serialize, Deserialize)]
struct Ticket {
    browser: String,
    session: String,
    goal: Goal,
    expires_at: i64,
}

/// Asks for a second proof, or says what to do when the person has none. It leads nowhere by itself: the
/// provider would answer the same again.
pub(super) async fn page(
    app: &Server,
    headers: &HeaderMap,
    caller: Caller,
    session: &Session,
    next: &Next,
    Retry { status, problem, .. }: Retry<'_>,
) -> Result<Response, StoreError> {
    let subject = &session.person.subject;
    let password = app.store.has_second_password(subject).await?;
    let passkey = app.store.has_passkey(subject).await?;
    let from = app.store.upstream_of(&session.id).await?;
    let provider = from.and_then(|(id, _)| app.federation.provider(&id));
    let provider = provider.map_or("Your provider", |provider| &provider.config.name);
    let again = upstream::retry(next);
    if !password && !passkey {
        return Ok(none(session, provider, &again));
    }
    let (browser, set_cookie) = form_cookie(headers);
    let expires_at = caller.now.as_second().saturating_add(TICKET_LIFETIME);
    let ticket = Ticket { browser, session: session.id.clone(), goal: next.goal(), expires_at };
    let page = SecondProofPage {
        name: session.person.name.as_str(),
        why: &why(session, provider),
        problem,
        ticket: &seal(app, Purpose::SecondProof, &ticket),
        password,
        passkey,
        provider,
        again: &again,
    };
    let target = next.request().and_then(|request| pages::form_target(&request.redirect_uri));
    let mut response = pages::scripted_form(status, &page, target.as_deref());
    if let Some(cookie) = set_cookie {
        response.headers_mut().append(header::SET_COOKIE, cookie);
    }
    Ok(response)
}

fn why(session: &Session, provider: &str) -> String {
    match session.authentication.at {
        Some(at) => format!("{provider} did not ask who you are; it last did at {}.", minute(at)),
        None => format!("{provider} does not say when it last asked who you are."),
    }
}

/// The person has neither a passkey nor a password here.
fn none(session: &Session, provider: &str, again: &str) -> Response {
    let todo = "You have no passkey and no password here to show it with. Ask an administrator: \
                either the provider has to ask you and to send `auth_time`, or you need a password as \
                a second proof, or `trust_prompt_login` has to be set for the provider.";
    let text = format!("{} {todo}", why(session, provider));
    let title = "It is not known whether it is still you";
    pages::choice(
        StatusCode::FORBIDDEN,
        title,
        &text,
        (again, "Try again"),
        (account::ACCOUNT, "Your account"),
    )
}

/// The ticket's session, and what the proof is for.
async fn open(
    app: &Server,
    headers: &HeaderMap,
    caller: Caller,
    form: &Params,
) -> Result<(Session, Next), authorize::Refusal> {
    let ticket = form
        .get("ticket")
        .and_then(|sealed| app.sealer.open(Purpose::SecondProof, sealed))
        .and_then(|bytes| serde_json::from_slice::<Ticket>(&bytes).ok())
        .filter(|ticket| is_browser(headers, &ticket.browser))
        .filter(|ticket| ticket.expires_at > caller.now.as_second());
    let session = authorize::session(app, headers, caller.now).await?;
    match (ticket, session) {
        (Some(ticket), Some(session)) if session.id == ticket.session => {
            Ok((session, Next::read(app, ticket.goal).await?))
        }
        _ => {
            let text = "This page was open for too long, or you have signed in again since. Go back to \
                        where you came from and start again.";
            Err(PageError::bad_request(text).into())
        }
    }
}

pub(super) async fn by_password(
    State(app): State<App>,
    caller: Caller,
    headers: HeaderMap,
    RawForm(form): RawForm,
) -> Result<Response, authorize::Refusal> {
    check_origin(&app, &headers)?;
    let form = Params::parse(&form);
    let (session, next) = open(&app, &headers, caller, &form).await?;
    let attempt = Attempt::by_password(&app, &headers, session.person.name.as_str(), caller);
    if let Err(slow) = attempt.begin(&app) {
        let status = StatusCode::TOO_MANY_REQUESTS;
        let retry = Retry { status, name: "", problem: &slow.problem() };
        let mut response = page(&app, &headers, caller, &session, &next, retry).await?;
        slow.set_retry(&mut response);
        return Ok(response);
    }
    let password = form.get("password").unwrap_or_default();
    let fits = password.len() <= PASSWORD_MAX;
    let good = app.store.check_second_password(&session.person.subject, password).await?;
    if !(good && fits) {
        attempt.refused(&app, Some("as a second proof"));
        let problem = "That password is not yours.";
        let retry = Retry { status: StatusCode::FORBIDDEN, name: "", problem };
        return Ok(page(&app, &headers, caller, &session, &next, retry).await?);
    }
    attempt.confirmed(&app);
    confirmed(&app, &headers, caller, session, &next, "pwd").await
}

/// What the page's script needs to ask for a passkey.
pub(super) async fn options(
    State(app): State<App>,
    caller: Caller,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    check_script(&app, &headers)?;
    let session = authorize::session(&app, &headers, caller.now).await?;
    let gone = ApiError::Forbidden("you are not signed in any more");
    let Some(session) = session else { return Err(gone) };
    let (options, state) = app.passkeys.begin_sign_in().map_err(|_| ApiError::Passkeys)?;
    let purpose = Purpose::PasskeyProof;
    let challenge = Challenge::issue(&app, purpose, &headers, &session.id, state, caller.now)?;
    Ok(Json(json!({ "options": options, "challenge": challenge })).into_response())
}

pub(super) async fn by_passkey(
    State(app): State<App>,
    caller: Caller,
    headers: HeaderMap,
    RawForm(form): RawForm,
) -> Result<Response, authorize::Refusal> {
    check_origin(&app, &headers)?;
    let form = Params::parse(&form);
    let (session, next) = open(&app, &headers, caller, &form).await?;
    let checked = passkeys::check(&app, &headers, caller, &form, Some(&session)).await?;
    let (status, problem, slow) = match checked {
        Checked::Good(_, attempt) => {
            attempt.confirmed(&app);
            return confirmed(&app, &headers, caller, session, &next, passkeys::METHOD).await;
        }
        Checked::Refused(problem) => (StatusCode::FORBIDDEN, problem.to_owned(), None),
        Checked::Slow(slow) => (StatusCode::TOO_MANY_REQUESTS, slow.problem(), Some(slow)),
    };
    let retry = Retry { status, name: "", problem: &problem };
    let mut response = page(&app, &headers, caller, &session, &next, retry).await?;
    if let Some(slow) = slow {
        slow.set_retry(&mut response);
    }
    Ok(response)
}

async fn confirmed(
    app: &Server,
    headers: &HeaderMap,
    caller: Caller,
    session: Session,
    next: &Next,
    method: &str,
) -> Result<Response, authorize::Refusal> {
    match app.store.confirm_session(session, method, caller.now).await? {
        Some(session) => next.go(app, headers, &session, caller).await,
        None => Err(PageError::bad_request("You are signed out. Sign in again.").into()),
    }
}
