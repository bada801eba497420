//! The proxy's settings.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use schemars::JsonSchema;
use serde::Deserialize;

pub use crate::{access_log::AccessLogConfig, gate::limits::Share, trace::TraceConfig};

/// Settings of the HTTP gateway.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Domain under which every host of ours has exactly one label, such as `example.org`.
    pub base_domain: String,
    /// Port that clients see in URLs.
    #[serde(default = "https_port")]
    pub external_port: u16,
    /// The issuer's public URL, such as `https://auth.example.org`; the `iss` of every token.
    pub issuer: String,
    /// Where the issuer is reached from here, such as `http://127.0.0.1:9000`. Discovery, tokens and
    /// keys are fetched there and never through this proxy.
    pub issuer_internal_url: String,
    /// Name of the gateways' client at the issuer.
    #[serde(default = "client_id")]
    pub client_id: String,
    /// File with the client's secret.
    pub client_secret_file: PathBuf,
    /// Hosts that are no workloads: the issuer itself and the portal.
    #[serde(default)]
    pub system_hosts: Vec<SystemHost>,
    #[serde(default)]
    pub limits: Limits,
    #[serde(default)]
    pub access_log: AccessLogConfig,
    #[serde(default)]
    pub trace: TraceConfig,
    /// Carries plain HTTP/1.1 exchanges without the general engine, at a fraction of its cost. What is
    /// refused, told and forwarded is the same without it.
    #[serde(default = "yes")]
    pub fast_lane: bool,
    /// How long running exchanges may take to finish after the process is asked to stop. WebSockets
    /// then get a Close frame.
    #[serde(default = "drain_grace", with = "humantime_serde")]
    #[schemars(with = "String")]
    pub drain_grace: Duration,
}

/// A second listener without TLS, for load balancers that end TLS themselves. Clients must reach it
/// by HTTPS all the same: browsers keep the cookies of nothing else.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PlainConfig {
    pub listen: SocketAddr,
    /// Networks of the load balancers, such as `10.0.0.0/8`: what they say in `X-Forwarded-For` is
    /// believed. Nobody else's is.
    #[serde(default)]
    #[schemars(with = "Vec<String>")]
    pub trusted_hops: Vec<ipnet::IpNet>,
}

/// A host served by a service of ours.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SystemHost {
    /// Exact name, lower case, without port, such as `auth.example.org`.
    pub host: String,
    /// Where the service listens, plain HTTP/1.1.
    pub upstream: SocketAddr,
    pub access: SystemAccess,
    /// Paths below these are answered 404: they are for calls between services.
    #[serde(default)]
    pub closed_paths: Vec<String>,
}

/// Who may reach a system host, and what the service is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SystemAccess {
    /// Everybody; cookies and credentials pass untouched, identity headers are removed.
    Open,
    /// Whoever is signed in; the access token is forwarded as `Authorization: Bearer`.
    SignedIn,
}

/// Bounds that keep one client from taking everything.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Connections open at a time, in all.
    pub connections: usize,
    /// Connections open at a time from one address (IPv6: from one /64).
    pub connections_per_address: usize,
    /// Requests held at a time while workloads wake, in all.
    pub held: usize,
    /// Requests held at a time for one workload.
    pub held_per_workload: usize,
    /// Longest request head, in bytes.
    pub head_bytes: usize,
    /// From the first byte of a head to its end; also the time for a TLS handshake.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub head_timeout: Duration,
    /// How long a connection may be idle between two requests.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub keep_alive: Duration,
    /// A request body of a length that was said, and that does not come for this long, is not waited
    /// for.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub body_stall: Duration,
    /// Bytes per second that such a body must bring on average, `body_stall` at its beginning aside. Only
    /// the time counts in which the client is waited for. 0: no limit.
    pub body_bytes_per_second: u32,
    /// A request or answer body that does not move for this long is cut. WebSockets have no such limit.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub stall_timeout: Duration,
    /// Each signed-in person, on all hosts together.
    pub person: Share,
    /// Each session and each token, on all hosts together.
    pub token: Share,
    /// Each workload, so far as it says nothing else itself.
    pub route: Share,
    /// Whoever is not signed in, by address (IPv6: by /64), also on the way to signing in.
    pub stranger: Share,
    /// The same, by connection: so that one program behind a shared address leaves room for others.
    pub stranger_connection: Share,
    /// How long the body of a request by somebody who is not signed in may take.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub stranger_body: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 50_000,
            connections_per_address: 20_000,
            held: 4_096,
            held_per_workload: 256,
            head_bytes: 48 * 1024,
            head_timeout: Duration::from_secs(15),
            keep_alive: Duration::from_secs(75),
            body_stall: Duration::from_secs(120),
            body_bytes_per_second: 500,
            stall_timeout: Duration::from_secs(3 * 3600),
            person: Share::default(),
            token: Share::default(),
            route: Share::default(),
            stranger: Share::default(),
            stranger_connection: Share::default(),
            stranger_body: Duration::from_secs(30),
        }
    }
}

fn yes() -> bool {
    true
}

fn https_port() -> u16 {
    443
}

fn client_id() -> String {
    "dormouse-gate".to_owned()
}

fn drain_grace() -> Duration {
    Duration::from_secs(30)
}
