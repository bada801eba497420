//! Follows the authserver's feed of revocations: a snapshot, then server-sent events.
//!
//! What was closed stays closed: while the feed is away, what is known is kept.

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use domain::{
    identity::Identity,
    revocation::{RevocationSet, Revoked},
};
use jiff::Timestamp;
use prometheus::{IntCounter, IntGauge};
use serde::{Deserialize, de::DeserializeOwned};
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until, timeout},
};
use url::Url;

use crate::{http::whole, jwks::JwksFollower, service::Context};

/// The feed says something every ten seconds; after this long without a word it is not believed to
/// be up to date any more.
const STALE: Duration = Duration::from_secs(30);
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(5);
/// The longest snapshot and event: 100 bytes for an entry, and a million of them.
const SNAPSHOT_MAX: usize = 128 * 1024 * 1024;
const EVENT_MAX: usize = 1024 * 1024;

/// Where the feed is, and who asks for it (`client_secret_basic`).
#[derive(Clone)]
pub struct Feed {
    /// The authserver as it is reached from inside, such as `http://authserver:8080`.
    pub authserver: Url,
    pub client_id: String,
    pub client_secret: String,
}

/// What is revoked. Cheap to clone; looking something up takes no lock.
#[derive(Debug, Clone)]
pub struct Revocations {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    set: ArcSwap<RevocationSet>,
    /// Counts the changes of the set.
    changes: watch::Sender<u64>,
}

impl Revocations {
    /// Nothing is revoked, and nothing will be.
    pub fn none() -> Self {
        let set = ArcSwap::from_pointee(RevocationSet::new());
        Self { shared: Arc::new(Shared { set, changes: watch::Sender::new(0) }) }
    }

    /// True when the credential's session or the credential itself was withdrawn.
    pub fn is_revoked(&self, identity: &Identity) -> bool {
        self.shared.set.load().is_revoked(identity)
    }

