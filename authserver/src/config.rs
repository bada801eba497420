//! What an operator sets.

use std::{path::PathBuf, time::Duration};

use anyhow::bail;
use domain::name::UserName;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::{
    address::Cidr,
    client::GrantType,
    database::Database,
    federation::ProviderConfig,
    issuer::Issuer,
    master_key::{MasterKey, MasterKeyText, MasterKeys},
};

/// Settings of `dormouse authserver`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The issuer: `https://`, a host, a port if it is not 443, and nothing after it. It is `iss`
    /// in every token, so changing it ends them all.
    #[schemars(with = "String")]
    pub issuer: Issuer,
    /// Workloads live one label below this domain; only their hosts may receive the gate's codes.
    pub base_domain: String,
    /// Where everything is kept: an SQLite file, which is made when it is missing, or for several
    /// replicas `postgres://user@host/name` (`?sslmode=verify-full` where the network is not
    /// trusted).
    #[schemars(with = "String")]
    pub database: Database,
    /// A file with the password of the PostgreSQL user. Else the password in `database`, else the
    /// variable `PGPASSWORD`.
    #[serde(default)]
    pub database_password_file: Option<PathBuf>,
    /// A file with the master key: 32 bytes in base64 (`openssl rand -base64 32`), the same for all
    /// replicas. The keys in the database are sealed with it; without one they are kept in the
    /// clear. Keep a copy of it apart from the database's backups.
    #[serde(default)]
    pub master_key_file: Option<PathBuf>,
    /// The master key itself, meant for the environment: `DORMOUSE_AUTHSERVER__MASTER_KEY`.
    #[serde(default)]
    #[schemars(with = "Option<String>")]
    pub master_key: Option<MasterKeyText>,
    /// Files with master keys that open what is in the database and seal nothing: the next one, before
    /// the master key is changed, and the one of before, until everything is sealed anew
    /// (`dormouse auth key reseal`).
    #[serde(default)]
    pub other_master_key_files: Vec<PathBuf>,
    /// Make the master key's file when it is missing.
    #[serde(default)]
    pub create_master_key: bool,
    /// How long one key signs before the next one does.
    #[serde(default = "default_signing_key_lifetime", with = "humantime_serde")]
    #[schemars(with = "String")]
    pub signing_key_lifetime: Duration,
    /// How long a key is published before it signs: longer than anybody keeps the key set.
    #[serde(default = "default_signing_key_notice", with = "humantime_serde")]
    #[schemars(with = "String")]
    pub signing_key_notice: Duration,
    /// `aud` of access tokens: what the gateways expect.
    #[serde(default = "default_audience")]
    pub audience: String,
    /// The client that the gateways are.
    #[serde(default = "default_gate")]
    pub gate_client_id: String,
    /// A file with the gateways' client secret, 32 characters or more.
    pub client_secret_file: PathBuf,
    /// How long an access token is valid.
    #[serde(default = "default_access_token_lifetime", with = "humantime_serde")]
    #[schemars(with = "String")]
    pub access_token_lifetime: Duration,
    /// A session that nobody used for this long is over.
    #[serde(default = "default_session_idle", with = "humantime_serde")]
    #[schemars(with = "String")]
    pub session_idle: Duration,
    /// A session is over after this long in any case.
    #[serde(default = "default_session_max", with = "humantime_serde")]
    #[schemars(with = "String")]
    pub session_max: Duration,
    /// The longest life of a personal access token that people make themselves.
    #[serde(default = "default_personal_token_max", with = "humantime_serde")]
    #[schemars(with = "String")]
    pub personal_token_max: Duration,
    /// How long an SSH certificate is valid, at most 16 hours.
    #[serde(default = "default_ssh_certificate_lifetime", with = "humantime_serde")]
    #[schemars(with = "String")]
    pub ssh_certificate_lifetime: Duration,
    /// How long a registered SSH key signs in before it has to be registered again: a day to ten years.
    #[serde(default = "default_ssh_key_lifetime", with = "humantime_serde")]
    #[schemars(with = "String")]
    pub ssh_key_lifetime: Duration,
    /// Networks whose `X-Forwarded-For` is believed, in CIDR notation.
    #[serde(default = "loopback")]
    #[schemars(with = "Vec<String>")]
    pub trusted_proxies: Vec<Cidr>,
    /// Other applications that sign people in here.
    #[serde(default)]
    pub clients: Vec<ClientConfig>,
    /// Hosts of private networks may be named in `jwks_uri`, and are reached through a proxy if the
    /// environment names one.
    #[serde(default)]
    pub private_key_sets: bool,
    /// Other providers that people sign in with, in the order in which they are shown.
    #[serde(default)]
    pub providers: Vec<ProviderConfig>,
    /// People with a password here may sign in with it. With this off and one provider, nobody is
    /// asked how to sign in.
    #[serde(default = "yes")]
    pub local_sign_in: bool,
}

