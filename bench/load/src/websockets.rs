//! WebSockets that talk, and WebSockets that are silent.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use futures::{StreamExt, TryStreamExt, future::try_join_all, stream};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};

use crate::{
    client::{Connection, Target},
    frame,
};

const HANDSHAKE: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
/// Handshakes under way at a time.
const AT_ONCE: usize = 32;
const ANSWER_WITHIN: Duration = Duration::from_secs(20);
/// What a notebook sends when a cell is run, shortened.
const MESSAGE: &[u8] = br#"{"header":{"msg_id":"3f2b","username":"","session":"77c0","msg_type":"execute_request","version":"5.3"},"content":{"code":"1"}}"#;
const MASK: [u8; 4] = [0x12, 0x34, 0x56, 0x78];

pub async fn open(target: &Target) -> anyhow::Result<Connection> {
    let opening = async {
        let (status, _, mut connection) = target.get(None, HANDSHAKE).await?;
        ensure!(status == 101, "the handshake was answered with {status}");
        message(&mut connection).await?;
        Ok(connection)
    };
    timeout(ANSWER_WITHIN, opening).await.context("the handshake takes too long")?
}

async fn open_all(target: &Target, connections: usize) -> anyhow::Result<Vec<Connection>> {
    stream::iter(0..connections).map(|_| open(target)).buffer_unordered(AT_ONCE).try_collect().await
}

/// One message and its echo.
pub async fn message(connection: &mut Connection) -> anyhow::Result<()> {
    let mut sent = Vec::with_capacity(MESSAGE.len() + 16);
    frame::push(&mut sent, 1, Some(MASK), MESSAGE);
    connection.io.write_all(&sent).await?;
    connection.io.flush().await?;
    loop {
        if let Some(found) = frame::first(&connection.rest) {
            let echoed = connection.rest.get(found.start..found.end);
            ensure!(found.opcode == 1 && echoed == Some(MESSAGE), "the echo is another message");
            connection.rest.drain(..found.end);
            return Ok(());
        }
        let read = connection.io.read_buf(&mut connection.rest).await?;
        ensure!(read > 0, "the WebSocket was closed");
    }
}

/// Says that it is over, and waits until the other side has said so.
pub async fn close(connection: &mut Connection) -> anyhow::Result<()> {
    let mut sent = Vec::new();
    frame::push(&mut sent, 8, Some(MASK), &[0x03, 0xe8]);
    connection.io.write_all(&sent).await?;
    connection.io.flush().await?;
    loop {
        if let Some(found) = frame::first(&connection.rest) {
            ensure!(found.opcode == 8, "a frame behind the last");
            return Ok(());
        }
        let read = connection.io.read_buf(&mut connection.rest).await?;
        ensure!(read > 0, "the WebSocket ended without a Close frame");
    }
}

pub async fn echo(target: Target, connections: usize, seconds: f64) -> anyhow::Result<()> {
    let open = open_all(&target, connections).await?;
    println!("{{\"open\":{connections}}}");
    let end = Instant::now() + Duration::from_secs_f64(seconds);
    let talking = open.into_iter().map(|mut connection| async move {
        let mut messages = 0u64;
        while Instant::now() < end {
            message(&mut connection).await?;
            messages += 1;
        }
        anyhow::Ok(messages)
    });
    let messages: u64 = try_join_all(talking).await?.into_iter().sum();
    println!("{{\"messages\":{messages}}}");
    Ok(())
}

pub async fn idle(target: Target, connections: usize) -> anyhow::Result<()> {
    let mut open = open_all(&target, connections).await?;
    println!("{{\"open\":{connections}}}");
    let mut nothing = Vec::new();
    tokio::io::stdin().read_to_end(&mut nothing).await?;
    for (number, connection) in open.iter_mut().enumerate() {
        let answered = timeout(ANSWER_WITHIN, message(connection)).await;
        answered
            .context("no echo")
            .flatten()
            .with_context(|| format!("WebSocket {number} of {connections} did not stay usable"))?;
    }
    println!("{{\"alive\":{connections}}}");
    Ok(())
}
