//! The keys that sign tokens, and the key set that is published.

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
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

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

    pub fn parse(text: &str) -> Option<Self> {
        [Self::Next, Self::Active, Self::Retired].into_iter().find(|state| state.as_str() == text)
    }
}

#[derive(Debug, thiserror::Error)]
pub enum SigningError {
    #[error("no signing key is active; run the authserver's migrations or restore the database")]
    NoActiveKey,
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
    pub state: KeyState,
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
        let key = Self::from_pkcs8(KeyState::Next, &der).ok_or(SigningError::Generate)?;
        Ok((key.kid, der))
    }

    pub fn from_pkcs8(state: KeyState, der: &[u8]) -> Option<Self> {
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
        Some(Self { kid, state, pair, n, e })
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

/// All keys that are published, one of them active.
pub struct KeyRing {
    keys: Vec<SigningKey>,
    active: usize,
    jwks: String,
}

impl KeyRing {
    pub fn new(keys: Vec<SigningKey>) -> Result<Self, SigningError> {
        let active = keys
            .iter()
            .position(|key| key.state == KeyState::Active)
            .ok_or(SigningError::NoActiveKey)?;
        let jwks = json!({ "keys": keys.iter().map(SigningKey::jwk).collect::<Vec<_>>() });
        Ok(Self { keys, active, jwks: jwks.to_string() })
    }

    /// The JSON Web Key Set (RFC 7517, section 5).
    pub fn jwks(&self) -> &str {
        &self.jwks
    }

    /// A JWT in compact form, signed with RS256.
    pub fn sign(&self, typ: &str, claims: &impl Serialize) -> Result<String, SigningError> {
        self.keys.get(self.active).ok_or(SigningError::NoActiveKey)?.sign(typ, claims)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_signed_is_read_and_what_is_changed_is_not() {
        let (kid, der) = SigningKey::generate().unwrap();
        let key = SigningKey::from_pkcs8(KeyState::Active, &der).unwrap();
        assert_eq!(key.kid, kid);
        let ring = KeyRing::new(vec![key]).unwrap();
        let claims = json!({ "sub": "s" });
        let token = ring.sign(ID_TOKEN, &claims).unwrap();
        assert_eq!(ring.read_hint::<Value>(&token), Some(claims.clone()));
        let (head, signature) = token.rsplit_once('.').unwrap();
        let (head, _) = head.split_once('.').unwrap();
        let other = URL_SAFE_NO_PAD.encode(r#"{"sub":"t"}"#);
        assert_eq!(ring.read_hint::<Value>(&format!("{head}.{other}.{signature}")), None);
        // An access token is no hint.
        let access = ring.sign(domain::token::TYP, &claims).unwrap();
        assert_eq!(ring.read_hint::<Value>(&access), None);
    }

    #[test]
    fn a_ring_needs_an_active_key() {
        let (_, der) = SigningKey::generate().unwrap();
        let retired = SigningKey::from_pkcs8(KeyState::Retired, &der).unwrap();
        assert!(matches!(KeyRing::new(vec![retired]), Err(SigningError::NoActiveKey)));
    }
}
