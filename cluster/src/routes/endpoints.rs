//! From EndpointSlices to what can be dialled.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, SocketAddr},
};

use domain::endpoint::{EndpointSpec, Revision, Serving};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};

use super::mirror::{Changed, Key, Mirror};
use crate::{labels, watch::News};

/// All slices, and which workload each one belongs to.
#[derive(Debug, Default)]
pub struct Slices {
    mirror: Mirror<EndpointSlice>,
    /// Keys of slices, by namespace and name of the workload.
    of: HashMap<Key, BTreeSet<Key>>,
}

/// What the slices of one workload say.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Found {
    pub endpoints: Vec<EndpointSpec>,
    /// Of the first slice that says one.
    pub app_protocol: Option<String>,
}

impl Slices {
    pub fn is_synced(&self) -> bool {
        self.mirror.is_synced()
    }

    /// Gives the workloads whose endpoints may have changed; `None` is all of them.
    pub fn apply(&mut self, news: News<EndpointSlice>) -> Option<Vec<Key>> {
        match self.mirror.learn(news) {
            Changed::Nothing => Some(Vec::new()),
            Changed::All => {
                self.of.clear();
                for (key, slice) in self.mirror.entries() {
                    if let Some(workload) = workload_of(slice) {
                        self.of.entry(workload).or_default().insert(key.clone());
                    }
                }
                None
            }
            Changed::One { key, before, .. } => {
                let before = before.as_ref().and_then(workload_of);
                let after = self.mirror.get(&key).and_then(workload_of);
                if let Some(workload) = &before
                    && let Some(slices) = self.of.get_mut(workload)
                {
                    slices.remove(&key);
                    if slices.is_empty() {
                        self.of.remove(workload);
                    }
                }
                if let Some(workload) = &after {
                    self.of.entry(workload.clone()).or_default().insert(key);
                }
                let mut stale: Vec<_> = before.into_iter().chain(after).collect();
                stale.dedup();
                Some(stale)
            }
        }
    }

    pub fn find(&self, workload: &Key) -> Found {
        let mut found = Found::default();
        let keys = self.of.get(workload).into_iter().flatten();
        for slice in keys.filter_map(|key| self.mirror.get(key)) {
            let ports = slice.ports.iter().flatten();
            let Some(port) = ports.into_iter().find(|p| p.name.as_deref() == Some("http")) else {
                continue;
            };
            let Some(number) = port.port.and_then(|port| u16::try_from(port).ok()) else {
                continue;
            };
            let revision = match label(slice, labels::REVISION) {
                Some(labels::CANARY) => Revision::Canary,
                _ => Revision::Stable,
            };
            found.endpoints.extend(
                slice.endpoints.iter().flat_map(|endpoint| specs(endpoint, number, revision)),
            );
            found.app_protocol = found.app_protocol.or_else(|| port.app_protocol.clone());
        }
        found
    }
}

fn label<'s>(slice: &'s EndpointSlice, name: &str) -> Option<&'s str> {
    let labels: &BTreeMap<String, String> = slice.metadata.labels.as_ref()?;
    labels.get(name).map(String::as_str)
}

fn workload_of(slice: &EndpointSlice) -> Option<Key> {
    let workload = label(slice, labels::WORKLOAD)?;
    Some((slice.metadata.namespace.clone()?, workload.to_owned()))
}

/// The addresses of an endpoint that is of use. Absent conditions have the API's defaults: ready,
/// serving as ready as it is, and not terminating.
fn specs(endpoint: &Endpoint, port: u16, revision: Revision) -> impl Iterator<Item = EndpointSpec> {
    let conditions = endpoint.conditions.clone().unwrap_or_default();
    let ready = conditions.ready.unwrap_or(true);
    let serving = match conditions.terminating.unwrap_or(false) {
        true if conditions.serving.unwrap_or(ready) => Some(Serving::Draining),
        false if ready => Some(Serving::Ready),
        _ => None,
    };
    let pod = endpoint.target_ref.as_ref().and_then(|pod| pod.uid.clone());
    let addresses = endpoint.addresses.iter().filter_map(|address| address.parse::<IpAddr>().ok());
    addresses.filter_map(move |ip| {
        let address = SocketAddr::new(ip, port);
        Some(EndpointSpec { address, pod: pod.clone(), serving: serving?, revision })
    })
}
