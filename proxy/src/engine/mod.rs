//! The general engine: pingora, for whatever is neither an upgrade nor refused by the front.

mod answer;
mod framing;
pub mod http2;
mod keep_alive;
mod peer;
mod request;
mod watch;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use domain::upstream::UpstreamProtocol;
use futures::FutureExt;
use http::{HeaderName, HeaderValue, StatusCode, Version, header};
use jiff::Timestamp;
use pingora::{
    Error, ErrorSource, ErrorType, Result,
    http::{RequestHeader, ResponseHeader},
    protocols::http::v2::server::default_h2_options,
    proxy::{FailToProxy, ProxyHttp, Session, http_proxy},
    server::configuration::ServerConf,
    upstreams::peer::HttpPeer,
};
use tokio::time::Instant;

use self::{
    request::{Borrowed, client},
    watch::Trail,
};
use crate::{
    answer::{Fault, Refusal},
    config,
    front::{
        chunked::Malformed,
        pace::{Pace, TooSlow},
    },
    gate::{
        Admitted, Gate, Verdict,
        head::Audience,
        is_own_path,
        live::LOOK_EVERY,
        scrub::{self, Scrub, Trust},
    },
    upstream::{CONNECT_PATIENCE, HANDSHAKES_MAX, Picked, Tried},
};

pub use self::watch::General;

const POOL_SIZE: usize = 512;
/// Tries of one request; time ends them earlier.
const TRIES_MAX: usize = 128;

const TOO_LARGE: ErrorType = ErrorType::HTTPStatus(413);
const TOO_SLOW: ErrorType = ErrorType::HTTPStatus(408);

/// For the rest of a body that nobody wants any more, before the connection is used again.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

pub struct Engine {
    gate: Arc<Gate>,
    limits: config::Limits,
}

pub fn new(gate: Arc<Gate>, limits: &config::Limits) -> Arc<General> {
    let conf = Arc::new(ServerConf {
        upstream_keepalive_pool_size: POOL_SIZE,
        max_retries: TRIES_MAX,
        ..ServerConf::default()
    });
    let mut proxy = http_proxy(&conf, Engine { gate: gate.clone(), limits: limits.clone() });
    let mut h2 = default_h2_options();
    h2.max_concurrent_streams(250);
    h2.max_header_list_size(u32::try_from(limits.head_bytes).unwrap_or(u32::MAX));
    // A fair start for uploads; the default of 64 KiB makes them slow over distance.
    h2.initial_window_size(1 << 20).initial_connection_window_size(4 << 20);
    proxy.h2_options = Some(h2);
    Arc::new(General::new(proxy, gate))
}

/// One exchange. Dropped at its end, and the activity guard with it.
pub struct Exchange {
    started: Instant,
    admitted: Option<Box<Admitted>>,
    audience: Audience,
    tried: Tried,
    /// The upstream of the try that is under way.
    picked: Option<Picked>,
    give_up_at: Option<Instant>,
    /// When it was last seen that the exchange may go on.
    checked: Instant,
    /// Bytes of the request's body so far.
    body: u64,
    /// How fast it comes, where the front cannot tell.
    pace: Option<Pace>,
    trail: Option<Trail>,
    /// What is wrong with the answer.
    fault: Option<Fault>,
}

impl Exchange {
    /// Once in a while, as bytes pass either way: an exchange ends when the right to it is lost.
    fn look(&mut self, gate: &Gate) -> Result<()> {
        let Some(admitted) = &self.admitted else { return Ok(()) };
        if self.checked.elapsed() < LOOK_EVERY {
            return Ok(());
        }
        self.checked = Instant::now();
        if gate.may_go_on(&admitted.destination) {
            return Ok(());
        }
        Err(Error::explain(ErrorType::ConnectionClosed, "the right was lost").into_down())
    }
}

impl Exchange {
    /// The last of the answer is on its way to the client.
    fn answered(&mut self) {
        let Some(trail) = &mut self.trail else { return };
        trail.broken_off = false;
        if let Some(admitted) = &mut self.admitted {
            admitted.held.answered(trail.status);
        }
        watch::answered(trail.bytes);
    }
}

