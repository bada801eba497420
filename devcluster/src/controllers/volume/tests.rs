use std::sync::Arc;

use k8s_openapi::api::core::v1::{
    ObjectReference, PersistentVolume, PersistentVolumeClaim, PersistentVolumeClaimSpec,
    PersistentVolumeClaimVolumeSource, PersistentVolumeSpec, Volume,
};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::plan::{
    BIND_COMPLETED, ClaimStep, PROVISIONERS, Phase, claim_reference, claim_step, volume_phase,
};
use super::protection::{FINALIZER, finalizers, uses};
use crate::controllers::names::set;
use crate::controllers::pods::build::{at, pod, set_phase};
use crate::controllers::scheduler::SELECTED_NODE;

fn claim(class: Option<&str>) -> PersistentVolumeClaim {
    let mut claim = PersistentVolumeClaim::default();
    claim.metadata.name = Some("home-lab-0".into());
    claim.metadata.namespace = Some("alice".into());
    claim.metadata.uid = Some("c".into());
    let spec = PersistentVolumeClaimSpec {
        storage_class_name: class.map(str::to_owned),
        ..Default::default()
    };
    claim.spec = Some(spec);
    claim.spec.as_mut().unwrap().resources.get_or_insert_default().requests =
        Some([("storage".to_owned(), Quantity("5Gi".into()))].into());
    claim.status.get_or_insert_default().phase = Some("Pending".into());
    claim
}

fn class(name: &str, mode: &str) -> Arc<StorageClass> {
    let mut class =
        StorageClass { provisioner: "dormouse.dev/local".into(), ..StorageClass::default() };
    class.metadata.name = Some(name.into());
    class.volume_binding_mode = Some(mode.into());
    Arc::new(class)
}

fn volume(name: &str, size: &str, class: &str) -> PersistentVolume {
    let mut volume = PersistentVolume::default();
    volume.metadata.name = Some(name.into());
    volume.spec = Some(PersistentVolumeSpec {
        capacity: Some([("storage".to_owned(), Quantity(size.into()))].into()),
        storage_class_name: Some(class.into()),
        ..PersistentVolumeSpec::default()
    });
    volume
}

#[test]
fn a_claim_for_the_first_consumer_is_provisioned_once_its_node_is_known() {
    let classes = [class("local", "WaitForFirstConsumer")];
    let mut it = claim(Some("local"));
    assert!(
        matches!(claim_step(&it, &[], &classes), ClaimStep::Tell(note) if note.reason == "WaitForFirstConsumer")
    );
    set(&mut it.metadata.annotations, SELECTED_NODE, "node");
    assert!(
        matches!(claim_step(&it, &[], &classes), ClaimStep::Provision(who, _) if who == "dormouse.dev/local")
    );
    set(&mut it.metadata.annotations, PROVISIONERS[0], "dormouse.dev/local");
    assert_eq!(claim_step(&it, &[], &classes), ClaimStep::Nothing);
    // The provisioner made the volume, reserved for the claim.
    let mut made = volume("pv", "5Gi", "local");
    made.spec.as_mut().unwrap().claim_ref = Some(claim_reference(&it));
    let made = Arc::new(made);
    assert_eq!(
        claim_step(&it, std::slice::from_ref(&made), &classes),
        ClaimStep::Bind { volume: made.clone(), by_controller: false }
    );
    it.spec.as_mut().unwrap().volume_name = Some("pv".into());
    set(&mut it.metadata.annotations, BIND_COMPLETED, "yes");
    let ClaimStep::Status(status, None) = claim_step(&it, std::slice::from_ref(&made), &classes)
    else {
        panic!("no status")
    };
    assert_eq!(status.phase.as_deref(), Some("Bound"));
    assert_eq!(status.capacity.as_ref().unwrap()["storage"].0, "5Gi");
    it.status = Some(*status);
    assert_eq!(claim_step(&it, std::slice::from_ref(&made), &classes), ClaimStep::Nothing);
    assert!(
        matches!(claim_step(&it, &[], &classes), ClaimStep::Status(status, _) if status.phase.as_deref() == Some("Lost"))
    );
}

