//! Renewing access tokens: one call per session at a time, however many requests ask.
//!
//! The issuer exchanges the refresh token for another one at each renewal, and takes one that comes
//! again after a minute for stolen. So what it was exchanged for is remembered, for the browser may
//! not have heard of it yet.

use std::{collections::HashMap, sync::Arc, time::Duration};

use domain::{identity::Identity, token::Verifier};
use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;
use quick_cache::sync::Cache;
use sha2::{Digest, Sha256};
use tokio::{sync::watch, time::Instant};

use super::{
    cookie,
    issuer::{Issuer, TokenEndpointError},
};

/// A token this close to its end is past half its life of ten minutes: fetch the next one.
const RENEW_BEFORE: SignedDuration = SignedDuration::from_mins(5);
/// How long a request waits for a new token when its own has expired.
const WAIT: Duration = Duration::from_secs(5);
/// How long requests wait for a renewal from its start on while their own token is still good: the
/// sooner the browser hears of its new refresh token, the less can happen to it on the way.
const HEAD_START: Duration = Duration::from_millis(250);
/// When to ask again after an answer was lost: while the issuer still answers the same, once more.
const AGAIN: [Duration; 3] =
    [Duration::from_secs(1), Duration::from_secs(4), Duration::from_secs(15)];
/// Renewals that are followed from one refresh token to the newest.
const CHAIN_MAX: usize = 64;
/// Renewals that may run at a time.
const RUNNING_MAX: usize = 256;
/// Sessions whose last renewal is remembered.
const REMEMBERED: usize = 20_000;

type Key = [u8; 32];

/// A fresh access token. Never logged.
#[derive(Clone)]
pub struct Renewed {
    pub token: Arc<str>,
    pub identity: Arc<Identity>,
    /// For the next renewal.
    pub refresh: Arc<str>,
}

impl Renewed {
    /// The cookies of the session from now on.
    pub fn cookies(&self) -> Vec<String> {
        vec![cookie::access(&self.token), cookie::refresh(&self.refresh)]
    }
}

#[derive(Clone)]
pub enum Outcome {
    Renewed(Renewed),
    /// The issuer says that the session is over.
    Ended,
    /// Not known: the issuer did not answer well.
    Failed,
}

pub struct Renewals {
    inner: Arc<Inner>,
}

struct Inner {
    issuer: Arc<Issuer>,
    verifier: Arc<Verifier>,
    /// By the hash of the refresh token.
    done: Cache<Key, Outcome>,
    running: Mutex<HashMap<Key, Running>>,
}

impl Renewals {
    pub fn new(issuer: Arc<Issuer>, verifier: Arc<Verifier>) -> Self {
        let running = Mutex::new(HashMap::new());
        Self { inner: Arc::new(Inner { issuer, verifier, done: Cache::new(REMEMBERED), running }) }
    }

    pub fn is_due(expires_at: Timestamp, now: Timestamp) -> bool {
        expires_at.duration_since(now) < RENEW_BEFORE
    }

    /// For a token that is still good: a newer one if there is one soon.
    pub async fn soon(&self, refresh: &str, now: Timestamp) -> Option<Renewed> {
        let outcome = match self.inner.recent(refresh, now) {
            Ok(outcome) => Some(outcome),
            Err(newest) => match self.inner.start(&newest) {
                Some(Running { outcome, since }) => wait(outcome, since + HEAD_START).await,
                None => None,
            },
        };
        match outcome {
            Some(Outcome::Renewed(renewed)) => Some(renewed),
            Some(Outcome::Ended | Outcome::Failed) | None => None,
        }
    }

    /// For a token that has expired: waits a bounded time.
    pub async fn now(&self, refresh: &str, now: Timestamp) -> Outcome {
        let newest = match self.inner.recent(refresh, now) {
            Ok(outcome) => return outcome,
            Err(newest) => newest,
        };
        let Some(running) = self.inner.start(&newest) else { return Outcome::Failed };
        wait(running.outcome, Instant::now() + WAIT).await.unwrap_or(Outcome::Failed)
    }

