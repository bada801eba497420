//! The gateway's own keys: made once, kept private.

use std::path::Path;

use runtime::secret::{self, SecretError};
use russh::keys::{
    PrivateKey, PublicKey,
    ssh_key::{LineEnding, private::Ed25519Keypair},
};

#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error(transparent)]
    Secret(#[from] SecretError),
    #[error("{0} is not an OpenSSH private key without a passphrase; move it away for a new one")]
    Form(std::path::PathBuf),
    #[error(
        "there is no key at {path} and none can be made there: {error}; make one with `ssh-keygen -t \
         ed25519 -N '' -f FILE` and put it there, in a Secret for example"
    )]
    Make { path: std::path::PathBuf, error: SecretError },
}

/// The key in the file, which may be on a read-only mount; a new ed25519 key is put there when there
/// is none, with its public half beside it.
pub fn open(path: &Path) -> Result<PrivateKey, KeyError> {
    open_or_make(path, || Some(generate()))
}

/// The key in the file; what `make` makes is put there when there is none.
pub fn open_or_make(
    path: &Path,
    make: impl FnOnce() -> Option<PrivateKey>,
) -> Result<PrivateKey, KeyError> {
    if !path.exists() {
        let key = make().ok_or_else(|| KeyError::Form(path.to_owned()))?;
        let pem = key.to_openssh(LineEnding::LF).map_err(|_| KeyError::Form(path.to_owned()))?;
        secret::write(path, pem.as_bytes())
            .map_err(|error| KeyError::Make { path: path.to_owned(), error })?;
        publish(path, key.public_key());
    }
    // The format asks for the line end that `secret::read` takes away.
    let pem = format!("{}\n", secret::read(path)?);
    PrivateKey::from_openssh(pem).map_err(|_| KeyError::Form(path.to_owned()))
}

/// Writes the public half to `path` with `.pub` appended, for people: programs derive it.
fn publish(path: &Path, key: &PublicKey) {
    let mut name = path.as_os_str().to_owned();
    name.push(".pub");
    let written = key
        .to_openssh()
        .map_err(std::io::Error::other)
        .and_then(|line| std::fs::write(&name, format!("{line}\n")));
    if let Err(error) = written {
        tracing::warn!(%error, file = %name.display(), "the public key is not written beside its key");
    }
}

pub fn generate() -> PrivateKey {
    PrivateKey::from(Ed25519Keypair::from_seed(&rand::random()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn made_once_kept_private_and_published() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let first = open(&path).unwrap();
        assert_eq!(open(&path).unwrap().public_key(), first.public_key());
        assert_ne!(generate().public_key(), first.public_key());
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let line = std::fs::read_to_string(dir.path().join("key.pub")).unwrap();
        assert!(line.starts_with("ssh-ed25519 AAAA"), "{line}");
        std::fs::write(&path, "nonsense").unwrap();
        assert!(open(&path).unwrap_err().to_string().contains("OpenSSH"));
    }

    #[test]
    fn a_key_on_a_read_only_mount_is_used_and_a_missing_one_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let pem = generate().to_openssh(LineEnding::LF).unwrap();
        std::fs::write(&path, pem.as_bytes()).unwrap();
        open(&path).unwrap();
        assert!(
            !dir.path().join("key.pub").exists(),
            "nothing is written beside a key that is given"
        );
        // No file can be made below a file, not even by root.
        let error = open(&path.join("absent")).unwrap_err().to_string();
        assert!(error.contains("there is no key at") && error.contains("ssh-keygen"), "{error}");
    }
}
