//! How volumes and claims come together: pure functions of both.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{
    ObjectReference, PersistentVolume, PersistentVolumeClaim, PersistentVolumeClaimStatus,
};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::controllers::events::{Note, reference};
use crate::controllers::names::annotation;
use crate::controllers::pods::selects;
use crate::controllers::scheduler::SELECTED_NODE;
use crate::quantity::thousandths;

pub const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
pub const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
pub const PROVISIONERS: [&str; 2] =
    ["volume.kubernetes.io/storage-provisioner", "volume.beta.kubernetes.io/storage-provisioner"];
const DEFAULT_CLASS: &str = "storageclass.kubernetes.io/is-default-class";
const NO_PROVISIONER: &str = "kubernetes.io/no-provisioner";

/// The next step for a claim.
#[derive(Debug, PartialEq)]
pub enum ClaimStep {
    SetClass(String),
    /// Write the claim into the volume's `claimRef`, then the volume's name into the claim.
    Bind {
        volume: Arc<PersistentVolume>,
        by_controller: bool,
    },
    Status(Box<PersistentVolumeClaimStatus>, Option<Note>),
    /// Tell the class's provisioner that its volume is wanted.
    Provision(String, Note),
    Tell(Note),
    Nothing,
}

/// What to do for `claim`, given all volumes and classes.
pub fn claim_step(
    claim: &PersistentVolumeClaim,
    volumes: &[Arc<PersistentVolume>],
    classes: &[Arc<StorageClass>],
) -> ClaimStep {
    let Some(spec) = &claim.spec else { return ClaimStep::Nothing };
    if let Some(name) = spec.volume_name.as_deref().filter(|name| !name.is_empty()) {
        return bound_step(
            claim,
            volumes.iter().find(|volume| volume.metadata.name.as_deref() == Some(name)),
        );
    }
    if claim.metadata.deletion_timestamp.is_some() {
        return ClaimStep::Nothing;
    }
    if spec.storage_class_name.is_none()
        && let Some(class) = default_class(classes)
    {
        return ClaimStep::SetClass(class);
    }
    let reserved = volumes.iter().find(|volume| is_claimed_by(volume, claim));
    if let Some(volume) = reserved {
        return ClaimStep::Bind { volume: volume.clone(), by_controller: false };
    }
    let class_name = spec.storage_class_name.as_deref().unwrap_or_default();
    let class = classes.iter().find(|class| class.metadata.name.as_deref() == Some(class_name));
    let waits = class.and_then(|class| class.volume_binding_mode.as_deref())
        == Some("WaitForFirstConsumer");
    if !waits && let Some(volume) = smallest_match(claim, volumes) {
        return ClaimStep::Bind { volume: volume.clone(), by_controller: true };
    }
    let phase = claim.status.as_ref().and_then(|status| status.phase.as_deref());
    if phase != Some("Pending") {
        let status = PersistentVolumeClaimStatus {
            phase: Some("Pending".to_owned()),
            ..claim.status.clone().unwrap_or_default()
        };
        return ClaimStep::Status(Box::new(status), None);
    }
    match class {
        None if class_name.is_empty() => ClaimStep::Tell(Note::normal(
            "FailedBinding",
            "no persistent volumes available for this claim and no storage class is set",
        )),
        None => {
            let message = format!("storageclass.storage.k8s.io \"{class_name}\" not found");
            ClaimStep::Tell(Note::warning("ProvisioningFailed", message))
        }
        Some(_)
            if waits && annotation(&claim.metadata, SELECTED_NODE).is_none_or(str::is_empty) =>
        {
            ClaimStep::Tell(Note::normal(
                "WaitForFirstConsumer",
                "waiting for first consumer to be created before binding",
            ))
        }
        Some(class) if class.provisioner == NO_PROVISIONER => ClaimStep::Nothing,
        Some(class) if annotation(&claim.metadata, PROVISIONERS[0]) != Some(&class.provisioner) => {
            let message = format!(
                "Waiting for a volume to be created either by the external provisioner '{}' or manually by the system administrator.",
                class.provisioner
            );
            ClaimStep::Provision(
                class.provisioner.clone(),
                Note::normal("ExternalProvisioning", message),
            )
        }
        Some(_) => ClaimStep::Nothing,
    }
}

