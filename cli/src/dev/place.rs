//! The data directory: one process at a time, readable by its owner alone.

use std::{
    fs::{self, File, OpenOptions, Permissions, TryLockError},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use runtime::secret;

pub struct Place {
    root: PathBuf,
    /// Held as long as this process lives, and released by the kernel however it ends.
    _lock: File,
}

/// The authserver's database.
pub fn database(data_dir: &Path) -> PathBuf {
    data_dir.join("authserver.db")
}

/// The key that the secrets in the authserver's database are sealed with.
pub fn master_key(data_dir: &Path) -> PathBuf {
    data_dir.join("master-key")
}

/// Where all services write their audit events.
pub fn audit_log(data_dir: &Path) -> PathBuf {
    data_dir.join("audit.jsonl")
}

/// The issuer of the last run, for operators' commands.
pub fn issuer_of(data_dir: &Path) -> anyhow::Result<String> {
    Ok(secret::read(&data_dir.join("issuer"))?)
}

impl Place {
    pub fn open(data_dir: &Path) -> anyhow::Result<Self> {
        let shown = data_dir.display();
        let advice = "choose a folder that you may write to with --data-dir";
        fs::create_dir_all(data_dir)
            .with_context(|| format!("cannot make the data directory {shown}; {advice}"))?;
        let root = fs::canonicalize(data_dir)
            .with_context(|| format!("cannot use the data directory {shown}; {advice}"))?;
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(root.join("lock"))
            .with_context(|| format!("cannot write to the data directory {shown}; {advice}"))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => bail!(
                "another `dormouse dev` uses the data directory {shown}; stop it, or choose another with --data-dir"
            ),
            Err(TryLockError::Error(error)) => {
                return Err(error)
                    .with_context(|| format!("cannot lock the data directory {shown}"));
            }
        }
        fs::set_permissions(&root, Permissions::from_mode(0o700))
            .with_context(|| format!("cannot protect the data directory {shown}; {advice}"))?;
        Ok(Self { root, _lock: lock })
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// A folder of its own for one part.
    pub fn folder(&self, name: &str) -> anyhow::Result<PathBuf> {
        let path = self.root.join(name);
        fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(path)
    }

    pub fn database(&self) -> PathBuf {
        database(&self.root)
    }

    pub fn audit_log(&self) -> PathBuf {
        audit_log(&self.root)
    }

    pub fn master_key(&self) -> PathBuf {
        master_key(&self.root)
    }

    /// The secret that the gateways and the authserver share.
    pub fn client_secret_file(&self) -> anyhow::Result<PathBuf> {
        let path = self.path("gate-secret");
        secret::read_or_create(&path, || random_text(32))?;
        Ok(path)
    }

    /// Who this system is among the controllers of a cluster: the same in each of its lives, since no two
    /// processes use the directory at a time.
    pub fn holder(&self) -> anyhow::Result<String> {
        let path = self.path("controller-id");
        let id = secret::read_or_create(&path, || random_text(4))?;
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        Ok(format!("{} dormouse dev {} {id}", host.trim(), self.root.display()))
    }

    pub fn keep_issuer(&self, issuer: &str) -> anyhow::Result<()> {
        Ok(secret::write(&self.path("issuer"), issuer.as_bytes())?)
    }
}

/// `bytes` of randomness, as hexadecimal digits.
pub fn random_text(bytes: usize) -> String {
    (0..bytes).map(|_| format!("{:02x}", rand::random::<u8>())).collect()
}
