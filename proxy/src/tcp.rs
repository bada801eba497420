//! Socket options.

use std::os::fd::AsFd;

use nix::sys::socket::{
    setsockopt,
    sockopt::{KeepAlive, TcpKeepCount, TcpKeepIdle, TcpKeepInterval},
};
use tokio::net::TcpStream;

/// Small messages leave at once, and a peer that has vanished is noticed in about three minutes even
/// on a connection that never says anything. Failing to set an option breaks nothing.
pub fn tune(stream: &TcpStream) {
    let _ = stream.set_nodelay(true);
    let fd = stream.as_fd();
    let set = setsockopt(&fd, KeepAlive, &true)
        .and_then(|()| setsockopt(&fd, TcpKeepIdle, &60))
        .and_then(|()| setsockopt(&fd, TcpKeepInterval, &20))
        .and_then(|()| setsockopt(&fd, TcpKeepCount, &6));
    if let Err(error) = set {
        tracing::debug!(%error, "TCP keepalive could not be set");
    }
}
