//! What a workload's pods speak on the wire, and how requests are shared out among them.

use std::sync::Arc;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum UpstreamProtocol {
    #[default]
    Http1,
    /// HTTP/2 without TLS, by prior knowledge (RFC 9113, section 3.3).
    H2c,
    /// HTTP/2 or HTTP/1.1 by ALPN.
    Tls(Arc<UpstreamTls>),
}

impl UpstreamProtocol {
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Http1 => "http",
            Self::H2c => "h2c",
            Self::Tls(_) => "https",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpstreamTls {
    /// Sent as SNI, and what the certificate must be for. Never empty.
    pub server_name: String,
    pub verification: Verification,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verification {
    /// By the authorities that the system trusts.
    System,
    /// By these authorities alone: PEM.
    Authorities(String),
    /// None: whoever answers on the pod's address is believed.
    Skip,
}

/// How a workload's requests are carried.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Routing {
    pub protocol: UpstreamProtocol,
    /// A browser stays with the pod that answered it first.
    pub sticky: bool,
    /// People out of a hundred who get the canary, where there is one.
    pub canary_weight: u8,
}
