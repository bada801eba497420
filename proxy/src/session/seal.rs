//! What the gate keeps at browsers and in addresses: hidden, bound to a host, and readable by every
//! replica. Each text has a key of its own, so that strangers may have as many made as they like.

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey},
    hmac,
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};

const SALT: usize = 16;

pub struct Seal(hmac::Key);

impl Seal {
    /// From a secret that all replicas share.
    pub fn new(secret: &[u8]) -> Self {
        let secret = hmac::Key::new(hmac::HMAC_SHA256, secret);
        let derived = hmac::sign(&secret, b"dormouse sign-in state");
        Self(hmac::Key::new(hmac::HMAC_SHA256, derived.as_ref()))
    }

    /// `None` only where the cipher fails, which it has no reason to.
    pub fn seal(&self, host: &str, text: &[u8]) -> Option<String> {
        let salt = rand::random::<[u8; SALT]>();
        let mut sealed = text.to_vec();
        self.key(&salt)?
            .seal_in_place_append_tag(nonce(), Aad::from(host.as_bytes()), &mut sealed)
            .ok()?;
        Some(URL_SAFE_NO_PAD.encode([&salt[..], &sealed].concat()))
    }

    pub fn open(&self, host: &str, sealed: &str) -> Option<Vec<u8>> {
        let mut bytes = URL_SAFE_NO_PAD.decode(sealed).ok()?;
        let (salt, text) = bytes.split_at_mut_checked(SALT)?;
        let key = self.key(salt)?;
        let opened = key.open_in_place(nonce(), Aad::from(host.as_bytes()), text).ok()?;
        Some(opened.to_vec())
    }

    fn key(&self, salt: &[u8]) -> Option<LessSafeKey> {
        let key = hmac::sign(&self.0, salt);
        UnboundKey::new(&AES_256_GCM, key.as_ref()).ok().map(LessSafeKey::new)
    }
}

/// Each key seals one text.
fn nonce() -> Nonce {
    Nonce::assume_unique_for_key([0; 12])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_sealed_opens_at_its_host_unchanged_or_not_at_all() {
        let seal = Seal::new(b"k");
        let sealed = seal.seal("a.example", b"/secret").unwrap();
        assert_eq!(seal.open("a.example", &sealed).unwrap(), b"/secret");
        assert_ne!(seal.seal("a.example", b"/secret").unwrap(), sealed);
        assert_eq!(seal.open("b.example", &sealed), None, "another host");
        assert_eq!(Seal::new(b"x").open("a.example", &sealed), None, "another secret");
        for at in 0..sealed.len() {
            let mut forged = sealed.clone().into_bytes();
            forged[at] = if forged[at] == b'A' { b'B' } else { b'A' };
            assert_eq!(seal.open("a.example", std::str::from_utf8(&forged).unwrap()), None, "{at}");
        }
        for short in ["", "AAAA", &sealed[..20], "%"] {
            assert_eq!(seal.open("a.example", short), None, "{short}");
        }
    }
}
