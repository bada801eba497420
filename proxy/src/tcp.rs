//! Socket options.

use std::{os::fd::AsFd, time::Duration};

use nix::sys::socket::{
    setsockopt,
    sockopt::{KeepAlive, TcpKeepCount, TcpKeepIdle, TcpKeepInterval},
};
use tokio::net::TcpStream;

/// Idle time before the first probe.
pub const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
pub const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
pub const KEEPALIVE_COUNT: usize = 6;

/// Small messages leave at once, and a peer that has vanished is noticed in about three minutes even
/// on a connection that never says anything. Failing to set an option breaks nothing.
pub fn tune(stream: &TcpStream) {
    let _ = stream.set_nodelay(true);
    let fd = stream.as_fd();
    let set = setsockopt(&fd, KeepAlive, &true)
        .and_then(|()| setsockopt(&fd, TcpKeepIdle, &60))
        .and_then(|()| setsockopt(&fd, TcpKeepInterval, &seconds(KEEPALIVE_INTERVAL)))
        .and_then(|()| setsockopt(&fd, TcpKeepCount, &(KEEPALIVE_COUNT as u32)));
    if let Err(error) = set {
        tracing::debug!(%error, "TCP keepalive could not be set");
    }
}

fn seconds(duration: Duration) -> u32 {
    u32::try_from(duration.as_secs()).unwrap_or(u32::MAX)
}
