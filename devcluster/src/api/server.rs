//! Accepting connections: TLS, the credential, and requests that run to their end.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use http::{HeaderValue, Request, Response, header};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::rest::{self, App};
use super::status::ApiError;

/// Connections at one time; further ones wait to be accepted.
const MAX_CONNECTIONS: usize = 2048;
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);
const DRAIN_DEADLINE: Duration = Duration::from_secs(5);

pub struct Server {
    pub app: Arc<App>,
    pub token: String,
    pub tls: Arc<rustls::ServerConfig>,
}

impl Server {
    /// Serves until `shutdown`, then lets running requests end.
    pub async fn run(self, listener: TcpListener, shutdown: CancellationToken) {
        let acceptor = TlsAcceptor::from(self.tls.clone());
        let expected: Arc<[u8]> = Sha256::digest(self.token.as_bytes()).to_vec().into();
        let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let connections = TaskTracker::new();
        loop {
            let permit = tokio::select! {
                permit = permits.clone().acquire_owned() => permit,
                () = shutdown.cancelled() => break,
            };
            let Ok(permit) = permit else { break };
            let stream = tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => stream,
                    Err(error) => {
                        // Out of file descriptors, for one: give others time to close.
                        tracing::warn!(%error, "cannot accept a connection");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                        continue;
                    }
                },
                () = shutdown.cancelled() => break,
            };
            let (acceptor, app, expected, shutdown) =
                (acceptor.clone(), self.app.clone(), expected.clone(), shutdown.clone());
            connections.spawn(async move {
                serve_connection(stream, acceptor, app, expected, shutdown).await;
                drop(permit);
            });
        }
        drop(listener);
        self.app.store.end_watches();
        connections.close();
        if tokio::time::timeout(DRAIN_DEADLINE, connections.wait()).await.is_err() {
            tracing::debug!("some connections did not end in time");
        }
        self.app.store.close().await;
    }
}

async fn serve_connection(
    stream: TcpStream,
    acceptor: TlsAcceptor,
    app: Arc<App>,
    expected: Arc<[u8]>,
    shutdown: CancellationToken,
) {
    let _ = stream.set_nodelay(true);
    let stream = match tokio::time::timeout(HANDSHAKE_DEADLINE, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            tracing::debug!(%error, "a TLS handshake failed");
            return;
        }
        Err(_) => return,
    };
    let service = service_fn(move |request: Request<Incoming>| {
        let (app, expected) = (app.clone(), expected.clone());
        async move { Ok::<_, std::convert::Infallible>(answer(app, &expected, request).await) }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(Duration::from_secs(30));
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(1000)
        .keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(20));
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::trace!(error, "a connection ended with an error");
    }
}

async fn answer(app: Arc<App>, expected: &[u8], request: Request<Incoming>) -> Response<Body> {
    if !is_authorized(expected, &request) {
        let mut response = rest::error(&ApiError::unauthorized());
        response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        return response;
    }
    let request = request.map(Body::new);
    // In a task of its own: a write that has begun is finished also when its client leaves.
    match tokio::spawn(rest::handle(app, request)).await {
        Ok(response) => response,
        Err(error) => {
            tracing::error!(%error, "a request failed");
            rest::error(&ApiError::internal("the request failed; see the server's log"))
        }
    }
}

/// Compares digests, in constant time whatever was sent.
fn is_authorized(expected: &[u8], request: &Request<Incoming>) -> bool {
    let sent = request
        .headers()
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, token)| Sha256::digest(token.trim().as_bytes()));
    sent.is_some_and(|digest| bool::from(digest.as_slice().ct_eq(expected)))
}
