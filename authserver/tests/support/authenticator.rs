//! An authenticator that keeps one passkey (Web Authentication, Level 3, section 6).

use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{ISSUER, decode, text};

const PRESENT: u8 = 1;
const VERIFIED: u8 = 1 << 2;
const HAS_KEY: u8 = 1 << 6;

pub struct Authenticator {
    key: EcdsaKeyPair,
    pub id: [u8; 32],
    /// The user handle it gives.
    pub handle: Vec<u8>,
    pub counter: u32,
    /// Whether the counter goes up with each use.
    pub counts: bool,
    pub origin: &'static str,
    /// Whether it verifies its user, by a PIN or so.
    pub verifies: bool,
}

impl Authenticator {
    /// Makes a passkey for what the site asks; returns what a browser would send.
    pub fn create(options: &Value) -> (Self, String) {
        let made = Self {
            key: EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).unwrap(),
            id: rand::random(),
            handle: decode(text(&options["user"], "id")),
            counter: 1,
            counts: true,
            origin: ISSUER,
            verifies: true,
        };
        let answer = made.remake(options);
        (made, answer)
    }

    /// The same passkey again, with its counter as it is now.
    pub fn remake(&self, options: &Value) -> String {
        let mut data = self.data(text(&options["rp"], "id"), HAS_KEY);
        data.extend([0; 16]);
        data.extend([0, 32]);
        data.extend(self.id);
        // A COSE key: EC2, ES256, P-256, then its point.
        let point = self.key.public_key().as_ref();
        data.extend([0xa5, 1, 2, 3, 0x26, 0x20, 1, 0x21, 0x58, 32]);
        data.extend(&point[1..33]);
        data.extend([0x22, 0x58, 32]);
        data.extend(&point[33..65]);
        let mut object = b"\xa3\x63fmt\x64none\x67attStmt\xa0\x68authData\x58".to_vec();
        object.push(u8::try_from(data.len()).unwrap());
        object.extend(data);
        let answer = json!({
            "id": encode(&self.id), "rawId": encode(&self.id), "type": "public-key",
            "extensions": { "credProps": { "rk": true } },
            "response": {
                "attestationObject": encode(&object),
                "clientDataJSON": encode(self.client_data("webauthn.create", options).as_bytes()),
            },
        });
        answer.to_string()
    }

    /// Signs a challenge, counting if it does.
    pub fn get(&mut self, options: &Value) -> String {
        self.counter += u32::from(self.counts);
        let data = self.data(text(options, "rpId"), 0);
        let client_data = self.client_data("webauthn.get", options);
        let message = [data.as_slice(), &Sha256::digest(client_data.as_bytes())].concat();
        let signature = self.key.sign(&SystemRandom::new(), &message).unwrap();
        let answer = json!({
            "id": encode(&self.id), "rawId": encode(&self.id), "type": "public-key",
            "extensions": {},
            "response": {
                "authenticatorData": encode(&data),
                "clientDataJSON": encode(client_data.as_bytes()),
                "signature": encode(signature.as_ref()),
                "userHandle": encode(&self.handle),
            },
        });
        answer.to_string()
    }

    fn data(&self, party: &str, more: u8) -> Vec<u8> {
        let mut data = Sha256::digest(party.as_bytes()).to_vec();
        data.push(PRESENT | more | if self.verifies { VERIFIED } else { 0 });
        data.extend(self.counter.to_be_bytes());
        data
    }

    fn client_data(&self, kind: &str, options: &Value) -> String {
        let challenge = text(options, "challenge");
        json!({ "type": kind, "challenge": challenge, "origin": self.origin, "crossOrigin": false })
            .to_string()
    }
}

fn encode(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}
