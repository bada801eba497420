//! The node's own HTTPS endpoint, as a kubelet has it: containers' logs for the API server.

mod peer;

use super::context::NodeContext;
use super::logs;
use super::model::State;
use super::pod::PodShared;
use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Query, Request, State as Shared};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use jiff::{SignedDuration, Timestamp};
use peer::{AnyCertificate, Authorities};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde::Deserialize;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

/// Connections at a time: one per `kubectl logs -f`.
const MAX_CONNECTIONS: usize = 512;
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);
const HEAD_DEADLINE: Duration = Duration::from_secs(10);

/// The endpoint, listening.
pub struct Server {
    listener: TcpListener,
    acceptor: TlsAcceptor,
}

impl Server {
    /// Listens at `address` with a certificate of its own making.
    pub async fn bind(address: IpAddr, port: u16, node: &str) -> io::Result<Self> {
        let listener = TcpListener::bind((address, port)).await?;
        let names = vec![node.to_owned(), address.to_string()];
        let made = rcgen::generate_simple_self_signed(names).map_err(io::Error::other)?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = Arc::new(AnyCertificate::new(&provider));
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(vec![made.cert.der().clone()], key)
            .map_err(io::Error::other)?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Self { listener, acceptor: TlsAcceptor::from(Arc::new(config)) })
    }

    pub fn port(&self) -> io::Result<u16> {
        Ok(self.listener.local_addr()?.port())
    }

    /// Serves until shutdown.
    pub async fn serve(self, ctx: Arc<NodeContext>, shutdown: CancellationToken) {
        let authorities =
            Arc::new(Authorities::new(&ctx.options.api_roots, ctx.options.trust_local_peers));
        let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let app = router(ctx);
        loop {
            let Ok(permit) = room.clone().acquire_owned().await else { return };
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                () = shutdown.cancelled() => return,
            };
            let Ok((stream, peer)) = accepted else {
                // Out of file descriptors, most likely: others must close some first.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            let (acceptor, app, shutdown) = (self.acceptor.clone(), app.clone(), shutdown.clone());
            let authorities = authorities.clone();
            tokio::spawn(async move {
                tokio::select! {
                    () = connection(stream, peer, acceptor, authorities, app) => {}
                    () = shutdown.cancelled() => {}
                }
                drop(permit);
            });
        }
    }
}

/// Whether the connection's peer may ask.
#[derive(Debug, Clone, Copy)]
struct Welcome(bool);

async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    acceptor: TlsAcceptor,
    authorities: Arc<Authorities>,
    app: Router,
) {
    let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE_DEADLINE, acceptor.accept(stream)).await
    else {
        return;
    };
    let certificates: Option<Vec<CertificateDer<'static>>> = stream
        .get_ref()
        .1
        .peer_certificates()
        .map(|all| all.iter().cloned().map(CertificateDer::into_owned).collect());
    let welcome = Welcome(authorities.accept(certificates.as_deref(), peer.ip()));
    let app = app.layer(axum::Extension(welcome));
    let mut server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
    server.http1().timer(hyper_util::rt::TokioTimer::new()).header_read_timeout(HEAD_DEADLINE);
    if let Err(error) =
        server.serve_connection(TokioIo::new(stream), TowerToHyperService::new(app)).await
    {
        tracing::debug!(%peer, %error, "a connection to the node's endpoint broke");
    }
}

fn router(ctx: Arc<NodeContext>) -> Router {
    Router::new()
        .route("/containerLogs/{namespace}/{pod}/{container}", get(container_logs))
        .layer(middleware::from_fn(only_welcome))
        .route("/healthz", get(|| async { "ok" }))
        .with_state(ctx)
}

async fn only_welcome(request: Request, next: Next) -> Response {
    match request.extensions().get::<Welcome>() {
        Some(Welcome(true)) => next.run(request).await,
        _ => {
            (StatusCode::UNAUTHORIZED, "Unauthorized: ask the API server for logs").into_response()
        }
    }
}

