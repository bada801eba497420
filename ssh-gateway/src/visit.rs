//! A person on a connection, and the workload that the SSH user name names.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};

use domain::{
    access::{Grant, Target, authorize},
    identity::Identity,
    route::RouteTable,
    token::Verifier,
    wake::WakeRequest,
};
use jiff::Timestamp;
use runtime::{
    audit::{Audit, Event, Outcome},
    jwks::JwksFollower,
    revocations::Revocations,
};
use russh::{
    ChannelId, client,
    keys::{PrivateKey, ssh_key::Fingerprint},
    server,
};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::{
    auth::Proven,
    budget::{Budget, Budgets},
    config::Config,
    link::{Agent, Link},
    metrics::Metrics,
    queue::{self, Backlog},
    refusal::{Refusal, Shown},
    registered::Registered,
};

/// How long a gateway that has just started may take to learn what exists.
const SYNC: Duration = Duration::from_secs(10);

/// What all connections share.
pub struct Gate {
    pub config: Config,
    pub routes: watch::Receiver<Arc<RouteTable>>,
    pub wake: mpsc::Sender<WakeRequest>,
    pub verifier: Arc<Verifier>,
    pub jwks: JwksFollower,
    pub revocations: Revocations,
    pub registered: watch::Receiver<Arc<Registered>>,
    pub client_key: Arc<PrivateKey>,
    pub client_config: Arc<client::Config>,
    pub metrics: Metrics,
    pub budgets: Budgets,
    pub audit: Audit,
}

/// The two ends of a client's connection, as the gateway sees them.
#[derive(Debug, Clone, Copy)]
pub struct Ends {
    pub client: SocketAddr,
    pub gateway: SocketAddr,
}

impl Ends {
    pub fn new(client: SocketAddr, gateway: SocketAddr) -> Self {
        let plain = |end: SocketAddr| SocketAddr::new(end.ip().to_canonical(), end.port());
        Self { client: plain(client), gateway: plain(gateway) }
    }

    /// As `ssh(1)` describes them: `SSH_CLIENT` is for programs that are older than the other one.
    pub fn variables(self) -> [(String, String); 2] {
        let Self { client, gateway } = self;
        let (from, port) = (client.ip(), client.port());
        let (here, there) = (gateway.port(), gateway.ip());
        let values = [format!("{from} {port} {here}"), format!("{from} {port} {there} {here}")];
        let [first, second] = domain::variables::CONNECTION.map(str::to_owned);
        let [old, new] = values;
        [(first, old), (second, new)]
    }
}

/// What a client asked to have forwarded to it, by which it finds it again.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Forwarding {
    Tcp { address: String, port: u32 },
    Unix { path: String },
}

/// One signed-in connection.
pub struct Visit {
    pub gate: Arc<Gate>,
    pub identity: Arc<Identity>,
    /// Whose certificate proved it.
    authority: Option<Fingerprint>,
    /// As the client sent it; matched exactly or not at all.
    pub ssh_user: String,
    pub ends: Ends,
    /// To the client.
    pub handle: server::Handle,
    pub link: Link,
    /// Remote forwardings by what the client asked for, with the agent that listens.
    pub forwardings: Mutex<HashMap<Forwarding, Arc<Agent>>>,
    /// Places for channels.
    pub channels: Arc<Semaphore>,
    /// For what waits from the client, and for what waits to it.
    pub up: Budget,
    pub down: Budget,
    /// What waits from the client, by channel.
    pub unread: Mutex<HashMap<ChannelId, Backlog>>,
    /// The right to be here is gone.
    pub lost: CancellationToken,
    /// The connection has ended.
    pub ended: CancellationToken,
    /// The first proof; later ones renew it, so that a name never comes to mean something else.
    first: OnceLock<Grant>,
}

