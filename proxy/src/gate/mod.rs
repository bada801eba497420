//! The gate: who is asking, may they, is it there, and what the upstream is told. One piece of code
//! under every engine: an engine hands in a parsed [`Head`] and gets a [`Verdict`].

mod admitted;
mod closed;
pub mod credential;
pub mod head;
pub mod host;
mod identify;
mod judge;
pub mod limits;
pub mod live;
pub mod origin;
mod own;
mod preflight;
mod reach;
pub mod scrub;
mod unidentified;
pub mod wake;

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::{Arc, atomic::AtomicI64},
};

use domain::{
    access::{self, Grant, Target},
    activity::How,
    route::RouteTable,
    token::Verifier,
    wake::WakeRequest,
    workload::{Protocol, WorkloadRef},
};
use http::HeaderValue;
use jiff::Timestamp;
use quick_cache::{Equivalent, sync::Cache};
use runtime::{
    audit::{Audit, Event, Outcome},
    jwks::JwksFollower,
    revocations::Revocations,
};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use self::{
    credential::Withheld,
    head::{Audience, Head},
    host::Host,
    identify::{SignedIn, Unidentified, Via},
    limits::{Errand, Held, Limits},
    live::Live,
    scrub::Trust,
    wake::{Holds, Waker},
};
use crate::{
    access_log::AccessLog,
    answer::{Answer, Besides, Outgoing, Refusal},
    config::{Config, SystemAccess, SystemHost},
    metrics::Metrics,
    session::{Sessions, return_path::ReturnPath},
    trace::Traces,
    upstream::{sticky, tls::TlsSettings},
};

pub use admitted::{Admitted, Destination};

/// Of the double submit that Jupyter asks for. No secret: it goes with requests that bring a token.
const XSRF: &str = "646f726d6f757365";

/// Sessions whose first use of a workload has been written to the audit log.
const OPENED_REMEMBERED: usize = 50_000;

pub struct Gate {
    base_domain: String,
    external_port: u16,
    system_hosts: HashMap<String, SystemHost>,
    routes: watch::Receiver<Arc<RouteTable>>,
    waker: Arc<Waker>,
    holds: Holds,
    limits: Limits,
    verifier: Arc<Verifier>,
    jwks: JwksFollower,
    revocations: Revocations,
    sessions: Sessions,
    namer: sticky::Namer,
    pub(crate) tls: TlsSettings,
    opened: Cache<(String, WorkloadRef), ()>,
    live: Arc<Live>,
    audit: Audit,
    /// The second in which a bad credential was last written to the audit log.
    refused_second: AtomicI64,
    pub(crate) metrics: Metrics,
    /// What every answer says of HTTPS: `Strict-Transport-Security` (RFC 6797). Without
    /// `includeSubDomains`, since below a host of ours there is nothing.
    pub(crate) hsts: Option<HeaderValue>,
    pub(crate) access_log: Arc<AccessLog>,
    traces: Traces,
    /// The grace after being asked to stop is over.
    pub(crate) going: CancellationToken,
}

/// What the gate is made of, besides its settings.
pub struct Parts {
    pub routes: watch::Receiver<Arc<RouteTable>>,
    pub wake: mpsc::Sender<WakeRequest>,
    pub verifier: Arc<Verifier>,
    pub jwks: JwksFollower,
    pub revocations: Revocations,
    pub sessions: Sessions,
    pub audit: Audit,
    pub metrics: Metrics,
    pub hsts: Option<HeaderValue>,
    pub access_log: Arc<AccessLog>,
    pub traces: Traces,
    pub going: CancellationToken,
}

pub enum Verdict {
    Forward(Box<Admitted>),
    Answer(Outgoing),
}

/// The same before it is known what the answer says besides.
enum Decision {
    Forward(Box<Admitted>),
    Answer(Answer),
}

/// Whether the path is one of the gate's own, served without an upstream.
pub fn is_own_path(path: &str) -> bool {
    own::Own::of(path) != own::Own::No
}

