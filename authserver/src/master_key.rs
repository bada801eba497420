//! The key that the database's secrets are sealed with, which is not in the database.

use std::{fmt, path::Path, sync::Arc};

use aws_lc_rs::aead::{AES_256_GCM, Aad, Nonce, RandomizedNonceKey};
use base64::{Engine, engine::general_purpose::STANDARD};
use runtime::secret::SecretError;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::secret::random;

/// What sealed bytes begin with. A key in DER begins with 0x30, and nothing else is this long.
const MAGIC: &[u8; 4] = b"DMK1";
const NONCE: usize = 12;
const TAG: usize = 16;

/// Seals with AES-256-GCM. Cheap to clone.
#[derive(Clone)]
pub struct MasterKey(Arc<RandomizedNonceKey>);

#[derive(Debug, thiserror::Error)]
pub enum MasterKeyError {
    #[error(transparent)]
    File(#[from] SecretError),
    #[error("the master key must be 32 bytes in base64; make one with: openssl rand -base64 32")]
    Form,
}

/// A master key as it is written in the environment. Not shown.
#[derive(Clone, Deserialize)]
#[serde(transparent)]
pub struct MasterKeyText(String);

impl fmt::Debug for MasterKeyText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MasterKeyText")
    }
}

impl MasterKeyText {
    pub fn parse(&self) -> Result<MasterKey, MasterKeyError> {
        MasterKey::from_text(&self.0)
    }
}

impl MasterKey {
    /// From 32 bytes in base64.
    pub fn from_text(text: &str) -> Result<Self, MasterKeyError> {
        let bytes = Zeroizing::new(STANDARD.decode(text.trim()).map_err(|_| MasterKeyError::Form)?);
        let key =
            RandomizedNonceKey::new(&AES_256_GCM, &bytes).map_err(|_| MasterKeyError::Form)?;
        Ok(Self(Arc::new(key)))
    }

    pub fn from_file(path: &Path) -> Result<Self, MasterKeyError> {
        Self::from_text(&Zeroizing::new(runtime::secret::read(path)?))
    }

    /// From the file, which is made when it is missing. Whoever loses it has to begin anew.
    pub fn from_file_or_new(path: &Path) -> Result<Self, MasterKeyError> {
        let text = runtime::secret::read_or_create(path, || STANDARD.encode(random()))?;
        Self::from_text(&Zeroizing::new(text))
    }

    /// The sealed form opens with the same name only.
    pub fn seal(&self, name: &str, plain: &[u8]) -> Option<Vec<u8>> {
        let mut text = plain.to_vec();
        let nonce = self.0.seal_in_place_append_tag(Aad::from(name.as_bytes()), &mut text).ok()?;
        Some([MAGIC.as_slice(), nonce.as_ref(), &text].concat())
    }

    pub fn open(&self, name: &str, sealed: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        let (nonce, text) = sealed.strip_prefix(MAGIC)?.split_at_checked(NONCE)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let mut text = Zeroizing::new(text.to_vec());
        let plain = self.0.open_in_place(nonce, Aad::from(name.as_bytes()), &mut text).ok()?.len();
        text.truncate(plain);
        Some(text)
    }
}

impl fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MasterKey")
    }
}

/// The key that seals what is written, and others that open what is there: while the key is changed
/// replicas have both.
#[derive(Debug, Clone, Default)]
pub struct MasterKeys {
    /// Without it what is written stays in the clear.
    pub current: Option<MasterKey>,
    /// Open, and seal nothing.
    pub others: Vec<MasterKey>,
}

impl From<Option<MasterKey>> for MasterKeys {
    fn from(current: Option<MasterKey>) -> Self {
        Self { current, others: Vec::new() }
    }
}

/// What something in the database is sealed under.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Under {
    Nothing,
    /// The key that seals.
    Current,
    /// One of those that open only.
    Other,
    /// A key that was not named.
    Unknown,
}

impl MasterKeys {
    pub fn is_empty(&self) -> bool {
        self.current.is_none() && self.others.is_empty()
    }

    /// In the clear without a current key.
    pub fn seal(&self, name: &str, plain: &[u8]) -> Option<Vec<u8>> {
        match &self.current {
            Some(key) => key.seal(name, plain),
            None => Some(plain.to_vec()),
        }
    }

