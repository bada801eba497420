//! The question whether a third party's client may have what it asks for.

use axum::{
    extract::{RawForm, State},
    http::{HeaderMap, StatusCode, header},
    response::Response,
};
use jiff::Timestamp;
use runtime::audit::{Event, Outcome};
use serde::{Deserialize, Serialize};

use super::{
    Caller,
    authorization_request::{AuthorizationRequest, Query, read},
    authorize::{self, Refusal},
    error::PageError,
    pages,
    params::Params,
    sign_in::{self, Next, check_origin, form_cookie, is_browser, seal},
};
use crate::{
    scope,
    secret::Purpose,
    server::{App, Server},
    store::{Consent, Session, StoreError},
};

/// How long the question may stay open, in seconds.
const TICKET_LIFETIME: i64 = 600;

/// Bound to the browser, the session and the request that it asks about.
#[derive(Serialize, Deserialize)]
struct Ticket {
    browser: String,
    session: String,
    query: String,
    pushed: bool,
    #[serde(default)]
    fragment: String,
    expires_at: i64,
}

/// Only third parties are asked about, and what was agreed to once is not asked again.
pub(super) async fn is_needed(
    app: &Server,
    request: &AuthorizationRequest,
    session: &Session,
) -> Result<bool, StoreError> {
    if !request.client.profile.third_party {
        return Ok(false);
    }
    let given = app.store.consent(&session.person.subject, &request.client.id).await?;
    let wanted = Consent { scope: request.scope.clone(), resources: request.resources.clone() };
    Ok(request.prompt.consent || !given.is_some_and(|given| given.covers(&wanted)))
}

pub(super) fn page(
    app: &Server,
    headers: &HeaderMap,
    request: &AuthorizationRequest,
    session: &Session,
    now: Timestamp,
) -> Response {
    let (browser, set_cookie) = form_cookie(headers);
    let ticket = Ticket {
        browser,
        session: session.id.clone(),
        query: request.query.text.clone(),
        pushed: request.query.pushed,
        fragment: request.query.fragment.clone(),
        expires_at: now.as_second() + TICKET_LIFETIME,
    };
    let ticket = seal(app, Purpose::Consent, &ticket);
    let host = url::Url::parse(&request.redirect_uri).ok();
    let page = pages::ConsentPage {
        name: session.person.name.as_str(),
        client: request.client.name(),
        host: host.as_ref().and_then(|url| url.host_str()).unwrap_or(&request.redirect_uri),
        rights: request.scope.split_ascii_whitespace().map(scope::explain).collect(),
        resources: &request.resources,
        ticket: &ticket,
    };
    let target = pages::form_target(&request.redirect_uri);
    let mut response = pages::form(StatusCode::OK, &page, target.as_deref());
    if let Some(cookie) = set_cookie {
        response.headers_mut().append(header::SET_COOKIE, cookie);
    }
    response
}

pub(super) async fn submit(
    State(app): State<App>,
    caller: Caller,
    headers: HeaderMap,
    RawForm(form): RawForm,
) -> Result<Response, Refusal> {
    check_origin(&app, &headers)?;
    let form = Params::parse(&form);
    let session = authorize::session(&app, &headers, caller.now).await?;
    let ticket = form
        .get("ticket")
        .and_then(|sealed| app.sealer.open(Purpose::Consent, sealed))
        .and_then(|bytes| serde_json::from_slice::<Ticket>(&bytes).ok())
        .filter(|ticket| is_browser(&headers, &ticket.browser));
    let Some(Ticket { query, pushed, fragment, session: asked, expires_at, .. }) = ticket else {
        return Err(stale().into());
    };
    let request = read(&app, Query { text: query, pushed, fragment }).await?;
    let session = match session {
        Some(session) if session.id == asked && expires_at > caller.now.as_second() => session,
        // The session is over, or another one, or the page was open for long: what it was about is
        // asked again.
        Some(session) if request.is_satisfied_by(&session, caller.now) => {
            return request.proceed(&app, &headers, &session, caller).await;
        }
        _ => {
            let next = Next::Authorize(Box::new(request));
            return Ok(sign_in::begin(&app, &headers, caller, &next).await?);
        }
    };
    // Whatever is not a clear yes is a no.
    let agreed = form.get("decision") == Some("allow");
    let event = Event {
        who: Some(session.person.name.as_str()),
        did: if agreed { "consented" } else { "refused" },
        to: Some(&format!("Client {}", request.client.id)),
        from: Some(caller.address),
        credential: None,
        outcome: if agreed { Outcome::Allowed } else { Outcome::Denied },
        detail: Some(&request.scope),
    };
    app.audit.record(caller.now, event);
    if !agreed {
        return Err(request.refuse(&app, "access_denied", "the person did not agree"));
    }
    let consent = Consent { scope: request.scope.clone(), resources: request.resources.clone() };
    let (subject, client) = (&session.person.subject, &request.client.id);
    app.store.set_consent(subject, client, &consent, caller.address, caller.now).await?;
    Ok(request.grant(&app, &session, caller).await?)
}

fn stale() -> PageError {
    PageError::bad_request("This page is out of date. Go back to the application and start again.")
}
