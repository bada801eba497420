//! All objects in memory, SQLite behind them, and a bounded history that watches replay.
//!
//! Writes go one after another: each is computed from the current object, made durable,
//! then shown to readers and watchers. A watcher that cannot keep up with its queue is
//! ended, and lists again; it never holds up a write.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

use parking_lot::RwLock;
use serde_json::Value;
use tokio::sync::mpsc;

use super::db::Db;
use super::status::ApiError;

/// Events that a watcher may lag behind before it is ended.
const WATCH_QUEUE: usize = 1024;
/// Events kept per type for watches that start in the past.
const HISTORY: usize = 1024;

/// Namespace (empty for cluster-scoped types) and name.
pub type Key = (String, String);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventKind {
    Added,
    Modified,
    Deleted,
}

#[derive(Debug)]
pub struct Event {
    pub revision: u64,
    pub kind: EventKind,
    pub object: Arc<Value>,
    /// The object before this change, for selectors that stop or begin to match.
    pub previous: Option<Arc<Value>>,
}

/// What a write decides to do with the object it was given.
pub enum Change {
    Put(Value),
    /// The object's last state, as watchers see it deleted.
    Delete(Value),
    /// Nothing changes; the object is returned as it is.
    Keep(Arc<Value>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wrote {
    Created,
    Updated,
    Deleted,
    Unchanged,
}

#[derive(Default)]
struct Kind {
    objects: BTreeMap<Key, Arc<Value>>,
    history: VecDeque<Arc<Event>>,
    /// Changes up to and including this revision cannot be replayed.
    compacted: u64,
    watchers: Vec<mpsc::Sender<Arc<Event>>>,
}

struct State {
    revision: u64,
    kinds: HashMap<Arc<str>, Kind>,
    /// What a type's history starts at when nothing of it was seen yet.
    origin: u64,
}

/// A started watch: what comes first, then the live events.
pub struct Watch {
    pub start: WatchStart,
    pub live: mpsc::Receiver<Arc<Event>>,
}

pub enum WatchStart {
    /// The objects as of the revision.
    Snapshot(Vec<Arc<Value>>, u64),
    /// Events after the revision that was asked for.
    Replay(Vec<Arc<Event>>),
}

/// Where a watch begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WatchFrom {
    /// Everything there is now, then changes.
    Now,
    After(u64),
}

pub struct Page {
    pub items: Vec<Arc<Value>>,
    /// Where the next page begins, when there are more.
    pub next: Option<Key>,
    pub remaining: usize,
    pub revision: u64,
}

pub struct Store {
    state: RwLock<State>,
    writing: tokio::sync::Mutex<()>,
    db: Db,
    history: usize,
}

impl Store {
    /// Loads everything from `db`. Rows that cannot be read are reported and left alone.
    pub async fn load(db: Db) -> Result<Self, sqlx::Error> {
        Self::load_with_history(db, HISTORY).await
    }

    pub async fn load_with_history(db: Db, history: usize) -> Result<Self, sqlx::Error> {
        let (rows, revision) = db.load().await?;
        let mut kinds: HashMap<Arc<str>, Kind> = HashMap::new();
        for row in rows {
            match serde_json::from_slice::<Value>(&row.body) {
                Ok(object) => {
                    let key: Arc<str> = row.store_key.as_str().into();
                    let kind = kinds.entry(key).or_default();
                    kind.compacted = revision;
                    kind.objects.insert((row.namespace, row.name), Arc::new(object));
                }
                Err(error) => {
                    tracing::error!(%error, kind = row.store_key, name = row.name, "skipping an unreadable object");
                }
            }
        }
        Ok(Self {
            state: RwLock::new(State { revision, kinds, origin: revision }),
            writing: tokio::sync::Mutex::new(()),
            db,
            history,
        })
    }

    pub fn revision(&self) -> u64 {
        self.state.read().revision
    }

    pub fn get(&self, kind: &str, namespace: &str, name: &str) -> Option<Arc<Value>> {
        let state = self.state.read();
        let key = (namespace.to_owned(), name.to_owned());
        state.kinds.get(kind)?.objects.get(&key).cloned()
    }

