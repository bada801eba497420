//! Waiting until a workload can be dialled, with progress for the person who waits.

use std::time::{Duration, Instant};

use domain::{
    access::{Grant, Readiness},
    route::Step,
    wake::WakeRequest,
};
use jiff::Timestamp;
use russh::{ChannelWriteHalf, server::Msg};

use crate::{
    refusal::{Refusal, Shown},
    visit::Visit,
};

/// How often the wish is repeated while somebody waits.
const REPEAT: Duration = Duration::from_secs(2);

/// Says lines on a channel's standard error.
#[derive(Clone, Copy)]
pub struct Teller<'a> {
    pub write: &'a ChannelWriteHalf<Msg>,
    /// The client's terminal is raw: lines end with a carriage return as well.
    pub raw: bool,
}

impl Teller<'_> {
    pub async fn say(&self, text: &str) {
        let end = if self.raw { "\r\n" } else { "\n" };
        let line = format!("dormouse: {text}{end}");
        // Whether anybody still listens is found out elsewhere.
        let _ = self.write.extended_data_bytes(1, line.into_bytes()).await;
    }
}

/// Returns a grant whose route is ready; wakes the workload when it sleeps.
pub async fn ready(visit: &Visit, teller: Option<Teller<'_>>) -> Result<Grant, Refusal> {
    let mut routes = visit.gate.routes.clone();
    let started = Instant::now();
    let waited = visit.gate.config.wake_timeout;
    let deadline = tokio::time::Instant::now() + waited;
    let mut told: Option<String> = None;
    visit.known().await?;
    loop {
        routes.mark_unchanged();
        let grant = visit.grant()?;
        let name = grant.workload().name.clone();
        let news = match grant.readiness() {
            Readiness::Ready(_) => {
                if told.is_some() {
                    let seconds = started.elapsed().as_secs_f64();
                    visit.gate.metrics.wake.observe(seconds);
                    if let Some(teller) = teller {
                        teller.say(&format!("{name} is ready after {seconds:.1} s")).await;
                    }
                }
                return Ok(grant);
            }
            Readiness::Stopped => return Err(Refusal::Stopped(name)),
            Readiness::Failed(reason) => {
                return Err(Refusal::Failed { name, reason: Shown::plain(reason) });
            }
            Readiness::Asleep => format!("waking {name} ..."),
            Readiness::Waking(progress) => {
                let step = match progress.step {
                    Step::Requested => "requested",
                    Step::Scheduled => "scheduled",
                    Step::Starting => "starting",
                    Step::AlmostReady => "almost ready",
                };
                match progress.message.as_str() {
                    "" => format!("waking {name} ... {step}"),
                    message => format!("waking {name} ... {step}: {}", Shown::plain(message)),
                }
            }
        };
        if told.as_ref() != Some(&news) {
            if let Some(teller) = teller {
                teller.say(&news).await;
            }
            told = Some(news);
        }
        // A full queue means that others are asking too; this wish is repeated anyway.
        let _ = visit.gate.wake.try_send(WakeRequest {
            workload: grant.workload().clone(),
            at: Timestamp::now(),
            who: visit.identity.user.clone(),
        });
        tokio::select! {
            changed = routes.changed() => {
                if changed.is_err() {
                    return Err(Refusal::NotReady);
                }
            }
            () = tokio::time::sleep(REPEAT) => {}
            () = tokio::time::sleep_until(deadline) => return Err(Refusal::Late { name, waited }),
            () = visit.lost.cancelled() => return Err(visit.loss()),
        }
    }
}
