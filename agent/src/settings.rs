//! What the agent is told through its environment.

use std::{
    ffi::OsString,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};

use russh::keys::{PrivateKey, PublicKey};

/// Where to listen: the pod's own address and the agent's port.
pub const LISTEN: &str = "DORMOUSE_AGENT_LISTEN";
/// A folder with `host_key` (OpenSSH private key) and `authorized_key` (the gateway's public key).
pub const KEYS: &str = "DORMOUSE_AGENT_KEYS";
/// Optional: the address that stands for the pod's loopback.
pub const LOOPBACK: &str = "DORMOUSE_POD_LOOPBACK";

#[derive(Debug, Clone)]
pub struct Settings {
    pub listen: SocketAddr,
    pub host_key: PrivateKey,
    /// The one key that may sign in.
    pub authorized_key: PublicKey,
    /// Where that key is kept: the gateway may be given another one while the agent runs.
    pub authorized_file: PathBuf,
    /// Stands for the pod's loopback: forwarding reaches it and nothing else.
    pub loopback: Option<IpAddr>,
    /// Where shells and file transfers start.
    pub home: PathBuf,
}

#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    #[error("{0} is not set; the pod's manifest must set it")]
    Missing(&'static str),
    #[error("{name} is {value:?}; it must be {expected}")]
    Form { name: &'static str, value: String, expected: &'static str },
    #[error("cannot read {path}: {error}; is the agent's secret mounted there?")]
    Read { path: PathBuf, error: std::io::Error },
    #[error("{path} is not {expected}")]
    Key { path: PathBuf, expected: &'static str },
}

impl Settings {
    /// `variable` reads one variable of the environment.
    pub fn load(variable: impl Fn(&str) -> Option<OsString>) -> Result<Self, SettingsError> {
        let keys = variable(KEYS).ok_or(SettingsError::Missing(KEYS))?;
        let keys = Path::new(&keys);
        let authorized_file = keys.join("authorized_key");
        let listen = variable(LISTEN).ok_or(SettingsError::Missing(LISTEN))?;
        let home = variable("HOME").map(PathBuf::from).filter(|home| home.is_dir());
        let here = || std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/"));
        Ok(Self {
            listen: parse(LISTEN, listen, "an address and port such as 10.0.0.7:2022")?,
            loopback: variable(LOOPBACK)
                .filter(|value| !value.is_empty())
                .map(|value| parse(LOOPBACK, value, "an IP address"))
                .transpose()?,
            host_key: host_key(&keys.join("host_key"))?,
            authorized_key: authorized_key(&authorized_file)?,
            authorized_file,
            home: home.unwrap_or_else(here),
        })
    }
}

fn parse<T: std::str::FromStr>(
    name: &'static str,
    value: OsString,
    expected: &'static str,
) -> Result<T, SettingsError> {
    let value = value.to_string_lossy().into_owned();
    value.parse().map_err(|_| SettingsError::Form { name, value, expected })
}

fn read(path: &Path) -> Result<String, SettingsError> {
    std::fs::read_to_string(path)
        .map_err(|error| SettingsError::Read { path: path.to_owned(), error })
}

fn host_key(path: &Path) -> Result<PrivateKey, SettingsError> {
    PrivateKey::from_openssh(read(path)?).map_err(|_| SettingsError::Key {
        path: path.to_owned(),
        expected: "a private key in OpenSSH's format without a passphrase",
    })
}

/// The key that may sign in now; `at_start` while there is none that can be read.
pub(crate) fn authorized_now(path: &Path, at_start: &PublicKey) -> PublicKey {
    authorized_key(path).unwrap_or_else(|_| at_start.clone())
}

fn authorized_key(path: &Path) -> Result<PublicKey, SettingsError> {
    PublicKey::from_openssh(read(path)?.trim()).map_err(|_| SettingsError::Key {
        path: path.to_owned(),
        expected: "one public key in OpenSSH's format (ssh-ed25519 AAAA...)",
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use russh::keys::ssh_key::{LineEnding, private::Ed25519Keypair};

    use super::*;

    fn load(variables: &[(&str, &str)]) -> Result<Settings, String> {
        let variables: HashMap<_, _> = variables.iter().copied().collect();
        Settings::load(|name| variables.get(name).map(Into::into)).map_err(|e| e.to_string())
    }

    #[test]
    fn the_authorized_key_may_change_while_the_agent_runs() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("authorized_key");
        let public =
            |seed| PrivateKey::from(Ed25519Keypair::from_seed(&[seed; 32])).public_key().clone();
        let (old, new) = (public(1), public(2));
        assert_eq!(authorized_now(&file, &old), old);
        std::fs::write(&file, new.to_openssh().unwrap()).unwrap();
        assert_eq!(authorized_now(&file, &old), new);
    }

    #[test]
    fn each_mistake_is_named_with_its_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let keys = dir.path().to_str().unwrap();
        assert!(load(&[]).unwrap_err().contains(KEYS));
        assert!(load(&[(KEYS, keys)]).unwrap_err().contains(LISTEN));
        let wrong = load(&[(KEYS, keys), (LISTEN, "here")]).unwrap_err();
        assert!(wrong.contains("10.0.0.7:2022"), "{wrong}");
        let good = [(KEYS, keys), (LISTEN, "127.0.0.1:0"), (LOOPBACK, "127.1.2.3")];
        assert!(load(&good).unwrap_err().contains("mounted"));
        let key = PrivateKey::from(Ed25519Keypair::from_seed(&[7; 32]));
        let pem = key.to_openssh(LineEnding::LF).unwrap();
        std::fs::write(dir.path().join("host_key"), pem.as_bytes()).unwrap();
        std::fs::write(dir.path().join("authorized_key"), "nonsense").unwrap();
        assert!(load(&good).unwrap_err().contains("ssh-ed25519"));
        let public = key.public_key().to_openssh().unwrap();
        std::fs::write(dir.path().join("authorized_key"), format!("{public}\n")).unwrap();
        let settings = load(&good).unwrap();
        assert_eq!(settings.loopback, Some("127.1.2.3".parse().unwrap()));
        assert_eq!(settings.authorized_key, *key.public_key());
    }
}
