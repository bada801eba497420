//! The host key of a workspace's agent: made once, kept in the workspace's Secret.

use k8s_openapi::api::core::v1::Secret;
use russh::keys::{
    PrivateKey,
    ssh_key::{LineEnding, private::Ed25519Keypair},
};

/// File names in the Secret, which the agent reads.
pub const HOST_KEY: &str = "host_key";
pub const AUTHORIZED_KEY: &str = "authorized_key";

const SUFFIX: &str = "-agent";

pub fn secret_name(workspace: &str) -> String {
    format!("{workspace}{SUFFIX}")
}

/// Whether a workspace may keep its keys in a Secret of that name.
pub fn is_secret_name(name: &str) -> bool {
    name.ends_with(SUFFIX)
}

#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("an SSH host key cannot be made or read: {0}")]
    Key(#[from] russh::keys::ssh_key::Error),
}

/// Both halves, in OpenSSH's forms.
#[derive(Clone)]
pub struct AgentKey {
    pub private: String,
    pub public: String,
}

/// The key that the Secret keeps, or a new one to be kept.
pub fn kept_or_new(secret: Option<&Secret>) -> Result<AgentKey, KeyError> {
    let kept = secret.and_then(|secret| secret.data.as_ref()?.get(HOST_KEY));
    let key = match kept.and_then(|bytes| PrivateKey::from_openssh(&bytes.0).ok()) {
        Some(key) => key,
        // A key that cannot be read is of no use to anybody: replaced.
        None => PrivateKey::from(Ed25519Keypair::from_seed(&rand::random())),
    };
    Ok(AgentKey {
        private: key.to_openssh(LineEnding::LF)?.to_string(),
        public: key.public_key().to_openssh()?,
    })
}
