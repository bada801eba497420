//! Answers to an authority that validates a name: HTTP-01 (RFC 8555, section 8.3) and TLS-ALPN-01
//! (RFC 8737).

use std::{collections::HashMap, fs, io, path::PathBuf, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use rcgen::{CertificateParams, CustomExtension, KeyPair};
use runtime::secret::{self, SecretError};
use rustls::{crypto::CryptoProvider, sign::CertifiedKey};
use rustls_pki_types::PrivateKeyDer;
use tokio::{task::spawn_blocking, time::sleep};

/// The protocol by which an authority asks (RFC 8737, section 6.2).
pub const ACME_TLS: &[u8] = b"acme-tls/1";
/// What HTTP-01 asks for, before the token.
pub const HTTP_PATH: &str = "/.well-known/acme-challenge/";
/// An answer is a token, a dot and a thumbprint.
const ANSWER_MAX: u64 = 1024;
/// Files of TLS-ALPN-01: a host and this. A token has no dot.
const TLS_FILE: &str = ".tls-alpn-01";
/// How often a replica looks for what another one is to be asked over TLS: a handshake cannot wait
/// for a file.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// After which every replica knows what is to be answered over TLS.
pub const KNOWN_AFTER: Duration = Duration::from_secs(1);
/// Names that are validated at a time.
const OTHERS_MAX: usize = 64;

#[derive(Debug, thiserror::Error)]
pub enum ChallengeError {
    #[error("the authority sent a token that is none")]
    BadToken,
    #[error(transparent)]
    Store(#[from] SecretError),
    #[error("the certificate of the challenge cannot be made: {0}")]
    Make(#[from] rcgen::Error),
    #[error("the certificate of the challenge cannot be used: {0}")]
    Use(#[from] rustls::Error),
    #[error("the key of the challenge's certificate cannot be used: {0}")]
    Key(&'static str),
}

/// What is being validated now. Cheap to clone: all clones are one.
#[derive(Debug, Clone)]
pub struct Challenges {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// Answers by token.
    http: ArcSwap<HashMap<String, String>>,
    /// Certificates by name.
    tls: ArcSwap<HashMap<String, Arc<CertifiedKey>>>,
    /// The same for what another replica offers.
    others: ArcSwap<HashMap<String, Others>>,
    /// Where answers are written as well, for the other replicas: an authority may ask any.
    folder: PathBuf,
}

/// What another replica offers for a name.
#[derive(Debug, Clone)]
struct Others {
    digest: [u8; 32],
    key: Arc<CertifiedKey>,
}

/// Answered until dropped.
#[derive(Debug)]
#[must_use]
pub struct Offered {
    inner: Arc<Inner>,
    what: What,
}

#[derive(Debug)]
enum What {
    Http(String),
    Tls(String),
}

impl Challenges {
    pub fn new(folder: PathBuf) -> Self {
        let (http, tls, others) = Default::default();
        let inner = Inner { http, tls, others, folder };
        Self { inner: Arc::new(inner) }
    }

    pub fn offer_http(&self, token: &str, answer: &str) -> Result<Offered, ChallengeError> {
        if !is_token(token) {
            return Err(ChallengeError::BadToken);
        }
        secret::write(&self.inner.folder.join(token), answer.as_bytes())?;
        change(&self.inner.http, |http| {
            http.insert(token.to_owned(), answer.to_owned());
        });
        Ok(Offered { inner: self.inner.clone(), what: What::Http(token.to_owned()) })
    }

    /// `digest` is SHA-256 of the key authorization.
    pub fn offer_tls(
        &self,
        name: &str,
        digest: &[u8; 32],
        provider: &CryptoProvider,
    ) -> Result<Offered, ChallengeError> {
        let key = certificate(name, digest, provider)?;
        secret::write(&self.inner.tls_file(name), hex(digest).as_bytes())?;
        change(&self.inner.tls, |tls| {
            tls.insert(name.to_owned(), key.clone());
        });
        Ok(Offered { inner: self.inner.clone(), what: What::Tls(name.to_owned()) })
    }

    /// The answer to a token, of ours or of another replica's.
    pub async fn http_answer(&self, token: &str) -> Option<String> {
        if !is_token(token) {
            return None;
        }
        if let Some(answer) = self.inner.http.load().get(token) {
            return Some(answer.clone());
        }
        let path = self.inner.folder.join(token);
        let length = tokio::fs::metadata(&path).await.ok()?.len();
        let answer =
            if length <= ANSWER_MAX { tokio::fs::read_to_string(&path).await.ok() } else { None };
        answer.filter(|answer| answer.starts_with(token))
    }

    /// What is answered over TLS, of ours or of another replica's.
    pub fn certificate(&self, name: &str) -> Option<Arc<CertifiedKey>> {
        let name = name.to_ascii_lowercase();
        let ours = self.inner.tls.load().get(&name).cloned();
        ours.or_else(|| self.inner.others.load().get(&name).map(|others| others.key.clone()))
    }

    /// Takes in what another replica is to be asked over TLS, until dropped.
    pub async fn follow(&self, provider: &Arc<CryptoProvider>) {
        loop {
            let (this, provider) = (self.clone(), provider.clone());
            if let Ok(Err(error)) = spawn_blocking(move || this.take_in(&provider)).await {
                tracing::warn!(%error, "the answers of other replicas to ACME challenges cannot be read");
            }
            sleep(LOOK_EVERY).await;
        }
    }

    /// Blocks.
    fn take_in(&self, provider: &CryptoProvider) -> io::Result<()> {
        let before = self.inner.others.load();
        let mut now = HashMap::new();
        for item in fs::read_dir(&self.inner.folder)? {
            let path = item?.path();
            let name = path.file_name().and_then(|name| name.to_str());
            let Some(name) = name.and_then(|name| name.strip_suffix(TLS_FILE)) else { continue };
            // One that is gone or only half there is seen the next time.
            let Some(digest) = fs::read(&path).ok().and_then(|text| unhex(&text)) else { continue };
            let made = match before.get(name) {
                Some(others) if others.digest == digest => Ok(others.key.clone()),
                _ => certificate(name, &digest, provider),
            };
            if let Ok(key) = made
                && now.len() < OTHERS_MAX
            {
                now.insert(name.to_owned(), Others { digest, key });
            }
        }
        if !(before.is_empty() && now.is_empty()) {
            self.inner.others.store(Arc::new(now));
        }
        Ok(())
    }

    /// Removes what a process that died has left.
    pub fn clear_folder(&self) -> io::Result<()> {
        self.inner.others.store(Arc::default());
        for item in fs::read_dir(&self.inner.folder)? {
            fs::remove_file(item?.path())?;
        }
        Ok(())
    }
}

impl Drop for Offered {
    fn drop(&mut self) {
        let file = match &self.what {
            What::Http(token) => {
                change(&self.inner.http, |http| {
                    http.remove(token);
                });
                self.inner.folder.join(token)
            }
            What::Tls(name) => {
                change(&self.inner.tls, |tls| {
                    tls.remove(name);
                });
                self.inner.tls_file(name)
            }
        };
        if let Err(error) = fs::remove_file(file) {
            tracing::warn!(%error, "the answer to an ACME challenge could not be removed");
        }
    }
}

impl Inner {
    /// `name` is a host name.
    fn tls_file(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}{TLS_FILE}"))
    }
}

/// What TLS-ALPN-01 shows (RFC 8737, section 3).
fn certificate(
    name: &str,
    digest: &[u8; 32],
    provider: &CryptoProvider,
) -> Result<Arc<CertifiedKey>, ChallengeError> {
    let mut params = CertificateParams::new(vec![name.to_owned()])?;
    params.custom_extensions = vec![CustomExtension::new_acme_identifier(digest)];
    let key = KeyPair::generate()?;
    let chain = vec![params.self_signed(&key)?.der().clone()];
    let key = PrivateKeyDer::try_from(key.serialize_der()).map_err(ChallengeError::Key)?;
    // Without rustls' comparison of key and certificate, which knows no extension of ACME's.
    Ok(Arc::new(CertifiedKey::new(chain, provider.key_provider.load_private_key(key)?)))
}

fn hex(digest: &[u8; 32]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &[u8]) -> Option<[u8; 32]> {
    let text = std::str::from_utf8(text).ok().filter(|text| text.len() == 64)?;
    let mut digest = [0; 32];
    for (at, byte) in digest.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * at..2 * at + 2)?, 16).ok()?;
    }
    Some(digest)
}

fn change<V: Clone>(
    map: &ArcSwap<HashMap<String, V>>,
    mut change: impl FnMut(&mut HashMap<String, V>),
) {
    map.rcu(|old| {
        let mut new = HashMap::clone(old);
        change(&mut new);
        new
    });
}

/// base64url (RFC 8555, section 8.1), so that it is a file name and nothing else.
fn is_token(token: &str) -> bool {
    (1..=128).contains(&token.len())
        && token.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
}

#[cfg(test)]
mod tests {
    use x509_parser::prelude::{FromDer, X509Certificate};

    use super::*;
    use crate::tls::profile;

    #[tokio::test]
    async fn an_answer_is_there_as_long_as_it_is_offered_for_all_replicas() {
        let folder = tempfile::tempdir().unwrap();
        let ours = Challenges::new(folder.path().to_owned());
        let others = Challenges::new(folder.path().to_owned());
        let offered = ours.offer_http("to_k-en", "to_k-en.thumb").unwrap();
        for replica in [&ours, &others] {
            assert_eq!(replica.http_answer("to_k-en").await.unwrap(), "to_k-en.thumb");
            assert_eq!(replica.http_answer("token").await, None);
        }
        drop(offered);
        for replica in [&ours, &others] {
            assert_eq!(replica.http_answer("to_k-en").await, None);
        }
    }

    #[tokio::test]
    async fn attack_4_a_token_is_no_path() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("secret"), "secret").unwrap();
        fs::create_dir(folder.path().join("challenges")).unwrap();
        let challenges = Challenges::new(folder.path().join("challenges"));
        let long = "a".repeat(129);
        for bad in ["../secret", "..", ".", "", "a/b", "%2e%2e", "a\0", "ä", &long] {
            assert_eq!(challenges.http_answer(bad).await, None, "{bad}");
            assert!(challenges.offer_http(bad, "x").is_err(), "{bad}");
        }
    }

    #[test]
    fn the_certificate_of_tls_alpn_01_says_what_is_asked_and_no_more() {
        let folder = tempfile::tempdir().unwrap();
        let challenges = Challenges::new(folder.path().to_owned());
        let provider = profile::provider();
        let offered = challenges.offer_tls("auth.example.org", &[7; 32], &provider).unwrap();
        assert!(challenges.certificate("other.example.org").is_none());
        shows(&challenges.certificate("Auth.example.org").unwrap(), 7);
        drop(offered);
        assert!(challenges.certificate("auth.example.org").is_none());
    }

    #[tokio::test]
    async fn what_one_replica_offers_over_tls_every_replica_answers() {
        let folder = tempfile::tempdir().unwrap();
        let provider = profile::provider();
        let [ours, others] = [(); 2].map(|()| Challenges::new(folder.path().to_owned()));
        let of_others = |digest: Option<u8>| {
            others.take_in(&provider).unwrap();
            let key = others.certificate("auth.example.org");
            assert_eq!(key.is_some(), digest.is_some());
            key.inspect(|key| shows(key, digest.unwrap()))
        };
        of_others(None);
        let offered = ours.offer_tls("auth.example.org", &[7; 32], &provider).unwrap();
        let (first, again) = (of_others(Some(7)).unwrap(), of_others(Some(7)).unwrap());
        assert!(Arc::ptr_eq(&first, &again), "made once");
        // It is nothing that is told over HTTP.
        assert_eq!(others.http_answer("auth.example.org.tls-alpn-01").await, None);
        drop(offered);
        of_others(None);
        let offered = ours.offer_tls("auth.example.org", &[8; 32], &provider).unwrap();
        of_others(Some(8));
        drop(offered);
        for half in [&b""[..], &[b'a'; 63], &[b'z'; 64]] {
            fs::write(folder.path().join("auth.example.org.tls-alpn-01"), half).unwrap();
            of_others(None);
        }
    }

    fn shows(key: &CertifiedKey, digest: u8) {
        let (_, parsed) = X509Certificate::from_der(&key.cert[0]).unwrap();
        let names = parsed.subject_alternative_name().unwrap().unwrap();
        assert_eq!(names.value.general_names.len(), 1);
        let identifier =
            parsed.extensions().iter().find(|e| e.oid.to_id_string() == "1.3.6.1.5.5.7.1.31");
        let identifier = identifier.unwrap();
        assert!(identifier.critical);
        assert_eq!(identifier.value, [&[4, 32][..], &[digest; 32]].concat());
    }
}
