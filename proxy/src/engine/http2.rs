//! One HTTP/2 connection. pingora serves its streams; that they are accepted here is for the sake of
//! the drain. pingora says GOAWAY as soon as the process stops. That is right by RFC 9113, section 6.8,
//! but clients built on Python's h2 drop every answer that is in flight then.

use std::{pin::pin, sync::Arc, time::Duration};

use pingora::{
    apps::HttpServerApp,
    protocols::{
        Digest, Stream,
        http::{
            ServerSession,
            v2::server::{H2Accept, HttpSession, handshake},
        },
    },
    server::ShutdownWatch,
};
use tokio::time::{sleep, timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::General;

/// A connection without a request is closed after this.
const IDLE: Duration = Duration::from_secs(300);
/// Requests on one connection that break the protocol before it is closed.
const MALFORMED_MAX: usize = 32;
/// A connection that is never without a request is told to go this long before the end of the grace,
/// or a quarter of a shorter grace.
const NEAR_END: Duration = Duration::from_secs(5);

/// When connections have to end.
pub struct Drain<'a> {
    /// Set when the process is asked to stop.
    pub stopping: &'a CancellationToken,
    pub grace: Duration,
    pub shutdown: &'a ShutdownWatch,
}

/// Serves one connection until its end. `patience` is how long its preface may take.
pub async fn serve(engine: &Arc<General>, io: Stream, patience: Duration, drain: Drain<'_>) {
    let digest = Arc::new(Digest {
        ssl_digest: io.get_ssl_digest(),
        timing_digest: io.get_timing_digest(),
        proxy_digest: io.get_proxy_digest(),
        socket_digest: io.get_socket_digest(),
    });
    let begun = timeout(patience, handshake(io, engine.h2_options())).await;
    let Ok(Ok(mut conn)) = begun else { return };
    let streams = TaskTracker::new();
    // Closed, so that waiting for it means: until no stream is open. It takes new ones all the same.
    streams.close();
    let mut near_end = pin!(async {
        drain.stopping.cancelled().await;
        sleep(drain.grace - NEAR_END.min(drain.grace / 4)).await;
    });
    let (mut leaving, mut malformed) = (false, 0);
    loop {
        let unused = async {
            drain.stopping.cancelled().await;
            streams.wait().await;
        };
        let idle = async {
            streams.wait().await;
            sleep(IDLE).await;
        };
        let accepted = tokio::select! {
            biased;
            accepted = HttpSession::from_h2_conn(&mut conn, digest.clone()) => accepted,
            () = unused, if !leaving => {
                conn.graceful_shutdown();
                leaving = true;
                continue;
            }
            () = near_end.as_mut(), if !leaving => {
                conn.graceful_shutdown();
                leaving = true;
                continue;
            }
            () = idle, if !leaving => return,
        };
        match accepted {
            Ok(Some(H2Accept::Session(session))) => {
                let (engine, shutdown) = (engine.clone(), drain.shutdown.clone());
                streams.spawn(async move {
                    let session = ServerSession::new_http2(session);
                    let _ = engine.process_new_http(session, &shutdown).await;
                });
            }
            Ok(Some(H2Accept::Rejected)) => {
                malformed += 1;
                if malformed >= MALFORMED_MAX {
                    return;
                }
            }
            Ok(None) | Err(_) => return,
        }
    }
}
