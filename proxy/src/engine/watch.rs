//! Ends exchanges whose right to the workload is lost, also while not one byte moves, and over HTTP/2
//! those that are answered while their body is read by nobody.
//!
//! pingora has no call for either. So an exchange that has run for a moment is watched from outside,
//! and dropped as it is when its connection breaks: HTTP/1.1 is cut, a stream of HTTP/2 reset.

use std::{
    future::pending,
    net::IpAddr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use async_trait::async_trait;
use http::Method;
use jiff::Timestamp;
use pingora::{
    apps::{HttpServerApp, HttpServerOptions, ReusedHttpStream},
    protocols::http::{ServerSession, v2::server::H2Options},
    proxy::{HttpProxy, Session},
    server::ShutdownWatch,
};
use tokio::{
    sync::Notify,
    time::{Instant, sleep},
};

use super::{
    Engine,
    request::{client, host_of},
};
use crate::{
    access_log,
    gate::{Admitted, Destination, Gate, live::LOOK_EVERY},
    seldom::seldom,
};

/// How long the body of a request that is answered may stand still.
const UNREAD: Duration = Duration::from_secs(2);
/// The same behind an answer that may not fit into the client's window: its last part may be waiting,
/// and a reset would take it away.
const UNREAD_LONG: Duration = Duration::from_secs(30);
/// The window that a client has unless it says otherwise (RFC 9113, section 6.9.2).
const WINDOW: u64 = 65_535;

/// What is known of an exchange from outside of pingora.
#[derive(Default)]
struct Progress {
    /// Where it goes, once that is known.
    goes_to: OnceLock<Destination>,
    /// The last of the answer is on its way. The answer's length in bytes.
    answered: OnceLock<u64>,
    answered_now: Notify,
    /// Bytes of the request's body that were read.
    body: AtomicU64,
    /// All of it was read.
    body_ended: AtomicBool,
}

impl Progress {
    /// Resolves when the request is answered and its body stands still. The stream can be reset
    /// then: its answer is whole (RFC 9113, section 8.1).
    async fn is_unread(&self) {
        let length = loop {
            if let Some(length) = self.answered.get() {
                break *length;
            }
            self.answered_now.notified().await;
        };
        let patience = if length <= WINDOW { UNREAD } else { UNREAD_LONG };
        loop {
            let before = self.body.load(Relaxed);
            sleep(patience).await;
            if self.body_ended.load(Relaxed) {
                return pending().await;
            }
            if self.body.load(Relaxed) == before {
                return;
            }
        }
    }
}

tokio::task_local! {
    /// Of the exchange of this task.
    static PROGRESS: Arc<Progress>;
}

/// The general engine, watched.
pub struct General {
    proxy: Arc<HttpProxy<Engine>>,
    gate: Arc<Gate>,
}

impl General {
    pub fn new(proxy: HttpProxy<Engine>, gate: Arc<Gate>) -> Self {
        Self { proxy: Arc::new(proxy), gate }
    }

    /// Resolves when the right of this task's exchange is lost.
    async fn lost(&self, progress: &Progress) {
        let destination = loop {
            sleep(LOOK_EVERY).await;
            if let Some(destination) = progress.goes_to.get().cloned() {
                break destination;
            }
        };
        match self.gate.enter(&destination) {
            Some(presence) => presence.lost().await,
            None => pending().await,
        }
    }
}

#[async_trait]
impl HttpServerApp for General {
    async fn process_new_http(
        self: &Arc<Self>,
        session: ServerSession,
        shutdown: &ShutdownWatch,
    ) -> Option<ReusedHttpStream> {
        let over_http_2 = session.is_http2();
        let progress = Arc::new(Progress::default());
        let watched = async {
            tokio::select! {
                biased;
                back = self.proxy.process_new_http(session, shutdown) => back,
                () = seldom(self.lost(&progress)) => None,
                () = seldom(progress.is_unread()), if over_http_2 => None,
            }
        };
        PROGRESS.scope(progress.clone(), watched).await
    }

    fn h2_options(&self) -> Option<H2Options> {
        self.proxy.h2_options()
    }

    fn server_options(&self) -> Option<&HttpServerOptions> {
        HttpServerApp::server_options(&*self.proxy)
    }

    async fn http_cleanup(&self) {
        self.proxy.http_cleanup().await;
    }
}

/// From here on the exchange of this task is watched.
pub fn goes_to(destination: &Destination) {
    let _ = PROGRESS.try_with(|progress| progress.goes_to.set(destination.clone()));
}

/// The last of an answer of that many bytes is on its way.
pub fn answered(bytes: u64) {
    let _ = PROGRESS.try_with(|progress| {
        let _ = progress.answered.set(bytes);
        progress.answered_now.notify_one();
    });
}

/// So many bytes of the request's body were read, or it has ended.
pub fn heard(bytes: u64, end: bool) {
    let _ = PROGRESS.try_with(|progress| {
        progress.body.fetch_add(bytes, Relaxed);
        progress.body_ended.fetch_or(end, Relaxed);
    });
}

/// What is logged and counted of an exchange when it is over, however it ends: also when it is dropped,
/// and pingora's request with it.
pub struct Trail {
    gate: Arc<Gate>,
    started: Instant,
    from: IpAddr,
    method: Method,
    host: String,
    path: String,
    /// `None`: it was not admitted.
    user: Option<Option<String>>,
    /// Of the answer, as far as it came.
    pub status: u16,
    pub bytes: u64,
    pub broken_off: bool,
}

impl Trail {
    pub fn begin(
        gate: &Arc<Gate>,
        session: &Session,
        admitted: Option<&Admitted>,
        started: Instant,
    ) -> Self {
        let request = session.req_header();
        let path = String::from_utf8_lossy(request.raw_path());
        Self {
            gate: gate.clone(),
            started,
            from: client(session).ip().to_canonical(),
            method: request.method.clone(),
            host: host_of(request).to_owned(),
            path: path.split('?').next().unwrap_or_default().to_owned(),
            user: admitted.map(|admitted| admitted.user().map(str::to_owned)),
            status: 0,
            bytes: 0,
            broken_off: true,
        }
    }
}

impl Drop for Trail {
    fn drop(&mut self) {
        let took = self.started.elapsed();
        self.gate.metrics.answered("pingora", self.status);
        self.gate.metrics.seconds.observe(took.as_secs_f64());
        let line = access_log::Line {
            from: self.from,
            method: self.method.as_str(),
            host: &self.host,
            path: &self.path,
            status: self.status,
            bytes: self.bytes,
            took,
            user: self.user.as_ref().and_then(Option::as_deref),
            admitted: self.user.is_some(),
            broken_off: self.broken_off,
        };
        self.gate.access_log.write(&line, Timestamp::now());
    }
}
