//! The gateway's own keys: made once, kept private.

use std::{io, path::Path};

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
    #[error("cannot write {path}: {error}")]
    Public { path: std::path::PathBuf, error: io::Error },
}

/// The key in the file; a new ed25519 key is put there when there is none.
pub fn open(path: &Path) -> Result<PrivateKey, KeyError> {
    open_or_make(path, || Some(generate()))
}

/// The key in the file; what `make` makes is put there when there is none.
pub fn open_or_make(
    path: &Path,
    make: impl FnOnce() -> Option<PrivateKey>,
) -> Result<PrivateKey, KeyError> {
    if !path.exists() {
        let pem = make().and_then(|key| key.to_openssh(LineEnding::LF).ok());
        let pem = pem.ok_or_else(|| KeyError::Form(path.to_owned()))?;
        secret::write(path, pem.as_bytes())?;
    }
    // The format asks for the line end that `secret::read` takes away.
    let pem = format!("{}\n", secret::read(path)?);
    PrivateKey::from_openssh(pem).map_err(|_| KeyError::Form(path.to_owned()))
}

/// Writes the public half to `path` with `.pub` appended, for those who must trust it.
pub fn publish(path: &Path, key: &PublicKey) -> Result<(), KeyError> {
    let mut name = path.as_os_str().to_owned();
    name.push(".pub");
    let path = Path::new(&name);
    let line = key.to_openssh().map_err(|_| KeyError::Form(path.to_owned()))?;
    std::fs::write(path, format!("{line}\n"))
        .map_err(|error| KeyError::Public { path: path.to_owned(), error })
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
        publish(&path, first.public_key()).unwrap();
        let line = std::fs::read_to_string(dir.path().join("key.pub")).unwrap();
        assert!(line.starts_with("ssh-ed25519 AAAA"), "{line}");
        std::fs::write(&path, "nonsense").unwrap();
        assert!(open(&path).unwrap_err().to_string().contains("OpenSSH"));
    }
}
