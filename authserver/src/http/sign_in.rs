//! The sign-in page and what it sends.
//!
//! The form carries a sealed ticket: the request that it is for, when it was made, and for which
//! browser. Nothing is kept here for people who have not signed in.

use axum::{
    extract::{RawForm, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    Caller, account,
    attempt::{Attempt, device},
    authorization_request::{self, AuthorizationRequest, Query, fragment},
    authorize, cookie,
    discovery::DEVICE_PAGE,
    error::PageError,
    pages::{self, ProviderLink, SignInPage},
    params::Params,
    upstream,
};
use crate::{
    client::ClientKind,
    federation,
    password::PASSWORD_MAX,
    secret::{self, Purpose, Secret},
    server::{App, Server},
    store::{Authentication, Person, Session, Whence},
};

/// How long a sign-in page may stay open, in seconds. The gate remembers for as long where the person
/// wanted to go (`LOGIN_SECONDS` there): a page that was opened in the morning is good in the evening.
const TICKET_LIFETIME: i64 = 24 * 3600;

/// How long a browser is remembered, in seconds.
const DEVICE_LIFETIME: i64 = 180 * 24 * 3600;

/// Longest name of a browser that is kept, in characters.
const AGENT_MAX: usize = 300;

#[derive(Serialize, Deserialize)]
pub(super) struct Ticket {
    /// SHA-256 of the browser's form cookie.
    browser: String,
    expires_at: i64,
    pub next: Goal,
}

impl Ticket {
    pub fn open(app: &Server, sealed: &str) -> Option<Self> {
        let bytes = app.sealer.open(Purpose::SignIn, sealed)?;
        serde_json::from_slice(&bytes).ok()
    }

    /// Why this browser cannot use it any more.
    pub fn problem(&self, headers: &HeaderMap, now: Timestamp) -> Option<&'static str> {
        if cookie::get(headers, cookie::FORM).is_none() {
            Some("Your browser did not send back our cookie. Allow cookies for this site.")
        } else if !is_browser(headers, &self.browser) {
            Some("This page was from an earlier visit. Please sign in again.")
        } else if self.expires_at <= now.as_second() {
            Some("This page was open for too long. Please sign in again.")
        } else {
            None
        }
    }
}

/// What signing in is for, as a browser carries it.
#[derive(Serialize, Deserialize)]
pub(super) enum Goal {
    Home,
    /// The authorization request to go on with.
    Authorize {
        query: String,
        pushed: bool,
        #[serde(default)]
        fragment: String,
    },
    /// The code of a device that waits, or nothing.
    Device(String),
    Account,
    /// To show once more who one is; then back to the device of that code, or to the account.
    Confirm(Option<String>),
}

/// What to do once somebody is signed in.
pub(super) enum Next {
    Home,
    Authorize(Box<AuthorizationRequest>),
    Device(String),
    Account,
    Confirm(Option<String>),
}

impl Next {
    pub async fn read(app: &Server, goal: Goal) -> Result<Self, authorize::Refusal> {
        Ok(match goal {
            Goal::Home => Self::Home,
            Goal::Authorize { query, pushed, fragment } => {
                let query = Query { text: query, pushed, fragment };
                Self::Authorize(Box::new(authorization_request::read(app, query).await?))
            }
            Goal::Device(code) => Self::Device(code),
            Goal::Account => Self::Account,
            Goal::Confirm(code) => Self::Confirm(code),
        })
    }

    pub fn goal(&self) -> Goal {
        match self {
            Self::Home => Goal::Home,
            Self::Authorize(request) => {
                let Query { text, pushed, fragment } = request.query.clone();
                Goal::Authorize { query: text, pushed, fragment }
            }
            Self::Device(code) => Goal::Device(code.clone()),
            Self::Account => Goal::Account,
            Self::Confirm(code) => Goal::Confirm(code.clone()),
        }
    }

