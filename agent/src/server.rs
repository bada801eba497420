//! The agent's connections: who may sign in, and what each request starts.

use std::{collections::HashMap, net::IpAddr, path::PathBuf, sync::Arc, time::Duration};

use domain::credit;
use nix::sys::socket::{
    setsockopt,
    sockopt::{SndBuf, TcpUserTimeout},
};
use russh::{
    Channel, ChannelId, ChannelOpenFailure, MethodKind, MethodSet, Preferred, Pty, Sig, SshId,
    cipher, compression,
    keys::{Algorithm, PublicKey},
    server::{
        Auth, ChannelOpenHandle, Config, Handler, Msg, PublicKeyOffer, Session, VerifiedPublicKey,
    },
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{
    forward::{self, Loopback},
    gateway::Gateway,
    login::{Login, may_set},
    session::{self, SFTP},
    settings::{Settings, authorized_now},
    streamlocal,
};

/// How long a connection may take to sign in.
const SIGN_IN: Duration = Duration::from_secs(20);

/// How long the gateway's kernel may confirm nothing, in milliseconds.
const GONE_MS: u32 = 120_000;

/// The kernel's buffer for what goes to a gateway, in bytes; it is less than a millisecond away.
const SEND: usize = 256 << 10;

/// Most connections at a time: each gateway holds one per person and session.
const CONNECTIONS_MAX: usize = 256;

/// Most channels of one connection at a time.
const CHANNELS_MAX: usize = 256;

/// Most remote forwardings of one connection at a time.
const FORWARDINGS_MAX: usize = 32;

/// How long sessions may take to hang up when the agent stops.
const GOODBYE: Duration = Duration::from_millis(500);

struct Shared {
    /// As it was at the start, for when the file cannot be read.
    authorized: PublicKey,
    authorized_file: PathBuf,
    login: Arc<Login>,
    loopback: Loopback,
}

/// Serves until `stop`; then hangs up on all sessions.
pub async fn serve(settings: Settings, listener: TcpListener, stop: CancellationToken) {
    let own = listener.local_addr().map_or(settings.listen.ip(), |address| address.ip());
    let config = Arc::new(config(&settings));
    let shared = Arc::new(Shared {
        authorized: settings.authorized_key,
        authorized_file: settings.authorized_file,
        login: Arc::new(Login::of_this_process(&settings.home)),
        loopback: Loopback { instead: settings.loopback, own: specified(own) },
    });
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let tasks = tokio_util::task::TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => break,
        };
        let Ok((stream, _)) = accepted else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let Ok(permit) = room.clone().try_acquire_owned() else { continue };
        let (config, shared, stop) = (config.clone(), shared.clone(), stop.child_token());
        let sessions = tasks.clone();
        tasks.spawn(async move {
            if let Err(error) = connection(config, shared, stream, stop, sessions).await {
                tracing::debug!(%error, "connection ended");
            }
            drop(permit);
        });
    }
    tasks.close();
    let _ = tokio::time::timeout(GOODBYE, tasks.wait()).await;
}

/// A wildcard address says nothing about the pod's own: only its loopback is left then.
fn specified(address: IpAddr) -> IpAddr {
    if address.is_unspecified() { std::net::Ipv4Addr::LOCALHOST.into() } else { address }
}

fn config(settings: &Settings) -> Config {
    let mut methods = MethodSet::empty();
    methods.push(MethodKind::PublicKey);
    Config {
        server_id: SshId::Standard("SSH-2.0-Dormouse_Agent".into()),
        methods,
        auth_rejection_time: Duration::from_millis(300),
        auth_rejection_time_initial: Some(Duration::ZERO),
        keys: vec![settings.host_key.clone()],
        // The gateway is the only client, and hardware makes AES the fastest.
        preferred: Preferred {
            key: vec![Algorithm::Ed25519].into(),
            cipher: vec![cipher::AES_256_GCM, cipher::CHACHA20_POLY1305].into(),
            compression: vec![compression::NONE].into(),
            ..Preferred::DEFAULT
        },
        max_auth_attempts: 3,
        // What waits here comes before what a person interrupts.
        event_buffer_size: 8,
        inactivity_timeout: None,
        keepalive_interval: Some(Duration::from_secs(30)),
        // A gateway whose client does not read answers nothing, and is alive: who is gone is found by
        // the kernel, which wants the questions confirmed.
        keepalive_max: 0,
        nodelay: true,
        ..Config::default()
    }
}

