//! Both directions of an upgraded stream, in one task and almost no memory: bytes go through a
//! buffer of the thread, and only what the other side does not take at once is kept. A side that does
//! not read stops the other one from being read, and nothing else happens.

use std::{
    cell::RefCell,
    future::poll_fn,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, BytesMut};
use domain::{
    activity::Guard,
    classify::{Content, From, Name, Reader, Socket},
};
use jiff::Timestamp;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::timeout,
};

use super::frames::{Farewell, Frames, Seen, Towards, close_frame};
use crate::{gate::Gate, seldom::seldom};

/// Bytes that are moved at once.
const SCRATCH: usize = 16 * 1024;
/// After one side has ended and nothing moves any more, for so long the other one may still speak.
const HALF_OPEN: Duration = Duration::from_secs(60);
/// For the Close frame to be answered.
const GOODBYE: Duration = Duration::from_secs(2);

thread_local! {
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; SCRATCH].into());
}

/// Who sends in a direction.
struct Direction {
    frames: Frames,
    /// Read and not yet taken by the other side.
    pending: BytesMut,
    flush: bool,
    ended: bool,
    shut: bool,
    moved: u64,
    /// Our own Close frame was put in; what follows from the sender is dropped.
    said_goodbye: bool,
    saw_close: bool,
}

impl Direction {
    fn new(content: Content) -> Self {
        Self {
            frames: Frames::new(content),
            pending: BytesMut::new(),
            flush: false,
            ended: false,
            shut: false,
            moved: 0,
            said_goodbye: false,
            saw_close: false,
        }
    }

    /// Moves what can be moved now. Ready when the sender has ended and the other side was told.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut (impl AsyncRead + Unpin),
        to: &mut (impl AsyncWrite + Unpin),
        goodbye: Option<(Farewell, Towards)>,
        mut seen: impl FnMut(Seen<'_>),
    ) -> Poll<io::Result<()>> {
        loop {
            if let Some((farewell, towards)) = goodbye
                && !self.said_goodbye
                && !self.ended
                && self.frames.at_boundary()
            {
                self.pending.extend_from_slice(&close_frame(farewell, towards));
                self.said_goodbye = true;
            }
            while !self.pending.is_empty() {
                let written = ready!(Pin::new(&mut *to).poll_write(cx, &self.pending))?;
                if written == 0 {
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                self.pending.advance(written);
                self.flush = true;
            }
            if self.pending.capacity() > 0 {
                self.pending = BytesMut::new();
            }
            if self.ended {
                if !self.shut {
                    ready!(Pin::new(&mut *to).poll_shutdown(cx))?;
                    self.shut = true;
                }
                return Poll::Ready(Ok(()));
            }
            let read = BUFFER
                .with_borrow_mut(|buffer| self.poll_once(cx, from, to, goodbye, buffer, &mut seen));
            match read {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    if self.flush {
                        ready!(Pin::new(&mut *to).poll_flush(cx))?;
                        self.flush = false;
                    }
                    return Poll::Pending;
                }
            }
        }
    }

