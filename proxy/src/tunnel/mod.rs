//! Upgraded streams: the handshake through the gate, and then both directions byte for byte with no
//! time limit. A tunnel ends when one of its ends does, or when the gateway has to go.

pub mod frames;
mod pump;
pub mod response;

use std::{io, net::IpAddr, sync::Arc, time::Duration};

use bytes::{Buf, Bytes, BytesMut};
use domain::{classify, endpoint::Outstanding};
use jiff::Timestamp;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{Instant, timeout, timeout_at},
};

use self::{
    frames::Farewell,
    pump::{Listener, Pump},
    response::{Follows, Malformed, Response, Wanted, push_field, without_deflate},
};
use crate::{
    access_log,
    answer::{Outgoing, Refusal},
    front::{
        Front,
        conn::Conn,
        head::{self, FIELDS_MAX},
        write_answer,
    },
    gate::{
        Admitted, Destination, Gate, Verdict,
        head::{Audience, Head},
        limits::Held,
        live::Presence,
        scrub::Scrub,
    },
    io::ToPod,
    metrics::Metrics,
    upstream::{CONNECT_PATIENCE, CONNECT_TIMEOUT, HANDSHAKES_MAX, Picked, Tried, stream},
};

/// For the upstream to answer the handshake. Some start a kernel first.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(120);
/// For a refusal to be taken by the client.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(5);

/// How an exchange ended, for the log.
struct Ended {
    status: u16,
    bytes: u64,
    broken_off: bool,
}

/// What is logged of it, kept while everything else of the handshake is forgotten: an idle WebSocket
/// should cost little.
struct Asked {
    from: IpAddr,
    host: String,
    path: String,
    user: Option<String>,
    started: Instant,
    /// Until the right to the workload is lost.
    presence: Option<Presence>,
    /// What the stream counts against for as long as it is open.
    held: Held,
    /// Counts at the pod for as long as the tunnel is open.
    outstanding: Option<Outstanding>,
}

