//! Access tokens of our own that are shown to us: introspection (RFC 7662), revocation (RFC 7009)
//! and exchange (RFC 8693) look at them here, for whatever audience they are.

use axum::{
    Json,
    extract::{RawForm, State, rejection::RawFormRejection},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
};
use domain::token::{Claims, TYP, TokenKind};
use jiff::Timestamp;
use runtime::audit::{Event, Outcome};
use serde_json::json;
use uuid::Uuid;

use super::{
    Caller,
    client_auth::{Party, authenticate_party},
    error::OAuthError,
    issue::Issued,
    params::Params,
};
use crate::{
    client::{ClientKind, GrantType},
    jws::JwkSet,
    scope,
    server::{App, Server},
    store::{StoreError, seconds},
};

/// `grant_type` and the only type of token that is exchanged.
pub(super) const EXCHANGE: &str = "urn:ietf:params:oauth:grant-type:token-exchange";
const ACCESS_TOKEN: &str = "urn:ietf:params:oauth:token-type:access_token";

/// The claims, if we signed the token and it is its time.
fn read(app: &Server, token: &str, now: Timestamp) -> Option<Claims> {
    let keys = JwkSet::from_json(&app.ring.jwks()).ok()?;
    let claims: Claims = keys.verify(token, |typ| typ == Some(TYP)).ok()?;
    let now = now.as_second();
    let good = claims.iss == app.issuer.as_str() && claims.exp > now && claims.nbf <= now;
    good.then_some(claims)
}

/// False once the token, its grant, its session or its holder is out.
async fn is_alive(app: &Server, claims: &Claims, now: Timestamp) -> Result<bool, StoreError> {
    let jti = &claims.jti;
    let holder = match claims.kind {
        TokenKind::Session => app.store.access_token_holder(jti, app.session_idle, now).await?,
        TokenKind::Personal => match app.store.personal_token_holder(jti).await? {
            Some(person) => Some(person),
            None => app.store.service_token_holder(jti, now).await?.map(|account| account.person),
        },
    };
    Ok(holder.is_some_and(|person| person.subject == claims.sub))
}

fn form(form: Result<RawForm, RawFormRejection>) -> Result<Params, OAuthError> {
    let text = "send a form as application/x-www-form-urlencoded";
    let RawForm(form) = form.map_err(|_| OAuthError::new("invalid_request", text))?;
    let form = Params::parse(&form);
    if form.has_doubled() {
        return Err(OAuthError::new("invalid_request", "a parameter is given more than once"));
    }
    Ok(form)
}

/// Tells those whom a token is for whether it is good. Everybody else hears that it is not, which
/// is all that RFC 7662, section 2.2, lets them know.
pub(super) async fn introspect(
    State(app): State<App>,
    caller: Caller,
    headers: HeaderMap,
    body: Result<RawForm, RawFormRejection>,
) -> Result<Response, OAuthError> {
    let form = form(body)?;
    let party = authenticate_party(&app, &headers, &form).await?;
    if !party.is_proven() {
        return Err(OAuthError::new("invalid_client", "a public client cannot ask about tokens"));
    }
    let token =
        form.get("token").ok_or_else(|| OAuthError::new("invalid_request", "token is missing"))?;
    let claims = read(&app, token, caller.now).filter(|claims| concerns(&app, &party, claims));
    let Some(claims) = claims else { return Ok(inactive()) };
    if !is_alive(&app, &claims, caller.now).await? {
        return Ok(inactive());
    }
    if claims.kind == TokenKind::Personal {
        // Whoever asks was shown it.
        let used = [(claims.jti.clone(), caller.now.as_second())];
        app.store.note_token_uses(&used, caller.now).await?;
    }
    let mut answer = json!({
        "active": true, "token_type": "Bearer", "username": claims.preferred_username,
        "iss": claims.iss, "sub": claims.sub, "aud": claims.aud, "client_id": claims.client_id,
        "scope": claims.scope, "jti": claims.jti, "exp": claims.exp, "iat": claims.iat,
        "nbf": claims.nbf, "groups": claims.groups,
    });
    for (name, value) in [("sid", claims.sid), ("workload", claims.workload)] {
        if let Some(value) = value {
            answer[name] = json!(value);
        }
    }
    Ok(Json(answer).into_response())
}

fn inactive() -> Response {
    Json(json!({ "active": false })).into_response()
}

/// Whom the token was issued to, and those it is meant for.
fn concerns(app: &Server, party: &Party, claims: &Claims) -> bool {
    claims.client_id == party.id()
        || match party {
            Party::Client(client) => {
                client.profile.resources.iter().any(|resource| claims.aud.contains(resource))
                    || client.kind == ClientKind::Gate && claims.aud.contains(&app.audience)
            }
            Party::Service(account) => scope::contains(&account.scopes, scope::ADMIN),
        }
}