    /// Objects of a type, of one namespace or (empty) of all, in key order, from `start` on,
    /// at most `limit` that `matches`.
    pub fn list(
        &self,
        kind: &str,
        namespace: &str,
        start: Option<&Key>,
        limit: usize,
        matches: impl Fn(&Value) -> bool,
    ) -> Page {
        let state = self.state.read();
        let mut page =
            Page { items: Vec::new(), next: None, remaining: 0, revision: state.revision };
        let Some(kind) = state.kinds.get(kind) else { return page };
        let from = match start {
            Some(key) => Bound::Included(key.clone()),
            None => Bound::Included((namespace.to_owned(), String::new())),
        };
        for (key, object) in kind.objects.range((from, Bound::Unbounded)) {
            if !namespace.is_empty() && key.0 != namespace {
                break;
            }
            if !matches(object) {
                continue;
            }
            if page.items.len() == limit {
                page.next.get_or_insert_with(|| key.clone());
                page.remaining += 1;
                continue;
            }
            page.items.push(object.clone());
        }
        page
    }

    /// All objects of a type, of one namespace or (empty) of all.
    pub fn all(&self, kind: &str, namespace: &str) -> Vec<Arc<Value>> {
        self.list(kind, namespace, None, usize::MAX, |_| true).items
    }

    /// Starts a watch on a type.
    ///
    /// # Errors
    /// 410 when changes since the revision are no longer (or not yet) known.
    pub fn watch(
        &self,
        kind: &Arc<str>,
        namespace: &str,
        from: WatchFrom,
    ) -> Result<Watch, ApiError> {
        let mut state = self.state.write();
        let (revision, origin) = (state.revision, state.origin);
        let kind = state
            .kinds
            .entry(kind.clone())
            .or_insert_with(|| Kind { compacted: origin, ..Kind::default() });
        let start = match from {
            WatchFrom::Now => {
                let items = kind
                    .objects
                    .iter()
                    .filter(|(key, _)| namespace.is_empty() || key.0 == namespace)
                    .map(|(_, object)| object.clone())
                    .collect();
                WatchStart::Snapshot(items, revision)
            }
            WatchFrom::After(after) => {
                if after < kind.compacted || after > revision {
                    return Err(too_old(after, kind.compacted.max(1)));
                }
                let first = kind.history.partition_point(|event| event.revision <= after);
                WatchStart::Replay(kind.history.range(first..).cloned().collect())
            }
        };
        let (sender, live) = mpsc::channel(WATCH_QUEUE);
        kind.watchers.retain(|watcher| !watcher.is_closed());
        kind.watchers.push(sender);
        Ok(Watch { start, live })
    }

    /// Whether a list continued at `revision` can still be followed by a watch.
    pub fn is_compacted(&self, kind: &str, revision: u64) -> bool {
        let state = self.state.read();
        let compacted = state.kinds.get(kind).map_or(state.origin, |kind| kind.compacted);
        revision < compacted
    }

    /// The current revision, if the watcher has seen all events up to it.
    pub fn bookmark(&self, live: &mpsc::Receiver<Arc<Event>>) -> Option<u64> {
        let state = self.state.read();
        (live.is_empty() && !live.is_closed()).then_some(state.revision)
    }

    /// Changes one object. `decide` gets the current one; it runs while no other write
    /// does, so what it reads from the store stays true until its change is in.
    /// Returns the object as it now is (or was last) and what happened.
    ///
    /// # Errors
    /// Those of `decide`; 500 when the change could not be made durable.
    pub async fn write(
        &self,
        kind: &Arc<str>,
        namespace: &str,
        name: &str,
        decide: impl FnOnce(Option<&Arc<Value>>) -> Result<Change, ApiError>,
    ) -> Result<(Arc<Value>, Wrote), ApiError> {
        let _turn = self.writing.lock().await;
        let current = self.get(kind, namespace, name);
        let change = decide(current.as_ref())?;
        let revision = self.revision() + 1;
        let (mut object, event) = match change {
            Change::Keep(object) => return Ok((object, Wrote::Unchanged)),
            Change::Put(object) if current.is_some() => (object, EventKind::Modified),
            Change::Put(object) => (object, EventKind::Added),
            Change::Delete(object) => (object, EventKind::Deleted),
        };
        object["metadata"]["resourceVersion"] = Value::String(revision.to_string());
        let durable = if event == EventKind::Deleted {
            self.db.delete(kind, namespace, name, revision).await
        } else {
            let body =
                serde_json::to_vec(&object).map_err(|e| ApiError::internal(e.to_string()))?;
            self.db.put(kind, namespace, name, revision, body).await
        };
        if let Err(error) = durable {
            tracing::error!(%error, "cannot write to the database");
            return Err(ApiError::internal("the change could not be stored; is the disk full?"));
        }
        let object = Arc::new(object);
        self.publish(
            kind,
            (namespace.to_owned(), name.to_owned()),
            Event { revision, kind: event, object: object.clone(), previous: current },
        );
        let wrote = match event {
            EventKind::Added => Wrote::Created,
            EventKind::Modified => Wrote::Updated,
            EventKind::Deleted => Wrote::Deleted,
        };
        Ok((object, wrote))
    }

