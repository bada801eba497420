//! Holds a Lease of the cluster: looks, writes, renews, and gives it back.

use std::{ops::ControlFlow, time::Duration};

use cluster::scope::Scope;
use jiff::Timestamp;
use k8s_openapi::{
    api::coordination::v1::{Lease as Object, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
};
use kube::{Api, Client, api::PostParams};
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep, sleep_until, timeout, timeout_at},
};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{Candidate, Decision, Found, Timing};

/// For one request. Several fit into what a holder has.
const ANSWER: Duration = Duration::from_secs(3);
/// Between two looks at another's Lease, and after a failure.
const LOOK: Duration = Duration::from_secs(1);
/// For giving it back; who comes next waits for the Lease to run out otherwise.
const RELEASE: Duration = Duration::from_secs(2);

/// Which Lease, and who wants it.
#[derive(Clone)]
pub struct Claim {
    pub client: Client,
    pub namespace: String,
    pub scope: Scope,
    /// Says to people who it is. No other process has the same.
    pub holder: String,
    pub timing: Timing,
}

/// Who is waited for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldBy {
    pub holder: String,
    /// As the holder says: for people, by a clock that is not ours.
    pub since: Option<Timestamp>,
    /// It has renewed the Lease since we began to look.
    pub alive: bool,
}

/// Why it is not ours yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Waiting {
    For(HeldBy),
    /// The API server does not let us look or write.
    Failing {
        why: String,
        code: Option<u16>,
    },
}

/// Why it is not held any more.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the Lease {lease} is lost: {why}")]
pub struct NotHeld {
    pub lease: String,
    pub why: String,
}

impl Claim {
    /// One for each scope.
    pub fn name(&self) -> String {
        match self.scope.name() {
            Some(scope) => format!("dormouse-controller-{scope}"),
            None => "dormouse-controller".to_owned(),
        }
    }

    /// With the namespace, as people look for it.
    pub fn shown(&self) -> String {
        format!("{}/{}", self.namespace, self.name())
    }

    /// Waits until it is ours, and keeps it. `told` hears of each look that did not get it, and may end the waiting.
    ///
    /// # Errors
    /// What `told` ended it with.
    pub async fn acquire<B>(
        &self,
        mut told: impl FnMut(&Waiting) -> ControlFlow<B>,
    ) -> Result<Term, B> {
        let mut lease = Lease::new(self);
        let mut first: Option<String> = None;
        loop {
            let waiting = match lease.step().await {
                Ok(Outcome::Held) => return Ok(Term::begin(lease)),
                Ok(Outcome::Again) => continue,
                Ok(Outcome::Others(mut by, version)) => {
                    by.alive = *first.get_or_insert_with(|| version.clone()) != version;
                    Waiting::For(by)
                }
                Err(failure) => Waiting::Failing { why: failure.why, code: failure.code },
            };
            if let ControlFlow::Break(why) = told(&waiting) {
                return Err(why);
            }
            sleep(LOOK).await;
        }
    }
}

enum Outcome {
    Held,
    /// Somebody wrote between our look and our write.
    Again,
    /// By somebody else, at a version.
    Others(HeldBy, String),
}

struct Failure {
    why: String,
    code: Option<u16>,
}

impl Failure {
    fn of(error: &kube::Error) -> Self {
        let code = match error {
            kube::Error::Api(status) => Some(status.code),
            _ => None,
        };
        Self { why: cluster::watch::told(error), code }
    }
}

/// The Lease as this process sees it.
struct Lease {
    api: Api<Object>,
    claim: Claim,
    candidate: Candidate,
}

impl Lease {
    fn new(claim: &Claim) -> Self {
        Self {
            api: Api::namespaced(claim.client.clone(), &claim.namespace),
            claim: claim.clone(),
            candidate: Candidate::new(claim.holder.clone(), claim.timing),
        }
    }

    /// Looks, and writes if it is or may become ours.
    async fn step(&mut self) -> Result<Outcome, Failure> {
        let there = answer(self.api.get_opt(&self.claim.name())).await?;
        let found = there.as_ref().map(found);
        match self.candidate.decide(found.as_ref(), Instant::now()) {
            Decision::Acquire | Decision::Renew => self.write(there).await,
            Decision::Wait(_) | Decision::Lost => {
                let spec = there.and_then(|there| there.spec).unwrap_or_default();
                let by = HeldBy {
                    holder: spec.holder_identity.unwrap_or_else(|| "nobody".to_owned()),
                    since: spec.acquire_time.map(|time| time.0),
                    alive: false,
                };
                Ok(Outcome::Others(by, found.map(|found| found.version).unwrap_or_default()))
            }
        }
    }

    async fn write(&mut self, there: Option<Object>) -> Result<Outcome, Failure> {
        let name = self.claim.name();
        let mut object = there.unwrap_or_else(|| Object {
            metadata: ObjectMeta { name: Some(name.clone()), ..ObjectMeta::default() },
            ..Object::default()
        });
        let now = MicroTime(Timestamp::now());
        let spec = object.spec.get_or_insert_with(LeaseSpec::default);
        if spec.holder_identity.as_deref() != Some(self.candidate.me()) {
            let others = spec.lease_transitions.unwrap_or(0);
            spec.lease_transitions =
                Some(others.saturating_add(spec.acquire_time.is_some().into()));
            spec.holder_identity = Some(self.candidate.me().to_owned());
            spec.acquire_time = Some(now.clone());
        }
        spec.renew_time = Some(now);
        let seconds = i32::try_from(self.claim.timing.duration.as_secs()).unwrap_or(i32::MAX);
        spec.lease_duration_seconds = Some(seconds.max(1));
        let sent = Instant::now();
        let params = PostParams::default();
        let written = match object.metadata.resource_version {
            // Carries the version that was looked at.
            Some(_) => answer(self.api.replace(&name, &params, &object)).await,
            None => answer(self.api.create(&params, &object)).await,
        };
        match written {
            Ok(_) => {
                self.candidate.written(sent);
                Ok(Outcome::Held)
            }
            Err(Failure { code: Some(409), .. }) => Ok(Outcome::Again),
            Err(failure) => Err(failure),
        }
    }

