//! The garbage collector: what nobody owns any more goes.

mod graph;
mod kinds;
mod plan;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{DeleteParams, DynamicObject, Patch, PatchParams, Preconditions};
use kube::core::PartialObjectMeta;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Config, Event, watcher};
use kube::{Api, Client};
use parking_lot::Mutex;
use serde_json::json;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::Error;
use super::cluster::Cluster;
use super::queue::{Again, Key, Queue, work};
use graph::Graph;
pub use graph::{KindName, Object};
pub use kinds::{Kinds, Served};
use plan::{Owner, Step, deletion_step, ownership_step};

const COMPONENT: &str = "garbage-collector";
const DISCOVERY_RETRY: Duration = Duration::from_millis(200);

type Listener = Box<dyn Fn(&Object) + Send + Sync>;

/// How far the first listing of everything has come.
#[derive(Default)]
struct Progress {
    /// The kinds that were served at the start; `None` until they are known.
    expected: Option<HashSet<KindName>>,
    listed: HashSet<KindName>,
}

impl Progress {
    fn is_complete(&self) -> bool {
        self.expected.as_ref().is_some_and(|expected| expected.is_subset(&self.listed))
    }
}

/// The metadata of every object of every kind, kept current.
pub struct Inventory {
    client: Client,
    pub kinds: Kinds,
    graph: Mutex<Graph>,
    queue: Queue,
    watches: Mutex<HashMap<KindName, CancellationToken>>,
    progress: watch::Sender<Progress>,
    listeners: Mutex<Vec<Listener>>,
}

impl Inventory {
    pub fn new(client: Client) -> Arc<Self> {
        Arc::new(Self {
            client,
            kinds: Kinds::default(),
            graph: Mutex::default(),
            queue: Queue::default(),
            watches: Mutex::default(),
            progress: watch::Sender::default(),
            listeners: Mutex::default(),
        })
    }

    /// Calls `listener` with each object that appears, changes or goes. It must not block.
    pub fn on_change(&self, listener: impl Fn(&Object) + Send + Sync + 'static) {
        self.listeners.lock().push(Box::new(listener));
    }

    /// All objects in a namespace, of the watched kinds.
    pub fn in_namespace(&self, namespace: &str) -> Vec<Object> {
        self.graph.lock().in_namespace(namespace)
    }

    /// Returns when all kinds that were there at first have been listed.
    pub async fn synced(&self) {
        let mut progress = self.progress.subscribe();
        // The sender lives in self, so the wait cannot fail.
        let _ = progress.wait_for(Progress::is_complete).await;
    }

    pub fn api(&self, served: &Served, namespace: Option<&str>) -> Api<DynamicObject> {
        match namespace.filter(|_| served.namespaced) {
            Some(namespace) => {
                Api::namespaced_with(self.client.clone(), namespace, &served.resource)
            }
            None => Api::all_with(self.client.clone(), &served.resource),
        }
    }

    fn look(&self, uids: Vec<String>) {
        uids.iter().for_each(|uid| self.queue.add(Key::new("", uid)));
    }

    fn tell(&self, object: &Object) {
        self.listeners.lock().iter().for_each(|listener| listener(object));
    }

    fn observe(&self, object: Object) {
        self.tell(&object);
        let look = self.graph.lock().observe(object);
        self.look(look);
    }

    /// Forgets an object; `deleted` says that it was deleted, and not only missing from a list.
    fn remove(&self, uid: &str, deleted: bool) {
        let (gone, look) = {
            let mut graph = self.graph.lock();
            let gone = graph.get(uid).cloned();
            (gone, if deleted { graph.bury(uid) } else { graph.remove(uid) })
        };
        self.look(look);
        if let Some(gone) = gone {
            self.tell(&gone);
        }
    }

    /// Starts watching a kind, unless it is watched in just this form.
    fn watch(self: &Arc<Self>, served: Served, shutdown: &CancellationToken) {
        if !self.kinds.add(served.clone()) {
            return;
        }
        let stop = shutdown.child_token();
        if let Some(earlier) = self.watches.lock().insert(served.name(), stop.clone()) {
            earlier.cancel();
        }
        let this = self.clone();
        tokio::spawn(async move { this.follow(served, stop).await });
    }

    fn unwatch(&self, name: &KindName) {
        self.kinds.remove(name);
        if let Some(stop) = self.watches.lock().remove(name) {
            stop.cancel();
        }
        // With the definition, all its objects are gone.
        let gone = self.graph.lock().of_kind(name);
        gone.iter().for_each(|uid| self.remove(uid, true));
        self.listed(name);
    }

    fn listed(&self, name: &KindName) {
        self.progress.send_if_modified(|progress| progress.listed.insert(name.clone()));
    }

