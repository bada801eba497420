//! Streams, read as fast as they come and thrown away.

use std::time::{Duration, Instant};

use anyhow::ensure;
use futures::future::try_join_all;
use tokio::io::AsyncReadExt;

use crate::client::Target;

const READ: usize = 256 * 1024;

pub async fn read(
    target: Target,
    connections: usize,
    seconds: f64,
    length: u64,
) -> anyhow::Result<()> {
    let path = format!("/stream/{length}");
    let end = Instant::now() + Duration::from_secs_f64(seconds);
    let readers = (0..connections).map(|_| one(&target, &path, length, end));
    let bytes: u64 = try_join_all(readers).await?.into_iter().sum();
    println!("{{\"bytes\":{bytes}}}");
    Ok(())
}

/// Whole answers only, so that what was counted was carried.
async fn one(target: &Target, path: &str, length: u64, end: Instant) -> anyhow::Result<u64> {
    let mut connection = target.connect().await?;
    let mut buffer = vec![0; READ];
    let mut moved = 0;
    while Instant::now() < end {
        let (status, head) = target.ask(&mut connection, Some(path), "").await?;
        ensure!(status == 200, "the stream was answered with {status}");
        let whole = head.to_ascii_lowercase().contains(&format!("content-length: {length}\r\n"));
        ensure!(whole, "the answer does not say its length");
        let mut left = length - connection.rest.len() as u64;
        connection.rest.clear();
        while left > 0 {
            let read = connection.io.read(&mut buffer).await?;
            ensure!(read > 0, "the stream was cut");
            left = left
                .checked_sub(read as u64)
                .ok_or(std::io::ErrorKind::InvalidData)
                .map_err(std::io::Error::from)?;
        }
        moved += length;
    }
    Ok(moved)
}
