//! Client assertions (RFC 7523, section 2.2 and 3; OpenID Connect Core, section 9).

use domain::token::Audience;
use jiff::Timestamp;
use serde::Deserialize;

use crate::jws::{JwkSet, JwsError};

/// `client_assertion_type`.
pub const TYPE: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";

/// How far in the future an assertion may expire, in seconds: its `jti` is remembered that long.
const LIFETIME_MAX: i64 = 600;

/// How far clocks may differ, in seconds.
const LEEWAY: i64 = 30;

/// Longest `jti`, in bytes.
const JTI_MAX: usize = 256;

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AssertionError {
    #[error("the assertion cannot be verified: {0}")]
    Jws(#[from] JwsError),
    #[error("iss and sub of the assertion must both be the client_id")]
    Party,
    #[error("aud of the assertion must be the issuer or the token endpoint")]
    Audience,
    #[error("the assertion has expired")]
    Expired,
    #[error("exp of the assertion must be within {LIFETIME_MAX} s from now")]
    TooLong,
    #[error("the assertion is not valid yet")]
    NotYetValid,
    #[error("the assertion needs a jti of 1 to {JTI_MAX} bytes")]
    Id,
    #[error("the assertion was used before; make a new one for each request")]
    Replayed,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Claims {
    pub iss: String,
    pub sub: String,
    pub aud: Audience,
    /// Seconds since the epoch, as are `nbf` and `iat`. Fractions are allowed (RFC 7519, section 2).
    pub exp: f64,
    pub nbf: Option<f64>,
    pub iat: Option<f64>,
    pub jti: Option<String>,
}

/// What is left to do with a good assertion: see that it is its first use.
#[derive(Debug, PartialEq, Eq)]
pub struct Unused {
    pub jti: String,
    /// How long `jti` has to be remembered.
    pub until: i64,
}

/// The client that the assertion claims to be of, without believing it: to look its keys up.
pub fn unverified_client(assertion: &str) -> Option<String> {
    use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
    if assertion.len() > crate::jws::JWS_MAX {
        return None;
    }
    let payload = assertion.split('.').nth(1)?;
    let claims: Claims = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).ok()?).ok()?;
    Some(claims.sub)
}

/// `audiences` are the issuer and the endpoints that clients authenticate to.
pub fn check(
    keys: &JwkSet,
    assertion: &str,
    client_id: &str,
    audiences: &[&str],
    now: Timestamp,
) -> Result<Unused, AssertionError> {
    // An access token or an ID token of ours must never pass for one; those have types.
    let is_type = |typ: Option<&str>| {
        typ.is_none_or(|typ| matches!(typ, "jwt" | "client-authentication+jwt"))
    };
    let claims: Claims = keys.verify(assertion, is_type)?;
    judge(&claims, client_id, audiences, now)
}

