//! Signed tokens of others and our own: compact JWS (RFC 7515) checked against a key set (RFC 7517).
//!
//! The key decides the algorithm and the header has to agree, so there is nothing to confuse: no
//! `none`, no HMAC, and no key that the token brings along.

use std::fmt;

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ED25519, RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents,
    UnparsedPublicKey,
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, de::DeserializeOwned, de::IgnoredAny};
use serde_json::Value;

/// Longest token that is looked at, in bytes.
pub const JWS_MAX: usize = 8 * 1024;

/// The largest set in bytes. None of its keys is left out.
const SET_MAX: usize = 64 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum JwsError {
    #[error("it is too long")]
    TooLong,
    #[error("it is malformed")]
    Malformed,
    #[error("its algorithm, type or header is not accepted")]
    Header,
    #[error("it is signed with an unknown key")]
    UnknownKey,
    #[error("its signature is wrong")]
    Signature,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it holds no usable key; give RSA (2048 bits or more), P-256 or Ed25519 public keys")]
pub struct JwkSetError;

#[derive(Clone, PartialEq, Eq)]
enum Public {
    Rsa {
        n: Vec<u8>,
        e: Vec<u8>,
    },
    /// The point, uncompressed (SEC 1, section 2.3.3).
    P256(Vec<u8>),
    Ed25519(Vec<u8>),
}

impl Public {
    fn algorithm(&self) -> &'static str {
        match self {
            Self::Rsa { .. } => "RS256",
            Self::P256(_) => "ES256",
            Self::Ed25519(_) => "EdDSA",
        }
    }

    fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        match self {
            Self::Rsa { n, e } => RsaPublicKeyComponents { n, e }
                .verify(&RSA_PKCS1_2048_8192_SHA256, message, signature)
                .is_ok(),
            Self::P256(point) => UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point)
                .verify(message, signature)
                .is_ok(),
            Self::Ed25519(key) => {
                UnparsedPublicKey::new(&ED25519, key).verify(message, signature).is_ok()
            }
        }
    }
}

#[derive(Clone, PartialEq, Eq)]
struct Key {
    kid: Option<String>,
    public: Public,
}

/// Public keys that signatures are checked with.
#[derive(Clone, PartialEq, Eq)]
pub struct JwkSet {
    keys: Vec<Key>,
}

impl fmt::Debug for JwkSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.keys.iter().map(|key| &key.kid)).finish()
    }
}

#[derive(Deserialize)]
struct Jwk {
    kty: String,
    kid: Option<String>,
    #[serde(rename = "use")]
    usage: Option<String>,
    alg: Option<String>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
    /// A private member: whoever registers such a key has given it away.
    d: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    typ: Option<String>,
    kid: Option<String>,
    jwk: Option<IgnoredAny>,
    jku: Option<IgnoredAny>,
    x5u: Option<IgnoredAny>,
    x5c: Option<IgnoredAny>,
    crit: Option<IgnoredAny>,
    b64: Option<IgnoredAny>,
}

impl JwkSet {
    /// Keys of other kinds are skipped (RFC 7517, section 5); a set without any that is usable, or
    /// with a private key in it, is an error.
    pub fn from_json(json: &str) -> Result<Self, JwkSetError> {
        #[derive(Deserialize)]
        struct Set {
            keys: Vec<Value>,
        }
        if json.len() > SET_MAX {
            return Err(JwkSetError);
        }
        let set: Set = serde_json::from_str(json).map_err(|_| JwkSetError)?;
        let mut keys = Vec::new();
        for value in set.keys {
            let Ok(jwk) = serde_json::from_value::<Jwk>(value) else { continue };
            if jwk.d.is_some() {
                return Err(JwkSetError);
            }
            keys.extend(Key::read(jwk));
        }
        if keys.is_empty() { Err(JwkSetError) } else { Ok(Self { keys }) }
    }

    /// The claims, once the signature is proven to be of one of these keys. `is_type` judges the
    /// header's `typ`, without its `application/`.
    pub fn verify<T: DeserializeOwned>(
        &self,
        token: &str,
        is_type: impl Fn(Option<&str>) -> bool,
    ) -> Result<T, JwsError> {
        if token.len() > JWS_MAX {
            return Err(JwsError::TooLong);
        }
        let (message, signature) = token.rsplit_once('.').ok_or(JwsError::Malformed)?;
        let (header, payload) = message.split_once('.').ok_or(JwsError::Malformed)?;
        let header: Header = part(header)?;
        let typ = header.typ.as_deref().map(|typ| {
            let plain = typ.strip_prefix("application/").unwrap_or(typ);
            plain.to_ascii_lowercase()
        });
        let brings_a_key = header.jwk.is_some()
            || header.jku.is_some()
            || header.x5u.is_some()
            || header.x5c.is_some();
        if brings_a_key
            || header.crit.is_some()
            || header.b64.is_some()
            || !is_type(typ.as_deref())
            || !["RS256", "ES256", "EdDSA"].contains(&header.alg.as_str())
        {
            return Err(JwsError::Header);
        }
        let signature = URL_SAFE_NO_PAD.decode(signature).map_err(|_| JwsError::Malformed)?;
        let mut candidates = self
            .keys
            .iter()
            .filter(|key| key.public.algorithm() == header.alg)
            .filter(|key| header.kid.is_none() || key.kid == header.kid)
            .peekable();
        if candidates.peek().is_none() {
            return Err(JwsError::UnknownKey);
        }
        if !candidates.any(|key| key.public.verifies(message.as_bytes(), &signature)) {
            return Err(JwsError::Signature);
        }
        part(payload)
    }
}

