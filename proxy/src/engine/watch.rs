//! Ends exchanges whose right to the workload is lost, also while not one byte moves.
//!
//! pingora has no call for that. So an exchange that has run for a moment is watched from outside,
//! and dropped as it is when its connection breaks: HTTP/1.1 is cut, a stream of HTTP/2 reset.

use std::{future::pending, net::IpAddr, sync::Arc, sync::OnceLock};

use async_trait::async_trait;
use http::Method;
use jiff::Timestamp;
use pingora::{
    apps::{HttpServerApp, HttpServerOptions, ReusedHttpStream},
    protocols::http::{ServerSession, v2::server::H2Options},
    proxy::{HttpProxy, Session},
    server::ShutdownWatch,
};
use tokio::time::{Instant, sleep};

use super::{
    Engine,
    request::{client, host_of},
};
use crate::{
    access_log,
    gate::{Admitted, Destination, Gate, live::LOOK_EVERY},
    seldom::seldom,
};

tokio::task_local! {
    /// Where the exchange of this task goes, once that is known.
    static GOES_TO: OnceLock<Destination>;
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
    async fn lost(&self) {
        let destination = loop {
            sleep(LOOK_EVERY).await;
            if let Some(destination) = GOES_TO.with(|to| to.get().cloned()) {
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
        let watched = async {
            tokio::select! {
                biased;
                back = self.proxy.process_new_http(session, shutdown) => back,
                () = seldom(self.lost()) => None,
            }
        };
        GOES_TO.scope(OnceLock::new(), watched).await
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
    let _ = GOES_TO.try_with(|to| to.set(destination.clone()));
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
