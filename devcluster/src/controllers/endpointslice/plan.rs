//! Which EndpointSlices a Service should have: a pure function of the service and the pods.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, Service, ServicePort};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::controllers::events::reference;
use crate::controllers::names::{bounded_name, owned_by, set};
use crate::controllers::pods;

pub const SERVICE_NAME: &str = "kubernetes.io/service-name";
pub const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
pub const MANAGER: &str = "endpointslice-controller.k8s.io";
const HEADLESS: &str = "service.kubernetes.io/headless";
/// As kube-controller-manager's `--max-endpoints-per-slice`.
const MAX_ENDPOINTS: usize = 100;

#[derive(Debug, PartialEq)]
pub enum Action {
    Create(Box<EndpointSlice>),
    Update(Box<EndpointSlice>),
    Delete(Arc<EndpointSlice>),
}

/// Whether this service's slices are made from its selector.
pub fn is_selected(service: &Service, pod: &Pod) -> bool {
    let selector =
        service.spec.as_ref().and_then(|spec| spec.selector.as_ref()).filter(|it| !it.is_empty());
    let labels = pod.metadata.labels.as_ref();
    selector.is_some_and(|selector| {
        selector
            .iter()
            .all(|(name, value)| labels.and_then(|labels| labels.get(name)) == Some(value))
    })
}

/// `pods` are all of the namespace, `slices` those of this service that this controller manages.
/// `suffix` gives new slices unique names.
pub fn plan(
    service: &Service,
    pods: &[Arc<Pod>],
    slices: &[Arc<EndpointSlice>],
    mut suffix: impl FnMut() -> String,
) -> Vec<Action> {
    if service.metadata.deletion_timestamp.is_some() {
        return Vec::new();
    }
    let mut held: Vec<&Arc<EndpointSlice>> =
        slices.iter().filter(|slice| slice.metadata.deletion_timestamp.is_none()).collect();
    held.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
    let mut actions = Vec::new();
    for wanted in desired(service, pods) {
        let matching = held.iter().position(|slice| {
            slice.address_type == wanted.address_type
                && slice.ports.clone().unwrap_or_default()
                    == wanted.ports.clone().unwrap_or_default()
        });
        // Another one's ports may change, its address type may not.
        let position = matching
            .or_else(|| held.iter().position(|slice| slice.address_type == wanted.address_type));
        match position.map(|position| held.remove(position)) {
            None => actions.push(Action::Create(Box::new(name(service, wanted, &suffix())))),
            Some(slice) if is_same(slice, &wanted) => {}
            Some(slice) => {
                let mut changed = (**slice).clone();
                changed.endpoints = wanted.endpoints;
                changed.ports = wanted.ports;
                changed.metadata.labels = wanted.metadata.labels;
                changed.metadata.owner_references = wanted.metadata.owner_references;
                actions.push(Action::Update(Box::new(changed)));
            }
        }
    }
    actions.extend(held.into_iter().cloned().map(Action::Delete));
    actions
}

fn is_same(held: &EndpointSlice, wanted: &EndpointSlice) -> bool {
    held.endpoints == wanted.endpoints
        && held.ports.clone().unwrap_or_default() == wanted.ports.clone().unwrap_or_default()
        && held.metadata.labels == wanted.metadata.labels
        && held.metadata.owner_references == wanted.metadata.owner_references
}

fn name(service: &Service, mut slice: EndpointSlice, suffix: &str) -> EndpointSlice {
    let base = service.metadata.name.as_deref().unwrap_or_default();
    slice.metadata.name = Some(bounded_name(base, &format!("-{suffix}")));
    slice.metadata.generate_name = Some(format!("{base}-"));
    slice
}

fn desired(service: &Service, pods: &[Arc<Pod>]) -> Vec<EndpointSlice> {
    let Some(spec) = &service.spec else { return Vec::new() };
    if spec.type_.as_deref() == Some("ExternalName")
        || spec.selector.as_ref().is_none_or(BTreeMap::is_empty)
    {
        return Vec::new();
    }
    let families = spec.ip_families.clone().filter(|families| !families.is_empty());
    let families = families.unwrap_or_else(|| vec!["IPv4".to_owned()]);
    families.iter().flat_map(|family| of_family(service, pods, family)).collect()
}

