//! From the objects of the cluster to a route table.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use domain::{
    access::AccessPolicy,
    activity::Tracker,
    route::{AgentSpec, Progress, Route, RouteSpec, RouteTable, State, Step},
    workload::{WorkloadKind, WorkloadRef},
};
use jiff::Timestamp;
use k8s_openapi::api::discovery::v1::EndpointSlice;

use super::{Options, mirror::Mirror};
use crate::{
    labels,
    resources::{App, Phase, Project, WorkloadResource, Workspace},
};

/// Used when `wakeHold` cannot be read, which the schema prevents.
const DEFAULT_WAKE_HOLD: Duration = Duration::from_secs(60);

pub struct Cluster {
    pub projects: Mirror<Project>,
    pub workspaces: Mirror<Workspace>,
    pub apps: Mirror<App>,
    pub endpoints: Mirror<EndpointSlice>,
}

/// Ready addresses by namespace and workload.
type Endpoints<'a> = HashMap<(&'a str, &'a str), Vec<SocketAddr>>;

impl Cluster {
    pub fn is_synced(&self) -> bool {
        self.projects.is_synced()
            && self.workspaces.is_synced()
            && self.apps.is_synced()
            && self.endpoints.is_synced()
    }

    pub fn contains(&self, workload: &WorkloadRef) -> bool {
        let (project, name) = (workload.project.as_str(), workload.name.as_str());
        match workload.kind {
            WorkloadKind::Workspace => self.workspaces.get(project, name).is_some(),
            WorkloadKind::App => self.apps.get(project, name).is_some(),
        }
    }

    pub fn route_table(&self, options: &Options, tracker: &Tracker) -> RouteTable {
        let endpoints = self.ready_endpoints();
        // The older of two workloads with one host keeps it.
        let mut routes: Vec<(Age, Arc<Route>)> = Vec::new();
        for workspace in self.workspaces.iter() {
            routes.extend(self.route(workspace, options, &endpoints, tracker));
        }
        for app in self.apps.iter() {
            routes.extend(self.route(app, options, &endpoints, tracker));
        }
        routes.sort_by(|(a, _), (b, _)| a.cmp(b));
        RouteTable::new(routes.into_iter().map(|(_, route)| route))
    }

    fn route<W: WorkloadResource>(
        &self,
        object: &W,
        options: &Options,
        endpoints: &Endpoints<'_>,
        tracker: &Tracker,
    ) -> Option<(Age, Arc<Route>)> {
        let meta = object.meta();
        if meta.deletion_timestamp.is_some() {
            return None;
        }
        let workload = object.workload()?;
        let key = (workload.project.as_str(), workload.name.as_str());
        let agent = object.status().and_then(|status| status.agent.as_ref());
        let spec = RouteSpec {
            host: format!("{}.{}", workload.host_label(), options.base_domain),
            access: self.access(object, &workload),
            state: state(object),
            endpoints: endpoints.get(&key).into_iter().flatten().map(|&a| a.into()).collect(),
            routing: Default::default(),
            protocol: object.protocol().into(),
            wake_hold: object.idle().wake_hold.duration().unwrap_or(DEFAULT_WAKE_HOLD),
            traffic: object.traffic().into(),
            agent: agent.map(|a| AgentSpec { port: a.port, host_key: a.host_key.clone() }),
            workload: workload.clone(),
        };
        let created = meta.creation_timestamp.as_ref().map(|time| time.0);
        let age = (created, workload.kind, meta.uid.clone());
        Some((age, Arc::new(Route::new(spec, tracker.cell(&workload), None))))
    }

    fn access<W: WorkloadResource>(&self, object: &W, workload: &WorkloadRef) -> AccessPolicy {
        let sharing = object.sharing();
        // A name that is none lets nobody in.
        let mut users: BTreeSet<_> = sharing.users.iter().filter_map(|u| u.parse().ok()).collect();
        let mut groups: BTreeSet<String> = sharing.groups.iter().cloned().collect();
        if sharing.project {
            let project = self.projects.get("", workload.project.as_str());
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

    fn ready_endpoints(&self) -> Endpoints<'_> {
        let mut ready: Endpoints<'_> = HashMap::new();
        for slice in self.endpoints.iter() {
            let Some((key, port)) = service_of(slice) else { continue };
            let addresses = slice.endpoints.iter().filter(|endpoint| {
                endpoint.conditions.as_ref().and_then(|c| c.ready).unwrap_or(true)
            });
            let addresses = addresses
                .flat_map(|endpoint| &endpoint.addresses)
                .filter_map(|address| address.parse::<IpAddr>().ok());
            ready.entry(key).or_default().extend(addresses.map(|ip| SocketAddr::new(ip, port)));
        }
        for addresses in ready.values_mut() {
            addresses.sort_unstable();
            addresses.dedup();
        }
        ready
    }
}

/// Creation time, then kind and uid so that the order is the same in every gateway.
type Age = (Option<Timestamp>, WorkloadKind, Option<String>);

fn service_of(slice: &EndpointSlice) -> Option<((&str, &str), u16)> {
    let labels: &BTreeMap<String, String> = slice.metadata.labels.as_ref()?;
    let workload = labels.get(labels::WORKLOAD)?;
    let namespace = slice.metadata.namespace.as_deref()?;
    let port = slice.ports.iter().flatten().find(|port| port.name.as_deref() == Some("http"))?;
    Some(((namespace, workload), u16::try_from(port.port?).ok()?))
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