fn judge(
    claims: &Claims,
    client_id: &str,
    audiences: &[&str],
    now: Timestamp,
) -> Result<Unused, AssertionError> {
    if claims.iss != client_id || claims.sub != client_id {
        return Err(AssertionError::Party);
    }
    // One audience: an assertion that is good elsewhere too could be carried there.
    let meant = match &claims.aud {
        Audience::One(one) => audiences.contains(&one.as_str()),
        Audience::Many(many) => {
            !many.is_empty() && many.iter().all(|one| audiences.contains(&one.as_str()))
        }
    };
    if !meant {
        return Err(AssertionError::Audience);
    }
    let now = now.as_second();
    // Saturates: what does not fit is far away in either direction, and NaN is 0, long ago.
    let exp = claims.exp as i64;
    if exp <= now.saturating_sub(LEEWAY) {
        return Err(AssertionError::Expired);
    }
    if exp > now.saturating_add(LIFETIME_MAX) {
        return Err(AssertionError::TooLong);
    }
    let begins = [claims.nbf, claims.iat].into_iter().flatten().map(|time| time as i64);
    if begins.max().is_some_and(|begin| begin > now.saturating_add(LEEWAY)) {
        return Err(AssertionError::NotYetValid);
    }
    let jti = claims.jti.as_ref().filter(|jti| (1..=JTI_MAX).contains(&jti.len()));
    let jti = jti.ok_or(AssertionError::Id)?.clone();
    Ok(Unused { jti, until: exp.saturating_add(LEEWAY) })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::jws::testing::EdKey;

    const NOW: i64 = 1_800_000_000;
    const ISSUER: &str = "https://auth.localhost";
    const TOKEN: &str = "https://auth.localhost/token";

    fn now() -> Timestamp {
        Timestamp::from_second(NOW).unwrap()
    }

    fn claims(changes: &[(&str, Value)]) -> Value {
        let mut claims = json!({
            "iss": "c", "sub": "c", "aud": TOKEN, "exp": NOW + 60, "iat": NOW, "jti": "1",
        });
        for (name, value) in changes {
            claims[*name] = value.clone();
        }
        claims
    }

    fn judged(changes: &[(&str, Value)]) -> Result<Unused, AssertionError> {
        let claims: Claims = serde_json::from_value(claims(changes)).unwrap();
        judge(&claims, "c", &[ISSUER, TOKEN], now())
    }

    #[test]
    fn rfc_7523_each_rule_is_checked() {
        assert_eq!(judged(&[]), Ok(Unused { jti: "1".to_owned(), until: NOW + 90 }));
        assert!(judged(&[("aud", json!(ISSUER))]).is_ok());
        assert!(judged(&[("aud", json!([ISSUER, TOKEN]))]).is_ok());
        assert!(judged(&[("exp", json!(NOW as f64 + 0.5))]).is_ok());
        for (name, value, error) in [
            ("iss", json!("d"), AssertionError::Party),
            ("sub", json!("d"), AssertionError::Party),
            ("aud", json!("https://other.example"), AssertionError::Audience),
            ("aud", json!([TOKEN, "https://other.example"]), AssertionError::Audience),
            ("aud", json!([]), AssertionError::Audience),
            ("exp", json!(NOW - 30), AssertionError::Expired),
            ("exp", json!(-1e300), AssertionError::Expired),
            ("exp", json!(NOW + 601), AssertionError::TooLong),
            ("exp", json!(1e300), AssertionError::TooLong),
            ("nbf", json!(NOW + 31), AssertionError::NotYetValid),
            ("iat", json!(NOW + 31), AssertionError::NotYetValid),
            ("jti", Value::Null, AssertionError::Id),
            ("jti", json!(""), AssertionError::Id),
            ("jti", json!("x".repeat(257)), AssertionError::Id),
        ] {
            assert_eq!(judged(&[(name, value.clone())]), Err(error), "{name} {value}");
        }
    }

    #[test]
    fn attack_12_no_other_token_passes_for_an_assertion() {
        let key = EdKey::generate();
        let keys = JwkSet::from_json(&key.jwks().to_string()).unwrap();
        let assertion = |typ: Value| key.sign(&json!({ "alg": "EdDSA", "typ": typ }), &claims(&[]));
        let check = |typ: Value| check(&keys, &assertion(typ), "c", &[TOKEN], now());
        assert!(check(json!("JWT")).is_ok());
        assert!(check(Value::Null).is_ok());
        for typ in ["at+jwt", "logout+jwt", "dpop+jwt"] {
            assert_eq!(check(json!(typ)), Err(AssertionError::Jws(JwsError::Header)), "{typ}");
        }
        assert_eq!(unverified_client(&assertion(json!("JWT"))).as_deref(), Some("c"));
    }

    proptest! {
        #[test]
        fn no_assertion_panics(text in "\\PC{0,300}", exp in any::<f64>(), nbf in any::<f64>()) {
            let _ = unverified_client(&text);
            let claims = Claims {
                iss: "c".to_owned(), sub: "c".to_owned(), aud: Audience::One(TOKEN.to_owned()),
                exp, nbf: Some(nbf), iat: None, jti: Some(text),
            };
            if let Ok(unused) = judge(&claims, "c", &[TOKEN], now()) {
                prop_assert!(unused.until <= NOW + LIFETIME_MAX + LEEWAY && unused.until > NOW);
            }
        }
    }
}