    /// Keeps what the sign-in page's script says that followed `#`; where it says nothing, what was
    /// kept before stays.
    pub fn keep_fragment(&mut self, form: &Params) {
        let said = fragment(form.get("fragment"));
        if let Self::Authorize(request) = self
            && !said.is_empty()
        {
            request.query.fragment = said;
        }
    }

    pub fn request(&self) -> Option<&AuthorizationRequest> {
        match self {
            Self::Authorize(request) => Some(request),
            Self::Home | Self::Device(_) | Self::Account | Self::Confirm(_) => None,
        }
    }

    /// True when a session that another provider has already is not enough.
    pub fn wants_proof(&self) -> bool {
        match self {
            Self::Authorize(request) => request.wants_proof(),
            Self::Confirm(_) => true,
            Self::Home | Self::Device(_) | Self::Account => false,
        }
    }

    /// Whether a proof of that moment will do, for somebody who was asked for one at `asked_at`.
    pub fn takes(&self, at: Option<Timestamp>, asked_at: i64, now: Timestamp) -> bool {
        match self {
            Self::Authorize(request) => request.takes(at, asked_at, now),
            Self::Confirm(_) => account::is_recent(at, now),
            Self::Home | Self::Device(_) | Self::Account => true,
        }
    }

    /// Where a person who has signed in goes.
    pub async fn go(
        &self,
        app: &Server,
        headers: &HeaderMap,
        session: &Session,
        caller: Caller,
    ) -> Result<Response, authorize::Refusal> {
        match self {
            Self::Home => Ok(authorize::see_other("/")),
            Self::Account | Self::Confirm(None) => Ok(authorize::see_other(account::ACCOUNT)),
            Self::Authorize(request) => request.proceed(app, headers, session, caller).await,
            Self::Device(code) | Self::Confirm(Some(code)) => {
                let field = (!code.is_empty()).then_some(code.as_str());
                let path = authorize::with_query(DEVICE_PAGE, &[("user_code", field)]);
                Ok(authorize::see_other(&path))
            }
        }
    }
}

/// What a page shows that is not the first one.
pub(super) struct Retry<'a> {
    pub status: StatusCode,
    pub name: &'a str,
    pub problem: &'a str,
}

impl Retry<'_> {
    pub fn first() -> Self {
        Self { status: StatusCode::OK, name: "", problem: "" }
    }
}

/// Asks how to sign in, unless there is one way that needs no page of ours.
pub(super) async fn begin(
    app: &Server,
    headers: &HeaderMap,
    caller: Caller,
    next: &Next,
) -> Result<Response, PageError> {
    match app.federation.only() {
        Some(provider) => upstream::send(app, headers, caller, provider, next).await,
        None => Ok(page(app, headers, caller.now, next, Retry::first())),
    }
}

/// The page, with a ticket for this browser.
pub(super) fn page(
    app: &Server,
    headers: &HeaderMap,
    now: Timestamp,
    next: &Next,
    retry: Retry<'_>,
) -> Response {
    let (browser, set_cookie) = form_cookie(headers);
    let ticket =
        Ticket { browser, expires_at: now.as_second() + TICKET_LIFETIME, next: next.goal() };
    let ticket = seal(app, Purpose::SignIn, &ticket);
    let destination = next.request().map(destination);
    let redirects_to = next.request().and_then(|r| pages::form_target(&r.redirect_uri));
    let providers = app.federation.providers().iter().map(|provider| ProviderLink {
        name: &provider.config.name,
        // Links and no form: a browser would check the policy for forms at each further redirect,
        // and where a provider sends people is not ours to know.
        address: authorize::with_query(
            &format!("{}{}", federation::BEGIN, provider.config.id),
            &[("ticket", Some(&ticket))],
        ),
    });
    // What was typed and can be nobody's name is not sent back at any length.
    let typed = if retry.name.chars().count() <= 100 { retry.name } else { "" };
    let hint = next.request().and_then(|request| request.login_hint.as_deref());
    let hint = hint.filter(|hint| hint.chars().count() <= 64).unwrap_or_default();
    let page = SignInPage {
        destination: destination.as_deref(),
        name: if typed.is_empty() { hint } else { typed },
        problem: retry.problem,
        ticket: &ticket,
        providers: providers.collect(),
        local: app.federation.local,
    };
    let mut response = pages::scripted_form(retry.status, &page, redirects_to.as_deref());
    if let Some(cookie) = set_cookie {
        response.headers_mut().append(header::SET_COOKIE, cookie);
    }
    response
}