    async fn follow(&self, served: Served, stop: CancellationToken) {
        let name = served.name();
        let api: Api<PartialObjectMeta<DynamicObject>> =
            Api::all_with(self.client.clone(), &served.resource);
        let stream = watcher(api, Config::default()).default_backoff();
        let mut stream = stream.take_until(stop.cancelled_owned()).boxed();
        let mut relist: HashSet<String> = HashSet::new();
        loop {
            let event = match stream.try_next().await {
                Ok(Some(event)) => event,
                Ok(None) => return,
                Err(error) => {
                    // A kind that is not served (any more) has no objects to wait for.
                    if let watcher::Error::InitialListFailed(kube::Error::Api(status)) = &error
                        && status.is_not_found()
                    {
                        self.listed(&name);
                    }
                    tracing::debug!(kind = %served.resource.kind, %error, "a watch was interrupted; it starts again");
                    continue;
                }
            };
            match event {
                Event::Init => relist.clear(),
                Event::InitApply(object) => {
                    if let Some(object) = Object::new(name.clone(), object.metadata) {
                        relist.insert(object.uid.clone());
                        self.observe(object);
                    }
                }
                Event::InitDone => {
                    let known = {
                        let mut graph = self.graph.lock();
                        graph.lists += 1;
                        graph.of_kind(&name)
                    };
                    let missing = known.iter().filter(|uid| !relist.contains(*uid));
                    missing.for_each(|uid| self.remove(uid, false));
                    self.listed(&name);
                }
                Event::Apply(object) => {
                    if let Some(object) = Object::new(name.clone(), object.metadata) {
                        self.observe(object);
                    }
                }
                Event::Delete(object) => {
                    self.remove(object.metadata.uid.as_deref().unwrap_or_default(), true)
                }
            }
        }
    }

    async fn discover(self: Arc<Self>, shutdown: CancellationToken) {
        loop {
            match kinds::discover(&self.client).await {
                Ok(found) => {
                    let expected = found.iter().map(Served::name).collect();
                    self.progress.send_modify(|progress| progress.expected = Some(expected));
                    found.into_iter().for_each(|served| self.watch(served, &shutdown));
                    return;
                }
                Err(error) => {
                    tracing::warn!(%error, "could not ask the API server what it serves; trying again")
                }
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(DISCOVERY_RETRY) => {}
            }
        }
    }
}

/// Hears of changes from now on; works when the returned future runs.
pub fn start(
    cluster: &Cluster,
    inventory: Arc<Inventory>,
    shutdown: CancellationToken,
) -> impl Future<Output = ()> + Send + use<> {
    let (this, stop) = (Arc::downgrade(&inventory), shutdown.clone());
    cluster.definitions.on_change(move |change| {
        let Some(this) = this.upgrade() else { return };
        match (change.old, change.new) {
            (_, Some(new)) => {
                if let Some(served) = kinds::defined(new) {
                    this.watch(served, &stop);
                }
            }
            (Some(old), None) => this.unwatch(&kinds::name_of(old)),
            (None, None) => {}
        }
    });
    async move {
        tokio::spawn(inventory.clone().discover(shutdown.clone()));
        tokio::select! {
            () = shutdown.cancelled() => return,
            // Before all is listed, a dependent could be overlooked.
            () = inventory.synced() => {}
        }
        let queue = inventory.queue.clone();
        work(COMPONENT, queue, 16, shutdown, move |key| reconcile(inventory.clone(), key)).await;
    }
}

async fn reconcile(inventory: Arc<Inventory>, key: Key) -> Result<Again, Error> {
    let found = {
        let graph = inventory.graph.lock();
        graph.get(&key.name).map(|object| (object.clone(), deletion_step(object, &graph)))
    };
    let Some((object, deletion)) = found else { return Ok(None) };
    let step = match deletion {
        Some(step) => step,
        None => {
            let mut owners = Vec::new();
            for owner in &object.owners {
                owners.push((owner.clone(), resolve(&inventory, &object, owner).await?));
            }
            ownership_step(&object, &inventory.graph.lock(), &owners)
        }
    };
    act(&inventory, &object, step).await.map(|()| None)
}

/// What became of an owner: known from the graph, else asked of the API itself, for the watches of
/// different kinds are not in step.
async fn resolve(
    inventory: &Inventory,
    object: &Object,
    owner: &OwnerReference,
) -> Result<Owner, Error> {
    let state =
        |known: &Object| if known.awaits_dependents() { Owner::Waiting } else { Owner::Present };
    if let Some(known) = inventory.graph.lock().get(&owner.uid) {
        return Ok(state(known));
    }
    let served = match inventory.kinds.find(&owner.api_version, &owner.kind) {
        Some(served) => served,
        None => match lookup(&inventory.client, owner).await? {
            Some(served) => served,
            // A kind that is not served has no objects: its definition went, and they with it.
            None => return Ok(Owner::Absent),
        },
    };
    if served.namespaced && object.namespace.is_none() {
        tracing::debug!(object = %object.name, "it has no namespace and names an owner that has one: kept");
        return Ok(Owner::Present);
    }
    let api = inventory.api(&served, object.namespace.as_deref());
    loop {
        let lists = inventory.graph.lock().lists;
        let live = api.get_metadata_opt(&owner.name).await?;
        let live = live.and_then(|live| Object::new(served.name(), live.metadata));
        let Some(live) = live.filter(|live| live.uid == owner.uid) else {
            return Ok(Owner::Absent);
        };
        let found = state(&live);
        let mut graph = inventory.graph.lock();
        // A list that was compared meanwhile may be newer than this answer.
        if graph.lists == lists {
            return Ok(graph.learn(live).map_or(Owner::Absent, |look| {
                inventory.look(look);
                found
            }));
        }
    }
}

