//! Device authorization (RFC 8628): what devices ask, and the page on which somebody approves them.

use axum::{
    Json,
    extract::{RawForm, RawQuery, State, rejection::RawFormRejection},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use runtime::audit::{Event, Outcome};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{
    Caller,
    account::{confirm_address, is_fresh},
    authorize,
    client_auth::authenticate,
    discovery,
    error::{OAuthError, PageError, try_again_in},
    pages,
    params::Params,
    sign_in::{self, Next, check_origin, form_cookie, is_browser, seal},
    token::{Answered, answer_person, may_use, refusal},
};
use crate::{
    client::{Client, GrantType},
    device::{self, Answer, Decision, UserCode},
    scope,
    secret::{self, Purpose},
    server::{App, Server},
    store::{Asked, Lifetimes, NewDevice, Session},
    throttle::Key,
};

/// How long the page with the question may stay open: no longer than the code lives.
const TICKET_LIFETIME: i64 = device::LIFETIME;

/// The device authorization endpoint (RFC 8628, section 3.1).
pub(super) async fn start(
    State(app): State<App>,
    caller: Caller,
    headers: HeaderMap,
    form: Result<RawForm, RawFormRejection>,
) -> Result<Response, OAuthError> {
    let text = "send a form as application/x-www-form-urlencoded";
    let RawForm(form) = form.map_err(|_| OAuthError::new("invalid_request", text))?;
    let form = Params::parse(&form);
    if form.has_doubled() {
        return Err(OAuthError::new("invalid_request", "a parameter is given more than once"));
    }
    let client = authenticate(&app, &headers, &form).await?;
    may_use(&client, GrantType::DeviceCode)?;
    let resources = client.granted_resources(form.all("resource")).ok_or_else(|| {
        OAuthError::new("invalid_target", "the client may not ask for this resource")
    })?;
    let taken = app.limits().device_starts.take(&[Key::address(caller.address)], caller.now);
    let busy = |wait: i64| {
        OAuthError::new("temporarily_unavailable", format!("too many devices; wait {wait} s"))
    };
    taken.map_err(busy)?;
    let new = NewDevice {
        client_id: &client.id,
        scope: &client.granted_scope(form.get("scope").unwrap_or_default()),
        resources: &resources,
        address: caller.address,
    };
    let added = app.store.add_device(new, caller.now).await?;
    let (secret, code) = added.ok_or_else(|| busy(60))?;
    let code = code.to_string();
    let page = app.issuer.at(discovery::DEVICE_PAGE);
    let answer = json!({
        "device_code": secret.as_str(),
        "user_code": code,
        "verification_uri": page,
        "verification_uri_complete": format!("{page}?user_code={code}"),
        "expires_in": device::LIFETIME,
        "interval": device::INTERVAL,
    });
    Ok(Json(answer).into_response())
}

/// The token endpoint's part (RFC 8628, section 3.4 and 3.5).
pub(super) async fn redeem(
    app: &Server,
    caller: Caller,
    client: &Client,
    form: &Params,
) -> Answered {
    may_use(client, GrantType::DeviceCode)?;
    let code = form
        .get("device_code")
        .ok_or_else(|| OAuthError::new("invalid_request", "device_code is missing"))?;
    let approved = match app.store.ask_device(code, &client.id, caller.now).await? {
        Asked::Approved(approved) => approved,
        Asked::Unknown => {
            return Err(OAuthError::new("invalid_grant", "the device code is not known"));
        }
        Asked::Told(answer) => {
            let (error, text) = match answer {
                Answer::Expired => ("expired_token", "nobody approved in time; start again"),
                Answer::SlowDown(_) => ("slow_down", "wait 5 s longer between two questions"),
                Answer::Denied => ("access_denied", "the device was refused"),
                Answer::Pending | Answer::Approved => {
                    ("authorization_pending", "nobody has approved yet; ask again")
                }
            };
            return Err(OAuthError::new(error, text));
        }
    };
    let lifetimes = Lifetimes { idle: app.session_idle, max: app.session_max };
    let redeemed = app
        .store
        .begin_device_session(&approved, &client.id, lifetimes, caller.now)
        .await
        .map_err(|error| refusal("the approval is void", error))?;
    answer_person(app, caller, client, redeemed, None, form).await
}

/// Bound to the browser, the session and the device that it asks about.
#[derive(Serialize, Deserialize)]
struct Ticket {
    browser: String,
    session: String,
    code: String,
    expires_at: i64,
}

/// The field for the code. A code in the address is filled in and no more: looking it up takes a
/// form of our own, so that no site can make a browser guess.
pub(super) async fn show(
    State(app): State<App>,
    caller: Caller,
    headers: HeaderMap,
    RawQuery(query): RawQuery,
) -> Result<Response, PageError> {
    let query = Params::parse(query.unwrap_or_default().as_bytes());
    let code = query.get("user_code").and_then(UserCode::parse).map(|code| code.to_string());
    Ok(match authorize::session(&app, &headers, caller.now).await? {
        Some(session) => entry(&session, StatusCode::OK, code.as_deref().unwrap_or_default(), ""),
        None => {
            let next = Next::Device(code.unwrap_or_default());
            sign_in::begin(&app, &headers, caller, &next).await?
        }
    })
}

/// The code, and then the decision.
pub(super) async fn submit(
    State(app): State<App>,
    caller: Caller,
    headers: HeaderMap,
    RawForm(form): RawForm,
) -> Result<Response, PageError> {
    check_origin(&app, &headers)?;
    let form = Params::parse(&form);
    let Some(session) = authorize::session(&app, &headers, caller.now).await? else {
        // Signed out meanwhile: the code is there again after signing in.
        let code = form.get("ticket").and_then(|sealed| opened(&app, &headers, sealed));
        let code = code.map_or_else(|| typed(&form), |ticket| ticket.code);
        return sign_in::begin(&app, &headers, caller, &Next::Device(code)).await;
    };
    if let Some(sealed) = form.get("ticket") {
        return decide(&app, caller, &headers, &session, sealed, form.get("decision")).await;
    }
    let subject = <[u8; 32]>::try_from(secret::digest(&session.person.subject));
    let keys = [Key::address(caller.address), Key::Account(subject.unwrap_or_default())];
    if let Err(wait) = app.limits().device_codes.take(&keys, caller.now) {
        let text = format!("Too many tries. Please wait {wait} s and try again.");
        let mut response = entry(&session, StatusCode::TOO_MANY_REQUESTS, "", &text);
        try_again_in(&mut response, wait);
        return Ok(response);
    }
    let code = form.get("user_code").and_then(UserCode::parse);
    if let Some(code) = &code
        && !is_fresh(&session, caller.now)
    {
        return Ok(confirm_first(&code.to_string()));
    }
    let device = match &code {
        Some(code) => app.store.waiting_device(code, caller.now).await?,
        None => None,
    };
    let (Some(code), Some(device)) = (code, device) else {
        let text = "No device waits with this code. Compare it with what the device shows, or \
                    start again there: codes are good for ten minutes.";
        return Ok(entry(&session, StatusCode::NOT_FOUND, "", text));
    };
    let client = app.store.client(&device.client_id).await?;
    let client = client.ok_or_else(|| PageError::bad_request("That application is gone."))?;
    let (browser, set_cookie) = form_cookie(&headers);
    let ticket = Ticket {
        browser,
        session: session.id.clone(),
        code: code.to_string(),
        expires_at: caller.now.as_second() + TICKET_LIFETIME,
    };
    let ticket = seal(&app, Purpose::DeviceLogin, &ticket);
    let here = caller.address.to_string();
    let page = pages::DevicePage {
        name: session.person.name.as_str(),
        client: client.name(),
        code: &code.to_string(),
        rights: device.scope.split_ascii_whitespace().map(scope::explain).collect(),
        resources: &device.resources,
        address: &device.address,
        elsewhere: (device.address != here).then_some(here.as_str()),
        time: &device.created_at.strftime("%H:%M:%S UTC").to_string(),
        ticket: &ticket,
    };
    let mut response = pages::form(StatusCode::OK, &page, None);
    if let Some(cookie) = set_cookie {
        response.headers_mut().append(header::SET_COOKIE, cookie);
    }
    Ok(response)
}

/// The code in the form, as it is shown again.
fn typed(form: &Params) -> String {
    let code = form.get("user_code").and_then(UserCode::parse);
    code.map(|code| code.to_string()).unwrap_or_default()
}

/// The ticket, if it was given to this browser.
fn opened(app: &Server, headers: &HeaderMap, sealed: &str) -> Option<Ticket> {
    let bytes = app.sealer.open(Purpose::DeviceLogin, sealed)?;
    let ticket: Ticket = serde_json::from_slice(&bytes).ok()?;
    is_browser(headers, &ticket.browser).then_some(ticket)
}

fn entry(session: &Session, status: StatusCode, code: &str, problem: &str) -> Response {
    let page = pages::DeviceCodePage { name: session.person.name.as_str(), code, problem };
    pages::form(status, &page, None)
}

/// A device stays signed in for long, and without this browser. A link and no redirect: browsers follow
/// none to a provider from a form that is for us.
fn confirm_first(code: &str) -> Response {
    let text = "A device stays signed in for long, so it has to be you who approves it. Sign in again; \
                the code is kept.";
    let address = confirm_address(Some(code));
    let link = Some((address.as_str(), "Sign in again"));
    pages::message(StatusCode::FORBIDDEN, "Show that it is still you", text, link)
}

async fn decide(
    app: &Server,
    caller: Caller,
    headers: &HeaderMap,
    session: &Session,
    sealed: &str,
    decision: Option<&str>,
) -> Result<Response, PageError> {
    let damaged = || PageError::bad_request("This form is damaged. Enter the code again.");
    let ticket = opened(app, headers, sealed).ok_or_else(damaged)?;
    if ticket.session != session.id {
        let text =
            "You have signed in again since that page was opened. Look at the device once more.";
        return Ok(entry(session, StatusCode::CONFLICT, &ticket.code, text));
    }
    let code = UserCode::parse(&ticket.code).ok_or_else(damaged)?;
    // Whatever is not a clear yes is a no.
    let decision = if decision == Some("approve") { Decision::Approved } else { Decision::Denied };
    if decision == Decision::Approved && !is_fresh(session, caller.now) {
        return Ok(confirm_first(&ticket.code));
    }
    let device = app.store.waiting_device(&code, caller.now).await?;
    let in_time = ticket.expires_at > caller.now.as_second();
    let decided =
        in_time && app.store.decide_device(&code, decision, &session.id, caller.now).await?;
    let Some(device) = device.filter(|_| decided) else {
        let text = "The code has expired, or somebody has decided already. Start again on the \
                    device."
            .to_owned();
        return Err(PageError { status: StatusCode::GONE, title: "Too late", text });
    };
    let approved = decision == Decision::Approved;
    let event = Event {
        who: Some(session.person.name.as_str()),
        did: if approved { "device-approved" } else { "device-denied" },
        to: Some(&format!("Client {}", device.client_id)),
        from: Some(caller.address),
        credential: None,
        outcome: if approved { Outcome::Allowed } else { Outcome::Denied },
        detail: Some(&format!("the device is at {}", device.address)),
    };
    app.audit.record(caller.now, event);
    Ok(if approved {
        let text = "It is signed in as you. Go back to it; this page can be closed.";
        pages::message(StatusCode::OK, "The device is approved", text, None)
    } else {
        let text = "It gets nothing. If somebody sent you its code, tell your administrator.";
        pages::message(StatusCode::OK, "The device is refused", text, None)
    })
}
