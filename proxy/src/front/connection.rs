//! One client connection, from its handshake to its end.

use std::{
    io,
    net::SocketAddr,
    pin::{Pin, pin},
    sync::Arc,
    time::Duration,
};

use pingora::{
    apps::HttpServerApp,
    protocols::{Stream, http::ServerSession, http::v1::server::HttpSession},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, timeout},
};
use tokio_rustls::server::TlsStream;

use super::{
    Door, Front,
    conn::Conn,
    head::{self, BodyFraming, FIELDS_MAX},
    hops::TrustedHops,
    limits::Permit,
    pace::Pace,
    write_answer,
};
use crate::{
    answer::{Besides, Outgoing, Refusal},
    engine::http2,
    gate::head::Audience,
    io::FromClient,
    lane::{self, After, Deadline},
    seldom::seldom,
    tcp, tunnel,
};

/// How long a client may take to read a refusal before the connection is closed under it.
const LINGER: Duration = Duration::from_secs(2);

/// How much is read of a client that speaks plain HTTP to the port for HTTPS, in bytes.
const PLAIN_MAX: u64 = 64 * 1024;

/// The next head: how long it is, and for whom.
struct Next {
    length: usize,
    engine: Engine,
}

enum Engine {
    Tunnel,
    Lane(lane::Begun),
    General(BodyFraming),
}

enum NoNext {
    /// Closed, idle for too long, or stopping.
    Over,
    TooSlow,
    Refused(Refusal),
}

pub(super) async fn serve(
    front: Arc<Front>,
    tcp: TcpStream,
    peer: SocketAddr,
    door: Door,
    permit: Permit,
) {
    tcp::tune(&tcp);
    let io = match door {
        Door::Plain => FromClient::Plain(tcp),
        Door::Tls if Box::pin(speaks_plainly(&front, &tcp)).await => {
            refused(&front, "plain-http");
            return Box::pin(say_https(tcp)).await;
        }
        Door::Tls => match Box::pin(handshake(&front, tcp)).await {
            Ok(tls) => FromClient::Tls(tls),
            Err(reason) => return refused(&front, reason),
        },
    };
    let hops = (door == Door::Plain && front.hops.trusts(peer.ip())).then(|| &front.hops);
    let mut conn = Box::new(Conn::new(io, peer, permit));
    if conn.is_h2() {
        let stream: Stream = conn;
        let drain = http2::Drain {
            stopping: &front.stopping,
            grace: front.drain_grace,
            shutdown: &front.stopping_watch,
        };
        Box::pin(http2::serve(&front.engine, stream, front.limits.head_timeout, drain)).await;
        return;
    }
    let mut deadline = Deadline::default();
    let mut idle_over = pin!(seldom(front.idle_over()));
    loop {
        let next = match next_head(&front, &mut conn, &mut deadline, idle_over.as_mut(), peer, hops)
            .await
        {
            Ok(next) => next,
            Err(NoNext::Over) => {
                // So that the client knows that nothing was cut off.
                let _ = timeout(LINGER, conn.shutdown()).await;
                return;
            }
            Err(NoNext::TooSlow) => return refused(&front, "slow-head"),
            Err(NoNext::Refused(refusal)) => {
                let nobody = front.gate.nobody();
                let audience = Audience::guess(conn.ahead());
                let answer = front.gate.refuse(&nobody, &refusal, audience).closing();
                front.metrics.answered("front", answer.status);
                return goodbye(&mut conn, &answer).await;
            }
        };
        match next.engine {
            Engine::Tunnel => {
                let head = conn.take_ahead(next.length).freeze();
                return Box::pin(tunnel::serve(&front, conn, head)).await;
            }
            Engine::Lane(begun) => {
                let head = conn.take_ahead(next.length);
                let served = lane::serve(&front, &mut conn, &mut deadline, begun, head);
                match Box::pin(served).await {
                    After::Next => {}
                    After::Close => return part(&mut conn).await,
                    After::Cut => return,
                }
            }
            Engine::General(body) => {
                conn.lend(next.length, body);
                match Box::pin(through_engine(&front, conn)).await {
                    Some(back) => conn = back,
                    None => return,
                }
            }
        }
    }
}

/// Whether a client begins with a request of HTTP where TLS is spoken. Every method is upper case, and
/// no record of TLS begins with such a letter (RFC 8446, section 5.1).
async fn speaks_plainly(front: &Front, tcp: &TcpStream) -> bool {
    let mut first = [0];
    let seen = timeout(front.limits.head_timeout, tcp.peek(&mut first)).await;
    matches!(seen, Ok(Ok(1))) && first[0].is_ascii_uppercase()
}

/// Tells a client that speaks plain HTTP what is spoken here.
async fn say_https(mut tcp: TcpStream) {
    let why = "This port speaks HTTPS: begin the address with https://";
    // Over plain HTTP nothing is said of `Strict-Transport-Security` (RFC 6797, section 7.2).
    let answer = Refusal::BadRequest(why).answer(Audience::Client);
    let answer = Besides::nobody(None).answer(answer).closing();
    let said = async {
        write_answer(&mut tcp, &answer, false, true).await?;
        tcp.shutdown().await?;
        // Closing with something unread would take the answer away.
        tokio::io::copy(&mut (&mut tcp).take(PLAIN_MAX), &mut tokio::io::sink()).await
    };
    let _ = timeout(LINGER, said).await;
}

