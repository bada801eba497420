//! Forwarded connections: into the workload's own loopback, and from it to the client.

use std::{net::IpAddr, sync::Arc, time::Duration};

use domain::{access::Readiness, activity::How};
use runtime::audit::Outcome;
use russh::{Channel, ChannelOpenFailure, client, server};

use crate::{
    bridge::{self, Outbound, ToClient},
    refusal::Refusal,
    visit::{Forwarding, Visit},
};

/// How long the client may take to confirm a channel that we open.
const CONFIRM: Duration = Duration::from_secs(30);

/// How long a connected client waits for the answer to a remote forwarding.
const ANSWER: Duration = Duration::from_secs(10);

/// Where a forwarded connection goes.
pub enum Destination {
    Tcp { host: String, port: u32, originator: (String, u32) },
    Unix { path: String },
}

impl Destination {
    /// The agent decides; what cannot be the workload itself is refused here already, so that it
    /// wakes nothing.
    pub fn is_inside(&self, visit: &Visit) -> bool {
        let Self::Tcp { host, .. } = self else { return true };
        let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
        match bare.parse::<IpAddr>().map(|address| address.to_canonical()) {
            Err(_) => host.eq_ignore_ascii_case("localhost"),
            Ok(address) if address.is_loopback() => true,
            Ok(address) => visit.grant().is_ok_and(|grant| match grant.readiness() {
                Readiness::Ready(pods) => pods.iter().any(|pod| pod.ip() == address),
                _ => false,
            }),
        }
    }
}

/// A connection that the client forwards into the workload. The answer to the client is held while
/// the workload wakes.
pub async fn local(
    visit: Arc<Visit>,
    channel: Channel<server::Msg>,
    destination: Destination,
    reply: server::ChannelOpenHandle,
) {
    let count = |outcome| visit.gate.metrics.channels.with_label_values(&["forward", outcome]);
    let opened = tokio::select! {
        opened = open(&visit, &destination) => opened,
        () = visit.ended.cancelled() => return,
    };
    let (agent, target) = match opened {
        Ok(opened) => opened,
        Err(reason) => {
            count("failed").inc();
            reply.reject(reason).await;
            return;
        }
    };
    count("opened").inc();
    visit.record("forwarded", Outcome::Allowed, None);
    let _present = visit.grant().ok().map(|grant| grant.begin(How::Ssh));
    reply.accept().await;
    join(&visit, channel, target, agent.is_paced()).await;
    drop(agent);
    visit.tidy().await;
}

async fn open(
    visit: &Arc<Visit>,
    destination: &Destination,
) -> Result<(Arc<crate::link::Agent>, Channel<client::Msg>), ChannelOpenFailure> {
    // Nobody sees a reason longer than this on a forwarded port; the log of the client has it.
    let failed = |refusal: Refusal| ChannelOpenFailure::Other {
        code: 2,
        reason: format!("dormouse: {refusal}"),
    };
    let agent = visit.agent(None).await.map_err(failed)?;
    let target = match destination {
        Destination::Tcp { host, port, originator: (address, number) } => {
            agent.open_tcp(host, *port, (address, *number)).await?
        }
        Destination::Unix { path } => agent.open_unix(path).await?,
    };
    Ok((agent, target))
}

/// Which remote forwarding a connection came in by, as the agent names it.
pub enum Arrival {
    Tcp { connected: (String, u32), originator: (String, u32) },
    Unix { path: String },
}

