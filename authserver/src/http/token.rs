//! The token endpoint (RFC 6749, section 3.2).

use axum::{
    Json,
    extract::{RawForm, State, rejection::RawFormRejection},
    http::{HeaderMap, header},
    response::{IntoResponse, Response},
};
use domain::name::UserName;
use runtime::audit::{Event, Outcome};

use super::{
    Caller,
    client_auth::{Party, authenticate_party},
    device,
    error::OAuthError,
    issue::{self, Issued},
    own_token::{self, EXCHANGE},
    params::Params,
};
use crate::{
    client::{Client, ClientKind, GrantType},
    pkce, scope,
    server::{App, Server},
    store::{Exchange, RedeemError, Redeemed, ServiceAccount},
};

pub(super) const AUTHORIZATION_CODE: &str = "authorization_code";
pub(super) const REFRESH_TOKEN: &str = "refresh_token";
pub(super) const CLIENT_CREDENTIALS: &str = "client_credentials";
pub(super) const DEVICE_CODE: &str = "urn:ietf:params:oauth:grant-type:device_code";

/// `grant_type`s that there are.
pub(super) const GRANTS: [&str; 5] =
    [AUTHORIZATION_CODE, REFRESH_TOKEN, CLIENT_CREDENTIALS, DEVICE_CODE, EXCHANGE];

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
        // An old header, for old caches (RFC 6749, section 5.1).
        Ok(issued) => ([(header::PRAGMA, "no-cache")], Json(issued)).into_response(),
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
    let party = authenticate_party(app, headers, form).await?;
    let Some(named) = form.get("grant_type") else {
        return Err(OAuthError::new("invalid_request", "grant_type is missing"));
    };
    let Some(grant) = GRANTS.into_iter().find(|grant| *grant == named) else {
        let text = format!("grant_type must be one of {}", GRANTS.join(", "));
        return Err(OAuthError::new("unsupported_grant_type", text));
    };
    let answered = match (&party, grant) {
        (_, EXCHANGE) => own_token::exchange(app, caller, &party, form).await,
        (Party::Service(account), CLIENT_CREDENTIALS) => {
            client_credentials(app, caller, account, form).await
        }
        (Party::Client(client), AUTHORIZATION_CODE) => redeem_code(app, caller, client, form).await,
        (Party::Client(client), REFRESH_TOKEN) => {
            redeem_refresh_token(app, caller, client, form).await
        }
        (Party::Client(client), DEVICE_CODE) => device::redeem(app, caller, client, form).await,
        _ => Err(OAuthError::new("unauthorized_client", "the client may not use this grant type")),
    };
    let (who, issued) = answered.inspect_err(|error| {
        // Anybody can say that they are a public client, and fill the log with it; and a device
        // that asks has not been refused.
        if party.is_proven() && !matches!(error.error, "authorization_pending" | "slow_down") {
            let detail = Some(error.description.as_str());
            record(app, caller, None, &party, Outcome::Denied, detail);
        }
    })?;
    app.metrics.tokens_issued.with_label_values(&[grant]).inc();
    record(app, caller, Some(&who), &party, Outcome::Allowed, Some(grant));
    Ok(issued)
}

/// A person's name, and what their client gets.
pub(super) type Answered = Result<(String, Issued), OAuthError>;

async fn redeem_code(app: &Server, caller: Caller, client: &Client, form: &Params) -> Answered {
    let needed = |name: &'static str| {
        form.get(name)
            .ok_or_else(|| OAuthError::new("invalid_request", format!("{name} is missing")))
    };
    may_use(client, GrantType::AuthorizationCode)?;
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
    let redeemed = redeemed.map_err(|error| refusal("the code is refused", error))?;
    answer_person(app, caller, client, redeemed, None, form).await
}

async fn redeem_refresh_token(
    app: &Server,
    caller: Caller,
    client: &Client,
    form: &Params,
) -> Answered {
    may_use(client, GrantType::RefreshToken)?;
    let token = form
        .get("refresh_token")
        .ok_or_else(|| OAuthError::new("invalid_request", "refresh_token is missing"))?;
    let exchange = Exchange {
        token: token.to_owned(),
        client_id: client.id.clone(),
        idle: app.session_idle,
        lifetime: app.access_token_lifetime,
        now: caller.now,
    };
    let redeemed = app.refreshes.redeem(exchange).await;
    let mut redeemed = redeemed.map_err(|error| {
        if let RedeemError::Reused(who) = &error {
            record_reuse(app, caller, client, who.as_ref().map(UserName::as_str));
        }
        refusal("the refresh token is refused", error)
    })?;
    if let Some(requested) = form.get("scope") {
        // Less than was granted may be asked for, never more (RFC 6749, section 6).
        let granted = scope::allowed(requested, |one| scope::contains(&redeemed.scope, one));
        if granted.len() != requested.split_ascii_whitespace().count() {
            return Err(OAuthError::new("invalid_scope", "the scope is more than was granted"));
        }
        redeemed.scope = granted.join(" ");
    }
    answer_person(app, caller, client, redeemed, Some(token), form).await
}

