//! Connections to the agent in the pod: opened when needed, with a pinned host key.
//!
//! All channels of one client connection share one. With an agent of an earlier version, which knows
//! no credit ([`domain::credit`]), each takes one that no other uses, up to a few of them: a download
//! that the person has paused then fills its own connection and nobody else's.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use domain::{
    access::{Grant, Readiness},
    credit,
};
use nix::sys::socket::{setsockopt, sockopt::TcpUserTimeout};
use russh::{
    Channel, ChannelOpenFailure, Preferred, SshId, cipher,
    client::{self, ChannelOpenHandle, Handle, Msg},
    compression,
    keys::{Algorithm, PrivateKeyWithHashAlg, PublicKey, PublicKeyOrCertificate},
};
use tokio::{
    net::{TcpSocket, TcpStream},
    sync::Mutex,
};

use crate::{
    forward::{self, Arrival},
    refusal::Refusal,
    visit::{Forwarding, Visit},
    wake::{Teller, ready},
};

/// Most connections to one agent on behalf of one client connection, where the agent knows no credit.
const CONNECTIONS_MAX: usize = 8;

/// Connections without a channel that are kept for the next one.
const IDLE_MAX: usize = 2;

/// How long an agent's kernel may confirm nothing, in milliseconds.
const GONE_MS: u32 = 60_000;

/// The kernel's buffer for what an agent sends, in bytes; pods are less than a millisecond away.
const RECEIVE: u32 = 512 << 10;

const DIAL: Duration = Duration::from_secs(10);

/// How long a ready workload's agent may take to answer: it may have started a moment ago.
const PATIENCE: Duration = Duration::from_secs(15);

const RETRY: Duration = Duration::from_millis(300);

const OPEN: Duration = Duration::from_secs(20);

#[derive(Default)]
pub struct Link {
    agents: Mutex<Vec<Arc<Agent>>>,
}

/// One connection. In use as long as somebody beside the [`Link`] holds it.
pub struct Agent {
    address: SocketAddr,
    handle: Handle<Events>,
    paced: Arc<AtomicBool>,
    _cut: Cut,
}

/// Ends the connection when it is dropped, whatever the library's session waits for.
struct Cut(std::net::TcpStream);

impl Drop for Cut {
    fn drop(&mut self) {
        let _ = self.0.shutdown(std::net::Shutdown::Both);
    }
}

/// A channel to the agent, and what keeps its connection.
pub struct Opened {
    pub channel: Channel<Msg>,
    pub agent: Arc<Agent>,
}

pub fn config() -> client::Config {
    client::Config {
        client_id: SshId::Standard(format!("SSH-2.0-Dormouse_Gateway {}", credit::OFFER).into()),
        // The only server is our own agent, and hardware makes AES the fastest.
        preferred: Preferred {
            key: vec![Algorithm::Ed25519].into(),
            cipher: vec![cipher::AES_256_GCM, cipher::CHACHA20_POLY1305].into(),
            compression: vec![compression::NONE].into(),
            ..Preferred::DEFAULT
        },
        inactivity_timeout: None,
        keepalive_interval: Some(Duration::from_secs(15)),
        // An agent whose program does not read answers nothing, and is alive: who is gone is found by
        // the kernel, which wants the questions confirmed.
        keepalive_max: 0,
        channel_buffer_size: 4,
        nodelay: true,
        ..client::Config::default()
    }
}

