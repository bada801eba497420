//! The workload behind everything that is measured. It shall cost as little as it can.

use std::net::SocketAddr;

use anyhow::Context as _;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use crate::frame;

const BODY: usize = 1024;
const CHUNK: usize = 128 * 1024;

pub async fn serve(listen: SocketAddr) -> anyhow::Result<()> {
    let listener =
        TcpListener::bind(listen).await.with_context(|| format!("cannot listen on {listen}"))?;
    loop {
        let (tcp, _) = listener.accept().await?;
        tcp.set_nodelay(true)?;
        // A client that leaves is no matter.
        tokio::spawn(async move { drop(connection(tcp).await) });
    }
}

enum Asked {
    Small,
    Head,
    /// A body of so many bytes.
    Upload(usize),
    Stream(u64),
    WebSocket(String),
}

async fn connection(mut tcp: TcpStream) -> anyhow::Result<()> {
    let mut bytes = Vec::with_capacity(2048);
    let small = {
        let mut answer = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {BODY}\r\n\r\n"
        )
        .into_bytes();
        answer.resize(answer.len() + BODY, b'x');
        answer
    };
    loop {
        let end = loop {
            if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
                break end + 4;
            }
            if tcp.read_buf(&mut bytes).await? == 0 {
                return Ok(());
            }
        };
        let asked = asked(bytes.get(..end).unwrap_or_default());
        bytes.drain(..end);
        match asked {
            Asked::Head => {
                let end = small.len() - BODY;
                tcp.write_all(small.get(..end).unwrap_or_default()).await?;
            }
            Asked::Upload(length) => {
                while bytes.len() < length {
                    if tcp.read_buf(&mut bytes).await? == 0 {
                        return Ok(());
                    }
                }
                bytes.drain(..length);
                tcp.write_all(&small).await?;
            }
            Asked::Small => tcp.write_all(&small).await?,
            Asked::Stream(length) => stream(&mut tcp, length).await?,
            Asked::WebSocket(key) => {
                let accept = derive_accept_key(key.as_bytes());
                let head = format!(
                    "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                     Sec-WebSocket-Accept: {accept}\r\n\r\n"
                );
                tcp.write_all(head.as_bytes()).await?;
                return echo(tcp, bytes).await;
            }
        }
    }
}

/// Bodies come with their length and only with POST.
fn asked(head: &[u8]) -> Asked {
    let head = String::from_utf8_lossy(head);
    let field = |wanted: &str| {
        head.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case(wanted).then(|| value.trim().to_owned())
        })
    };
    match head.split(' ').next() {
        Some("HEAD") => return Asked::Head,
        Some("POST") => {
            let length = field("content-length").and_then(|length| length.parse().ok());
            return Asked::Upload(length.unwrap_or_default());
        }
        _ => {}
    }
    let path = head.split(' ').nth(1).unwrap_or_default();
    if let Some(length) = path.strip_prefix("/stream/") {
        return Asked::Stream(length.parse().unwrap_or_default());
    }
    field("sec-websocket-key").map_or(Asked::Small, Asked::WebSocket)
}

async fn stream(tcp: &mut TcpStream, mut length: u64) -> anyhow::Result<()> {
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: {length}\r\n\r\n"
    );
    tcp.write_all(head.as_bytes()).await?;
    static ZEROS: [u8; CHUNK] = [0; CHUNK];
    while length > 0 {
        let now = usize::try_from(length).unwrap_or(CHUNK).min(CHUNK);
        tcp.write_all(&ZEROS[..now]).await?;
        length -= now as u64;
    }
    Ok(())
}

async fn echo(mut tcp: TcpStream, mut bytes: Vec<u8>) -> anyhow::Result<()> {
    let mut answer = Vec::new();
    loop {
        while let Some(found) = frame::first(&bytes) {
            let opcode = match found.opcode {
                8 => {
                    frame::push(&mut answer, 8, None, &[0x03, 0xe8]);
                    tcp.write_all(&answer).await?;
                    return Ok(());
                }
                9 => 10,
                other => other,
            };
            let payload = bytes.get_mut(found.start..found.end).unwrap_or_default();
            if let Some(mask) = found.mask {
                payload.iter_mut().zip(mask.iter().cycle()).for_each(|(byte, key)| *byte ^= key);
            }
            frame::push(&mut answer, opcode, None, payload);
            bytes.drain(..found.end);
        }
        if !answer.is_empty() {
            tcp.write_all(&answer).await?;
            answer.clear();
        }
        // Idle ones are many.
        if bytes.is_empty() {
            (bytes, answer) = (Vec::new(), Vec::new());
            tcp.readable().await?;
            bytes.reserve(512);
        }
        if tcp.read_buf(&mut bytes).await? == 0 {
            return Ok(());
        }
    }
}
