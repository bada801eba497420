//! The Node object and its Lease: that the node is there, where, and alive.

pub mod machine;

use super::address::Cidr;
use super::{NodeError, NodeOptions};
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::{
    DaemonEndpoint, Node, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeSpec, NodeStatus,
    ObjectReference, Taint,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference, Time};
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::runtime::wait::await_condition;
use serde_json::json;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

const LEASE_NAMESPACE: &str = "kube-node-lease";
const LEASE_SECONDS: i32 = 40;
pub const LEASE_PERIOD: Duration = Duration::from_secs(10);
pub const STATUS_PERIOD: Duration = Duration::from_secs(60);
const RETRY: Duration = Duration::from_secs(1);
const DEADLINE: Duration = Duration::from_secs(10);
/// A holder that lives renews its lease within this time.
const LEASE_PATIENCE: Duration = Duration::from_secs(15);
/// How long the last word about the lease may take.
const RELEASE_DEADLINE: Duration = Duration::from_secs(2);
/// Pods a node takes, fewer than a /24 has addresses.
const MAX_PODS: u32 = 200;

/// The node towards the API.
pub struct Registration {
    client: kube::Client,
    name: String,
    /// Who holds the lease: this data directory, in each of its lives.
    holder: String,
    uid: String,
    labels: BTreeMap<String, String>,
    /// Key and value of the taint that the node is to have.
    taint: Option<(String, String)>,
    has_range: bool,
}

/// What the node's status says beyond the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Readiness {
    /// It waits for `spec.podCIDR`.
    Starting,
    Ready {
        address: IpAddr,
        kubelet_port: u16,
    },
}

fn is_code(error: &kube::Error, code: u16) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == code)
}

async fn in_time<T>(call: impl Future<Output = kube::Result<T>>) -> kube::Result<T> {
    match tokio::time::timeout(DEADLINE, call).await {
        Ok(result) => result,
        Err(_) => Err(kube::Error::Service("no answer in time".into())),
    }
}

impl Registration {
    /// Makes the Node object, or takes over the one of an earlier life. Tries until the API server answers.
    pub async fn begin(
        client: kube::Client,
        options: &NodeOptions,
        holder: &str,
        shutdown: &CancellationToken,
    ) -> Result<Self, NodeError> {
        let labels = BTreeMap::from([
            ("kubernetes.io/hostname".to_owned(), options.name.clone()),
            ("kubernetes.io/os".to_owned(), machine::os().to_owned()),
            ("kubernetes.io/arch".to_owned(), machine::arch().to_owned()),
        ]);
        let mut this = Self {
            client,
            name: options.name.clone(),
            holder: holder.to_owned(),
            uid: String::new(),
            labels,
            taint: options.only.as_ref().map(|only| only.taint.clone()),
            has_range: false,
        };
        let mut other = None;
        loop {
            let begun = match this.is_held(&mut other).await {
                Ok(true) => Err(NodeError::Taken { node: this.name.clone() })?,
                Ok(false) if other.is_some() => None,
                Ok(false) => Some(this.ensure().await),
                Err(error) => Some(Err(error)),
            };
            match begun {
                None => {}
                Some(Ok(())) => return Ok(this),
                // Refused for what it is, not for the moment: trying again would not help.
                Some(Err(error))
                    if [401, 403, 422].into_iter().any(|code| is_code(&error, code)) =>
                {
                    return Err(NodeError::Register { node: this.name, error: Box::new(error) });
                }
                Some(Err(error)) => {
                    tracing::warn!(node = this.name, %error, "the node cannot register yet; trying again")
                }
            }
            tokio::select! {
                () = tokio::time::sleep(RETRY) => {}
                () = shutdown.cancelled() => return Err(NodeError::Stopped),
            }
        }
    }

    fn nodes(&self) -> Api<Node> {
        Api::all(self.client.clone())
    }