/// Withdraws a token of the client's own, and with a refresh token all that hangs on it. A personal
/// token is withdrawn for whoever holds it: they found it, and it should do no more harm.
pub(super) async fn revoke(
    State(app): State<App>,
    caller: Caller,
    headers: HeaderMap,
    body: Result<RawForm, RawFormRejection>,
) -> Result<Response, OAuthError> {
    let form = form(body)?;
    let party = authenticate_party(&app, &headers, &form).await?;
    let token =
        form.get("token").ok_or_else(|| OAuthError::new("invalid_request", "token is missing"))?;
    let foreign = || OAuthError::new("invalid_grant", "the token belongs to another client");
    let revoked = match read(&app, token, caller.now) {
        // What is out already is not asked whose it was.
        Some(claims) if !is_alive(&app, &claims, caller.now).await? => None,
        Some(claims) => {
            let personal = app.store.personal_token_holder(&claims.jti).await?;
            if let Some(person) = &personal {
                app.store.revoke_personal_token(&person.subject, &claims.jti, caller.now).await?;
            } else if claims.client_id == party.id() {
                app.store.revoke_access_token(&claims.jti, caller.now).await?;
            } else {
                return Err(foreign());
            }
            Some(claims.jti)
        }
        None => match app.store.refresh_token_client(token).await? {
            Some(client_id) if client_id != party.id() => return Err(foreign()),
            Some(_) => {
                app.store.revoke_refresh_token(token, caller.now).await?;
                Some("refresh token".to_owned())
            }
            // Nothing to withdraw is as good as withdrawn (RFC 7009, section 2.2).
            None => None,
        },
    };
    if let Some(what) = revoked {
        let event = Event {
            who: None,
            did: "token-revoked",
            to: Some(&format!("Client {}", party.id())),
            from: Some(caller.address),
            credential: None,
            outcome: Outcome::Allowed,
            detail: Some(&what),
        };
        app.audit.record(caller.now, event);
    }
    Ok(StatusCode::OK.into_response())
}

/// Gives less for a token: fewer scopes, or another audience that the client may ask for. Never
/// somebody else's token, never a longer life (RFC 8693, section 2).
pub(super) async fn exchange(
    app: &Server,
    caller: Caller,
    party: &Party,
    form: &Params,
) -> Result<(String, Issued), OAuthError> {
    let invalid = |text: &'static str| OAuthError::new("invalid_request", text);
    if let Party::Client(client) = party
        && !client.may_use(GrantType::TokenExchange)
    {
        return Err(OAuthError::new("unauthorized_client", "the client may not exchange tokens"));
    }
    if form.get("actor_token").is_some() {
        return Err(invalid("actor_token is not supported"));
    }
    if form.get("subject_token_type") != Some(ACCESS_TOKEN)
        || form.get("requested_token_type").is_some_and(|requested| requested != ACCESS_TOKEN)
    {
        return Err(invalid("only access tokens are exchanged, for access tokens"));
    }
    let token = form.get("subject_token").ok_or_else(|| invalid("subject_token is missing"))?;
    let own = read(app, token, caller.now).filter(|claims| claims.client_id == party.id());
    let Some(mut claims) = own else {
        return Err(invalid("subject_token is not a token of this client that is good now"));
    };
    if !is_alive(app, &claims, caller.now).await? {
        return Err(invalid("subject_token was withdrawn"));
    }
    // What was taken from the client meanwhile is in no new token.
    claims.scope = match party {
        Party::Client(client) => client.kept_scope(&claims.scope),
        Party::Service(account) => {
            scope::allowed(&claims.scope, |one| scope::contains(&account.scopes, one)).join(" ")
        }
    };
    if let Some(requested) = form.get("scope") {
        let narrower = scope::allowed(requested, |one| scope::contains(&claims.scope, one));
        if narrower.len() != requested.split_ascii_whitespace().count() {
            return Err(OAuthError::new("invalid_scope", "the scope is more than the token has"));
        }
        claims.scope = narrower.join(" ");
    }
    let targets: Vec<&str> = form.all("resource").chain(form.all("audience")).collect();
    if !targets.is_empty() {
        let allowed = |one: &&str| {
            let registered = match party {
                Party::Client(client) => client.profile.resources.iter().any(|own| own == one),
                Party::Service(_) => false,
            };
            registered || claims.aud.contains(one)
        };
        if !targets.iter().all(allowed) {
            let text = "the client may not ask for this audience";
            return Err(OAuthError::new("invalid_target", text));
        }
        let targets: Vec<String> = targets.iter().map(|&one| one.to_owned()).collect();
        claims.aud = super::issue::audience("", &targets, &[])?;
    }
    let now = caller.now.as_second();
    let lifetime =
        app.access_token_lifetime.min(std::time::Duration::from_secs(claims.exp.abs_diff(now)));
    let subject = std::mem::replace(&mut claims.jti, Uuid::new_v4().to_string());
    let holder = match party {
        Party::Client(_) => {
            let grant = app.store.access_token_grant(&subject).await?;
            let grant = grant.ok_or_else(|| invalid("subject_token was withdrawn"))?;
            app.store.record_access_token(&claims.jti, &grant, lifetime, caller.now).await?
        }
        Party::Service(account) => {
            let id = &account.client_id;
            app.store.record_service_token(&claims.jti, id, lifetime, caller.now).await?
        }
    };
    let holder = holder.ok_or_else(|| invalid("subject_token was withdrawn"))?;
    // A group that was lost since the subject token was looked at is in no new one.
    claims.groups.retain(|group| holder.groups.contains(group));
    (claims.iat, claims.nbf) = (now, now);
    claims.exp = now.saturating_add(seconds(lifetime));
    let access_token = app.ring.sign(TYP, &claims).map_err(StoreError::from)?;
    let issued = Issued {
        access_token,
        token_type: "Bearer",
        expires_in: seconds(lifetime),
        scope: claims.scope,
        issued_token_type: Some(ACCESS_TOKEN),
        ..Issued::default()
    };
    Ok((claims.preferred_username, issued))
}
