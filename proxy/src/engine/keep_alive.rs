//! Keeps silent event streams alive.
//!
//! An LLM server may think for a minute before the next token, and what lies between it and its
//! client takes the silence for death. On a route that asks for it, the connection to the workload is
//! read through [`KeepAlive`]: while a `text/event-stream` answer is silent, and only between two of
//! its events, a comment line is read that the workload has not sent. Before the answer's head has
//! come nothing is said, since its status is not known; after it a comment may come before the first
//! event. One connection carries one answer, so such routes do not reuse theirs.

use std::{
    fmt, io,
    net::SocketAddr as InetAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use async_trait::async_trait;
use pingora::{
    Error, ErrorType, Result,
    connectors::L4Connect,
    protocols::l4::{
        socket::SocketAddr,
        stream::Stream,
        virt::{VirtualSockOpt, VirtualSocket, VirtualSocketStream},
    },
    upstreams::peer::HttpPeer,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Instant, Sleep, sleep, timeout},
};

use crate::{front::chunked::Chunked, tcp, upstream::CONNECT_TIMEOUT};

/// A comment (HTML, section 9.2.6), and the empty line that keeps it apart from what follows.
const COMMENT: &[u8] = b": keep-alive\n\n";
const COMMENT_CHUNK: &[u8] = b"e\r\n: keep-alive\n\n\r\n";
/// A longer head is none of ours to understand.
const HEAD_MAX: usize = 64 * 1024;
/// Connections of such routes lie in no pool with others.
const APART: u64 = 0x6b65_6570;

/// Lets the connection of this exchange keep its stream alive. For answers over HTTP/1.1 without TLS.
pub fn watch(peer: &mut HttpPeer, every: Duration) {
    peer.group_key ^= APART;
    peer.options.custom_l4 = Some(Arc::new(Dial { every }));
}

#[derive(Debug)]
struct Dial {
    every: Duration,
}

#[async_trait]
impl L4Connect for Dial {
    async fn connect(&self, address: &SocketAddr) -> Result<Stream> {
        let failed = |kind, cause: io::Error| Error::because(kind, "dialling", cause).into_up();
        let address: &InetAddr = address.as_inet().ok_or_else(|| {
            Error::explain(ErrorType::ConnectError, "no address of the internet").into_up()
        })?;
        let stream = match timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {
                return Err(failed(ErrorType::ConnectRefused, error));
            }
            Ok(Err(error)) => return Err(failed(ErrorType::ConnectError, error)),
            Err(late) => return Err(failed(ErrorType::ConnectTimedout, late.into())),
        };
        tcp::tune(&stream);
        let socket = Box::new(KeepAlive::new(stream, self.every));
        Ok(Stream::from(VirtualSocketStream::new(socket)))
    }
}

struct KeepAlive<S> {
    io: S,
    every: Duration,
    timer: Pin<Box<Sleep>>,
    answer: Answer,
    /// Of a comment that is under way.
    left: &'static [u8],
}

/// How far the answer has come.
enum Answer {
    Head(Vec<u8>),
    Events(Events),
    /// Nothing to be kept alive.
    Other,
}

struct Events {
    /// `None` when the answer ends with the connection.
    chunked: Option<Chunked>,
    /// The last bytes of the stream; none at its start.
    tail: [u8; 4],
    begun: bool,
}

