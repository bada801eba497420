//! Workloads: servers on plain sockets that say what they were sent.

use std::{net::SocketAddr, sync::Arc};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use crate::world::find;

pub struct Request {
    pub head: String,
    pub stream: TcpStream,
    /// Read behind the head.
    pub rest: Vec<u8>,
}

impl Request {
    pub fn is_upgrade(&self) -> bool {
        self.head.to_ascii_lowercase().contains("upgrade: websocket")
    }

    pub async fn reply(&mut self, text: &str) {
        self.stream.write_all(text.as_bytes()).await.unwrap();
    }
}

/// Reads the next head of a connection; `None` when it is closed.
pub async fn next(mut stream: TcpStream, mut rest: Vec<u8>) -> Option<Request> {
    loop {
        if let Some(at) = find(&rest, b"\r\n\r\n") {
            let head = String::from_utf8(rest.drain(..at + 4).collect()).unwrap();
            return Some(Request { head, stream, rest });
        }
        if stream.read_buf(&mut rest).await.unwrap_or(0) == 0 {
            return None;
        }
    }
}

/// Calls `serve` for each connection with its first request.
pub async fn start<F>(serve: impl Fn(Request) -> F + Send + Sync + 'static) -> SocketAddr
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serve = Arc::new(serve);
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let serve = serve.clone();
            tokio::spawn(async move {
                if let Some(request) = next(stream, Vec::new()).await {
                    serve(request).await;
                }
            });
        }
    });
    address
}

/// Answers every request with its own head (and the body it was sent); echoes upgraded streams.
pub async fn mirror() -> SocketAddr {
    start(|mut request| async move {
        loop {
            if request.is_upgrade() {
                return echo(request).await;
            }
            let length = request
                .head
                .to_ascii_lowercase()
                .split("content-length: ")
                .nth(1)
                .map_or(0, |text| text.split("\r\n").next().unwrap().parse().unwrap());
            while request.rest.len() < length {
                if request.stream.read_buf(&mut request.rest).await.unwrap() == 0 {
                    return;
                }
            }
            let mut body: Vec<u8> = request.rest.drain(..length).collect();
            if request.head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
                while find(&request.rest, b"0\r\n\r\n").is_none() {
                    if request.stream.read_buf(&mut request.rest).await.unwrap() == 0 {
                        return;
                    }
                }
                body = std::mem::take(&mut request.rest);
            }
            let said = format!("{}{}", request.head, String::from_utf8_lossy(&body));
            let answer = format!(
                "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\r\n{said}",
                said.len()
            );
            request.reply(&answer).await;
            match next(request.stream, request.rest).await {
                Some(following) => request = following,
                None => return,
            }
        }
    })
    .await
}

/// Says 101 with the head it was sent in a header, greets at once, then echoes bytes.
pub async fn echo(mut request: Request) {
    let said = request.head.replace("\r\n", "|");
    let answer = format!(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         X-Said: {said}\r\nSet-Cookie: __Host-dormouse=evil\r\n\r\n"
    );
    request.stream.write_all(answer.as_bytes()).await.unwrap();
    let (mut read, mut write) = request.stream.split();
    if !request.rest.is_empty() {
        write.write_all(&request.rest).await.unwrap();
    }
    let _ = tokio::io::copy(&mut read, &mut write).await;
}
