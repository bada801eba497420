//! The token endpoint (RFC 6749, section 3.2).

use axum::{
    Json,
    extract::{RawForm, State, rejection::RawFormRejection},
    http::{HeaderMap, header},
    response::{IntoResponse, Response},
};
use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use domain::token::{Audience, Claims, TYP, TokenKind};
use runtime::audit::{Event, Outcome};
use serde::{Deserialize, Serialize};
use url::form_urlencoded;
use uuid::Uuid;

use super::{Caller, error::OAuthError, params::Params};
use crate::{
    client::{Client, ClientKind},
    pkce, scope, secret,
    server::{App, Server},
    signing::ID_TOKEN,
    store::{RedeemError, Redeemed, StoreError},
};

/// The claims of an ID token (OpenID Connect Core, section 2).
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct IdClaims {
    pub iss: String,
    pub sub: String,
    /// The client.
    pub aud: String,
    pub exp: i64,
    pub iat: i64,
    pub auth_time: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nonce: Option<String>,
    #[serde(default)]
    pub amr: Vec<String>,
    /// The session, for signing out of it.
    pub sid: String,
    #[serde(default)]
    pub at_hash: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preferred_username: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub email: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub groups: Option<Vec<String>>,
}

/// RFC 6749, section 5.1.
#[derive(Serialize)]
struct Issued {
    access_token: String,
    token_type: &'static str,
    expires_in: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    id_token: Option<String>,
    refresh_token: String,
    scope: String,
}

pub(super) async fn token(
    State(app): State<App>,
    caller: Caller,
    headers: HeaderMap,
    form: Result<RawForm, RawFormRejection>,
) -> Response {
    let done = match form {
        Ok(RawForm(form)) => answer(&app, caller, &headers, &Params::parse(&form)).await,
        Err(_) => Err(OAuthError::new(
            "invalid_request",
            "send a form as application/x-www-form-urlencoded",
        )),
    };
    match done {
        Ok(issued) => Json(issued).into_response(),
        Err(error) => {
            app.metrics.token_refusals.with_label_values(&[error.error]).inc();
            error.into_response()
        }
    }
}

async fn answer(
    app: &Server,
    caller: Caller,
    headers: &HeaderMap,
    form: &Params,
) -> Result<Issued, OAuthError> {
    if form.has_doubled() {
        return Err(OAuthError::new("invalid_request", "a parameter is given more than once"));
    }
    let client = authenticate(app, headers, form).await?;
    let redeemed = match form.get("grant_type") {
        Some("authorization_code") => redeem_code(app, caller, &client, form).await,
        Some("refresh_token") => redeem_refresh_token(app, caller, &client, form).await,
        Some(_) => {
            return Err(OAuthError::new(
                "unsupported_grant_type",
                "grant_type must be authorization_code or refresh_token",
            ));
        }
        None => return Err(OAuthError::new("invalid_request", "grant_type is missing")),
    };
    let (grant, redeemed, refresh_token) = redeemed.inspect_err(|error| {
        // Anybody can say that they are a public client, and fill the log with it.
        if client.kind != ClientKind::Public {
            let detail = Some(error.description.as_str());
            record(app, caller, None, &client, Outcome::Denied, detail);
        }
    })?;
    let issued = issue(app, caller, &client, &redeemed, refresh_token).await?;
    app.metrics.tokens_issued.with_label_values(&[grant]).inc();
    let who = Some(redeemed.session.person.name.as_str());
    record(app, caller, who, &client, Outcome::Allowed, Some(grant));
    Ok(issued)
}

type Granted = (&'static str, Redeemed, String);

async fn redeem_code(
    app: &Server,
    caller: Caller,
    client: &Client,
    form: &Params,
) -> Result<Granted, OAuthError> {
    let needed = |name: &'static str| {
        form.get(name)
            .ok_or_else(|| OAuthError::new("invalid_request", format!("{name} is missing")))
    };
    let code = needed("code")?;
    let redirect_uri = needed("redirect_uri")?;
    let verifier = pkce::Verifier::parse(needed("code_verifier")?).ok_or_else(|| {
        OAuthError::new(
            "invalid_request",
            "code_verifier must have 43 to 128 unreserved characters",
        )
    })?;
    let redeemed = app
        .store
        .redeem_code(code, &client.id, redirect_uri, &verifier, app.session_idle, caller.now)
        .await;
    let mut redeemed = redeemed.map_err(|error| refusal("the code is refused", error))?;
    let refresh_token = redeemed.refresh_token.take();
    let refresh_token = refresh_token.map(|token| token.as_str().to_owned()).unwrap_or_default();
    Ok(("authorization_code", redeemed, refresh_token))
}

async fn redeem_refresh_token(
    app: &Server,
    caller: Caller,
    client: &Client,
    form: &Params,
) -> Result<Granted, OAuthError> {
    let token = form
        .get("refresh_token")
        .ok_or_else(|| OAuthError::new("invalid_request", "refresh_token is missing"))?;
    let redeemed =
        app.store.redeem_refresh_token(token, &client.id, app.session_idle, caller.now).await;
    let mut redeemed = redeemed.map_err(|error| refusal("the refresh token is refused", error))?;
    if let Some(requested) = form.get("scope") {
        // Less than was granted may be asked for, never more (RFC 6749, section 6).
        let granted = scope::allowed(requested, |one| scope::contains(&redeemed.scope, one));
        if granted.len() != requested.split_ascii_whitespace().count() {
            return Err(OAuthError::new("invalid_scope", "the scope is more than was granted"));
        }
        redeemed.scope = granted.join(" ");
    }
    Ok(("refresh_token", redeemed, token.to_owned()))
}

