//! Keys, certificates, the token and the kubeconfig, all kept in the data directory.

use std::fs;
use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use rand::RngCore as _;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("cannot use {path}: {source}; choose a directory that this user may write")]
    Io { path: PathBuf, source: std::io::Error },
    #[error(
        "cannot make or read a certificate in the data directory: {0}; remove its pki folder to make new ones"
    )]
    Certificate(#[from] rcgen::Error),
    #[error("cannot set up TLS: {0}")]
    Tls(#[from] rustls::Error),
}

pub struct Identity {
    pub token: String,
    pub tls: Arc<rustls::ServerConfig>,
    /// Certificate and key (PEM) by which nodes know this server.
    pub kubelet_client: String,
    ca_pem: String,
}

fn io(path: &Path) -> impl FnOnce(std::io::Error) -> IdentityError + '_ {
    move |source| IdentityError::Io { path: path.to_owned(), source }
}

/// Makes the directory, for this user alone.
pub fn private_dir(path: &Path) -> Result<(), IdentityError> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(io(path))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o700)).map_err(io(path))
}

/// Writes a file for this user alone, as a whole or not at all.
pub fn write_private(path: &Path, content: &[u8]) -> Result<(), IdentityError> {
    let temporary = path.with_extension("new");
    let _ = fs::remove_file(&temporary);
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary)
        .map_err(io(&temporary))?;
    file.write_all(content).and_then(|()| file.sync_all()).map_err(io(&temporary))?;
    fs::rename(&temporary, path).map_err(io(path))
}

/// Reads a file, or makes it when it is not there.
fn read_or_make(
    path: &Path,
    make: impl FnOnce() -> Result<String, IdentityError>,
) -> Result<String, IdentityError> {
    match fs::read_to_string(path) {
        Ok(text) if !text.trim().is_empty() => Ok(text),
        Ok(_) => {
            let text = make()?;
            write_private(path, text.as_bytes())?;
            Ok(text)
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let text = make()?;
            write_private(path, text.as_bytes())?;
            Ok(text)
        }
        Err(source) => Err(IdentityError::Io { path: path.to_owned(), source }),
    }
}

fn named(name: &str) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(Vec::<String>::new())?;
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    params.distinguished_name = distinguished;
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(2070, 1, 1);
    Ok(params)
}

impl Identity {
    /// Loads what is there and makes what is missing. The server's certificate is made
    /// anew at each start, for the address it listens on.
    pub fn load(data_dir: &Path, listen: SocketAddr) -> Result<Self, IdentityError> {
        let pki = data_dir.join("pki");
        private_dir(&pki)?;
        let key_pem =
            read_or_make(&pki.join("ca.key"), || Ok(KeyPair::generate()?.serialize_pem()))?;
        let ca_key = KeyPair::from_pem(&key_pem)?;
        let mut params = named("devcluster")?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::CrlSign,
        ];
        let ca_pem = read_or_make(&pki.join("ca.crt"), || Ok(params.self_signed(&ca_key)?.pem()))?;
        let issuer = Issuer::from_ca_cert_pem(&ca_pem, ca_key)?;

        let token = read_or_make(&data_dir.join("token"), || {
            let mut bytes = [0u8; 32];
            rand::rng().fill_bytes(&mut bytes);
            Ok(URL_SAFE_NO_PAD.encode(bytes))
        })?;

        let mut names = vec![
            "localhost".to_owned(),
            "kubernetes".to_owned(),
            "127.0.0.1".to_owned(),
            "::1".to_owned(),
        ];
        if !listen.ip().is_unspecified() && !listen.ip().is_loopback() {
            names.push(listen.ip().to_string());
        }
        let mut params = named("kube-apiserver")?;
        params.subject_alt_names = CertificateParams::new(names)?.subject_alt_names;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let server_key = KeyPair::generate()?;
        let server = params.signed_by(&server_key, &issuer)?;

        let mut params = named("kube-apiserver-kubelet-client")?;
        params.distinguished_name.push(DnType::OrganizationName, "system:masters");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let client_key = KeyPair::generate()?;
        let client = params.signed_by(&client_key, &issuer)?;

        let chain: Vec<CertificateDer<'static>> = vec![server.der().clone()];
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(server_key.serialize_der()));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(chain, key)?;
        tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Self {
            token: token.trim().to_owned(),
            tls: Arc::new(tls),
            kubelet_client: format!("{}{}", client.pem(), client_key.serialize_pem()),
            ca_pem,
        })
    }

    /// Writes the kubeconfig, and returns its path.
    pub fn write_kubeconfig(
        &self,
        data_dir: &Path,
        server: &str,
    ) -> Result<PathBuf, IdentityError> {
        let path = data_dir.join("kubeconfig");
        let text = format!(
            "apiVersion: v1\nkind: Config\nclusters:\n- name: devcluster\n  cluster:\n    server: {server}\n    certificate-authority-data: {}\nusers:\n- name: admin\n  user:\n    token: {}\ncontexts:\n- name: devcluster\n  context:\n    cluster: devcluster\n    user: admin\n    namespace: default\ncurrent-context: devcluster\n",
            STANDARD.encode(&self.ca_pem),
            self.token,
        );
        write_private(&path, text.as_bytes())?;
        Ok(path)
    }
}
