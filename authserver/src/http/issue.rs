//! What is signed: access tokens (RFC 9068) and ID tokens (OpenID Connect Core, section 2).

use std::time::Duration;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use domain::token::{Audience, Claims, TYP, TokenKind};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{Caller, error::OAuthError};
use crate::{
    client::Client,
    scope, secret,
    server::Server,
    signing::ID_TOKEN,
    store::{Authentication, Redeemed, ServiceAccount, StoreError, seconds},
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
    /// Absent when nobody knows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth_time: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nonce: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub amr: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acr: Option<String>,
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

/// RFC 6749, section 5.1; `issued_token_type` by RFC 8693, section 2.2.1.
#[derive(Debug, Default, Serialize)]
pub(super) struct Issued {
    pub access_token: String,
    pub token_type: &'static str,
    pub expires_in: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id_token: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refresh_token: Option<String>,
    pub scope: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub issued_token_type: Option<&'static str>,
}

/// How a person proved who they are, as `acr`.
pub(super) const ACR: [&str; 2] = ["urn:dormouse:acr:single-factor", "phr"];

/// A provider's is as it said it, and absent when it said none. A passkey resists phishing (OpenID
/// Connect EAP ACR Values 1.0, section 2).
fn acr(authentication: &Authentication) -> Option<String> {
    let [single, resistant] = ACR;
    let own = match authentication.method.as_str() {
        _ if authentication.is_federated() => None,
        "hwk" | "swk" | "pop" | "passkey" => Some(resistant.to_owned()),
        _ => Some(single.to_owned()),
    };
    authentication.acr.clone().or(own)
}

/// What `aud` says: of the audiences that were granted those that are asked for, or all of them
/// (RFC 8707, section 2.2).
pub(super) fn audience(
    usual: &str,
    granted: &[String],
    requested: &[&str],
) -> Result<Audience, OAuthError> {
    let usual = [usual.to_owned()];
    let granted = if granted.is_empty() { &usual } else { granted };
    if requested.iter().any(|one| !granted.iter().any(|own| own == one)) {
        return Err(OAuthError::new("invalid_target", "the resource was not granted"));
    }
    let mut chosen: Vec<String> = match requested {
        [] => granted.to_vec(),
        some => some.iter().map(|&one| one.to_owned()).collect(),
    };
    chosen.dedup();
    Ok(match chosen.as_slice() {
        [one] => Audience::One(one.clone()),
        _ => Audience::Many(chosen),
    })
}

/// What a client gets beside an access token.
pub(super) struct Wish {
    /// `aud` of the access token.
    pub audience: Audience,
    pub refresh_token: Option<String>,
    /// If the scope has `openid`.
    pub with_id_token: bool,
}

/// Tokens for a client that acts for a person.
pub(super) async fn for_person(
    app: &Server,
    caller: Caller,
    client: &Client,
    redeemed: &Redeemed,
    wish: Wish,
) -> Result<Issued, OAuthError> {
    let now = caller.now.as_second();
    let session = &redeemed.session;
    let authentication = &session.authentication;
    let lifetime = session.token_lifetime(app.access_token_lifetime, caller.now);
    let expires_in = seconds(lifetime);
    // The person as they were when the token was written down, and no earlier.
    let holder;
    let (jti, person) = match &redeemed.recorded {
        Some(jti) => (jti.clone(), &session.person),
        None => {
            let (jti, grant) = (Uuid::now_v7().to_string(), &redeemed.grant_id);
            let written = app.store.record_access_token(&jti, grant, lifetime, caller.now).await?;
            let withdrawn = || OAuthError::new("invalid_grant", "the grant was withdrawn");
            holder = written.ok_or_else(withdrawn)?;
            (jti, &holder)
        }
    };
    let claims = Claims {
        iss: app.issuer.as_str().to_owned(),
        sub: person.subject.clone(),
        aud: wish.audience,
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
        workload: None,
    };
    let access_token = app.ring.sign(TYP, &claims).map_err(StoreError::from)?;
    let has = |scope: &str| scope::contains(&redeemed.scope, scope);
    let id_token = if wish.with_id_token && has("openid") {
        // The left half of the hash (OpenID Connect Core, section 3.1.3.6).
        let hash = secret::digest(&access_token);
        let at_hash = hash.get(..16).map(|half| URL_SAFE_NO_PAD.encode(half)).unwrap_or_default();
        let claims = IdClaims {
            iss: app.issuer.as_str().to_owned(),
            sub: person.subject.clone(),
            aud: client.id.clone(),
            exp: now.saturating_add(expires_in),
            iat: now,
            auth_time: authentication.at.map(Timestamp::as_second),
            nonce: redeemed.nonce.clone(),
            amr: authentication.amr.clone(),
            acr: acr(authentication),
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
    Ok(Issued {
        access_token,
        token_type: "Bearer",
        expires_in,
        id_token,
        refresh_token: wish.refresh_token,
        scope: redeemed.scope.clone(),
        issued_token_type: None,
    })
}

/// A token for a program that acts for itself (RFC 6749, section 4.4.3: no refresh token).
pub(super) async fn for_service(
    app: &Server,
    caller: Caller,
    account: &ServiceAccount,
    scope: String,
) -> Result<Issued, OAuthError> {
    let now = caller.now.as_second();
    let left = account.expires_at.map(|end| end.duration_since(caller.now).unsigned_abs());
    let lifetime = app.access_token_lifetime.min(left.unwrap_or(Duration::MAX));
    let expires_in = seconds(lifetime);
    let jti = Uuid::new_v4().to_string();
    let holder =
        app.store.record_service_token(&jti, &account.client_id, lifetime, caller.now).await?;
    let withdrawn = || OAuthError::new("invalid_client", "the service account was withdrawn");
    let person = holder.ok_or_else(withdrawn)?;
    let claims = Claims {
        iss: app.issuer.as_str().to_owned(),
        sub: person.subject.clone(),
        aud: Audience::One(app.audience.clone()),
        exp: now.saturating_add(expires_in),
        nbf: now,
        iat: now,
        jti,
        client_id: account.client_id.clone(),
        sid: None,
        scope: scope.clone(),
        preferred_username: person.name.to_string(),
        email: None,
        groups: person.groups.clone(),
        kind: TokenKind::Personal,
        workload: account.workload.clone(),
    };
    let access_token = app.ring.sign(TYP, &claims).map_err(StoreError::from)?;
    Ok(Issued { access_token, token_type: "Bearer", expires_in, scope, ..Issued::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rfc_8707_an_audience_is_chosen_of_what_was_granted() {
        let granted = ["https://a".to_owned(), "https://b".to_owned()];
        let one = |text: &str| Audience::One(text.to_owned());
        assert_eq!(audience("us", &[], &[]).unwrap(), one("us"));
        assert_eq!(audience("us", &[], &["us"]).unwrap(), one("us"));
        assert_eq!(audience("us", &granted, &["https://b"]).unwrap(), one("https://b"));
        assert_eq!(audience("us", &granted, &[]).unwrap(), Audience::Many(granted.to_vec()));
        for (granted, requested) in [(&granted[..], "us"), (&[], "https://a"), (&granted, "")] {
            let refused = audience("us", granted, &[requested]).unwrap_err();
            assert_eq!(refused.error, "invalid_target");
        }
    }

    #[test]
    fn passkeys_resist_phishing_and_passwords_do_not() {
        let now = Timestamp::from_second(0).unwrap();
        let here = |method| acr(&Authentication::here(method, now));
        assert_eq!(here("pwd").as_deref(), Some(ACR[0]));
        assert_eq!(here("pop").as_deref(), Some(ACR[1]));
        // Of others only what they say.
        let said = Authentication { acr: Some("gold".to_owned()), ..Authentication::elsewhere() };
        assert_eq!(acr(&Authentication::elsewhere()), None);
        assert_eq!(acr(&said).as_deref(), Some("gold"));
    }
}
