//! A client's connection, lent to an engine for one exchange at a time.
//!
//! While it is lent it hands out exactly the bytes of that exchange: head and body, and not one byte
//! of what the client has pipelined behind them. So an engine can be changed between two requests
//! without asking the first one what it read too much.

use std::{
    fmt, io,
    net::{IpAddr, SocketAddr},
    os::fd::AsRawFd,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use async_trait::async_trait;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use pingora::protocols::{
    ALPN, GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl,
    TimingDigest, UniqueID, UniqueIDType, l4::socket::SocketAddr as PingoraAddr,
    raw_connect::ProxyDigest,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
    net::TcpStream,
    time::Instant,
};
use tokio_util::io::poll_read_buf;

use super::{chunked::Chunked, head::BodyFraming, limits::Permit, pace::Pace};
use crate::io::FromClient;

/// How much of a body is read at once.
const READ: usize = 16 * 1024;
/// How much of a head is read at once, and kept ready while none comes: idle connections are many.
const READ_HEAD: usize = 2 * 1024;
/// How much is kept of what a client pipelines.
const AHEAD_MAX: usize = 64 * 1024;
/// The longest head of an answer that waits for what follows it.
const HELD_MAX: usize = 4 * 1024;

pub struct Conn {
    io: FromClient,
    /// Read and not handed on.
    ahead: BytesMut,
    lent: Lent,
    ended: bool,
    /// The head of an answer, held back for as long as the borrower is busy: it is sent with the first
    /// bytes of the body, or when the borrower flushes or looks for what else the client sends.
    held: Bytes,
    /// The borrower has written nothing yet.
    unanswered: bool,
    /// Who asks: not always the peer, where a trusted hop says so of each request.
    client: SocketAddr,
    socket: Arc<SocketDigest>,
    /// Of the body that the client is sending.
    pub(super) pace: Option<Pace>,
    _permit: Permit,
}

/// What the borrower may still read.
#[derive(Debug)]
enum Lent {
    /// Everything (HTTP/2, or an upgraded stream).
    All,
    Length(u64),
    Chunked {
        head: usize,
        body: Chunked,
    },
}

impl Conn {
    pub fn new(io: FromClient, peer: SocketAddr, permit: Permit) -> Self {
        Self {
            socket: digest(&io, peer),
            io,
            ahead: BytesMut::new(),
            lent: Lent::All,
            ended: false,
            held: Bytes::new(),
            unanswered: false,
            client: peer,
            pace: None,
            _permit: permit,
        }
    }

    /// The client's address, for the request that is being served.
    pub fn client(&self) -> IpAddr {
        self.client.ip().to_canonical()
    }

    /// The same with the port, which is 0 where a hop in front of us has the connection.
    pub fn client_socket(&self) -> SocketAddr {
        self.client
    }

    /// What [`Self::client_socket`] is when that is who sends the next request.
    pub fn socket_of(&self, client: IpAddr) -> SocketAddr {
        if self.client.ip() == client { self.client } else { SocketAddr::new(client, 0) }
    }

    /// Sets who sends the next request.
    pub fn set_client(&mut self, client: IpAddr) {
        let client = self.socket_of(client);
        if client != self.client {
            self.client = client;
            self.socket = digest(&self.io, client);
        }
    }

    pub fn tcp(&self) -> &TcpStream {
        self.io.tcp()
    }

    pub fn is_h2(&self) -> bool {
        self.io.is_h2()
    }

    pub fn ahead(&self) -> &[u8] {
        &self.ahead
    }

    pub fn take_ahead(&mut self, length: usize) -> BytesMut {
        if length == self.ahead.len() {
            return std::mem::take(&mut self.ahead);
        }
        let taken = self.ahead.split_to(length.min(self.ahead.len()));
        self.forget_buffer();
        taken
    }

    /// Reads more of a head. `false` at the end of the stream.
    pub async fn read_ahead(&mut self) -> io::Result<bool> {
        self.ahead.reserve(READ_HEAD);
        Ok(self.io.read_buf(&mut self.ahead).await? > 0)
    }

    /// An empty buffer still holds its memory.
    fn forget_buffer(&mut self) {
        if self.ahead.is_empty() {
            self.ahead = BytesMut::new();
        }
    }

    /// From here on the borrower gets a head of that length and the body behind it.
    pub fn lend(&mut self, head: usize, body: BodyFraming) {
        self.unanswered = true;
        self.lent = match body {
            BodyFraming::Length(body) => Lent::Length(head as u64 + body),
            BodyFraming::Chunked => Lent::Chunked { head, body: Chunked::request() },
        };
    }

    /// The borrower gets all that follows.
    pub fn lend_all(&mut self) {
        self.lent = Lent::All;
        self.forget_buffer();
    }

    /// Whether the borrower has read its exchange to the end, and the next one can follow.
    pub fn is_at_end(&self) -> bool {
        match &self.lent {
            Lent::All => false,
            Lent::Length(left) => *left == 0,
            Lent::Chunked { head, body } => *head == 0 && body.is_done(),
        }
    }

    /// Reads what comes unasked, up to a bound: to notice that the client leaves. 0 at the end of the
    /// stream.
    pub fn poll_ahead(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.ended {
            return Poll::Ready(Ok(0));
        }
        if self.ahead.len() >= AHEAD_MAX {
            return Poll::Pending;
        }
        let read = self.poll_more(cx, READ_HEAD);
        self.forget_buffer();
        read
    }

    /// Reads of a body of which so much is left. 0 at the end of the stream.
    pub fn poll_body(
        &mut self,
        cx: &mut Context<'_>,
        into: &mut BytesMut,
        left: u64,
    ) -> Poll<io::Result<usize>> {
        let left = usize::try_from(left).unwrap_or(usize::MAX);
        if self.ahead.is_empty() {
            if self.ended {
                return Poll::Ready(Ok(0));
            }
            into.reserve(left.min(READ));
            let read = poll_read_buf(Pin::new(&mut self.io), cx, &mut into.limit(left.min(READ)));
            return self.paced(read);
        }
        let taken = self.ahead.len().min(left);
        into.extend_from_slice(self.ahead.get(..taken).unwrap_or_default());
        self.ahead.advance(taken);
        self.forget_buffer();
        Poll::Ready(Ok(taken))
    }

    /// Waits until the client closes. What it sends meanwhile is kept, up to a bound.
    pub async fn closed(&mut self) {
        self.lent = Lent::Length(0);
        let mut nothing = [0; 1];
        let _ = self.read(&mut nothing).await;
    }

    /// How many of the bytes ahead the borrower may have, at most `room`.
    fn allowed(&mut self, room: usize) -> io::Result<usize> {
        let there = self.ahead.len().min(room);
        match &mut self.lent {
            Lent::All => Ok(there),
            Lent::Length(left) => {
                let taken = (there as u64).min(*left);
                *left -= taken;
                Ok(usize::try_from(taken).unwrap_or(there))
            }
            Lent::Chunked { head, .. } if *head > 0 => {
                let taken = there.min(*head);
                *head -= taken;
                Ok(taken)
            }
            Lent::Chunked { body, .. } => {
                let bytes = self.ahead.get(..there).unwrap_or_default();
                body.advance(bytes).map_err(|bad| io::Error::new(io::ErrorKind::InvalidData, bad))
            }
        }
    }

    /// Sends what is held back.
    fn poll_held(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.held.is_empty() {
            match ready!(Pin::new(&mut self.io).poll_write(cx, &self.held))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                sent => self.held.advance(sent),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Fails with [`super::pace::TooSlow`] when the client has been waited for too long by now.
    fn paced(&mut self, read: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Some(pace) = &mut self.pace {
            match &read {
                Poll::Pending => pace.waits(Instant::now()),
                Poll::Ready(Ok(bytes @ 1..)) => {
                    let came = pace.came(*bytes, Instant::now());
                    came.map_err(|slow| io::Error::new(io::ErrorKind::TimedOut, slow))?;
                }
                Poll::Ready(_) => {}
            }
        }
        read
    }

    fn poll_more(&mut self, cx: &mut Context<'_>, room: usize) -> Poll<io::Result<usize>> {
        self.ahead.reserve(room);
        let read = ready!(poll_read_buf(Pin::new(&mut self.io), cx, &mut self.ahead))?;
        self.ended |= read == 0;
        Poll::Ready(Ok(read))
    }
}

/// What engines are told of the socket.
fn digest(io: &FromClient, client: SocketAddr) -> Arc<SocketDigest> {
    let socket = SocketDigest::from_raw_fd(io.tcp().as_raw_fd());
    let _ = socket.peer_addr.set(Some(PingoraAddr::Inet(client)));
    Arc::new(socket)
}

impl AsyncRead for Conn {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.held.is_empty() {
            // The borrower has nothing more to write now. Whether it can be sent does not matter here.
            let _ = this.poll_held(cx)?;
        }
        // Past the end of the exchange only the end of the stream is of interest.
        while this.is_at_end() {
            if this.ended {
                return Poll::Ready(Ok(()));
            }
            if this.ahead.len() >= AHEAD_MAX {
                return Poll::Pending;
            }
            ready!(this.poll_more(cx, READ_HEAD))?;
        }
        if this.ahead.is_empty() {
            if matches!(this.lent, Lent::All) {
                return Pin::new(&mut this.io).poll_read(cx, out);
            }
            if !this.ended {
                let read = this.poll_more(cx, READ);
                if ready!(this.paced(read))? == 0 {
                    return Poll::Ready(Ok(()));
                }
            }
        }
        let taken = this.allowed(out.remaining())?;
        out.put_slice(this.ahead.get(..taken).unwrap_or_default());
        this.ahead.advance(taken);
        this.forget_buffer();
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Conn {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[io::IoSlice::new(bytes)])
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_held(cx))?;
        Pin::new(&mut this.io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_held(cx))?;
        Pin::new(&mut this.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if std::mem::take(&mut this.unanswered)
            && let [head] = bytes
            && (1..=HELD_MAX).contains(&head.len())
        {
            this.held = Bytes::copy_from_slice(head);
            return Poll::Ready(Ok(head.len()));
        }
        if this.held.is_empty() {
            return match bytes {
                [one] => Pin::new(&mut this.io).poll_write(cx, one),
                several => Pin::new(&mut this.io).poll_write_vectored(cx, several),
            };
        }
        if let [first, ..] = bytes {
            let both = [io::IoSlice::new(&this.held), io::IoSlice::new(first)];
            let sent = ready!(Pin::new(&mut this.io).poll_write_vectored(cx, &both))?;
            let of_held = sent.min(this.held.len());
            this.held.advance(of_held);
            if sent > of_held {
                return Poll::Ready(Ok(sent - of_held));
            }
        }
        ready!(this.poll_held(cx))?;
        Pin::new(&mut this.io).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

impl fmt::Debug for Conn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Conn").field("client", &self.client).field("lent", &self.lent).finish()
    }
}

#[async_trait]
impl Shutdown for Conn {
    async fn shutdown(&mut self) {
        let _ = AsyncWriteExt::shutdown(&mut self.io).await;
    }
}

impl UniqueID for Conn {
    fn id(&self) -> UniqueIDType {
        self.tcp().as_raw_fd()
    }
}

impl Ssl for Conn {
    fn selected_alpn_proto(&self) -> Option<ALPN> {
        Some(if self.is_h2() { ALPN::H2 } else { ALPN::H1 })
    }
}

impl GetTimingDigest for Conn {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        Vec::new()
    }
}

impl GetProxyDigest for Conn {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        None
    }
}