/// One request of somebody who may be served.
struct Asked<'a> {
    own: own::Own,
    head: &'a Head<'a>,
    host: &'a str,
    from: IpAddr,
    held: Held,
    withheld: Withheld,
    besides: &'a Besides,
}

impl Gate {
    pub fn new(config: &Config, parts: Parts) -> Self {
        let system_hosts =
            config.system_hosts.iter().map(|host| (host.host.clone(), host.clone())).collect();
        let limits = &config.limits;
        Self {
            base_domain: config.base_domain.to_ascii_lowercase(),
            external_port: config.external_port,
            system_hosts,
            waker: Arc::new(Waker::new(parts.wake, parts.metrics.clone())),
            limits: Limits::new(limits),
            holds: Holds::new(limits.held, limits.held_per_workload, parts.metrics.clone()),
            routes: parts.routes,
            verifier: parts.verifier,
            jwks: parts.jwks,
            revocations: parts.revocations,
            namer: sticky::Namer::new(parts.sessions.issuer.client_secret().as_bytes()),
            tls: TlsSettings::default(),
            sessions: parts.sessions,
            opened: Cache::new(OPENED_REMEMBERED),
            live: Arc::default(),
            audit: parts.audit,
            refused_second: AtomicI64::new(0),
            metrics: parts.metrics,
            hsts: parts.hsts,
            access_log: parts.access_log,
            traces: parts.traces,
            going: parts.going,
        }
    }

    /// Decides on a request. Waits only for a workload to wake, for an expired session to be renewed
    /// or for a sign-in to be finished, each with a deadline.
    pub async fn admit(&self, head: &Head<'_>, from: SocketAddr, now: Timestamp) -> Verdict {
        let mut besides = self.nobody();
        let decided = tokio::select! {
            biased;
            decided = self.decide(head, from, &mut besides, now) => decided,
            () = self.going.cancelled() => Err(Refusal::ShuttingDown),
        };
        match decided {
            Ok(Decision::Forward(admitted)) => Verdict::Forward(admitted),
            Ok(Decision::Answer(answer)) => Verdict::Answer(besides.answer(answer)),
            Err(refusal) => Verdict::Answer(self.refuse(&besides, &refusal, head.audience())),
        }
    }

    /// What an answer says besides when nobody is identified.
    pub fn nobody(&self) -> Besides {
        Besides::nobody(self.hsts.clone())
    }

    /// A refusal, counted.
    pub fn refuse(&self, besides: &Besides, refusal: &Refusal, audience: Audience) -> Outgoing {
        self.metrics.refusals.with_label_values(&[refusal.reason()]).inc();
        besides.answer(refusal.answer(audience))
    }

