//! The bytes of one exchange, both ways at once: an answer may begin, and even end, while the request
//! is still on its way, and neither side that is slow stops the other.

use std::{
    future::Future,
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Buf, BufMut, BytesMut};
use tokio::{io::AsyncWrite, net::TcpStream, time::Instant};
use tokio_util::{
    io::poll_read_buf,
    sync::{CancellationToken, WaitForCancellationFutureOwned},
};

use super::{
    answer::{self, Follows, Malformed, Wanted},
    deadline::Deadline,
    request::Plain,
};
use crate::{
    answer::Fault,
    front::conn::Conn,
    gate::{
        Admitted, Destination, Gate,
        live::{LOOK_EVERY, Presence},
        scrub::Trust,
    },
    upstream::Picked,
};

/// How much is read at first, and how much once a body turns out to be large.
const READ: usize = 8 * 1024;
const READ_LARGE: usize = 64 * 1024;
/// How much of a request is kept in case it has to be sent again.
const REPLAY_MAX: usize = 64 * 1024;

/// Why an exchange ended before its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Broken {
    /// The client closed its connection, or it broke.
    Client,
    /// The upstream closed or broke.
    Upstream,
    /// Its answer cannot be passed on.
    Malformed(Fault),
    /// Nothing moved for too long.
    Stalled,
    /// The client takes longer for the request's body than it may.
    BodyTooSlow,
    /// The right to the workload was lost.
    RightLost,
}

pub struct Exchange {
    pub plain: Plain,
    /// Whether the client's connection may be kept; decided with the answer's head.
    pub keep_alive: bool,
    /// Of the answer; 0 before it came.
    pub status: u16,
    /// Bytes of the answer's body as the client got them.
    pub bytes: u64,
    /// For the upstream: the head, and what of the body was taken from the client.
    up: BytesMut,
    up_at: usize,
    /// What of the body is still with the client.
    body_left: u64,
    /// `up` still holds everything from the first byte.
    replayable: bool,
    /// The upstream takes no more. It may have answered all the same.
    up_broken: bool,
    /// From the upstream, not yet looked at.
    down: BytesMut,
    /// For the client.
    out: BytesMut,
    out_at: usize,
    out_flushed: bool,
    begun: bool,
    phase: Phase,
    reusable: bool,
    moved: Instant,
    checked: Instant,
    watch: Option<Watch>,
}

#[derive(Debug, PartialEq, Eq)]
enum Phase {
    Answer(Follows),
    Done,
}

/// A long exchange is told when the right to it is lost.
struct Watch {
    _presence: Presence,
    lost: Pin<Box<WaitForCancellationFutureOwned>>,
}

/// What an exchange is carried with.
pub struct With<'a> {
    pub gate: &'a Gate,
    pub admitted: &'a Admitted,
    pub picked: Option<Picked>,
    pub deadline: &'a mut Deadline,
    pub stall: Duration,
    /// How long the next bytes of the request's body may take to come.
    pub body_stall: Duration,
    /// By when the request's body must be there.
    pub body_due: Option<Instant>,
    /// No more requests are taken.
    pub stopping: bool,
}

impl Exchange {
    pub fn new(plain: Plain, head: BytesMut, now: Instant) -> Self {
        Self {
            plain,
            keep_alive: false,
            status: 0,
            bytes: 0,
            up: head,
            up_at: 0,
            body_left: plain.body,
            replayable: true,
            up_broken: false,
            down: BytesMut::new(),
            out: BytesMut::new(),
            out_at: 0,
            out_flushed: true,
            begun: false,
            phase: Phase::Answer(Follows::Head),
            reusable: false,
            moved: now,
            checked: now,
            watch: None,
        }
    }

    /// Whether the upstream can be given another request.
    pub fn upstream_reusable(&self) -> bool {
        self.reusable
            && self.phase == Phase::Done
            && self.body_left == 0
            && self.up_at == self.up.len()
            && self.down.is_empty()
    }

    /// Whether all of the request was taken from the client.
    pub fn is_request_read(&self) -> bool {
        self.body_left == 0
    }

    /// Whether the client may have seen some of the answer, and it is too late for another one.
    pub fn is_begun(&self) -> bool {
        self.begun
    }

    /// Whether any of an answer came.
    fn is_answered(&self) -> bool {
        self.status != 0 || !self.down.is_empty()
    }

    /// Prepares for another connection, if the request may be sent on one: it is still here, nothing
    /// of an answer came, and either nothing was sent or sending it twice does no harm.
    pub fn rewind(&mut self) -> bool {
        let may =
            self.replayable && !self.is_answered() && (self.plain.idempotent || self.up_at == 0);
        if may {
            self.up_at = 0;
            self.up_broken = false;
        }
        may
    }

