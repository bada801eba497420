//! Signing out (OpenID Connect RP-Initiated Logout 1.0).

use axum::{
    extract::{RawForm, State},
    http::{HeaderMap, StatusCode, header},
    response::Response,
};
use runtime::audit::{Event, Outcome};
use serde::{Deserialize, Serialize};

use super::{
    Caller, account, authorize, cookie,
    error::PageError,
    issue::IdClaims,
    pages,
    params::Params,
    sign_in::{check_origin, form_cookie, is_browser, seal},
    upstream,
};
use crate::{
    secret::Purpose,
    server::{App, Server},
    store::{Session, StoreError},
};

/// Bound to the browser and to the session that it is asked about.
#[derive(Serialize, Deserialize)]
struct Ticket {
    browser: String,
    session: String,
    /// Where to go afterwards; checked before it was sealed.
    return_to: Option<String>,
}

/// Signs out at once when the client proves, by an ID token of this very session, that it is meant;
/// asks otherwise, since any site can send a browser here.
pub(super) async fn ask(
    State(app): State<App>,
    caller: Caller,
    headers: HeaderMap,
    RawForm(query): RawForm,
) -> Result<Response, PageError> {
    begin(&app, caller, &headers, &Params::parse(&query)).await
}

/// The confirmation, or a client's request by POST.
pub(super) async fn submit(
    State(app): State<App>,
    caller: Caller,
    headers: HeaderMap,
    RawForm(form): RawForm,
) -> Result<Response, PageError> {
    let form = Params::parse(&form);
    let Some(sealed) = form.get("ticket") else {
        return begin(&app, caller, &headers, &form).await;
    };
    check_origin(&app, &headers)?;
    let ticket: Ticket = app
        .sealer
        .open(Purpose::SignOut, sealed)
        .and_then(|bytes| serde_json::from_slice(&bytes).ok())
        .filter(|ticket: &Ticket| is_browser(&headers, &ticket.browser))
        .ok_or_else(|| {
            PageError::bad_request("This form is damaged. Go back and reload the page.")
        })?;
    let session = authorize::session(&app, &headers, caller.now).await?;
    match session {
        Some(session) if session.id == ticket.session => {
            Ok(end(&app, caller, &session, ticket.return_to.as_deref()).await?)
        }
        Some(_) => begin(&app, caller, &headers, &Params::default()).await,
        None => Ok(signed_out(ticket.return_to.as_deref(), None)),
    }
}

async fn begin(
    app: &Server,
    caller: Caller,
    headers: &HeaderMap,
    params: &Params,
) -> Result<Response, PageError> {
    let hint = params
        .get("id_token_hint")
        .and_then(|hint| app.ring.read_hint::<IdClaims>(hint))
        .filter(|hint| hint.iss == app.issuer.as_str());
    let named = params.get("client_id");
    let client_id = match (&hint, named) {
        (Some(hint), Some(named)) if hint.aud != named => None,
        (Some(hint), _) => Some(hint.aud.as_str()),
        (None, named) => named,
    };
    let client = match client_id {
        Some(id) => app.store.client(id).await?,
        None => None,
    };
    let return_to = params
        .get("post_logout_redirect_uri")
        .filter(|uri| client.as_ref().is_some_and(|client| client.may_return_to(uri, &app.gate)))
        .map(|uri| authorize::with_query(uri, &[("state", params.get("state"))]));
    let Some(session) = authorize::session(app, headers, caller.now).await? else {
        return Ok(signed_out(return_to.as_deref(), None));
    };
    if hint.is_some_and(|hint| hint.sid == session.id && client.is_some()) {
        return Ok(end(app, caller, &session, return_to.as_deref()).await?);
    }
    let (browser, set_cookie) = form_cookie(headers);
    let devices = account::sessions::devices_of(app, &session, &browser, caller.now).await?;
    let target = return_to.as_deref().and_then(pages::form_target);
    let ticket = Ticket { browser, session: session.id, return_to };
    let ticket = seal(app, Purpose::SignOut, &ticket);
    let name = session.person.name;
    let page = pages::SignOutPage { name: name.as_str(), devices: &devices, ticket: &ticket };
    let mut response = pages::form(StatusCode::OK, &page, target.as_deref());
    if let Some(cookie) = set_cookie {
        response.headers_mut().append(header::SET_COOKIE, cookie);
    }
    Ok(response)
}

async fn end(
    app: &Server,
    caller: Caller,
    session: &Session,
    return_to: Option<&str>,
) -> Result<Response, StoreError> {
    // First, so that nothing about another provider keeps a session alive here.
    app.store.end_browser(&session.id, caller.now).await?;
    let event = Event {
        who: Some(session.person.name.as_str()),
        did: "signed-out",
        to: Some("Dormouse"),
        from: Some(caller.address),
        credential: None,
        outcome: Outcome::Allowed,
        detail: None,
    };
    app.audit.record(caller.now, event);
    let elsewhere = upstream::sign_out_link(app, &session.id).await.unwrap_or_else(|error| {
        tracing::warn!(%error, "a sign-out does not lead on to the provider");
        None
    });
    Ok(signed_out(return_to, elsewhere))
}

/// `elsewhere` is where the session at another provider can be ended, with the provider's name:
/// that is told before the client has the browser back, for it cannot know.
fn signed_out(return_to: Option<&str>, elsewhere: Option<(String, String)>) -> Response {
    let title = "You are signed out";
    let mut response = match (return_to, elsewhere) {
        (back, Some((address, name))) => {
            let text = format!(
                "You are still signed in at {name}. If this machine is not yours, sign out there \
                 too."
            );
            let label = format!("Sign out of {name}");
            let stay = format!("Stay signed in at {name}");
            let first = (address.as_str(), label.as_str());
            pages::choice(StatusCode::OK, title, &text, first, (back.unwrap_or("/sign-out"), &stay))
        }
        (Some(uri), None) => authorize::see_other(uri),
        (None, None) => {
            let text = "Close the browser if this machine is not yours.";
            pages::message(StatusCode::OK, title, text, Some(("/", "Sign in again")))
        }
    };
    let removed = cookie::set(cookie::SSO, "", 0);
    response.headers_mut().append(header::SET_COOKIE, removed);
    response
}