impl Config {
    /// The database, with its password, and the master keys: both as the server uses them. Makes
    /// nothing.
    pub fn storage(&self) -> anyhow::Result<(Database, MasterKeys)> {
        let database = match &self.database_password_file {
            Some(file) => self.database.clone().with_password(&runtime::secret::read(file)?),
            None => self.database.clone(),
        };
        let current = match (&self.master_key_file, &self.master_key) {
            (Some(_), Some(_)) => bail!("set master_key_file or master_key, not both"),
            (Some(file), None) => Some(MasterKey::from_file(file)?),
            (None, Some(text)) => Some(text.parse()?),
            (None, None) => None,
        };
        let others = self.other_master_key_files.iter().map(|file| MasterKey::from_file(file));
        Ok((database, MasterKeys { current, others: others.collect::<Result<_, _>>()? }))
    }
}

/// An application that signs people in through Dormouse.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ClientConfig {
    /// `client_id`.
    pub id: String,
    /// Runs where no secret can be kept: in a browser, on a person's own machine.
    #[serde(default)]
    pub public: bool,
    /// A file with the client's secret, 32 characters or more. Needed unless `public`,
    /// `jwks_file` or `jwks_uri`.
    #[serde(default)]
    pub secret_file: Option<PathBuf>,
    /// A file with the client's public keys as a JSON Web Key Set: it authenticates by
    /// `private_key_jwt` instead of a secret.
    #[serde(default)]
    pub jwks_file: Option<PathBuf>,
    /// Where the client publishes its key set instead, by https. It is asked for when it is needed,
    /// and kept for ten minutes.
    #[serde(default)]
    pub jwks_uri: Option<String>,
    /// What people see on pages instead of the id.
    #[serde(default)]
    pub name: Option<String>,
    /// Where codes may be sent; compared character by character.
    #[serde(default)]
    pub redirect_uris: Vec<String>,
    /// How it may come by tokens.
    #[serde(default = "default_grant_types")]
    pub grant_types: Vec<GrantType>,
    /// Audiences other than the usual one that it may ask for, as absolute URIs.
    #[serde(default)]
    pub resources: Vec<String>,
    /// Somebody else's: people are asked before it gets anything.
    #[serde(default)]
    pub third_party: bool,
    /// Only accepts authorization requests that the client pushed itself.
    #[serde(default)]
    pub pushed_requests_only: bool,
    /// Where the client wants to be told that a session is over.
    #[serde(default)]
    pub back_channel_logout_uri: Option<String>,
    /// Where a browser may be sent after signing out; compared character by character.
    #[serde(default)]
    pub post_logout_redirect_uris: Vec<String>,
    /// What it may ask for. `account` lets it manage the person's own tokens and keys.
    #[serde(default = "default_scopes")]
    pub scopes: Vec<String>,
}

