//! Certificates ordered from an authority by ACME (RFC 8555), kept in a folder, and renewed.
//!
//! Every replica uses what is in the folder and answers challenges from it; one of them, the one
//! that holds its lock, orders.

pub mod challenges;
mod folder;
mod http;
mod order;
mod plan;

use std::{collections::BTreeSet, path::Path, sync::Arc, time::Duration};

use domain::route::RouteTable;
use instant_acme::{Account, ExternalAccountKey, NewAccount};
use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;
use runtime::{http::whole, secret};
use rustls::crypto::CryptoProvider;
use tokio::{sync::watch, time::sleep};

use self::{
    challenges::Challenges,
    folder::{Folder, FolderError, Lead},
    http::Http,
    order::OrderError,
    plan::{Attempts, Have, Next, Wanted},
};
use super::{
    certificate::Source,
    config::{AcmeConfig, Challenge, OnDemand},
    files::{self, Files},
    report::Report,
    store::Store,
};

/// An expired certificate that nobody wants is kept this long.
const KEEP_EXPIRED: SignedDuration = SignedDuration::from_hours(30 * 24);

#[derive(Debug, thiserror::Error)]
pub enum AcmeError {
    #[error("tls.acme.terms_of_service_agreed: read the authority's terms, and set it to true")]
    Terms,
    #[error("tls.acme.names: `{0}` is no host name in lower case")]
    Name(String),
    #[error("tls.acme.names: `{0}`: a wildcard cannot be had this way; use files or a Secret")]
    Wildcard(String),
    #[error("tls.acme.challenge: http-01 needs the redirect port; set redirect.listen")]
    NoRedirect,
    #[error("tls.acme.directory_url: an https URL is needed")]
    Directory,
    #[error("tls.acme.external_account.hmac_key_file: it is not base64url")]
    Hmac,
    #[error(transparent)]
    Folder(#[from] FolderError),
    #[error(transparent)]
    Secret(#[from] secret::SecretError),
    #[error(transparent)]
    Client(#[from] runtime::http::ClientError),
}

/// Everything that ordering takes.
pub struct Acme {
    config: AcmeConfig,
    challenge: Challenge,
    look_every: Duration,
    /// The configured names and the system hosts.
    names: BTreeSet<String>,
    folder: Folder,
    files: Arc<Mutex<Files>>,
    challenges: Challenges,
    http: Http,
    external: Option<(String, Vec<u8>)>,
    provider: Arc<CryptoProvider>,
    routes: watch::Receiver<Arc<RouteTable>>,
    store: Store,
    report: Arc<Report>,
    /// Whether there are Secrets, which are listed by and by.
    with_secrets: bool,
    lead: Option<Lead>,
    account: Option<Account>,
}

/// The names of the settings that are ordered in any case.
pub fn names(
    config: &AcmeConfig,
    system_hosts: impl Iterator<Item = String>,
) -> Result<BTreeSet<String>, AcmeError> {
    for name in &config.names {
        if name.starts_with("*.") {
            return Err(AcmeError::Wildcard(name.clone()));
        }
        if !is_host(name) {
            return Err(AcmeError::Name(name.clone()));
        }
    }
    Ok(config.names.iter().cloned().chain(system_hosts.filter(|host| is_host(host))).collect())
}

/// Lower case, so that it is a file name as well.
fn is_host(name: &str) -> bool {
    name.len() <= 253
        && name.contains('.')
        && name.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        })
}

pub struct Parts {
    pub names: BTreeSet<String>,
    pub has_redirect: bool,
    /// How often the folder is looked at: another replica may have put something there.
    pub look_every: Duration,
    pub provider: Arc<CryptoProvider>,
    pub routes: watch::Receiver<Arc<RouteTable>>,
    pub store: Store,
    pub report: Arc<Report>,
    pub with_secrets: bool,
}

impl Acme {
    pub fn new(config: AcmeConfig, parts: Parts) -> Result<Self, AcmeError> {
        if !config.terms_of_service_agreed {
            return Err(AcmeError::Terms);
        }
        if !config.directory_url.starts_with("https://") {
            return Err(AcmeError::Directory);
        }
        let challenge = match (config.challenge, parts.has_redirect) {
            (Some(Challenge::Http01), false) => return Err(AcmeError::NoRedirect),
            (Some(challenge), _) => challenge,
            (None, true) => Challenge::Http01,
            (None, false) => Challenge::TlsAlpn01,
        };
        let external = match &config.external_account {
            Some(account) => {
                use base64::Engine as _;
                let key = secret::read(&account.hmac_key_file)?;
                let key = base64::engine::general_purpose::URL_SAFE_NO_PAD
                    .decode(key.trim_end_matches('='))
                    .map_err(|_| AcmeError::Hmac)?;
                Some((account.key_id.clone(), key))
            }
            None => None,
        };
        let folder = Folder::open(&config.store)?;
        let client = runtime::http::client(config.ca_file.as_deref().map(Path::new))?;
        let Parts { names, look_every, provider, routes, store, report, with_secrets, .. } = parts;
        let files = Files::new(Vec::new(), Some(folder.certificates()), provider.clone());
        Ok(Self {
            challenge,
            look_every,
            names,
            files: Arc::new(Mutex::new(files)),
            challenges: Challenges::new(folder.challenges()),
            folder,
            http: Http::new(client),
            external,
            provider,
            routes,
            store,
            report,
            with_secrets,
            lead: None,
            account: None,
            config,
        })
    }