    /// Renews it until `until`. Says why it is lost.
    async fn renew(&mut self, until: Instant) -> Result<(), String> {
        let mut last = "the API server did not answer".to_owned();
        let renewing = async {
            loop {
                match self.step().await {
                    Ok(Outcome::Held) => return Ok(()),
                    Ok(Outcome::Again) => {}
                    Ok(Outcome::Others(by, _)) if by.holder == self.candidate.me() => {
                        return Err("it could not be renewed in time".to_owned());
                    }
                    Ok(Outcome::Others(by, _)) => return Err(format!("{} holds it", by.holder)),
                    Err(failure) => {
                        tracing::warn!(
                            error = failure.why,
                            lease = self.claim.shown(),
                            "the Lease cannot be renewed; trying again"
                        );
                        last = failure.why;
                        sleep(LOOK).await;
                    }
                }
            }
        };
        match timeout_at(until, renewing).await {
            Ok(renewed) => renewed,
            Err(_) => Err(format!("it could not be renewed in time: {last}")),
        }
    }

    /// Leaves it to whoever comes next.
    async fn release(&mut self) -> Result<(), Failure> {
        self.candidate.lose();
        let name = self.claim.name();
        let Some(mut object) = answer(self.api.get_opt(&name)).await? else { return Ok(()) };
        let Some(spec) = object.spec.as_mut() else { return Ok(()) };
        if spec.holder_identity.as_deref() != Some(self.candidate.me()) {
            return Ok(());
        }
        spec.holder_identity = None;
        answer(self.api.replace(&name, &PostParams::default(), &object)).await.map(drop)
    }
}

async fn answer<T>(call: impl Future<Output = kube::Result<T>>) -> Result<T, Failure> {
    match timeout(ANSWER, call).await {
        Ok(answered) => answered.map_err(|error| Failure::of(&error)),
        Err(_) => {
            let why = format!("no answer within {} s", ANSWER.as_secs());
            Err(Failure { why, code: None })
        }
    }
}

fn found(object: &Object) -> Found {
    let meta = &object.metadata;
    let part = |part: &Option<String>| part.clone().unwrap_or_default();
    let spec = object.spec.clone().unwrap_or_default();
    let seconds = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
    Found {
        version: format!("{} {}", part(&meta.uid), part(&meta.resource_version)),
        holder: spec.holder_identity.filter(|holder| !holder.is_empty()),
        duration: seconds.map(Duration::from_secs),
    }
}

#[derive(Debug, Clone)]
enum State {
    Until(Instant),
    Lost(NotHeld),
}

/// A Lease that is held. It is given back when this is dropped.
#[derive(Debug)]
pub struct Term {
    state: watch::Receiver<State>,
    end: DropGuard,
    keeping: JoinHandle<()>,
}

/// Whether a Lease is held. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Held(watch::Receiver<State>);

impl Held {
    /// Also false when it ran out and nobody had the time to notice, as after a suspended process.
    pub fn now(&self) -> bool {
        matches!(&*self.0.borrow(), State::Until(until) if Instant::now() < *until)
    }

    /// Waits until it is lost.
    pub async fn lost(mut self) -> NotHeld {
        loop {
            if let State::Lost(why) = &*self.0.borrow_and_update() {
                return why.clone();
            }
            if self.0.changed().await.is_err() {
                // Nobody keeps it.
                return NotHeld { lease: String::new(), why: "it was given back".to_owned() };
            }
        }
    }
}

impl Term {
    fn begin(lease: Lease) -> Self {
        let until = lease.candidate.until().unwrap_or_else(Instant::now);
        let (sender, state) = watch::channel(State::Until(until));
        let end = CancellationToken::new();
        let keeping = tokio::spawn(keep(lease, sender, end.clone()));
        Self { state, end: end.drop_guard(), keeping }
    }

    pub fn held(&self) -> Held {
        Held(self.state.clone())
    }

    /// Gives it back, so that a successor starts at once.
    pub async fn release(self) {
        let Self { end, keeping, .. } = self;
        drop(end);
        let _ = timeout(RELEASE + LOOK, keeping).await;
    }
}

async fn keep(mut lease: Lease, state: watch::Sender<State>, end: CancellationToken) {
    loop {
        let renew_at = Instant::now() + lease.claim.timing.renew;
        let until = lease.candidate.until().unwrap_or_else(Instant::now);
        let renewed = async {
            sleep_until(renew_at.min(until)).await;
            lease.renew(until).await
        };
        let renewed = tokio::select! {
            renewed = renewed => renewed,
            () = end.cancelled() => break,
        };
        match (renewed, lease.candidate.until()) {
            (Ok(()), Some(until)) => drop(state.send_replace(State::Until(until))),
            (lost, _) => {
                lease.candidate.lose();
                let why = lost.err().unwrap_or_else(|| "it was renewed too late".to_owned());
                state.send_replace(State::Lost(NotHeld { lease: lease.claim.shown(), why }));
                return;
            }
        }
    }
    if !matches!(timeout(RELEASE, lease.release()).await, Ok(Ok(()))) {
        tracing::debug!(lease = lease.claim.shown(), "the Lease is not given back; it runs out");
    }
}

#[cfg(test)]
mod tests;
