//! The gate: who is asking, may they, is it there, and what the upstream is told. One piece of code
//! under every engine: an engine hands in a parsed [`Head`] and gets a [`Verdict`].

mod admitted;
mod closed;
pub mod credential;
pub mod head;
pub mod host;
mod identify;
pub mod limits;
pub mod live;
pub mod origin;
mod own;
mod reach;
pub mod scrub;
pub mod wake;

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering::Relaxed},
    },
};

use domain::{
    access::{self, Grant, Target},
    activity::How,
    classify,
    route::RouteTable,
    token::Verifier,
    wake::WakeRequest,
    workload::WorkloadRef,
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
    answer::{Answer, Refusal},
    config::{Config, SystemAccess, SystemHost},
    metrics::Metrics,
    session::{Sessions, return_path::ReturnPath},
    trace::Traces,
    upstream::{sticky, tls::TlsSettings},
};

pub use admitted::{Admitted, Destination};

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
    Answer(Answer),
}

/// Whether the path is one of the gate's own, served without an upstream.
pub fn is_own_path(path: &str) -> bool {
    own::Own::of(path) != own::Own::No
}

/// One request of somebody who is signed in.
struct Asked<'a> {
    signed_in: SignedIn<'a>,
    own: own::Own,
    head: &'a Head<'a>,
    host: &'a str,
    from: IpAddr,
    held: Held,
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
        let decided = tokio::select! {
            biased;
            decided = self.decide(head, from, now) => decided,
            () = self.going.cancelled() => Err(Refusal::ShuttingDown),
        };
        let verdict = decided.unwrap_or_else(|refusal| {
            self.metrics.refusals.with_label_values(&[refusal.reason()]).inc();
            Verdict::Answer(refusal.answer(head.audience()))
        });
        match verdict {
            Verdict::Answer(answer) => Verdict::Answer(self.over_tls(answer)),
            forward => forward,
        }
    }

    /// An answer of ours says for how long to come by HTTPS only.
    pub fn over_tls(&self, answer: Answer) -> Answer {
        match self.hsts.as_ref().and_then(|hsts| hsts.to_str().ok()) {
            Some(hsts) => answer.with("Strict-Transport-Security", hsts.to_owned()),
            None => answer,
        }
    }

    async fn decide(
        &self,
        head: &Head<'_>,
        client: SocketAddr,
        now: Timestamp,
    ) -> Result<Verdict, Refusal> {
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
        let system = self.system_hosts.get(&*host);
        if let Some(system) = system {
            if system.closed_paths.iter().any(|closed| closed::is_below(head.path(), closed)) {
                return Err(Refusal::NotFound);
            }
            if system.access == SystemAccess::Open {
                let held = self.limits.stranger(Errand::SignIn, client, now)?;
                return self.to_service(system, None, head, from, held, now);
            }
        }
        let own = own::Own::of(head.path());
        let identified = self.identify(head, now).await;
        let held = match &identified {
            Ok(signed_in) => self.limits.person(&signed_in.identity, now)?,
            Err(unidentified) => {
                let signing_in = own == own::Own::Callback
                    || unidentified.sign_in_helps() && head.audience() == Audience::Navigation;
                let errand = if signing_in { Errand::SignIn } else { Errand::Other };
                self.limits.stranger(errand, client, now)?
            }
        };
        if let Some(answer) =
            self.own_before_sign_in(own, head, &host, &identified, from, now).await
        {
            return Ok(Verdict::Answer(answer));
        }
        let signed_in = match identified {
            Ok(signed_in) => signed_in,
            Err(unidentified) => return self.unidentified(unidentified, head, &host, from, now),
        };
        if let Some(system) = system {
            return match own {
                own::Own::No => self.to_service(system, Some(signed_in), head, from, held, now),
                own::Own::WhoAmI => Ok(Verdict::Answer(own::who_am_i(&signed_in, None))),
                _ => Err(Refusal::NotFound),
            };
        }
        let asked = Asked { signed_in, own, head, host: &host, from, held };
        self.to_workload(asked, now).await
    }

    /// Nobody we know: a navigation signs in, everything else is told how to.
    fn unidentified(
        &self,
        unidentified: Unidentified,
        head: &Head<'_>,
        host: &str,
        from: IpAddr,
        now: Timestamp,
    ) -> Result<Verdict, Refusal> {
        let (refusal, sign_in_helps) = match unidentified {
            Unidentified::NotYet => return Err(Refusal::NotYet),
            Unidentified::Nothing => (Refusal::NotSignedIn, true),
            Unidentified::Session(why) => (Refusal::BadCredential(why), true),
            Unidentified::Bad(why) => (Refusal::BadCredential(why), false),
        };
        // Nobody fills the audit log without a credential that once was good.
        if !sign_in_helps && self.refused_second.swap(now.as_second(), Relaxed) != now.as_second() {
            let detail = Some("bad credential");
            let to = Some(host);
            self.record(now, Event { from: Some(from), to, detail, ..refused() });
        }
        if sign_in_helps && head.audience() == Audience::Navigation {
            let to = ReturnPath::new(head.target);
            return Ok(Verdict::Answer(self.sessions.start_login(head, host, &to, now)));
        }
        Err(refusal)
    }

    async fn to_workload(
        &self,
        Asked { signed_in, own, head, host, from, mut held }: Asked<'_>,
        now: Timestamp,
    ) -> Result<Verdict, Refusal> {
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
        match own {
            own::Own::No => {}
            own::Own::WhoAmI => {
                return Ok(Verdict::Answer(own::who_am_i(&signed_in, Some(&grant))));
            }
            own::Own::Wake => return self.wake_events(grant).map(Verdict::Answer),
            _ => return Err(Refusal::NotFound),
        }
        let audience = head.audience();
        if audience == Audience::Upgrade
            && signed_in.via == Via::Session
            && !origin::is_own(head, host, self.external_port)
        {
            return Err(Refusal::CrossOrigin);
        }

        self.limits.route(&grant, &mut held, now)?;
        held.check_length(head)?;
        let mut guard = grant.begin(match audience {
            Audience::Upgrade => How::WebSocket,
            _ => How::Http,
        });
        let navigation = audience == Audience::Navigation;
        let request = classify::Request { method: head.method, path: head.path(), navigation };
        let doing = match audience {
            // Opening a socket is nobody's doing; what is said on it may be.
            Audience::Upgrade => None,
            _ => classify::request(grant.protocol(), request),
        };
        if let Some(what) = doing {
            guard.person_until_dropped(what, now);
        }
        let wakes = doing.is_some() || signed_in.via == Via::Bearer;
        let grant = match self.when_ready(grant, audience, wakes).await? {
            Ok(grant) => grant,
            Err(page) => {
                return Ok(Verdict::Answer(page.with_cookies(signed_in.cookies)));
            }
        };
        self.record_opened(&signed_in, &grant, audience, from, now);

        held.trace = self.traces.begin(head, grant.workload(), now);
        Ok(Verdict::Forward(Box::new(Admitted {
            trust: Trust::Workload,
            set_cookies: signed_in.cookies,
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
        signed_in: Option<SignedIn<'_>>,
        head: &Head<'_>,
        from: IpAddr,
        mut held: Held,
        now: Timestamp,
    ) -> Result<Verdict, Refusal> {
        held.check_length(head)?;
        held.trace = self.traces.begin(head, &system.host, now);
        let mut admitted = Admitted {
            destination: Destination::Service {
                name: system.host.clone(),
                address: system.upstream,
            },
            trust: Trust::Service,
            set_cookies: Vec::new(),
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
            admitted.set_cookies = signed_in.cookies;
            admitted.identity = Some(signed_in.identity);
        }
        Ok(Verdict::Forward(Box::new(admitted)))
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
