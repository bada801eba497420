//! Who may ask the node: the API server, known by its client certificate.

use crate::node::address::is_local;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, Error, RootCertStore, SignatureScheme};
use std::net::IpAddr;
use std::sync::Arc;

/// The authorities whose client certificates are accepted.
#[derive(Debug, Clone)]
pub struct Authorities {
    verifier: Option<Arc<dyn ClientCertVerifier>>,
    trust_local: bool,
}

impl Authorities {
    /// `roots` in DER. With `trust_local`, peers on this machine need no certificate.
    pub fn new(roots: &[Vec<u8>], trust_local: bool) -> Self {
        let mut store = RootCertStore::empty();
        store.add_parsable_certificates(
            roots.iter().map(|der| CertificateDer::from(der.as_slice())),
        );
        let verifier = WebPkiClientVerifier::builder(Arc::new(store)).build().ok();
        Self { verifier, trust_local }
    }

    /// Whether a peer that has completed the handshake with these certificates is welcome.
    pub fn accept(&self, certificates: Option<&[CertificateDer<'_>]>, peer: IpAddr) -> bool {
        let verified = match (certificates.and_then(<[_]>::split_first), &self.verifier) {
            (Some((own, chain)), Some(verifier)) => {
                verifier.verify_client_cert(own, chain, UnixTime::now()).is_ok()
            }
            _ => false,
        };
        verified || (self.trust_local && is_local(peer))
    }
}

/// Takes any client certificate whose key the peer holds. Whether it is a welcome one is decided after the handshake,
/// because a peer on this machine may be welcome whatever authority its certificate is from.
#[derive(Debug)]
pub struct AnyCertificate {
    algorithms: rustls::crypto::WebPkiSupportedAlgorithms,
}

impl AnyCertificate {
    pub fn new(provider: &rustls::crypto::CryptoProvider) -> Self {
        Self { algorithms: provider.signature_verification_algorithms }
    }
}

impl ClientCertVerifier for AnyCertificate {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls12_signature(message, cert, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls13_signature(message, cert, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{
        BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    };

    fn authority() -> (Vec<u8>, Issuer<'static, KeyPair>) {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let der = params.self_signed(&key).unwrap().der().to_vec();
        (der, Issuer::new(params, key))
    }

    fn client(issuer: &Issuer<'static, KeyPair>) -> CertificateDer<'static> {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.signed_by(&KeyPair::generate().unwrap(), issuer).unwrap().der().clone()
    }

    #[test]
    fn only_the_authoritys_clients_and_if_wanted_local_peers_are_welcome() {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let (root, issuer) = authority();
        let (_, other) = authority();
        let (ours, theirs) = (client(&issuer), client(&other));
        let far = "192.0.2.77".parse().unwrap();
        let near = "127.0.0.1".parse().unwrap();
        let strict = Authorities::new(std::slice::from_ref(&root), false);
        assert!(strict.accept(Some(&[ours]), far));
        assert!(!strict.accept(Some(std::slice::from_ref(&theirs)), near));
        assert!(!strict.accept(None, near));
        let trusting = Authorities::new(&[root], true);
        assert!(
            trusting.accept(Some(std::slice::from_ref(&theirs)), near)
                && trusting.accept(None, near)
        );
        assert!(!trusting.accept(Some(&[theirs]), far));
        assert!(!Authorities::new(&[], false).accept(None, near));
    }
}
