//! TLS to pods: what their certificates are checked against.

use std::sync::{Arc, LazyLock};

use domain::upstream::{UpstreamTls, Verification};
use pingora::{
    protocols::tls::CaType,
    utils::tls::{WrappedX509, parse_x509},
};
use quick_cache::sync::Cache;
use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::CryptoProvider,
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
};

/// Pods whose settings are remembered.
const REMEMBERED: usize = 4096;

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TlsError {
    #[error("the authorities of the workload hold no certificate that can be read")]
    NoAuthority,
    #[error("the system's authorities cannot be read")]
    System,
    #[error("the server name is not one")]
    ServerName,
}

/// What is made of a workload's settings, once per pod: a pool's number stands for the settings too.
pub struct TlsSettings {
    authorities: Cache<u64, Arc<CaType>>,
    tunnels: Cache<u64, Arc<ClientConfig>>,
}

impl Default for TlsSettings {
    fn default() -> Self {
        Self { authorities: Cache::new(REMEMBERED), tunnels: Cache::new(REMEMBERED) }
    }
}

impl TlsSettings {
    /// For the general engine; `None` where the authorities are not the workload's own.
    pub fn authorities(
        &self,
        pool: u64,
        tls: &UpstreamTls,
    ) -> Result<Option<Arc<CaType>>, TlsError> {
        let Verification::Authorities(pem) = &tls.verification else { return Ok(None) };
        self.authorities
            .get_or_insert_with(&pool, || {
                let certificates = certificates(pem)?;
                let wrapped = certificates.into_iter();
                let wrapped = wrapped.map(|der| WrappedX509::new(der.to_vec(), parse_x509));
                Ok(wrapped.collect::<Vec<_>>().into())
            })
            .map(Some)
    }

    /// For streams of our own: HTTP/1.1 only.
    pub fn client(&self, pool: u64, tls: &UpstreamTls) -> Result<Arc<ClientConfig>, TlsError> {
        self.tunnels.get_or_insert_with(&pool, || client(tls).map(Arc::new))
    }
}

/// Of a certificate that cannot be read, pingora would panic.
fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let mut roots = RootCertStore::empty();
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    let all = all.map_err(|_| TlsError::NoAuthority)?;
    for certificate in &all {
        roots.add(certificate.clone()).map_err(|_| TlsError::NoAuthority)?;
    }
    if all.is_empty() { Err(TlsError::NoAuthority) } else { Ok(all) }
}

/// The authorities of this machine, read once. `None`: there are none that can be used.
static SYSTEM: LazyLock<Option<Arc<RootCertStore>>> = LazyLock::new(|| {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    let (added, _) = roots.add_parsable_certificates(found.certs);
    (added > 0).then(|| Arc::new(roots))
});

fn client(tls: &UpstreamTls) -> Result<ClientConfig, TlsError> {
    let builder = ClientConfig::builder();
    let mut config = match &tls.verification {
        Verification::Skip => {
            let provider = builder.crypto_provider().clone();
            let verifier = Arc::new(Unverified(provider));
            builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth()
        }
        Verification::Authorities(pem) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates(pem)? {
                roots.add(certificate).map_err(|_| TlsError::NoAuthority)?;
            }
            builder.with_root_certificates(roots).with_no_client_auth()
        }
        Verification::System => {
            let roots = SYSTEM.clone().ok_or(TlsError::System)?;
            builder.with_root_certificates(roots).with_no_client_auth()
        }
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

pub fn server_name(tls: &UpstreamTls) -> Result<ServerName<'static>, TlsError> {
    ServerName::try_from(tls.server_name.clone()).map_err(|_| TlsError::ServerName)
}

/// Takes any certificate; the handshake's signature is checked all the same.
#[derive(Debug)]
struct Unverified(Arc<CryptoProvider>);

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
