//! The fast lane: the plainest exchange of HTTP/1.1, carried by ourselves, because that is nearly all
//! of the traffic and costs a fraction of what it costs in the general engine.
//!
//! It takes a request only if its head leaves nothing to interpret ([`request::Plain::of`]); whatever
//! is not exactly that, goes to pingora with the bytes that were read. The gate is the same.

mod answer;
mod deadline;
mod exchange;
mod pool;
mod request;

use std::{net::SocketAddr, ops::Range, sync::Arc, time::Duration};

use bytes::BytesMut;
use domain::upstream::UpstreamProtocol;
use futures::FutureExt;
use jiff::Timestamp;
use tokio::{
    net::TcpStream,
    time::{Instant, timeout},
};

use self::{
    exchange::{Broken, Exchange, With},
    pool::Pool,
    request::Plain,
};
use crate::{
    access_log,
    answer::{Outgoing, Refusal},
    front::{
        Front,
        conn::Conn,
        head::{self, FIELDS_MAX, Parsed},
        write_answer,
    },
    gate::{
        Admitted, Gate, Verdict,
        head::{Audience, Head},
    },
    metrics::Metrics,
    tcp,
    upstream::{CONNECT_PATIENCE, CONNECT_TIMEOUT, Picked, Tried},
};

pub use self::{
    answer::{
        FIELDS_MAX as ANSWER_FIELDS_MAX, HEAD_MAX as ANSWER_HEAD_MAX, number as answer_length,
    },
    deadline::Deadline,
};

/// For an answer of our own to be taken by the client.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(5);

/// What the exchanges of all connections share.
pub struct Lane {
    pool: Arc<Pool>,
}

impl Lane {
    /// Must be called within the runtime.
    pub fn new() -> Self {
        Self { pool: Pool::new() }
    }
}

/// A request that the lane takes.
pub struct Begun {
    plain: Plain,
    audience: Audience,
    /// Where in the head they are, for the log.
    method: Range<usize>,
    path: Range<usize>,
    host: Range<usize>,
    started: Instant,
    /// `None`: the gate waits for something.
    decided: Option<Decided>,
}

enum Decided {
    Forward(Box<Admitted>, Box<Exchange>),
    Answer(Outgoing),
}

/// Looks at a head, and lets the gate decide if the lane takes it: nearly always at once.
pub fn begin(front: &Front, from: SocketAddr, bytes: &[u8], parsed: &Parsed<'_>) -> Option<Begun> {
    let plain = Plain::of(parsed)?;
    let head = &parsed.head;
    if !front.gate.is_plain(head.authority) {
        return None;
    }
    let started = Instant::now();
    let verdict = front.gate.admit(head, from, Timestamp::now()).now_or_never();
    let within = |part: &str| {
        let start = (part.as_ptr() as usize).saturating_sub(bytes.as_ptr() as usize);
        start..start + part.len()
    };
    Some(Begun {
        audience: head.audience(),
        method: within(head.method),
        path: within(head.path()),
        host: within(head.authority),
        decided: verdict.map(|verdict| decided(verdict, plain, head, bytes.len(), started)),
        plain,
        started,
    })
}

fn decided(
    verdict: Verdict,
    plain: Plain,
    head: &Head<'_>,
    length: usize,
    started: Instant,
) -> Decided {
    match verdict {
        Verdict::Answer(answer) => Decided::Answer(answer),
        Verdict::Forward(admitted) => {
            let bytes = request::write(head, length, &admitted);
            Decided::Forward(admitted, Box::new(Exchange::new(plain, bytes, started)))
        }
    }
}

/// How an exchange ended, for the log.
#[derive(Default)]
struct Ended {
    status: u16,
    bytes: u64,
    broken_off: bool,
    /// The client's connection can serve another request.
    reusable: bool,
}

/// What becomes of the client's connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum After {
    /// It serves the next request.
    Next,
    /// It is closed once the client has the answer.
    Close,
    /// It is cut: the client must not take what it has for whole.
    Cut,
}