/// The query of `PodLogOptions`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct LogOptions {
    follow: Option<String>,
    previous: Option<String>,
    timestamps: Option<String>,
    tail_lines: Option<u64>,
    limit_bytes: Option<u64>,
    since_seconds: Option<i64>,
    since_time: Option<Timestamp>,
}

fn is_set(flag: Option<&String>) -> bool {
    flag.is_some_and(|value| matches!(value.as_str(), "" | "1" | "t" | "true" | "True" | "TRUE"))
}

impl LogOptions {
    fn query(&self, now: Timestamp) -> logs::Query {
        let seconds = self.since_seconds.map(SignedDuration::from_secs);
        logs::Query {
            follow: is_set(self.follow.as_ref()),
            tail: self.tail_lines,
            since: self.since_time.or_else(|| now.checked_sub(seconds?).ok()),
            timestamps: is_set(self.timestamps.as_ref()),
            limit: self.limit_bytes,
        }
    }
}

async fn container_logs(
    Shared(ctx): Shared<Arc<NodeContext>>,
    Path((namespace, pod, container)): Path<(String, String, String)>,
    Query(options): Query<LogOptions>,
) -> Response {
    let Some(shared) =
        ctx.pods.get(&(namespace.clone(), pod.clone())).map(|entry| entry.value().clone())
    else {
        return (StatusCode::NOT_FOUND, format!("pod \"{namespace}/{pod}\" not found"))
            .into_response();
    };
    let path = match log_of(&shared, &container, is_set(options.previous.as_ref())) {
        Ok(path) => path,
        Err(why) => return (StatusCode::BAD_REQUEST, why).into_response(),
    };
    let live = shared.live_log(&container, &path);
    let receiver = logs::stream(path, options.query(Timestamp::now()), live);
    let body = Body::from_stream(tokio_stream::wrappers::ReceiverStream::new(receiver));
    ([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], body).into_response()
}

/// The log file that is meant, or why there is none.
fn log_of(pod: &PodShared, container: &str, previous: bool) -> Result<std::path::PathBuf, String> {
    let model = pod.model();
    let Some(record) = model.find(container) else {
        return Err(format!("container {container:?} is not valid for pod {:?}", pod.name));
    };
    let dir = pod.container_logs(&record.name);
    if previous {
        // A container that waits to be started again has not had its next run yet, so its last run is the present one.
        let path = logs::file(&dir, record.restarts - 1);
        let missing = || {
            format!("previous terminated container {container:?} in pod {:?} not found", pod.name)
        };
        return if path.exists() { Ok(path) } else { Err(missing()) };
    }
    let path = logs::file(&dir, record.restarts);
    match &record.state {
        State::Waiting { reason, message } if !path.exists() => {
            let trouble =
                message.as_deref().filter(|_| reason != "ContainerCreating").unwrap_or_default();
            let state =
                if trouble.is_empty() { reason.clone() } else { format!("{reason}: {trouble}") };
            Err(format!(
                "container {container:?} in pod {:?} is waiting to start: {state}",
                pod.name
            ))
        }
        _ => Ok(path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_those_of_the_api() {
        let now = Timestamp::from_second(1_700_000_100).unwrap();
        let parse = |query: &str| {
            let uri = format!("/x?{query}").parse().unwrap();
            Query::<LogOptions>::try_from_uri(&uri).unwrap().0.query(now)
        };
        let all = parse(
            "follow=true&tailLines=5&timestamps=true&limitBytes=9&sinceSeconds=100&previous=false",
        );
        assert_eq!(
            all,
            logs::Query {
                follow: true,
                tail: Some(5),
                since: Timestamp::from_second(1_700_000_000).ok(),
                timestamps: true,
                limit: Some(9)
            }
        );
        assert_eq!(parse(""), logs::Query::default());
        assert_eq!(
            parse("sinceTime=2023-11-14T22:13:20Z").since,
            Timestamp::from_second(1_700_000_000).ok()
        );
    }
}