/// Whether a field of an answer is for the connection to the upstream only.
fn ends_here(name: &HeaderName, response: &ResponseHeader) -> bool {
    let options = response.headers.get_all(header::CONNECTION).iter();
    let mut options = options.flat_map(|value| scrub::options(value.as_bytes()));
    scrub::answer_ends_here(name.as_str(), &mut options)
}

/// Whether reading failed because of what the front found, and not because the client left.
fn is_found<T: std::error::Error + 'static>(error: &Error) -> bool {
    let io = error.root_cause().downcast_ref::<std::io::Error>();
    io.and_then(std::io::Error::get_ref).is_some_and(|cause| cause.is::<T>())
}

/// Whether any `Connection` field says so (RFC 9112, section 9.3). pingora looks at the first only.
fn asks_to_close(request: &RequestHeader) -> bool {
    let values = request.headers.get_all(header::CONNECTION).iter();
    let mut options = values.flat_map(|value| scrub::options(value.as_bytes()));
    options.any(|option| option.eq_ignore_ascii_case(b"close"))
}

fn is_head(session: &Session) -> bool {
    session.req_header().method == http::Method::HEAD
}

fn broken(why: &'static str) -> Box<Error> {
    Error::explain(ErrorType::InternalError, why)
}

impl Engine {
    /// Asks the gate. `None` when the client has left while its request was held: it gives its place
    /// back, and nothing is done in its name afterwards.
    async fn admit(&self, session: &mut Session, ctx: &mut Exchange) -> Option<Verdict> {
        let (from, now) = (client(session), Timestamp::now());
        // Only without a body can the end of the stream be told from what belongs to the request.
        let has_body = !session.is_body_empty();
        {
            let borrowed = match Borrowed::of(session.req_header()) {
                Ok(borrowed) => borrowed,
                Err(refusal) => {
                    let nobody = self.gate.nobody();
                    let mode = session.req_header().headers.get("sec-fetch-mode");
                    let page = mode.is_some_and(|mode| mode.as_bytes() == b"navigate");
                    let audience = if page { Audience::Submission } else { Audience::Client };
                    let answer = self.gate.refuse(&nobody, &refusal, audience);
                    return Some(Verdict::Answer(answer));
                }
            };
            let head = borrowed.head();
            ctx.audience = head.audience();
            let admit = self.gate.admit(&head, from, now);
            // A sign-in is finished once begun: its code is good for one try.
            if has_body || is_own_path(head.path()) {
                return Some(admit.await);
            }
            // Nearly every request is decided at once, and pays for no copy.
            if let Some(verdict) = admit.now_or_never() {
                return Some(verdict);
            }
        }
        let request = session.req_header().clone();
        let borrowed = Borrowed::of(&request).ok()?;
        let head = borrowed.head();
        tokio::select! {
            verdict = self.gate.admit(&head, from, now) => Some(verdict),
            _ = session.read_body_or_idle(true) => None,
        }
    }
}

#[async_trait]
impl ProxyHttp for Engine {
    type CTX = Exchange;

    fn new_ctx(&self) -> Exchange {
        Exchange {
            started: Instant::now(),
            admitted: None,
            audience: Audience::Client,
            tried: Tried::default(),
            picked: None,
            give_up_at: None,
            checked: Instant::now(),
            body: 0,
            pace: None,
            trail: None,
            fault: None,
        }
    }

    async fn request_filter(&self, session: &mut Session, ctx: &mut Exchange) -> Result<bool> {
        session.set_write_timeout(Some(self.limits.stall_timeout));
        session.set_total_drain_timeout(Some(DRAIN_TIMEOUT));
        // But for the 100 that a client asked for, as in the fast lane.
        session.set_ignore_info_resp(true);
        if asks_to_close(session.req_header()) {
            session.set_keepalive(None);
        }
        let verdict = self.admit(session, ctx).await.ok_or_else(|| {
            Error::explain(ErrorType::ConnectionClosed, "the client did not wait").into_down()
        })?;
        match verdict {
            Verdict::Forward(admitted) => {
                if let Some(time) = admitted.held.body_time {
                    session.set_read_timeout(Some(time));
                    session.set_write_timeout(Some(time));
                } else if session.req_header().headers.contains_key(header::CONTENT_LENGTH) {
                    // Who says how much will come has it ready. Streams may be silent for long.
                    session.set_read_timeout(Some(self.limits.body_stall));
                    if session.is_http2() {
                        ctx.pace = Pace::new(&self.limits);
                    }
                }
                watch::goes_to(&admitted.destination);
                ctx.trail = Some(Trail::begin(&self.gate, session, Some(&admitted), ctx.started));
                ctx.admitted = Some(admitted);
                Ok(false)
            }
            Verdict::Answer(answer) => {
                answer::write(session, answer).await?;
                Ok(true)
            }
        }
    }