    fn publish(&self, kind: &Arc<str>, key: Key, event: Event) {
        let mut state = self.state.write();
        state.revision = event.revision;
        let origin = state.origin;
        let kind = state
            .kinds
            .entry(kind.clone())
            .or_insert_with(|| Kind { compacted: origin, ..Kind::default() });
        if event.kind == EventKind::Deleted {
            kind.objects.remove(&key);
        } else {
            kind.objects.insert(key, event.object.clone());
        }
        let event = Arc::new(event);
        kind.history.push_back(event.clone());
        while kind.history.len() > self.history {
            if let Some(gone) = kind.history.pop_front() {
                kind.compacted = gone.revision;
            }
        }
        kind.watchers.retain(|watcher| watcher.try_send(event.clone()).is_ok());
    }

    /// Ends all watches: their streams finish, and clients start anew.
    pub fn end_watches(&self) {
        for kind in self.state.write().kinds.values_mut() {
            kind.watchers.clear();
        }
    }

    /// Ends the watches of one type, whose schema changed or which is gone.
    pub fn end_watches_of(&self, kind: &str) {
        if let Some(kind) = self.state.write().kinds.get_mut(kind) {
            kind.watchers.clear();
        }
    }

    pub async fn close(&self) {
        let _turn = self.writing.lock().await;
        self.db.close().await;
    }
}

pub fn too_old(asked: u64, oldest: u64) -> ApiError {
    ApiError::expired(format!("too old resource version: {asked} ({oldest})"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    async fn store(dir: &tempfile::TempDir, history: usize) -> Store {
        let db = Db::open(&dir.path().join("t.db")).await.unwrap();
        Store::load_with_history(db, history).await.unwrap()
    }

    async fn put(store: &Store, kind: &Arc<str>, name: &str) -> u64 {
        let (object, _) = store
            .write(kind, "ns", name, |_| Ok(Change::Put(json!({"metadata": {"name": name}}))))
            .await
            .unwrap();
        object["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap()
    }

    #[tokio::test]
    async fn objects_and_the_revision_survive_reopening() {
        let dir = tempfile::tempdir().unwrap();
        let kind: Arc<str> = "/configmaps".into();
        let first = store(&dir, 10).await;
        put(&first, &kind, "a").await;
        let last = put(&first, &kind, "b").await;
        first
            .write(&kind, "ns", "b", |o| Ok(Change::Delete((**o.unwrap()).clone())))
            .await
            .unwrap();
        first.close().await;
        let second = store(&dir, 10).await;
        assert!(second.get(&kind, "ns", "a").is_some());
        assert!(second.get(&kind, "ns", "b").is_none());
        assert_eq!(second.revision(), last + 1);
        assert!(second.watch(&kind, "", WatchFrom::After(last + 1)).is_ok());
        assert_eq!(second.watch(&kind, "", WatchFrom::After(1)).err().unwrap().code, 410);
    }

    #[tokio::test]
    async fn a_watch_replays_history_until_it_is_compacted() {
        let dir = tempfile::tempdir().unwrap();
        let kind: Arc<str> = "/configmaps".into();
        let store = store(&dir, 2).await;
        let first = put(&store, &kind, "a").await;
        for _ in 0..2 {
            put(&store, &kind, "a").await;
        }
        match store.watch(&kind, "", WatchFrom::After(first)).unwrap().start {
            WatchStart::Replay(events) => assert_eq!(events.len(), 2),
            WatchStart::Snapshot(..) => panic!("expected a replay"),
        }
        put(&store, &kind, "a").await;
        assert_eq!(store.watch(&kind, "", WatchFrom::After(first)).err().unwrap().code, 410);
    }

    #[tokio::test]
    async fn a_slow_watcher_is_ended_and_writes_go_on() {
        let dir = tempfile::tempdir().unwrap();
        let kind: Arc<str> = "/configmaps".into();
        let store = store(&dir, 10).await;
        let mut watch = store.watch(&kind, "", WatchFrom::Now).unwrap();
        for _ in 0..=WATCH_QUEUE {
            put(&store, &kind, "a").await;
        }
        let mut seen = 0;
        while watch.live.recv().await.is_some() {
            seen += 1;
        }
        assert_eq!(seen, WATCH_QUEUE);
    }
}