    /// Whether another process runs this node, which shows in its renewing the lease. `other` is what was seen of
    /// one that has not done so yet, and when; none once the lease is free.
    async fn is_held(&self, other: &mut Option<(LeaseSpec, Instant)>) -> kube::Result<bool> {
        let lease = in_time(self.leases().get_opt(&self.name)).await?;
        let spec = lease.and_then(|lease| lease.spec).unwrap_or_default();
        let is_free = spec.holder_identity.as_ref().is_none_or(|holder| *holder == self.holder)
            || is_stale(&spec, Timestamp::now());
        match other {
            _ if is_free => *other = None,
            None => {
                tracing::info!(
                    node = self.name,
                    "another process ran this node; looking whether it still does"
                );
                *other = Some((spec, Instant::now()));
            }
            Some((seen, _)) if seen.renew_time != spec.renew_time => return Ok(true),
            Some((_, since)) if since.elapsed() > LEASE_PATIENCE => *other = None,
            Some(_) => {}
        }
        Ok(false)
    }

    async fn ensure(&mut self) -> kube::Result<()> {
        let nodes = self.nodes();
        let node = match in_time(nodes.get_opt(&self.name)).await? {
            Some(old) => {
                let mut patch = json!({"metadata": {"labels": self.labels}});
                let taints = old.spec.and_then(|spec| spec.taints).unwrap_or_default();
                if let Some(taint) = self.taint(&taints) {
                    let others = taints.into_iter().filter(|it| it.key != taint.key);
                    let taints: Vec<_> = others.chain([taint.clone()]).collect();
                    // The whole list is written, so nobody may have changed it meanwhile.
                    patch["metadata"]["resourceVersion"] = json!(old.metadata.resource_version);
                    patch["spec"] = json!({"taints": taints});
                }
                in_time(nodes.patch(&self.name, &PatchParams::default(), &Patch::Merge(patch)))
                    .await?
            }
            None => {
                let metadata = ObjectMeta {
                    name: Some(self.name.clone()),
                    labels: Some(self.labels.clone()),
                    ..ObjectMeta::default()
                };
                let taints = self.taint(&[]).map(|taint| vec![taint]);
                let spec = NodeSpec { taints, ..NodeSpec::default() };
                let node = Node { metadata, spec: Some(spec), status: None };
                in_time(nodes.create(&PostParams::default(), &node)).await?
            }
        };
        self.has_range = range(&node).is_some();
        self.uid = node.metadata.uid.unwrap_or_default();
        Ok(())
    }

    /// The node's taint, if it is not among those that it has.
    fn taint(&self, has: &[Taint]) -> Option<Taint> {
        let effect = "NoSchedule";
        let (key, value) = self.taint.clone()?;
        let taint =
            Taint { key, value: Some(value), effect: effect.to_owned(), ..Taint::default() };
        (!has.contains(&taint)).then_some(taint)
    }

    /// Whether the node has its range of pod addresses already.
    pub fn has_range(&self) -> bool {
        self.has_range
    }

    pub fn reference(&self) -> ObjectReference {
        ObjectReference {
            kind: Some("Node".to_owned()),
            name: Some(self.name.clone()),
            // Kubelets use the name here, and kubectl describe looks for it.
            uid: Some(self.name.clone()),
            ..ObjectReference::default()
        }
    }

    /// Waits at most `patience` for the control plane to give the node a range for its pods.
    pub async fn pod_cidr(&self, patience: Duration) -> Option<Cidr> {
        let has_range = |node: Option<&Node>| node.is_some_and(|node| range(node).is_some());
        let wait = await_condition(self.nodes(), &self.name, has_range);
        let node = tokio::time::timeout(patience, wait).await.ok()?.ok()??;
        match range(&node)?.parse() {
            Ok(cidr) => Some(cidr),
            Err(error) => {
                tracing::warn!(%error, "the node's podCIDR cannot be used");
                None
            }
        }
    }