/// Tokens for what a code, a device's approval or a refresh token was redeemed for.
pub(super) async fn answer_person(
    app: &Server,
    caller: Caller,
    client: &Client,
    mut redeemed: Redeemed,
    kept: Option<&str>,
    form: &Params,
) -> Answered {
    // What an operator has taken from the client since it was granted is gone from now on.
    let had_scopes = !redeemed.scope.is_empty();
    redeemed.scope = client.kept_scope(&redeemed.scope);
    if had_scopes && redeemed.scope.is_empty() {
        let text = "the client may not have any of the granted scopes any more";
        return Err(OAuthError::new("invalid_scope", text));
    }
    let granted = client.kept_resources(&redeemed.resources).ok_or_else(|| {
        OAuthError::new(
            "invalid_target",
            "the client may not ask for the granted resource any more",
        )
    })?;
    let requested: Vec<&str> = form.all("resource").collect();
    let audience = issue::audience(&app.audience, &granted, &requested)?;
    let new = redeemed.refresh_token.as_ref().map(|token| token.as_str());
    let refresh_token = new.or(kept).map(str::to_owned);
    let refresh_token = refresh_token.filter(|_| client.may_use(GrantType::RefreshToken));
    // A refresh may do without an ID token (OpenID Connect Core, section 12.2). Others count on it;
    // the gateways look at the first one alone, and it is half of the work.
    let is_first = kept.is_none() || form.get("scope").is_some();
    let with_id_token = is_first || client.kind != ClientKind::Gate;
    let wish = issue::Wish { audience, refresh_token, with_id_token };
    let issued = issue::for_person(app, caller, client, &redeemed, wish).await?;
    Ok((redeemed.session.person.name.to_string(), issued))
}

/// A service account asks for all its scopes, or some of them (RFC 6749, section 4.4).
async fn client_credentials(
    app: &Server,
    caller: Caller,
    account: &ServiceAccount,
    form: &Params,
) -> Answered {
    let scope = match form.get("scope") {
        None => account.scopes.clone(),
        Some(requested) => {
            let granted = scope::allowed(requested, |one| scope::contains(&account.scopes, one));
            if granted.len() != requested.split_ascii_whitespace().count() {
                let text = format!("the service account has these scopes: {}", account.scopes);
                return Err(OAuthError::new("invalid_scope", text));
            }
            granted.join(" ")
        }
    };
    if form.all("resource").any(|resource| resource != app.audience) {
        let text = "tokens of service accounts are for Dormouse alone";
        return Err(OAuthError::new("invalid_target", text));
    }
    let issued = issue::for_service(app, caller, account, scope).await?;
    Ok((account.person.name.to_string(), issued))
}

pub(super) fn may_use(client: &Client, grant_type: GrantType) -> Result<(), OAuthError> {
    if client.may_use(grant_type) {
        return Ok(());
    }
    Err(OAuthError::new("unauthorized_client", "the client may not use this grant type"))
}

pub(super) fn refusal(what: &str, error: RedeemError) -> OAuthError {
    match error {
        RedeemError::Store(error) => error.into(),
        other => OAuthError::new("invalid_grant", format!("{what}: {other}")),
    }
}

/// A sign of theft, so it is written down whoever the client is (RFC 9700, section 4.14.2). It
/// cannot be had twice: the family is gone.
fn record_reuse(app: &Server, caller: Caller, client: &Client, who: Option<&str>) {
    let event = Event {
        who,
        did: "refused",
        to: Some(&format!("Client {}", client.id)),
        from: Some(caller.address),
        credential: None,
        outcome: Outcome::Denied,
        detail: Some("a refresh token was used again; what it gave is withdrawn"),
    };
    app.audit.record(caller.now, event);
}

fn record(
    app: &Server,
    caller: Caller,
    who: Option<&str>,
    party: &Party,
    outcome: Outcome,
    detail: Option<&str>,
) {
    let event = Event {
        who,
        did: if outcome == Outcome::Allowed { "token-issued" } else { "refused" },
        to: Some(&format!("Client {}", party.id())),
        from: Some(caller.address),
        credential: None,
        outcome,
        detail,
    };
    app.audit.record(caller.now, event);
}
