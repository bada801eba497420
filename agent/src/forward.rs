//! Port forwarding (RFC 4254, section 7): to the pod's own loopback, and to nothing else.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use russh::{Channel, ChannelOpenFailure, server::Msg};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream, UnixStream},
};
use tokio_util::sync::CancellationToken;

use crate::{
    gateway::{Gateway, Output},
    owner, queue,
    session::{copy_out, feed, fill},
};

const CONNECT: Duration = Duration::from_secs(10);

/// How long the other side may take to confirm a channel that we open.
pub const CONFIRM: Duration = Duration::from_secs(30);

/// How long a closed channel's last bytes may take to be delivered.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// Most connections of one remote forwarding at a time.
pub const ACCEPTED_MAX: usize = 128;

/// Which addresses are the pod's own.
#[derive(Debug, Clone, Copy)]
pub struct Loopback {
    /// Stands for all of them, if set.
    pub instead: Option<IpAddr>,
    /// The pod's own address, at which its servers listen.
    pub own: IpAddr,
}

impl Loopback {
    /// Where to try, in order; `None` for a host that is not the pod itself. Names other than
    /// `localhost` are never resolved.
    pub fn candidates(&self, host: &str, port: u32) -> Option<Vec<SocketAddr>> {
        let port = u16::try_from(port).ok().filter(|port| *port != 0)?;
        let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
        let asked = match bare.parse::<IpAddr>() {
            Ok(address) => Some(address.to_canonical()),
            Err(_) if host.eq_ignore_ascii_case("localhost") => None,
            Err(_) => return None,
        };
        let own = self.own.to_canonical();
        if asked.is_some_and(|a| !a.is_loopback() && a != own && Some(a) != self.instead) {
            return None;
        }
        let addresses = match (self.instead, asked) {
            (Some(instead), _) => vec![instead],
            (None, Some(asked)) if asked == own => vec![own],
            // Servers that listen at the pod's own address only are meant by `localhost` as well.
            (None, Some(asked)) => vec![asked, own],
            (None, None) => {
                vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into(), own]
            }
        };
        Some(addresses.into_iter().map(|address| SocketAddr::new(address, port)).collect())
    }

    /// Of the candidates, what the workspace itself answers at: a stand-in for the loopback shares a
    /// machine with others, whose servers are not to be reached.
    pub async fn answering(&self, candidates: Vec<SocketAddr>) -> Vec<SocketAddr> {
        let (Some(own), Some(port)) = (self.instead, candidates.first().map(SocketAddr::port))
        else {
            return candidates;
        };
        let found = tokio::task::spawn_blocking(move || owner::find(own, port)).await;
        found.ok().flatten().into_iter().collect()
    }

    /// Where remote forwarding listens, whatever address was asked for.
    pub fn bind(&self) -> IpAddr {
        self.instead.unwrap_or(Ipv4Addr::LOCALHOST.into())
    }
}

pub async fn connect(candidates: &[SocketAddr]) -> Result<TcpStream, ChannelOpenFailure> {
    for candidate in candidates {
        if let Ok(Ok(stream)) = tokio::time::timeout(CONNECT, TcpStream::connect(candidate)).await {
            let _ = stream.set_nodelay(true);
            return Ok(stream);
        }
    }
    Err(ChannelOpenFailure::ConnectFailed)
}

pub async fn connect_unix(path: &str) -> Result<UnixStream, ChannelOpenFailure> {
    match tokio::time::timeout(CONNECT, UnixStream::connect(path)).await {
        Ok(Ok(stream)) => Ok(stream),
        _ => Err(ChannelOpenFailure::ConnectFailed),
    }
}

