//! Our own accept loop: TLS, limits, deadlines, the strict reading of heads, and the drain. What is a
//! WebSocket handshake goes to the tunnel, everything else to pingora.

pub mod chunked;
pub mod conn;
mod connection;
pub mod head;
pub mod hops;
pub mod limits;
pub mod pace;
mod write;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use pingora::{apps::HttpServerApp, server::ShutdownWatch};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{
    hops::TrustedHops,
    limits::{Full, Limits, Permit},
};
use crate::{
    config, engine::General, gate::Gate, lane::Lane, metrics::Metrics, seldom::seldom,
    tls::Acceptor,
};

pub use write::write_answer;

/// After the grace: for Close frames to be answered and last bytes to leave.
const LAST_WORDS: Duration = Duration::from_secs(3);
/// After being asked to stop: for the next request of a connection that has none, at most half the
/// grace.
const IDLE_GRACE: Duration = Duration::from_secs(5);

/// What every connection needs.
pub struct Front {
    pub(crate) gate: Arc<Gate>,
    pub(crate) engine: Arc<General>,
    pub(crate) lane: Lane,
    fast_lane: bool,
    pub(crate) limits: config::Limits,
    pub(crate) metrics: Metrics,
    tls: Acceptor,
    hops: TrustedHops,
    connections: Limits,
    /// Nothing new: set when the process is asked to stop.
    pub(crate) stopping: CancellationToken,
    stopping_watch: ShutdownWatch,
    /// The grace is over: WebSockets say goodbye.
    pub(crate) going: CancellationToken,
    drain_grace: Duration,
}

/// By which listener a connection came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Door {
    Tls,
    Plain,
}

/// Where connections are accepted.
pub struct Listeners {
    pub tls: TcpListener,
    /// For load balancers that have ended TLS themselves.
    pub plain: Option<TcpListener>,
}

impl Listeners {
    async fn accept(&self) -> (Door, std::io::Result<(TcpStream, SocketAddr)>) {
        let plain = async {
            match &self.plain {
                Some(plain) => plain.accept().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            accepted = self.tls.accept() => (Door::Tls, accepted),
            accepted = plain => (Door::Plain, accepted),
        }
    }
}

impl Front {
    pub fn new(
        config: &config::Config,
        gate: Arc<Gate>,
        engine: Arc<General>,
        tls: Acceptor,
        hops: TrustedHops,
        stopping: CancellationToken,
    ) -> (Self, watch::Sender<bool>) {
        let limits = config.limits.clone();
        let (stop, stopping_watch) = watch::channel(false);
        let front = Self {
            metrics: gate.metrics.clone(),
            going: gate.going.clone(),
            gate,
            engine,
            lane: Lane::new(),
            fast_lane: config.fast_lane,
            tls,
            hops,
            connections: Limits::new(limits.connections, limits.connections_per_address),
            limits,
            stopping,
            stopping_watch,
            drain_grace: config.drain_grace,
        };
        (front, stop)
    }

    /// Accepts until asked to stop, then drains.
    pub async fn run(self: Arc<Self>, listeners: Listeners, stop: watch::Sender<bool>) {
        let running = TaskTracker::new();
        loop {
            let (door, accepted) = tokio::select! {
                accepted = listeners.accept() => accepted,
                () = self.stopping.cancelled() => break,
            };
            match accepted {
                Ok((tcp, peer)) => match self.place(door, peer) {
                    Ok(permit) => {
                        running.spawn(self.clone().connection(tcp, peer, door, permit));
                    }
                    // Closed at once: the others keep their places.
                    Err(full) => {
                        self.metrics.connections_refused.with_label_values(&[full.reason()]).inc();
                    }
                },
                Err(error) => {
                    // Out of file descriptors, mostly: some will be given back.
                    tracing::warn!(%error, "a connection could not be accepted");
                    sleep(Duration::from_millis(50)).await;
                }
            }
        }
        drop(listeners);
        let _ = stop.send(true);
        self.engine.http_cleanup().await;
        running.close();
        if timeout(self.drain_grace, running.wait()).await.is_err() {
            tracing::info!(connections = running.len(), "the grace is over; closing what is open");
            self.going.cancel();
            let _ = timeout(LAST_WORDS, running.wait()).await;
        }
    }

    /// A trusted hop brings the connections of many, and has no share of its own.
    fn place(&self, door: Door, peer: SocketAddr) -> Result<Permit, Full> {
        if door == Door::Plain && self.hops.trusts(peer.ip()) {
            self.connections.take_for_many()
        } else {
            self.connections.take(peer.ip())
        }
    }

    async fn connection(
        self: Arc<Self>,
        tcp: TcpStream,
        peer: SocketAddr,
        door: Door,
        permit: Permit,
    ) {
        self.metrics.connections.inc();
        let served = connection::serve(self.clone(), tcp, peer, door, permit);
        tokio::select! {
            biased;
            () = served => {}
            () = seldom(self.cut()) => {}
        }
        self.metrics.connections.dec();
    }

    /// Resolves when a connection that waits for its next request has to go. Not at once: the request
    /// may be on its way, and is answered with `Connection: close`.
    pub(crate) async fn idle_over(&self) {
        self.stopping.cancelled().await;
        sleep(IDLE_GRACE.min(self.drain_grace / 2)).await;
    }

    /// Resolves when even the last words must have been said.
    async fn cut(&self) {
        self.going.cancelled().await;
        sleep(LAST_WORDS).await;
    }
}