    async fn upstream_peer(
        &self,
        session: &mut Session,
        ctx: &mut Exchange,
    ) -> Result<Box<HttpPeer>> {
        let admitted = ctx.admitted.as_ref().ok_or_else(|| broken("a request without a grant"))?;
        if !ctx.tried.is_empty() {
            self.gate.metrics.connect_retries.inc();
        }
        ctx.picked = None;
        let picked = self.gate.pick_after(admitted, &ctx.tried).await;
        let picked =
            picked.ok_or_else(|| Error::explain(ErrorType::HTTPStatus(503), "gone meanwhile"))?;
        let peer = peer::of(&picked, &self.gate.tls, self.limits.stall_timeout);
        let mut peer = peer.map_err(|error| {
            tracing::warn!(%error, "a workload cannot be reached over TLS");
            Error::explain(ErrorType::InvalidCert, "the workload's TLS settings are no good")
        })?;
        let plain = picked.protocol == UpstreamProtocol::Http1;
        if let Some(every) = admitted.keep_alive.filter(|_| plain && !is_head(session)) {
            keep_alive::watch(&mut peer, every);
        }
        ctx.picked = Some(picked);
        Ok(Box::new(peer))
    }

    async fn upstream_request_filter(
        &self,
        session: &mut Session,
        upstream: &mut RequestHeader,
        ctx: &mut Exchange,
    ) -> Result<()> {
        let admitted = ctx.admitted.as_ref().ok_or_else(|| broken("a request without a grant"))?;
        let borrowed = Borrowed::of(session.req_header())
            .map_err(|_| broken("a request that was refused went on"))?;
        let head = borrowed.head();
        let scrub = Scrub::of(&head, admitted);
        let gone: Vec<_> =
            upstream.headers.keys().filter(|name| !scrub.keeps(name.as_str())).cloned().collect();
        for name in gone {
            upstream.remove_header(&name);
        }
        if let Some(target) = &admitted.withheld.target {
            upstream.set_raw_path(target.as_bytes())?;
        }
        if let Some(cookie) = scrub.cookie() {
            upstream.insert_header(header::COOKIE, cookie)?;
        }
        let both_http_2 = |a, b| a == Version::HTTP_2 && b == Version::HTTP_2;
        if both_http_2(session.req_header().version, upstream.version) && scrub.te_trailers() {
            upstream.insert_header(header::TE, "trailers")?;
        }
        if admitted.keep_alive.is_some() && upstream.version == Version::HTTP_11 {
            // One connection, one answer: see `keep_alive`.
            upstream.insert_header(header::CONNECTION, "close")?;
        }
        let mut set = Ok(());
        admitted.fields(&head, |name, value| {
            if set.is_ok() {
                set = upstream.insert_header(name, value);
            }
        });
        set
    }

    /// Cuts a body that did not say how long it is, or takes too long.
    async fn request_body_filter(
        &self,
        _session: &mut Session,
        body: &mut Option<bytes::Bytes>,
        end: bool,
        ctx: &mut Exchange,
    ) -> Result<()> {
        let Some(admitted) = &ctx.admitted else { return Ok(()) };
        self.gate.hear_body(admitted, body.as_deref().unwrap_or_default(), end);
        let length = body.as_ref().map_or(0, |part| part.len());
        watch::heard(length as u64, end);
        ctx.body += length as u64;
        if let Some(pace) = ctx.pace.as_mut().filter(|_| !end) {
            let heard = pace.heard(length, Instant::now());
            heard.map_err(|slow| Error::because(TOO_SLOW, "the body", slow).into_down())?;
        }
        let held = &admitted.held;
        if held.body_max.is_some_and(|most| ctx.body > most) {
            return Err(Error::explain(TOO_LARGE, "the body is too long").into_down());
        }
        if !end && held.body_time.is_some_and(|time| ctx.started.elapsed() > time) {
            return Err(Error::explain(TOO_SLOW, "the body takes too long").into_down());
        }
        ctx.look(&self.gate)
    }

