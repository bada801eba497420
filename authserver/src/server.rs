//! Wires the server together: settings in, a router and a serving loop out.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::Router;
use domain::token::{Expected, KeySet, Verifier};
use jiff::Timestamp;
use runtime::{audit::Audit, service::Context};
use tokio::{
    net::TcpListener,
    sync::watch,
    task::JoinHandle,
    time::{MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    address::Cidr,
    back_channel,
    client::Client,
    config::Config,
    federation::Federation,
    http,
    issuer::{GateHosts, Issuer},
    key_sets::KeySets,
    known_clients::KnownClients,
    limiter::{Limiter, Rate},
    listen,
    master_key::MasterKey,
    metrics::Metrics,
    passkey::RelyingParty,
    secret::Sealer,
    signing::Keys,
    store::{KeyPlan, Refreshes, Standing, Store, StoreError, advance},
    throttle::Throttle,
};

/// How far the clocks of those who check our own tokens here may differ: not at all.
const LEEWAY: Duration = Duration::ZERO;

/// Verified tokens that are remembered.
const VERIFIED: usize = 4096;

/// How often the database is asked whether an operator's command beside us changed the keys.
const FEED_CHECK: Duration = Duration::from_secs(1);

/// The same for revocations, which have to be everywhere within a second.
const REVOCATION_CHECK: Duration = Duration::from_millis(100);

/// How often to see whether a signing key's time is over.
const KEY_CHECK: Duration = Duration::from_secs(60);

/// SSH certificates cannot be called back one by one: a working day and some overtime.
const MIN_CERTIFICATE: Duration = Duration::from_secs(60);
const MAX_CERTIFICATE: Duration = Duration::from_secs(16 * 3600);

/// How often the other replicas are told that this one is there.
const HEARTBEAT: Duration = Duration::from_secs(60);

/// A key that ends too soon is a nuisance, and one that never ends is forgotten.
const MIN_SSH_KEY: Duration = Duration::from_secs(24 * 3600);
const MAX_SSH_KEY: Duration = Duration::from_secs(3653 * 24 * 3600);

const CLEAN_UP: Duration = Duration::from_secs(10 * 60);

/// Tells the time. Given from outside, so that tests can say that a code has expired.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// What every request needs.
pub(crate) struct Server {
    pub issuer: Issuer,
    pub gate: GateHosts,
    /// Where people without another place to go are sent.
    pub portal: String,
    pub audience: String,
    pub access_token_lifetime: Duration,
    pub session_idle: Duration,
    pub session_max: Duration,
    pub personal_token_max: Duration,
    pub trusted_proxies: Vec<Cidr>,
    pub store: Store,
    pub refreshes: Refreshes,
    pub clients: KnownClients,
    pub key_sets: KeySets,
    pub ring: Keys,
    /// Of the keys that are in use here.
    pub key_version: watch::Sender<i64>,
    key_plan: KeyPlan,
    pub verifier: Verifier,
    pub sealer: Sealer,
    pub metrics: Metrics,
    pub audit: Audit,
    pub shutdown: CancellationToken,
    pub ssh_feed: watch::Sender<i64>,
    /// The newest version of the feed of revocations that is known here.
    pub revoked: watch::Sender<i64>,
    pub revocation_epoch: String,
    pub federation: Federation,
    pub passkeys: RelyingParty,
    pub ssh_certificate_lifetime: Duration,
    pub ssh_key_lifetime: Duration,
    throttle: Mutex<Throttle>,
    limits: Mutex<Limits>,
    replica: Replica,
    clock: Clock,
}

/// This run of this server among its replicas, with the clients of its settings.
struct Replica {
    id: String,
    clients: Vec<Client>,
    /// Whether it was said that another replica's settings are newer.
    is_older: AtomicBool,
}

impl Replica {
    fn new(clients: Vec<Client>) -> Self {
        let id = Uuid::new_v4().to_string();
        Self { id, clients, is_older: AtomicBool::new(false) }
    }

    /// Says that it is there, and whose clients hold.
    async fn take_part(
        &self,
        store: &Store,
        starts: bool,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let standing = store.take_part(&self.id, &self.clients, starts, now).await?;
        let is_older = standing == Standing::Older;
        if self.is_older.swap(is_older, Ordering::AcqRel) != is_older {
            if is_older {
                tracing::warn!(
                    "another replica has newer settings of clients, so those of this one are not \
                     applied; to go back to them, stop that replica and start this one again ten \
                     minutes later, or change any client"
                );
            } else {
                tracing::info!("the clients are those of this replica's settings");
            }
        }
        Ok(())
    }
}

/// How often things may be asked that cost us something, and that strangers may ask.
pub(crate) struct Limits {
    /// Devices that begin to wait.
    pub device_starts: Limiter,
    /// Requests that are pushed by clients that prove nothing.
    pub pushes: Limiter,
    /// Codes of devices that are tried, by people who are signed in.
    pub device_codes: Limiter,
    /// Sign-ins that begin at another provider: each is remembered for a while.
    pub upstream_starts: Limiter,
    /// Certificates, by person.
    pub ssh_certificates: Limiter,
}

impl Default for Limits {
    fn default() -> Self {
        let rate = |burst, period| Rate { burst, period };
        Self {
            device_starts: Limiter::new(rate(10, 6_000), rate(200, 50)),
            pushes: Limiter::new(rate(60, 1_000), rate(1_000, 20)),
            device_codes: Limiter::new(rate(10, 30_000), rate(200, 200)),
            upstream_starts: Limiter::new(rate(60, 1_000), rate(1_000, 20)),
            ssh_certificates: Limiter::new(rate(20, 30_000), rate(1_000, 20)),
        }
    }
}

pub(crate) type App = Arc<Server>;

impl Server {
    pub fn now(&self) -> Timestamp {
        (self.clock)()
    }

    pub fn throttle(&self) -> MutexGuard<'_, Throttle> {
        // A count that a panic left half-made is still a count.
        self.throttle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn limits(&self) -> MutexGuard<'_, Limits> {
        self.limits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells those who wait for the feed what version it is now.
    pub async fn check_feed(&self) -> Result<(), StoreError> {
        let version = self.store.ssh_feed_version().await?;
        self.ssh_feed.send_if_modified(|known| std::mem::replace(known, version) != version);
        self.clients.check().await?;
        self.check_keys().await
    }

    /// Takes over signing keys that another replica or an operator has made or removed, and secrets
    /// that were replaced with them: all, or none until the next look.
    async fn check_keys(&self) -> Result<(), StoreError> {
        let version = self.store.key_version().await?;
        if *self.key_version.borrow() != version {
            let ring = self.store.key_ring(self.now()).await?;
            let sealer = self.store.sealer().await?;
            self.store.check_refresh_keys().await?;
            self.sealer.replace(sealer);
            self.metrics.count_keys(ring.len());
            if let Ok(keys) = KeySet::from_json(ring.jwks().as_bytes()) {
                self.verifier.set_keys(keys);
            }
            self.ring.replace(ring);
            self.key_version.send_replace(version);
        }
        Ok(())
    }

    async fn check_revocations(&self) -> Result<(), StoreError> {
        advance(&self.revoked, self.store.revocation_version().await?);
        Ok(())
    }
}

/// The server before it listens.
pub struct Authserver {
    app: App,
    context: Context,
}

impl Authserver {
    /// Opens the database and reads the clients' secrets.
    pub async fn open(config: &Config, context: Context, clock: Clock) -> anyhow::Result<Self> {
        let clients = Client::from_config(config)?;
        let gate = GateHosts::new(&config.issuer, &config.base_domain)?;
        anyhow::ensure!(
            (MIN_CERTIFICATE..=MAX_CERTIFICATE).contains(&config.ssh_certificate_lifetime),
            "ssh_certificate_lifetime must be between one minute and 16 hours"
        );
        anyhow::ensure!(
            (MIN_SSH_KEY..=MAX_SSH_KEY).contains(&config.ssh_key_lifetime),
            "ssh_key_lifetime must be between one day and ten years"
        );
        let key_plan = KeyPlan {
            lifetime: config.signing_key_lifetime,
            notice: config.signing_key_notice,
            longest_token: config.access_token_lifetime,
        };
        let longest = config.personal_token_max.max(config.access_token_lifetime);
        key_plan.check(longest)?;
        let federation = Federation::new(&config.providers, config.local_sign_in, &config.issuer)?;
        if config.create_master_key
            && let (Some(file), None) = (&config.master_key_file, &config.master_key)
        {
            MasterKey::from_file_or_new(file)?;
        }
        let (database, master_keys) = config.storage()?;
        let store = Store::open_with(&database, master_keys).await?;
        key_plan.warn(longest, store.keys_of_longer_tokens(longest, clock()).await?);
        let replica = Replica::new(clients);
        replica.take_part(&store, true, clock()).await?;
        // Before the keys: a change in between is seen later.
        let key_version = store.key_version().await?;
        let ring = store.key_ring(clock()).await?;
        let expected = Expected {
            issuer: config.issuer.as_str().to_owned(),
            audience: config.audience.clone(),
            leeway: LEEWAY,
        };
        let verifier = Verifier::new(expected, VERIFIED);
        verifier.set_keys(KeySet::from_json(ring.jwks().as_bytes())?);
        // Made now, and read now, so that nobody starts who could not use them.
        store.ssh_authority().await?;
        store.check_refresh_keys().await?;
        let version = store.ssh_feed_version().await?;
        let revoked = watch::Sender::new(store.revocation_version().await?);
        let revocation_epoch = store.revocation_epoch().await?;
        let metrics = Metrics::register(&context.registry)?;
        metrics.count_keys(ring.len());
        let server = Server {
            portal: gate.start_page("portal"),
            issuer: config.issuer.clone(),
            gate,
            audience: config.audience.clone(),
            access_token_lifetime: config.access_token_lifetime,
            session_idle: config.session_idle,
            session_max: config.session_max,
            personal_token_max: config.personal_token_max,
            trusted_proxies: config.trusted_proxies.clone(),
            sealer: store.sealer().await?,
            refreshes: Refreshes::start(store.clone()),
            key_sets: KeySets::new(config.private_key_sets)?,
            clients: KnownClients::read(store.clone()).await?,
            store,
            ring: Keys::new(ring, clock.clone()),
            key_version: watch::Sender::new(key_version),
            key_plan,
            verifier,
            metrics,
            audit: context.audit.clone(),
            shutdown: context.shutdown.clone(),
            ssh_feed: watch::Sender::new(version),
            revoked,
            revocation_epoch,
            federation,
            passkeys: RelyingParty::new(&config.issuer)?,
            ssh_certificate_lifetime: config.ssh_certificate_lifetime,
            ssh_key_lifetime: config.ssh_key_lifetime,
            throttle: Mutex::default(),
            limits: Mutex::default(),
            replica,
            clock,
        };
        Ok(Self { app: Arc::new(server), context })
    }

    /// Every endpoint. Needs the peer's address as `ConnectInfo<SocketAddr>`.
    pub fn router(&self) -> Router {
        http::router(self.app.clone())
    }

    /// Serves until the shutdown, and then as long as requests run, up to ten seconds.
    pub async fn serve(self, listener: TcpListener) {
        let upkeep = tokio::spawn(keep_up(self.app.clone(), self.context.clone()));
        let listening = tokio::spawn(listen_for_revocations(self.app.clone()));
        let telling = self.tell_of_logout();
        listen::serve(listener, self.router(), self.context.shutdown.clone()).await;
        upkeep.abort();
        listening.abort();
        if let Some(telling) = telling {
            telling.abort();
        }
        self.app.store.close().await;
    }

    fn tell_of_logout(&self) -> Option<JoinHandle<()>> {
        match runtime::http::client(None) {
            Ok(http) => Some(tokio::spawn(back_channel::run(self.app.clone(), http))),
            Err(error) => {
                tracing::error!(%error, "clients will not be told of sessions that end");
                None
            }
        }
    }
}

/// Serves the provider on the listener, as plain HTTP behind the gateways, until the shutdown.
pub async fn serve(config: Config, listener: TcpListener, context: Context) -> anyhow::Result<()> {
    let clock: Clock = Arc::new(Timestamp::now);
    Authserver::open(&config, context, clock).await?.serve(listener).await;
    Ok(())
}

async fn clean(app: &Server) -> Result<(), StoreError> {
    app.store.clean_up(app.now(), app.session_idle).await?;
    app.store.clean_up_flows(app.now()).await
}

/// Hears of other replicas' revocations at once, where the database can tell of them.
async fn listen_for_revocations(app: App) {
    loop {
        let ended = app.store.listen_for_revocations(&app.revoked).await;
        if let Err(error) = ended {
            tracing::warn!(%error, "the database's notifications broke off; listening again");
        }
        tokio::time::sleep(FEED_CHECK).await;
    }
}

/// Follows the feed's version, reports health, deletes what is over.
async fn keep_up(app: App, context: Context) {
    let mut feed = interval(FEED_CHECK);
    let mut clean_up = interval(CLEAN_UP);
    let mut keys = interval(KEY_CHECK);
    let mut heartbeat = interval(HEARTBEAT);
    // PostgreSQL tells of them; asking is for when that connection is broken.
    let tells = app.store.tells_of_revocations();
    let mut revocations = interval(if tells { FEED_CHECK } else { REVOCATION_CHECK });
    revocations.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let done = tokio::select! {
            () = context.shutdown.cancelled() => return,
            _ = feed.tick() => app.check_feed().await,
            _ = revocations.tick() => app.check_revocations().await,
            _ = clean_up.tick() => clean(&app).await,
            _ = heartbeat.tick() => app.replica.take_part(&app.store, false, app.now()).await,
            _ = keys.tick() => app.store.tend_keys(app.key_plan, app.now()).await,
        };
        let state = done.map_err(|error| {
            tracing::warn!(%error, "the database does not answer");
            "the database does not answer".to_owned()
        });
        context.health.set("database", state);
    }
}
