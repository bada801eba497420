//! What is asked of a provider's ID token (OpenID Connect Core, section 3.1.3.7).

use openidconnect::{
    AccessTokenHash, ClaimsVerificationError, IdTokenVerifier, Nonce, OAuth2TokenResponse,
    SignatureVerificationError, StandardTokenResponse,
    core::{CoreJsonWebKey, CoreTokenType},
};
use serde::Serialize;
use serde_json::Value;

use super::{
    openid::{ALGORITHMS, Fields, UpstreamClient, UpstreamIdToken},
    profile::Claims,
};

pub struct Verified {
    pub subject: String,
    pub auth_time: Option<i64>,
    pub amr: Vec<String>,
    pub acr: Option<String>,
    pub claims: Claims,
}

pub enum Failure {
    UnknownKey,
    Other(String),
}

impl From<SignatureVerificationError> for Failure {
    fn from(error: SignatureVerificationError) -> Self {
        match error {
            SignatureVerificationError::NoMatchingKey => Self::UnknownKey,
            other => Self::Other(other.to_string()),
        }
    }
}

/// Its signature, issuer, audience, times and nonce, and that the access token came with it.
pub fn verify(
    client: &UpstreamClient,
    id_token: &UpstreamIdToken,
    tokens: &StandardTokenResponse<Fields, CoreTokenType>,
    nonce: &Nonce,
) -> Result<Verified, Failure> {
    let verifier: IdTokenVerifier<'_, CoreJsonWebKey> =
        client.id_token_verifier().set_allowed_algs(ALGORITHMS);
    let claims = id_token.claims(&verifier, nonce).map_err(|error| match error {
        ClaimsVerificationError::SignatureVerification(error) => error.into(),
        other => Failure::Other(other.to_string()),
    })?;
    if let Some(expected) = claims.access_token_hash() {
        let key = id_token.signing_key(&verifier)?;
        let actual =
            AccessTokenHash::from_token(tokens.access_token(), id_token.signing_alg()?, key)
                .map_err(|error| Failure::Other(error.to_string()))?;
        if actual != *expected {
            return Err(Failure::Other("the access token belongs to another ID token".to_owned()));
        }
    }
    Ok(Verified {
        subject: claims.subject().as_str().to_owned(),
        auth_time: claims.auth_time().map(|time| time.timestamp()),
        amr: claims
            .auth_method_refs()
            .map(|methods| methods.iter().map(|method| method.as_str().to_owned()).collect())
            .unwrap_or_default(),
        acr: claims.auth_context_ref().map(|class| class.as_str().to_owned()),
        claims: object(claims),
    })
}

pub fn object(claims: &impl Serialize) -> Claims {
    match serde_json::to_value(claims) {
        Ok(Value::Object(claims)) => claims,
        _ => Claims::new(),
    }
}