    async fn decide(
        &self,
        head: &Head<'_>,
        client: SocketAddr,
        besides: &mut Besides,
        now: Timestamp,
    ) -> Result<Decision, Refusal> {
        let from = client.ip().to_canonical();
        if matches!(head.method, "CONNECT" | "TRACE") {
            return Err(Refusal::MethodNotAllowed);
        }
        let host = match host::parse(head.authority, &self.base_domain) {
            Ok(Host::Ours(host)) => host,
            Ok(Host::Foreign) => {
                self.limits.stranger(Errand::Other, client, now)?;
                return Err(Refusal::NotFound);
            }
            Err(_) => return Err(Refusal::BadRequest("The Host header is malformed")),
        };
        let own = own::Own::of(head.path());
        let system = self.system_hosts.get(&*host);
        if let Some(system) = system {
            if system.closed_paths.iter().any(|closed| closed::is_below(head.path(), closed)) {
                return Err(Refusal::NotFound);
            }
            if system.access == SystemAccess::Open {
                let held = self.limits.stranger(Errand::SignIn, client, now)?;
                let withheld = Withheld::default();
                let asked = Asked { own, head, host: &host, from, held, withheld, besides };
                return self.to_service(system, asked, None, now);
            }
        }
        let withheld = Withheld::of(head, &|token| self.verifier.is_claimed(token));
        let identified = self.identify(head, besides, now).await;
        let held = match &identified {
            Ok(signed_in) => self.limits.person(&signed_in.identity, now)?,
            Err(unidentified) => {
                let signing_in = own == own::Own::Callback
                    || unidentified.sign_in_helps()
                        && matches!(head.audience(), Audience::Navigation | Audience::Submission);
                let errand = if signing_in { Errand::SignIn } else { Errand::Other };
                self.limits.stranger(errand, client, now)?
            }
        };
        if let Some(answer) =
            self.own_before_sign_in(own, head, &host, &identified, from, now).await
        {
            return Ok(Decision::Answer(answer));
        }
        // A token in the address bar would be in the history, and in the `Referer` of what the page
        // loads: a person signs in instead.
        if head.audience() == Audience::Navigation
            && let Some(target) = &withheld.target
        {
            let to = ReturnPath::new(target).as_str().to_owned();
            return Ok(Decision::Answer(Answer::redirect(302, to)));
        }
        let signed_in = match identified {
            Ok(signed_in) => signed_in,
            Err(Unidentified::Nothing) if system.is_none() && head.preflight().is_some() => {
                return Ok(Decision::Answer(self.preflight(head, &host)));
            }
            Err(unidentified) => return self.unidentified(unidentified, head, &host, from, now),
        };
        let asked = Asked { own, head, host: &host, from, held, withheld, besides };
        match system {
            Some(system) => self.to_service(system, asked, Some(signed_in), now),
            None => self.to_workload(asked, signed_in, now).await,
        }
    }

    async fn to_workload(
        &self,
        Asked { own, head, host, from, mut held, withheld, besides }: Asked<'_>,
        signed_in: SignedIn<'_>,
        now: Timestamp,
    ) -> Result<Decision, Refusal> {
        let table = self.routes.borrow().clone();
        if !table.is_synced() {
            return Err(Refusal::NotYet);
        }
        let identity = &signed_in.identity;
        let Some(grant) = access::authorize(&table, identity, Target::Host(host)) else {
            self.record(
                now,
                Event {
                    who: Some(identity.user.as_str()),
                    to: Some(host),
                    from: Some(from),
                    credential: Some(&identity.credential),
                    ..refused()
                },
            );
            return Err(Refusal::NotFound);
        };
        drop(table);
        let (audience, by_session) = (head.audience(), signed_in.via == Via::Session);
        let may = match audience {
            Audience::Upgrade => origin::is_own(head, host, self.external_port),
            _ => own.may_act(head, host, self.external_port, &grant.traffic().allowed_origins),
        };
        if by_session && !may {
            return Err(Refusal::CrossOrigin);
        }
        let prefetch = head.is_prefetch();
        match own {
            own::Own::No => {}
            own::Own::WhoAmI => {
                return Ok(Decision::Answer(own::who_am_i(&signed_in, Some(&grant))));
            }
            own::Own::Wake if !prefetch => return self.wake_events(grant).map(Decision::Answer),
            _ => return Err(Refusal::NotFound),
        }

        self.limits.route(&grant, &mut held, now)?;
        held.check_length(head)?;
        let guard = grant.begin(match audience {
            Audience::Upgrade => How::WebSocket,
            _ => How::Http,
        });
        let (doing, waits) = self.judge(&guard, &grant, head, audience, by_session, now);
        // A page that was left open wakes nothing by what it reads.
        let acts = doing.is_some() && !head.is_safe();
        let wakes = !prefetch && (acts || audience == Audience::Navigation || !by_session);
        let grant = match self.when_ready(grant, audience, wakes).await? {
            Ok(grant) => grant,
            Err(page) => return Ok(Decision::Answer(page)),
        };
        if let Some((form, name)) = waits {
            guard.wait_for_body(form, name, now);
        }
        self.record_opened(&signed_in, &grant, audience, from, now);

        held.trace = self.traces.begin(head, grant.workload(), now);
        // Without a cookie there is nothing that another site's page could make use of.
        let xsrf =
            !by_session && grant.protocol() == Protocol::Jupyter && !scrub::has_xsrf_cookie(head);
        Ok(Decision::Forward(Box::new(Admitted {
            trust: Trust::Workload,
            besides: besides.with_limits(&mut held),
            withheld,
            xsrf: xsrf.then_some(XSRF),
            external_port: self.external_port,
            guard: Some(guard),
            from,
            token: None,
            held,
            keep_alive: grant.traffic().keep_alive,
            sticky: grant.routing().sticky.then(|| sticky::read(head)).flatten(),
            identity: Some(signed_in.identity),
            destination: Destination::Workload(grant),
        })))
    }

