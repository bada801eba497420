//! What the client may ask, and who answers. Nothing here waits for a workload, but for the answer
//! to a remote forwarding, which the protocol wants in order.

use std::{
    sync::{Arc, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use domain::variables;
use runtime::audit::Outcome;
use russh::{
    Channel, ChannelId, ChannelOpenFailure, Disconnect, MethodKind, MethodSet, Pty,
    keys::Certificate,
    server::{
        Auth, ChannelOpenHandle, Handle, Handler, Msg, PublicKeyOffer, Response, Session,
        VerifiedPublicKey,
    },
};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{
    auth::{Proven, advice},
    forward::{self, Destination},
    metrics::Counted,
    session,
    visit::{Ends, Forwarding, Gate, Visit},
    windows::{self, Windows},
};

/// A channel with more unread bytes than this is not granted a new window.
const UNREAD: usize = 2 << 20;

/// The same while a bound of unread bytes is half used up.
const UNREAD_TIGHT: usize = 64 << 10;

/// While a channel is withheld, the connection's next bytes wait this long now and then: else a client
/// on a fast line would ask thousands of times a second.
const PAUSE: Duration = Duration::from_millis(5);
const PAUSE_EVERY: Duration = Duration::from_micros(500);

/// How long somebody who may use nothing keeps the connection: enough for a session channel to say
/// why.
const REFUSED: Duration = Duration::from_secs(3);

/// Clients show it behind words of their own.
const TOO_MANY: &str = "dormouse: too many attempts to sign in; if your SSH agent offers many keys, \
     name one: ssh -o IdentitiesOnly=yes -i KEY_FILE";

pub fn methods() -> MethodSet {
    [MethodKind::PublicKey, MethodKind::KeyboardInteractive, MethodKind::Password][..].into()
}

/// One connection. Dropped when it ends.
pub struct Client {
    gate: Arc<Gate>,
    ends: Ends,
    signed_in: CancellationToken,
    ended: CancellationToken,
    _end: DropGuard,
    /// The last thing proven, with the user name that came with the proof.
    proven: Option<(String, Proven)>,
    /// Why the last token was refused.
    advice: Option<String>,
    /// Shared with whoever writes the audit event at the end.
    denied: Arc<std::sync::atomic::AtomicU32>,
    /// Answers of no, which the library counts as well.
    refused: usize,
    /// To the client, once its session runs.
    handle: Arc<OnceLock<Handle>>,
    visit: Option<Arc<Visit>>,
    windows: Windows<ChannelId>,
    /// When we last waited before a few bytes were asked for again.
    paused: Instant,
}

impl Client {
    pub fn new(
        gate: Arc<Gate>,
        ends: Ends,
        signed_in: CancellationToken,
        ended: CancellationToken,
        denied: Arc<std::sync::atomic::AtomicU32>,
        handle: Arc<OnceLock<Handle>>,
    ) -> Self {
        let _end = ended.clone().drop_guard();
        Self {
            gate,
            ends,
            signed_in,
            ended,
            _end,
            proven: None,
            advice: None,
            denied,
            refused: 0,
            handle,
            visit: None,
            windows: Windows::default(),
            paused: Instant::now(),
        }
    }

    /// Counts an answer of no. With the last one the client is told why it may not go on; the
    /// library's own words, at the next attempt, name no way out.
    async fn answered(&mut self, auth: Auth) -> Auth {
        if !matches!(auth, Auth::Reject { .. }) {
            return auth;
        }
        self.refused += 1;
        if self.refused == self.gate.config.limits.attempts
            && let Some(handle) = self.handle.get()
        {
            let reason = Disconnect::NoMoreAuthMethodsAvailable;
            let _ = handle.disconnect(reason, TOO_MANY.to_owned(), String::new()).await;
        }
        auth
    }

    fn accept(&mut self, method: &str, user: &str, proven: impl Into<Proven>) -> Auth {
        self.gate.metrics.sign_ins.with_label_values(&[method, "allowed"]).inc();
        self.proven = Some((user.to_owned(), proven.into()));
        Auth::Accept
    }

    fn deny(&mut self, method: &str) -> Auth {
        self.gate.metrics.sign_ins.with_label_values(&[method, "denied"]).inc();
        self.denied.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        self.proven = None;
        // Without this the library takes the method off the list after one failure.
        Auth::Reject { proceed_with_methods: Some(methods()), partial_success: false }
    }

    fn token(&mut self, method: &str, user: &str, token: &str) -> Auth {
        match self.gate.identify_by_token(token) {
            Ok(identity) => self.accept(method, user, identity),
            Err(error) => {
                self.advice = Some(advice(token, error));
                self.deny(method)
            }
        }
    }

    /// A place for one more channel and the visit it belongs to.
    fn place(&self) -> Option<(Arc<Visit>, Place)> {
        let visit = self.visit.clone()?;
        let place = visit.channels.clone().try_acquire_owned().ok()?;
        let counted = Counted::new(&self.gate.metrics.channels_open);
        Some((visit, Place { _place: place, _counted: counted }))
    }

    async fn forward(
        &self,
        channel: Channel<Msg>,
        destination: Destination,
        reply: ChannelOpenHandle,
    ) {
        let Some((visit, place)) = self.place() else {
            reply.reject(ChannelOpenFailure::ResourceShortage).await;
            return;
        };
        if !destination.is_inside(&visit) {
            visit.record("refused", Outcome::Denied, Some("forwarding to another host"));
            reply.reject(ChannelOpenFailure::AdministrativelyProhibited).await;
            return;
        }
        tokio::spawn(async move {
            forward::local(visit, channel, destination, reply).await;
            drop(place);
        });
    }
}

struct Place {
    _place: tokio::sync::OwnedSemaphorePermit,
    _counted: Counted,
}

impl Handler for Client {
    type Error = russh::Error;

    async fn auth_none(&mut self, _user: &str) -> Result<Auth, Self::Error> {
        Ok(self.answered(Auth::reject()).await)
    }

    async fn auth_password(&mut self, user: &str, password: &str) -> Result<Auth, Self::Error> {
        let auth = self.token("password", user, password);
        Ok(self.answered(auth).await)
    }

    /// Asks for a token, for clients and people that never send a password by themselves.
    async fn auth_keyboard_interactive<'a>(
        &'a mut self,
        user: &str,
        _submethods: &str,
        response: Option<Response<'a>>,
    ) -> Result<Auth, Self::Error> {
        if let Some(mut answers) = response {
            let answer = answers.next().unwrap_or_default();
            let answer = String::from_utf8_lossy(&answer);
            let auth = self.token("keyboard-interactive", user, &answer);
            return Ok(self.answered(auth).await);
        }
        let instructions = self.advice.take().map(|advice| format!("dormouse: {advice}"));
        Ok(Auth::Partial {
            name: "".into(),
            instructions: instructions.unwrap_or_default().into(),
            prompts: vec![("Dormouse access token: ".into(), false)].into(),
        })
    }

    /// Only spares the client a signature in vain; proves nothing.
    async fn auth_publickey_offered(
        &mut self,
        _user: &str,
        offer: PublicKeyOffer<'_>,
    ) -> Result<Auth, Self::Error> {
        let may = self.gate.may_offer(offer.public_key, offer.algorithm);
        Ok(self.answered(if may { Auth::Accept } else { Auth::reject() }).await)
    }

    async fn auth_publickey(
        &mut self,
        user: &str,
        key: VerifiedPublicKey<'_>,
    ) -> Result<Auth, Self::Error> {
        let auth = match self.gate.identify_by_key(key.public_key, key.algorithm) {
            Some(identity) => self.accept("publickey", user, identity),
            None => self.deny("publickey"),
        };
        Ok(self.answered(auth).await)
    }

    async fn auth_openssh_certificate(
        &mut self,
        user: &str,
        certificate: &Certificate,
    ) -> Result<Auth, Self::Error> {
        let auth = match self.gate.identify_by_certificate(certificate) {
            Ok(proven) => self.accept("certificate", user, proven),
            Err(error) => {
                tracing::debug!(%error, "a certificate was refused");
                self.deny("certificate")
            }
        };
        Ok(self.answered(auth).await)
    }

    async fn auth_succeeded(&mut self, session: &mut Session) -> Result<(), Self::Error> {
        let Some((user, proven)) = self.proven.take() else {
            return Err(russh::Error::Inconsistent);
        };
        self.signed_in.cancel();
        let visit = Arc::new(Visit::new(
            self.gate.clone(),
            proven,
            user,
            self.ends,
            session.handle(),
            self.ended.clone(),
        ));
        visit.record("signed-in", Outcome::Allowed, None);
        self.visit = Some(visit.clone());
        tokio::spawn(attend(visit));
        Ok(())
    }

    fn adjust_window(&mut self, channel: ChannelId, target: u32) -> u32 {
        let Some(visit) = &self.visit else { return target };
        let most = if visit.up.is_tight() { UNREAD_TIGHT } else { UNREAD };
        let unread = visit.unread.lock().unwrap_or_else(PoisonError::into_inner);
        let any = unread.values().any(|backlog| backlog.bytes() > most);
        let withheld = |id| unread.get(&id).is_some_and(|backlog| backlog.bytes() > most);
        self.windows.granted(channel, target, any, withheld)
    }

    async fn data(
        &mut self,
        _channel: ChannelId,
        data: &[u8],
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        let _ = session;
        // A client whose window is withheld asks again with each few bytes.
        if data.len() <= windows::SMALL as usize
            && self.windows.is_waiting()
            && self.paused.elapsed() > PAUSE_EVERY
        {
            tokio::time::sleep(PAUSE).await;
            self.paused = Instant::now();
        }
        Ok(())
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), Self::Error> {
        let Some((visit, place)) = self.place() else {
            reply.reject(ChannelOpenFailure::ResourceShortage).await;
            return Ok(());
        };
        reply.accept().await;
        tokio::spawn(async move {
            session::run(visit, channel).await;
            drop(place);
        });
        Ok(())
    }

    async fn channel_open_direct_tcpip(
        &mut self,
        channel: Channel<Msg>,
        host: &str,
        port: u32,
        originator_address: &str,
        originator_port: u32,
        reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), Self::Error> {
        let originator = (originator_address.to_owned(), originator_port);
        let destination = Destination::Tcp { host: host.to_owned(), port, originator };
        self.forward(channel, destination, reply).await;
        Ok(())
    }

    async fn channel_open_direct_streamlocal(
        &mut self,
        channel: Channel<Msg>,
        socket_path: &str,
        reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), Self::Error> {
        let destination = Destination::Unix { path: socket_path.to_owned() };
        self.forward(channel, destination, reply).await;
        Ok(())
    }

    async fn tcpip_forward(
        &mut self,
        address: &str,
        port: &mut u32,
        _session: &mut Session,
    ) -> Result<bool, Self::Error> {
        let Some(visit) = &self.visit else { return Ok(false) };
        match forward::listen(visit, address, *port).await {
            Some(bound) => {
                *port = bound;
                Ok(true)
            }
            None => Ok(false),
        }
    }

    async fn cancel_tcpip_forward(
        &mut self,
        address: &str,
        port: u32,
        _session: &mut Session,
    ) -> Result<bool, Self::Error> {
        match &self.visit {
            Some(visit) => {
                let forwarding = Forwarding::Tcp { address: address.to_owned(), port };
                Ok(forward::stop_listening(visit, forwarding).await)
            }
            None => Ok(false),
        }
    }

    async fn streamlocal_forward(
        &mut self,
        path: &str,
        _session: &mut Session,
    ) -> Result<bool, Self::Error> {
        let Some(visit) = &self.visit else { return Ok(false) };
        Ok(forward::listen_unix(visit, path).await)
    }

    async fn cancel_streamlocal_forward(
        &mut self,
        path: &str,
        _session: &mut Session,
    ) -> Result<bool, Self::Error> {
        let Some(visit) = &self.visit else { return Ok(false) };
        let forwarding = Forwarding::Unix { path: path.to_owned() };
        Ok(forward::stop_listening(visit, forwarding).await)
    }

    // The library remembers one wish for an answer per channel, so what can be answered without the
    // agent is answered here, in the order of the requests. The start is answered by the agent.

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
        if variables::passes(name) {
            session.channel_success(channel)
        } else {
            session.channel_failure(channel)
        }
    }

    async fn subsystem_request(
        &mut self,
        channel: ChannelId,
        name: &str,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        if session::is_offered(name) { Ok(()) } else { session.channel_failure(channel) }
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
}

/// Ends the connection of somebody who may not be here, or not any more.
async fn attend(visit: Arc<Visit>) {
    let work = async {
        let refusal = match visit.known().await {
            Err(refusal) => refusal,
            Ok(_) => {
                visit.supervise().await;
                visit.loss()
            }
        };
        // Session channels say it on standard error and end; `ssh -N` has none and is told here.
        tokio::time::sleep(REFUSED).await;
        let text = format!("dormouse: {refusal}");
        let _ = visit.handle.disconnect(Disconnect::ByApplication, text, String::new()).await;
        tokio::time::sleep(REFUSED).await;
        visit.ended.cancel();
    };
    tokio::select! {
        () = work => {}
        () = visit.ended.cancelled() => {}
    }
}