impl Visit {
    /// A connection to the workload's agent; wakes the workload first when it sleeps.
    pub async fn agent(
        self: &Arc<Self>,
        teller: Option<Teller<'_>>,
    ) -> Result<Arc<Agent>, Refusal> {
        let mut failing: Option<Instant> = None;
        loop {
            let grant = ready(self, teller).await?;
            let name = grant.workload().name.clone();
            let (address, host_key) = place(&grant)?;
            let mut agents = self.link.agents.lock().await;
            agents.retain(|agent| agent.address == address && !agent.handle.is_closed());
            let idle = |agent: &&Arc<Agent>| Arc::strong_count(agent) == 1;
            if let Some(agent) = agents.iter().find(idle) {
                return Ok(agent.clone());
            }
            let most =
                if agents.iter().any(|agent| agent.is_paced()) { 1 } else { CONNECTIONS_MAX };
            if agents.len() >= most
                && let Some(agent) = agents.iter().min_by_key(|agent| Arc::strong_count(agent))
            {
                return Ok(agent.clone());
            }
            match dial(self, address, host_key).await {
                Ok(agent) => {
                    agents.push(agent.clone());
                    return Ok(agent);
                }
                Err(error) => {
                    tracing::debug!(%error, %address, "cannot reach the agent yet");
                    drop(agents);
                    if failing.get_or_insert_with(Instant::now).elapsed() > PATIENCE {
                        return Err(Refusal::Unreachable(name));
                    }
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    /// Lets go of connections that nobody uses, but for a few. Called when a channel has ended.
    pub async fn tidy(&self) {
        let mut agents = self.link.agents.lock().await;
        let mut idle = 0;
        agents.retain(|agent| {
            idle += usize::from(Arc::strong_count(agent) == 1);
            Arc::strong_count(agent) > 1 || idle <= IDLE_MAX
        });
    }

    pub async fn open_session(
        self: &Arc<Self>,
        teller: Option<Teller<'_>>,
    ) -> Result<Opened, Refusal> {
        let agent = self.agent(teller).await?;
        let opening = agent.handle.channel_open_session();
        match tokio::time::timeout(OPEN, opening).await {
            Ok(Ok(channel)) => Ok(Opened { channel, agent }),
            _ => Err(Refusal::Unreachable(self.grant()?.workload().name.clone())),
        }
    }
}

fn place(grant: &Grant) -> Result<(SocketAddr, PublicKey), Refusal> {
    let name = || grant.workload().name.clone();
    let agent = grant.agent().ok_or_else(|| Refusal::NoAgent(name()))?;
    let host_key =
        PublicKey::from_openssh(&agent.host_key).map_err(|_| Refusal::NoAgent(name()))?;
    match grant.readiness() {
        Readiness::Ready([first, ..]) => Ok((SocketAddr::new(first.ip(), agent.port), host_key)),
        _ => Err(Refusal::Disconnected(name())),
    }
}

#[derive(Debug, thiserror::Error)]
enum DialError {
    #[error("{0}")]
    Io(#[from] std::io::Error),
    #[error("{0}")]
    Ssh(#[from] russh::Error),
    #[error("the agent does not know the gateway's key")]
    Denied,
    #[error("no answer within {} s", DIAL.as_secs())]
    Late,
}

async fn dial(
    visit: &Arc<Visit>,
    address: SocketAddr,
    host_key: PublicKey,
) -> Result<Arc<Agent>, DialError> {
    let paced = Arc::default();
    let events = Events { host_key, visit: Arc::downgrade(visit), paced: Arc::clone(&paced) };
    let work = async {
        let socket = match address {
            SocketAddr::V4(_) => TcpSocket::new_v4()?,
            SocketAddr::V6(_) => TcpSocket::new_v6()?,
        };
        // What waits here comes before what a person interrupts.
        socket.set_recv_buffer_size(RECEIVE)?;
        let stream = socket.connect(address).await?;
        stream.set_nodelay(true)?;
        let _ = setsockopt(&stream, TcpUserTimeout, &GONE_MS);
        let stream = stream.into_std()?;
        let cut = Cut(stream.try_clone()?);
        let stream = TcpStream::from_std(stream)?;
        let config = visit.gate.client_config.clone();
        let mut handle = client::connect_stream(config, stream, events).await?;
        let key = PrivateKeyWithHashAlg::new(visit.gate.client_key.clone(), None);
        if !handle.authenticate_publickey("dormouse", key).await?.success() {
            return Err(DialError::Denied);
        }
        Ok(Arc::new(Agent { address, handle, paced, _cut: cut }))
    };
    tokio::time::timeout(DIAL, work).await.unwrap_or(Err(DialError::Late))
}

impl Agent {
    /// It gives credit, and waits for ours.
    pub fn is_paced(&self) -> bool {
        self.paced.load(Ordering::Acquire)
    }

    /// Fails with the agent's own reason.
    pub async fn open_tcp(
        &self,
        host: &str,
        port: u32,
        originator: (&str, u32),
    ) -> Result<Channel<Msg>, ChannelOpenFailure> {
        let (address, number) = originator;
        opened(self.handle.channel_open_direct_tcpip(host, port, address, number)).await
    }

    pub async fn open_unix(&self, path: &str) -> Result<Channel<Msg>, ChannelOpenFailure> {
        opened(self.handle.channel_open_direct_streamlocal(path)).await
    }

    /// What the agent listens on, with the port that it chose, or `None` if it does not.
    pub async fn listen(&self, wanted: Forwarding) -> Option<Forwarding> {
        let asked = async {
            match &wanted {
                Forwarding::Tcp { address, port } => {
                    self.handle.tcpip_forward(address, *port).await
                }
                Forwarding::Unix { path } => {
                    self.handle.streamlocal_forward(path).await.map(|()| 0)
                }
            }
        };
        let bound = tokio::time::timeout(OPEN, asked).await.ok()?.ok()?;
        Some(match wanted {
            Forwarding::Tcp { address, .. } if bound != 0 => {
                Forwarding::Tcp { address, port: bound }
            }
            as_asked => as_asked,
        })
    }

    pub async fn stop_listening(&self, forwarding: Forwarding) -> bool {
        let asked = async {
            match &forwarding {
                Forwarding::Tcp { address, port } => {
                    self.handle.cancel_tcpip_forward(address, *port).await
                }
                Forwarding::Unix { path } => self.handle.cancel_streamlocal_forward(path).await,
            }
        };
        matches!(tokio::time::timeout(OPEN, asked).await, Ok(Ok(())))
    }
}

async fn opened(
    opening: impl Future<Output = Result<Channel<Msg>, russh::Error>>,
) -> Result<Channel<Msg>, ChannelOpenFailure> {
    match tokio::time::timeout(OPEN, opening).await {
        Ok(Ok(channel)) => Ok(channel),
        Ok(Err(russh::Error::ChannelOpenFailure(reason))) => Err(reason),
        _ => Err(ChannelOpenFailure::ConnectFailed),
    }
}

const PROHIBITED: ChannelOpenFailure = ChannelOpenFailure::AdministrativelyProhibited;

/// What the agent may do on its own: open channels for remote forwardings, and nothing else.
pub struct Events {
    host_key: PublicKey,
    visit: Weak<Visit>,
    paced: Arc<AtomicBool>,
}

impl client::Handler for Events {
    type Error = russh::Error;

    async fn check_server_key(
        &mut self,
        key: &PublicKeyOrCertificate,
    ) -> Result<bool, Self::Error> {
        Ok(matches!(
            key,
            PublicKeyOrCertificate::PublicKey { key, .. }
                if key.key_data() == self.host_key.key_data()
        ))
    }

    async fn auth_banner(
        &mut self,
        banner: &str,
        _session: &mut client::Session,
    ) -> Result<(), Self::Error> {
        self.paced.store(banner == credit::OFFER, Ordering::Release);
        Ok(())
    }

    async fn server_channel_open_forwarded_tcpip(
        &mut self,
        channel: Channel<Msg>,
        connected_address: &str,
        connected_port: u32,
        originator_address: &str,
        originator_port: u32,
        reply: ChannelOpenHandle,
        _session: &mut client::Session,
    ) -> Result<(), Self::Error> {
        let Some(visit) = self.visit.upgrade() else {
            reply.reject(PROHIBITED).await;
            return Ok(());
        };
        let connected = (connected_address.to_owned(), connected_port);
        let originator = (originator_address.to_owned(), originator_port);
        let arrival = Arrival::Tcp { connected, originator };
        let paced = self.paced.load(Ordering::Acquire);
        tokio::spawn(forward::remote(visit, channel, arrival, reply, paced));
        Ok(())
    }

    async fn server_channel_open_forwarded_streamlocal(
        &mut self,
        channel: Channel<Msg>,
        path: &str,
        reply: ChannelOpenHandle,
        _session: &mut client::Session,
    ) -> Result<(), Self::Error> {
        let Some(visit) = self.visit.upgrade() else {
            reply.reject(PROHIBITED).await;
            return Ok(());
        };
        let arrival = Arrival::Unix { path: path.to_owned() };
        let paced = self.paced.load(Ordering::Acquire);
        tokio::spawn(forward::remote(visit, channel, arrival, reply, paced));
        Ok(())
    }

    // The library accepts what is not refused here.

    async fn server_channel_open_agent_forward(
        &mut self,
        _channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        _session: &mut client::Session,
    ) -> Result<(), Self::Error> {
        reply.reject(PROHIBITED).await;
        Ok(())
    }

    async fn server_channel_open_session(
        &mut self,
        _channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        _session: &mut client::Session,
    ) -> Result<(), Self::Error> {
        reply.reject(PROHIBITED).await;
        Ok(())
    }

    async fn server_channel_open_direct_tcpip(
        &mut self,
        _channel: Channel<Msg>,
        _host: &str,
        _port: u32,
        _originator_address: &str,
        _originator_port: u32,
        reply: ChannelOpenHandle,
        _session: &mut client::Session,
    ) -> Result<(), Self::Error> {
        reply.reject(PROHIBITED).await;
        Ok(())
    }

    async fn server_channel_open_direct_streamlocal(
        &mut self,
        _channel: Channel<Msg>,
        _path: &str,
        reply: ChannelOpenHandle,
        _session: &mut client::Session,
    ) -> Result<(), Self::Error> {
        reply.reject(PROHIBITED).await;
        Ok(())
    }

    async fn server_channel_open_x11(
        &mut self,
        _channel: Channel<Msg>,
        _originator_address: &str,
        _originator_port: u32,
        reply: ChannelOpenHandle,
        _session: &mut client::Session,
    ) -> Result<(), Self::Error> {
        reply.reject(PROHIBITED).await;
        Ok(())
    }
}