    /// Signed out here: requests with the old cookies get no new token from our memory.
    pub fn forget(&self, refresh: &str) {
        let newest = self.inner.chain(refresh, |_| true).1;
        self.inner.done.insert(key(refresh), Outcome::Ended);
        self.inner.done.insert(key(&newest), Outcome::Ended);
    }
}

#[derive(Clone)]
struct Running {
    outcome: watch::Receiver<Option<Outcome>>,
    since: Instant,
}

async fn wait(mut outcome: watch::Receiver<Option<Outcome>>, until: Instant) -> Option<Outcome> {
    let done = async { outcome.wait_for(Option::is_some).await.ok()?.clone() };
    tokio::time::timeout_at(until, done).await.ok().flatten()
}

fn key(refresh: &str) -> Key {
    Sha256::digest(refresh.as_bytes()).into()
}

impl Inner {
    /// What is remembered, or with which refresh token it is time to ask again.
    fn recent(&self, refresh: &str, now: Timestamp) -> Result<Outcome, Arc<str>> {
        let is_due =
            |renewed: &Renewed| Renewals::is_due(renewed.identity.credential.expires_at, now);
        match self.chain(refresh, is_due) {
            (Some(Outcome::Renewed(renewed)), _) if is_due(&renewed) => Err(renewed.refresh),
            (Some(outcome @ (Outcome::Renewed(_) | Outcome::Ended)), _) => Ok(outcome),
            (Some(Outcome::Failed) | None, newest) => Err(newest),
        }
    }

    /// Follows what the token was exchanged for, as long as `further` says so; a session that has
    /// ended is seen from every token before its end.
    fn chain(
        &self,
        refresh: &str,
        further: impl Fn(&Renewed) -> bool,
    ) -> (Option<Outcome>, Arc<str>) {
        let mut newest: Arc<str> = refresh.into();
        for _ in 0..CHAIN_MAX {
            match self.done.get(&key(&newest)) {
                Some(Outcome::Renewed(renewed)) if renewed.refresh != newest => {
                    let next = self.done.get(&key(&renewed.refresh));
                    if matches!(next, Some(Outcome::Ended)) {
                        return (next, newest);
                    }
                    if !further(&renewed) {
                        return (Some(Outcome::Renewed(renewed)), newest);
                    }
                    newest = renewed.refresh;
                }
                other => return (other, newest),
            }
        }
        (None, newest)
    }

    /// Joins the renewal that runs for this session, or starts one. `None` when too many run.
    fn start(self: &Arc<Self>, refresh: &str) -> Option<Running> {
        let key = key(refresh);
        let since = Instant::now();
        let (sender, outcome) = {
            let mut running = self.running.lock();
            if let Some(running) = running.get(&key) {
                return Some(running.clone());
            }
            // It may have come to its end since the caller looked.
            match self.done.get(&key) {
                Some(Outcome::Renewed(renewed)) if &*renewed.refresh == refresh => {}
                Some(outcome @ (Outcome::Renewed(_) | Outcome::Ended)) => {
                    let (_, outcome) = watch::channel(Some(outcome));
                    return Some(Running { outcome, since });
                }
                Some(Outcome::Failed) | None => {}
            }
            if running.len() >= RUNNING_MAX {
                return None;
            }
            let (sender, outcome) = watch::channel(None);
            running.insert(key, Running { outcome: outcome.clone(), since });
            (sender, outcome)
        };
        let (inner, refresh) = (self.clone(), refresh.to_owned());
        tokio::spawn(async move {
            let outcome = inner.renew(&refresh).await;
            // First remembered, then no longer running: nobody in between starts a second one.
            if !matches!(outcome, Outcome::Failed) {
                inner.done.insert(key, outcome.clone());
            }
            inner.running.lock().remove(&key);
            let _ = sender.send(Some(outcome));
        });
        Some(Running { outcome, since })
    }

