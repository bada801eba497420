//! One kind of object of the cluster: a copy kept current by a watch, and the writes to it.
//!
//! A write's answer goes into the copy at once (unless the watch was faster), so the next decision
//! sees what the last one did: no controller makes the same pod twice because its watch lags.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt::Debug;
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt, watcher::watcher};
use kube::{Api, Client, Resource};
use parking_lot::{Mutex, RwLock};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::Error;
use super::queue::Key;

/// How many uids of removed objects are remembered, so that a late answer cannot bring one back.
const REMEMBERED_DELETIONS: usize = 4096;

/// What a [`Store`] can hold: a built-in kind.
pub trait Kind:
    Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Serialize + Send + Sync + 'static
{
}
impl<K> Kind for K where
    K: Resource<DynamicType = ()>
        + Clone
        + Debug
        + DeserializeOwned
        + Serialize
        + Send
        + Sync
        + 'static
{
}

/// A change of one object; both sides are there unless it appeared or went away.
pub struct Change<'a, K> {
    pub old: Option<&'a K>,
    pub new: Option<&'a K>,
}

impl<K> Change<'_, K> {
    /// The object before and after: whoever depends on either must look again.
    pub fn sides(&self) -> impl Iterator<Item = &K> {
        self.old.into_iter().chain(self.new)
    }
}