#[test]
fn half_a_binding_is_completed() {
    let mut it = claim(Some("x"));
    it.spec.as_mut().unwrap().volume_name = Some("pv".into());
    let free = Arc::new(volume("pv", "5Gi", "x"));
    assert!(matches!(claim_step(&it, &[free], &[]), ClaimStep::Bind { by_controller: true, .. }));
    let mut reserved = volume("pv", "5Gi", "x");
    reserved.spec.as_mut().unwrap().claim_ref = Some(claim_reference(&it));
    assert!(matches!(
        claim_step(&it, &[Arc::new(reserved)], &[]),
        ClaimStep::Bind { by_controller: false, .. }
    ));
}

#[test]
fn the_smallest_volume_that_is_large_enough_is_taken() {
    let mut taken = volume("taken", "5Gi", "x");
    taken.spec.as_mut().unwrap().claim_ref =
        Some(ObjectReference { name: Some("other".into()), ..Default::default() });
    let volumes: Vec<_> = [
        volume("small", "1Gi", "x"),
        volume("large", "20Gi", "x"),
        volume("fits", "6Gi", "x"),
        volume("foreign", "5Gi", "y"),
        taken,
    ]
    .into_iter()
    .map(Arc::new)
    .collect();
    let ClaimStep::Bind { volume, by_controller: true } =
        claim_step(&claim(Some("x")), &volumes, &[class("x", "Immediate")])
    else {
        panic!("not bound");
    };
    assert_eq!(volume.metadata.name.as_deref(), Some("fits"));
}

#[test]
fn a_claim_without_class_gets_the_default_one() {
    let mut default = (*class("local", "WaitForFirstConsumer")).clone();
    set(&mut default.metadata.annotations, "storageclass.kubernetes.io/is-default-class", "true");
    let classes = [class("other", "Immediate"), Arc::new(default)];
    assert_eq!(claim_step(&claim(None), &[], &classes), ClaimStep::SetClass("local".into()));
    // An empty class means: none, on purpose.
    assert!(matches!(claim_step(&claim(Some("")), &[], &classes), ClaimStep::Tell(_)));
}

#[test]
fn a_volume_is_released_only_when_its_very_claim_is_gone() {
    let mut it = claim(Some("x"));
    let mut held = volume("pv", "5Gi", "x");
    assert_eq!(volume_phase(&held, None), Some(Phase::Available));
    held.spec.as_mut().unwrap().claim_ref = Some(claim_reference(&it));
    assert_eq!(volume_phase(&held, Some(&it)), None, "the claim takes it first");
    it.spec.as_mut().unwrap().volume_name = Some("pv".into());
    assert_eq!(volume_phase(&held, Some(&it)), Some(Phase::Bound));
    it.metadata.uid = Some("a later one".into());
    assert_eq!(volume_phase(&held, Some(&it)), Some(Phase::Released));
    assert_eq!(volume_phase(&held, None), Some(Phase::Released));
    held.spec.as_mut().unwrap().claim_ref.as_mut().unwrap().uid = None;
    assert_eq!(volume_phase(&held, None), Some(Phase::Available), "reserved for one to come");
}

#[test]
fn a_claim_in_use_stays_until_its_last_pod_is_gone() {
    let mut it = claim(None).metadata;
    assert_eq!(finalizers(&it, true), Some(vec![FINALIZER.to_owned()]));
    it.finalizers = Some(vec!["other".into(), FINALIZER.into()]);
    assert_eq!(finalizers(&it, false), None);
    it.deletion_timestamp = Some(Time(at(0)));
    assert_eq!(finalizers(&it, true), None);
    assert_eq!(finalizers(&it, false), Some(vec!["other".to_owned()]));

    let mut user = pod("alice", "lab-0");
    let spec = user.spec.as_mut().unwrap();
    let source =
        PersistentVolumeClaimVolumeSource { claim_name: "home-lab-0".into(), read_only: None };
    spec.volumes =
        Some(vec![Volume { persistent_volume_claim: Some(source), ..Volume::default() }]);
    assert!(!uses(&user, "home-lab-0"), "not bound to a node");
    user.spec.as_mut().unwrap().node_name = Some("node".into());
    assert!(uses(&user, "home-lab-0") && !uses(&user, "home-lab-1"));
    set_phase(&mut user, "Succeeded");
    assert!(!uses(&user, "home-lab-0"));
}