impl Events {
    fn see(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let taken = match &mut self.chunked {
                None => bytes.len(),
                Some(chunked) => {
                    let data =
                        chunked.data_left().map(|left| usize::try_from(left).unwrap_or(usize::MAX));
                    let taken = data.unwrap_or(1).min(bytes.len());
                    let part = bytes.get(..taken).unwrap_or_default();
                    // What is malformed the engine finds as well.
                    if chunked.advance(part).is_err() || chunked.is_done() {
                        return;
                    }
                    if data.is_none() {
                        bytes = bytes.get(taken..).unwrap_or_default();
                        continue;
                    }
                    taken
                }
            };
            let (data, rest) = bytes.split_at(taken);
            for &byte in data.get(data.len().saturating_sub(4)..).unwrap_or_default() {
                self.tail.rotate_left(1);
                self.tail[3] = byte;
            }
            self.begun = true;
            bytes = rest;
        }
    }

    /// What may be said now.
    fn comment(&self) -> Option<&'static [u8]> {
        let between_events = !self.begun
            || self.tail.ends_with(b"\n\n")
            || self.tail.ends_with(b"\n\r\n")
            || self.tail.ends_with(b"\r\r");
        if !between_events {
            return None;
        }
        match &self.chunked {
            None => Some(COMMENT),
            Some(chunked) => chunked.is_between_chunks().then_some(COMMENT_CHUNK),
        }
    }
}

impl Answer {
    fn see(&mut self, mut bytes: &[u8]) {
        while let Self::Head(head) = self {
            let before = head.len();
            head.extend_from_slice(bytes);
            match length(head) {
                None if head.len() > HEAD_MAX => *self = Self::Other,
                None => return,
                Some(length) => {
                    bytes = bytes.get(length.saturating_sub(before)..).unwrap_or_default();
                    head.truncate(length);
                    *self = of_head(head);
                }
            }
        }
        if let Self::Events(events) = self {
            events.see(bytes);
        }
    }
}

fn length(head: &[u8]) -> Option<usize> {
    head.windows(4).position(|four| four == b"\r\n\r\n").map(|at| at + 4)
}

fn of_head(head: &[u8]) -> Answer {
    let mut fields = [httparse::EMPTY_HEADER; 100];
    let mut response = httparse::Response::new(&mut fields);
    if !response.parse(head).is_ok_and(|status| status.is_complete()) {
        return Answer::Other;
    }
    let status = response.code.unwrap_or(0);
    if (100..200).contains(&status) && status != 101 {
        return Answer::Head(Vec::new());
    }
    let value = |name: &str| {
        let mut values = response.headers.iter().filter(|f| f.name.eq_ignore_ascii_case(name));
        values.next().map(|field| field.value)
    };
    let events = value("content-type").is_some_and(|kind| {
        let kind = kind.split(|&byte| byte == b';').next().unwrap_or_default();
        kind.trim_ascii().eq_ignore_ascii_case(b"text/event-stream")
    });
    // Into a compressed stream, or one of a length that is known, nothing can be put.
    let plain = value("content-encoding").is_none() && value("content-length").is_none();
    if status != 200 || response.version != Some(1) || !events || !plain {
        return Answer::Other;
    }
    let chunked = match value("transfer-encoding") {
        None => None,
        Some(coding) if coding.eq_ignore_ascii_case(b"chunked") => Some(Chunked::response()),
        Some(_) => return Answer::Other,
    };
    Answer::Events(Events { chunked, tail: [0; 4], begun: false })
}

impl<S> KeepAlive<S> {
    fn new(io: S, every: Duration) -> Self {
        let answer = Answer::Head(Vec::new());
        Self { io, every, timer: Box::pin(sleep(every)), answer, left: &[] }
    }

    fn say(&mut self, out: &mut ReadBuf<'_>) {
        let now = self.left.len().min(out.remaining());
        let (said, left) = self.left.split_at(now);
        out.put_slice(said);
        self.left = left;
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for KeepAlive<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.left.is_empty() {
            this.say(out);
            return Poll::Ready(Ok(()));
        }
        let before = out.filled().len();
        if let Poll::Ready(read) = Pin::new(&mut this.io).poll_read(cx, out) {
            this.answer.see(out.filled().get(before..).unwrap_or_default());
            if let Answer::Events(_) = this.answer {
                this.timer.as_mut().reset(Instant::now() + this.every);
            }
            return Poll::Ready(read);
        }
        let Answer::Events(events) = &this.answer else { return Poll::Pending };
        let Some(comment) = events.comment() else { return Poll::Pending };
        if this.timer.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        this.timer.as_mut().reset(Instant::now() + this.every);
        this.left = comment;
        this.say(out);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for KeepAlive<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

impl<S> fmt::Debug for KeepAlive<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeepAlive").field("every", &self.every).finish_non_exhaustive()
    }
}

