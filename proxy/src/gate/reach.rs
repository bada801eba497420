//! From a grant to an address: there now, soon, or not.

use std::net::SocketAddr;

use domain::{
    access::{Grant, Readiness},
    route::{Progress, Step},
};
use tokio::time::Instant;

use super::{Destination, Gate, head::Audience, wake};
use crate::{
    answer::{Answer, Refusal},
    pages,
};

impl Gate {
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
        wake::until_ready(grant, routes, &self.waker, deadline, place).await.map(Ok)
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

    /// The address to dial now; asked again for each try. `None` when the workload has gone away or
    /// fallen asleep in between, or is no longer this person's.
    pub fn peer(&self, destination: &Destination) -> Option<SocketAddr> {
        match destination {
            Destination::Service { address, .. } => Some(*address),
            Destination::Workload(grant) => {
                let grant = grant.renew(&self.routes.borrow())?;
                let Readiness::Ready(addresses) = grant.readiness() else { return None };
                let pick = rand::random_range(0..addresses.len().max(1));
                addresses.get(pick).copied()
            }
        }
    }

    /// The answer when there was nobody to dial after all: a workload that fell asleep while the
    /// request was on its way wakes, and whoever opened a page waits on ours.
    pub fn missed(&self, destination: &Destination, audience: Audience) -> Answer {
        let refusal = match destination {
            Destination::Service { .. } => Refusal::Unreachable,
            Destination::Workload(grant) => match grant.renew(&self.routes.borrow()) {
                None => Refusal::NotFound,
                Some(grant) => match self.progress(&grant, true) {
                    Ok(Some(progress)) if audience == Audience::Navigation => {
                        return waiting(&grant, &progress);
                    }
                    Ok(Some(_)) => Refusal::StillStarting(grant.workload().clone()),
                    Ok(None) => Refusal::Unreachable,
                    Err(refusal) => refusal,
                },
            },
        };
        self.metrics.refusals.with_label_values(&[refusal.reason()]).inc();
        refusal.answer(audience)
    }
}

fn waiting(grant: &Grant, progress: &Progress) -> Answer {
    Answer::page(503, pages::waiting(grant.workload(), progress))
        .with("Retry-After", "3".to_owned())
}