impl Key {
    fn read(jwk: Jwk) -> Option<Self> {
        let bytes = |text: Option<&String>| URL_SAFE_NO_PAD.decode(text?).ok();
        let public = match (jwk.kty.as_str(), jwk.crv.as_deref()) {
            ("RSA", _) => Public::Rsa {
                n: bytes(jwk.n.as_ref()).filter(|n| n.len() >= 256)?,
                e: bytes(jwk.e.as_ref())?,
            },
            ("EC", Some("P-256")) => {
                let side = |text| bytes(text).filter(|side| side.len() == 32);
                let (x, y) = (side(jwk.x.as_ref())?, side(jwk.y.as_ref())?);
                Public::P256([&[4], x.as_slice(), y.as_slice()].concat())
            }
            ("OKP", Some("Ed25519")) => {
                Public::Ed25519(bytes(jwk.x.as_ref()).filter(|x| x.len() == 32)?)
            }
            _ => return None,
        };
        let usable = jwk.usage.as_deref().is_none_or(|usage| usage == "sig")
            && jwk.alg.as_deref().is_none_or(|alg| alg == public.algorithm());
        usable.then_some(Self { kid: jwk.kid, public })
    }
}

fn part<T: DeserializeOwned>(part: &str) -> Result<T, JwsError> {
    let bytes = URL_SAFE_NO_PAD.decode(part).map_err(|_| JwsError::Malformed)?;
    serde_json::from_slice(&bytes).map_err(|_| JwsError::Malformed)
}

