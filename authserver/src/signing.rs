//! The keys that sign tokens, and the key set that is published.

use std::{cmp::Ordering, sync::Arc};

use arc_swap::ArcSwap;
use aws_lc_rs::{
    encoding::AsDer,
    rand::SystemRandom,
    rsa::KeySize,
    signature::{
        KeyPair as _, RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_SHA256, RsaKeyPair,
        RsaPublicKeyComponents,
    },
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jiff::Timestamp;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::server::Clock;

/// `typ` of an ID token: anything but an access token's.
pub const ID_TOKEN: &str = "JWT";

/// Where a key is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyState {
    /// Published, so that verifiers know it before it signs.
    Next,
    Active,
    /// Published until what it signed has expired.
    Retired,
}

impl KeyState {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Next => "next",
            Self::Active => "active",
            Self::Retired => "retired",
        }
    }

    /// Of the key at that place, of keys by the times from which they sign, in order.
    pub fn of(active_from: &[i64], index: usize, now: i64) -> Self {
        match index.cmp(&active(active_from, now)) {
            Ordering::Less => Self::Retired,
            Ordering::Equal => Self::Active,
            Ordering::Greater => Self::Next,
        }
    }
}

/// The place of the key that signs now: the last whose time has come. Before the time of all of
/// them, when this clock is behind, the first.
fn active(active_from: &[i64], now: i64) -> usize {
    active_from.partition_point(|from| *from <= now).saturating_sub(1)
}

#[derive(Debug, thiserror::Error)]
pub enum SigningError {
    #[error("there is no signing key; restore the database from a backup")]
    NoKey,
    #[error("a signing key could not be made")]
    Generate,
    #[error("signing key {0} is damaged; restore the database from a backup")]
    Damaged(String),
    #[error("a token could not be signed")]
    Sign,
}

/// An RSA key with its public half (RFC 7517).
pub struct SigningKey {
    pub kid: String,
    active_from: i64,
    pair: RsaKeyPair,
    n: Vec<u8>,
    e: Vec<u8>,
}

impl SigningKey {
    /// A new RSA key of 2048 bits as PKCS #8 in DER, with its `kid`. Takes some 100 ms of CPU.
    pub fn generate() -> Result<(String, Vec<u8>), SigningError> {
        let pair = RsaKeyPair::generate(KeySize::Rsa2048).map_err(|_| SigningError::Generate)?;
        let der = pair.as_der().map_err(|_| SigningError::Generate)?;
        let der = der.as_ref().to_vec();
        let key = Self::from_pkcs8(0, &der).ok_or(SigningError::Generate)?;
        Ok((key.kid, der))
    }

    /// `active_from`: the second from which it signs.
    pub fn from_pkcs8(active_from: i64, der: &[u8]) -> Option<Self> {
        let pair = RsaKeyPair::from_pkcs8(der).ok()?;
        let n = pair.public_key().modulus().big_endian_without_leading_zero().to_vec();
        let e = pair.public_key().exponent().big_endian_without_leading_zero().to_vec();
        // The thumbprint of RFC 7638: members in this order, nothing else.
        let thumbprint = format!(
            r#"{{"e":"{}","kty":"RSA","n":"{}"}}"#,
            URL_SAFE_NO_PAD.encode(&e),
            URL_SAFE_NO_PAD.encode(&n)
        );
        let kid = URL_SAFE_NO_PAD.encode(Sha256::digest(thumbprint));
        Some(Self { kid, active_from, pair, n, e })
    }

    fn jwk(&self) -> Value {
        json!({
            "kty": "RSA", "use": "sig", "alg": "RS256", "kid": self.kid,
            "n": URL_SAFE_NO_PAD.encode(&self.n), "e": URL_SAFE_NO_PAD.encode(&self.e),
        })
    }

    fn sign(&self, typ: &str, claims: &impl Serialize) -> Result<String, SigningError> {
        let header = json!({ "alg": "RS256", "typ": typ, "kid": self.kid }).to_string();
        let claims = serde_json::to_vec(claims).map_err(|_| SigningError::Sign)?;
        let mut token =
            format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
        let mut signature = vec![0; self.pair.public_modulus_len()];
        self.pair
            .sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), token.as_bytes(), &mut signature)
            .map_err(|_| SigningError::Sign)?;
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(signature, &mut token);
        Ok(token)
    }

    fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        RsaPublicKeyComponents { n: &self.n, e: &self.e }
            .verify(&RSA_PKCS1_2048_8192_SHA256, message, signature)
            .is_ok()
    }
}

/// All keys that are published.
pub struct KeyRing {
    /// By the time from which they sign.
    keys: Vec<SigningKey>,
    active_from: Vec<i64>,
    jwks: String,
}

