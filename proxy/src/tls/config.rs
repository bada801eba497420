//! Settings of certificates, of the protocol, and of the certificate authority that is asked by ACME.

use std::{path::PathBuf, time::Duration};

use schemars::JsonSchema;
use serde::Deserialize;

/// Where certificates come from, and how TLS is spoken.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TlsConfig {
    /// PEM: the certificate, then those between it and the authority. It is also the one for
    /// clients that name no host or an unknown one.
    pub certificate_file: Option<PathBuf>,
    /// PEM: the key of `certificate_file`.
    pub key_file: Option<PathBuf>,
    /// More certificates; the client's server name chooses.
    pub certificates: Vec<CertificateFiles>,
    /// A folder of certificates: `NAME.pem` with chain and key, `NAME.crt` with `NAME.key`, or a
    /// folder `NAME` with `tls.crt` and `tls.key`.
    pub directory: Option<PathBuf>,
    /// How often files are looked at for changes.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub look_every: Duration,
    pub profile: Profile,
    /// How long browsers are told to come by HTTPS only (`Strict-Transport-Security`); `0s` says
    /// nothing.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub hsts: Duration,
    /// Orders certificates by itself.
    pub acme: Option<AcmeConfig>,
}

impl Default for TlsConfig {
    fn default() -> Self {
        Self {
            certificate_file: None,
            key_file: None,
            certificates: Vec::new(),
            directory: None,
            look_every: Duration::from_secs(10),
            profile: Profile::default(),
            hsts: Duration::from_secs(365 * 24 * 3600),
            acme: None,
        }
    }
}

/// One certificate in two files.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CertificateFiles {
    /// PEM: the certificate, then those between it and the authority.
    pub certificate_file: PathBuf,
    /// PEM.
    pub key_file: PathBuf,
}

/// Which versions of TLS are spoken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Profile {
    /// TLS 1.3 only.
    Modern,
    /// TLS 1.3, and 1.2 with ephemeral keys and authenticated encryption.
    #[default]
    Intermediate,
}

/// How certificates are ordered by ACME (RFC 8555).
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AcmeConfig {
    /// The authority's directory, such as `https://acme.example.net/directory`.
    pub directory_url: String,
    /// Whether the authority's terms of service are agreed to; nothing is ordered without.
    pub terms_of_service_agreed: bool,
    /// Where the account, its key and the certificates are kept. Several replicas share it.
    pub store: PathBuf,
    /// Whom the authority may write to, such as `mailto:ops@example.org`.
    #[serde(default)]
    pub contacts: Vec<String>,
    /// PEM: certificates to trust for the directory, besides the system's.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    /// How the authority is shown that a name is ours. Unset: over the redirect port if there is
    /// one, else over TLS.
    #[serde(default)]
    pub challenge: Option<Challenge>,
    /// Names to have certificates for, besides the system hosts.
    #[serde(default)]
    pub names: Vec<String>,
    /// Other names that certificates are ordered for by and by.
    #[serde(default)]
    pub on_demand: OnDemand,
    /// Most certificates ordered on demand within an hour.
    #[serde(default = "per_hour")]
    pub on_demand_per_hour: u32,
    /// For authorities that ask for an account with them (RFC 8555, section 7.3.4).
    #[serde(default)]
    pub external_account: Option<ExternalAccount>,
}

fn per_hour() -> u32 {
    10
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Challenge {
    /// The authority fetches a file over plain HTTP, port 80 (RFC 8555, section 8.3).
    #[serde(rename = "http-01")]
    Http01,
    /// The authority opens a TLS connection, port 443 (RFC 8737).
    #[serde(rename = "tls-alpn-01")]
    TlsAlpn01,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OnDemand {
    #[default]
    Off,
    /// The hosts of workloads, as they appear.
    Routes,
}

/// What binds an ACME account to one with the authority.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ExternalAccount {
    pub key_id: String,
    /// File with the key in base64url, as the authority gives it.
    pub hmac_key_file: PathBuf,
}
