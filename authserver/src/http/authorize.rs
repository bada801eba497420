//! The authorization endpoint (RFC 6749, section 4.1; OpenID Connect Core, section 3.1.2).

use axum::{
    extract::{RawForm, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use jiff::Timestamp;
use runtime::audit::{Event, Outcome};
use url::form_urlencoded;

use super::{Caller, cookie, error::PageError, params::Params, sign_in};
use crate::{
    client::Client,
    pkce,
    server::{App, Server},
    store::{NewCode, Session, StoreError},
};

/// Longest query that is looked at: the sign-in form carries it.
const QUERY_MAX: usize = 6 * 1024;
/// Longest `nonce`: it is stored.
const NONCE_MAX: usize = 512;

/// A request whose client and redirect URI are known to belong together.
pub(super) struct AuthorizationRequest {
    pub client: Client,
    pub redirect_uri: String,
    state: Option<String>,
    nonce: Option<String>,
    scope: String,
    resources: Vec<String>,
    challenge: pkce::Challenge,
    prompt: Prompt,
    /// Seconds since the sign-in at most.
    max_age: Option<i64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Prompt {
    WhenNeeded,
    /// Show nothing.
    Never,
    /// Sign in again.
    Always,
}

/// What cannot be granted. Nothing is sent to an address that is not the client's own.
pub(super) enum Refusal {
    Page(PageError),
    /// To the client, with the reason.
    Redirect(String),
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
            Self::Redirect(location) => see_other(&location),
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
    let request = read(&app, query).await?;
    if let Some(session) = session(&app, &headers, caller.now).await?
        && request.is_satisfied_by(&session, caller.now)
    {
        return Ok(request.grant(&app, &session, caller).await?);
    }
    if request.prompt == Prompt::Never {
        let text = "nobody is signed in";
        return Err(request.refuse(&app, "login_required", text));
    }
    let next = sign_in::Next::Authorize(query.to_owned(), Box::new(request));
    Ok(sign_in::page(&app, &headers, caller.now, &next, sign_in::Retry::first()))
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

pub(super) async fn read(app: &Server, query: &str) -> Result<AuthorizationRequest, Refusal> {
    let params = Params::parse(query.as_bytes());
    let client = match params.get("client_id") {
        Some(id) => app.store.client(id).await?,
        None => None,
    };
    let client = client.ok_or_else(|| {
        PageError::bad_request(
            "The application that sent you here is not known. Tell whoever runs it that its \
             client_id is not registered.",
        )
    })?;
    let redirect_uri = params
        .get("redirect_uri")
        .filter(|uri| client.may_redirect_to(uri, &app.gate))
        .ok_or_else(|| {
            PageError::bad_request(
                "The application that sent you here wants you sent to an address that is not \
                 its own. Go back, and tell whoever runs it that its redirect_uri is not registered.",
            )
        })?
        .to_owned();
    let state = params.get("state").map(str::to_owned);
    let refuse = |error: &'static str, text: &'static str| {
        Err(Refusal::Redirect(refusal(app, &redirect_uri, state.as_deref(), error, text)))
    };
    if params.has_doubled() {
        return refuse("invalid_request", "a parameter is given more than once");
    }
    if params.get("request").is_some() {
        return refuse("request_not_supported", "request objects are not supported");
    }
    if params.get("request_uri").is_some() {
        return refuse("request_uri_not_supported", "request_uri is not supported");
    }
    match params.get("response_type") {
        Some("code") => {}
        Some(_) => return refuse("unsupported_response_type", "response_type must be code"),
        None => return refuse("invalid_request", "response_type=code is missing"),
    }
    if params.get("response_mode").is_some_and(|mode| mode != "query") {
        return refuse("invalid_request", "response_mode must be query");
    }
    if params.get("code_challenge_method") != Some("S256") {
        return refuse("invalid_request", "code_challenge_method must be S256");
    }
    let Some(challenge) = params.get("code_challenge").and_then(pkce::Challenge::parse) else {
        return refuse("invalid_request", "code_challenge must be a base64url SHA-256 digest");
    };
    let nonce = params.get("nonce").map(str::to_owned);
    if nonce.as_ref().is_some_and(|nonce| nonce.len() > NONCE_MAX) {
        return refuse("invalid_request", "nonce is too long");
    }
    let prompts: Vec<&str> =
        params.get("prompt").unwrap_or_default().split_ascii_whitespace().collect();
    let prompt = match prompts.as_slice() {
        ["none"] => Prompt::Never,
        several if several.contains(&"none") => {
            return refuse("invalid_request", "prompt=none stands alone");
        }
        some if some.contains(&"login") || some.contains(&"select_account") => Prompt::Always,
        _ => Prompt::WhenNeeded,
    };
    let max_age = match params.get("max_age").map(str::parse::<u32>) {
        None => None,
        Some(Ok(seconds)) => Some(i64::from(seconds)),
        Some(Err(_)) => return refuse("invalid_request", "max_age must be a number of seconds"),
    };
    let scope = client.granted_scope(params.get("scope").unwrap_or_default());
    let Some(resources) = client.granted_resources(params.all("resource")) else {
        return refuse("invalid_target", "the client may not ask for this resource");
    };
    Ok(AuthorizationRequest {
        client,
        redirect_uri,
        state,
        nonce,
        scope,
        resources,
        challenge,
        prompt,
        max_age,
    })
}

impl AuthorizationRequest {
    /// False when the person has to sign in (again).
    pub fn is_satisfied_by(&self, session: &Session, now: Timestamp) -> bool {
        let age = now.duration_since(session.signed_in_at).as_secs();
        self.prompt != Prompt::Always && self.max_age.is_none_or(|most| age <= most)
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
        Ok(see_other(&with_query(&self.redirect_uri, &fields)))
    }

    fn refuse(&self, app: &Server, error: &'static str, text: &str) -> Refusal {
        Refusal::Redirect(refusal(app, &self.redirect_uri, self.state.as_deref(), error, text))
    }
}

/// The address of an error response (RFC 6749, section 4.1.2.1).
fn refusal(
    app: &Server,
    redirect_uri: &str,
    state: Option<&str>,
    error: &str,
    description: &str,
) -> String {
    let fields = [
        ("error", Some(error)),
        ("error_description", Some(description)),
        ("state", state),
        ("iss", Some(app.issuer.as_str())),
    ];
    with_query(redirect_uri, &fields)
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
