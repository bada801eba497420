//! A client that authenticates by a key.

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Value, json};

pub const JWT_BEARER: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";

fn pair(seed: u8) -> Ed25519KeyPair {
    Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap()
}

pub fn jwks(seed: u8) -> Value {
    let x = URL_SAFE_NO_PAD.encode(pair(seed).public_key());
    json!({ "keys": [{ "kty": "OKP", "crv": "Ed25519", "kid": "k", "use": "sig", "x": x }] })
}

pub fn sign(seed: u8, header: &Value, claims: &Value) -> String {
    let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let message = format!("{}.{}", encode(header), encode(claims));
    let signature = URL_SAFE_NO_PAD.encode(pair(seed).sign(message.as_bytes()));
    format!("{message}.{signature}")
}

/// A client assertion for the token endpoint, good for a minute.
pub fn assertion(seed: u8, client: &str, jti: &str, now: i64) -> String {
    let claims = json!({
        "iss": client, "sub": client, "aud": format!("{}/token", super::ISSUER),
        "exp": now + 60, "iat": now, "jti": jti,
    });
    sign(seed, &json!({ "alg": "EdDSA", "kid": "k" }), &claims)
}
