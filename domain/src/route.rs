//! The route table: an immutable snapshot of what exists, replaced at each change of the cluster.

pub mod describe;
mod shards;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use serde::Serialize;

use self::shards::Shards;
use crate::{
    access::AccessPolicy,
    activity::Cell,
    endpoint::{Endpoint, EndpointSpec, Serving},
    name::WorkloadName,
    traffic::Traffic,
    upstream::Routing,
    workload::{Protocol, WorkloadKind, WorkloadRef},
};

/// Everything that is known of a route when it is built.
#[derive(Debug, Clone, PartialEq)]
pub struct RouteSpec {
    pub workload: WorkloadRef,
    /// Exact host name, lower case, without port.
    pub host: String,
    pub access: AccessPolicy,
    pub state: State,
    /// Addresses of pods that are ready, and of those that drain.
    pub endpoints: Vec<EndpointSpec>,
    pub routing: Routing,
    pub protocol: Protocol,
    /// How long an API call is held while the workload wakes.
    pub wake_hold: Duration,
    pub traffic: Traffic,
    pub agent: Option<AgentSpec>,
}

/// How the SSH agent in the pod is reached: on the pod's address, with a pinned host key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentSpec {
    pub port: u16,
    /// In OpenSSH's one-line form, `ssh-ed25519 AAAA...`.
    pub host_key: String,
}

/// What the controller last said of the workload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "phase")]
pub enum State {
    Starting {
        progress: Progress,
    },
    Running,
    Sleeping,
    /// Stopped by a person (`spec.replicas: 0`): traffic does not wake it.
    Stopped,
    Failed {
        message: String,
    },
}

/// How far a start has come, for the waiting page and SSH's standard error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Progress {
    pub step: Step,
    /// One sentence for a person.
    pub message: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Step {
    Requested,
    Scheduled,
    Starting,
    AlmostReady,
}

/// One workload that can be reached. Its endpoints are private on purpose: only a
/// [`crate::access::Grant`] hands them out.
#[derive(Debug)]
pub struct Route {
    spec: RouteSpec,
    /// Of those that are ready, sorted.
    addresses: Vec<SocketAddr>,
    endpoints: Vec<Endpoint>,
    activity: Arc<Cell>,
}

impl Route {
    /// `before` is the workload's route until now: the state of its endpoints is carried over.
    pub fn new(mut spec: RouteSpec, activity: Arc<Cell>, before: Option<&Route>) -> Self {
        // Of an address that is listed twice, the pod that is ready counts.
        spec.endpoints.sort_by_key(|e| (e.address, e.serving == Serving::Draining));
        spec.endpoints.dedup_by_key(|endpoint| endpoint.address);
        let ready = spec.endpoints.iter().filter(|e| e.serving == Serving::Ready);
        let addresses = ready.map(|endpoint| endpoint.address).collect();
        let same = |old: &&Route| {
            old.spec.workload == spec.workload && old.spec.routing.protocol == spec.routing.protocol
        };
        let before = before.filter(same).map_or(&[][..], |old| &old.endpoints);
        let endpoints = spec.endpoints.iter().map(|e| Endpoint::new(e.clone(), before)).collect();
        Self { spec, addresses, endpoints, activity }
    }

    /// Whether nothing that is known of it differs.
    pub fn is_same(&self, other: &Route) -> bool {
        self.spec == other.spec
    }

    pub fn workload(&self) -> &WorkloadRef {
        &self.spec.workload
    }

    pub fn host(&self) -> &str {
        &self.spec.host
    }

    pub fn protocol(&self) -> Protocol {
        self.spec.protocol
    }

    pub fn routing(&self) -> &Routing {
        &self.spec.routing
    }

    pub fn traffic(&self) -> &Traffic {
        &self.spec.traffic
    }

    pub(crate) fn spec(&self) -> &RouteSpec {
        &self.spec
    }

    pub(crate) fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    pub(crate) fn endpoints(&self) -> &[Endpoint] {
        &self.endpoints
    }

    pub(crate) fn activity(&self) -> &Arc<Cell> {
        &self.activity
    }
}

/// A snapshot: whoever serves requests never sees one change, only be replaced. Copies share what
/// is the same in them.
#[derive(Debug, Default, Clone)]
pub struct RouteTable {
    by_host: Shards<String, Arc<Route>>,
    by_ssh_name: Shards<WorkloadName, Vec<Arc<Route>>>,
    /// False until the first full listing of the cluster has arrived. A gateway answers 503 until
    /// then, and not a 404 that somebody would believe.
    synced: bool,
}

impl RouteTable {
    /// Of two routes with one host the first wins: the caller orders them by age.
    pub fn new(routes: impl IntoIterator<Item = Arc<Route>>) -> Self {
        let mut table = Self { synced: true, ..Self::default() };
        for route in routes {
            if table.by_host(route.host()).is_none() {
                table.put(route);
            }
        }
        table
    }

    /// In place of what had the host before.
    pub fn put(&mut self, route: Arc<Route>) {
        self.remove(route.host());
        if route.workload().kind == WorkloadKind::Workspace {
            let name = &route.workload().name;
            let mut same_name = self.workspaces(name.as_str()).to_vec();
            same_name.push(route.clone());
            self.by_ssh_name.insert(name.clone(), same_name);
        }
        self.by_host.insert(route.host().to_owned(), route);
    }

    pub fn remove(&mut self, host: &str) -> Option<Arc<Route>> {
        let route = self.by_host.remove(host)?;
        let name = &route.workload().name;
        let mut same_name = self.workspaces(name.as_str()).to_vec();
        same_name.retain(|other| other.host() != host);
        if same_name.is_empty() {
            self.by_ssh_name.remove(name);
        } else {
            self.by_ssh_name.insert(name.clone(), same_name);
        }
        Some(route)
    }

    pub fn is_synced(&self) -> bool {
        self.synced
    }

    pub fn len(&self) -> usize {
        self.by_host.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Exact match; `host` is lower case and without port.
    pub fn by_host(&self, host: &str) -> Option<&Arc<Route>> {
        self.by_host.get(host)
    }

    /// Workspaces of that name, in all projects.
    pub fn workspaces(&self, name: &str) -> &[Arc<Route>] {
        self.by_ssh_name.get(name).map_or(&[], Vec::as_slice)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Arc<Route>> {
        self.by_host.values()
    }
}