    async fn renew(&self, refresh: &str) -> Outcome {
        let form = [("grant_type", "refresh_token"), ("refresh_token", refresh)];
        let mut again = AGAIN.into_iter();
        let answer = loop {
            match self.issuer.token(&form).await {
                // It may have been exchanged all the same.
                Err(error @ TokenEndpointError::Interrupted) => match again.next() {
                    Some(delay) => tokio::time::sleep(delay).await,
                    None => break Err(error),
                },
                answer => break answer,
            }
        };
        match answer {
            Ok(tokens) => match self.verifier.verify(&tokens.access_token, Timestamp::now()) {
                Ok(identity) => Outcome::Renewed(Renewed {
                    token: tokens.access_token.into(),
                    identity,
                    refresh: tokens.refresh_token.map_or_else(|| refresh.into(), Arc::from),
                }),
                Err(error) => {
                    tracing::warn!(%error, "the issuer gave an access token that we refuse");
                    Outcome::Failed
                }
            },
            Err(TokenEndpointError::InvalidGrant) => Outcome::Ended,
            Err(error) => {
                tracing::warn!(%error, "an access token could not be renewed");
                Outcome::Failed
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use domain::identity::{Credential, CredentialKind};

    use super::*;
    use crate::session::testing::unheard;

    fn renewals() -> Renewals {
        let (issuer, verifier) = unheard();
        Renewals::new(issuer, verifier)
    }

    fn remember(renewals: &Renewals, from: &str, to: &str, expires_at: i64) {
        let credential = Credential {
            kind: CredentialKind::AccessToken,
            id: "jti".to_owned(),
            session: None,
            expires_at: at(expires_at),
            scopes: vec![],
            workload: None,
        };
        let identity = Identity {
            subject: "s".to_owned(),
            user: "alice".parse().unwrap(),
            email: None,
            groups: vec![],
            credential,
        };
        let renewed = Renewed {
            token: format!("token with {to}").into(),
            identity: Arc::new(identity),
            refresh: to.into(),
        };
        renewals.inner.done.insert(key(from), Outcome::Renewed(renewed));
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn recent(renewals: &Renewals, refresh: &str, now: i64) -> Result<Option<String>, String> {
        match renewals.inner.recent(refresh, at(now)) {
            Ok(Outcome::Renewed(renewed)) => Ok(Some(renewed.refresh.to_string())),
            Ok(_) => Ok(None),
            Err(newest) => Err(newest.to_string()),
        }
    }

    #[tokio::test]
    async fn an_old_refresh_token_leads_to_the_newest() {
        let renewals = renewals();
        assert_eq!(recent(&renewals, "r0", 0), Err("r0".to_owned()));
        remember(&renewals, "r0", "r1", 600);
        assert_eq!(recent(&renewals, "r0", 0), Ok(Some("r1".to_owned())));
        // Its token is due: what it was exchanged for is used, and never itself again.
        assert_eq!(recent(&renewals, "r0", 500), Err("r1".to_owned()));
        remember(&renewals, "r1", "r2", 1000);
        assert_eq!(recent(&renewals, "r0", 500), Ok(Some("r2".to_owned())));
        assert_eq!(recent(&renewals, "r0", 900), Err("r2".to_owned()));
        // Who looked before the end of a renewal gets its outcome, and starts no other.
        let running = renewals.inner.start("r1").unwrap();
        let outcome = wait(running.outcome, running.since).await;
        assert!(matches!(outcome, Some(Outcome::Renewed(renewed)) if &*renewed.refresh == "r2"));
        assert!(renewals.inner.running.lock().is_empty());
    }

    #[tokio::test]
    async fn a_session_that_was_signed_out_is_over_from_every_token() {
        let renewals = renewals();
        remember(&renewals, "r0", "r1", 600);
        remember(&renewals, "r1", "r2", 600);
        renewals.forget("r1");
        for token in ["r1", "r2"] {
            assert_eq!(recent(&renewals, token, 0), Ok(None), "{token}");
        }
        assert_eq!(recent(&renewals, "r0", 0), Ok(None));
    }

    #[tokio::test]
    async fn an_issuer_that_does_not_change_refresh_tokens_is_asked_with_the_same() {
        let renewals = renewals();
        remember(&renewals, "r", "r", 600);
        assert_eq!(recent(&renewals, "r", 0), Ok(Some("r".to_owned())));
        assert_eq!(recent(&renewals, "r", 500), Err("r".to_owned()));
    }
}
