//! From a grant to an address: there now, soon, or not.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    net::SocketAddr,
};

use domain::{
    access::{Grant, Readiness},
    endpoint::{Endpoint, Revision},
    route::{Progress, Step},
    token::TokenError,
    upstream::UpstreamProtocol,
};
use tokio::time::{Instant, sleep};

use super::{
    Admitted, Destination, Gate,
    head::Audience,
    host::{self, Host},
    wake,
};
use crate::{
    answer::{Answer, Outgoing, Refusal},
    pages,
    upstream::{
        CONNECT_PAUSE, Picked, Tried,
        choose::{self, Wish, choose},
        clock, sticky,
    },
};

impl Gate {
    /// Whether a host's requests may take the fast lane: its pods speak HTTP/1.1 without TLS, and its
    /// silent streams are left alone. Says nothing about who may.
    pub fn is_plain(&self, authority: &str) -> bool {
        let Ok(Host::Ours(host)) = host::parse(authority, &self.base_domain) else { return false };
        self.routes.borrow().by_host(&host).is_none_or(|route| {
            route.routing().protocol == UpstreamProtocol::Http1
                && route.traffic().keep_alive.is_none()
        })
    }

    /// A grant that can be dialled, or the waiting page. An open page's background requests get an
    /// answer at once and wake nothing, or no workload with a tab left open would ever sleep.
    pub(super) async fn when_ready(
        &self,
        grant: Grant,
        audience: Audience,
        wakes: bool,
    ) -> Result<Result<Grant, Answer>, Refusal> {
        let Some(progress) = self.progress(&grant, wakes)? else { return Ok(Ok(grant)) };
        if audience == Audience::Navigation {
            return Ok(Err(waiting(&grant, &progress)));
        }
        let place = self.holds.take(grant.workload()).ok_or(Refusal::TooManyHeld)?;
        let deadline = Instant::now() + grant.wake_hold();
        let routes = self.routes.clone();
        let grant = wake::until_ready(grant, routes, &self.waker, deadline, place).await?;
        // It waited for up to a minute.
        if self.revocations.is_revoked(grant.identity()) {
            return Err(Refusal::BadCredential(TokenError::Withdrawn.to_string()));
        }
        Ok(Ok(grant))
    }

    /// How far a start has come; `None` when the workload is there. Asks for one that sleeps.
    fn progress(&self, grant: &Grant, wakes: bool) -> Result<Option<Progress>, Refusal> {
        match grant.readiness() {
            Readiness::Ready(_) => Ok(None),
            Readiness::Waking(progress) => Ok(Some(progress)),
            Readiness::Asleep if wakes => {
                self.waker.ask(grant);
                let message = "Asked to wake".to_owned();
                Ok(Some(Progress { step: Step::Requested, message }))
            }
            Readiness::Asleep => Err(Refusal::Asleep(grant.workload().clone())),
            Readiness::Stopped => Err(Refusal::Stopped(grant.workload().clone())),
            Readiness::Failed(message) => {
                Err(Refusal::Failed(grant.workload().clone(), message.to_owned()))
            }
        }
    }

    /// Where to dial now; asked again for each try, with the addresses that failed. `None` when the
    /// workload has gone away or fallen asleep in between, or is no longer this person's.
    pub fn pick(&self, admitted: &Admitted, tried: &Tried, now: Instant) -> Option<Picked> {
        let ejections = || self.metrics.ejections.clone();
        let grant = match &admitted.destination {
            Destination::Service { name, address } => {
                let (protocol, pool) = (UpstreamProtocol::Http1, service_pool(name, *address));
                return Some(Picked::new(*address, protocol, pool, None, ejections()));
            }
            Destination::Workload(grant) => grant,
        };
        // The first try follows at once upon the decision; any later one asks anew.
        let renewed;
        let grant = if tried.is_empty() {
            grant
        } else {
            renewed = grant.renew(&self.routes.borrow())?;
            &renewed
        };
        let Readiness::Ready(_) = grant.readiness() else { return None };
        let (endpoints, routing) = (grant.endpoints(), grant.routing());
        let since = clock::since_start(now);
        let weight = routing.canary_weight;
        let canary = weight > 0 || endpoints.iter().any(|e| e.revision() == Revision::Canary);
        let user = grant.identity().user.as_str();
        let side = canary.then(|| choose::side(user, grant.host(), weight));
        let wish = Wish { side, tried }.attainable(endpoints, since);
        let tag = |endpoint: &Endpoint| self.namer.tag(grant.workload(), endpoint);
        let used_to = admitted
            .sticky
            .filter(|_| routing.sticky)
            .and_then(|wanted| endpoints.iter().find(|e| wish.keeps(e, since) && tag(e) == wanted));
        let endpoint = used_to
            .or_else(|| choose(endpoints, wish, since, |n| rand::random_range(0..n.max(1))))?;
        let load = endpoint.load();
        let outstanding = Some(load.begin(since));
        let protocol = routing.protocol.clone();
        let mut picked =
            Picked::new(endpoint.address(), protocol, load.id(), outstanding, ejections());
        if routing.sticky && used_to.is_none() && endpoints.len() > 1 {
            picked.set_cookie = Some(sticky::set(&tag(endpoint)));
        }
        Some(picked)
    }

    /// As [`Self::pick`], with a pause before an address is dialled that has failed already.
    pub async fn pick_after(&self, admitted: &Admitted, tried: &Tried) -> Option<Picked> {
        let picked = self.pick(admitted, tried, Instant::now())?;
        if !tried.has(picked.address) {
            return Some(picked);
        }
        drop(picked);
        sleep(CONNECT_PAUSE).await;
        self.pick(admitted, tried, Instant::now())
    }

    /// The answer when there was nobody to dial after all: a workload that fell asleep while the
    /// request was on its way wakes, and whoever opened a page waits on ours.
    pub fn missed(&self, admitted: &Admitted, audience: Audience) -> Outgoing {
        let refusal = match &admitted.destination {
            Destination::Service { .. } => Refusal::Unreachable,
            Destination::Workload(grant) => match grant.renew(&self.routes.borrow()) {
                None => Refusal::NotFound,
                Some(grant) => match self.progress(&grant, true) {
                    Ok(Some(progress)) if audience == Audience::Navigation => {
                        return admitted.besides.answer(waiting(&grant, &progress));
                    }
                    Ok(Some(_)) => Refusal::StillStarting(grant.workload().clone()),
                    Ok(None) => Refusal::Unreachable,
                    Err(refusal) => refusal,
                },
            },
        };
        self.refuse(&admitted.besides, &refusal, audience)
    }
}

fn waiting(grant: &Grant, progress: &Progress) -> Answer {
    Answer::page(503, pages::waiting(grant.workload(), progress))
        .with("Retry-After", "3".to_owned())
}

/// The other pools are numbered from one.
fn service_pool(name: &str, address: SocketAddr) -> u64 {
    let mut hasher = DefaultHasher::new();
    (name, address).hash(&mut hasher);
    hasher.finish() | 1 << 63
}