impl ClientConfig {
    /// With what everything else is when it is left out.
    #[must_use]
    pub fn named(id: String) -> Self {
        Self {
            id,
            public: false,
            secret_file: None,
            jwks_file: None,
            jwks_uri: None,
            name: None,
            redirect_uris: Vec::new(),
            grant_types: default_grant_types(),
            resources: Vec::new(),
            third_party: false,
            pushed_requests_only: false,
            back_channel_logout_uri: None,
            post_logout_redirect_uris: Vec::new(),
            scopes: default_scopes(),
        }
    }
}

/// A person as an operator writes them down.
#[derive(Debug, Clone)]
pub struct NewPerson {
    pub name: UserName,
    pub email: Option<String>,
    pub groups: Vec<String>,
}

fn default_signing_key_lifetime() -> Duration {
    Duration::from_secs(30 * 24 * 3600)
}

fn default_signing_key_notice() -> Duration {
    Duration::from_secs(3600)
}

fn default_audience() -> String {
    "dormouse".to_owned()
}

fn default_gate() -> String {
    "dormouse-gate".to_owned()
}

fn default_access_token_lifetime() -> Duration {
    Duration::from_secs(10 * 60)
}

fn default_session_idle() -> Duration {
    Duration::from_secs(12 * 3600)
}

fn default_ssh_key_lifetime() -> Duration {
    Duration::from_secs(365 * 24 * 3600)
}

fn default_session_max() -> Duration {
    Duration::from_secs(7 * 24 * 3600)
}

fn default_personal_token_max() -> Duration {
    Duration::from_secs(366 * 24 * 3600)
}

fn default_ssh_certificate_lifetime() -> Duration {
    Duration::from_secs(8 * 3600)
}

fn default_grant_types() -> Vec<GrantType> {
    vec![GrantType::AuthorizationCode, GrantType::RefreshToken]
}

fn default_scopes() -> Vec<String> {
    ["openid", "profile", "email", "groups"].map(str::to_owned).to_vec()
}

fn yes() -> bool {
    true
}

fn loopback() -> Vec<Cidr> {
    Cidr::loopback()
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn load(text: &str) -> Result<Config, String> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        runtime::settings::load(Some(file.path())).map_err(|error| error.to_string())
    }

    const LEAST: &str = r#"
issuer = "https://auth.example.com"
base_domain = "example.com"
database = "auth.db"
client_secret_file = "gate-secret"
"#;

    #[test]
    fn the_least_is_enough() {
        let config = load(LEAST).unwrap();
        assert_eq!(config.audience, "dormouse");
        assert_eq!(config.access_token_lifetime, Duration::from_secs(600));
        assert_eq!(config.trusted_proxies, Cidr::loopback());
        assert!(config.clients.is_empty());
    }

    #[test]
    fn all_that_can_be_set() {
        let more = r#"
access_token_lifetime = "5m"
session_idle = "1h 30m"
trusted_proxies = ["10.0.0.0/8"]
[[clients]]
id = "grafana"
secret_file = "grafana-secret"
redirect_uris = ["https://grafana.example.com/login/generic_oauth"]
"#;
        let config = load(&format!("{LEAST}{more}")).unwrap();
        assert_eq!(config.session_idle, Duration::from_secs(5400));
        assert_eq!(config.clients[0].scopes, ["openid", "profile", "email", "groups"]);
    }

    #[test]
    fn mistakes_are_named() {
        let says = |line: &str| load(&format!("{LEAST}{line}")).unwrap_err();
        assert!(says("sesion_idle = \"1h\"").contains("did you mean `session_idle`"));
        assert!(says("trusted_proxies = [\"10\"]").contains("is not a network"));
        assert!(says("[[clients]]\nid = \"x\"\nredirects = []").contains("redirects"));
        let issuer = load(&LEAST.replace("https://auth", "http://auth")).unwrap_err();
        assert!(issuer.contains("the issuer must look like"), "{issuer}");
    }
}
