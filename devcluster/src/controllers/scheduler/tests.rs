use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{
    Affinity, Container, Node, NodeAffinity, NodeCondition, NodeSelector, NodeSelectorRequirement,
    NodeSelectorTerm, PersistentVolume, PersistentVolumeClaim, PersistentVolumeClaimVolumeSource,
    PersistentVolumeSpec, Pod, Taint, Toleration, Volume, VolumeNodeAffinity,
};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use proptest::prelude::*;

use super::plan::{Action, Observed, SELECTED_NODE, plan};
use crate::controllers::names::set;
use crate::controllers::pods::build::{pod, set_phase};

fn quantities(cpu: &str, memory: &str) -> BTreeMap<String, Quantity> {
    [("cpu".to_owned(), Quantity(cpu.into())), ("memory".to_owned(), Quantity(memory.into()))]
        .into()
}

fn node(name: &str, cpu: &str) -> Node {
    let mut node = Node::default();
    node.metadata.name = Some(name.into());
    set(&mut node.metadata.labels, "kubernetes.io/hostname", name);
    let status = node.status.get_or_insert_default();
    status.allocatable = Some(quantities(cpu, "8Gi"));
    status.conditions = Some(vec![NodeCondition {
        type_: "Ready".into(),
        status: "True".into(),
        ..NodeCondition::default()
    }]);
    node
}

fn guest(name: &str, cpu: &str) -> Pod {
    let mut it = pod("a", name);
    let mut container = Container::default();
    container.resources.get_or_insert_default().requests = Some(quantities(cpu, "1Gi"));
    it.spec.as_mut().unwrap().containers = vec![container];
    it
}

#[derive(Default)]
struct World {
    pods: Vec<Pod>,
    nodes: Vec<Node>,
    claims: Vec<PersistentVolumeClaim>,
    volumes: Vec<PersistentVolume>,
    classes: Vec<StorageClass>,
    assumed: HashMap<String, String>,
}

impl World {
    fn plan(&self) -> Vec<Action> {
        fn share<K: Clone>(objects: &[K]) -> Vec<Arc<K>> {
            objects.iter().cloned().map(Arc::new).collect()
        }
        plan(&Observed {
            pods: &share(&self.pods),
            nodes: &share(&self.nodes),
            claims: &share(&self.claims),
            volumes: &share(&self.volumes),
            classes: &share(&self.classes),
            assumed: &self.assumed,
        })
    }

    /// What happens, as "pod -> node", "claim @ node" or the reason why not.
    fn said(&self) -> Vec<String> {
        let name = |meta: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta| {
            meta.name.clone().unwrap()
        };
        self.plan()
            .into_iter()
            .map(|action| match action {
                Action::Bind { pod, node } => format!("{} -> {node}", name(&pod.metadata)),
                Action::SelectNode { claim, node } => format!("{} @ {node}", name(&claim.metadata)),
                Action::Unschedulable { message, .. } => message,
            })
            .collect()
    }
}

#[test]
fn a_pod_goes_where_it_fits_and_most_is_left() {
    let mut world =
        World { nodes: vec![node("small", "1"), node("large", "4")], ..World::default() };
    world.pods = vec![guest("x", "500m")];
    assert_eq!(world.said(), ["x -> large"]);
    world.pods = vec![guest("x", "8")];
    assert_eq!(world.said(), ["0/2 nodes are available: 2 Insufficient cpu."]);
    world.nodes.clear();
    assert_eq!(world.said(), ["no nodes available to schedule pods"]);
}

