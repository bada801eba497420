//! Secrets that somebody else holds, and seals on what we let a browser carry for us.

use std::fmt;

use arc_swap::ArcSwap;
use aws_lc_rs::{hmac, rand};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq;

/// Longest seal that is looked at, in bytes: of the longest request to sign in, as JSON in base64.
const SEAL_MAX: usize = 32 * 1024;

/// 256 random bits in base64url: a code, a refresh token, a session's cookie.
pub struct Secret(String);

impl Secret {
    pub fn generate() -> Self {
        Self(URL_SAFE_NO_PAD.encode(random()))
    }

    /// The one that follows another: always the same, and known only to who has the key.
    pub fn derived(key: &hmac::Key, predecessor: &str) -> Self {
        let message = [b"refresh token successor\n", predecessor.as_bytes()].concat();
        Self(URL_SAFE_NO_PAD.encode(hmac::sign(key, &message)))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What is stored in its place.
    pub fn digest(&self) -> Vec<u8> {
        digest(&self.0)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

pub fn random() -> [u8; 32] {
    let mut bytes = [0; 32];
    // Without randomness there is no safe way to go on.
    rand::fill(&mut bytes).expect("the system's random source works");
    bytes
}

/// SHA-256. Enough for what has 256 random bits; passwords get argon2id.
pub fn digest(text: &str) -> Vec<u8> {
    Sha256::digest(text.as_bytes()).to_vec()
}

/// In lower case.
pub fn hex(bytes: &[u8]) -> String {
    let halves = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    halves.filter_map(|half| char::from_digit(half.into(), 16)).collect()
}

/// Compares digests without telling where they differ.
pub fn same(a: &[u8], b: &[u8]) -> bool {
    a.ct_eq(b).into()
}

/// What a seal is for: a seal made for one purpose does not open as another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// The sign-in form, bound to the browser that was given it.
    SignIn,
    /// The sign-out form.
    SignOut,
    /// A browser in which a person has signed in before.
    Device,
    /// The question whether to approve a device.
    DeviceLogin,
    /// The question whether to let a third party's client in.
    Consent,
    /// The nonce of a sign-in at another provider, made from its state.
    UpstreamNonce,
    /// The PKCE verifier of the same.
    UpstreamVerifier,
    /// The challenge of a sign-in by passkey.
    PasskeySignIn,
    /// The challenge to a passkey that is added.
    PasskeyRegistration,
    /// The question for a second proof of who somebody is.
    SecondProof,
    /// The challenge to a passkey that is one.
    PasskeyProof,
    /// What has to be signed with an SSH key that is registered.
    SshKey,
}

/// Seals (authenticates, does not hide) small payloads with HMAC-SHA-256. Its key may change beside
/// requests; what an earlier one sealed does not open any more.
pub struct Sealer {
    key: ArcSwap<hmac::Key>,
}

impl Sealer {
    pub fn new(key: &[u8]) -> Self {
        Self { key: ArcSwap::from_pointee(hmac::Key::new(hmac::HMAC_SHA256, key)) }
    }

    /// Goes on with the key of another one.
    pub fn replace(&self, other: Self) {
        self.key.store(other.key.into_inner());
    }

    /// `payload.tag`, both in base64url.
    pub fn seal(&self, purpose: Purpose, payload: &[u8]) -> String {
        let tag = hmac::sign(&self.key.load(), &message(purpose, payload));
        format!("{}.{}", URL_SAFE_NO_PAD.encode(payload), URL_SAFE_NO_PAD.encode(tag.as_ref()))
    }

    pub fn open(&self, purpose: Purpose, sealed: &str) -> Option<Vec<u8>> {
        if sealed.len() > SEAL_MAX {
            return None;
        }
        let (payload, tag) = sealed.split_once('.')?;
        let payload = URL_SAFE_NO_PAD.decode(payload).ok()?;
        let tag = URL_SAFE_NO_PAD.decode(tag).ok()?;
        hmac::verify(&self.key.load(), &message(purpose, &payload), &tag).ok()?;
        Some(payload)
    }
}

fn message(purpose: Purpose, payload: &[u8]) -> Vec<u8> {
    let purpose: u8 = match purpose {
        Purpose::SignIn => 1,
        Purpose::SignOut => 2,
        Purpose::Device => 3,
        Purpose::DeviceLogin => 4,
        Purpose::Consent => 5,
        Purpose::UpstreamNonce => 20,
        Purpose::UpstreamVerifier => 21,
        Purpose::PasskeySignIn => 30,
        Purpose::PasskeyRegistration => 31,
        Purpose::SshKey => 40,
        Purpose::SecondProof => 41,
        Purpose::PasskeyProof => 42,
    };
    [&[purpose], payload].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seal_opens_for_its_purpose_and_key_only() {
        let sealer = Sealer::new(&[7; 32]);
        let sealed = sealer.seal(Purpose::SignIn, b"payload");
        assert_eq!(sealer.open(Purpose::SignIn, &sealed).unwrap(), b"payload");
        assert!(sealer.open(Purpose::SignOut, &sealed).is_none());
        assert!(Sealer::new(&[8; 32]).open(Purpose::SignIn, &sealed).is_none());
        for position in 0..sealed.len() - 1 {
            let mut bytes = sealed.clone().into_bytes();
            bytes[position] ^= 1;
            let Ok(text) = String::from_utf8(bytes) else { continue };
            assert_ne!(sealer.open(Purpose::SignIn, &text).as_deref(), Some(&b"payload"[..]));
        }
        assert!(sealer.open(Purpose::SignIn, "").is_none());
        sealer.replace(Sealer::new(&[9; 32]));
        assert!(sealer.open(Purpose::SignIn, &sealed).is_none());
        let sealed = sealer.seal(Purpose::SignIn, b"payload");
        assert!(Sealer::new(&[9; 32]).open(Purpose::SignIn, &sealed).is_some());
        assert!(sealer.open(Purpose::SignIn, &"a.".repeat(SEAL_MAX)).is_none());
    }

    #[test]
    fn secrets_have_256_bits_and_do_not_show() {
        let (one, two) = (Secret::generate(), Secret::generate());
        assert_eq!(one.as_str().len(), 43);
        assert_ne!(one.as_str(), two.as_str());
        assert_eq!(format!("{one:?}"), "Secret");
        let key = |byte| hmac::Key::new(hmac::HMAC_SHA256, &[byte; 32]);
        let next = Secret::derived(&key(1), one.as_str());
        assert_eq!(next.as_str().len(), 43);
        assert_eq!(next.as_str(), Secret::derived(&key(1), one.as_str()).as_str());
        assert_ne!(next.as_str(), Secret::derived(&key(2), one.as_str()).as_str());
        assert_ne!(next.as_str(), Secret::derived(&key(1), two.as_str()).as_str());
    }
}