    /// Writes the node's status, keeping what others wrote there.
    pub async fn write_status(&mut self, readiness: &Readiness) -> kube::Result<()> {
        for _ in 0..5 {
            let Some(mut node) = in_time(self.nodes().get_opt(&self.name)).await? else {
                self.ensure().await?;
                continue;
            };
            let status =
                status(node.status.take().unwrap_or_default(), readiness, Timestamp::now());
            node.status = Some(status);
            match in_time(self.nodes().replace_status(&self.name, &PostParams::default(), &node))
                .await
            {
                Ok(_) => return Ok(()),
                Err(error) if is_code(&error, 409) => {}
                Err(error) => return Err(error),
            }
        }
        Err(kube::Error::Service("the node's status changes all the time".into()))
    }

    fn leases(&self) -> Api<Lease> {
        Api::namespaced(self.client.clone(), LEASE_NAMESPACE)
    }

    /// Lets another process run the node at once.
    async fn release_lease(&self) {
        let release = Patch::Merge(json!({"spec": {"holderIdentity": null}}));
        let (leases, params) = (self.leases(), PatchParams::default());
        let written = leases.patch(&self.name, &params, &release);
        if !matches!(tokio::time::timeout(RELEASE_DEADLINE, written).await, Ok(Ok(_))) {
            tracing::debug!(node = self.name, "the lease is not given back; it will run out");
        }
    }

    async fn renew_lease(&mut self) -> kube::Result<()> {
        let leases = self.leases();
        let now = MicroTime(Timestamp::now());
        let renew = json!({"spec": {
            "holderIdentity": self.holder, "renewTime": now, "leaseDurationSeconds": LEASE_SECONDS,
        }});
        match in_time(leases.patch(&self.name, &PatchParams::default(), &Patch::Merge(renew))).await
        {
            Ok(_) => return Ok(()),
            Err(error) if is_code(&error, 404) => {}
            Err(error) => return Err(error),
        }
        let lease = Lease {
            metadata: ObjectMeta {
                name: Some(self.name.clone()),
                namespace: Some(LEASE_NAMESPACE.to_owned()),
                owner_references: Some(vec![OwnerReference {
                    api_version: "v1".to_owned(),
                    kind: "Node".to_owned(),
                    name: self.name.clone(),
                    uid: self.uid.clone(),
                    ..OwnerReference::default()
                }]),
                ..ObjectMeta::default()
            },
            spec: Some(LeaseSpec {
                holder_identity: Some(self.holder.clone()),
                lease_duration_seconds: Some(LEASE_SECONDS),
                renew_time: Some(now),
                ..LeaseSpec::default()
            }),
        };
        in_time(leases.create(&PostParams::default(), &lease)).await.map(drop)
    }

    /// Keeps lease and status fresh until shutdown.
    pub async fn keep(mut self, readiness: Readiness, shutdown: CancellationToken) {
        let mut lease = tokio::time::interval(LEASE_PERIOD);
        let mut next_status = Instant::now() + STATUS_PERIOD;
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return self.release_lease().await,
                _ = lease.tick() => {
                    if let Err(error) = self.renew_lease().await {
                        tracing::warn!(node = self.name, %error, "the node's lease cannot be renewed");
                        // Its namespace may only be about to be made.
                        lease.reset_after(RETRY);
                    }
                }
                () = tokio::time::sleep_until(next_status) => {
                    let wait = match self.write_status(&readiness).await {
                        Ok(()) => STATUS_PERIOD,
                        Err(error) => {
                            tracing::warn!(node = self.name, %error, "the node's status cannot be written");
                            RETRY
                        }
                    };
                    next_status = Instant::now() + wait;
                }
            }
        }
    }
}

/// Whether the lease has run out.
fn is_stale(lease: &LeaseSpec, now: Timestamp) -> bool {
    let age = lease.renew_time.as_ref().map(|renewed| now.duration_since(renewed.0));
    age.is_none_or(|age| age.as_secs() > i64::from(LEASE_SECONDS))
}

