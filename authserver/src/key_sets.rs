//! Key sets that clients publish at an address of theirs (`jwks_uri`; RFC 7591, section 2).
//!
//! The address is an operator's word, and still it is no way into the network that we are in: names
//! are resolved here, and what is no address of the internet is refused unless the settings allow it.
//! Redirects are not followed.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use tokio::sync::Mutex;
use url::{Host, Url};

use crate::jws::JwkSet;

/// How long one answer may take.
const ANSWER: Duration = Duration::from_secs(5);

/// Longest key set, in bytes.
const BODY_MAX: usize = 64 * 1024;

/// How long a key set is believed, in seconds.
const FRESH: i64 = 600;

/// How soon it is asked for again when an assertion does not fit it, in seconds: strangers can make
/// such assertions.
const PAUSE: i64 = 30;

#[derive(Debug, thiserror::Error)]
pub enum KeySetError {
    #[error("{}", runtime::http::whole(.0))]
    Request(#[from] reqwest::Error),
    #[error("its host is not a public one; see authserver.private_key_sets")]
    Private,
    #[error("it answered {0}")]
    Status(u16),
    #[error("it is longer than {BODY_MAX} bytes")]
    TooLong,
    #[error("it holds no usable public key")]
    Unusable,
}

/// What was fetched, by address. Addresses are of clients that are known, so there are few.
pub(crate) struct KeySets {
    http: reqwest::Client,
    private: bool,
    known: Mutex<HashMap<String, Arc<Mutex<Option<Known>>>>>,
}

#[derive(Clone)]
struct Known {
    /// Also of a fetch that failed.
    fetched_at: i64,
    keys: Option<Arc<JwkSet>>,
}

impl KeySets {
    /// `private`: hosts of the networks that we are in are allowed.
    pub fn new(private: bool) -> Result<Self, reqwest::Error> {
        let mut http = reqwest::Client::builder()
            .connect_timeout(ANSWER)
            .timeout(ANSWER)
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("dormouse/", env!("CARGO_PKG_VERSION")));
        if !private {
            // A proxy would resolve names by itself.
            http = http.no_proxy().dns_resolver(PublicOnly);
        }
        Ok(Self { http: http.build()?, private, known: Mutex::default() })
    }

    /// The key set of that address, fetched when it is not known or too old. `doubted`: one that was
    /// fetched a while ago did not fit. None when there is none to be had; the log says why.
    pub async fn get(&self, uri: &str, doubted: bool, now: Timestamp) -> Option<Arc<JwkSet>> {
        let place = self.known.lock().await.entry(uri.to_owned()).or_default().clone();
        // Whoever comes meanwhile waits for this one.
        let mut known = place.lock().await;
        let age = |known: &Known| now.as_second().saturating_sub(known.fetched_at);
        if let Some(known) = known.as_ref() {
            let longest = if doubted || known.keys.is_none() { PAUSE } else { FRESH };
            if age(known) < longest {
                return known.keys.clone();
            }
        }
        let keys = match self.fetch(uri).await {
            Ok(keys) => Some(Arc::new(keys)),
            Err(error) => {
                tracing::warn!(uri, %error, "a client's key set cannot be fetched");
                // An old one is better than none, while its host is down.
                known.as_ref().and_then(|known| known.keys.clone())
            }
        };
        *known = Some(Known { fetched_at: now.as_second(), keys: keys.clone() });
        keys
    }

    async fn fetch(&self, uri: &str) -> Result<JwkSet, KeySetError> {
        if !self.private && !names_public_host(uri) {
            return Err(KeySetError::Private);
        }
        let mut answer = self.http.get(uri).send().await?;
        if !answer.status().is_success() {
            return Err(KeySetError::Status(answer.status().as_u16()));
        }
        let mut body = Vec::new();
        while let Some(chunk) = answer.chunk().await? {
            if body.len().saturating_add(chunk.len()) > BODY_MAX {
                return Err(KeySetError::TooLong);
            }
            body.extend_from_slice(&chunk);
        }
        let text = std::str::from_utf8(&body).map_err(|_| KeySetError::Unusable)?;
        JwkSet::from_json(text).map_err(|_| KeySetError::Unusable)
    }
}

/// True for names, which the resolver judges, and for public addresses.
fn names_public_host(uri: &str) -> bool {
    match Url::parse(uri).ok().as_ref().and_then(Url::host) {
        Some(Host::Domain(_)) => true,
        Some(Host::Ipv4(address)) => is_public(address.into()),
        Some(Host::Ipv6(address)) => is_public(address.into()),
        None => false,
    }
}

struct PublicOnly;

impl Resolve for PublicOnly {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let public: Vec<SocketAddr> = found.filter(|found| is_public(found.ip())).collect();
            if public.is_empty() {
                return Err(KeySetError::Private.into());
            }
            Ok(Box::new(public.into_iter()) as Addrs)
        })
    }
}

/// By the registries of special addresses (RFC 6890): what routers of the internet carry.
fn is_public(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => {
            let [first, second, third, _] = address.octets();
            let special = address.is_private()
                || address.is_loopback()
                || address.is_link_local()
                || address.is_multicast()
                || address.is_documentation()
                || first == 0
                || first >= 240
                || (first == 100 && (64..128).contains(&second))
                || (first == 198 && (18..20).contains(&second))
                || (first, second, third) == (192, 0, 0);
            !special
        }
        // Of the global unicast space, without what tunnels to addresses of the other kind.
        IpAddr::V6(address) => {
            let [first, second, ..] = address.segments();
            let tunnel = first == 0x2002 || (first == 0x2001 && second < 0x0200);
            let documentation = (first, second) == (0x2001, 0x0db8);
            first & 0xe000 == 0x2000 && !tunnel && !documentation
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_of_the_internet_are_public() {
        for public in ["93.184.216.34", "8.8.8.8", "2606:2800:220:1::1"] {
            assert!(is_public(public.parse().unwrap()), "{public}");
        }
        for special in [
            "10.0.0.1",
            "127.0.0.1",
            "169.254.169.254",
            "172.16.3.4",
            "192.168.1.1",
            "0.0.0.0",
            "100.64.0.1",
            "198.18.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "::1",
            "::",
            "fe80::1",
            "fd00::1",
            "::ffff:10.0.0.1",
            "64:ff9b::a00:1",
            "2002:a00:1::1",
            "2001:db8::1",
            "ff02::1",
        ] {
            assert!(!is_public(special.parse().unwrap()), "{special}");
        }
    }

    #[tokio::test]
    async fn hosts_of_our_own_networks_are_not_asked() {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let sets = KeySets::new(false).unwrap();
        for host in ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "2130706433"] {
            let uri = format!("http://{host}:{port}/jwks.json");
            assert!(sets.get(&uri, false, Timestamp::UNIX_EPOCH).await.is_none(), "{host}");
        }
        let asked = tokio::time::timeout(Duration::from_millis(50), listener.accept()).await;
        assert!(asked.is_err(), "nobody knocked");
    }
}
