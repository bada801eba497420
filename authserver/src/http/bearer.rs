//! A person who calls with an access token of their own (RFC 6750).

use std::sync::Arc;

use axum::{
    extract::FromRequestParts,
    http::{HeaderMap, header, request::Parts},
};
use domain::identity::{Credential, CredentialKind, Identity};
use runtime::audit::{Event, Outcome};

use super::{Caller, account::is_fresh, error::ApiError};
use crate::{
    scope,
    server::{App, Server},
    store::{Person, Session},
};

/// Whose token it is: verified as the gateways do, and then asked of the database, since here a
/// token that was withdrawn a moment ago must not count.
pub(super) struct Bearer {
    pub person: Person,
    pub identity: Arc<Identity>,
    pub caller: Caller,
}

/// Who changes their own account.
pub(super) struct Actor<'a> {
    pub person: &'a Person,
    /// The token that allows it; none on the account page, where a session does.
    pub credential: Option<&'a Credential>,
    pub caller: Caller,
}

impl Actor<'_> {
    pub fn record(&self, app: &Server, did: &str, to: &str) {
        let event = Event {
            who: Some(self.person.name.as_str()),
            did,
            to: Some(to),
            from: Some(self.caller.address),
            credential: self.credential,
            outcome: Outcome::Allowed,
            detail: None,
        };
        app.audit.record(self.caller.now, event);
    }
}

impl Bearer {
    pub fn actor(&self) -> Actor<'_> {
        let credential = Some(&self.identity.credential);
        Actor { person: &self.person, credential, caller: self.caller }
    }

    pub fn needs(&self, scope: &'static str) -> Result<(), ApiError> {
        let has = self.identity.credential.scopes.iter().any(|own| own == scope);
        if has { Ok(()) } else { Err(ApiError::Scope(scope)) }
    }
}

impl Bearer {
    /// The session of an access token, with its grant, if its person proved a moment ago who they are.
    /// What outlives the session is given to nobody else.
    pub async fn fresh_session(&self, app: &Server) -> Result<(String, Session), ApiError> {
        let (id, now) = (&self.identity.credential.id, self.caller.now);
        let found = app.store.access_token_session(id, app.session_idle, now).await?;
        found.filter(|(_, session)| is_fresh(session, now)).ok_or(ApiError::Forbidden(
            "it is more than 15 minutes since you showed who you are, or not known; sign in again, then \
             repeat that",
        ))
    }
}

/// A bearer whose token may manage the person's own account.
pub(super) struct AccountBearer(pub Bearer);

impl FromRequestParts<App> for Bearer {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        let Ok(caller) = Caller::from_request_parts(parts, app).await;
        let token = token(&parts.headers)?;
        let identity = app
            .verifier
            .verify(token, caller.now)
            .map_err(|error| ApiError::Unauthorized(Some(error.to_string())))?;
        let jti = &identity.credential.id;
        let holder = match identity.credential.kind {
            CredentialKind::AccessToken => {
                app.store.access_token_holder(jti, app.session_idle, caller.now).await?
            }
            CredentialKind::PersonalAccessToken => {
                match app.store.personal_token_holder(jti).await? {
                    Some(person) => Some(person),
                    None => {
                        let account = app.store.service_token_holder(jti, caller.now).await?;
                        account.map(|account| account.person)
                    }
                }
            }
            CredentialKind::SshKey | CredentialKind::SshCertificate => None,
        };
        let person = holder
            .filter(|person| person.subject == identity.subject)
            .ok_or_else(|| ApiError::Unauthorized(Some("the token was withdrawn".to_owned())))?;
        if identity.credential.kind == CredentialKind::PersonalAccessToken {
            let used = [(jti.clone(), caller.now.as_second())];
            app.store.note_token_uses(&used, caller.now).await?;
        }
        Ok(Self { person, identity, caller })
    }
}

impl FromRequestParts<App> for AccountBearer {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        let bearer = Bearer::from_request_parts(parts, app).await?;
        bearer.needs(scope::ACCOUNT)?;
        if bearer.identity.credential.workload.is_some() {
            return Err(ApiError::Forbidden("this token is limited to one workload"));
        }
        Ok(Self(bearer))
    }
}

fn token(headers: &HeaderMap) -> Result<&str, ApiError> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let value = values.next().ok_or(ApiError::Unauthorized(None))?;
    if values.next().is_some() {
        return Err(ApiError::BadRequest("send one Authorization header".to_owned()));
    }
    value
        .to_str()
        .ok()
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, token)| token.trim())
        .ok_or(ApiError::Unauthorized(None))
}
