//! A development authority that makes a certificate for each host.

use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::{
    ServerConfig,
    crypto::aws_lc_rs,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject};

use crate::secret::{self, SecretError};

#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("cannot read {path}: {source}")]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot write {path}: {source}")]
    Write { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Secret(#[from] SecretError),
    #[error("{path} holds no usable certificate or key: {message}")]
    Pem { path: PathBuf, message: String },
    #[error("a certificate cannot be made: {0}")]
    Make(#[from] rcgen::Error),
    #[error("TLS cannot be set up: {0}")]
    Rustls(#[from] rustls::Error),
}

/// Offered in this order (RFC 7301).
const ALPN: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// A certificate authority of one's own, for development: kept in a folder, never sent anywhere.
pub struct DevAuthority {
    ca_file: PathBuf,
    issuer: Issuer<'static, KeyPair>,
    ca: CertificateDer<'static>,
}

impl DevAuthority {
    /// Made at first use: `ca.pem` to be trusted by clients, `ca.key` for us alone.
    pub fn open(folder: &Path) -> Result<Self, TlsError> {
        let (ca_file, key_file) = (folder.join("ca.pem"), folder.join("ca.key"));
        if !ca_file.exists() || !key_file.exists() {
            let key = KeyPair::generate()?;
            let certificate = authority_params().self_signed(&key)?;
            secret::write(&key_file, key.serialize_pem().as_bytes())?;
            fs::write(&ca_file, certificate.pem())
                .map_err(|source| TlsError::Write { path: ca_file.clone(), source })?;
        }
        let pem = fs::read_to_string(&ca_file)
            .map_err(|source| TlsError::Read { path: ca_file.clone(), source })?;
        let key = KeyPair::from_pem(&secret::read(&key_file)?)?;
        let ca = CertificateDer::from_pem_slice(pem.as_bytes())
            .map_err(|error| TlsError::Pem { path: ca_file.clone(), message: error.to_string() })?;
        let issuer = Issuer::from_ca_cert_der(&ca, key)?;
        Ok(Self { ca_file, issuer, ca })
    }

    pub fn ca_file(&self) -> &Path {
        &self.ca_file
    }

    /// Serves the base domain and every host one label below it. Clients refuse a wildcard directly
    /// below a top-level name such as `localhost`, so each host gets a certificate of its own.
    pub fn server_config(self, base_domain: &str) -> Result<Arc<ServerConfig>, TlsError> {
        let key = KeyPair::generate()?;
        let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let signing = aws_lc_rs::sign::any_supported_type(&der)?;
        let resolver = HostCertificates {
            authority: self,
            base_domain: base_domain.to_ascii_lowercase(),
            key,
            signing,
            made: Mutex::default(),
        };
        let mut config =
            ServerConfig::builder().with_no_client_auth().with_cert_resolver(Arc::new(resolver));
        config.alpn_protocols = ALPN.map(<[u8]>::to_vec).to_vec();
        Ok(Arc::new(config))
    }
}

fn authority_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "Dormouse development authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let now = time::OffsetDateTime::now_utc();
    params.not_before = now - time::Duration::DAY;
    params.not_after = now + time::Duration::days(3650);
    params
}

/// Certificates made so far are kept, up to this many; past it they are made anew each time.
const KEPT: usize = 1024;

struct HostCertificates {
    authority: DevAuthority,
    base_domain: String,
    key: KeyPair,
    signing: Arc<dyn rustls::sign::SigningKey>,
    made: Mutex<HashMap<String, Arc<CertifiedKey>>>,
}

impl std::fmt::Debug for HostCertificates {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HostCertificates").field("base_domain", &self.base_domain).finish()
    }
}

impl HostCertificates {
    fn covers(&self, host: &str) -> bool {
        host == self.base_domain
            || host
                .strip_suffix(&self.base_domain)
                .and_then(|rest| rest.strip_suffix('.'))
                .is_some_and(|label| !label.is_empty() && !label.contains('.'))
    }

    fn make(&self, host: &str) -> Result<CertifiedKey, TlsError> {
        let mut params = CertificateParams::new(vec![host.to_owned(), "127.0.0.1".to_owned()])?;
        params.distinguished_name.push(DnType::CommonName, host);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let now = time::OffsetDateTime::now_utc();
        params.not_before = now - time::Duration::DAY;
        params.not_after = now + time::Duration::days(90);
        let certificate = params.signed_by(&self.key, &self.authority.issuer)?;
        let chain = vec![certificate.der().clone(), self.authority.ca.clone()];
        Ok(CertifiedKey::new(chain, self.signing.clone()))
    }
}

impl ResolvesServerCert for HostCertificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let host = hello.server_name().unwrap_or(&self.base_domain).to_ascii_lowercase();
        if !self.covers(&host) {
            return None;
        }
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = made.get(&host) {
            return Some(known.clone());
        }
        match self.make(&host) {
            Ok(certified) => {
                let certified = Arc::new(certified);
                if made.len() < KEPT {
                    made.insert(host, certified.clone());
                }
                Some(certified)
            }
            Err(error) => {
                tracing::error!(%error, host, "no certificate could be made for this host");
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificates(folder: &Path) -> HostCertificates {
        let authority = DevAuthority::open(folder).unwrap();
        let key = KeyPair::generate().unwrap();
        let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let signing = aws_lc_rs::sign::any_supported_type(&der).unwrap();
        let base_domain = "localhost".to_owned();
        HostCertificates { authority, base_domain, key, signing, made: Mutex::default() }
    }

    #[test]
    fn the_authority_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let first = DevAuthority::open(folder.path()).unwrap().ca;
        assert_eq!(first, DevAuthority::open(folder.path()).unwrap().ca);
    }

    #[test]
    fn only_hosts_one_label_below_are_covered() {
        let folder = tempfile::tempdir().unwrap();
        let certificates = certificates(folder.path());
        for good in ["localhost", "auth.localhost", "lab--alice.localhost"] {
            assert!(certificates.covers(good), "{good}");
            assert!(certificates.make(good).is_ok(), "{good}");
        }
        for bad in ["a.b.localhost", ".localhost", "evil.example", "xlocalhost", ""] {
            assert!(!certificates.covers(bad), "{bad}");
        }
    }
}
