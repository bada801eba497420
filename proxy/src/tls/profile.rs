//! How TLS is spoken: versions, suites, session tickets, buffers.

use std::sync::Arc;

use rustls::{
    ServerConfig,
    crypto::{CryptoProvider, aws_lc_rs},
    server::{NoServerSessionStorage, ResolvesServerCert},
    version::{TLS12, TLS13},
};

use super::{acme::challenges::ACME_TLS, config::Profile};

/// Offered in this order (RFC 7301).
const ALPN: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// aws-lc-rs with the post-quantum exchange first: a client that offers it gets it. All of its
/// suites for TLS 1.2 have ephemeral keys and authenticated encryption.
pub fn provider() -> CryptoProvider {
    let mut provider = aws_lc_rs::default_provider();
    provider.kx_groups = vec![
        aws_lc_rs::kx_group::X25519MLKEM768,
        aws_lc_rs::kx_group::X25519,
        aws_lc_rs::kx_group::SECP256R1,
        aws_lc_rs::kx_group::SECP384R1,
    ];
    provider
}

/// Sessions are resumed by tickets alone, whose keys change every six hours and are good for
/// twelve; nothing is kept here per client.
pub fn server_config(
    profile: Profile,
    resolver: Arc<dyn ResolvesServerCert>,
    acme: bool,
) -> Result<ServerConfig, rustls::Error> {
    let versions: &[_] = match profile {
        Profile::Modern => &[&TLS13],
        Profile::Intermediate => &[&TLS13, &TLS12],
    };
    let mut config = ServerConfig::builder_with_provider(Arc::new(provider()))
        .with_protocol_versions(versions)?
        .with_no_client_auth()
        .with_cert_resolver(resolver);
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.ticketer = aws_lc_rs::Ticketer::new()?;
    set_protocols(&mut config, acme);
    Ok(config)
}

/// A client that offers several never gets ACME's.
pub fn set_protocols(config: &mut ServerConfig, acme: bool) {
    let acme = acme.then_some(ACME_TLS);
    config.alpn_protocols = ALPN.into_iter().chain(acme).map(<[u8]>::to_vec).collect();
}