fn of_family(service: &Service, pods: &[Arc<Pod>], family: &str) -> Vec<EndpointSlice> {
    // Named target ports may differ from pod to pod: one group for each set of numbers.
    let mut groups: Vec<(Vec<EndpointPort>, Vec<Endpoint>)> = Vec::new();
    for pod in pods.iter().filter(|pod| is_selected(service, pod) && !pods::is_finished(pod)) {
        let Some(address) = address(pod, family) else { continue };
        let ports = ports(service, pod);
        let endpoint = endpoint(service, pod, address);
        match groups.iter_mut().find(|(held, _)| *held == ports) {
            Some((_, endpoints)) => endpoints.push(endpoint),
            None => groups.push((ports, vec![endpoint])),
        }
    }
    // A service without pods still has one slice, an empty one.
    if groups.is_empty() {
        groups.push((Vec::new(), Vec::new()));
    }
    let mut slices = Vec::new();
    for (ports, endpoints) in groups {
        let mut chunks: Vec<Vec<Endpoint>> =
            endpoints.chunks(MAX_ENDPOINTS).map(<[_]>::to_vec).collect();
        if chunks.is_empty() {
            chunks.push(Vec::new());
        }
        slices.extend(chunks.into_iter().map(|endpoints| EndpointSlice {
            address_type: family.to_owned(),
            metadata: metadata(service),
            ports: Some(ports.clone()).filter(|ports| !ports.is_empty()),
            endpoints,
        }));
    }
    slices
}

fn metadata(service: &Service) -> ObjectMeta {
    let mut labels = service.metadata.labels.clone();
    set(&mut labels, SERVICE_NAME, service.metadata.name.clone().unwrap_or_default());
    set(&mut labels, MANAGED_BY, MANAGER);
    if service.spec.as_ref().and_then(|spec| spec.cluster_ip.as_deref()) == Some("None") {
        set(&mut labels, HEADLESS, "");
    }
    ObjectMeta {
        namespace: service.metadata.namespace.clone(),
        labels,
        owner_references: Some(vec![owned_by(service)]),
        ..ObjectMeta::default()
    }
}

fn address(pod: &Pod, family: &str) -> Option<String> {
    let status = pod.status.as_ref()?;
    let all = status.pod_ips.iter().flatten().map(|ip| &ip.ip).chain(&status.pod_ip);
    let mut of_family = all.filter(|ip| match ip.parse() {
        Ok(IpAddr::V4(_)) => family == "IPv4",
        Ok(IpAddr::V6(_)) => family == "IPv6",
        Err(_) => false,
    });
    of_family.next().cloned()
}

fn endpoint(service: &Service, pod: &Pod, address: String) -> Endpoint {
    let spec = service.spec.as_ref();
    let serving = pods::is_ready(pod);
    let terminating = pods::is_terminating(pod);
    let always = spec.and_then(|spec| spec.publish_not_ready_addresses) == Some(true);
    let pod_spec = pod.spec.as_ref();
    let in_domain =
        pod_spec.and_then(|spec| spec.subdomain.as_ref()) == service.metadata.name.as_ref();
    let mut target = reference(pod);
    target.api_version = None;
    target.resource_version = None;
    Endpoint {
        addresses: vec![address],
        conditions: Some(EndpointConditions {
            ready: Some(always || (serving && !terminating)),
            serving: Some(serving),
            terminating: Some(terminating),
        }),
        hostname: pod_spec
            .and_then(|spec| spec.hostname.clone())
            .filter(|name| in_domain && !name.is_empty()),
        node_name: pods::node_name(pod).map(str::to_owned),
        target_ref: Some(target),
        ..Endpoint::default()
    }
}

fn ports(service: &Service, pod: &Pod) -> Vec<EndpointPort> {
    let all = service.spec.as_ref().and_then(|spec| spec.ports.as_deref()).unwrap_or_default();
    all.iter()
        .filter_map(|port| {
            Some(EndpointPort {
                name: Some(port.name.clone().unwrap_or_default()),
                protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".to_owned())),
                port: Some(target_port(port, pod)?),
                app_protocol: port.app_protocol.clone(),
            })
        })
        .collect()
}

/// The number behind `targetPort`; a name is looked up in the pod's containers.
fn target_port(port: &ServicePort, pod: &Pod) -> Option<i32> {
    let name = match &port.target_port {
        None | Some(IntOrString::Int(0)) => return Some(port.port),
        Some(IntOrString::Int(number)) => return Some(*number),
        Some(IntOrString::String(name)) if name.is_empty() => return Some(port.port),
        Some(IntOrString::String(name)) => name,
    };
    let protocol = port.protocol.as_deref().unwrap_or("TCP");
    let spec = pod.spec.as_ref()?;
    let sidecars = spec
        .init_containers
        .iter()
        .flatten()
        .filter(|it| it.restart_policy.as_deref() == Some("Always"));
    spec.containers
        .iter()
        .chain(sidecars)
        .flat_map(|container| container.ports.iter().flatten())
        .find(|it| {
            it.name.as_ref() == Some(name) && it.protocol.as_deref().unwrap_or("TCP") == protocol
        })
        .map(|it| it.container_port)
}