async fn lookup(client: &Client, owner: &OwnerReference) -> Result<Option<Served>, Error> {
    let (group, version) = owner.api_version.rsplit_once('/').unwrap_or(("", &owner.api_version));
    let kind = kube::core::GroupVersionKind::gvk(group, version, &owner.kind);
    match kube::discovery::pinned_kind(client, &kind).await {
        Ok((resource, capabilities)) => {
            let namespaced = capabilities.scope == kube::core::discovery::Scope::Namespaced;
            Ok(Some(Served { resource, namespaced }))
        }
        Err(kube::Error::Discovery(_)) => Ok(None),
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(None),
        Err(error) => Err(error.into()),
    }
}

async fn act(inventory: &Inventory, object: &Object, step: Step) -> Result<(), Error> {
    let Some(served) = inventory.kinds.get(&object.kind) else { return Ok(()) };
    let api = inventory.api(&served, object.namespace.as_deref());
    match step {
        Step::Nothing => Ok(()),
        Step::LookAt(uids) => {
            inventory.look(uids);
            Ok(())
        }
        Step::Delete(policy) => {
            tracing::debug!(kind = %served.resource.kind, name = %object.name, "nobody owns it any more: deleting it");
            // The version makes sure that its owners are as they were judged.
            let preconditions = Preconditions {
                uid: Some(object.uid.clone()),
                resource_version: Some(object.version.clone()),
            };
            let params =
                DeleteParams { propagation_policy: Some(policy), ..DeleteParams::default() };
            settled(
                inventory,
                object,
                api.delete(&object.name, &params.preconditions(preconditions)).await.map(drop),
            )
        }
        Step::KeepOwners(owners) => {
            let patch = json!({"metadata": {
                "uid": object.uid, "resourceVersion": object.version, "ownerReferences": owners,
            }});
            settled(inventory, object, patch_metadata(&api, object, patch).await)
        }
        Step::RemoveFinalizer(name) => remove_finalizer(inventory, &api, object, name).await,
        Step::Orphan(dependents) => {
            for uid in dependents {
                orphan(inventory, &uid, &object.uid).await?;
            }
            // The watch tells when none is left; then the finalizer goes.
            inventory.look(vec![object.uid.clone()]);
            Ok(())
        }
    }
}

async fn patch_metadata(
    api: &Api<DynamicObject>,
    object: &Object,
    patch: serde_json::Value,
) -> Result<(), kube::Error> {
    api.patch_metadata(&object.name, &PatchParams::default(), &Patch::Merge(patch)).await.map(drop)
}

/// That the object is gone is a success; the graph then forgets it.
fn settled(
    inventory: &Inventory,
    object: &Object,
    result: Result<(), kube::Error>,
) -> Result<(), Error> {
    match result {
        Err(kube::Error::Api(status)) if status.is_not_found() => {
            inventory.remove(&object.uid, true);
            Ok(())
        }
        other => other.map_err(Error::from),
    }
}

async fn remove_finalizer(
    inventory: &Inventory,
    api: &Api<DynamicObject>,
    object: &Object,
    name: &str,
) -> Result<(), Error> {
    let finalizers: Vec<_> =
        object.finalizers.iter().filter(|finalizer| *finalizer != name).collect();
    let patch = json!({"metadata": {
        "uid": object.uid, "resourceVersion": object.version, "finalizers": finalizers,
    }});
    settled(inventory, object, patch_metadata(api, object, patch).await)
}

/// Takes `owner` out of the owners of the object with `uid`.
async fn orphan(inventory: &Inventory, uid: &str, owner: &str) -> Result<(), Error> {
    let Some(dependent) = inventory.graph.lock().get(uid).cloned() else { return Ok(()) };
    let Some(served) = inventory.kinds.get(&dependent.kind) else { return Ok(()) };
    let owners: Vec<_> = dependent.owners.iter().filter(|it| it.uid != owner).cloned().collect();
    let patch = json!({"metadata": {
        "uid": dependent.uid, "resourceVersion": dependent.version, "ownerReferences": owners,
    }});
    let api = inventory.api(&served, dependent.namespace.as_deref());
    match api.patch_metadata(&dependent.name, &PatchParams::default(), &Patch::Merge(patch)).await {
        Ok(patched) => {
            if let Some(object) = Object::new(dependent.kind.clone(), patched.metadata) {
                inventory.observe(object);
            }
            Ok(())
        }
        Err(error) => settled(inventory, &dependent, Err(error)),
    }
}