async fn connection(
    config: Arc<Config>,
    shared: Arc<Shared>,
    stream: TcpStream,
    stop: CancellationToken,
    sessions: tokio_util::task::TaskTracker,
) -> anyhow::Result<()> {
    stream.set_nodelay(true)?;
    let _ = setsockopt(&stream, TcpUserTimeout, &GONE_MS);
    // What waits in the kernel comes before what a person interrupts.
    let _ = setsockopt(&stream, SndBuf, &SEND);
    // A second handle to the socket: the library's session may wait for the peer without an end,
    // and this is how it is made to.
    let stream = stream.into_std()?;
    let cut = stream.try_clone()?;
    let stream = TcpStream::from_std(stream)?;
    let signed_in = CancellationToken::new();
    let handler = Connection {
        shared,
        signed_in: signed_in.clone(),
        sessions,
        forwardings: HashMap::new(),
        channels: HashMap::new(),
        _ended: stop.clone().drop_guard(),
        stop: stop.clone(),
    };
    let running = async { russh::server::run_stream(config, stream, handler).await?.await };
    let late = async {
        tokio::select! {
            () = signed_in.cancelled() => std::future::pending().await,
            () = tokio::time::sleep(SIGN_IN) => {}
        }
    };
    let result = tokio::select! {
        result = running => result.map_err(anyhow::Error::from),
        () = late => Err(anyhow::anyhow!("did not sign in in time")),
        () = stop.cancelled() => Ok(()),
    };
    if stop.is_cancelled() {
        // Sessions say their last words first.
        tokio::time::sleep(GOODBYE / 4).await;
    }
    let _ = cut.shutdown(std::net::Shutdown::Both);
    result
}

/// Dropped when the connection ends, which ends everything that it started.
struct Connection {
    shared: Arc<Shared>,
    signed_in: CancellationToken,
    stop: CancellationToken,
    _ended: DropGuard,
    sessions: tokio_util::task::TaskTracker,
    /// By what the client asked for; a Unix socket has no port.
    forwardings: HashMap<(String, Option<u32>), DropGuard>,
    channels: HashMap<ChannelId, CancellationToken>,
}

impl Connection {
    /// A token that ends with the channel; `None` when there are too many channels.
    fn channel(&mut self, id: ChannelId) -> Option<CancellationToken> {
        self.channels.retain(|_, stop| !stop.is_cancelled());
        (self.channels.len() < CHANNELS_MAX).then(|| {
            let stop = self.stop.child_token();
            self.channels.insert(id, stop.clone());
            stop
        })
    }

    /// Looks at the file each time: its Secret follows the gateway's key, and the agent lives long.
    fn trusts(&self, key: &PublicKey) -> bool {
        let authorized = authorized_now(&self.shared.authorized_file, &self.shared.authorized);
        key.key_data() == authorized.key_data()
    }
}

fn gateway(session: &Session) -> Gateway {
    Gateway { handle: session.handle(), paced: credit::is_offered(session.remote_sshid()) }
}

impl Handler for Connection {
    type Error = russh::Error;

    async fn authentication_banner(&mut self) -> Result<Option<String>, Self::Error> {
        Ok(Some(credit::OFFER.to_owned()))
    }

    async fn auth_publickey_offered(
        &mut self,
        _user: &str,
        offer: PublicKeyOffer<'_>,
    ) -> Result<Auth, Self::Error> {
        Ok(if self.trusts(offer.public_key) { Auth::Accept } else { Auth::reject() })
    }

    async fn auth_publickey(
        &mut self,
        _user: &str,
        key: VerifiedPublicKey<'_>,
    ) -> Result<Auth, Self::Error> {
        Ok(if self.trusts(key.public_key) { Auth::Accept } else { Auth::reject() })
    }

    async fn auth_succeeded(&mut self, _session: &mut Session) -> Result<(), Self::Error> {
        self.signed_in.cancel();
        Ok(())
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        let Some(stop) = self.channel(channel.id()) else {
            reply.reject(ChannelOpenFailure::ResourceShortage).await;
            return Ok(());
        };
        reply.accept().await;
        let (login, gateway) = (self.shared.login.clone(), gateway(session));
        self.sessions.spawn(async move {
            session::run(login, channel, gateway, stop.clone()).await;
            stop.cancel();
        });
        Ok(())
    }

    async fn channel_open_direct_tcpip(
        &mut self,
        channel: Channel<Msg>,
        host: &str,
        port: u32,
        _originator_address: &str,
        _originator_port: u32,
        reply: ChannelOpenHandle,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        let Some(candidates) = self.shared.loopback.candidates(host, port) else {
            reply.reject(ChannelOpenFailure::AdministrativelyProhibited).await;
            return Ok(());
        };
        let Some(stop) = self.channel(channel.id()) else {
            reply.reject(ChannelOpenFailure::ResourceShortage).await;
            return Ok(());
        };
        let (loopback, gateway) = (self.shared.loopback, gateway(session));
        tokio::spawn(async move {
            let candidates = loopback.answering(candidates).await;
            match forward::connect(&candidates).await {
                Ok(stream) => {
                    reply.accept().await;
                    forward::bridge(channel, stream, gateway, stop.clone()).await;
                }
                Err(reason) => reply.reject(reason).await,
            }
            stop.cancel();
        });
        Ok(())
    }

