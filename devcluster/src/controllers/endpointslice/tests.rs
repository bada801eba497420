use std::sync::Arc;

use k8s_openapi::api::core::v1::{
    Container, ContainerPort, Pod, Service, ServicePort, ServiceSpec,
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use proptest::prelude::*;

use super::plan::{Action, MANAGED_BY, SERVICE_NAME, plan};
use crate::controllers::names::{label, set};
use crate::controllers::pods::build::{at, pod, set_phase, set_ready};

fn service(target: IntOrString) -> Service {
    let mut service = Service {
        spec: Some(ServiceSpec {
            selector: Some([("app".to_owned(), "echo".to_owned())].into()),
            ports: Some(vec![ServicePort {
                port: 80,
                name: Some("http".into()),
                target_port: Some(target),
                ..ServicePort::default()
            }]),
            cluster_ip: Some("None".into()),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    };
    service.metadata.name = Some("echo".into());
    service.metadata.namespace = Some("a".into());
    service.metadata.uid = Some("svc".into());
    set(&mut service.metadata.labels, "team", "red");
    service
}

fn backend(name: &str, ip: &str, port: i32) -> Pod {
    let mut it = pod("a", name);
    set(&mut it.metadata.labels, "app", "echo");
    it.status.as_mut().unwrap().pod_ip = Some(ip.into());
    let port = ContainerPort {
        name: Some("web".into()),
        container_port: port,
        ..ContainerPort::default()
    };
    let spec = it.spec.as_mut().unwrap();
    spec.containers = vec![Container { ports: Some(vec![port]), ..Container::default() }];
    spec.node_name = Some("node".into());
    set_ready(&mut it, at(0));
    it
}

/// Applies the plan until nothing is left to do; returns the slices.
fn settle(
    service: &Service,
    pods: &[Pod],
    mut slices: Vec<Arc<EndpointSlice>>,
) -> Vec<Arc<EndpointSlice>> {
    let pods: Vec<_> = pods.iter().cloned().map(Arc::new).collect();
    let mut count = slices.len();
    let actions = plan(service, &pods, &slices, || {
        count += 1;
        format!("x{count}")
    });
    for action in actions {
        match action {
            Action::Create(slice) => slices.push(Arc::new(*slice)),
            Action::Update(slice) => {
                slices.retain(|held| held.metadata.name != slice.metadata.name);
                slices.push(Arc::new(*slice));
            }
            Action::Delete(slice) => {
                slices.retain(|held| held.metadata.name != slice.metadata.name)
            }
        }
    }
    assert_eq!(plan(service, &pods, &slices, || "again".into()), [], "one step is enough");
    slices
}

#[test]
fn a_ready_pod_is_listed_with_its_reference_and_port() {
    let slices = settle(&service(IntOrString::Int(8080)), &[backend("p", "127.77.0.2", 1)], vec![]);
    let slice = &slices[0];
    assert_eq!(label(&slice.metadata, SERVICE_NAME), Some("echo"));
    assert_eq!(label(&slice.metadata, MANAGED_BY), Some("endpointslice-controller.k8s.io"));
    assert_eq!(label(&slice.metadata, "service.kubernetes.io/headless"), Some(""));
    assert_eq!(label(&slice.metadata, "team"), Some("red"));
    assert_eq!(slice.metadata.owner_references.as_ref().unwrap()[0].uid, "svc");
    let port = &slice.ports.as_ref().unwrap()[0];
    assert_eq!(
        (port.name.as_deref(), port.port, port.protocol.as_deref()),
        (Some("http"), Some(8080), Some("TCP"))
    );
    let endpoint = &slice.endpoints[0];
    assert_eq!(endpoint.addresses, ["127.77.0.2"]);
    assert_eq!(endpoint.node_name.as_deref(), Some("node"));
    assert_eq!(endpoint.conditions.as_ref().unwrap().ready, Some(true));
    let target = endpoint.target_ref.as_ref().unwrap();
    assert_eq!(
        (target.kind.as_deref(), target.name.as_deref(), target.uid.as_deref()),
        (Some("Pod"), Some("p"), Some("uid-p"))
    );
}

#[test]
fn conditions_follow_readiness_and_termination() {
    let service = service(IntOrString::Int(1));
    let mut leaving = backend("leaving", "127.77.0.2", 1);
    leaving.metadata.deletion_timestamp = Some(Time(at(0)));
    let mut starting = backend("starting", "127.77.0.3", 1);
    starting.status.as_mut().unwrap().conditions = None;
    let mut ended = backend("ended", "127.77.0.4", 1);
    set_phase(&mut ended, "Failed");
    let pods = [leaving, starting, ended];
    let states = |service: &Service| {
        let slices = settle(service, &pods, vec![]);
        let of = |it: &k8s_openapi::api::discovery::v1::Endpoint| {
            let conditions = it.conditions.clone().unwrap();
            [conditions.ready, conditions.serving, conditions.terminating].map(Option::unwrap)
        };
        slices[0].endpoints.iter().map(of).collect::<Vec<_>>()
    };
    assert_eq!(states(&service), [[false, true, true], [false, false, false]]);
    let mut always = service.clone();
    always.spec.as_mut().unwrap().publish_not_ready_addresses = Some(true);
    assert_eq!(states(&always), [[true, true, true], [true, false, false]]);
}

#[test]
fn named_ports_are_looked_up_in_each_pod() {
    let pods = [
        backend("a", "127.77.0.2", 8080),
        backend("b", "127.77.0.3", 9090),
        backend("c", "127.77.0.4", 8080),
    ];
    let slices = settle(&service(IntOrString::String("web".into())), &pods, vec![]);
    let of = |port| {
        slices.iter().find(|slice| slice.ports.as_ref().unwrap()[0].port == Some(port)).unwrap()
    };
    assert_eq!((of(8080).endpoints.len(), of(9090).endpoints.len()), (2, 1));
}

#[test]
fn pods_of_a_headless_service_have_their_host_name() {
    let mut it = backend("lab-0", "127.77.0.2", 1);
    let spec = it.spec.as_mut().unwrap();
    (spec.hostname, spec.subdomain) = (Some("lab-0".into()), Some("echo".into()));
    let slices = settle(&service(IntOrString::Int(1)), &[it.clone()], vec![]);
    assert_eq!(slices[0].endpoints[0].hostname.as_deref(), Some("lab-0"));
    it.spec.as_mut().unwrap().subdomain = Some("other".into());
    let slices = settle(&service(IntOrString::Int(1)), &[it], vec![]);
    assert_eq!(slices[0].endpoints[0].hostname, None);
}

#[test]
fn without_pods_there_is_one_empty_slice_and_without_selector_none() {
    let mut service = service(IntOrString::Int(1));
    let slices = settle(&service, &[], vec![]);
    assert_eq!((slices.len(), slices[0].endpoints.len()), (1, 0));
    service.spec.as_mut().unwrap().selector = None;
    assert!(settle(&service, &[], slices).is_empty());
}

proptest! {
    /// Every pod with an address is in exactly one slice, however the pods change.
    #[test]
    fn each_pod_is_listed_once(steps in proptest::collection::vec(proptest::collection::btree_map(0..250_u8, 0..3_i32, 0..250), 1..4)) {
        let service = service(IntOrString::String("web".into()));
        let mut slices = vec![];
        for step in steps {
            let pods: Vec<_> = step.iter().map(|(n, port)| backend(&format!("p{n:03}"), &format!("127.77.0.{n}"), 8000 + port)).collect();
            slices = settle(&service, &pods, slices);
            let mut listed: Vec<_> = slices.iter().flat_map(|slice| &slice.endpoints).map(|it| it.addresses[0].clone()).collect();
            let mut wanted: Vec<_> = step.keys().map(|n| format!("127.77.0.{n}")).collect();
            listed.sort();
            wanted.sort();
            prop_assert_eq!(listed, wanted);
            prop_assert!(slices.iter().all(|slice| slice.endpoints.len() <= 100));
        }
    }
}