fn range(node: &Node) -> Option<&str> {
    node.spec.as_ref()?.pod_cidr.as_deref().filter(|cidr| !cidr.is_empty())
}

/// Allocatable quantities, for the downward API.
pub fn allocatable() -> BTreeMap<String, String> {
    machine::capacity(MAX_PODS)
}

fn status(old: NodeStatus, readiness: &Readiness, now: Timestamp) -> NodeStatus {
    let quantities: BTreeMap<String, Quantity> = machine::capacity(MAX_PODS)
        .into_iter()
        .map(|(name, value)| (name, Quantity(value)))
        .collect();
    let (addresses, endpoints, ready) = match readiness {
        Readiness::Starting => (
            None,
            None,
            (
                "False",
                "KubeletNotReady",
                "the node waits for a range of pod addresses (spec.podCIDR)",
            ),
        ),
        Readiness::Ready { address, kubelet_port } => {
            let internal =
                NodeAddress { type_: "InternalIP".to_owned(), address: address.to_string() };
            let endpoint = DaemonEndpoint { port: i32::from(*kubelet_port) };
            let endpoints = NodeDaemonEndpoints { kubelet_endpoint: Some(endpoint) };
            (Some(vec![internal]), Some(endpoints), ("True", "KubeletReady", "the node runs pods"))
        }
    };
    let mut conditions = old.conditions.unwrap_or_default();
    let mut set = |type_: &str, (status, reason, message): (&str, &str, &str)| {
        let transition = conditions
            .iter()
            .find(|c| c.type_ == type_ && c.status == status)
            .and_then(|c| c.last_transition_time.clone())
            .unwrap_or(Time(now));
        conditions.retain(|c| c.type_ != type_);
        conditions.push(NodeCondition {
            type_: type_.to_owned(),
            status: status.to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message.to_owned()),
            last_heartbeat_time: Some(Time(now)),
            last_transition_time: Some(transition),
        });
    };
    set(
        "MemoryPressure",
        ("False", "KubeletHasSufficientMemory", "the node does not measure memory pressure"),
    );
    set(
        "DiskPressure",
        ("False", "KubeletHasNoDiskPressure", "the node does not measure disk pressure"),
    );
    set(
        "PIDPressure",
        ("False", "KubeletHasSufficientPID", "the node does not measure process id pressure"),
    );
    set("Ready", ready);
    NodeStatus {
        conditions: Some(conditions),
        capacity: Some(quantities.clone()),
        allocatable: Some(quantities),
        node_info: Some(machine::system_info()),
        addresses,
        daemon_endpoints: endpoints,
        ..old
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readiness_keeps_its_time_and_others_conditions_stay() {
        let at = |s| Timestamp::from_second(s).unwrap();
        let network = NodeCondition {
            type_: "NetworkUnavailable".to_owned(),
            status: "False".to_owned(),
            ..NodeCondition::default()
        };
        let old = NodeStatus { conditions: Some(vec![network]), ..NodeStatus::default() };
        let starting = status(old, &Readiness::Starting, at(1));
        let ready = Readiness::Ready { address: "127.0.0.1".parse().unwrap(), kubelet_port: 10250 };
        let first = status(starting, &ready, at(5));
        let second = status(first, &ready, at(9));
        let find = |type_: &str| {
            second.conditions.iter().flatten().find(|c| c.type_ == type_).unwrap().clone()
        };
        assert_eq!(find("Ready").last_transition_time, Some(Time(at(5))));
        assert_eq!(find("Ready").last_heartbeat_time, Some(Time(at(9))));
        assert_eq!(find("NetworkUnavailable").status, "False");
        assert_eq!(second.addresses.as_ref().map(Vec::len), Some(1));
        assert_eq!(second.conditions.map(|c| c.len()), Some(5));
    }
}