fn bound_step(claim: &PersistentVolumeClaim, volume: Option<&Arc<PersistentVolume>>) -> ClaimStep {
    let was_bound = annotation(&claim.metadata, BIND_COMPLETED).is_some();
    let before = claim.status.clone().unwrap_or_default();
    let lost = |reason, message: &str| {
        if before.phase.as_deref() == Some("Lost") {
            return ClaimStep::Nothing;
        }
        let status =
            PersistentVolumeClaimStatus { phase: Some("Lost".to_owned()), ..before.clone() };
        ClaimStep::Status(Box::new(status), Some(Note::warning(reason, message)))
    };
    let Some(volume) = volume else {
        // A claim may name a volume that comes later.
        return if was_bound {
            lost(
                "ClaimLost",
                "Bound claim has lost its PersistentVolume. Data on the volume is lost!",
            )
        } else {
            ClaimStep::Nothing
        };
    };
    let spec = volume.spec.as_ref();
    let free = spec.is_none_or(|spec| spec.claim_ref.is_none());
    if !is_claimed_by(volume, claim) && !free {
        return if was_bound {
            lost(
                "ClaimMisbound",
                "Two claims are bound to the same volume, this one is bound incorrectly",
            )
        } else {
            ClaimStep::Nothing
        };
    }
    let reserved = spec
        .and_then(|spec| spec.claim_ref.as_ref())
        .is_some_and(|held| held.uid == claim.metadata.uid);
    if !reserved || !was_bound {
        return ClaimStep::Bind { volume: volume.clone(), by_controller: free };
    }
    let status = PersistentVolumeClaimStatus {
        phase: Some("Bound".to_owned()),
        access_modes: spec.and_then(|spec| spec.access_modes.clone()),
        capacity: spec.and_then(|spec| spec.capacity.clone()),
        ..before.clone()
    };
    if status == before { ClaimStep::Nothing } else { ClaimStep::Status(Box::new(status), None) }
}

fn default_class(classes: &[Arc<StorageClass>]) -> Option<String> {
    let defaults =
        classes.iter().filter(|class| annotation(&class.metadata, DEFAULT_CLASS) == Some("true"));
    // The newest of several, as the API server chooses.
    let newest =
        defaults.max_by_key(|class| class.metadata.creation_timestamp.as_ref().map(|at| at.0));
    newest.and_then(|class| class.metadata.name.clone())
}

/// Whether the volume is reserved for this very claim.
pub fn is_claimed_by(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let Some(held) = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref()) else {
        return false;
    };
    held.name == claim.metadata.name
        && held.namespace == claim.metadata.namespace
        && held
            .uid
            .as_deref()
            .is_none_or(|uid| uid.is_empty() || Some(uid) == claim.metadata.uid.as_deref())
}

fn smallest_match<'a>(
    claim: &PersistentVolumeClaim,
    volumes: &'a [Arc<PersistentVolume>],
) -> Option<&'a Arc<PersistentVolume>> {
    let spec = claim.spec.as_ref()?;
    let size = |quantities: Option<&std::collections::BTreeMap<String, Quantity>>| {
        thousandths(&quantities?.get("storage")?.0)
    };
    let wanted = size(spec.resources.as_ref().and_then(|resources| resources.requests.as_ref()))
        .unwrap_or(0);
    let mode = |mode: Option<&String>| mode.map_or("Filesystem", String::as_str).to_owned();
    let fits = volumes.iter().filter_map(|volume| {
        let has = volume.spec.as_ref()?;
        let capacity = size(has.capacity.as_ref())?;
        let modes = has.access_modes.as_deref().unwrap_or_default();
        let fits = has.claim_ref.is_none()
            && volume.metadata.deletion_timestamp.is_none()
            && capacity >= wanted
            && has.storage_class_name.as_deref().unwrap_or_default()
                == spec.storage_class_name.as_deref().unwrap_or_default()
            && mode(has.volume_mode.as_ref()) == mode(spec.volume_mode.as_ref())
            && spec.access_modes.iter().flatten().all(|mode| modes.contains(mode))
            && spec
                .selector
                .as_ref()
                .is_none_or(|selector| selects(selector, volume.metadata.labels.as_ref()));
        fits.then_some((capacity, volume))
    });
    fits.min_by_key(|(capacity, volume)| (*capacity, volume.metadata.name.clone()))
        .map(|(_, volume)| volume)
}

/// The reference that reserves a volume for a claim.
pub fn claim_reference(claim: &PersistentVolumeClaim) -> ObjectReference {
    reference(claim)
}

/// The phase a volume should have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Available,
    Bound,
    Released,
}

impl Phase {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Available => "Available",
            Self::Bound => "Bound",
            Self::Released => "Released",
        }
    }
}

/// The phase of `volume`, given the claim its `claimRef` names. `None`: the claim must take a step first.
pub fn volume_phase(
    volume: &PersistentVolume,
    claim: Option<&PersistentVolumeClaim>,
) -> Option<Phase> {
    let held = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
    let Some(uid) = held.and_then(|held| held.uid.as_deref()).filter(|uid| !uid.is_empty()) else {
        // Free, or reserved by name for a claim that is yet to come.
        return Some(Phase::Available);
    };
    match claim.filter(|claim| claim.metadata.uid.as_deref() == Some(uid)) {
        None => Some(Phase::Released),
        Some(claim) => {
            let bound = claim.spec.as_ref().and_then(|spec| spec.volume_name.as_ref());
            (bound.is_some() && bound == volume.metadata.name.as_ref()).then_some(Phase::Bound)
        }
    }
}