/// Copies both ways until both sides have said their end, or one is gone.
pub async fn bridge(
    channel: Channel<Msg>,
    stream: impl AsyncRead + AsyncWrite + Unpin,
    gateway: Gateway,
    stop: CancellationToken,
) {
    let (mut read, write) = channel.split();
    let (from, to) = tokio::io::split(stream);
    let (sender, receiver) = queue::queue();
    let giving = gateway.give(write.id(), sender.popped());
    let credit = gateway.credit();
    let output = Output { write: &write, credit: &credit };
    let gone = fill(&mut read, sender, |message| credit.receive(&message));
    let out = async {
        let result = copy_out(from, output, None).await;
        if result.is_ok() {
            let _ = write.eof().await;
        }
    };
    let mut feed = std::pin::pin!(feed(receiver, to));
    tokio::select! {
        _ = async { tokio::join!(out, feed.as_mut()) } => {}
        () = gone => {
            // What the person's side sent before it closed the channel is still delivered.
            tokio::select! {
                _ = tokio::time::timeout(LAST_WORDS, feed) => {}
                () = stop.cancelled() => {}
            }
        }
        () = stop.cancelled() => {}
        () = giving => {}
    }
    let _ = write.close().await;
}

/// Listens for the person's side of a remote forwarding until `stop`. `address` is what the client
/// asked for: it finds its forwarding by it.
pub async fn listen(
    listener: TcpListener,
    address: String,
    port: u32,
    gateway: Gateway,
    stop: CancellationToken,
) {
    let room = std::sync::Arc::new(tokio::sync::Semaphore::new(ACCEPTED_MAX));
    loop {
        let Ok(permit) = room.clone().acquire_owned().await else { return };
        let accepted: io::Result<_> = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => return,
        };
        let Ok((stream, peer)) = accepted else {
            // Out of descriptors, most likely: others must end first.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let _ = stream.set_nodelay(true);
        let (gateway, address, stop) = (gateway.clone(), address.clone(), stop.clone());
        tokio::spawn(async move {
            let open = gateway.handle.channel_open_forwarded_tcpip(
                address,
                port,
                peer.ip().to_string(),
                u32::from(peer.port()),
            );
            if let Ok(Ok(channel)) = tokio::time::timeout(CONFIRM, open).await {
                bridge(channel, stream, gateway, stop).await;
            }
            drop(permit);
        });
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn texts(loopback: Loopback, host: &str, port: u32) -> Option<Vec<String>> {
        let found = loopback.candidates(host, port)?;
        Some(found.iter().map(ToString::to_string).collect())
    }

    const POD: Loopback = Loopback { instead: None, own: IpAddr::V4(Ipv4Addr::new(10, 1, 2, 3)) };

    #[test]
    fn the_pod_itself_is_reached() {
        assert_eq!(
            texts(POD, "localhost", 80).unwrap(),
            ["127.0.0.1:80", "[::1]:80", "10.1.2.3:80"]
        );
        assert_eq!(texts(POD, "127.0.0.5", 80).unwrap(), ["127.0.0.5:80", "10.1.2.3:80"]);
        assert_eq!(texts(POD, "::1", 80).unwrap(), ["[::1]:80", "10.1.2.3:80"]);
        assert_eq!(texts(POD, "10.1.2.3", 80).unwrap(), ["10.1.2.3:80"]);
    }

    #[test]
    fn attack_22_nothing_but_the_pod_is_reached() {
        for host in [
            "169.254.169.254",
            "10.1.2.4",
            "0.0.0.0",
            "::",
            "::ffff:169.254.169.254",
            "kubernetes.default.svc",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "2130706433",
            "0x7f.1",
            "",
            "localhost\0",
        ] {
            assert_eq!(texts(POD, host, 80), None, "{host:?}");
        }
        for port in [0, 65536, u32::MAX] {
            assert_eq!(texts(POD, "localhost", port), None, "{port}");
        }
    }

    #[test]
    fn an_address_that_stands_for_the_loopback_is_the_only_one() {
        let instead = "127.7.7.7".parse().unwrap();
        let pod = Loopback { instead: Some(instead), own: instead };
        for host in ["localhost", "127.0.0.1", "::1", "127.7.7.7", "::ffff:127.0.0.1"] {
            assert_eq!(texts(pod, host, 80).unwrap(), ["127.7.7.7:80"], "{host}");
        }
        assert_eq!(pod.bind(), instead);
    }

    proptest! {
        #[test]
        fn no_address_outside_the_pod_is_a_candidate(address: u32, port in 0u32..70_000) {
            let address = Ipv4Addr::from_bits(address);
            prop_assume!(!address.is_loopback() && address != POD.own);
            prop_assert_eq!(POD.candidates(&address.to_string(), port), None);
        }
    }
}