/// A connection that the agent accepted for a remote forwarding.
pub async fn remote(
    visit: Arc<Visit>,
    target: Channel<client::Msg>,
    arrival: Arrival,
    reply: client::ChannelOpenHandle,
    paced: bool,
) {
    let count =
        |outcome| visit.gate.metrics.channels.with_label_values(&["remote-forward", outcome]);
    let place = visit.channels.clone().try_acquire_owned();
    let opening = async {
        match arrival {
            Arrival::Tcp { connected: (address, port), originator: (from, number) } => {
                visit.handle.channel_open_forwarded_tcpip(address, port, from, number).await
            }
            Arrival::Unix { path } => visit.handle.channel_open_forwarded_streamlocal(path).await,
        }
    };
    let opened = match place {
        Err(_) => Err(ChannelOpenFailure::ResourceShortage),
        Ok(place) => match tokio::time::timeout(CONFIRM, opening).await {
            Ok(Ok(channel)) => Ok((place, channel)),
            Ok(Err(russh::Error::ChannelOpenFailure(reason))) => Err(reason),
            _ => Err(ChannelOpenFailure::ConnectFailed),
        },
    };
    match opened {
        Ok((_place, channel)) => {
            count("opened").inc();
            reply.accept().await;
            join(&visit, channel, target, paced).await;
        }
        Err(reason) => {
            count("failed").inc();
            reply.reject(reason).await;
        }
    }
}

async fn join(
    visit: &Visit,
    channel: Channel<server::Msg>,
    target: Channel<client::Msg>,
    paced: bool,
) {
    let (mut read, write) = channel.split();
    let (sender, receiver) = visit.inbound(write.id());
    let outbound = Outbound::new(&visit.down, paced, false);
    let client = ToClient { write: &write, handle: &visit.handle };
    let work = bridge::beside(
        bridge::fill(&mut read, sender, |_| true),
        bridge::carry(receiver, client, target, outbound),
    );
    tokio::select! {
        _ = work => {}
        () = visit.lost.cancelled() => {}
    }
    let _ = write.close().await;
}

/// Asks the agent to listen; returns the port. A workload that sleeps is woken: the client is told
/// yes at once then, unless it asked for any free port and so must wait for the number.
pub async fn listen(visit: &Arc<Visit>, address: &str, port: u32) -> Option<u32> {
    let wanted = Forwarding::Tcp { address: address.to_owned(), port };
    match begin(visit, wanted, port == 0).await? {
        Forwarding::Tcp { port, .. } => Some(port),
        Forwarding::Unix { .. } => None,
    }
}

/// The same for a socket in the workload's file system.
pub async fn listen_unix(visit: &Arc<Visit>, path: &str) -> bool {
    begin(visit, Forwarding::Unix { path: path.to_owned() }, false).await.is_some()
}

/// What is listened on then; `wait` for a workload that sleeps as well.
async fn begin(visit: &Arc<Visit>, wanted: Forwarding, wait: bool) -> Option<Forwarding> {
    let grant = visit.known().await.ok()?;
    visit.record("forwarded", Outcome::Allowed, Some("remote forwarding"));
    if wait || matches!(grant.readiness(), Readiness::Ready(_)) {
        let deadline = if wait { visit.gate.config.wake_timeout } else { ANSWER };
        return tokio::time::timeout(deadline, ask(visit, wanted)).await.ok()?;
    }
    let (visit, later) = (visit.clone(), wanted.clone());
    tokio::spawn(async move {
        tokio::select! {
            listening = ask(&visit, later) => {
                if listening.is_none() {
                    tracing::info!("a remote forwarding could not be opened after the wake");
                }
            }
            () = visit.ended.cancelled() => {}
        }
    });
    Some(wanted)
}

async fn ask(visit: &Arc<Visit>, wanted: Forwarding) -> Option<Forwarding> {
    let agent = visit.agent(None).await.ok()?;
    let bound = agent.listen(wanted).await?;
    let mut open = visit.forwardings.lock().ok()?;
    open.insert(bound.clone(), agent);
    Some(bound)
}

pub async fn stop_listening(visit: &Visit, forwarding: Forwarding) -> bool {
    let agent = visit.forwardings.lock().ok().and_then(|mut open| open.remove(&forwarding));
    match agent {
        Some(agent) => agent.stop_listening(forwarding).await,
        None => false,
    }
}
