//! All certificates there are, and which one a handshake gets: a snapshot, read without a lock.

use std::{borrow::Cow, cmp::Reverse, collections::HashMap, fmt, sync::Arc};

use arc_swap::ArcSwap;
use jiff::Timestamp;
use parking_lot::Mutex;
use rustls::{
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use tokio::sync::watch;

use super::{
    acme::challenges::{ACME_TLS, Challenges},
    certificate::{Certificate, Source, parent_of},
};

/// The certificates by source. Cheap to clone: all clones are one.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    /// For those who change it.
    sources: Mutex<HashMap<Source, Vec<Arc<Certificate>>>>,
    snapshot: ArcSwap<Snapshot>,
    changed: watch::Sender<()>,
}

/// What handshakes look at.
#[derive(Debug, Default)]
pub struct Snapshot {
    exact: HashMap<String, Arc<CertifiedKey>>,
    /// By what follows the asterisk's dot.
    wildcard: HashMap<String, Arc<CertifiedKey>>,
    default: Option<Arc<CertifiedKey>>,
}

impl Store {
    pub fn new() -> Self {
        let inner = Inner {
            sources: Mutex::default(),
            snapshot: ArcSwap::default(),
            changed: watch::channel(()).0,
        };
        Self { inner: Arc::new(inner) }
    }

    /// Replaces all that came from one source.
    pub fn set(&self, source: Source, certificates: Vec<Arc<Certificate>>, now: Timestamp) {
        let mut sources = self.inner.sources.lock();
        sources.insert(source, certificates);
        self.publish(&sources, now);
    }

    /// Whether anything was said of that source, be it that there is none.
    pub fn is_set(&self, source: Source) -> bool {
        self.inner.sources.lock().contains_key(&source)
    }

    /// Chooses anew, since some may have expired or become good by the clock alone.
    pub fn refresh(&self, now: Timestamp) {
        self.publish(&self.inner.sources.lock(), now);
    }

    fn publish(&self, sources: &HashMap<Source, Vec<Arc<Certificate>>>, now: Timestamp) {
        self.inner.snapshot.store(Arc::new(Snapshot::new(sources, now)));
        self.inner.changed.send_replace(());
    }

    /// All certificates with their sources, in the order in which these give them.
    pub fn all(&self) -> Vec<(Source, Arc<Certificate>)> {
        all(&self.inner.sources.lock())
    }

    /// Told of every change.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.inner.changed.subscribe()
    }

    /// What rustls asks. `challenges` are answered besides.
    pub fn resolver(&self, challenges: Option<Challenges>) -> Arc<dyn ResolvesServerCert> {
        Arc::new(Resolver { store: self.clone(), challenges })
    }
}

fn all(sources: &HashMap<Source, Vec<Arc<Certificate>>>) -> Vec<(Source, Arc<Certificate>)> {
    let of = |source| sources.get(&source).into_iter().flatten().cloned();
    Source::ALL.into_iter().flat_map(|source| of(source).map(move |one| (source, one))).collect()
}

impl Snapshot {
    /// For a name the ones that are good now come first, then it goes by source, then by which was
    /// issued last. The default is the first that is good, in the order in which they are given.
    fn new(sources: &HashMap<Source, Vec<Arc<Certificate>>>, now: Timestamp) -> Self {
        let mut all = all(sources);
        let default = all.iter().find(|(_, one)| one.is_current(now)).or(all.first());
        let default = default.map(|(_, one)| one.key.clone());
        let mut snapshot = Self { default, ..Self::default() };
        all.sort_by_key(|(source, one)| (!one.is_current(now), *source, Reverse(one.not_before)));
        for (_, certificate) in &all {
            for host in &certificate.hosts {
                let (map, name) = match host.strip_prefix("*.") {
                    Some(parent) => (&mut snapshot.wildcard, parent),
                    None => (&mut snapshot.exact, host.as_str()),
                };
                if !map.contains_key(name) {
                    map.insert(name.to_owned(), certificate.key.clone());
                }
            }
        }
        snapshot
    }

    /// Exact name, then wildcard, then the default.
    pub fn choose(&self, server_name: Option<&str>) -> Option<Arc<CertifiedKey>> {
        let name = server_name.map(|name| match name.bytes().any(|b| b.is_ascii_uppercase()) {
            true => Cow::Owned(name.to_ascii_lowercase()),
            false => Cow::Borrowed(name),
        });
        let named = name.as_deref().and_then(|name| {
            let wildcard = || parent_of(name).and_then(|parent| self.wildcard.get(parent));
            self.exact.get(name).or_else(wildcard)
        });
        named.or(self.default.as_ref()).cloned()
    }
}

struct Resolver {
    store: Store,
    challenges: Option<Challenges>,
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        if let Some(mut offered) = hello.alpn()
            && offered.next() == Some(ACME_TLS)
            && offered.next().is_none()
        {
            // An authority that validates, or nobody for us.
            return self.challenges.as_ref()?.certificate(hello.server_name()?);
        }
        self.store.inner.snapshot.load().choose(hello.server_name())
    }
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resolver").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::{super::certificate::tests::certificate, *};

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    /// Which one of the certificates was chosen.
    fn chosen(store: &Store, name: Option<&str>) -> Option<String> {
        let key = store.inner.snapshot.load().choose(name)?;
        let all = store.all();
        let found = all.iter().find(|(_, one)| Arc::ptr_eq(&one.key, &key));
        found.map(|(_, certificate)| certificate.name.clone())
    }

    #[test]
    fn exact_then_wildcard_then_default() {
        let store = Store::new();
        assert_eq!(chosen(&store, Some("a.example.org")), None);
        let files = vec![
            certificate("default", &["default.example.org"], 0, 100),
            certificate("wild", &["*.example.org"], 10, 100),
            certificate("exact", &["a.example.org"], 10, 100),
        ];
        store.set(Source::Files, files, at(50));
        for (name, expected) in [
            (Some("a.example.org"), "exact"),
            (Some("A.Example.ORG"), "exact"),
            (Some("b.example.org"), "wild"),
            (Some("c.b.example.org"), "default"),
            (Some("example.org"), "default"),
            (Some("evil.test"), "default"),
            (None, "default"),
        ] {
            assert_eq!(chosen(&store, name).as_deref(), Some(expected), "{name:?}");
        }
    }

    #[test]
    fn the_current_one_wins_then_the_source_then_the_newest() {
        let store = Store::new();
        let host = "a.example.org";
        store.set(Source::Files, vec![certificate("file", &[host], 0, 100)], at(10));
        let secrets = vec![
            certificate("older secret", &[host], 5, 300),
            certificate("newer secret", &[host], 20, 300),
        ];
        store.set(Source::Secrets, secrets, at(50));
        assert_eq!(chosen(&store, Some(host)).unwrap(), "file");
        store.refresh(at(100));
        assert_eq!(chosen(&store, Some(host)).unwrap(), "newer secret");
        store.refresh(at(15));
        store.set(Source::Files, Vec::new(), at(15));
        assert_eq!(chosen(&store, Some(host)).unwrap(), "older secret");
        // An expired certificate is better than none: the client says what is wrong with it.
        store.refresh(at(400));
        assert_eq!(chosen(&store, Some(host)).unwrap(), "newer secret");
    }
}