/// Carries a request whose head was taken from the connection.
pub async fn serve(
    front: &Front,
    conn: &mut Conn,
    deadline: &mut Deadline,
    mut begun: Begun,
    bytes: BytesMut,
) -> After {
    let decided = match begun.decided.take() {
        Some(decided) => decided,
        None => match Box::pin(wait(front, conn, &begun, &bytes)).await {
            Some(decided) => decided,
            None => {
                begun.log(
                    front,
                    conn,
                    &bytes,
                    &Ended { broken_off: true, ..Ended::default() },
                    None,
                );
                return After::Cut;
            }
        },
    };
    let (ended, admitted) = match decided {
        Decided::Answer(answer) => (say(front, conn, &begun.plain, &answer).await, None),
        Decided::Forward(mut admitted, mut exchange) => {
            let carried = carry(front, conn, deadline, &admitted, &mut exchange, &begun);
            let ended = carried.await;
            admitted.held.answered(ended.status);
            (ended, Some(admitted))
        }
    };
    begun.log(front, conn, &bytes, &ended, admitted.as_deref());
    match ended {
        Ended { broken_off: true, .. } => After::Cut,
        Ended { reusable: true, .. } => After::Next,
        Ended { .. } => After::Close,
    }
}

/// Waits for the gate: for a workload to wake, or a session to be renewed. `None` when the client has
/// left; it gives its place back.
async fn wait(front: &Front, conn: &mut Conn, begun: &Begun, bytes: &[u8]) -> Option<Decided> {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let parsed = head::parse(bytes, &mut fields).ok()?;
    let from = conn.client_socket();
    let verdict = tokio::select! {
        verdict = front.gate.admit(&parsed.head, from, Timestamp::now()) => verdict,
        () = conn.closed() => return None,
    };
    Some(decided(verdict, begun.plain, &parsed.head, bytes.len(), begun.started))
}

/// Writes an answer of our own.
async fn say(front: &Front, conn: &mut Conn, plain: &Plain, answer: &Outgoing) -> Ended {
    // A body that nobody reads is not taken for the next request.
    let close = answer.close || plain.close || plain.body > 0 || front.stopping.is_cancelled();
    let written =
        timeout(REFUSAL_TIMEOUT, write_answer(conn, answer, plain.head_only, close)).await;
    let broken_off = !matches!(written, Ok(Ok(())));
    Ended { status: answer.status, bytes: 0, broken_off, reusable: !broken_off && !close }
}