    /// Changes whenever something was revoked: then every open stream has to ask again.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changes.subscribe()
    }

    /// Waits until the credential is withdrawn: what a stream that lives long selects on.
    pub async fn revoked(&self, identity: &Identity) {
        let mut changes = self.changes();
        loop {
            changes.borrow_and_update();
            if self.is_revoked(identity) {
                return;
            }
            // The sender is in ourselves, so this does not fail.
            if changes.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    pub fn snapshot(&self) -> Arc<RevocationSet> {
        self.shared.set.load_full()
    }

    fn put(&self, set: RevocationSet) {
        self.shared.set.store(Arc::new(set));
        self.shared.changes.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// As if the feed had said so.
    #[doc(hidden)]
    pub fn revoke(&self, what: Revoked<'_>, until: Timestamp, now: Timestamp) {
        self.put(self.snapshot().with([(what, until)], now));
    }
}

#[derive(Clone)]
struct Metrics {
    entries: IntGauge,
    stale: IntGauge,
    resets: IntCounter,
}

impl Metrics {
    fn register(registry: &prometheus::Registry) -> Result<Self, prometheus::Error> {
        let metrics = Self {
            entries: IntGauge::new(
                "dormouse_revocations_entries",
                "Revoked sessions and tokens that are known here.",
            )?,
            stale: IntGauge::new(
                "dormouse_revocations_stale",
                "1 when the feed of revocations has said nothing for 30 seconds.",
            )?,
            resets: IntCounter::new(
                "dormouse_revocations_snapshots_total",
                "Snapshots of all revocations that were taken.",
            )?,
        };
        registry.register(Box::new(metrics.entries.clone()))?;
        registry.register(Box::new(metrics.stale.clone()))?;
        registry.register(Box::new(metrics.resets.clone()))?;
        Ok(metrics)
    }
}

/// Takes a snapshot and follows the events until the shutdown. Until the first snapshot the service
/// is not ready. Later a feed that is silent is a warning in the log and in the metrics, and no
/// reason to take all gateways out of service because the authserver restarts. The feed also says when
/// the issuer's keys change, so that none that was stolen is believed for longer.
pub fn follow(
    feed: Feed,
    http: reqwest::Client,
    keys: JwksFollower,
    ctx: &Context,
) -> Result<Revocations, prometheus::Error> {
    let revocations = Revocations::none();
    let follower = Follower {
        feed,
        http,
        revocations: revocations.clone(),
        metrics: Metrics::register(&ctx.registry)?,
        ctx: ctx.clone(),
        cursor: None,
        keys,
        keys_known: None,
        heard: Instant::now(),
    };
    ctx.health.set(HEALTH, Err("revocations have not been fetched yet".to_owned()));
    let shutdown = ctx.shutdown.clone();
    tokio::spawn(async move {
        tokio::select! {
            () = follower.run() => {}
            () = shutdown.cancelled() => {}
        }
    });
    Ok(revocations)
}

const HEALTH: &str = "revocations";

struct Follower {
    feed: Feed,
    http: reqwest::Client,
    revocations: Revocations,
    metrics: Metrics,
    ctx: Context,
    /// Up to where we know.
    cursor: Option<String>,
    keys: JwksFollower,
    /// The version of the issuer's keys.
    keys_known: Option<i64>,
    heard: Instant,
}

#[derive(Debug, thiserror::Error)]
enum FeedError {
    #[error(transparent)]
    Http(#[from] reqwest::Error),
    #[error("the feed sent something that is none of its messages")]
    Nonsense,
    #[error("the feed's message is too long")]
    TooLong,
    #[error("the feed is silent")]
    Silent,
    #[error("the feed ended")]
    Ended,
}

#[derive(Deserialize)]
struct Message {
    cursor: String,
    #[serde(default)]
    revocations: Vec<Entry>,
    /// An older authserver does not say it.
    #[serde(default)]
    keys: Option<i64>,
}

#[derive(Deserialize)]
struct Entry {
    kind: Kind,
    id: String,
    expires_at: i64,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Session,
    Token,
}

impl Entry {
    fn revoked(&self) -> (Revoked<'_>, Timestamp) {
        let until = Timestamp::from_second(self.expires_at).unwrap_or(Timestamp::MAX);
        let what = match self.kind {
            Kind::Session => Revoked::Session(&self.id),
            Kind::Token => Revoked::Token(&self.id),
        };
        (what, until)
    }
}

impl Follower {
    async fn run(mut self) {
        let mut retry = FIRST_RETRY;
        loop {
            let before = self.heard;
            let Err(error) = self.connect().await;
            if self.heard > before {
                retry = FIRST_RETRY;
            }
            // An end is what every restart and every long-lived connection comes to.
            if !matches!(error, FeedError::Ended) || self.heard.elapsed() >= STALE {
                let error = whole(&error);
                tracing::warn!(error, "the feed of revocations broke off; following it again");
            }
            if self.heard.elapsed() >= STALE {
                self.metrics.stale.set(1);
            }
            sleep(retry).await;
            retry = (retry * 2).min(LAST_RETRY);
        }
    }

    /// Follows the feed on one connection.
    async fn connect(&mut self) -> Result<std::convert::Infallible, FeedError> {
        let cursor = match self.cursor.clone() {
            Some(cursor) => cursor,
            None => self.take_snapshot().await?,
        };
        let mut url = self.at("/internal/revocations/events");
        url.query_pairs_mut().append_pair("after", &cursor);
        // No limit on the whole: it is a stream. Its silence is limited below.
        let request = self.http.get(url).timeout(Duration::from_secs(24 * 3600));
        let request =
            request.basic_auth(&self.feed.client_id, Some(&self.feed.client_secret)).send();
        let response = timeout(STALE, request).await.map_err(|_| FeedError::Silent)??;
        let mut response = response.error_for_status()?;
        let mut events = Events::default();
        loop {
            let deadline = sleep_until(Instant::now() + STALE);
            let chunk = tokio::select! {
                chunk = response.chunk() => chunk?.ok_or(FeedError::Ended)?,
                () = deadline => return Err(FeedError::Silent),
            };
            events.add(&chunk)?;
            while let Some(event) = events.next() {
                match event.name.as_str() {
                    "revoked" | "heartbeat" => self.learn(parse(event.data.as_bytes())?, false),
                    "reset" => {
                        self.cursor = None;
                        return Err(FeedError::Ended);
                    }
                    // Something that a later version says.
                    _ => {}
                }
            }
        }
    }

    async fn take_snapshot(&mut self) -> Result<String, FeedError> {
        let request = self.http.get(self.at("/internal/revocations"));
        let request = request.basic_auth(&self.feed.client_id, Some(&self.feed.client_secret));
        let mut response = request.send().await?.error_for_status()?;
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await? {
            if body.len() + chunk.len() > SNAPSHOT_MAX {
                return Err(FeedError::TooLong);
            }
            body.extend_from_slice(&chunk);
        }
        let message: Message = parse(&body)?;
        let cursor = message.cursor.clone();
        self.metrics.resets.inc();
        self.learn(message, true);
        self.ctx.health.set(HEALTH, Ok(()));
        Ok(cursor)
    }

    /// What was known stays known, also beside a snapshot: it is of no use or still true.
    fn learn(&mut self, message: Message, whole: bool) {
        self.heard = Instant::now();
        self.metrics.stale.set(0);
        self.cursor = Some(message.cursor);
        if message.keys.is_some() && message.keys != self.keys_known {
            self.keys_known = message.keys;
            self.keys.changed();
        }
        let now = Timestamp::now();
        let known = self.revocations.snapshot();
        if !message.revocations.is_empty() {
            let set = known.with(message.revocations.iter().map(Entry::revoked), now);
            self.revocations.put(if whole { set.pruned(now) } else { set });
        }
        let entries = self.revocations.shared.set.load().len();
        self.metrics.entries.set(i64::try_from(entries).unwrap_or(i64::MAX));
    }

    fn at(&self, path: &str) -> Url {
        let mut url = self.feed.authserver.clone();
        url.set_path(path);
        url
    }
}

fn parse<T: DeserializeOwned>(json: &[u8]) -> Result<T, FeedError> {
    serde_json::from_slice(json).map_err(|_| FeedError::Nonsense)
}

/// One server-sent event.
#[derive(Debug, Default, PartialEq, Eq)]
struct Event {
    name: String,
    data: String,
}

/// Takes events out of a stream of bytes (HTML Standard, section 9.2.6), as far as this feed uses
/// them: one `event` and one `data` line each, ended by an empty line.
#[derive(Default)]
struct Events {
    bytes: Vec<u8>,
    event: Event,
}

impl Events {
    fn add(&mut self, chunk: &[u8]) -> Result<(), FeedError> {
        if self.bytes.len() + chunk.len() > EVENT_MAX {
            return Err(FeedError::TooLong);
        }
        self.bytes.extend_from_slice(chunk);
        Ok(())
    }

    fn next(&mut self) -> Option<Event> {
        while let Some(end) = self.bytes.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.bytes.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line);
            let line = line.trim_end_matches(['\r', '\n']);
            if line.is_empty() {
                let event = std::mem::take(&mut self.event);
                if !event.name.is_empty() {
                    return Some(event);
                }
            } else if let Some((field, value)) = line.split_once(':') {
                let value = value.strip_prefix(' ').unwrap_or(value);
                match field {
                    "event" => value.clone_into(&mut self.event.name),
                    "data" => self.event.data.push_str(value),
                    // Comments keep the connection open; ids are in the data.
                    _ => {}
                }
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_whole_wherever_the_bytes_are_cut() {
        let text = b": hello\n\nevent: revoked\ndata: {\"a\":\ndata: 1}\n\nevent:heartbeat\r\ndata:{}\r\n\r\nevent: x\n";
        let expected = [("revoked", "{\"a\":1}"), ("heartbeat", "{}")];
        for size in 1..text.len() {
            let mut events = Events::default();
            let mut seen = vec![];
            for chunk in text.chunks(size) {
                events.add(chunk).unwrap();
                while let Some(event) = events.next() {
                    seen.push((event.name, event.data));
                }
            }
            let seen: Vec<_> = seen.iter().map(|(n, d)| (n.as_str(), d.as_str())).collect();
            assert_eq!(seen, expected);
        }
        assert!(Events::default().add(&vec![b'x'; EVENT_MAX + 1]).is_err());
    }
}
