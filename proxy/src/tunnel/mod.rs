//! Upgraded streams: the handshake through the gate, and then both directions byte for byte with no
//! time limit. A tunnel ends when one of its ends does, or when the gateway has to go.

mod frames;
mod pump;
mod response;

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use bytes::{Buf, BytesMut};
use domain::classify;
use jiff::Timestamp;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, sleep, timeout, timeout_at},
};

use self::{
    pump::{Listener, Pump},
    response::{Follows, Response, push_field, without_deflate},
};
use crate::{
    access_log,
    answer::{Answer, Refusal},
    engine::{CONNECT_PATIENCE, CONNECT_PAUSE, CONNECT_TIMEOUT},
    front::{
        Front,
        conn::Conn,
        head::{self, FIELDS_MAX},
        write_answer,
    },
    gate::{
        Admitted, Destination, Gate, Verdict,
        head::{Audience, Head},
        scrub::{Scrub, Trust},
    },
    metrics::Metrics,
    tcp,
};

/// For the upstream to answer the handshake. Some start a kernel first.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(120);
/// For a refusal to be taken by the client.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(5);

/// How a tunnel ended, for the log.
struct Ended {
    status: u16,
    bytes: u64,
    broken_off: bool,
}

/// Serves one handshake, whose head the front has found well-formed. The connection ends with it.
pub async fn serve(front: &Front, mut conn: Box<Conn>, head_bytes: &[u8]) {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let Ok(parsed) = head::parse(head_bytes, &mut fields) else { return };
    let head = parsed.head;
    let started = Instant::now();
    let from = conn.peer().ip().to_canonical();
    let verdict = tokio::select! {
        verdict = front.gate.admit(&head, from, Timestamp::now()) => verdict,
        // A client that gives up waiting gives its place back.
        () = conn.closed() => return,
    };
    let (ended, user) = match verdict {
        Verdict::Answer(answer) => (refuse(&mut conn, &answer).await, None),
        Verdict::Forward(mut admitted) => {
            let user = admitted.user.take();
            (forward(front, conn, &head, *admitted).await, Some(user))
        }
    };
    front.metrics.answered("tunnel", ended.status);
    log(&head, from, &ended, started, user);
}

fn log(
    head: &Head<'_>,
    from: IpAddr,
    ended: &Ended,
    started: Instant,
    user: Option<Option<String>>,
) {
    access_log::Line {
        from,
        method: head.method,
        host: head.authority,
        path: head.path(),
        status: ended.status,
        bytes: ended.bytes,
        took: started.elapsed(),
        admitted: user.is_some(),
        user: user.flatten().as_deref(),
        broken_off: ended.broken_off,
    }
    .write();
}

async fn refuse(conn: &mut Conn, answer: &Answer) -> Ended {
    let written = timeout(REFUSAL_TIMEOUT, async {
        write_answer(conn, answer, false).await?;
        conn.shutdown().await
    });
    let broken_off = !matches!(written.await, Ok(Ok(())));
    Ended { status: answer.status, bytes: 0, broken_off }
}

async fn forward(front: &Front, mut conn: Box<Conn>, head: &Head<'_>, admitted: Admitted) -> Ended {
    let handshake = async {
        let mut upstream = connect(&front.gate, &admitted.destination).await?;
        upstream.write_all(&request(head, &admitted)).await.map_err(|_| Refusal::BadGateway)?;
        let (response, rest) = read_response(&mut upstream, &admitted).await?;
        Ok::<_, Refusal>((upstream, response, rest))
    };
    let done = tokio::select! {
        done = handshake => done,
        // What the client sends before the 101 stays here; that it leaves is noticed.
        () = conn.closed() => return Ended { status: 0, bytes: 0, broken_off: true },
    };
    let (upstream, response, rest) = match done {
        Ok(done) => done,
        Err(refusal) => {
            front.metrics.refusals.with_label_values(&[refusal.reason()]).inc();
            return refuse(&mut conn, &refusal.answer(Audience::Upgrade)).await;
        }
    };
    conn.lend_all();
    let status = response.status;
    let moved = relay(front, conn, upstream, response, rest, head, admitted).await;
    Ended { status, bytes: *moved.as_ref().unwrap_or(&0), broken_off: moved.is_err() }
}

