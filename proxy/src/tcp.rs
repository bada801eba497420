//! Socket options.

use std::{ops::RangeInclusive, os::fd::AsFd, time::Duration};

use nix::sys::socket::{
    setsockopt,
    sockopt::{KeepAlive, TcpKeepCount, TcpKeepIdle, TcpKeepInterval},
};
use tokio::net::TcpStream;

/// Idle time before the first probe, in seconds.
const KEEPALIVE_IDLE: RangeInclusive<u32> = 45..=75;
pub const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
pub const KEEPALIVE_COUNT: usize = 6;

/// Chosen anew for each connection. Thousands that were opened in one moment, after a restart say, would
/// otherwise be probed in one moment ever after; a full queue then drops the probes of the same ones
/// each time, and connections that are well are given up.
pub fn keepalive_idle() -> Duration {
    Duration::from_secs(rand::random_range(KEEPALIVE_IDLE).into())
}

/// Small messages leave at once, and a peer that has vanished is noticed in about three minutes even
/// on a connection that never says anything. Failing to set an option breaks nothing.
pub fn tune(stream: &TcpStream) {
    let _ = stream.set_nodelay(true);
    let fd = stream.as_fd();
    let set = setsockopt(&fd, KeepAlive, &true)
        .and_then(|()| setsockopt(&fd, TcpKeepIdle, &seconds(keepalive_idle())))
        .and_then(|()| setsockopt(&fd, TcpKeepInterval, &seconds(KEEPALIVE_INTERVAL)))
        .and_then(|()| setsockopt(&fd, TcpKeepCount, &(KEEPALIVE_COUNT as u32)));
    if let Err(error) = set {
        tracing::debug!(%error, "TCP keepalive could not be set");
    }
}

fn seconds(duration: Duration) -> u32 {
    u32::try_from(duration.as_secs()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use nix::sys::socket::getsockopt;
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn connections_of_one_moment_are_not_probed_in_one_moment() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut times = HashSet::new();
        for _ in 0..50 {
            let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            tune(&stream);
            times.insert(getsockopt(&stream, TcpKeepIdle).unwrap());
        }
        assert!(times.iter().all(|time| KEEPALIVE_IDLE.contains(time)), "{times:?}");
        assert!(times.len() > 5, "{times:?}");
    }
}
