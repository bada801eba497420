//! The sign-in page and what it sends.
//!
//! The form carries a sealed ticket: the request that it is for, when it was made, and for which
//! browser. Nothing is kept here for people who have not signed in.

use axum::{
    extract::{RawForm, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::Response,
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use domain::name::UserName;
use jiff::Timestamp;
use runtime::audit::{Event, Outcome};
use serde::{Deserialize, Serialize};

use super::{
    Caller, authorize,
    authorize::AuthorizationRequest,
    cookie,
    discovery::DEVICE_PAGE,
    error::PageError,
    pages::{self, SignInPage},
    params::Params,
};
use crate::{
    client::ClientKind,
    password::PASSWORD_MAX,
    secret::{self, Purpose, Secret},
    server::{App, Server},
    store::{Session, StoreError},
    throttle::Key,
};

/// How long a sign-in page may stay open.
const TICKET_LIFETIME: i64 = 3600;

/// How long a browser is remembered, in seconds.
const DEVICE_LIFETIME: i64 = 180 * 24 * 3600;

#[derive(Serialize, Deserialize)]
struct Ticket {
    /// SHA-256 of the browser's form cookie.
    browser: String,
    expires_at: i64,
    next: Goal,
}

/// What signing in is for, as a browser carries it.
#[derive(Serialize, Deserialize)]
enum Goal {
    Home,
    /// The authorization request to go on with.
    Authorize(String),
    /// The code of a device that waits, or nothing.
    Device(String),
}

/// What to do once somebody is signed in.
pub(super) enum Next {
    Home,
    Authorize(String, Box<AuthorizationRequest>),
    Device(String),
}

impl Next {
    async fn read(app: &Server, goal: Goal) -> Result<Self, authorize::Refusal> {
        Ok(match goal {
            Goal::Home => Self::Home,
            Goal::Authorize(query) => {
                let request = authorize::read(app, &query).await?;
                Self::Authorize(query, Box::new(request))
            }
            Goal::Device(code) => Self::Device(code),
        })
    }

    fn goal(&self) -> Goal {
        match self {
            Self::Home => Goal::Home,
            Self::Authorize(query, _) => Goal::Authorize(query.clone()),
            Self::Device(code) => Goal::Device(code.clone()),
        }
    }

    fn request(&self) -> Option<&AuthorizationRequest> {
        match self {
            Self::Authorize(_, request) => Some(request),
            Self::Home | Self::Device(_) => None,
        }
    }

    /// Where a person who has signed in goes.
    async fn go(
        &self,
        app: &Server,
        session: &Session,
        caller: Caller,
    ) -> Result<Response, StoreError> {
        match self {
            Self::Home => Ok(authorize::see_other("/")),
            Self::Authorize(_, request) => request.grant(app, session, caller).await,
            Self::Device(code) => {
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
    let page = SignInPage {
        destination: destination.as_deref(),
        name: retry.name,
        problem: retry.problem,
        ticket: &ticket,
    };
    let mut response = pages::form(retry.status, &page, redirects_to.as_deref());
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
        None => page(&app, &headers, caller.now, &Next::Home, Retry::first()),
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
    let ticket: Ticket = form
        .get("ticket")
        .and_then(|sealed| app.sealer.open(Purpose::SignIn, sealed))
        .and_then(|bytes| serde_json::from_slice(&bytes).ok())
        .ok_or_else(|| {
            PageError::bad_request("This form is damaged. Go back and reload the page.")
        })?;
    let next = Next::read(&app, ticket.next).await?;
    let typed = form.get("name").unwrap_or_default().trim();
    let again = |status, problem: &str| {
        let name = if typed.chars().count() <= 100 { typed } else { "" };
        page(&app, &headers, caller.now, &next, Retry { status, name, problem })
    };
    let stale = if cookie::get(&headers, cookie::FORM).is_none() {
        Some("Your browser did not send back our cookie. Allow cookies for this site.")
    } else if !is_browser(&headers, &ticket.browser) {
        Some("This page was from an earlier visit. Please sign in again.")
    } else if ticket.expires_at <= caller.now.as_second() {
        Some("This page was open for too long. Please sign in again.")
    } else {
        None
    };
    if let Some(problem) = stale {
        // Another tab may have signed in meanwhile, and then there is nothing left to ask.
        if let Some(session) = authorize::session(&app, &headers, caller.now).await?
            && let Some(request) = next.request()
            && request.is_satisfied_by(&session, caller.now)
        {
            return Ok(request.grant(&app, &session, caller).await?);
        }
        return Ok(again(StatusCode::FORBIDDEN, problem));
    }

    let attempt = Attempt::new(&app, &headers, typed, caller);
    if let Err(wait) = app.throttle().begin(&attempt.keys, caller.now) {
        // Counted and not audited: whoever is slowed down must not fill the log at full speed.
        app.metrics.sign_ins.with_label_values(&["throttled"]).inc();
        let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        let text = format!("Too many tries. Please wait {seconds} s and try again.");
        let mut response = again(StatusCode::TOO_MANY_REQUESTS, &text);
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        return Ok(response);
    }
    let password = form.get("password").unwrap_or_default();
    let fits = password.len() <= PASSWORD_MAX;
    let person = app.store.check_password(attempt.name.as_ref(), password).await?;
    let Some(person) = person.filter(|_| fits) else {
        attempt.record(&app, "refused", Outcome::Denied);
        return Ok(again(StatusCode::FORBIDDEN, "That name and password do not match."));
    };
    app.throttle().succeeded(&attempt.keys);
    attempt.record(&app, "succeeded", Outcome::Allowed);

    let (session, cookie) =
        app.store.begin_session(person, "pwd", app.session_max, caller.now).await?;
    let mut response = next.go(&app, &session, caller).await?;
    set_cookies(&app, &mut response, &session, &cookie, caller.now);
    Ok(response)
}

fn set_cookies(
    app: &Server,
    response: &mut Response,
    session: &Session,
    secret: &Secret,
    now: Timestamp,
) {
    let age = session.expires_at.duration_since(now).as_secs();
    let device = Device { name: session.person.name.to_string(), id: random_id() };
    let device = seal(app, Purpose::Device, &device);
    for cookie in [
        cookie::set(cookie::SSO, secret.as_str(), age),
        cookie::set(cookie::DEVICE, &device, DEVICE_LIFETIME),
    ] {
        response.headers_mut().append(header::SET_COOKIE, cookie);
    }
}

fn random_id() -> String {
    URL_SAFE_NO_PAD.encode(secret::random())
}

/// What a browser remembers of a person's last sign-in in it.
#[derive(Serialize, Deserialize)]
struct Device {
    name: String,
    id: String,
}

/// One try at a password.
struct Attempt {
    /// None when what was typed can be nobody's name.
    name: Option<UserName>,
    keys: Vec<Key>,
    caller: Caller,
}

impl Attempt {
    fn new(app: &Server, headers: &HeaderMap, typed: &str, caller: Caller) -> Self {
        // Telephones like to begin a word with a capital.
        let typed = typed.to_ascii_lowercase();
        let name: Option<UserName> = typed.parse().ok();
        let device = cookie::get(headers, cookie::DEVICE)
            .and_then(|sealed| app.sealer.open(Purpose::Device, sealed))
            .and_then(|bytes| serde_json::from_slice::<Device>(&bytes).ok())
            .filter(|device| name.as_ref().is_some_and(|name| name.as_str() == device.name));
        let digest = |text: &str| <[u8; 32]>::try_from(secret::digest(text)).unwrap_or_default();
        let keys = match device {
            Some(device) => vec![Key::Device(digest(&device.id))],
            None => vec![Key::Account(digest(&typed)), Key::address(caller.address)],
        };
        Self { name, keys, caller }
    }

    fn record(&self, app: &Server, outcome: &str, allowed: Outcome) {
        app.metrics.sign_ins.with_label_values(&[outcome]).inc();
        let event = Event {
            who: self.name.as_ref().map(UserName::as_str),
            did: if allowed == Outcome::Allowed { "signed-in" } else { "refused" },
            to: Some("Dormouse"),
            from: Some(self.caller.address),
            credential: None,
            outcome: allowed,
            detail: Some("password"),
        };
        app.audit.record(self.caller.now, event);
    }
}