/// Dials for a bounded time: a workload that has just become ready may refuse an instant longer.
async fn connect(gate: &Gate, destination: &Destination) -> Result<TcpStream, Refusal> {
    let give_up_at = Instant::now() + CONNECT_PATIENCE;
    loop {
        let address: SocketAddr = gate.peer(destination).ok_or(Refusal::Unreachable)?;
        let tried = timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await;
        match tried {
            Ok(Ok(stream)) => {
                tcp::tune(&stream);
                return Ok(stream);
            }
            _ if Instant::now() >= give_up_at => return Err(Refusal::Unreachable),
            _ => {
                gate.metrics.connect_retries.inc();
                sleep(CONNECT_PAUSE).await;
            }
        }
    }
}

/// The handshake as the upstream gets it.
fn request(head: &Head<'_>, admitted: &Admitted) -> Vec<u8> {
    let scrub = Scrub::new(head, admitted.trust);
    let mut bytes = format!("GET {} HTTP/1.1\r\n", head.target).into_bytes();
    push_field(&mut bytes, "Connection", b"Upgrade");
    push_field(&mut bytes, "Upgrade", b"websocket");
    for field in head.fields.iter().filter(|field| scrub.keeps(field.name)) {
        if field.name.eq_ignore_ascii_case("sec-websocket-extensions") {
            let offers = without_deflate(&String::from_utf8_lossy(field.value));
            if !offers.is_empty() {
                push_field(&mut bytes, field.name, offers.as_bytes());
            }
        } else {
            push_field(&mut bytes, field.name, field.value);
        }
    }
    if let Some(cookie) = scrub.cookie() {
        push_field(&mut bytes, "Cookie", &cookie);
    }
    for (name, value) in &admitted.headers {
        push_field(&mut bytes, name, value.as_bytes());
    }
    bytes.extend_from_slice(b"\r\n");
    bytes
}

async fn read_response(
    upstream: &mut TcpStream,
    admitted: &Admitted,
) -> Result<(Response, BytesMut), Refusal> {
    let deadline = Instant::now() + ANSWER_TIMEOUT;
    let mut bytes = BytesMut::new();
    loop {
        match response::parse(&bytes, admitted.trust == Trust::Service) {
            Ok(Some(response)) => {
                bytes.advance(response.length);
                if response.follows != Follows::Head {
                    return Ok((response, bytes));
                }
                continue;
            }
            Ok(None) => {}
            Err(_) => return Err(Refusal::BadGateway),
        }
        bytes.reserve(2048);
        match timeout_at(deadline, upstream.read_buf(&mut bytes)).await {
            Ok(Ok(1..)) => {}
            _ => return Err(Refusal::BadGateway),
        }
    }
}

async fn relay(
    front: &Front,
    mut conn: Box<Conn>,
    mut upstream: TcpStream,
    response: Response,
    mut rest: BytesMut,
    head: &Head<'_>,
    admitted: Admitted,
) -> io::Result<u64> {
    let stall = front.limits.stall_timeout;
    let written = timeout(stall, conn.write_all(&response.head)).await;
    written.map_err(|_| io::ErrorKind::TimedOut)??;
    let mut left = match response.follows {
        Follows::Stream => {
            conn.flush().await?;
            drop(response);
            let listener = listener(head, admitted);
            let _open = Open::new(&front.metrics);
            return Pump::new(conn, upstream, rest, listener).run(front.going.cancelled()).await;
        }
        other => other,
    };
    let mut moved = 0;
    loop {
        let there = rest.len();
        let (now, done) = match &mut left {
            Follows::Length(length) => {
                let now = there.min(usize::try_from(*length).unwrap_or(usize::MAX));
                *length -= now as u64;
                (now, *length == 0)
            }
            Follows::Chunked(body) => {
                let now = body.advance(&rest).map_err(|_| io::ErrorKind::InvalidData)?;
                (now, body.is_done())
            }
            _ => (there, false),
        };
        let written = timeout(stall, conn.write_all(rest.get(..now).unwrap_or_default())).await;
        written.map_err(|_| io::ErrorKind::TimedOut)??;
        moved += now as u64;
        rest.clear();
        if done || timeout(stall, upstream.read_buf(&mut rest)).await?? == 0 {
            break;
        }
    }
    conn.shutdown().await?;
    Ok(moved)
}

fn listener(head: &Head<'_>, admitted: Admitted) -> Listener {
    let channel = match &admitted.destination {
        Destination::Workload(grant) => classify::channel(grant.protocol(), head.path()),
        Destination::Service { .. } => classify::Channel::Background,
    };
    Listener { channel, guard: admitted.guard, opened: Instant::now() }
}

/// Counts an open WebSocket.
struct Open<'a>(&'a Metrics);

impl<'a> Open<'a> {
    fn new(metrics: &'a Metrics) -> Self {
        metrics.websockets.inc();
        metrics.websockets_opened.inc();
        Self(metrics)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.websockets.dec();
    }
}