/// Serves one handshake, whose head the front has found well-formed. The connection ends with it.
pub async fn serve(front: &Front, conn: Box<Conn>, head: Bytes) {
    let (mut asked, pump) = match Box::pin(handshake(front, conn, &head)).await {
        Handshake::Upgraded(asked, pump) => (asked, pump),
        Handshake::Over => return,
    };
    drop(head);
    let _open = Open::new(&front.metrics);
    let presence = asked.presence.take();
    let going = async {
        let lost = async {
            match &presence {
                Some(presence) => presence.lost().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = front.going.cancelled() => Farewell::GoingAway,
            () = lost => Farewell::RightLost,
        }
    };
    let moved = pump.run(going).await;
    let ended =
        Ended { status: 101, bytes: *moved.as_ref().unwrap_or(&0), broken_off: moved.is_err() };
    asked.log(front, &ended, true);
}

enum Handshake {
    Upgraded(Box<Asked>, Box<Pump<Box<Conn>, ToPod>>),
    /// Refused, answered otherwise, or left.
    Over,
}

async fn handshake(front: &Front, mut conn: Box<Conn>, head_bytes: &[u8]) -> Handshake {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let Ok(parsed) = head::parse(head_bytes, &mut fields) else { return Handshake::Over };
    let head = parsed.head;
    let mut asked = Asked {
        from: conn.client(),
        host: head.authority.to_owned(),
        path: head.path().to_owned(),
        user: None,
        started: Instant::now(),
        presence: None,
        held: Held::default(),
        outstanding: None,
    };
    let client = conn.client_socket();
    let verdict = tokio::select! {
        verdict = front.gate.admit(&head, client, Timestamp::now()) => verdict,
        // A client that gives up waiting gives its place back.
        () = conn.closed() => return Handshake::Over,
    };
    let mut admitted = match verdict {
        Verdict::Answer(answer) => {
            let ended = refuse(&mut conn, &answer).await;
            asked.log(front, &ended, false);
            return Handshake::Over;
        }
        Verdict::Forward(admitted) => admitted,
    };
    asked.user = admitted.user().map(str::to_owned);
    asked.held = std::mem::take(&mut admitted.held);
    let dialled = async {
        let (mut upstream, mut picked) = connect(&front.gate, &admitted).await?;
        let exchanged = async {
            let written = upstream.write_all(&request(&head, &admitted)).await;
            written.map_err(|_| Refusal::BadGateway)?;
            let wanted = Wanted {
                admitted: Some(&admitted),
                hsts: front.gate.hsts.as_ref(),
                sticky: picked.set_cookie.as_deref(),
            };
            read_response(&mut upstream, &wanted).await
        };
        match exchanged.await {
            Ok((response, rest)) => {
                picked.answered(Instant::now());
                Ok((upstream, picked.into_outstanding(), response, rest))
            }
            Err(refusal) => {
                picked.failed(Instant::now());
                Err(front.gate.refuse(&admitted.besides, &refusal, Audience::Upgrade))
            }
        }
    };
    let dialled = tokio::select! {
        dialled = dialled => dialled,
        // What the client sends before the 101 stays here; that it leaves is noticed.
        () = conn.closed() => {
            asked.log(front, &Ended { status: 0, bytes: 0, broken_off: true }, true);
            return Handshake::Over;
        }
    };
    let (upstream, outstanding, response, rest) = match dialled {
        Ok(dialled) => dialled,
        Err(answer) => {
            let ended = refuse(&mut conn, &answer).await;
            asked.log(front, &ended, true);
            return Handshake::Over;
        }
    };
    conn.lend_all();
    let stall = front.limits.stall_timeout;
    if response.follows == Follows::Stream {
        let written = timeout(stall, async {
            conn.write_all(&response.head).await?;
            conn.flush().await
        });
        if !matches!(written.await, Ok(Ok(()))) {
            asked.log(front, &Ended { status: 101, bytes: 0, broken_off: true }, true);
            return Handshake::Over;
        }
        asked.outstanding = outstanding;
        asked.presence = front.gate.enter(&admitted.destination);
        let listener = listener(&head, *admitted, front.gate.clone());
        return Handshake::Upgraded(
            Box::new(asked),
            Box::new(Pump::new(conn, upstream, rest, listener)),
        );
    }
    let status = response.status;
    let moved = relay(conn, upstream, response, rest, stall).await;
    let bytes = *moved.as_ref().unwrap_or(&0);
    asked.log(front, &Ended { status, bytes, broken_off: moved.is_err() }, true);
    Handshake::Over
}

impl Asked {
    fn log(&mut self, front: &Front, ended: &Ended, admitted: bool) {
        self.held.answered(ended.status);
        front.metrics.answered("tunnel", ended.status);
        let line = access_log::Line {
            from: self.from,
            method: "GET",
            host: &self.host,
            path: &self.path,
            status: ended.status,
            bytes: ended.bytes,
            took: self.started.elapsed(),
            user: self.user.as_deref(),
            admitted,
            broken_off: ended.broken_off,
        };
        front.gate.access_log.write(&line, Timestamp::now());
    }
}

async fn refuse(conn: &mut Conn, answer: &Outgoing) -> Ended {
    let written = timeout(REFUSAL_TIMEOUT, async {
        write_answer(conn, answer, false, true).await?;
        conn.shutdown().await
    });
    let broken_off = !matches!(written.await, Ok(Ok(())));
    Ended { status: answer.status, bytes: 0, broken_off }
}

/// Dials for a bounded time: a workload that has just become ready may refuse an instant longer.
async fn connect(gate: &Gate, admitted: &Admitted) -> Result<(ToPod, Picked), Outgoing> {
    let missed = || gate.missed(admitted, Audience::Upgrade);
    let give_up_at = Instant::now() + CONNECT_PATIENCE;
    let mut tried = Tried::default();
    loop {
        let mut picked = gate.pick_after(admitted, &tried).await.ok_or_else(missed)?;
        let connected = stream::connect(&picked, &gate.tls);
        match timeout(CONNECT_TIMEOUT, connected).await {
            Ok(Ok(stream)) => return Ok((stream, picked)),
            // What TLS finds wrong.
            Ok(Err(error))
                if error.kind() == io::ErrorKind::InvalidData
                    && tried.count() + 1 >= HANDSHAKES_MAX =>
            {
                picked.failed(Instant::now());
                return Err(gate.refuse(
                    &admitted.besides,
                    &Refusal::BadGateway,
                    Audience::Upgrade,
                ));
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
}

/// The handshake as the upstream gets it.
fn request(head: &Head<'_>, admitted: &Admitted) -> Vec<u8> {
    let scrub = Scrub::of(head, admitted);
    let mut bytes = format!("GET {} HTTP/1.1\r\n", admitted.target(head)).into_bytes();
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
    admitted.fields(head, |name, value| push_field(&mut bytes, name, value));
    bytes.extend_from_slice(b"\r\n");
    bytes
}

async fn read_response(
    upstream: &mut ToPod,
    wanted: &Wanted<'_>,
) -> Result<(Response, BytesMut), Refusal> {
    let deadline = Instant::now() + ANSWER_TIMEOUT;
    let mut bytes = BytesMut::new();
    loop {
        match response::parse(&bytes, wanted) {
            Ok(Some(response)) => {
                bytes.advance(response.length);
                if response.follows != Follows::Head {
                    return Ok((response, bytes));
                }
                continue;
            }
            Ok(None) => {}
            Err(Malformed(fault)) => return Err(Refusal::BadAnswer(fault)),
        }
        bytes.reserve(2048);
        match timeout_at(deadline, upstream.read_buf(&mut bytes)).await {
            Ok(Ok(1..)) => {}
            _ => return Err(Refusal::BadGateway),
        }
    }
}

/// Another answer than 101, to its end as it says itself.
async fn relay(
    mut conn: Box<Conn>,
    mut upstream: ToPod,
    response: Response,
    mut rest: BytesMut,
    stall: Duration,
) -> io::Result<u64> {
    let written = timeout(stall, conn.write_all(&response.head)).await;
    written.map_err(|_| io::ErrorKind::TimedOut)??;
    let mut left = response.follows;
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

fn listener(head: &Head<'_>, admitted: Admitted, gate: Arc<Gate>) -> Listener {
    let reader = match &admitted.destination {
        Destination::Workload(grant) => {
            let subprotocol = head.single("sec-websocket-protocol").unwrap_or_default();
            classify::Reader::new(grant.protocol(), head.path(), head.query(), subprotocol)
        }
        Destination::Service { .. } => classify::Reader::background(),
    };
    Listener::new(reader, admitted.guard, gate, Timestamp::now())
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