    async fn channel_open_direct_streamlocal(
        &mut self,
        channel: Channel<Msg>,
        socket_path: &str,
        reply: ChannelOpenHandle,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        let Some(stop) = self.channel(channel.id()) else {
            reply.reject(ChannelOpenFailure::ResourceShortage).await;
            return Ok(());
        };
        let (path, gateway) = (socket_path.to_owned(), gateway(session));
        tokio::spawn(async move {
            match forward::connect_unix(&path).await {
                Ok(stream) => {
                    reply.accept().await;
                    forward::bridge(channel, stream, gateway, stop.clone()).await;
                }
                Err(reason) => reply.reject(reason).await,
            }
            stop.cancel();
        });
        Ok(())
    }

    async fn tcpip_forward(
        &mut self,
        address: &str,
        port: &mut u32,
        session: &mut Session,
    ) -> Result<bool, Self::Error> {
        let Ok(wanted) = u16::try_from(*port) else { return Ok(false) };
        if self.forwardings.len() >= FORWARDINGS_MAX {
            return Ok(false);
        }
        let bound = TcpListener::bind((self.shared.loopback.bind(), wanted)).await;
        let Ok((listener, local)) = bound.and_then(|l| l.local_addr().map(|local| (l, local)))
        else {
            return Ok(false);
        };
        *port = u32::from(local.port());
        let stop = self.stop.child_token();
        let key = (address.to_owned(), Some(*port));
        let work =
            forward::listen(listener, address.to_owned(), *port, gateway(session), stop.clone());
        tokio::spawn(work);
        self.forwardings.insert(key, stop.drop_guard());
        Ok(true)
    }

    async fn cancel_tcpip_forward(
        &mut self,
        address: &str,
        port: u32,
        _session: &mut Session,
    ) -> Result<bool, Self::Error> {
        Ok(self.forwardings.remove(&(address.to_owned(), Some(port))).is_some())
    }

    async fn streamlocal_forward(
        &mut self,
        path: &str,
        session: &mut Session,
    ) -> Result<bool, Self::Error> {
        if self.forwardings.len() >= FORWARDINGS_MAX {
            return Ok(false);
        }
        let socket = match streamlocal::bind(self.shared.login.home().join(path)).await {
            Ok(socket) => socket,
            Err(error) => {
                tracing::info!(%error, "a socket cannot be forwarded");
                return Ok(false);
            }
        };
        let stop = self.stop.child_token();
        let work = streamlocal::listen(socket, path.to_owned(), gateway(session), stop.clone());
        self.sessions.spawn(work);
        self.forwardings.insert((path.to_owned(), None), stop.drop_guard());
        Ok(true)
    }

    async fn cancel_streamlocal_forward(
        &mut self,
        path: &str,
        _session: &mut Session,
    ) -> Result<bool, Self::Error> {
        Ok(self.forwardings.remove(&(path.to_owned(), None)).is_some())
    }

    // Answers are given here, in the order of the requests; the channel's task carries them out and
    // says on standard error when it cannot.

    async fn pty_request(
        &mut self,
        channel: ChannelId,
        _term: &str,
        _columns: u32,
        _rows: u32,
        _width: u32,
        _height: u32,
        _modes: &[(Pty, u32)],
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        session.channel_success(channel)
    }

    async fn env_request(
        &mut self,
        channel: ChannelId,
        name: &str,
        _value: &str,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        if may_set(name) {
            session.channel_success(channel)
        } else {
            session.channel_failure(channel)
        }
    }

    async fn shell_request(
        &mut self,
        channel: ChannelId,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        session.channel_success(channel)
    }

    async fn exec_request(
        &mut self,
        channel: ChannelId,
        _command: &[u8],
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        session.channel_success(channel)
    }

    async fn subsystem_request(
        &mut self,
        channel: ChannelId,
        name: &str,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        if name == SFTP {
            session.channel_success(channel)
        } else {
            session.channel_failure(channel)
        }
    }

    async fn x11_request(
        &mut self,
        channel: ChannelId,
        _single_connection: bool,
        _protocol: &str,
        _cookie: &str,
        _screen: u32,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        session.channel_failure(channel)
    }

    async fn signal(
        &mut self,
        _channel: ChannelId,
        _signal: Sig,
        _session: &mut Session,
    ) -> Result<(), Self::Error> {
        Ok(())
    }

    async fn channel_close(
        &mut self,
        channel: ChannelId,
        _session: &mut Session,
    ) -> Result<(), Self::Error> {
        if let Some(stop) = self.channels.remove(&channel) {
            stop.cancel();
        }
        Ok(())
    }
}
