//! The host keys by which clients know the gateway: Ed25519, and ECDSA and RSA for clients that do
//! not speak it, as in FIPS mode.

use std::{
    io,
    path::{Path, PathBuf},
};

use aws_lc_rs::{
    encoding::AsDer,
    rsa::{KeyPair, KeySize},
};
use runtime::secret::SecretError;
use russh::keys::{Algorithm, EcdsaCurve, PrivateKey, key::safe_rng, pkcs8::decode_pkcs8};

use crate::{
    config::Config,
    keys::{self, KeyError},
};

/// Makes a key of one kind; `None` if the libraries cannot.
type Make = fn() -> Option<PrivateKey>;

/// The first is the one that has always been there. One of the others is left out where it does not
/// exist and cannot be made, as beside a key from a Secret, unless a setting names it.
pub fn open(config: &Config) -> Result<Vec<PrivateKey>, KeyError> {
    let mut found = vec![keys::open(&config.host_key_file)?];
    let others: [(_, _, Make); 2] =
        [(&config.host_key_ecdsa_file, "_ecdsa", ecdsa), (&config.host_key_rsa_file, "_rsa", rsa)];
    for (named, suffix, make) in others {
        let path = named.clone().unwrap_or_else(|| beside(&config.host_key_file, suffix));
        match keys::open_or_make(&path, make) {
            Ok(key) if found.iter().any(|other| other.algorithm() == key.algorithm()) => {
                tracing::warn!(path = %path.display(), "a second host key of its kind is left out");
            }
            Ok(key) => found.push(key),
            Err(error) if named.is_none() && is_read_only(&error) => {
                tracing::warn!(
                    %error,
                    "there is no host key of this kind; clients that know no other cannot connect"
                );
            }
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn is_read_only(error: &KeyError) -> bool {
    use io::ErrorKind::{PermissionDenied, ReadOnlyFilesystem};
    matches!(error, KeyError::Make { error: SecretError::Write { source, .. }, .. }
        if matches!(source.kind(), PermissionDenied | ReadOnlyFilesystem))
}

fn ecdsa() -> Option<PrivateKey> {
    PrivateKey::random(&mut safe_rng(), Algorithm::Ecdsa { curve: EcdsaCurve::NistP256 }).ok()
}

/// Of 3072 bits, as `ssh-keygen` makes them; takes some 100 ms of CPU.
fn rsa() -> Option<PrivateKey> {
    let pair = KeyPair::generate(KeySize::Rsa3072).ok()?;
    decode_pkcs8(pair.as_der().ok()?.as_ref(), None).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn config(dir: &Path) -> Config {
        let text = json!({"host_key_file": dir.join("key"), "client_key_file": dir.join("client")});
        serde_json::from_value(text).unwrap()
    }

    fn kinds(keys: &[PrivateKey]) -> Vec<String> {
        keys.iter().map(|key| key.algorithm().to_string()).collect()
    }

    #[test]
    fn three_kinds_are_made_once_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path());
        let first = open(&config).unwrap();
        assert_eq!(kinds(&first), ["ssh-ed25519", "ecdsa-sha2-nistp256", "ssh-rsa"]);
        let again = open(&config).unwrap();
        let public = |keys: &[PrivateKey]| -> Vec<_> {
            keys.iter().map(|key| key.public_key().clone()).collect()
        };
        assert_eq!(public(&again), public(&first));
    }

    #[test]
    fn the_kind_is_the_files_and_one_of_each_is_enough() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = config(dir.path());
        open(&config).unwrap();
        config.host_key_file = dir.path().join("key_rsa");
        config.host_key_ecdsa_file = Some(dir.path().join("key_ecdsa"));
        config.host_key_rsa_file = Some(dir.path().join("key_rsa"));
        assert_eq!(kinds(&open(&config).unwrap()), ["ssh-rsa", "ecdsa-sha2-nistp256"]);
    }

    #[test]
    fn a_key_that_a_setting_names_must_be_there() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = config(dir.path());
        config.host_key_rsa_file = Some(dir.path().join("absent/key"));
        assert!(open(&config).unwrap_err().to_string().contains("absent"));
        let read_only = |kind: io::ErrorKind| {
            let path = dir.path().to_owned();
            let error = SecretError::Write { path: path.clone(), source: kind.into() };
            is_read_only(&KeyError::Make { path, error })
        };
        assert!(read_only(io::ErrorKind::ReadOnlyFilesystem));
        assert!(!read_only(io::ErrorKind::StorageFull));
    }
}
