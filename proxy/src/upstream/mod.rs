//! Which pod is dialled, and how. [`crate::gate::Gate::pick`] is the only way in.

pub mod choose;
pub mod clock;
pub mod sticky;
pub mod stream;
pub mod tls;

use std::{net::SocketAddr, time::Duration};

use domain::{endpoint::Outstanding, upstream::UpstreamProtocol};
use tokio::time::Instant;

pub use self::choose::Tried;

/// A workload that has just become ready may refuse connections for an instant more.
pub const CONNECT_PATIENCE: Duration = Duration::from_secs(5);
/// One try of a connection, with its TLS handshake.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Tries that end in a TLS handshake which fails: time makes no bad certificate good.
pub const HANDSHAKES_MAX: u32 = 3;
/// Between two tries of one address.
pub const CONNECT_PAUSE: Duration = Duration::from_millis(100);
/// How long a connection to a workload is kept for the next request: less than the five seconds
/// after which the most impatient of the usual servers close theirs.
pub const POOL_IDLE: Duration = Duration::from_secs(3);

/// Where to dial now. The exchange counts as outstanding until this is dropped, so it is kept for
/// as long as the exchange lives; a try that fails to connect drops it and picks again.
#[derive(Debug)]
#[must_use]
pub struct Picked {
    pub address: SocketAddr,
    pub protocol: UpstreamProtocol,
    /// Connections may be reused for the same number only: it stands for one pod of one workload
    /// and the protocol it is spoken to in.
    pub pool: u64,
    /// To be added to the answer as a `Set-Cookie` field, whatever its status is.
    pub set_cookie: Option<String>,
    /// `None` for a service of ours.
    outstanding: Option<Outstanding>,
    ejections: prometheus::IntCounter,
}

impl Picked {
    pub(crate) fn new(
        address: SocketAddr,
        protocol: UpstreamProtocol,
        pool: u64,
        outstanding: Option<Outstanding>,
        ejections: prometheus::IntCounter,
    ) -> Self {
        Self { address, protocol, pool, set_cookie: None, outstanding, ejections }
    }

    /// What is left to keep of it while an answered exchange goes on.
    pub fn into_outstanding(self) -> Option<Outstanding> {
        self.outstanding
    }

    /// The first byte of an answer has come. Of several reports of one exchange the first counts.
    pub fn answered(&mut self, now: Instant) {
        if let Some(outstanding) = &mut self.outstanding {
            outstanding.answered(clock::since_start(now));
        }
    }

    /// No connection could be made, or a new one broke before the first byte of an answer. Not for
    /// a reused connection that turned out to be closed, and not for what the client did.
    pub fn failed(&mut self, now: Instant) {
        let ejected = self.outstanding.as_mut().is_some_and(|o| o.failed(clock::since_start(now)));
        if ejected {
            self.ejections.inc();
            tracing::warn!(address = %self.address, "a pod keeps failing and is left alone for a while");
        }
    }
}