impl VirtualSocket for KeepAlive<TcpStream> {
    /// Set when it was dialled.
    fn set_socket_option(&self, _: VirtualSockOpt) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::*;

    const EVERY: Duration = Duration::from_secs(15);
    const HEAD: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n";

    struct Pair {
        workload: DuplexStream,
        read: KeepAlive<DuplexStream>,
    }

    impl Pair {
        fn new() -> Self {
            let (workload, near) = duplex(4096);
            Self { workload, read: KeepAlive::new(near, EVERY) }
        }

        async fn send(&mut self, text: &str) {
            self.workload.write_all(text.as_bytes()).await.unwrap();
        }

        /// What is read in so many seconds.
        async fn within(&mut self, seconds: u64) -> String {
            let mut all = Vec::new();
            let reading = async { while self.read.read_buf(&mut all).await.unwrap() > 0 {} };
            let _ = timeout(Duration::from_secs(seconds), reading).await;
            String::from_utf8(all).unwrap()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_stream_is_kept_alive_between_events_only() {
        let mut pair = Pair::new();
        let head = format!("{HEAD}Transfer-Encoding: chunked\r\n\r\n");
        pair.send(&head).await;
        assert_eq!(pair.within(10).await, head);
        let comment = "e\r\n: keep-alive\n\n\r\n";
        assert_eq!(pair.within(10).await, comment, "before the first event");
        pair.send("9\r\ndata: a\n\n\r\n").await;
        assert_eq!(pair.within(14).await, "9\r\ndata: a\n\n\r\n", "not while it speaks");
        assert_eq!(pair.within(32).await, comment.repeat(3));
        // Within an event, at the end of a chunk; then within a chunk, at the end of an event.
        pair.send("8\r\ndata: b\n\r\n").await;
        assert_eq!(pair.within(100).await, "8\r\ndata: b\n\r\n");
        pair.send("5\r\n\n").await;
        assert_eq!(pair.within(100).await, "5\r\n\n");
        pair.send("id\n\n\r\n").await;
        assert_eq!(pair.within(16).await, format!("id\n\n\r\n{comment}"));
        pair.send("0\r\n\r\n").await;
        assert_eq!(pair.within(100).await, "0\r\n\r\n", "not after the end");
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_ends_with_the_connection() {
        let mut pair = Pair::new();
        let head = format!("HTTP/1.1 103 Early Hints\r\n\r\n{HEAD}\r\ndata: a\r\n\r\n");
        pair.send(&head).await;
        assert_eq!(pair.within(16).await, format!("{head}: keep-alive\n\n"));
    }

    #[tokio::test(start_paused = true)]
    async fn every_other_answer_passes_as_it_is() {
        for head in [
            "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.1 500 X\r\nContent-Type: text/event-stream\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 9\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Encoding: gzip\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Type: text/event-str",
        ] {
            let mut pair = Pair::new();
            pair.send(head).await;
            assert_eq!(pair.within(100).await, head);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn where_the_bytes_are_cut_does_not_matter() {
        let text = format!("{HEAD}Transfer-Encoding: chunked\r\n\r\n9\r\ndata: a\n\n\r\n");
        for cut in 1..text.len() {
            let mut pair = Pair::new();
            pair.send(&text[..cut]).await;
            let mut all = pair.within(1).await;
            pair.send(&text[cut..]).await;
            all += &pair.within(16).await;
            assert_eq!(all, format!("{text}e\r\n: keep-alive\n\n\r\n"), "{cut}");
        }
    }
}
