//! The SSH gateway's own settings.

use std::{path::PathBuf, time::Duration};

use schemars::JsonSchema;
use serde::Deserialize;

#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The gateway's host key, an OpenSSH private key of type ed25519. Made at the first start and
    /// kept: clients remember it.
    pub host_key_file: PathBuf,
    /// A host key of type ECDSA, for clients that know no ed25519, as in FIPS mode. Made and kept in
    /// the same way. Without this setting it is `host_key_file` with `_ecdsa` appended, and is left
    /// out where it cannot be made.
    #[serde(default)]
    pub host_key_ecdsa_file: Option<PathBuf>,
    /// The same of type RSA, with `_rsa` appended.
    #[serde(default)]
    pub host_key_rsa_file: Option<PathBuf>,
    /// The key by which agents in the pods know the gateway. Made at the first start, and its public
    /// half is written beside it with `.pub` appended, unless the file is there: a Secret, mounted.
    pub client_key_file: PathBuf,
    /// Where the auth server lists the registered public keys, such as
    /// `http://127.0.0.1:8081/internal/ssh-keys`. Without it only tokens sign in.
    #[serde(default)]
    pub keys_url: Option<String>,
    /// The client name under which the gateway asks for that list.
    #[serde(default = "client_id")]
    pub client_id: String,
    /// A file with that client's secret.
    #[serde(default)]
    pub client_secret_file: Option<PathBuf>,
    /// How long a person waits for a sleeping workload before the gateway gives up.
    #[serde(default = "wake_timeout", with = "humantime_serde")]
    #[schemars(with = "String")]
    pub wake_timeout: Duration,
    /// How long open sessions may go on when the gateway is asked to stop.
    #[serde(default = "drain", with = "humantime_serde")]
    #[schemars(with = "String")]
    pub drain: Duration,
    #[serde(default)]
    pub limits: Limits,
}

/// Bounds that one client, or all together, cannot pass.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Most connections at a time.
    pub connections: usize,
    /// Most connections from one address at a time.
    pub connections_per_address: usize,
    /// Most channels of one connection at a time: shells, transfers and forwarded connections.
    pub channels: usize,
    /// Most bytes that wait in this process because somebody does not read them, half of it in each
    /// direction. Past it connections slow down, and nothing is dropped.
    pub unread_bytes: usize,
    /// The same for all connections of one person.
    pub unread_bytes_per_person: usize,
    /// The same for one connection.
    pub unread_bytes_per_connection: usize,
    /// Most failed attempts to sign in on one connection.
    pub attempts: usize,
    /// How long a connection may take to sign in.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub sign_in: Duration,
    /// How often a silent client is asked whether it is still there; after the tenth question
    /// without an answer its connection is closed.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub keepalive: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 4096,
            connections_per_address: 256,
            channels: 128,
            unread_bytes: 512 << 20,
            unread_bytes_per_person: 128 << 20,
            unread_bytes_per_connection: 64 << 20,
            attempts: 10,
            sign_in: Duration::from_secs(30),
            keepalive: Duration::from_secs(30),
        }
    }
}

fn client_id() -> String {
    "dormouse-gate".to_owned()
}

fn wake_timeout() -> Duration {
    Duration::from_secs(180)
}

fn drain() -> Duration {
    Duration::from_secs(2)
}
