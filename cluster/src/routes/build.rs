//! From the objects of the cluster to a route table, of which only what changed is made anew.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use domain::{
    access::AccessPolicy,
    activity::Tracker,
    route::{AgentSpec, Progress, Route, RouteSpec, RouteTable, State, Step},
    workload::{WorkloadKind, WorkloadRef},
};
use jiff::Timestamp;

use super::{
    Change, Options,
    endpoints::Slices,
    mirror::{Changed, Key, Mirror},
};
use crate::{
    resources::{App, Phase, Project, WorkloadResource, Workspace},
    scope::{Flip, Projects},
};

/// Used when `wakeHold` cannot be read, which the schema prevents.
const DEFAULT_WAKE_HOLD: Duration = Duration::from_secs(60);

/// Everything that routes are made of, and the routes.
pub struct Cluster {
    options: Options,
    tracker: Arc<Tracker>,
    scopes: Projects,
    projects: Mirror<Project>,
    workspaces: Mirror<Workspace>,
    apps: Mirror<App>,
    slices: Slices,
    stale: Stale,
    table: RouteTable,
}

/// The workloads, by namespace and name, whose routes are not what they should be any more.
enum Stale {
    All,
    Some(BTreeSet<Key>),
}

impl Cluster {
    pub fn new(options: Options, tracker: Arc<Tracker>) -> Self {
        Self {
            scopes: Projects::new(options.scope.clone()),
            options,
            tracker,
            projects: Mirror::default(),
            workspaces: Mirror::default(),
            apps: Mirror::default(),
            slices: Slices::default(),
            stale: Stale::All,
            table: RouteTable::new([]),
        }
    }

    pub fn apply(&mut self, change: Change) {
        match change {
            Change::Scope(event) => match self.scopes.learn(event) {
                Flip::None => {}
                Flip::All => self.stale = Stale::All,
                Flip::Namespace(namespace) => self.mark_all_in(&namespace),
            },
            Change::Project(event) => match self.projects.learn(event) {
                Changed::Nothing => {}
                Changed::All => self.stale = Stale::All,
                // A project shares its name with its namespace, and its members are in the routes.
                Changed::One { key: (_, project), .. } => self.mark_all_in(&project),
            },
            Change::Workspace(event) => {
                let changed = self.workspaces.learn(event);
                self.workload_changed(changed);
            }
            Change::App(event) => {
                let changed = self.apps.learn(event);
                self.workload_changed(changed);
            }
            Change::Endpoints(event) => match self.slices.apply(event) {
                Some(keys) => self.mark(keys),
                None => self.stale = Stale::All,
            },
        }
    }

    fn workload_changed<W: WorkloadResource>(&mut self, changed: Changed<W>) {
        match changed {
            Changed::Nothing => {}
            Changed::All => self.stale = Stale::All,
            Changed::One { key, before, gone } => {
                if let Some(workload) = before.filter(|_| gone).and_then(|b| b.workload()) {
                    self.tracker.forget(&workload);
                }
                self.mark([key]);
            }
        }
    }

    fn mark(&mut self, keys: impl IntoIterator<Item = Key>) {
        if let Stale::Some(stale) = &mut self.stale {
            stale.extend(keys);
        }
    }

    fn mark_all_in(&mut self, namespace: &str) {
        let workspaces = self.workspaces.keys_in(namespace);
        let all: Vec<_> = workspaces.chain(self.apps.keys_in(namespace)).cloned().collect();
        self.mark(all);
    }

    fn is_synced(&self) -> bool {
        self.scopes.is_synced()
            && self.projects.is_synced()
            && self.workspaces.is_synced()
            && self.apps.is_synced()
            && self.slices.is_synced()
    }

    /// The table after what was applied. `None` when no route has changed, and until everything has
    /// been listed once.
    pub fn next(&mut self) -> Option<RouteTable> {
        if !self.is_synced() {
            return None;
        }
        match std::mem::replace(&mut self.stale, Stale::Some(BTreeSet::new())) {
            Stale::All => {
                self.make_all();
                Some(self.table.clone())
            }
            Stale::Some(keys) => {
                let mut changed = false;
                for key in &keys {
                    changed |= self.make(key);
                }
                changed.then(|| self.table.clone())
            }
        }
    }

    fn make_all(&mut self) {
        let keys = self.workspaces.entries().map(|(key, _)| key);
        let keys = keys.chain(self.apps.entries().map(|(key, _)| key));
        let keys: BTreeSet<Key> = keys.cloned().collect();
        let routes: Vec<_> = keys.iter().filter_map(|key| self.route(key)).collect();
        self.table = RouteTable::new(routes);
        let (workspaces, apps) = (&self.workspaces, &self.apps);
        self.tracker.retain(|workload| {
            let key = (workload.project.to_string(), workload.name.to_string());
            match workload.kind {
                WorkloadKind::Workspace => workspaces.get(&key).is_some(),
                WorkloadKind::App => apps.get(&key).is_some(),
            }
        });
    }

