//! What the watches of a service see, for health, metrics and events.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use tokio::sync::watch;

use super::{Key, Unreadable};

/// All watches of one service. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Watches(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    next: AtomicU64,
    state: watch::Sender<Seen>,
}

/// The state of every watch, by a number that it was given.
#[derive(Debug, Clone, Default)]
pub struct Seen(BTreeMap<u64, One>);

/// The state of one watch.
#[derive(Debug, Clone)]
pub struct One {
    pub kind: String,
    /// Everything has been listed at least once.
    pub listed: bool,
    /// Since when changes may have been missed; `None` while it works.
    pub blind_since: Option<Timestamp>,
    /// Why it failed last, without anything of an object.
    pub why: String,
    /// Lists and watches that failed so far.
    pub failures: u64,
    pub unreadable: BTreeMap<Key, Report>,
}

/// An object that cannot be read: which one, and the path of the field.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    pub object: ObjectReference,
    pub field: String,
}

impl Default for Watches {
    fn default() -> Self {
        let state = watch::Sender::new(Seen::default());
        Self(Arc::new(Inner { next: AtomicU64::new(0), state }))
    }
}

impl Watches {
    /// Told of every change.
    pub fn subscribe(&self) -> watch::Receiver<Seen> {
        self.0.state.subscribe()
    }

    /// Since when the first of the watches that fail now has been failing.
    pub fn blind_since(&self) -> Option<Timestamp> {
        self.0.state.borrow().blind_since()
    }

    pub(super) fn open(&self, kind: String, api_version: String) -> Sight {
        let id = self.0.next.fetch_add(1, Ordering::Relaxed);
        let one = One {
            kind: kind.clone(),
            listed: false,
            blind_since: None,
            why: String::new(),
            failures: 0,
            unreadable: BTreeMap::new(),
        };
        self.0.state.send_modify(|seen| {
            seen.0.insert(id, one);
        });
        Sight { watches: self.clone(), id, kind, api_version, listing: BTreeSet::new() }
    }
}

impl Seen {
    pub fn all(&self) -> impl Iterator<Item = &One> {
        self.0.values()
    }

    pub fn blind_since(&self) -> Option<Timestamp> {
        self.all().filter_map(|one| one.blind_since).min()
    }

    /// Why not everything has been listed yet, by kind.
    pub fn unlisted(&self) -> Vec<String> {
        let unlisted = self.all().filter(|one| !one.listed);
        let lines: BTreeSet<_> = unlisted
            .map(|one| match one.why.as_str() {
                "" => format!("{} has not been listed yet", one.kind),
                why => format!("{} cannot be listed: {why}", one.kind),
            })
            .collect();
        lines.into_iter().collect()
    }

    /// The kinds whose changes are not seen now, and why.
    pub fn blind(&self) -> Option<String> {
        let since = self.blind_since()?;
        let lines: BTreeSet<_> = self
            .all()
            .filter(|one| one.blind_since.is_some())
            .map(|one| format!("{} ({})", one.kind, one.why))
            .collect();
        let lines: Vec<_> = lines.into_iter().collect();
        Some(format!("blind since {since:.0}: no changes are seen of {}", lines.join(", ")))
    }

    /// Each once, whatever number of watches cannot read it.
    pub fn unreadable(&self) -> BTreeMap<(&str, &Key), &Report> {
        let mut all = BTreeMap::new();
        for one in self.all() {
            all.extend(
                one.unreadable.iter().map(|(key, report)| ((one.kind.as_str(), key), report)),
            );
        }
        all
    }
}

/// One watch's own line; it goes with the watch.
#[derive(Debug)]
pub(super) struct Sight {
    watches: Watches,
    id: u64,
    kind: String,
    api_version: String,
    /// What could not be read of the list that arrives.
    listing: BTreeSet<Key>,
}

impl Sight {
    fn change(&self, change: impl FnOnce(&mut One) -> bool) {
        self.watches.0.state.send_if_modified(|seen| seen.0.get_mut(&self.id).is_some_and(change));
    }

    /// It failed; changes may be missed from now on. Says whether that is new.
    pub fn lost(&self, why: &str, now: Timestamp) -> bool {
        let mut new = false;
        self.change(|one| {
            new = one.blind_since.is_none();
            one.blind_since.get_or_insert(now);
            one.failures += 1;
            why.clone_into(&mut one.why);
            true
        });
        new
    }

    /// It works. Gives since when it did not.
    pub fn works(&self) -> Option<Timestamp> {
        let mut since = None;
        self.change(|one| {
            since = one.blind_since.take();
            since.is_some()
        });
        since
    }

    pub fn begin_list(&mut self) {
        self.listing.clear();
    }

    pub fn end_list(&mut self) {
        let there = std::mem::take(&mut self.listing);
        self.change(|one| {
            one.unreadable.retain(|key, _| there.contains(key));
            one.listed = true;
            true
        });
    }

    pub fn readable(&self, key: &Key) {
        self.change(|one| one.unreadable.remove(key).is_some());
    }

    /// Logged once for each field of each object.
    pub fn unreadable(&mut self, key: &Key, unreadable: &Unreadable) {
        self.listing.insert(key.clone());
        let report = Report {
            object: ObjectReference {
                api_version: Some(self.api_version.clone()),
                kind: Some(self.kind.clone()),
                namespace: unreadable.meta.namespace.clone(),
                name: unreadable.meta.name.clone(),
                uid: unreadable.meta.uid.clone(),
                ..ObjectReference::default()
            },
            field: unreadable.field.clone(),
        };
        let mut new = false;
        self.change(|one| {
            new = one.unreadable.get(key) != Some(&report);
            if new {
                one.unreadable.insert(key.clone(), report);
            }
            new
        });
        if new {
            tracing::warn!(
                kind = self.kind,
                namespace = key.0,
                name = key.1,
                field = unreadable.field,
                "an object cannot be read and is left as it is; is it of a newer version than this program?",
            );
        }
    }

    pub fn kind(&self) -> &str {
        &self.kind
    }
}

impl Drop for Sight {
    fn drop(&mut self) {
        self.watches.0.state.send_modify(|seen| {
            seen.0.remove(&self.id);
        });
    }
}