async fn handshake(
    front: &Front,
    tcp: TcpStream,
) -> Result<Box<TlsStream<TcpStream>>, &'static str> {
    match timeout(front.limits.head_timeout, front.tls.accept(tcp)).await {
        Ok(Ok(tls)) => Ok(Box::new(tls)),
        Ok(Err(error)) => {
            tracing::debug!(%error, "TLS handshake failed");
            Err("tls")
        }
        Err(_) => Err("slow-handshake"),
    }
}

fn refused(front: &Front, reason: &str) {
    front.metrics.connections_refused.with_label_values(&[reason]).inc();
}

/// Lends the connection to pingora for one exchange. `None` when it cannot be used any more.
async fn through_engine(front: &Front, conn: Box<Conn>) -> Option<Box<Conn>> {
    let mut session = HttpSession::new(conn);
    session.set_read_timeout(Some(front.limits.stall_timeout));
    session.set_write_timeout(Some(front.limits.stall_timeout));
    let mut session = ServerSession::H1(session);
    let stopping = front.stopping.is_cancelled();
    // Only whether, not for how long: waiting for the next head is ours.
    session.set_keepalive(if stopping { None } else { Some(60) });
    let reused = front.engine.process_new_http(session, &front.stopping_watch).await?;
    let (stream, _) = reused.consume();
    let conn = stream.into_any().downcast::<Conn>().ok()?;
    conn.is_at_end().then_some(conn)
}

/// Waits for a head: long for its first byte, and not long from there to its last.
async fn next_head(
    front: &Front,
    conn: &mut Conn,
    deadline: &mut Deadline,
    idle_over: Pin<&mut impl Future<Output = ()>>,
    peer: SocketAddr,
    hops: Option<&TrustedHops>,
) -> Result<Next, NoNext> {
    let limits = &front.limits;
    if conn.ahead().is_empty() {
        let first = tokio::select! {
            first = deadline.bound(Instant::now() + limits.keep_alive, conn.read_ahead()) => first,
            () = idle_over => return Err(NoNext::Over),
        };
        if !matches!(first, Some(Ok(true))) {
            return Err(NoNext::Over);
        }
    }
    let slow_at = Instant::now() + limits.head_timeout;
    let length = loop {
        match head::length(conn.ahead(), limits.head_bytes) {
            Ok(Some(length)) => break length,
            Ok(None) => {}
            Err(refusal) => return Err(NoNext::Refused(refusal)),
        }
        match deadline.bound(slow_at, conn.read_ahead()).await {
            Some(Ok(true)) => {}
            Some(_) => return Err(NoNext::Over),
            None => return Err(NoNext::TooSlow),
        }
    };
    let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let bytes = conn.ahead().get(..length).unwrap_or_default();
    let parsed = head::parse(bytes, &mut fields).map_err(NoNext::Refused)?;
    let upgrade = parsed.head.is_upgrade();
    if upgrade && (parsed.body != BodyFraming::Length(0) || !parsed.http_11) {
        return Err(NoNext::Refused(Refusal::BadRequest("A WebSocket handshake has no body")));
    }
    let client = hops.map(|hops| hops.client(peer.ip(), &parsed.head));
    let from = client.map_or(conn.client_socket(), |client| conn.socket_of(client));
    let engine = if upgrade {
        Engine::Tunnel
    } else {
        let begun = front.fast_lane.then(|| lane::begin(front, from, bytes, &parsed)).flatten();
        begun.map_or(Engine::General(parsed.body), Engine::Lane)
    };
    let has_length = matches!(parsed.body, BodyFraming::Length(1..));
    conn.pace = has_length.then(|| Pace::new(limits)).flatten();
    if let Some(client) = client {
        conn.set_client(client);
    }
    Ok(Next { length, engine })
}

/// Refuses and closes.
async fn goodbye(conn: &mut Conn, answer: &Outgoing) {
    let head_only = conn.ahead().starts_with(b"HEAD ");
    let said = async {
        write_answer(conn, answer, head_only, true).await?;
        Ok::<_, io::Error>(())
    };
    if timeout(LINGER, said).await.is_ok_and(|said| said.is_ok()) {
        part(conn).await;
    }
}

/// Closes a connection on which an answer has just left. What the client still sends is read for a
/// moment, or closing would reset the connection before it has read the answer.
async fn part(conn: &mut Conn) {
    if timeout(LINGER, conn.shutdown()).await.is_ok() {
        let drained = async {
            while conn.read_ahead().await.is_ok_and(|more| more) {
                let length = conn.ahead().len();
                drop(conn.take_ahead(length));
            }
        };
        let _ = timeout(LINGER, drained).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size<A, B, C, D, E, F>(_: impl Fn(A, B, C, D, E) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn a_connection_that_waits_is_small() {
        assert!(size(serve) <= 2048, "{} bytes", size(serve));
    }
}