fn refusal(what: &str, error: RedeemError) -> OAuthError {
    match error {
        RedeemError::Store(error) => error.into(),
        other => OAuthError::new("invalid_grant", format!("{what}: {other}")),
    }
}

async fn issue(
    app: &Server,
    caller: Caller,
    client: &Client,
    redeemed: &Redeemed,
    refresh_token: String,
) -> Result<Issued, OAuthError> {
    let now = caller.now.as_second();
    let session = &redeemed.session;
    let person = &session.person;
    let lifetime =
        app.access_token_lifetime.min(session.expires_at.duration_since(caller.now).unsigned_abs());
    let expires_in = i64::try_from(lifetime.as_secs()).unwrap_or(i64::MAX / 4);
    let jti = Uuid::new_v4().to_string();
    if !app.store.record_access_token(&jti, &redeemed.grant_id, lifetime, caller.now).await? {
        return Err(OAuthError::new("invalid_grant", "the grant was withdrawn"));
    }
    let claims = Claims {
        iss: app.issuer.as_str().to_owned(),
        sub: person.subject.clone(),
        aud: Audience::One(app.audience.clone()),
        exp: now.saturating_add(expires_in),
        nbf: now,
        iat: now,
        jti,
        client_id: client.id.clone(),
        sid: Some(session.id.clone()),
        scope: redeemed.scope.clone(),
        preferred_username: person.name.to_string(),
        email: person.email.clone(),
        groups: person.groups.clone(),
        kind: TokenKind::Session,
    };
    let access_token = app.ring.sign(TYP, &claims).map_err(StoreError::from)?;
    let has = |scope: &str| scope::contains(&redeemed.scope, scope);
    let id_token = if has("openid") {
        // The left half of the hash (OpenID Connect Core, section 3.1.3.6).
        let hash = secret::digest(&access_token);
        let at_hash = hash.get(..16).map(|half| URL_SAFE_NO_PAD.encode(half)).unwrap_or_default();
        let claims = IdClaims {
            iss: app.issuer.as_str().to_owned(),
            sub: person.subject.clone(),
            aud: client.id.clone(),
            exp: now.saturating_add(expires_in),
            iat: now,
            auth_time: session.signed_in_at.as_second(),
            nonce: redeemed.nonce.clone(),
            amr: vec![session.method.clone()],
            sid: session.id.clone(),
            at_hash,
            preferred_username: has("profile").then(|| person.name.to_string()),
            email: person.email.clone().filter(|_| has("email")),
            groups: has("groups").then(|| person.groups.clone()),
        };
        Some(app.ring.sign(ID_TOKEN, &claims).map_err(StoreError::from)?)
    } else {
        None
    };
    let scope = redeemed.scope.clone();
    Ok(Issued { access_token, token_type: "Bearer", expires_in, id_token, refresh_token, scope })
}

/// Who the client is (RFC 6749, section 2.3), by one method and no more.
pub(super) async fn authenticate(
    app: &Server,
    headers: &HeaderMap,
    form: &Params,
) -> Result<Client, OAuthError> {
    let basic = headers.contains_key(header::AUTHORIZATION);
    let refused = || OAuthError {
        error: "invalid_client",
        description: "the client is not known, or its secret is wrong".to_owned(),
        basic,
    };
    let (id, secret) = if basic {
        let (id, secret) = basic_credentials(headers).ok_or_else(refused)?;
        if form.get("client_secret").is_some()
            || form.get("client_id").is_some_and(|other| other != id)
        {
            let text = "the client authenticates in more than one way";
            return Err(OAuthError::new("invalid_request", text));
        }
        (id, Some(secret))
    } else {
        let id = form.get("client_id").ok_or_else(refused)?.to_owned();
        (id, form.get("client_secret").map(str::to_owned))
    };
    let client = app.store.client(&id).await?.ok_or_else(refused)?;
    let proven = match (client.kind, &secret) {
        (ClientKind::Public, None) => true,
        (ClientKind::Public, Some(_)) | (_, None) => false,
        (ClientKind::Gate | ClientKind::Confidential, Some(secret)) => client.has_secret(secret),
    };
    if proven { Ok(client) } else { Err(refused()) }
}

/// Both parts are form-encoded before they are joined (RFC 6749, section 2.3.1).
fn basic_credentials(headers: &HeaderMap) -> Option<(String, String)> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let (scheme, encoded) = values.next()?.to_str().ok()?.split_once(' ')?;
    if values.next().is_some() || !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let decoded = String::from_utf8(STANDARD.decode(encoded.trim()).ok()?).ok()?;
    let (id, secret) = decoded.split_once(':')?;
    Some((form_decode(id)?, form_decode(secret)?))
}

/// Secrets that were not encoded, as many clients send them, come through whole if they have no
/// `%` or `+`; `=` and `&` are no separators here.
fn form_decode(part: &str) -> Option<String> {
    let escaped = part.replace('=', "%3D").replace('&', "%26");
    let pair = form_urlencoded::parse(escaped.as_bytes()).next();
    pair.map(|(text, _)| text.into_owned())
}

fn record(
    app: &Server,
    caller: Caller,
    who: Option<&str>,
    client: &Client,
    outcome: Outcome,
    detail: Option<&str>,
) {
    let event = Event {
        who,
        did: if outcome == Outcome::Allowed { "token-issued" } else { "refused" },
        to: Some(&format!("Client {}", client.id)),
        from: Some(caller.address),
        credential: None,
        outcome,
        detail,
    };
    app.audit.record(caller.now, event);
}
