//! Renewing access tokens: one call per session at a time, however many requests ask.

use std::{collections::HashMap, sync::Arc, time::Duration};

use domain::{identity::Identity, token::Verifier};
use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;
use quick_cache::sync::Cache;
use sha2::{Digest, Sha256};
use tokio::sync::watch;

use super::issuer::{Issuer, TokenEndpointError};

/// A token this close to its end is past half its life of ten minutes: fetch the next one.
const RENEW_BEFORE: SignedDuration = SignedDuration::from_mins(5);
/// How long a request waits for a new token when its own has expired.
const WAIT: Duration = Duration::from_secs(5);
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
    running: Mutex<HashMap<Key, watch::Receiver<Option<Outcome>>>>,
}

impl Renewals {
    pub fn new(issuer: Arc<Issuer>, verifier: Arc<Verifier>) -> Self {
        let running = Mutex::new(HashMap::new());
        Self { inner: Arc::new(Inner { issuer, verifier, done: Cache::new(REMEMBERED), running }) }
    }

    pub fn is_due(expires_at: Timestamp, now: Timestamp) -> bool {
        expires_at.duration_since(now) < RENEW_BEFORE
    }

    /// For a token that is still good: a newer one if there is one, else one is being fetched for
    /// the requests that follow.
    pub fn in_background(&self, refresh: &str, now: Timestamp) -> Option<Renewed> {
        match self.inner.recent(&key(refresh), now) {
            Some(Outcome::Renewed(renewed)) => Some(renewed),
            Some(Outcome::Ended | Outcome::Failed) => None,
            None => {
                let _ = self.inner.start(refresh);
                None
            }
        }
    }

    /// For a token that has expired: waits a bounded time.
    pub async fn now(&self, refresh: &str, now: Timestamp) -> Outcome {
        if let Some(outcome) = self.inner.recent(&key(refresh), now) {
            return outcome;
        }
        let Some(mut running) = self.inner.start(refresh) else { return Outcome::Failed };
        let done = async { running.wait_for(Option::is_some).await.ok()?.clone() };
        tokio::time::timeout(WAIT, done).await.ok().flatten().unwrap_or(Outcome::Failed)
    }

    /// Signed out here: requests with the old cookies get no new token from our memory.
    pub fn forget(&self, refresh: &str) {
        self.inner.done.insert(key(refresh), Outcome::Ended);
    }
}

fn key(refresh: &str) -> Key {
    Sha256::digest(refresh.as_bytes()).into()
}

impl Inner {
    /// What is remembered, unless it is time to ask again.
    fn recent(&self, key: &Key, now: Timestamp) -> Option<Outcome> {
        let outcome = self.done.get(key)?;
        match &outcome {
            Outcome::Renewed(renewed) => {
                let expires_at = renewed.identity.credential.expires_at;
                (!Renewals::is_due(expires_at, now)).then_some(outcome)
            }
            Outcome::Ended => Some(outcome),
            Outcome::Failed => None,
        }
    }

    /// Joins the renewal that runs for this session, or starts one. `None` when too many run.
    fn start(self: &Arc<Self>, refresh: &str) -> Option<watch::Receiver<Option<Outcome>>> {
        let key = key(refresh);
        let (sender, receiver) = {
            let mut running = self.running.lock();
            if let Some(receiver) = running.get(&key) {
                return Some(receiver.clone());
            }
            if running.len() >= RUNNING_MAX {
                return None;
            }
            let (sender, receiver) = watch::channel(None);
            running.insert(key, receiver.clone());
            (sender, receiver)
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
        Some(receiver)
    }

    async fn renew(&self, refresh: &str) -> Outcome {
        let form = [("grant_type", "refresh_token"), ("refresh_token", refresh)];
        match self.issuer.token(&form).await {
            Ok(tokens) => match self.verifier.verify(&tokens.access_token, Timestamp::now()) {
                Ok(identity) => {
                    Outcome::Renewed(Renewed { token: tokens.access_token.into(), identity })
                }
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