    fn to_service(
        &self,
        system: &SystemHost,
        Asked { own, head, host, from, mut held, withheld, besides }: Asked<'_>,
        signed_in: Option<SignedIn<'_>>,
        now: Timestamp,
    ) -> Result<Decision, Refusal> {
        if let Some(signed_in) = &signed_in {
            let may = own.may_act(head, host, self.external_port, &[]);
            match own {
                _ if signed_in.via == Via::Session && !may => return Err(Refusal::CrossOrigin),
                own::Own::No => {}
                own::Own::WhoAmI => return Ok(Decision::Answer(own::who_am_i(signed_in, None))),
                _ => return Err(Refusal::NotFound),
            }
        }
        held.check_length(head)?;
        held.trace = self.traces.begin(head, &system.host, now);
        let mut admitted = Admitted {
            destination: Destination::Service {
                name: system.host.clone(),
                address: system.upstream,
            },
            trust: Trust::Service,
            besides: besides.with_limits(&mut held),
            withheld,
            xsrf: None,
            external_port: self.external_port,
            guard: None,
            from,
            identity: None,
            token: None,
            sticky: None,
            held,
            keep_alive: None,
        };
        if let Some(signed_in) = signed_in {
            admitted.trust = Trust::ServiceWithToken;
            admitted.token = Some(signed_in.token.into_owned());
            admitted.identity = Some(signed_in.identity);
        }
        Ok(Decision::Forward(Box::new(admitted)))
    }

    fn record(&self, now: Timestamp, event: Event<'_>) {
        self.audit.record(now, event);
    }

    /// Once per session and workload, and for each WebSocket.
    fn record_opened(
        &self,
        signed_in: &SignedIn<'_>,
        grant: &Grant,
        audience: Audience,
        from: IpAddr,
        now: Timestamp,
    ) {
        let credential = &signed_in.identity.credential;
        let workload = grant.workload();
        let websocket = audience == Audience::Upgrade;
        if !websocket {
            let session = credential.session.as_ref().unwrap_or(&credential.id);
            if self.opened.get(&Opening(session, workload)).is_some() {
                return;
            }
            self.opened.insert((session.clone(), workload.clone()), ());
        }
        let workload = workload.to_string();
        self.record(
            now,
            Event {
                who: Some(signed_in.identity.user.as_str()),
                did: "opened",
                to: Some(&workload),
                from: Some(from),
                credential: Some(credential),
                outcome: Outcome::Allowed,
                detail: websocket.then_some("WebSocket"),
            },
        );
    }
}

/// The key of a first use, borrowed: hashed as the owned one is.
#[derive(Hash)]
struct Opening<'a>(&'a str, &'a WorkloadRef);

impl Equivalent<(String, WorkloadRef)> for Opening<'_> {
    fn equivalent(&self, (session, workload): &(String, WorkloadRef)) -> bool {
        self.0 == session && self.1 == workload
    }
}

fn refused<'a>() -> Event<'a> {
    Event {
        who: None,
        did: "refused",
        to: None,
        from: None,
        credential: None,
        outcome: Outcome::Denied,
        detail: None,
    }
}