async fn carry(
    front: &Front,
    conn: &mut Conn,
    deadline: &mut Deadline,
    admitted: &Admitted,
    exchange: &mut Exchange,
    begun: &Begun,
) -> Ended {
    let (gate, pool, held) = (&front.gate, &front.lane.pool, &admitted.held);
    let mut with = With {
        gate,
        admitted,
        picked: None,
        deadline,
        stall: held.body_time.unwrap_or(front.limits.stall_timeout),
        body_stall: front.limits.body_stall,
        body_due: held.body_time.map(|time| begun.started + time),
        stopping: front.stopping.is_cancelled(),
    };
    let mut picked = gate.pick(admitted, &Tried::default(), Instant::now());
    let mut reuse = true;
    let outcome = loop {
        let twice = exchange.plain.idempotent;
        let number = picked.as_ref().filter(|picked| reuse && is_plain(picked));
        let waiting = number.and_then(|picked| pool.take(picked.pool, twice, Instant::now()));
        let reused = waiting.is_some();
        let mut stream = match waiting {
            Some(stream) => stream,
            None => match Box::pin(dial(gate, conn, admitted, picked.take(), begun.audience)).await
            {
                Ok((stream, dialled)) => {
                    picked = Some(dialled);
                    stream
                }
                Err(None) => break Err(Broken::Client),
                Err(Some(answer)) => {
                    return say(front, conn, &exchange.plain, &answer.closing()).await;
                }
            },
        };
        with.picked = picked.take();
        let carried = std::future::poll_fn(|cx| exchange.poll(cx, conn, &mut stream, &mut with));
        let carried = carried.await;
        picked = with.picked.take();
        match carried {
            Ok(()) => {
                if exchange.upstream_reusable()
                    && let Some(picked) = &picked
                {
                    pool.put(picked.pool, stream, Instant::now());
                }
                break Ok(());
            }
            // It was closed while it waited: that says nothing about the workload.
            Err(Broken::Upstream) if reused && exchange.rewind() => reuse = false,
            Err(broken) => {
                let its_doing = matches!(broken, Broken::Upstream | Broken::Malformed(_));
                if let (true, false, Some(picked)) = (its_doing, reused, &mut picked) {
                    picked.failed(Instant::now());
                }
                break Err(broken);
            }
        }
    };
    let refusal = match outcome {
        Ok(()) => {
            return Ended {
                status: exchange.status,
                bytes: exchange.bytes,
                broken_off: false,
                reusable: exchange.keep_alive && exchange.is_request_read(),
            };
        }
        Err(_) if exchange.is_begun() => None,
        Err(Broken::Upstream) => Some(Refusal::BadGateway),
        Err(Broken::Malformed(fault)) => Some(Refusal::BadAnswer(fault)),
        Err(Broken::BodyTooSlow) => Some(Refusal::BodyTooSlow),
        Err(_) => None,
    };
    let Some(refusal) = refusal else {
        return Ended {
            status: if exchange.is_begun() { exchange.status } else { 0 },
            bytes: exchange.bytes,
            broken_off: true,
            reusable: false,
        };
    };
    let answer = gate.refuse(&admitted.besides, &refusal, begun.audience).closing();
    say(front, conn, &exchange.plain, &answer).await
}

fn is_plain(picked: &Picked) -> bool {
    picked.protocol == UpstreamProtocol::Http1
}

/// Dials for a bounded time: a workload that has just become ready may refuse an instant longer.
/// `Err(None)` when the client has left.
async fn dial(
    gate: &Gate,
    conn: &mut Conn,
    admitted: &Admitted,
    mut first: Option<Picked>,
    audience: Audience,
) -> Result<(TcpStream, Picked), Option<Outgoing>> {
    let missed = || Some(gate.missed(admitted, audience));
    let dialled = async {
        let give_up_at = Instant::now() + CONNECT_PATIENCE;
        let mut tried = Tried::default();
        loop {
            let picked = match first.take() {
                Some(picked) => Some(picked),
                None => gate.pick_after(admitted, &tried).await,
            };
            let mut picked = picked.filter(is_plain).ok_or_else(missed)?;
            match timeout(CONNECT_TIMEOUT, TcpStream::connect(picked.address)).await {
                Ok(Ok(stream)) => {
                    tcp::tune(&stream);
                    return Ok((stream, picked));
                }
                _ => {
                    picked.failed(Instant::now());
                    if Instant::now() >= give_up_at {
                        return Err(missed());
                    }
                    tried.add(picked.address);
                    gate.metrics.connect_retries.inc();
                }
            }
        }
    };
    tokio::select! {
        dialled = dialled => dialled,
        () = conn.closed() => Err(None),
    }
}

impl Begun {
    fn log(
        &self,
        front: &Front,
        conn: &Conn,
        bytes: &[u8],
        ended: &Ended,
        admitted: Option<&Admitted>,
    ) {
        let took = self.started.elapsed();
        front.metrics.answered(Metrics::LANE, ended.status);
        front.metrics.seconds.observe(took.as_secs_f64());
        let part = |range: &Range<usize>| {
            let text = bytes.get(range.clone()).unwrap_or_default();
            std::str::from_utf8(text).unwrap_or_default()
        };
        let line = access_log::Line {
            from: conn.client(),
            method: part(&self.method),
            host: part(&self.host),
            path: part(&self.path),
            status: ended.status,
            bytes: ended.bytes,
            took,
            user: admitted.and_then(Admitted::user),
            admitted: admitted.is_some(),
            broken_off: ended.broken_off,
        };
        front.gate.access_log.write(&line, Timestamp::now());
    }
}