    pub fn challenges(&self) -> Challenges {
        self.challenges.clone()
    }

    /// Runs until it is dropped.
    pub async fn run(mut self) {
        let mut certificates = self.store.changes();
        loop {
            certificates.mark_unchanged();
            let wait = self.round().await.unwrap_or_else(|error| {
                self.report.faults(Source::Acme, &[whole(&error)]);
                self.look_every
            });
            let routes = async {
                match self.config.on_demand {
                    // Told of many changes at once, and not of each.
                    OnDemand::Routes if self.routes.changed().await.is_ok() => {
                        sleep(Duration::from_secs(1)).await;
                    }
                    _ => std::future::pending().await,
                }
            };
            let others = async {
                if self.lead.is_none() && self.challenge == Challenge::TlsAlpn01 {
                    self.challenges.follow(&self.provider).await;
                }
                std::future::pending().await
            };
            tokio::select! {
                () = sleep(wait) => {}
                () = routes => {}
                // Somebody else's certificates came or went.
                _ = certificates.changed() => {}
                () = others => {}
            }
        }
    }

    /// Reads the folder, and does the one thing that is due. Says when to look again.
    async fn round(&mut self) -> Result<Duration, FolderError> {
        self.look().await;
        if self.lead.is_none() {
            self.lead = self.folder.try_lead()?;
            if self.lead.is_none() {
                self.report.faults(Source::Acme, &[]);
                return Ok(self.look_every);
            }
            tracing::info!("this replica orders certificates");
            if let Err(error) = self.challenges.clear_folder() {
                tracing::warn!(%error, "old answers to ACME challenges could not be removed");
            }
        }
        let now = Timestamp::now();
        let mut attempts = self.folder.attempts()?;
        let wanted = self.wanted();
        let all = self.store.all();
        let others_known = !self.with_secrets || self.store.is_set(Source::Secrets);
        let have = Have::new(&all, now).others_known(others_known);
        // Before the routes are known, nobody can say what is not wanted.
        if self.config.on_demand == OnDemand::Off || self.routes.borrow().is_synced() {
            attempts.retain(&wanted, &have, now);
        }
        let next = plan::next(&wanted, &have, &attempts, now);
        let Next::Order(name) = next else {
            self.report.faults(Source::Acme, &attempts.faults());
            self.tidy(&wanted, now);
            return Ok(self.look_every);
        };
        attempts.begin(&name, &wanted, &have, now);
        self.folder.write_attempts(&attempts)?;
        let ordered = self.order(&name).await;
        let succeeded = ordered.is_ok();
        self.settle(&name, ordered, &mut attempts);
        if succeeded {
            self.look().await;
            let (all, now) = (self.store.all(), Timestamp::now());
            if Have::new(&all, now).is_due(&name, now) {
                let why =
                    "the new certificate would have to be renewed at once; is the clock right?";
                attempts.failed(&name, why.to_owned(), false, rand::random(), now);
            }
        }
        self.folder.write_attempts(&attempts)?;
        self.report.faults(Source::Acme, &attempts.faults());
        Ok(Duration::ZERO)
    }

    /// Takes in what is in the folder.
    pub async fn look(&self) {
        let scan = files::scan(&self.files).await;
        self.report.loaded(Source::Acme, scan.loaded, scan.broken);
        for fault in scan.faults.iter().take(usize::from(scan.broken > 0)) {
            tracing::warn!(fault, "a file of the ACME store cannot be used");
        }
        if scan.changed {
            self.store.set(Source::Acme, scan.certificates, Timestamp::now());
        }
    }