    /// Carries bytes until the answer is with the client.
    pub fn poll(
        &mut self,
        cx: &mut Context<'_>,
        conn: &mut Conn,
        upstream: &mut TcpStream,
        with: &mut With<'_>,
    ) -> Poll<Result<(), Broken>> {
        loop {
            let mut moved = self.send_request(cx, conn, upstream, with)?;
            if self.body_left == 0 {
                // Nothing is expected of the client but that it stays.
                while let Poll::Ready(read) = conn.poll_ahead(cx) {
                    if !matches!(read, Ok(1..)) {
                        return Poll::Ready(Err(Broken::Client));
                    }
                }
            }
            moved |= self.send_answer(cx, conn)?;
            if self.out.is_empty() && self.out_flushed {
                if self.phase == Phase::Done {
                    return Poll::Ready(Ok(()));
                }
                moved |= self.read_answer(cx, upstream, with)?;
            }
            if !moved {
                return self.pause(cx, with);
            }
            self.moved = Instant::now();
            if self.moved.duration_since(self.checked) >= LOOK_EVERY {
                self.checked = self.moved;
                if !with.gate.may_go_on(&with.admitted.destination) {
                    return Poll::Ready(Err(Broken::RightLost));
                }
            }
        }
    }

    /// Nothing moves now: what may end the wait besides.
    fn pause(&mut self, cx: &mut Context<'_>, with: &mut With<'_>) -> Poll<Result<(), Broken>> {
        // How long an answer takes is the workload's business; everything else has to move.
        let answering = self.out.is_empty() && self.body_left == 0 && self.up_at == self.up.len();
        let owes_body = self.body_left > 0 && self.up_at == self.up.len() && self.out.is_empty();
        let patience = if owes_body { with.stall.min(with.body_stall) } else { with.stall };
        let stalled = (!answering).then(|| self.moved + patience);
        let body_due = with.body_due.filter(|_| self.body_left > 0);
        let over = stalled.min(body_due).or(stalled);
        // Only what takes a while is put where lost rights are looked for.
        let to_workload = matches!(with.admitted.destination, Destination::Workload(_));
        let unwatched = to_workload && self.watch.is_none();
        let enter_at = (unwatched && self.status < 200).then(|| self.moved + LOOK_EVERY);
        with.deadline.set(over.min(enter_at).or(over).or(enter_at));
        while with.deadline.poll_over(cx).is_ready() {
            let now = Instant::now();
            if over.is_some_and(|over| over <= now) {
                let slow = owes_body || body_due.is_some_and(|due| due <= now);
                return Poll::Ready(Err(if slow { Broken::BodyTooSlow } else { Broken::Stalled }));
            }
            self.enter(with);
            with.deadline.set(over);
        }
        if unwatched && self.status >= 200 {
            self.enter(with);
        }
        if let Some(watch) = &mut self.watch
            && watch.lost.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Err(Broken::RightLost));
        }
        Poll::Pending
    }

    /// From here on a right that is lost ends the exchange, though nothing moves.
    fn enter(&mut self, with: &With<'_>) {
        self.watch = with.gate.enter(&with.admitted.destination).map(|presence| {
            let lost = Box::pin(CancellationToken::cancelled_owned(presence.token()));
            Watch { _presence: presence, lost }
        });
    }

    fn send_request(
        &mut self,
        cx: &mut Context<'_>,
        conn: &mut Conn,
        upstream: &mut TcpStream,
        with: &With<'_>,
    ) -> Result<bool, Broken> {
        let mut moved = false;
        while !self.up_broken {
            let rest = self.up.get(self.up_at..).unwrap_or_default();
            if rest.is_empty() {
                if self.body_left == 0 {
                    break;
                }
                if self.up.len() > REPLAY_MAX {
                    self.replayable = false;
                    self.up.clear();
                    self.up_at = 0;
                }
                let there = self.up.len();
                match conn.poll_body(cx, &mut self.up, self.body_left) {
                    Poll::Ready(Ok(read @ 1..)) => {
                        self.body_left -= read as u64;
                        let read = self.up.get(there..).unwrap_or_default();
                        with.gate.hear_body(with.admitted, read, self.body_left == 0);
                    }
                    Poll::Ready(Err(slow)) if slow.kind() == io::ErrorKind::TimedOut => {
                        return Err(Broken::BodyTooSlow);
                    }
                    Poll::Ready(_) => return Err(Broken::Client),
                    Poll::Pending => break,
                }
            } else {
                match Pin::new(&mut *upstream).poll_write(cx, rest) {
                    Poll::Ready(Ok(written @ 1..)) => self.up_at += written,
                    Poll::Ready(_) => self.up_broken = true,
                    Poll::Pending => break,
                }
            }
            moved = true;
        }
        Ok(moved)
    }

    fn send_answer(&mut self, cx: &mut Context<'_>, conn: &mut Conn) -> Result<bool, Broken> {
        let mut moved = false;
        while let Some(rest) = self.out.get(self.out_at..).filter(|rest| !rest.is_empty()) {
            match Pin::new(&mut *conn).poll_write(cx, rest) {
                Poll::Ready(Ok(written @ 1..)) => {
                    self.out_at += written;
                    self.out_flushed = false;
                    self.begun |= self.status >= 200;
                    moved = true;
                }
                Poll::Ready(_) => return Err(Broken::Client),
                Poll::Pending => return Ok(moved),
            }
        }
        self.out.clear();
        self.out_at = 0;
        if !self.out_flushed {
            match Pin::new(conn).poll_flush(cx) {
                Poll::Ready(Ok(())) => {
                    self.out_flushed = true;
                    moved = true;
                }
                Poll::Ready(Err(_)) => return Err(Broken::Client),
                Poll::Pending => {}
            }
        }
        Ok(moved)
    }

    fn read_answer(
        &mut self,
        cx: &mut Context<'_>,
        upstream: &mut TcpStream,
        with: &mut With<'_>,
    ) -> Result<bool, Broken> {
        let Phase::Answer(follows) = &self.phase else { return Ok(false) };
        // What is passed on as it came is read to where it leaves from.
        let looked_at = matches!(follows, Follows::Head | Follows::UntilClosed);
        let into = if looked_at { &mut self.down } else { &mut self.out };
        let room = if self.bytes > READ_LARGE as u64 { READ_LARGE } else { READ };
        into.reserve(room);
        let read = match poll_read_buf(Pin::new(upstream), cx, into) {
            Poll::Ready(Ok(read)) => read,
            Poll::Ready(Err(_)) => return Err(Broken::Upstream),
            Poll::Pending => return Ok(false),
        };
        if self.status == 0
            && read > 0
            && let Some(picked) = &mut with.picked
        {
            picked.answered(Instant::now());
        }
        match (&mut self.phase, read) {
            (Phase::Answer(Follows::UntilClosed), 0) => {
                self.out.put_slice(b"0\r\n\r\n");
                self.phase = Phase::Done;
            }
            (_, 0) => return Err(Broken::Upstream),
            (Phase::Answer(Follows::Head), _) => self.take_heads(with)?,
            (Phase::Answer(Follows::UntilClosed), _) => self.wrap(),
            (..) => self.check_body(0)?,
        }
        Ok(true)
    }

    /// Heads at the start of `down`: interim ones, and then the last with what is there of its body.
    fn take_heads(&mut self, with: &With<'_>) -> Result<(), Broken> {
        loop {
            let wanted = Wanted {
                head_only: self.plain.head_only,
                keep_cookies: with.admitted.trust == Trust::Service,
                admitted: Some(with.admitted),
                sticky: with.picked.as_ref().and_then(|picked| picked.set_cookie.as_deref()),
                hsts: with.gate.hsts.as_ref(),
                // An answer before the end of the request: the rest of it is not waited for.
                keep_alive: !self.plain.close && !with.stopping && self.body_left == 0,
            };
            let head = match answer::read(&self.down, &wanted, &mut self.out) {
                Ok(Some(head)) => head,
                Ok(None) => return Ok(()),
                Err(Malformed(fault)) => return Err(Broken::Malformed(fault)),
            };
            self.down.advance(head.length);
            self.status = head.status;
            if head.follows == Follows::Head {
                continue;
            }
            self.keep_alive = wanted.keep_alive;
            self.reusable = head.reusable;
            self.phase = Phase::Answer(head.follows);
            if self.phase == Phase::Answer(Follows::UntilClosed) {
                self.wrap();
            } else {
                let head = self.out.len();
                self.out.extend_from_slice(&self.down);
                self.down.clear();
                self.check_body(head)?;
            }
            return Ok(());
        }
    }

    /// Looks at the bytes of the body in `out` from there on, and drops what is behind its end.
    fn check_body(&mut self, from: usize) -> Result<(), Broken> {
        let Phase::Answer(follows) = &mut self.phase else { return Ok(()) };
        let there = self.out.len() - from;
        let (taken, done) = match follows {
            Follows::Length(left) => {
                let taken = there.min(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= taken as u64;
                (taken, *left == 0)
            }
            Follows::Chunked(body) => {
                let bytes = self.out.get(from..).unwrap_or_default();
                let taken = body.advance(bytes).map_err(|_| Broken::Upstream)?;
                (taken, body.is_done())
            }
            Follows::Head | Follows::UntilClosed => (there, false),
        };
        self.bytes += taken as u64;
        if taken < there {
            self.out.truncate(from + taken);
            self.reusable = false;
        }
        if done {
            self.phase = Phase::Done;
        }
        Ok(())
    }

    /// Makes a chunk of what is in `down`.
    fn wrap(&mut self) {
        if self.down.is_empty() {
            return;
        }
        self.bytes += self.down.len() as u64;
        let size = format!("{:x}\r\n", self.down.len());
        self.out.reserve(size.len() + self.down.len() + 2);
        self.out.put_slice(size.as_bytes());
        self.out.put_slice(&self.down);
        self.out.put_slice(b"\r\n");
        self.down.clear();
    }
}