    /// Makes one host's route anew. False when it is as it was.
    fn make(&mut self, key: &Key) -> bool {
        match self.route(key) {
            Some(route) => {
                let same = self.table.by_host(route.host()).is_some_and(|old| old.is_same(&route));
                if !same {
                    self.table.put(route);
                }
                !same
            }
            None => host(key, &self.options).is_some_and(|host| self.table.remove(&host).is_some()),
        }
    }

    /// The older of two workloads with one host keeps it.
    fn route(&self, key: &Key) -> Option<Arc<Route>> {
        if !self.scopes.has(&key.0) {
            return None;
        }
        let workspace = self.workspaces.get(key).and_then(|object| self.route_of(object, key));
        let app = self.apps.get(key).and_then(|object| self.route_of(object, key));
        let older = workspace.into_iter().chain(app).min_by(|(a, _), (b, _)| a.cmp(b));
        older.map(|(_, route)| route)
    }

    fn route_of<W: WorkloadResource>(&self, object: &W, key: &Key) -> Option<(Age, Arc<Route>)> {
        let meta = object.meta();
        if meta.deletion_timestamp.is_some() {
            return None;
        }
        let workload = object.workload()?;
        let agent = object.status().and_then(|status| status.agent.as_ref());
        let found = self.slices.find(key);
        let host = host_of(&workload, &self.options);
        let before = self.table.by_host(&host).cloned();
        let spec = RouteSpec {
            host,
            access: self.access(object, &workload),
            state: state(object),
            endpoints: found.endpoints,
            routing: object.routing(found.app_protocol.as_deref()),
            protocol: object.protocol().into(),
            wake_hold: object.idle().wake_hold.duration().unwrap_or(DEFAULT_WAKE_HOLD),
            traffic: object.traffic().into(),
            agent: agent.map(|a| AgentSpec { port: a.port, host_key: a.host_key.clone() }),
            workload: workload.clone(),
        };
        let created = meta.creation_timestamp.as_ref().map(|time| time.0);
        let age = (created, workload.kind, meta.uid.clone());
        let cell = self.tracker.cell(&workload);
        Some((age, Arc::new(Route::new(spec, cell, before.as_deref()))))
    }

    fn access<W: WorkloadResource>(&self, object: &W, workload: &WorkloadRef) -> AccessPolicy {
        let sharing = object.sharing();
        // A name that is none lets nobody in.
        let mut users: BTreeSet<_> = sharing.users.iter().filter_map(|u| u.parse().ok()).collect();
        let mut groups: BTreeSet<String> = sharing.groups.iter().cloned().collect();
        if sharing.project {
            let project = self.projects.get(&(String::new(), workload.project.to_string()));
            for member in project.iter().flat_map(|project| &project.spec.members) {
                users.extend(member.user.iter().filter_map(|user| user.parse().ok()));
                groups.extend(member.group.clone());
            }
        }
        AccessPolicy {
            owner: object.owner().parse().ok(),
            users,
            groups,
            everyone: sharing.everyone,
        }
    }
}

/// Creation time, then kind and uid so that the order is the same in every gateway.
type Age = (Option<Timestamp>, WorkloadKind, Option<String>);

fn host_of(workload: &WorkloadRef, options: &Options) -> String {
    format!("{}.{}", workload.host_label(), options.base_domain)
}

/// The same for every kind of workload.
fn host((project, name): &Key, options: &Options) -> Option<String> {
    let (project, name) = (project.parse().ok()?, name.parse().ok()?);
    let workload = WorkloadRef { kind: WorkloadKind::App, project, name };
    Some(host_of(&workload, options))
}

fn state<W: WorkloadResource>(object: &W) -> State {
    let starting = |step, message: &str| State::Starting {
        progress: Progress { step, message: message.to_owned() },
    };
    if object.replicas() == 0 {
        return State::Stopped;
    }
    if object.is_asleep() {
        return State::Sleeping;
    }
    let Some(status) = object.status() else {
        return starting(Step::Requested, "Waiting for the controller");
    };
    match status.phase {
        Some(Phase::Running) => State::Running,
        Some(Phase::Failed) => State::Failed {
            message: status.message.clone().unwrap_or_else(|| "It failed to start".to_owned()),
        },
        // The wake or the start has been asked for, and the controller has not got to it yet.
        Some(Phase::Sleeping | Phase::Stopped) | None => starting(Step::Requested, "Waking up"),
        Some(Phase::Starting) => match &status.progress {
            Some(progress) => starting(step(&progress.step), &progress.message),
            None => starting(Step::Requested, "Starting"),
        },
    }
}

fn step(text: &str) -> Step {
    match text {
        "Scheduled" => Step::Scheduled,
        "Starting" => Step::Starting,
        "AlmostReady" => Step::AlmostReady,
        _ => Step::Requested,
    }
}

#[cfg(test)]
mod tests;