    /// One read, and the write of it as far as it goes.
    fn poll_once(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut (impl AsyncRead + Unpin),
        to: &mut (impl AsyncWrite + Unpin),
        goodbye: Option<(Farewell, Towards)>,
        buffer: &mut [u8],
        seen: &mut impl FnMut(Seen<'_>),
    ) -> Poll<io::Result<()>> {
        let mut read = ReadBuf::new(buffer);
        ready!(Pin::new(&mut *from).poll_read(cx, &mut read))?;
        let mut bytes = read.filled();
        if bytes.is_empty() {
            self.ended = true;
            return Poll::Ready(Ok(()));
        }
        self.moved += bytes.len() as u64;
        let mut close = false;
        let mut look = |frames: &mut Frames, bytes: &[u8]| {
            frames.pass(bytes, |what| {
                close |= what == Seen::Close;
                seen(what);
            });
        };
        if let Some((farewell, towards)) = goodbye {
            // Only the frame that is under way still goes through, and then ours.
            let rest = if self.said_goodbye { 0 } else { self.frames.to_boundary(bytes) };
            let (last, dropped) = bytes.split_at(rest.min(bytes.len()));
            look(&mut self.frames, last);
            self.pending.extend_from_slice(last);
            if !self.said_goodbye && self.frames.at_boundary() {
                self.pending.extend_from_slice(&close_frame(farewell, towards));
                self.said_goodbye = true;
            }
            look(&mut self.frames, dropped);
            bytes = &[];
        } else {
            look(&mut self.frames, bytes);
        }
        self.saw_close |= close;
        while !bytes.is_empty() {
            match Pin::new(&mut *to).poll_write(cx, bytes) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(written)) => {
                    self.flush = true;
                    bytes = bytes.get(written..).unwrap_or_default();
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    self.pending.extend_from_slice(bytes);
                    break;
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    fn is_over(&self) -> bool {
        self.ended && self.shut
    }
}

/// What is said by the client counts; what the workload says is looked at only where it tells what
/// the client's answer means.
pub struct Listener {
    reader: Reader,
    guard: Option<Guard>,
    socket: Socket,
    gate: Arc<Gate>,
}

impl Listener {
    pub fn new(reader: Reader, guard: Option<Guard>, gate: Arc<Gate>, now: Timestamp) -> Self {
        Self { reader, guard, socket: Socket::new(now.as_millisecond()), gate }
    }

    fn wants(&self, from: From) -> Content {
        if self.guard.is_some() { self.reader.wants(from) } else { Content::No }
    }

    fn hear(&mut self, from: From, seen: &Seen<'_>) {
        let Self { reader, guard: Some(guard), socket, gate } = self else { return };
        let now = Timestamp::now();
        let mut judge = |name: Name| {
            let ruling = guard.hear(name, Some(socket), now);
            if from == From::Client {
                gate.metrics.judged(ruling.label(name));
            }
        };
        match seen {
            Seen::Message(message) => {
                judge(reader.message(from, message.opcode, &message.start));
            }
            Seen::Part(bytes) => reader.part(from, bytes, judge),
            Seen::Lost => judge(reader.lost(from)),
            Seen::Close => {}
        }
    }
}

pub struct Pump<C, U> {
    client: C,
    upstream: U,
    to_upstream: Direction,
    to_client: Direction,
    listener: Listener,
    leaving: Option<Farewell>,
}

#[derive(Debug, PartialEq, Eq)]
enum Event {
    HalfOver,
    Over,
}

impl<C, U> Pump<C, U>
where
    C: AsyncRead + AsyncWrite + Unpin,
    U: AsyncRead + AsyncWrite + Unpin,
{
    /// `early` is what the upstream has said already behind its 101.
    pub fn new(client: C, upstream: U, early: BytesMut, mut listener: Listener) -> Self {
        let mut to_client = Direction::new(listener.wants(From::Server));
        to_client.frames.pass(&early, |seen| listener.hear(From::Server, &seen));
        to_client.moved = early.len() as u64;
        to_client.pending = early;
        let to_upstream = Direction::new(listener.wants(From::Client));
        Self { client, upstream, to_upstream, to_client, listener, leaving: None }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Event>> {
        let Self { client, upstream, to_upstream, to_client, listener, leaving } = self;
        let was_over = to_upstream.is_over() || to_client.is_over();
        let goodbye = |towards| leaving.map(|why| (why, towards));
        let (to_pod, to_person) = (goodbye(Towards::Upstream), goodbye(Towards::Client));
        let up = to_upstream
            .poll(cx, client, upstream, to_pod, |seen| listener.hear(From::Client, &seen))?;
        let look = listener.wants(From::Server) != Content::No;
        let down = to_client.poll(cx, upstream, client, to_person, |seen| {
            if look {
                listener.hear(From::Server, &seen);
            }
        })?;
        // The client has heard us and answered: nothing more will come.
        let parted = leaving.is_some()
            && to_client.said_goodbye
            && to_client.pending.is_empty()
            && (to_upstream.saw_close || to_upstream.ended);
        match (up, down) {
            _ if parted => Poll::Ready(Ok(Event::Over)),
            (Poll::Ready(()), Poll::Ready(())) => Poll::Ready(Ok(Event::Over)),
            (Poll::Ready(()), _) | (_, Poll::Ready(())) if !was_over => {
                Poll::Ready(Ok(Event::HalfOver))
            }
            _ => Poll::Pending,
        }
    }

    async fn next(&mut self) -> io::Result<Event> {
        poll_fn(|cx| self.poll(cx)).await
    }

    fn moved(&self) -> u64 {
        self.to_client.moved + self.to_upstream.moved
    }

    async fn until_over(&mut self) -> io::Result<()> {
        if self.next().await? == Event::Over {
            return Ok(());
        }
        loop {
            let moved = self.moved();
            match timeout(HALF_OPEN, self.next()).await {
                Ok(Ok(_)) => return Ok(()),
                Ok(Err(error)) => return Err(error),
                Err(_) if self.moved() == moved => return Ok(()),
                Err(_) => {}
            }
        }
    }

    /// Runs until both sides have ended, or until `going` resolves; then both get a Close frame, with
    /// a moment to answer. Returns the bytes that were moved.
    pub async fn run(mut self, going: impl Future<Output = Farewell>) -> io::Result<u64> {
        let ended = tokio::select! {
            biased;
            ended = self.until_over() => Ok(ended),
            farewell = seldom(going) => Err(farewell),
        };
        match ended {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(error),
            Err(farewell) => {
                self.leaving = Some(farewell);
                let _ = timeout(GOODBYE, self.until_over()).await;
                let shut = poll_fn(|cx| {
                    let _ = ready!(Pin::new(&mut self.upstream).poll_shutdown(cx));
                    Pin::new(&mut self.client).poll_shutdown(cx)
                });
                let _ = timeout(GOODBYE, shut).await;
            }
        }
        Ok(self.moved())
    }
}