impl Visit {
    pub fn new(
        gate: Arc<Gate>,
        proven: Proven,
        ssh_user: String,
        ends: Ends,
        handle: server::Handle,
        ended: CancellationToken,
    ) -> Self {
        let Proven { identity, authority } = proven;
        let channels = Arc::new(Semaphore::new(gate.config.limits.channels));
        let [up, down] = gate.budgets.connection(&identity.subject);
        Self {
            up,
            down,
            unread: Mutex::default(),
            gate,
            identity,
            authority,
            ssh_user,
            ends,
            handle,
            link: Link::default(),
            forwardings: Mutex::default(),
            channels,
            lost: CancellationToken::new(),
            ended,
            first: OnceLock::new(),
        }
    }

    /// A queue for what comes from the client on that channel.
    pub fn inbound(&self, channel: ChannelId) -> (queue::Sender, queue::Receiver) {
        let (sender, receiver) = queue::queue(self.up.clone(), None, queue::Reserved::default());
        let mut unread = self.unread.lock().unwrap_or_else(PoisonError::into_inner);
        unread.retain(|_, backlog| !backlog.is_gone());
        unread.insert(channel, sender.backlog());
        (sender, receiver)
    }

    /// The proof as of now, without waiting. The error says which of the two refusals it is.
    pub fn grant(&self) -> Result<Grant, Refusal> {
        let table = self.gate.routes.borrow().clone();
        if let Some(first) = self.first.get() {
            let lost = || Refusal::Lost(Shown::plain(first.workload().name.as_str()));
            return first.renew(&table).ok_or_else(lost);
        }
        if !table.is_synced() {
            return Err(Refusal::NotReady);
        }
        match authorize(&table, &self.identity, Target::Ssh(&self.ssh_user)) {
            Some(grant) => Ok(self.first.get_or_init(|| grant).clone()),
            None => Err(Refusal::Unknown(Shown::quoted(&self.ssh_user))),
        }
    }

    /// The proof, once it is known what exists.
    pub async fn known(&self) -> Result<Grant, Refusal> {
        let mut routes = self.gate.routes.clone();
        let synced = routes.wait_for(|table| table.is_synced());
        let _ = tokio::time::timeout(SYNC, synced).await;
        self.grant()
    }

    /// Watches what the right to be here rests on, until it is gone.
    pub async fn supervise(&self) {
        let mut routes = self.gate.routes.clone();
        let mut registered = self.gate.registered.clone();
        let mut withdrawn = self.gate.revocations.changes();
        // Withdrawn between the sign-in and now: no change will tell.
        let mut unseen = self.gate.revocations.is_revoked(&self.identity);
        loop {
            let changed = tokio::select! {
                changed = routes.changed() => changed,
                changed = registered.changed() => changed,
                changed = withdrawn.changed() => changed,
                () = std::future::ready(()), if std::mem::take(&mut unseen) => Ok(()),
            };
            if changed.is_err() {
                // The source is gone, as at a shutdown. Nothing new is learned from that.
                return std::future::pending().await;
            }
            let right = self.first.get().is_none() || self.grant().is_ok();
            let proven = registered.borrow().still_proves(&self.identity, self.authority.as_ref())
                && !self.gate.revocations.is_revoked(&self.identity);
            if !(right && proven) {
                self.record("refused", Outcome::Denied, Some("the right was withdrawn"));
                self.lost.cancel();
                return;
            }
        }
    }

    /// What to say when the right is gone.
    pub fn loss(&self) -> Refusal {
        let name = self.first.get().map_or(self.ssh_user.as_str(), |g| g.workload().name.as_str());
        Refusal::Lost(Shown::plain(name))
    }

    pub fn record(&self, did: &str, outcome: Outcome, detail: Option<&str>) {
        let to = self.first.get().map(|grant| grant.workload().to_string());
        self.gate.audit.record(
            Timestamp::now(),
            Event {
                who: Some(self.identity.user.as_str()),
                did,
                to: to.as_deref(),
                from: Some(self.ends.client.ip()),
                credential: Some(&self.identity.credential),
                outcome,
                detail,
            },
        );
    }
}