impl KeyRing {
    pub fn new(mut keys: Vec<SigningKey>) -> Result<Self, SigningError> {
        if keys.is_empty() {
            return Err(SigningError::NoKey);
        }
        keys.sort_by_key(|key| key.active_from);
        let active_from = keys.iter().map(|key| key.active_from).collect();
        // The newest first: gateways of earlier versions take the first 16.
        let newest_first: Vec<_> = keys.iter().rev().map(SigningKey::jwk).collect();
        let jwks = json!({ "keys": newest_first });
        Ok(Self { keys, active_from, jwks: jwks.to_string() })
    }

    /// The JSON Web Key Set (RFC 7517, section 5).
    pub fn jwks(&self) -> &str {
        &self.jwks
    }

    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// A JWT in compact form, signed with RS256.
    pub fn sign(
        &self,
        typ: &str,
        claims: &impl Serialize,
        now: Timestamp,
    ) -> Result<String, SigningError> {
        let active = active(&self.active_from, now.as_second());
        self.keys.get(active).ok_or(SigningError::NoKey)?.sign(typ, claims)
    }

    /// The claims of an ID token that we signed, expired or not: a hint, and never a credential.
    pub fn read_hint<T: DeserializeOwned>(&self, token: &str) -> Option<T> {
        #[derive(serde::Deserialize)]
        struct Header {
            alg: String,
            typ: String,
            kid: String,
        }
        let (message, signature) = token.rsplit_once('.')?;
        let (header, payload) = message.split_once('.')?;
        let part = |part: &str| URL_SAFE_NO_PAD.decode(part).ok();
        let header: Header = serde_json::from_slice(&part(header)?).ok()?;
        let key = self.keys.iter().find(|key| key.kid == header.kid)?;
        let ours = header.alg == "RS256"
            && header.typ == ID_TOKEN
            && key.verifies(message.as_bytes(), &part(signature)?);
        if ours { serde_json::from_slice(&part(payload)?).ok() } else { None }
    }
}

/// The key ring that the server uses at the moment: it changes beside requests.
pub struct Keys {
    ring: ArcSwap<KeyRing>,
    clock: Clock,
}

impl Keys {
    pub fn new(ring: KeyRing, clock: Clock) -> Self {
        Self { ring: ArcSwap::from_pointee(ring), clock }
    }

    pub fn replace(&self, ring: KeyRing) {
        self.ring.store(Arc::new(ring));
    }

    pub fn jwks(&self) -> String {
        self.ring.load().jwks().to_owned()
    }

    /// Signs with the key whose time it is.
    pub fn sign(&self, typ: &str, claims: &impl Serialize) -> Result<String, SigningError> {
        self.ring.load().sign(typ, claims, (self.clock)())
    }

    pub fn read_hint<T: DeserializeOwned>(&self, token: &str) -> Option<T> {
        self.ring.load().read_hint(token)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_signed_is_read_and_what_is_changed_is_not() {
        let (kid, der) = SigningKey::generate().unwrap();
        let key = SigningKey::from_pkcs8(0, &der).unwrap();
        assert_eq!(key.kid, kid);
        let ring = KeyRing::new(vec![key]).unwrap();
        let claims = json!({ "sub": "s" });
        let token = ring.sign(ID_TOKEN, &claims, Timestamp::UNIX_EPOCH).unwrap();
        assert_eq!(ring.read_hint::<Value>(&token), Some(claims.clone()));
        let (head, signature) = token.rsplit_once('.').unwrap();
        let (head, _) = head.split_once('.').unwrap();
        let other = URL_SAFE_NO_PAD.encode(r#"{"sub":"t"}"#);
        assert_eq!(ring.read_hint::<Value>(&format!("{head}.{other}.{signature}")), None);
        // An access token is no hint.
        let access = ring.sign(domain::token::TYP, &claims, Timestamp::UNIX_EPOCH).unwrap();
        assert_eq!(ring.read_hint::<Value>(&access), None);
    }

    #[test]
    fn each_key_signs_from_its_time_on() {
        assert!(matches!(KeyRing::new(vec![]), Err(SigningError::NoKey)));
        let times = [100, 200, 300];
        let states = |now| [0, 1, 2].map(|index| KeyState::of(&times, index, now).as_str());
        // A clock that is behind signs with a key that everybody knows.
        assert_eq!(states(99), ["active", "next", "next"]);
        assert_eq!(states(199), ["active", "next", "next"]);
        assert_eq!(states(200), ["retired", "active", "next"]);
        assert_eq!(states(1000), ["retired", "retired", "active"]);
    }
}
