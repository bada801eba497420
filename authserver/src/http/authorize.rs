//! The authorization endpoint (RFC 6749, section 4.1; OpenID Connect Core, section 3.1.2).

use axum::{
    extract::{RawForm, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use jiff::Timestamp;
use runtime::audit::{Event, Outcome};
use url::form_urlencoded;

use super::{
    Caller,
    authorization_request::{AuthorizationRequest, QUERY_MAX, read, resolve},
    consent, cookie,
    error::PageError,
    sign_in,
};
use crate::{
    client::ClientKind,
    server::{App, Server},
    store::{NewCode, Session, StoreError},
};

/// What cannot be granted. Nothing is sent to an address that is not the client's own.
#[derive(Debug)]
pub(super) enum Refusal {
    Page(PageError),
    /// To the client, with the reason.
    Redirect {
        location: String,
        error: &'static str,
        text: &'static str,
    },
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        Self::Page(error.into())
    }
}

impl From<PageError> for Refusal {
    fn from(error: PageError) -> Self {
        Self::Page(error)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        match self {
            Self::Page(error) => error.into_response(),
            Self::Redirect { location, .. } => see_other(&location),
        }
    }
}

pub(super) async fn authorize(
    State(app): State<App>,
    caller: Caller,
    headers: HeaderMap,
    RawForm(query): RawForm,
) -> Result<Response, Refusal> {
    let query = std::str::from_utf8(&query)
        .ok()
        .filter(|query| query.len() <= QUERY_MAX)
        .ok_or_else(|| PageError::bad_request("The request to sign in is too long."))?;
    let request = read(&app, resolve(&app, query, caller.now).await?).await?;
    if let Some(session) = session(&app, &headers, caller.now).await?
        && request.is_satisfied_by(&session, caller.now)
    {
        return request.proceed(&app, &headers, &session, caller).await;
    }
    if request.prompt.never {
        return Err(request.refuse(&app, "login_required", "the person has to sign in"));
    }
    let next = sign_in::Next::Authorize(Box::new(request));
    Ok(sign_in::begin(&app, &headers, caller, &next).await?)
}

/// The browser's session, if it has one that is alive.
pub(super) async fn session(
    app: &Server,
    headers: &HeaderMap,
    now: Timestamp,
) -> Result<Option<Session>, StoreError> {
    match cookie::get(headers, cookie::SSO) {
        Some(cookie) => app.store.session(cookie, app.session_idle, now).await,
        None => Ok(None),
    }
}

impl AuthorizationRequest {
    /// For somebody who is signed in: asks for consent when it is needed, and grants.
    pub async fn proceed(
        &self,
        app: &Server,
        headers: &HeaderMap,
        session: &Session,
        caller: Caller,
    ) -> Result<Response, Refusal> {
        if !self.expects(session) {
            return Err(self.refuse(app, "login_required", "somebody else is signed in"));
        }
        if consent::is_needed(app, self, session).await? {
            if self.prompt.never {
                return Err(self.refuse(app, "consent_required", "the person has to agree"));
            }
            return Ok(consent::page(app, headers, self, session, caller.now));
        }
        Ok(self.grant(app, session, caller).await?)
    }

    /// Sends the browser to the client with a code. `iss` keeps issuers apart (RFC 9207).
    pub async fn grant(
        &self,
        app: &Server,
        session: &Session,
        caller: Caller,
    ) -> Result<Response, StoreError> {
        let code = NewCode {
            session_id: &session.id,
            client_id: &self.client.id,
            scope: &self.scope,
            redirect_uri: &self.redirect_uri,
            challenge: &self.challenge,
            nonce: self.nonce.as_deref(),
        };
        let code = app.store.issue_code(code, caller.now).await?;
        app.store.place_grant(&code, caller.address).await?;
        app.store.set_code_resources(&code, &self.resources).await?;
        app.audit.record(
            caller.now,
            Event {
                who: Some(session.person.name.as_str()),
                did: "authorized",
                to: Some(&format!("Client {}", self.client.id)),
                from: Some(caller.address),
                credential: None,
                outcome: Outcome::Allowed,
                detail: Some(&self.redirect_uri),
            },
        );
        let fields = [
            ("code", Some(code.as_str())),
            ("state", self.state.as_deref()),
            ("iss", Some(app.issuer.as_str())),
        ];
        let mut location = with_query(&self.redirect_uri, &fields);
        // The gate goes on to where the person wanted to go, and the browser takes this along.
        if self.client.kind == ClientKind::Gate && !self.query.fragment.is_empty() {
            location = format!("{location}#{}", self.query.fragment);
        }
        Ok(see_other(&location))
    }
}

/// Keeps what the URI has already, character by character.
pub(super) fn with_query(uri: &str, fields: &[(&str, Option<&str>)]) -> String {
    let mut query = form_urlencoded::Serializer::new(String::new());
    for (name, value) in fields {
        if let Some(value) = value {
            query.append_pair(name, value);
        }
    }
    let query = query.finish();
    match (query.is_empty(), uri.contains('?')) {
        (true, _) => uri.to_owned(),
        (false, true) => format!("{uri}&{query}"),
        (false, false) => format!("{uri}?{query}"),
    }
}

/// 303, which never repeats a form's body to the next address.
pub(super) fn see_other(location: &str) -> Response {
    match HeaderValue::from_str(location) {
        Ok(location) => (StatusCode::SEE_OTHER, [(header::LOCATION, location)]).into_response(),
        Err(_) => PageError::bad_request("That address cannot be opened.").into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_added_to_what_is_there() {
        let fields = [("code", Some("a b&c")), ("state", None)];
        assert_eq!(with_query("https://a/cb", &fields), "https://a/cb?code=a+b%26c");
        assert_eq!(with_query("https://a/cb?t=1", &fields), "https://a/cb?t=1&code=a+b%26c");
        assert_eq!(with_query("https://a/cb", &[("state", None)]), "https://a/cb");
    }
}