    /// With whichever key opens it, and which that is. None for what is under [`Under::Unknown`].
    pub fn open(&self, name: &str, kept: &[u8]) -> Option<(Under, Zeroizing<Vec<u8>>)> {
        if !is_sealed(kept) {
            return Some((Under::Nothing, Zeroizing::new(kept.to_vec())));
        }
        let opened = |under, key: &MasterKey| Some((under, key.open(name, kept)?));
        let current = self.current.as_ref().and_then(|key| opened(Under::Current, key));
        current.or_else(|| self.others.iter().find_map(|key| opened(Under::Other, key)))
    }

    pub fn under(&self, name: &str, kept: &[u8]) -> Under {
        self.open(name, kept).map_or(Under::Unknown, |(under, _)| under)
    }
}

pub fn is_sealed(bytes: &[u8]) -> bool {
    bytes.starts_with(MAGIC) && bytes.len() > MAGIC.len() + NONCE + TAG
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seal_opens_with_its_key_and_name_alone() {
        let text = STANDARD.encode([7; 32]);
        let key = MasterKey::from_text(&format!("{text}\n")).unwrap();
        let sealed = key.seal("token key k1", b"private").unwrap();
        assert!(is_sealed(&sealed) && !is_sealed(b"private"));
        assert_ne!(sealed, key.seal("token key k1", b"private").unwrap());
        assert_eq!(&**key.open("token key k1", &sealed).unwrap(), b"private");
        assert!(key.open("token key k2", &sealed).is_none());
        let other = MasterKey::from_text(&STANDARD.encode([8; 32])).unwrap();
        assert!(other.open("token key k1", &sealed).is_none());
        for position in 0..sealed.len() {
            let mut bad = sealed.clone();
            bad[position] ^= 1;
            assert!(key.open("token key k1", &bad).is_none());
            assert!(key.open("token key k1", &sealed[..position]).is_none());
        }
    }

    #[test]
    fn several_keys_open_and_one_seals() {
        let key = |byte| MasterKey::from_text(&STANDARD.encode([byte; 32])).unwrap();
        let keys = |current: Option<u8>, others: &[u8]| MasterKeys {
            current: current.map(key),
            others: others.iter().copied().map(key).collect(),
        };
        let (old, new) = (keys(Some(1), &[2]), keys(Some(2), &[1]));
        let (by_old, by_new) = (old.seal("n", b"p").unwrap(), new.seal("n", b"p").unwrap());
        // Two replicas in the middle of a change read each other's.
        assert_eq!(
            (old.under("n", &by_old), old.under("n", &by_new)),
            (Under::Current, Under::Other)
        );
        assert_eq!(
            (new.under("n", &by_old), new.under("n", &by_new)),
            (Under::Other, Under::Current)
        );
        assert_eq!(&**new.open("n", &by_old).unwrap().1, b"p");
        let after = keys(Some(2), &[]);
        assert_eq!(
            (after.under("n", &by_old), after.under("n", &by_new)),
            (Under::Unknown, Under::Current)
        );
        // Before there is one that seals.
        let first = keys(None, &[1]);
        assert_eq!(first.seal("n", b"p").unwrap(), b"p");
        assert_eq!(
            (first.under("n", &by_old), first.under("n", b"p")),
            (Under::Other, Under::Nothing)
        );
        assert!(!first.is_empty() && keys(None, &[]).is_empty());
    }

    #[test]
    fn what_is_no_key_is_refused_and_none_is_shown() {
        for bad in ["", "x", &STANDARD.encode([7; 31]), &STANDARD.encode([7; 33])] {
            assert!(matches!(MasterKey::from_text(bad), Err(MasterKeyError::Form)), "{bad}");
        }
        let text: MasterKeyText = serde_json::from_str("\"hunter2\"").unwrap();
        assert_eq!(format!("{text:?}"), "MasterKeyText");
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("master-key");
        assert!(MasterKey::from_file(&path).is_err());
        let sealed = MasterKey::from_file_or_new(&path).unwrap().seal("n", b"p").unwrap();
        assert!(MasterKey::from_file(&path).unwrap().open("n", &sealed).is_some());
    }
}