/// Makers of keys and tokens for tests.
#[cfg(test)]
pub(crate) mod testing {
    use aws_lc_rs::{
        rand::SystemRandom,
        signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _},
    };
    use serde_json::json;

    use super::*;

    pub struct EdKey(Ed25519KeyPair);

    impl EdKey {
        pub fn generate() -> Self {
            Self(Ed25519KeyPair::generate().unwrap())
        }

        pub fn jwks(&self) -> Value {
            let x = URL_SAFE_NO_PAD.encode(self.0.public_key());
            json!({ "keys": [{ "kty": "OKP", "crv": "Ed25519", "kid": "ed", "x": x }] })
        }

        pub fn sign(&self, header: &Value, claims: &Value) -> String {
            sign(header, claims, |message| self.0.sign(message).as_ref().to_vec())
        }
    }

    pub fn es256(claims: &Value) -> (Value, String) {
        let random = SystemRandom::new();
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
        let point = pair.public_key().as_ref().to_vec();
        let (x, y) = point[1..].split_at(32);
        let jwk = json!({
            "kty": "EC", "crv": "P-256", "kid": "ec",
            "x": URL_SAFE_NO_PAD.encode(x), "y": URL_SAFE_NO_PAD.encode(y),
        });
        let token = sign(&json!({ "alg": "ES256" }), claims, |message| {
            pair.sign(&random, message).unwrap().as_ref().to_vec()
        });
        (json!({ "keys": [jwk] }), token)
    }

    pub fn sign(header: &Value, claims: &Value, signer: impl Fn(&[u8]) -> Vec<u8>) -> String {
        let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let message = format!("{}.{}", encode(header), encode(claims));
        let signature = URL_SAFE_NO_PAD.encode(signer(message.as_bytes()));
        format!("{message}.{signature}")
    }
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::hmac;
    use proptest::prelude::*;
    use serde_json::json;

    use super::{testing::EdKey, *};

    fn any(_: Option<&str>) -> bool {
        true
    }

    fn set(json: &Value) -> JwkSet {
        JwkSet::from_json(&json.to_string()).unwrap()
    }

    #[test]
    fn each_kind_of_key_verifies_its_own() {
        let claims = json!({ "sub": "s" });
        let (keys, token) = testing::es256(&claims);
        assert_eq!(set(&keys).verify::<Value>(&token, any), Ok(claims.clone()));
        let ed = EdKey::generate();
        let token = ed.sign(&json!({ "alg": "EdDSA", "kid": "ed" }), &claims);
        assert_eq!(set(&ed.jwks()).verify::<Value>(&token, any), Ok(claims.clone()));
        assert_eq!(set(&keys).verify::<Value>(&token, any), Err(JwsError::UnknownKey));
        let other = EdKey::generate();
        assert_eq!(set(&other.jwks()).verify::<Value>(&token, any), Err(JwsError::Signature));
    }

    #[test]
    fn attack_12_a_token_chooses_neither_key_nor_algorithm() {
        let ed = EdKey::generate();
        let keys = set(&ed.jwks());
        let claims = json!({ "sub": "s" });
        for (header, error) in [
            (json!({ "alg": "none" }), JwsError::Header),
            (json!({ "alg": "HS256", "kid": "ed" }), JwsError::Header),
            (json!({ "alg": "RS256", "kid": "ed" }), JwsError::UnknownKey),
            (json!({ "alg": "EdDSA", "kid": "../../etc/passwd" }), JwsError::UnknownKey),
            (json!({ "alg": "EdDSA", "jwk": ed.jwks()["keys"][0] }), JwsError::Header),
            (json!({ "alg": "EdDSA", "jku": "https://evil.example" }), JwsError::Header),
            (json!({ "alg": "EdDSA", "x5u": "https://evil.example" }), JwsError::Header),
            (json!({ "alg": "EdDSA", "crit": ["b64"], "b64": false }), JwsError::Header),
        ] {
            let token = ed.sign(&header, &claims);
            assert_eq!(keys.verify::<Value>(&token, any), Err(error), "{header}");
        }
        // HMAC with the public key's text as the secret.
        let secret = hmac::Key::new(hmac::HMAC_SHA256, ed.jwks().to_string().as_bytes());
        let token = testing::sign(&json!({ "alg": "HS256" }), &claims, |message| {
            hmac::sign(&secret, message).as_ref().to_vec()
        });
        assert_eq!(keys.verify::<Value>(&token, any), Err(JwsError::Header));
        let long = format!("{}.", "a".repeat(JWS_MAX));
        assert_eq!(keys.verify::<Value>(&long, any), Err(JwsError::TooLong));
        let header = json!({ "alg": "EdDSA", "typ": "application/at+jwt" });
        let token = ed.sign(&header, &claims);
        assert_eq!(keys.verify::<Value>(&token, |t| t != Some("at+jwt")), Err(JwsError::Header));
    }

    #[test]
    fn claims_that_come_twice_are_refused() {
        #[derive(Debug, PartialEq, Deserialize)]
        struct Claims {
            sub: String,
        }
        let ed = EdKey::generate();
        let header = json!({ "alg": "EdDSA" });
        let good = ed.sign(&header, &json!({ "sub": "s" }));
        assert!(set(&ed.jwks()).verify::<Claims>(&good, any).is_ok());
        // A `Value` cannot hold a doubled member, so the text is made by hand.
        let pair = aws_lc_rs::signature::Ed25519KeyPair::generate().unwrap();
        let x = URL_SAFE_NO_PAD.encode(aws_lc_rs::signature::KeyPair::public_key(&pair));
        let keys = json!({ "keys": [{ "kty": "OKP", "crv": "Ed25519", "x": x }] });
        let encode = |text: &str| URL_SAFE_NO_PAD.encode(text);
        let message =
            format!("{}.{}", encode(r#"{"alg":"EdDSA"}"#), encode(r#"{"sub":"s","sub":"t"}"#));
        let signature = URL_SAFE_NO_PAD.encode(pair.sign(message.as_bytes()));
        let token = format!("{message}.{signature}");
        assert_eq!(set(&keys).verify::<Claims>(&token, any), Err(JwsError::Malformed));
    }

    #[test]
    fn key_sets_are_read_with_care() {
        let ed = EdKey::generate();
        let mut private = ed.jwks();
        private["keys"][0]["d"] = json!("secret");
        for bad in [
            json!({}),
            json!({ "keys": [] }),
            json!({ "keys": [{ "kty": "oct", "k": "AAAA" }] }),
            json!({ "keys": [{ "kty": "RSA", "n": "AQAB", "e": "AQAB" }] }),
            json!({ "keys": [{ "kty": "EC", "crv": "P-256", "x": "AA", "y": "AA" }] }),
            private,
        ] {
            assert_eq!(JwkSet::from_json(&bad.to_string()), Err(JwkSetError), "{bad}");
        }
        let mut mixed = ed.jwks();
        mixed["keys"].as_array_mut().unwrap().push(json!({ "kty": "new" }));
        assert!(JwkSet::from_json(&mixed.to_string()).is_ok());
    }

    proptest! {
        #[test]
        fn no_input_panics(text in "\\PC{0,200}", parts in proptest::collection::vec("[A-Za-z0-9_.-]{0,40}", 0..5)) {
            let keys = set(&EdKey::generate().jwks());
            prop_assert!(keys.verify::<Value>(&text, any).is_err());
            prop_assert!(keys.verify::<Value>(&parts.join("."), any).is_err());
            let _ = JwkSet::from_json(&text);
        }
    }
}