    fn wanted(&self) -> Wanted {
        let on_demand = match self.config.on_demand {
            OnDemand::Off => BTreeSet::new(),
            OnDemand::Routes => {
                let table = self.routes.borrow();
                let hosts = table.iter().map(|route| route.host());
                hosts.filter(|host| is_host(host)).map(str::to_owned).collect()
            }
        };
        let on_demand_per_hour = self.config.on_demand_per_hour as usize;
        Wanted { configured: self.names.clone(), on_demand, on_demand_per_hour }
    }

    async fn order(&mut self, name: &str) -> Result<(), OrderFailure> {
        let account = self.account().await?;
        tracing::info!(name, challenge = ?self.challenge, "ordering a certificate");
        let pem =
            order::order(&account, name, self.challenge, &self.challenges, &self.provider).await?;
        Ok(self.folder.write_certificate(name, &pem)?)
    }

    async fn account(&mut self) -> Result<Account, OrderFailure> {
        if let Some(account) = &self.account {
            return Ok(account.clone());
        }
        let url = &self.config.directory_url;
        let builder = Account::builder_with_http(Box::new(self.http.clone()));
        let account = match self.folder.account(url)? {
            Some(credentials) => {
                builder.from_credentials(credentials).await.map_err(OrderError::from)?
            }
            None => {
                let contacts: Vec<_> = self.config.contacts.iter().map(String::as_str).collect();
                let new = NewAccount {
                    contact: &contacts,
                    terms_of_service_agreed: self.config.terms_of_service_agreed,
                    only_return_existing: false,
                };
                let external = self.external.clone();
                let external = external.map(|(id, key)| ExternalAccountKey::new(id, &key));
                let made = builder.create(&new, url.clone(), external.as_ref()).await;
                let (account, credentials) = made.map_err(OrderError::from)?;
                self.folder.write_account(url, &credentials)?;
                tracing::info!(id = account.id(), "made an account with the authority");
                account
            }
        };
        Ok(self.account.insert(account).clone())
    }

    fn settle(&mut self, name: &str, ordered: Result<(), OrderFailure>, attempts: &mut Attempts) {
        let now = Timestamp::now();
        let retry_after = self.http.take_retry_after();
        let outcome = match ordered {
            Ok(()) => {
                tracing::info!(name, "a certificate was issued");
                attempts.succeeded(name);
                "issued"
            }
            Err(OrderFailure::Order(OrderError::RateLimited { why, .. })) => {
                tracing::warn!(name, why, ?retry_after, "the authority asks for patience");
                attempts.rate_limited(name, why, retry_after, now);
                "rate-limited"
            }
            Err(error) => {
                if matches!(error, OrderFailure::Order(OrderError::NoAccount)) {
                    self.account = None;
                    if let Err(error) = self.folder.forget_account(&self.config.directory_url) {
                        tracing::error!(%error, "the account could not be put aside");
                    }
                }
                if matches!(error, OrderFailure::Order(OrderError::Unreachable(_))) {
                    attempts.pause(now);
                }
                let validation = matches!(error, OrderFailure::Order(OrderError::Invalid(_)));
                let why = whole(&error);
                tracing::warn!(name, error = why, "a certificate could not be ordered");
                attempts.failed(name, why, validation, rand::random(), now);
                "failed"
            }
        };
        self.report.orders.with_label_values(&[outcome]).inc();
    }

    /// Removes what expired long ago and nobody wants.
    fn tidy(&self, wanted: &Wanted, now: Timestamp) {
        for (source, certificate) in self.store.all() {
            let name = &certificate.name;
            let kept = source != Source::Acme
                || wanted.configured.contains(name)
                || wanted.on_demand.contains(name)
                || now.duration_since(certificate.not_after) < KEEP_EXPIRED;
            if !kept && let Err(error) = self.folder.remove_certificate(name) {
                tracing::warn!(%error, "an old certificate could not be removed");
            }
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum OrderFailure {
    #[error(transparent)]
    Order(#[from] OrderError),
    #[error(transparent)]
    Folder(#[from] FolderError),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_can_be_ordered() {
        assert!(is_host("lab--alice.example.org"));
        let long = format!("{}.org", "a".repeat(64));
        for bad in ["", "localhost", "A.org", "a..org", ".org", "a.org.", "a/b.org", "*.org", &long]
        {
            assert!(!is_host(bad), "{bad}");
        }
    }
}
