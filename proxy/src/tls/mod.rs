//! TLS towards clients: where certificates come from, which one a handshake gets, how it is spoken.

pub mod acme;
mod certificate;
pub mod config;
mod files;
mod profile;
mod report;
mod store;

use std::{
    collections::{BTreeSet, HashMap},
    io,
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use domain::{
    certificate::{Pair, Pairs},
    route::RouteTable,
};
use http::HeaderValue;
use jiff::Timestamp;
use parking_lot::Mutex;
use runtime::service::Context;
use rustls::{ServerConnection, crypto::CryptoProvider};
use tokio::{
    net::TcpStream,
    sync::watch,
    task::JoinSet,
    time::{MissedTickBehavior, interval},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use self::{
    acme::{
        Acme,
        challenges::{ACME_TLS, Challenges},
    },
    certificate::{Certificate, Source},
    config::TlsConfig,
    files::Files,
    report::Report,
    store::Store,
};

/// How often it is asked which certificates have expired.
const REFRESH: Duration = Duration::from_secs(60);

/// How much waits, encrypted, for a client that does not take it: two records. An idle connection
/// has none of it, and four kilobytes for what it may send.
const SEND_BUFFER: usize = 32 * 1024;

/// What the service is given for TLS.
pub struct Tls {
    pub certificates: Certificates,
    /// Plain HTTP that sends everybody to HTTPS, and answers an authority's challenges.
    pub redirect: Option<std::net::TcpListener>,
}

pub enum Certificates {
    /// A resolver of somebody else's.
    Ready(Arc<rustls::ServerConfig>),
    Managed {
        config: Box<TlsConfig>,
        /// Certificates that somebody keeps elsewhere, and how they change.
        elsewhere: Option<watch::Receiver<Arc<Pairs>>>,
    },
}

impl From<Arc<rustls::ServerConfig>> for Tls {
    fn from(config: Arc<rustls::ServerConfig>) -> Self {
        Self { certificates: Certificates::Ready(config), redirect: None }
    }
}

/// TLS that runs: certificates are kept fresh until this is dropped.
pub struct Running {
    pub acceptor: Acceptor,
    pub challenges: Option<Challenges>,
    /// The field's value for answers over TLS.
    pub hsts: Option<HeaderValue>,
    _tasks: JoinSet<()>,
}

/// Performs handshakes. Cheap to clone.
#[derive(Clone)]
pub struct Acceptor(TlsAcceptor);

impl Acceptor {
    /// An authority that validates gets what it wants, and is nobody to serve: for it this is an
    /// error.
    pub async fn accept(&self, tcp: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let limit = |connection: &mut ServerConnection| {
            connection.set_buffer_limit(Some(SEND_BUFFER));
        };
        let stream = self.0.accept_with(tcp, limit).await?;
        if stream.get_ref().1.alpn_protocol() == Some(ACME_TLS) {
            return Err(io::Error::other("a challenge of an ACME authority was answered"));
        }
        Ok(stream)
    }
}

/// Makes TLS ready. Faults of files that are named in the settings end it here; later ones are
/// reported.
pub async fn start(
    certificates: Certificates,
    has_redirect: bool,
    system_hosts: impl Iterator<Item = String>,
    routes: watch::Receiver<Arc<RouteTable>>,
    ctx: &Context,
) -> anyhow::Result<Running> {
    let (config, elsewhere) = match certificates {
        Certificates::Ready(config) => {
            let mut config = (*config).clone();
            profile::set_protocols(&mut config, false);
            let acceptor = Acceptor(TlsAcceptor::from(Arc::new(config)));
            let tasks = JoinSet::new();
            return Ok(Running { acceptor, challenges: None, hsts: None, _tasks: tasks });
        }
        Certificates::Managed { config, elsewhere } => (config, elsewhere),
    };
    let provider = Arc::new(profile::provider());
    let names = match &config.acme {
        Some(acme) => acme::names(acme, system_hosts)?,
        None => BTreeSet::new(),
    };
    let report = Report::new(&ctx.registry, ctx.health.clone(), names.clone())
        .context("metrics cannot be registered")?;
    let report = Arc::new(report);
    let store = Store::new();
    let mut tasks = JoinSet::new();

    let files = start_files(&config, &provider, &store, &report).await?;
    if let Some(files) = files {
        tasks.spawn(follow_files(files, config.look_every, store.clone(), report.clone()));
    }
    let acme = match config.acme.clone() {
        Some(acme) => {
            let parts = acme::Parts {
                names,
                has_redirect,
                look_every: config.look_every,
                provider: provider.clone(),
                routes,
                store: store.clone(),
                report: report.clone(),
                with_secrets: elsewhere.is_some(),
            };
            let acme = Acme::new(acme, parts)?;
            acme.look().await;
            Some(acme)
        }
        None => None,
    };
    if elsewhere.is_none() && acme.is_none() && store.all().is_empty() {
        anyhow::bail!(
            "there is no certificate: set tls.certificate_file and tls.key_file, tls.directory, \
             tls_secrets or tls.acme"
        );
    }
    let challenges = acme.as_ref().map(Acme::challenges);
    let resolver = store.resolver(challenges.clone());
    let server = profile::server_config(config.profile, resolver, challenges.is_some())?;
    let synced = elsewhere.clone();
    if let Some(pairs) = elsewhere {
        tasks.spawn(follow_pairs(pairs, store.clone(), report.clone(), provider));
    }
    tasks.spawn(follow_expiries(store, report, synced, acme.is_some()));
    if let Some(acme) = acme {
        tasks.spawn(acme.run());
    }
    let hsts = config.hsts.as_secs();
    let hsts = (hsts > 0).then(|| HeaderValue::from_str(&format!("max-age={hsts}")));
    Ok(Running {
        acceptor: Acceptor(TlsAcceptor::from(Arc::new(server))),
        challenges,
        hsts: hsts.transpose().context("tls.hsts")?,
        _tasks: tasks,
    })
}

/// The files' certificates, used from the start.
async fn start_files(
    config: &TlsConfig,
    provider: &Arc<CryptoProvider>,
    store: &Store,
    report: &Report,
) -> anyhow::Result<Option<Arc<Mutex<Files>>>> {
    let mut listed = Vec::new();
    match (&config.certificate_file, &config.key_file) {
        (Some(certificate_file), Some(key_file)) => listed.push(config::CertificateFiles {
            certificate_file: certificate_file.clone(),
            key_file: key_file.clone(),
        }),
        (None, None) => {}
        _ => anyhow::bail!("tls.certificate_file and tls.key_file belong together: set both"),
    }
    listed.extend(config.certificates.iter().cloned());
    if listed.is_empty() && config.directory.is_none() {
        return Ok(None);
    }
    let files = Files::new(listed, config.directory.clone(), provider.clone());
    let files = Arc::new(Mutex::new(files));
    let scan = files::scan(&files).await;
    if let Some(fault) = files.lock().first_listed_fault() {
        anyhow::bail!("a certificate of the settings cannot be used: {fault}");
    }
    report.loaded(Source::Files, scan.loaded, scan.broken);
    report.faults(Source::Files, &scan.faults);
    store.set(Source::Files, scan.certificates, Timestamp::now());
    Ok(Some(files))
}

/// By asking again and again: of folders that Kubernetes mounts no watcher tells reliably, and a
/// certificate is changed weeks before it ends.
async fn follow_files(
    files: Arc<Mutex<Files>>,
    every: Duration,
    store: Store,
    report: Arc<Report>,
) {
    let mut ticks = interval(every.max(Duration::from_millis(1)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let scan = files::scan(&files).await;
        report.loaded(Source::Files, scan.loaded, scan.broken);
        report.faults(Source::Files, &scan.faults);
        if scan.changed {
            tracing::info!("certificate files have changed; new connections get the new ones");
            store.set(Source::Files, scan.certificates, Timestamp::now());
        }
    }
}

/// Takes in what is kept elsewhere. A pair that is gone is gone; one that cannot be used leaves the
/// one before in use.
async fn follow_pairs(
    mut pairs: watch::Receiver<Arc<Pairs>>,
    store: Store,
    report: Arc<Report>,
    provider: Arc<CryptoProvider>,
) {
    let mut known: Vec<(Pair, Option<Arc<Certificate>>, Option<String>)> = Vec::new();
    loop {
        let all = pairs.borrow_and_update().clone();
        if all.synced {
            let mut next = Vec::with_capacity(all.pairs.len());
            let by_name: HashMap<_, _> =
                known.iter().map(|one| (one.0.name.clone(), one)).collect();
            let (mut loaded, mut broken) = (0, 0);
            for pair in &all.pairs {
                let before = by_name.get(&pair.name).copied();
                if let Some(same) = before.filter(|(known, ..)| known == pair) {
                    next.push(same.clone());
                    continue;
                }
                let (name, chain, key) = (pair.name.clone(), &pair.chain, &pair.key);
                let (certificate, fault) = match Certificate::from_pem(name, chain, key, &provider)
                {
                    Ok(certificate) => {
                        loaded += 1;
                        (Some(Arc::new(certificate)), None)
                    }
                    Err(error) => {
                        broken += 1;
                        let old = before.and_then(|(_, certificate, _)| certificate.clone());
                        (old, Some(format!("{}: {error}", pair.name)))
                    }
                };
                next.push((pair.clone(), certificate, fault));
            }
            drop(by_name);
            known = next;
            report.loaded(Source::Secrets, loaded, broken);
            let faults: Vec<_> = known.iter().filter_map(|(.., fault)| fault.clone()).collect();
            report.faults(Source::Secrets, &faults);
            let certificates = known.iter().filter_map(|(_, certificate, _)| certificate.clone());
            store.set(Source::Secrets, certificates.collect(), Timestamp::now());
        }
        if pairs.changed().await.is_err() {
            return;
        }
    }
}

/// Tells of what there is and when it ends, at each change and by and by.
async fn follow_expiries(
    store: Store,
    report: Arc<Report>,
    mut pairs: Option<watch::Receiver<Arc<Pairs>>>,
    acme: bool,
) {
    let mut changes = store.changes();
    loop {
        let now = Timestamp::now();
        changes.borrow_and_update();
        report.expiries(&store, now);
        let synced = pairs.as_ref().is_none_or(|pairs| pairs.borrow().synced);
        report.readiness(&store, synced, acme);
        // That there are no Secrets changes nothing but that they are known.
        let listed = async {
            if let Some(pairs) = pairs.as_mut().filter(|_| !synced)
                && pairs.changed().await.is_ok()
            {
                return;
            }
            std::future::pending().await
        };
        tokio::select! {
            _ = changes.changed() => {}
            () = listed => {}
            () = tokio::time::sleep(REFRESH) => store.refresh(Timestamp::now()),
        }
    }
}

#[cfg(test)]
mod tests {
    use prometheus::Registry;
    use runtime::{audit::Audit, health::Health};
    use tokio_util::sync::CancellationToken;

    use super::*;

    async fn refused(toml: serde_json::Value) -> String {
        let ctx = Context {
            registry: Registry::new(),
            audit: Audit::to_stdout("test"),
            health: Health::new(),
            shutdown: CancellationToken::new(),
        };
        let config = serde_json::from_value(toml).unwrap();
        let certificates = Certificates::Managed { config, elsewhere: None };
        let routes = watch::channel(Arc::new(RouteTable::default())).1;
        let started = start(certificates, false, std::iter::empty(), routes, &ctx).await;
        started.err().map(|error| format!("{error:#}")).unwrap_or_default()
    }

    #[tokio::test]
    async fn settings_that_cannot_work_are_told() {
        use serde_json::json;
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let folder = tempfile::tempdir().unwrap();
        let acme = |more: serde_json::Value| {
            let mut acme = json!({
                "directory_url": "https://acme.test/dir", "terms_of_service_agreed": true,
                "store": folder.path(),
            });
            for (key, value) in more.as_object().unwrap() {
                acme[key] = value.clone();
            }
            json!({"acme": acme})
        };
        for (settings, expected) in [
            (json!({}), "there is no certificate: set tls.certificate_file"),
            (json!({"key_file": "/nowhere"}), "belong together: set both"),
            (
                json!({"certificate_file": "/nowhere/a.crt", "key_file": "/nowhere/a.key"}),
                "cannot be used: /nowhere/a.crt: No such file",
            ),
            (json!({"directory": folder.path()}), "there is no certificate"),
            (acme(json!({"terms_of_service_agreed": false})), "read the authority's terms"),
            (acme(json!({"challenge": "http-01"})), "set redirect.listen"),
            (acme(json!({"names": ["*.example.org"]})), "a wildcard cannot be had this way"),
            (acme(json!({"names": ["Example.org"]})), "`Example.org` is no host name"),
            (acme(json!({"directory_url": "http://acme.test/dir"})), "an https URL is needed"),
        ] {
            let error = refused(settings).await;
            assert!(error.contains(expected), "{error}");
        }
    }
}