impl GetSocketDigest for Conn {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        Some(self.socket.clone())
    }
}

impl Peek for Conn {}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;
    use crate::front::limits::Limits;

    async fn pair() -> (Conn, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let far = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (near, peer) = listener.accept().await.unwrap();
        let permit = Limits::new(9, 9).take(peer.ip()).unwrap();
        (Conn::new(FromClient::Plain(near), peer, permit), far)
    }

    fn has_nothing(far: &TcpStream) -> bool {
        use nix::sys::socket::{MsgFlags, recv};
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        recv(far.as_raw_fd(), &mut [0], flags) == Err(nix::errno::Errno::EAGAIN)
    }

    #[tokio::test]
    async fn a_head_leaves_with_what_follows_it() {
        let head = b"HTTP/1.1 200 OK\r\n\r\n";
        let (mut conn, mut far) = pair().await;
        let mut got = [0; 23];
        for round in 0..3 {
            conn.lend(0, BodyFraming::Length(0));
            conn.write_all(head).await.unwrap();
            assert!(has_nothing(&far));
            match round {
                0 => conn.write_all(b"body").await.unwrap(),
                1 => conn.flush().await.unwrap(),
                _ => {
                    let mut nothing = [0];
                    let read = conn.read(&mut nothing);
                    assert!(tokio::time::timeout(std::time::Duration::ZERO, read).await.is_err());
                }
            }
            let expected: &[u8] = if round == 0 { b"HTTP/1.1 200 OK\r\n\r\nbody" } else { head };
            let got = &mut got[..expected.len()];
            far.read_exact(got).await.unwrap();
            assert_eq!(got, expected);
        }
        conn.lend(0, BodyFraming::Length(0));
        conn.write_all(head).await.unwrap();
        AsyncWriteExt::shutdown(&mut conn).await.unwrap();
        let mut rest = Vec::new();
        far.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, head);
    }
}