#[test]
fn running_and_assumed_pods_take_room_and_ended_ones_do_not() {
    let mut world = World { nodes: vec![node("n", "1")], ..World::default() };
    let mut running = guest("running", "800m");
    running.spec.as_mut().unwrap().node_name = Some("n".into());
    world.pods = vec![running.clone(), guest("x", "500m")];
    assert_eq!(world.said(), ["0/1 nodes are available: 1 Insufficient cpu."]);
    set_phase(&mut running, "Succeeded");
    world.pods[0] = running;
    assert_eq!(world.said(), ["x -> n"]);
    world.pods = vec![guest("first", "800m"), guest("second", "800m")];
    world.assumed.insert("uid-first".into(), "n".into());
    assert_eq!(world.said(), ["0/1 nodes are available: 1 Insufficient cpu."]);
}

#[test]
fn unfit_nodes_are_named_with_their_reasons() {
    let mut sick = node("sick", "4");
    sick.status.as_mut().unwrap().conditions.as_mut().unwrap()[0].status = "Unknown".into();
    let mut closed = node("closed", "4");
    closed.spec.get_or_insert_default().unschedulable = Some(true);
    let mut tainted = node("tainted", "4");
    tainted.spec.get_or_insert_default().taints =
        Some(vec![Taint { key: "gpu".into(), effect: "NoSchedule".into(), ..Taint::default() }]);
    let mut world = World {
        nodes: vec![sick, closed, tainted],
        pods: vec![guest("x", "1")],
        ..World::default()
    };
    let reasons = "1 node(s) had untolerated taint {gpu: }, 1 node(s) were not ready, 1 node(s) were unschedulable";
    assert_eq!(world.said(), [format!("0/3 nodes are available: {reasons}.")]);
    let toleration = Toleration {
        key: Some("gpu".into()),
        operator: Some("Exists".into()),
        ..Toleration::default()
    };
    world.pods[0].spec.as_mut().unwrap().tolerations = Some(vec![toleration]);
    assert_eq!(world.said(), ["x -> tainted"]);
}

#[test]
fn selectors_and_affinity_are_honoured() {
    let mut world = World {
        nodes: vec![node("a", "4"), node("b", "4")],
        pods: vec![guest("x", "1")],
        ..World::default()
    };
    let selector: BTreeMap<_, _> = [("kubernetes.io/hostname".to_owned(), "b".to_owned())].into();
    world.pods[0].spec.as_mut().unwrap().node_selector = Some(selector);
    assert_eq!(world.said(), ["x -> b"]);
    let term = NodeSelectorTerm {
        match_expressions: Some(vec![NodeSelectorRequirement {
            key: "kubernetes.io/hostname".into(),
            operator: "NotIn".into(),
            values: Some(vec!["b".into()]),
        }]),
        match_fields: None,
    };
    world.pods[0].spec.as_mut().unwrap().affinity = Some(Affinity {
        node_affinity: Some(NodeAffinity {
            required_during_scheduling_ignored_during_execution: Some(NodeSelector {
                node_selector_terms: vec![term],
            }),
            ..NodeAffinity::default()
        }),
        ..Affinity::default()
    });
    assert_eq!(
        world.said(),
        ["0/2 nodes are available: 2 node(s) didn't match Pod's node affinity/selector."]
    );
}

fn with_claim() -> World {
    let mut world = World {
        nodes: vec![node("a", "4"), node("b", "8")],
        pods: vec![guest("x", "1")],
        ..World::default()
    };
    let source = PersistentVolumeClaimVolumeSource { claim_name: "home".into(), read_only: None };
    world.pods[0].spec.as_mut().unwrap().volumes =
        Some(vec![Volume { persistent_volume_claim: Some(source), ..Volume::default() }]);
    let mut class = StorageClass {
        volume_binding_mode: Some("WaitForFirstConsumer".into()),
        ..StorageClass::default()
    };
    class.metadata.name = Some("local".into());
    world.classes = vec![class];
    let mut claim = PersistentVolumeClaim::default();
    claim.metadata.name = Some("home".into());
    claim.metadata.namespace = Some("a".into());
    claim.spec.get_or_insert_default().storage_class_name = Some("local".into());
    world.claims = vec![claim];
    world
}

