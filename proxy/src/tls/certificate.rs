//! One certificate with its key, looked into before it is used.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use rustls::{crypto::CryptoProvider, sign::CertifiedKey};
use rustls_pki_types::{
    CertificateDer, PrivateKeyDer,
    pem::{Error as PemError, PemObject},
};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// Somebody has to see to a certificate this long before its end at the latest...
const ENDS_SOON: SignedDuration = SignedDuration::from_hours(14 * 24);
/// ...or when this part of the lifetime is left, for those that are renewed often.
const ENDS_SOON_PART: i32 = 6;

/// Where a certificate comes from; between two that are equally good the earlier source wins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    Files,
    Secrets,
    Acme,
}

impl Source {
    pub const ALL: [Self; 3] = [Self::Files, Self::Secrets, Self::Acme];

    pub fn name(self) -> &'static str {
        match self {
            Self::Files => "files",
            Self::Secrets => "secrets",
            Self::Acme => "acme",
        }
    }
}

#[derive(Debug, Clone)]
pub struct Certificate {
    /// What people call it: a file, `namespace/name` of a Secret, a host.
    pub name: String,
    /// DNS names it is for, lower case; a wildcard as `*.example.org`.
    pub hosts: Vec<String>,
    pub not_before: Timestamp,
    pub not_after: Timestamp,
    pub key: Arc<CertifiedKey>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    #[error("there is no certificate in it")]
    NoCertificate,
    #[error("there is no private key in it")]
    NoKey,
    #[error("it is not PEM: {0}")]
    Pem(String),
    #[error("the certificate cannot be read: {0}")]
    Certificate(String),
    #[error("the certificate is for no DNS name")]
    NoNames,
    #[error("key and certificate do not belong together: {0}")]
    Key(String),
}

impl Certificate {
    /// Reads PEM. The key must be the certificate's; whether it is out of date is not asked here.
    pub fn from_pem(
        name: String,
        chain: &[u8],
        key: &[u8],
        provider: &CryptoProvider,
    ) -> Result<Self, Unusable> {
        let pem = |error: PemError| Unusable::Pem(error.to_string());
        let chain: Vec<_> =
            CertificateDer::pem_slice_iter(chain).collect::<Result<_, _>>().map_err(pem)?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| match error {
            PemError::NoItemsFound => Unusable::NoKey,
            error => pem(error),
        })?;
        let leaf = chain.first().ok_or(Unusable::NoCertificate)?;
        let (_, parsed) = X509Certificate::from_der(leaf)
            .map_err(|error| Unusable::Certificate(error.to_string()))?;
        let hosts = dns_names(&parsed);
        if hosts.is_empty() {
            return Err(Unusable::NoNames);
        }
        let validity = parsed.validity();
        let time = |seconds: i64| {
            Timestamp::from_second(seconds)
                .map_err(|error| Unusable::Certificate(error.to_string()))
        };
        let not_before = time(validity.not_before.timestamp())?;
        let not_after = time(validity.not_after.timestamp())?;
        let key = CertifiedKey::from_der(chain, key, provider)
            .map_err(|error| Unusable::Key(error.to_string()))?;
        Ok(Self { name, hosts, not_before, not_after, key: Arc::new(key) })
    }

    pub fn is_current(&self, now: Timestamp) -> bool {
        self.not_before <= now && now < self.not_after
    }

    /// From when on nobody may rely on whoever renews it.
    pub fn ends_soon_at(&self) -> Timestamp {
        let life = self.not_after.duration_since(self.not_before);
        let before = ENDS_SOON.min(life / ENDS_SOON_PART);
        self.not_after.saturating_sub(before).unwrap_or(self.not_before)
    }

    /// Whether clients accept it for that host, which is lower case (RFC 6125: a wildcard stands
    /// for one whole label).
    pub fn covers(&self, host: &str) -> bool {
        self.hosts.iter().any(|name| {
            name == host
                || name
                    .strip_prefix("*.")
                    .is_some_and(|parent| parent_of(host).is_some_and(|of| of == parent))
        })
    }

    /// Whether clients would get the same from both.
    pub fn is_same(&self, other: &Self) -> bool {
        self.key.cert == other.key.cert && self.name == other.name
    }
}

/// What follows the first label.
pub fn parent_of(host: &str) -> Option<&str> {
    host.split_once('.').map(|(_, parent)| parent)
}

fn dns_names(certificate: &X509Certificate<'_>) -> Vec<String> {
    let names = certificate.subject_alternative_name().ok().flatten();
    let names = names.map(|names| names.value.general_names.as_slice()).unwrap_or_default();
    let mut hosts: Vec<String> = names
        .iter()
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
            _ => None,
        })
        .collect();
    hosts.dedup();
    hosts
}

#[cfg(test)]
pub mod tests {
    use rcgen::{CertificateParams, KeyPair};
    use rustls::crypto::aws_lc_rs;

    use super::*;

    /// PEM of a certificate and its key, good between two seconds of the epoch.
    pub fn pem(hosts: &[&str], from: i64, to: i64) -> (String, String) {
        let hosts: Vec<_> = hosts.iter().map(|host| (*host).to_owned()).collect();
        let mut params = CertificateParams::new(hosts).unwrap();
        let at = |second| rcgen::date_time_ymd(1970, 1, 1) + std::time::Duration::from_secs(second);
        params.not_before = at(from.unsigned_abs());
        params.not_after = at(to.unsigned_abs());
        let key = KeyPair::generate().unwrap();
        (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
    }

    pub fn certificate(name: &str, hosts: &[&str], from: i64, to: i64) -> Arc<Certificate> {
        let (chain, key) = pem(hosts, from, to);
        let provider = aws_lc_rs::default_provider();
        let made =
            Certificate::from_pem(name.to_owned(), chain.as_bytes(), key.as_bytes(), &provider);
        Arc::new(made.unwrap())
    }

    #[test]
    fn what_is_in_it() {
        let made = certificate("a", &["A.example.org", "*.example.org"], 100, 200);
        assert_eq!(made.hosts, ["a.example.org", "*.example.org"]);
        assert_eq!(made.not_before.as_second(), 100);
        let current = |second| made.is_current(Timestamp::from_second(second).unwrap());
        assert!(!current(99) && current(100) && current(199) && !current(200));
        for (host, covered) in [
            ("a.example.org", true),
            ("b.example.org", true),
            ("example.org", false),
            ("c.b.example.org", false),
            ("b.example.com", false),
            ("", false),
        ] {
            assert_eq!(made.covers(host), covered, "{host}");
        }
    }

    #[test]
    fn what_cannot_be_used() {
        let provider = aws_lc_rs::default_provider();
        let read = |chain: &str, key: &str| {
            let read =
                Certificate::from_pem("a".to_owned(), chain.as_bytes(), key.as_bytes(), &provider);
            read.map(|_| ()).unwrap_err()
        };
        let (chain, key) = pem(&["a.example.org"], 0, 100);
        let (_, other_key) = pem(&["a.example.org"], 0, 100);
        assert!(matches!(read(&chain, &other_key), Unusable::Key(_)));
        assert_eq!(read(&chain, ""), Unusable::NoKey);
        assert_eq!(read("", &key), Unusable::NoCertificate);
        assert_eq!(read(&key, &key), Unusable::NoCertificate);
        let cut = &chain[..chain.len() / 2];
        assert!(matches!(read(cut, &key), Unusable::NoCertificate | Unusable::Pem(_)));
        let (nameless, key) = pem(&[], 0, 100);
        assert_eq!(read(&nameless, &key), Unusable::NoNames);
    }
}