/// `lab--alice.localhost`, and which application for one that is not our own.
fn destination(request: &AuthorizationRequest) -> String {
    let host = url::Url::parse(&request.redirect_uri).ok();
    let host = host.as_ref().and_then(|url| url.host_str());
    match (request.client.kind, host) {
        (ClientKind::Gate, Some(host)) => host.to_owned(),
        (_, Some(host)) => format!("{} ({host})", request.client.id),
        (_, None) => request.client.id.clone(),
    }
}

/// The digest of the browser's form cookie, and the cookie to set if it has none.
pub(super) fn form_cookie(headers: &HeaderMap) -> (String, Option<HeaderValue>) {
    match cookie::get(headers, cookie::FORM) {
        // Kept, so that other tabs' pages stay good.
        Some(value) if value.len() == 43 => (browser(value), None),
        _ => {
            let value = Secret::generate();
            let cookie = cookie::set(cookie::FORM, value.as_str(), DEVICE_LIFETIME);
            (browser(value.as_str()), Some(cookie))
        }
    }
}

/// Where a session begins.
pub(super) fn whence(headers: &HeaderMap, caller: Caller) -> Whence {
    let agent = headers.get(header::USER_AGENT).and_then(|agent| agent.to_str().ok());
    Whence {
        browser: cookie::get(headers, cookie::FORM).map(browser),
        address: caller.address,
        agent: agent.map(|agent| agent.chars().take(AGENT_MAX).collect()),
    }
}

fn browser(cookie: &str) -> String {
    URL_SAFE_NO_PAD.encode(secret::digest(cookie))
}

/// True when the digest is that of the browser's form cookie.
pub(super) fn is_browser(headers: &HeaderMap, digest: &str) -> bool {
    cookie::get(headers, cookie::FORM)
        .is_some_and(|cookie| secret::same(browser(cookie).as_bytes(), digest.as_bytes()))
}

pub(super) fn seal(app: &Server, purpose: Purpose, ticket: &impl Serialize) -> String {
    app.sealer.seal(purpose, &serde_json::to_vec(ticket).unwrap_or_default())
}

/// A form that another site made the browser send is refused before anything is read.
pub(super) fn check_origin(app: &Server, headers: &HeaderMap) -> Result<(), PageError> {
    let mut origins = headers.get_all(header::ORIGIN).iter();
    let ours =
        origins.next().is_some_and(|origin| origin.as_bytes() == app.issuer.as_str().as_bytes());
    if ours && origins.next().is_none() {
        return Ok(());
    }
    let text = "This form was sent from another site. Open the page again and sign in there.";
    let title = "That did not come from here";
    Err(PageError { status: StatusCode::FORBIDDEN, title, text: text.to_owned() })
}

/// Signed in: what to do next. Not signed in: the page, for nobody in particular.
pub(super) async fn home(
    State(app): State<App>,
    caller: Caller,
    headers: HeaderMap,
) -> Result<Response, PageError> {
    Ok(match authorize::session(&app, &headers, caller.now).await? {
        Some(session) => pages::home(session.person.name.as_str(), &app.portal),
        None => begin(&app, &headers, caller, &Next::Home).await?,
    })
}