#[test]
fn a_pod_waits_for_its_volume_on_the_node_that_was_chosen() {
    let mut world = with_claim();
    assert_eq!(world.said(), ["home @ b"]);
    set(&mut world.claims[0].metadata.annotations, SELECTED_NODE, "a");
    assert!(world.plan().is_empty(), "it is made on the node chosen earlier");
    world.nodes.remove(0);
    assert_eq!(world.said(), ["home @ b"], "that node is gone");
    let mut volume = PersistentVolume::default();
    volume.metadata.name = Some("pv".into());
    let term = NodeSelectorTerm {
        match_expressions: Some(vec![NodeSelectorRequirement {
            key: "kubernetes.io/hostname".into(),
            operator: "In".into(),
            values: Some(vec!["a".into()]),
        }]),
        match_fields: None,
    };
    volume.spec = Some(PersistentVolumeSpec {
        node_affinity: Some(VolumeNodeAffinity {
            required: Some(NodeSelector { node_selector_terms: vec![term] }),
        }),
        ..PersistentVolumeSpec::default()
    });
    world.volumes = vec![volume];
    world.claims[0].spec.as_mut().unwrap().volume_name = Some("pv".into());
    world.claims[0].status.get_or_insert_default().phase = Some("Bound".into());
    assert_eq!(
        world.said(),
        ["0/1 nodes are available: 1 node(s) had volume node affinity conflict."]
    );
    world.nodes.push(node("a", "2"));
    assert_eq!(world.said(), ["x -> a"]);
}

#[test]
fn a_missing_or_unbound_claim_is_named() {
    let mut world = with_claim();
    world.classes[0].volume_binding_mode = Some("Immediate".into());
    assert_eq!(
        world.said(),
        ["0/2 nodes are available: pod has unbound immediate PersistentVolumeClaims."]
    );
    world.claims.clear();
    assert_eq!(
        world.said(),
        ["0/2 nodes are available: persistentvolumeclaim \"home\" not found."]
    );
}

#[test]
fn gated_foreign_and_deleted_pods_are_left_alone() {
    let mut world = World {
        nodes: vec![node("n", "4")],
        pods: vec![guest("a", "1"), guest("b", "1")],
        ..World::default()
    };
    world.pods[0].spec.as_mut().unwrap().scheduler_name = Some("other".into());
    world.pods[1].spec.as_mut().unwrap().scheduling_gates = Some(vec![Default::default()]);
    assert!(world.plan().is_empty());
}

proptest! {
    /// No node is ever promised more than it has, and a pod that fits somewhere is placed.
    #[test]
    fn nodes_are_never_overfilled(
        nodes in proptest::collection::vec(0..8_u32, 0..4),
        pods in proptest::collection::vec(0..6_u32, 0..12),
    ) {
        let world = World {
            nodes: nodes.iter().enumerate().map(|(index, cpu)| node(&format!("n{index}"), &cpu.to_string())).collect(),
            pods: pods.iter().enumerate().map(|(index, cpu)| guest(&format!("p{index:02}"), &cpu.to_string())).collect(),
            ..World::default()
        };
        let mut left: HashMap<String, (u32, u32)> =
            nodes.iter().enumerate().map(|(index, cpu)| (format!("n{index}"), (*cpu, 8))).collect();
        let actions = world.plan();
        prop_assert_eq!(actions.len(), pods.len());
        for (action, cpu) in actions.iter().zip(&pods) {
            match action {
                Action::Bind { node, .. } => {
                    let (free, memory) = left.get_mut(node).unwrap();
                    prop_assert!(*free >= *cpu && *memory >= 1);
                    (*free, *memory) = (*free - cpu, *memory - 1);
                }
                Action::Unschedulable { .. } => {
                    prop_assert!(!left.values().any(|(free, memory)| free >= cpu && *memory >= 1));
                }
                Action::SelectNode { .. } => prop_assert!(false, "there are no claims"),
            }
        }
    }
}