    async fn response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        ctx: &mut Exchange,
    ) -> Result<()> {
        let Some(admitted) = &ctx.admitted else { return Ok(()) };
        let status = response.status;
        let bodiless = status.is_informational()
            || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
            || is_head(session);
        if let Some(fault) = framing::fault(response, bodiless) {
            ctx.fault = Some(fault);
            return Err(Error::explain(ErrorType::InvalidHTTPHeader, "refused").into_up());
        }
        if let Some(trail) = &mut ctx.trail {
            trail.status = response.status.as_u16();
        }
        let mut sticky = None;
        if let Some(picked) = &mut ctx.picked {
            picked.answered(Instant::now());
            if !response.status.is_informational() {
                sticky = picked.set_cookie.take();
            }
        }
        let gone: Vec<_> =
            response.headers.keys().filter(|name| ends_here(name, response)).cloned().collect();
        for name in gone {
            response.remove_header(&name);
        }
        if admitted.trust != Trust::Service {
            let all = response.headers.get_all(header::SET_COOKIE).iter();
            let kept: Vec<_> =
                all.filter(|value| scrub::keeps_set_cookie(value.as_bytes())).cloned().collect();
            response.remove_header(&header::SET_COOKIE);
            for value in kept {
                response.append_header(header::SET_COOKIE, value)?;
            }
        }
        // Informational answers carry no cookies.
        if !response.status.is_informational() {
            // A workload's own word would be about the whole host, which is ours.
            if let Some(hsts) = &self.gate.hsts {
                response.insert_header(header::STRICT_TRANSPORT_SECURITY, hsts.clone())?;
            }
            let location = response.headers.get(header::LOCATION);
            if let Some(to) = location.and_then(|to| admitted.location(to.as_bytes())) {
                response.insert_header(header::LOCATION, to)?;
            }
            for (name, value) in admitted.besides.fields() {
                response.append_header(name, value)?;
            }
            if let Some(cookie) = sticky {
                response.append_header(header::SET_COOKIE, cookie)?;
            }
            let empty = |length: &HeaderValue| length.as_bytes() == b"0";
            if bodiless || response.headers.get(header::CONTENT_LENGTH).is_some_and(empty) {
                ctx.answered();
            }
        }
        Ok(())
    }

    /// A long answer ends when the right to it is lost.
    fn response_body_filter(
        &self,
        _session: &mut Session,
        body: &mut Option<bytes::Bytes>,
        end: bool,
        ctx: &mut Exchange,
    ) -> Result<Option<Duration>> {
        if let Some(trail) = &mut ctx.trail {
            trail.bytes += body.as_ref().map_or(0, |part| part.len() as u64);
        }
        if end {
            ctx.answered();
        }
        ctx.look(&self.gate).map(|()| None)
    }

    /// Nothing was sent yet, so trying again is always safe.
    fn fail_to_connect(
        &self,
        _session: &mut Session,
        _peer: &HttpPeer,
        ctx: &mut Exchange,
        mut e: Box<Error>,
    ) -> Box<Error> {
        let now = Instant::now();
        if let Some(mut picked) = ctx.picked.take() {
            picked.failed(now);
            ctx.tried.add(picked.address);
        }
        let give_up_at = *ctx.give_up_at.get_or_insert(now + CONNECT_PATIENCE);
        let handshake =
            matches!(e.etype(), ErrorType::TLSHandshakeFailure | ErrorType::InvalidCert);
        let in_vain = handshake && ctx.tried.count() >= HANDSHAKES_MAX;
        e.set_retry(now < give_up_at && !in_vain);
        e
    }

    /// What was sent is sent again only if that does no harm, and only where the connection was an old
    /// one that turned out to be closed.
    fn error_while_proxy(
        &self,
        _peer: &HttpPeer,
        session: &mut Session,
        mut e: Box<Error>,
        ctx: &mut Exchange,
        reused: bool,
    ) -> Box<Error> {
        let request = session.req_header();
        let again = request.method.is_idempotent() && !session.as_ref().retry_buffer_truncated();
        if again {
            e.retry.decide_reuse(reused);
        } else {
            e.set_retry(false);
        }
        let answered = session.response_written().is_some();
        if !reused
            && !answered
            && *e.esource() == ErrorSource::Upstream
            && let Some(picked) = &mut ctx.picked
        {
            picked.failed(Instant::now());
        }
        e
    }

    async fn fail_to_proxy(
        &self,
        session: &mut Session,
        e: &Error,
        ctx: &mut Exchange,
    ) -> FailToProxy {
        let refusal = match (e.esource(), e.etype()) {
            (_, ErrorType::HTTPStatus(503))
            | (
                ErrorSource::Upstream,
                ErrorType::ConnectTimedout
                | ErrorType::ConnectRefused
                | ErrorType::ConnectError
                | ErrorType::ConnectNoRoute,
            ) => None,
            (ErrorSource::Downstream, ErrorType::ReadError) if is_found::<Malformed>(e) => {
                Some(Refusal::BadRequest("The chunked body is malformed"))
            }
            (ErrorSource::Downstream, ErrorType::ReadError) if is_found::<TooSlow>(e) => {
                Some(Refusal::BodyTooSlow)
            }
            (_, &TOO_LARGE) => {
                let most = ctx.admitted.as_ref().and_then(|admitted| admitted.held.body_max);
                Some(Refusal::BodyTooLarge(most.unwrap_or(0)))
            }
            (_, &TOO_SLOW) | (ErrorSource::Downstream, ErrorType::ReadTimedout) => {
                Some(Refusal::BodyTooSlow)
            }
            (
                ErrorSource::Downstream,
                ErrorType::WriteError | ErrorType::ReadError | ErrorType::ConnectionClosed,
            ) => {
                // Nobody is there to be told.
                return FailToProxy { error_code: 0, can_reuse_downstream: false };
            }
            (ErrorSource::Downstream, _) => Some(Refusal::BadRequest("The request is malformed")),
            (ErrorSource::Upstream, ErrorType::InvalidHTTPHeader) => {
                Some(Refusal::BadAnswer(ctx.fault.unwrap_or(Fault::Head)))
            }
            _ => Some(Refusal::BadGateway),
        };
        tracing::debug!(error = %e, "a request failed");
        if session.response_written().is_some() {
            return FailToProxy { error_code: 0, can_reuse_downstream: false };
        }
        let answer = match (refusal, &ctx.admitted) {
            (None, Some(admitted)) => self.gate.missed(admitted, ctx.audience),
            (refusal, admitted) => {
                let refusal = refusal.unwrap_or(Refusal::Unreachable);
                let nobody = || self.gate.nobody();
                let besides = admitted.as_ref().map_or_else(nobody, |a| a.besides.clone());
                self.gate.refuse(&besides, &refusal, ctx.audience)
            }
        };
        let status = answer.status;
        let _ = answer::write(session, answer.closing()).await;
        FailToProxy { error_code: status, can_reuse_downstream: false }
    }

    async fn logging(&self, session: &mut Session, error: Option<&Error>, ctx: &mut Exchange) {
        let status = session.response_written().map_or(0, |answer| answer.status.as_u16());
        if let Some(admitted) = &mut ctx.admitted {
            admitted.held.answered(status);
        }
        let trail = ctx.trail.take();
        let mut trail =
            trail.unwrap_or_else(|| Trail::begin(&self.gate, session, None, ctx.started));
        trail.status = status;
        trail.bytes = session.body_bytes_sent() as u64;
        trail.broken_off = error.is_some();
    }

    /// Our own log lines say it, without the query.
    fn suppress_error_log(&self, _session: &Session, _ctx: &Exchange, _error: &Error) -> bool {
        true
    }

    fn suppress_proxy_warn_log(
        &self,
        _session: &Session,
        _ctx: &Exchange,
        _error: &Error,
        _context: pingora::proxy::ProxyWarnLogContext,
    ) -> bool {
        true
    }
}