pub(super) async fn show() -> Response {
    authorize::see_other("/")
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
        return Err(PageError::bad_request("Nobody signs in by password here.").into());
    }
    let typed = form.get("name").unwrap_or_default().trim();
    let next = match open(&app, &headers, caller, &form).await? {
        Opened::Next(next) => next,
        Opened::Answered(response) => return Ok(response),
    };
    let attempt = Attempt::by_password(&app, &headers, typed, caller);
    if let Err(slow) = attempt.begin(&app) {
        return Ok(slow.page(&app, &headers, caller, &next, typed));
    }
    let password = form.get("password").unwrap_or_default();
    let fits = password.len() <= PASSWORD_MAX;
    let person = app.store.check_password(attempt.name.as_ref(), password).await?;
    let Some(person) = person.filter(|_| fits) else {
        attempt.refused(&app, None);
        let problem = "That name and password do not match.";
        let retry = Retry { status: StatusCode::FORBIDDEN, name: typed, problem };
        return Ok(page(&app, &headers, caller.now, &next, retry));
    };
    attempt.succeeded(&app);
    finish(&app, &headers, caller, &next, person, "pwd").await
}

/// A sign-in form that came back.
pub(super) enum Opened {
    Next(Next),
    /// It was stale, and this is what there is to say.
    Answered(Response),
}

pub(super) async fn open(
    app: &Server,
    headers: &HeaderMap,
    caller: Caller,
    form: &Params,
) -> Result<Opened, authorize::Refusal> {
    let ticket =
        form.get("ticket").and_then(|sealed| Ticket::open(app, sealed)).ok_or_else(|| {
            PageError::bad_request("This form is damaged. Go back and reload the page.")
        })?;
    let stale = ticket.problem(headers, caller.now);
    let mut next = Next::read(app, ticket.next).await?;
    next.keep_fragment(form);
    let Some(problem) = stale else { return Ok(Opened::Next(next)) };
    // Another tab may have signed in meanwhile, and then there is nothing left to ask.
    if let Some(session) = authorize::session(app, headers, caller.now).await?
        && let Some(request) = next.request()
        && request.is_satisfied_by(&session, caller.now)
    {
        let response = request.proceed(app, headers, &session, caller).await?;
        return Ok(Opened::Answered(response));
    }
    let name = form.get("name").unwrap_or_default().trim();
    let retry = Retry { status: StatusCode::FORBIDDEN, name, problem };
    Ok(Opened::Answered(page(app, headers, caller.now, &next, retry)))
}

/// Begins the session of somebody who has proved who they are, and goes on to what it was for.
pub(super) async fn finish(
    app: &Server,
    headers: &HeaderMap,
    caller: Caller,
    next: &Next,
    person: Person,
    method: &str,
) -> Result<Response, authorize::Refusal> {
    let proof = Authentication::here(method, caller.now);
    let (session, cookie) =
        app.store.begin_session(person, &proof, app.session_max, caller.now).await?;
    app.store.place_session(&session.id, &whence(headers, caller)).await?;
    // Signed in, even if the client that asked for it gets nothing.
    let mut response = next.go(app, headers, &session, caller).await.into_response();
    set_cookies(app, &mut response, &session, &cookie, caller.now);
    renew_form_cookie(headers, &mut response);
    Ok(response)
}

/// What signing out ends is known by this cookie, so it outlives the session.
pub(super) fn renew_form_cookie(headers: &HeaderMap, response: &mut Response) {
    if let Some(value) = cookie::get(headers, cookie::FORM) {
        let cookie = cookie::set(cookie::FORM, value, DEVICE_LIFETIME);
        response.headers_mut().append(header::SET_COOKIE, cookie);
    }
}

pub(super) fn set_cookies(
    app: &Server,
    response: &mut Response,
    session: &Session,
    secret: &Secret,
    now: Timestamp,
) {
    let age = session.expires_at.duration_since(now).as_secs();
    let device = device(app, &session.person.name);
    for cookie in [
        cookie::set(cookie::SSO, secret.as_str(), age),
        cookie::set(cookie::DEVICE, &device, DEVICE_LIFETIME),
    ] {
        response.headers_mut().append(header::SET_COOKIE, cookie);
    }
}