type Handler<K> = Box<dyn Fn(&Change<'_, K>) + Send + Sync>;
type Connect<K> = fn(Client, Option<&str>) -> Api<K>;

struct State<K> {
    objects: BTreeMap<Key, Arc<K>>,
    /// Objects seen so far of a list that is under way.
    relist: Option<HashMap<Key, Arc<K>>>,
    removed: VecDeque<String>,
}

/// The objects of kind `K`: a watched copy, and the API to write to.
pub struct Store<K> {
    client: Client,
    connect: Connect<K>,
    state: RwLock<State<K>>,
    handlers: Mutex<Vec<Arc<Handler<K>>>>,
    synced: watch::Sender<bool>,
}

impl<K: Kind> Store<K> {
    pub fn new(client: Client, connect: Connect<K>) -> Arc<Self> {
        Arc::new(Self {
            client,
            connect,
            state: RwLock::new(State {
                objects: BTreeMap::new(),
                relist: None,
                removed: VecDeque::new(),
            }),
            handlers: Mutex::new(Vec::new()),
            synced: watch::channel(false).0,
        })
    }

    /// Calls `handler` after each change of the copy. It must not block; it puts keys on queues.
    pub fn on_change(&self, handler: impl Fn(&Change<'_, K>) + Send + Sync + 'static) {
        self.handlers.lock().push(Arc::new(Box::new(handler)));
    }

    /// Returns when the first list has arrived.
    pub async fn synced(&self) {
        // The sender lives in self, so the wait cannot fail.
        let _ = self.synced.subscribe().wait_for(|done| *done).await;
    }

    /// Keeps the copy current until `shutdown`.
    pub async fn follow(self: Arc<Self>, shutdown: CancellationToken) {
        let api = (self.connect)(self.client.clone(), None);
        let stream = watcher(api, watcher::Config::default()).default_backoff();
        let mut stream = stream.take_until(shutdown.cancelled_owned()).boxed();
        loop {
            match stream.try_next().await {
                Ok(Some(event)) => self.apply(event),
                Ok(None) => return,
                Err(error) if *self.synced.borrow() => {
                    tracing::debug!(kind = %K::kind(&()), %error, "a watch was interrupted; it starts again");
                }
                // Until the first list is there, the controllers stand still.
                Err(error) => {
                    tracing::warn!(kind = %K::kind(&()), %error, "cannot list; trying again");
                }
            }
        }
    }

    fn apply(&self, event: Event<K>) {
        match event {
            Event::Init => self.state.write().relist = Some(HashMap::new()),
            Event::InitApply(object) => {
                if let Some(relist) = &mut self.state.write().relist {
                    relist.insert(Key::of(&object), Arc::new(object));
                }
            }
            Event::InitDone => {
                self.finish_relist();
                self.synced.send_replace(true);
            }
            Event::Apply(object) => self.record(object),
            Event::Delete(object) => self.forget(&object),
        }
    }

    fn finish_relist(&self) {
        let mut changes = Vec::new();
        {
            let mut state = self.state.write();
            let Some(listed) = state.relist.take() else { return };
            let missing: Vec<Key> =
                state.objects.keys().filter(|key| !listed.contains_key(key)).cloned().collect();
            for key in missing {
                changes.push((state.objects.remove(&key), None));
            }
            for (key, new) in listed {
                let old = state.objects.get(&key).cloned();
                if old.as_ref().is_none_or(|old| is_newer(&*new, &**old)) {
                    state.objects.insert(key, new.clone());
                    changes.push((old, Some(new)));
                }
            }
        }
        for (old, new) in changes {
            self.announce(old.as_deref(), new.as_deref());
        }
    }

    /// Takes a newer state of an object into the copy.
    pub fn record(&self, object: K) {
        let key = Key::of(&object);
        let new = Arc::new(object);
        let old = {
            let mut state = self.state.write();
            let uid = new.meta().uid.as_deref().unwrap_or_default();
            if state.removed.iter().any(|removed| removed == uid) {
                return;
            }
            if let Some(relist) = &mut state.relist {
                relist.insert(key.clone(), new.clone());
            }
            let old = state.objects.get(&key).cloned();
            if old.as_ref().is_some_and(|old| !is_newer(&*new, &**old)) {
                return;
            }
            state.objects.insert(key, new.clone());
            old
        };
        self.announce(old.as_deref(), Some(&new));
    }

    /// Takes an object out of the copy, if it is still the one with that uid.
    pub fn forget(&self, object: &K) {
        let key = Key::of(object);
        let old = {
            let mut state = self.state.write();
            if let Some(uid) = object.meta().uid.clone().filter(|uid| !uid.is_empty()) {
                if state.removed.len() == REMEMBERED_DELETIONS {
                    state.removed.pop_front();
                }
                state.removed.push_back(uid);
            }
            if let Some(relist) = &mut state.relist {
                relist.remove(&key);
            }
            match state.objects.get(&key) {
                Some(held) if held.meta().uid == object.meta().uid => state.objects.remove(&key),
                _ => None,
            }
        };
        if let Some(old) = old {
            self.announce(Some(&old), None);
        }
    }

    fn announce(&self, old: Option<&K>, new: Option<&K>) {
        let handlers: Vec<_> = self.handlers.lock().clone();
        for handler in handlers {
            handler(&Change { old, new });
        }
    }

    pub fn get(&self, key: &Key) -> Option<Arc<K>> {
        self.state.read().objects.get(key).cloned()
    }

    /// All objects, by namespace and name.
    pub fn all(&self) -> Vec<Arc<K>> {
        self.state.read().objects.values().cloned().collect()
    }

    /// The objects of one namespace, by name.
    pub fn in_namespace(&self, namespace: &str) -> Vec<Arc<K>> {
        let from = Key::new(namespace, "");
        let state = self.state.read();
        let rest = state.objects.range(from..);
        rest.take_while(|(key, _)| key.namespace == namespace)
            .map(|(_, object)| object.clone())
            .collect()
    }

    /// The API for the namespace of `key` (or the whole cluster's, for a kind without namespaces).
    pub fn api(&self, namespace: &str) -> Api<K> {
        (self.connect)(self.client.clone(), Some(namespace))
    }

    pub async fn create(&self, object: &K) -> Result<K, Error> {
        let namespace = object.meta().namespace.as_deref().unwrap_or_default();
        let made = self.api(namespace).create(&PostParams::default(), object).await?;
        self.record(made.clone());
        Ok(made)
    }

    /// Deletes exactly this object (by uid); that it is gone already is a success.
    pub async fn delete(&self, object: &K, params: DeleteParams) -> Result<(), Error> {
        let key = Key::of(object);
        let uid = object.meta().uid.clone();
        let params = params.preconditions(Preconditions { uid, resource_version: None });
        match self.api(&key.namespace).delete(&key.name, &params).await {
            Ok(answer) => {
                if let Some(left) =
                    answer.left().filter(|left| left.meta().deletion_timestamp.is_some())
                {
                    self.record(left);
                }
                Ok(())
            }
            Err(kube::Error::Api(status)) if status.is_not_found() => {
                self.forget(object);
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Replaces the status, on the condition that the object is as it was read.
    pub async fn replace_status(&self, object: &K) -> Result<(), Error> {
        let key = Key::of(object);
        let api = self.api(&key.namespace);
        self.record(
            api.replace_subresource("status", &key.name, &PostParams::default(), object).await?,
        );
        Ok(())
    }

    pub async fn patch<P: Serialize + Debug>(
        &self,
        key: &Key,
        patch: &Patch<P>,
    ) -> Result<(), Error> {
        let patched =
            self.api(&key.namespace).patch(&key.name, &PatchParams::default(), patch).await?;
        self.record(patched);
        Ok(())
    }

    pub async fn patch_status<P: Serialize + Debug>(
        &self,
        key: &Key,
        patch: &Patch<P>,
    ) -> Result<(), Error> {
        let api = self.api(&key.namespace);
        self.record(api.patch_status(&key.name, &PatchParams::default(), patch).await?);
        Ok(())
    }
}

/// Whether `new` is a later state than `old`. Resource versions of one server grow as numbers do;
/// where they are no numbers, the last one to arrive wins.
fn is_newer<K: Resource>(new: &K, old: &K) -> bool {
    let version =
        |object: &K| object.meta().resource_version.as_deref().and_then(|v| v.parse::<u64>().ok());
    match (version(new), version(old)) {
        (Some(new), Some(old)) => new > old,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::Pod;

    fn store() -> Arc<Store<Pod>> {
        let service = tower::service_fn(|_: http::Request<kube::client::Body>| async {
            Ok::<_, std::convert::Infallible>(http::Response::new(kube::client::Body::empty()))
        });
        Store::new(Client::new(service, "default"), |client, namespace| match namespace {
            Some(namespace) => Api::namespaced(client, namespace),
            None => Api::all(client),
        })
    }

    fn pod(name: &str, uid: &str, version: u64) -> Pod {
        let mut pod = Pod::default();
        pod.metadata.namespace = Some("a".into());
        pod.metadata.name = Some(name.into());
        pod.metadata.uid = Some(uid.into());
        pod.metadata.resource_version = Some(version.to_string());
        pod
    }

    fn version(store: &Store<Pod>, name: &str) -> Option<String> {
        store.get(&Key::new("a", name)).and_then(|pod| pod.metadata.resource_version.clone())
    }

    #[tokio::test]
    async fn an_old_event_does_not_undo_a_newer_answer() {
        let store = store();
        store.record(pod("x", "1", 7));
        store.apply(Event::Apply(pod("x", "1", 5)));
        assert_eq!(version(&store, "x").as_deref(), Some("7"));
    }

    #[tokio::test]
    async fn a_late_answer_does_not_bring_a_removed_object_back() {
        let store = store();
        store.record(pod("x", "1", 7));
        store.apply(Event::Delete(pod("x", "1", 8)));
        store.record(pod("x", "1", 7));
        assert_eq!(version(&store, "x"), None);
        store.record(pod("x", "2", 9));
        assert_eq!(version(&store, "x").as_deref(), Some("9"));
        // A late deletion of the earlier one leaves its successor alone.
        store.forget(&pod("x", "1", 8));
        assert_eq!(version(&store, "x").as_deref(), Some("9"));
    }

    #[tokio::test]
    async fn a_new_list_removes_what_is_gone_and_keeps_what_was_written_meanwhile() {
        let store = store();
        let removed = Arc::new(Mutex::new(Vec::new()));
        let seen = removed.clone();
        store.on_change(move |change| {
            if change.new.is_none() {
                seen.lock().extend(change.old.and_then(|pod| pod.metadata.name.clone()));
            }
        });
        store.record(pod("gone", "1", 1));
        store.record(pod("stays", "2", 2));
        store.apply(Event::Init);
        store.apply(Event::InitApply(pod("stays", "2", 2)));
        store.record(pod("new", "3", 3));
        store.apply(Event::InitDone);
        assert_eq!(*removed.lock(), ["gone"]);
        let names: Vec<_> =
            store.in_namespace("a").iter().map(|pod| pod.metadata.name.clone().unwrap()).collect();
        assert_eq!(names, ["new", "stays"]);
        assert!(store.in_namespace("b").is_empty());
    }
}
