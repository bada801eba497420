//! A client that authenticates by a key.

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use base64::{
    Engine,
    engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE_NO_PAD},
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

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

/// An SSH key of the tests' own.
pub struct SshKey {
    pair: Ed25519KeyPair,
    /// As in a `.pub` file.
    pub line: String,
    blob: Vec<u8>,
}

impl SshKey {
    pub fn new(seed: u8) -> Self {
        let pair = Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap();
        let mut blob = Vec::new();
        put(&mut blob, b"ssh-ed25519");
        put(&mut blob, pair.public_key().as_ref());
        let line = format!("ssh-ed25519 {}", STANDARD.encode(&blob));
        Self { pair, line, blob }
    }

    /// `SHA256:<base64>`.
    pub fn fingerprint(&self) -> String {
        format!("SHA256:{}", STANDARD_NO_PAD.encode(Sha256::digest(&self.blob)))
    }

    /// As `echo TEXT | ssh-keygen -Y sign -n dormouse-ssh-key` prints it (PROTOCOL.sshsig).
    pub fn sign(&self, text: &str) -> String {
        let fields: [&[u8]; 3] = [b"dormouse-ssh-key", b"", b"sha256"];
        let mut message = b"SSHSIG".to_vec();
        let hash = Sha256::digest(format!("{text}\n"));
        for field in fields.into_iter().chain([hash.as_slice()]) {
            put(&mut message, field);
        }
        let mut signature = Vec::new();
        put(&mut signature, b"ssh-ed25519");
        put(&mut signature, self.pair.sign(&message).as_ref());
        let mut all = b"SSHSIG\0\0\0\x01".to_vec();
        put(&mut all, &self.blob);
        for field in fields {
            put(&mut all, field);
        }
        put(&mut all, &signature);
        let encoded = STANDARD.encode(all);
        format!("-----BEGIN SSH SIGNATURE-----\n{encoded}\n-----END SSH SIGNATURE-----\n")
    }
}

fn put(blob: &mut Vec<u8>, field: &[u8]) {
    blob.extend_from_slice(&u32::try_from(field.len()).unwrap().to_be_bytes());
    blob.extend_from_slice(field);
}
