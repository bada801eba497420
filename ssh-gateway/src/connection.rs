//! Accepting connections, and their whole life: the library's session inside our limits.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use jiff::Timestamp;
use nix::sys::socket::{setsockopt, sockopt::TcpUserTimeout};
use runtime::{
    audit::{Event, Outcome},
    service::Context,
};
use russh::{
    Preferred, SshId, cipher, compression,
    keys::{Algorithm, PrivateKey},
    server::Config,
};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    limits::{Connections, Place},
    metrics::Counted,
    server::{Client, methods},
    visit::{Ends, Gate},
    windows,
};

/// Questions without an answer after which a client is gone.
const KEEPALIVES: u32 = 10;

const COMPONENT: &str = "ssh";

fn config(gate: &Gate, host_keys: Vec<PrivateKey>) -> Config {
    let limits = &gate.config.limits;
    Config {
        server_id: SshId::Standard("SSH-2.0-Dormouse".into()),
        methods: methods(),
        auth_rejection_time: Duration::from_millis(300),
        auth_rejection_time_initial: Some(Duration::ZERO),
        keys: host_keys,
        // Nothing with SHA-1 or CBC; compression costs more than it brings.
        preferred: Preferred {
            // Also the kinds of people's keys: clients read the list before they sign (RFC 8308,
            // section 3.1).
            key: signature_algorithms().into(),
            cipher: vec![
                cipher::CHACHA20_POLY1305,
                cipher::AES_256_GCM,
                cipher::AES_256_CTR,
                cipher::AES_128_CTR,
            ]
            .into(),
            compression: vec![compression::NONE].into(),
            ..Preferred::DEFAULT
        },
        max_auth_attempts: limits.attempts,
        event_buffer_size: 8,
        window_size: windows::LARGE,
        // What waits is in our own queues, which are counted.
        channel_buffer_size: 4,
        // Silence is no reason to end a session; the keepalives find clients that are gone.
        inactivity_timeout: None,
        keepalive_interval: Some(limits.keepalive),
        keepalive_max: KEEPALIVES as usize,
        nodelay: true,
        ..Config::default()
    }
}

/// All that the library knows, but for RSA over SHA-1.
fn signature_algorithms() -> Vec<Algorithm> {
    let known = Preferred::DEFAULT.key;
    known.iter().filter(|algorithm| **algorithm != Algorithm::Rsa { hash: None }).cloned().collect()
}

pub async fn accept(
    gate: Arc<Gate>,
    host_keys: Vec<PrivateKey>,
    listener: TcpListener,
    ctx: Context,
) {
    let config = Arc::new(config(&gate, host_keys));
    let limits = &gate.config.limits;
    let connections = Connections::new(limits.connections, limits.connections_per_address);
    let tasks = TaskTracker::new();
    let stop = CancellationToken::new();
    ctx.health.set(COMPONENT, Ok(()));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = ctx.shutdown.cancelled() => break,
        };
        let Ok((stream, from)) = accepted else {
            // Out of descriptors, most likely: others must end first.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let Some(place) = connections.take(from.ip()) else {
            gate.metrics.connections.with_label_values(&["refused"]).inc();
            continue;
        };
        gate.metrics.connections.with_label_values(&["accepted"]).inc();
        let (config, gate, stop) = (config.clone(), gate.clone(), stop.child_token());
        tasks.spawn(serve(config, gate, stream, from, place, stop));
    }
    drop(listener);
    tasks.close();
    if tokio::time::timeout(gate.config.drain, tasks.wait()).await.is_err() {
        stop.cancel();
        let _ = tokio::time::timeout(Duration::from_secs(2), tasks.wait()).await;
    }
}

async fn serve(
    config: Arc<Config>,
    gate: Arc<Gate>,
    stream: TcpStream,
    from: SocketAddr,
    _place: Place,
    stop: CancellationToken,
) {
    let _counted = Counted::new(&gate.metrics.connections_open);
    let denied = Arc::new(AtomicU32::new(0));
    let signed_in = CancellationToken::new();
    let result = run(config, &gate, stream, from, &signed_in, &stop, denied.clone()).await;
    if let Err(error) = result {
        tracing::debug!(%error, "connection ended");
    }
    let denied = denied.load(Ordering::Relaxed);
    // One event per connection, whatever was tried on it; a scan that tries nothing leaves none.
    if !signed_in.is_cancelled() && denied > 0 {
        let detail = format!("{denied} failed attempts to sign in");
        gate.audit.record(
            Timestamp::now(),
            Event {
                who: None,
                did: "refused",
                to: None,
                from: Some(from.ip()),
                credential: None,
                outcome: Outcome::Denied,
                detail: Some(&detail),
            },
        );
    }
}

#[derive(Debug, thiserror::Error)]
enum ConnectionError {
    #[error("{0}")]
    Io(#[from] std::io::Error),
    #[error("{0}")]
    Ssh(#[from] russh::Error),
    #[error("did not sign in in time")]
    Late,
}

async fn run(
    config: Arc<Config>,
    gate: &Arc<Gate>,
    stream: TcpStream,
    from: SocketAddr,
    signed_in: &CancellationToken,
    stop: &CancellationToken,
    denied: Arc<AtomicU32>,
) -> Result<(), ConnectionError> {
    let limits = &gate.config.limits;
    stream.set_nodelay(true)?;
    // A client that reads nothing is found by the kernel: the session waits to write then, and asks
    // nothing.
    let silence = limits.keepalive.saturating_mul(KEEPALIVES + 1);
    let _ = setsockopt(&stream, TcpUserTimeout, &u32::try_from(silence.as_millis()).unwrap_or(0));
    let ends = Ends::new(from, stream.local_addr()?);
    let stream = stream.into_std()?;
    // The library's session may wait for its client without an end; this is how it is ended.
    let cut = stream.try_clone()?;
    let stream = TcpStream::from_std(stream)?;
    let handle = Arc::default();
    let (signal, ended) = (signed_in.clone(), stop.clone());
    let client = Client::new(gate.clone(), ends, signal, ended, denied, Arc::clone(&handle));
    let running = async {
        let session = russh::server::run_stream(config, stream, client).await?;
        let _ = handle.set(session.handle());
        session.await
    };
    let late = async {
        tokio::select! {
            () = signed_in.cancelled() => std::future::pending().await,
            () = tokio::time::sleep(limits.sign_in) => {}
        }
    };
    let result = tokio::select! {
        result = running => result.map_err(ConnectionError::from),
        () = late => Err(ConnectionError::Late),
        () = stop.cancelled() => Ok(()),
    };
    let _ = cut.shutdown(std::net::Shutdown::Both);
    result
}
