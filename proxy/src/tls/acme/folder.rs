//! What is kept: the account, the certificates, what was tried, and who orders.
//!
//! ```text
//! account-<hash of the directory's URL>.json   the account and its key
//! certificates/<host>.pem                      key and chain in one file, so that they belong together
//! challenges/<token>                           answers, while an authority validates
//! challenges/<host>.tls-alpn-01                 the same, over TLS
//! attempts.json                                failures and what was ordered
//! lock                                         held by the replica that orders
//! ```

use std::{
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use instant_acme::AccountCredentials;
use nix::fcntl::{Flock, FlockArg};
use runtime::secret::{self, SecretError};
use sha2::{Digest, Sha256};

use super::plan::Attempts;

#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    #[error("the ACME store {path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Secret(#[from] SecretError),
    #[error("{path} is damaged: {source}; restore it from a backup, or move it away to begin anew")]
    Damaged { path: PathBuf, source: serde_json::Error },
}

#[derive(Debug, Clone)]
pub struct Folder {
    root: PathBuf,
}

/// Held by the one replica that orders.
pub struct Lead(#[expect(dead_code, reason = "the lock is what matters")] Flock<File>);

impl Folder {
    /// Made when it is not there, for its owner alone.
    pub fn open(root: &Path) -> Result<Self, FolderError> {
        let folder = Self { root: root.to_owned() };
        for path in [root.to_owned(), folder.certificates(), folder.challenges()] {
            let made = DirBuilder::new().recursive(true).mode(0o700).create(&path);
            made.map_err(|source| FolderError::Io { path, source })?;
        }
        Ok(folder)
    }

    pub fn certificates(&self) -> PathBuf {
        self.root.join("certificates")
    }

    pub fn challenges(&self) -> PathBuf {
        self.root.join("challenges")
    }

    /// Becomes the one that orders, unless another one is. A process that dies gives it back.
    pub fn try_lead(&self) -> Result<Option<Lead>, FolderError> {
        let path = self.root.join("lock");
        let failed = |source| FolderError::Io { path: path.clone(), source };
        let file = File::options().create(true).truncate(false).write(true).open(&path);
        match Flock::lock(file.map_err(failed)?, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Some(Lead(lock))),
            Err((_, nix::Error::EWOULDBLOCK)) => Ok(None),
            Err((_, error)) => Err(failed(error.into())),
        }
    }

    /// Accounts with several authorities may be kept side by side.
    fn account_file(&self, directory_url: &str) -> PathBuf {
        let hash = Sha256::digest(directory_url.as_bytes());
        let hash: String = hash.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        self.root.join(format!("account-{hash}.json"))
    }

    pub fn account(&self, url: &str) -> Result<Option<AccountCredentials>, FolderError> {
        read_json(&self.account_file(url))
    }

    pub fn write_account(
        &self,
        url: &str,
        account: &AccountCredentials,
    ) -> Result<(), FolderError> {
        write_json(&self.account_file(url), account)
    }

    /// The authority does not know it any more. The key is kept, under another name.
    pub fn forget_account(&self, url: &str) -> Result<(), FolderError> {
        let path = self.account_file(url);
        let old = path.with_extension("json.old");
        fs::rename(&path, old).map_err(|source| FolderError::Io { path, source })
    }

    pub fn attempts(&self) -> Result<Attempts, FolderError> {
        Ok(read_json(&self.root.join("attempts.json"))?.unwrap_or_default())
    }

    pub fn write_attempts(&self, attempts: &Attempts) -> Result<(), FolderError> {
        write_json(&self.root.join("attempts.json"), attempts)
    }

    /// `name` is a host name.
    pub fn write_certificate(&self, name: &str, pem: &str) -> Result<(), FolderError> {
        Ok(secret::write(&self.certificates().join(format!("{name}.pem")), pem.as_bytes())?)
    }

    pub fn remove_certificate(&self, name: &str) -> Result<(), FolderError> {
        let path = self.certificates().join(format!("{name}.pem"));
        fs::remove_file(&path).map_err(|source| FolderError::Io { path, source })
    }
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Option<T>, FolderError> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(FolderError::Io { path: path.to_owned(), source }),
    };
    let damaged = |source| FolderError::Damaged { path: path.to_owned(), source };
    serde_json::from_slice(&text).map(Some).map_err(damaged)
}

fn write_json<T: serde::Serialize>(path: &Path, value: &T) -> Result<(), FolderError> {
    let damaged = |source| FolderError::Damaged { path: path.to_owned(), source };
    let text = serde_json::to_vec_pretty(value).map_err(damaged)?;
    Ok(secret::write(path, &text)?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn one_replica_orders_and_another_follows_when_it_is_gone() {
        let root = tempfile::tempdir().unwrap();
        let (one, other) = (Folder::open(root.path()).unwrap(), Folder::open(root.path()).unwrap());
        let lead = one.try_lead().unwrap().unwrap();
        assert!(other.try_lead().unwrap().is_none());
        drop(lead);
        assert!(other.try_lead().unwrap().is_some());
    }

    #[test]
    fn what_is_kept_is_for_the_owner_alone() {
        let root = tempfile::tempdir().unwrap();
        let folder = Folder::open(&root.path().join("acme")).unwrap();
        folder.write_attempts(&Attempts::default()).unwrap();
        folder.write_certificate("a.example.org", "pem").unwrap();
        assert_eq!(folder.attempts().unwrap(), Attempts::default());
        let mode = |path: &str| {
            fs::metadata(root.path().join("acme").join(path)).unwrap().permissions().mode() & 0o777
        };
        assert_eq!(mode(""), 0o700);
        assert_eq!(mode("attempts.json"), 0o600);
        assert_eq!(mode("certificates/a.example.org.pem"), 0o600);
        fs::write(root.path().join("acme/attempts.json"), "{").unwrap();
        assert!(folder.attempts().unwrap_err().to_string().contains("is damaged"));
        assert!(folder.account("https://acme.test/directory").unwrap().is_none());
    }
}
