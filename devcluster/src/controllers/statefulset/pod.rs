//! The pods and volume claims of a StatefulSet: stable names, one claim for each template.

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{
    PersistentVolumeClaim, PersistentVolumeClaimVolumeSource, Pod, PodTemplateSpec, Volume,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use crate::controllers::names::{owned_by, set};

pub const POD_NAME: &str = "statefulset.kubernetes.io/pod-name";
pub const POD_INDEX: &str = "apps.kubernetes.io/pod-index";
pub const REVISION: &str = "controller-revision-hash";

pub fn name(owner: &StatefulSet, ordinal: i32) -> String {
    format!("{}-{ordinal}", owner.metadata.name.as_deref().unwrap_or_default())
}

/// The ordinal in a pod's name, if it is one of this set's names.
pub fn ordinal(owner: &StatefulSet, pod: &Pod) -> Option<i32> {
    let (base, ordinal) = pod.metadata.name.as_deref()?.rsplit_once('-')?;
    if Some(base) != owner.metadata.name.as_deref()
        || ordinal.bytes().any(|byte| !byte.is_ascii_digit())
    {
        return None;
    }
    ordinal.parse().ok()
}

fn claim_templates(owner: &StatefulSet) -> &[PersistentVolumeClaim] {
    owner.spec.as_ref().and_then(|spec| spec.volume_claim_templates.as_deref()).unwrap_or_default()
}

fn claim_name(template: &PersistentVolumeClaim, pod_name: &str) -> String {
    format!("{}-{pod_name}", template.metadata.name.as_deref().unwrap_or_default())
}

/// A pod as `template` (of the revision named `revision`) has it, for one ordinal.
pub fn make(owner: &StatefulSet, template: &PodTemplateSpec, revision: &str, ordinal: i32) -> Pod {
    let name = name(owner, ordinal);
    let from = template.metadata.clone().unwrap_or_default();
    let mut metadata = ObjectMeta {
        name: Some(name.clone()),
        namespace: owner.metadata.namespace.clone(),
        labels: from.labels,
        annotations: from.annotations,
        finalizers: from.finalizers,
        owner_references: Some(vec![owned_by(owner)]),
        ..ObjectMeta::default()
    };
    set(&mut metadata.labels, POD_NAME, &name);
    set(&mut metadata.labels, POD_INDEX, ordinal.to_string());
    set(&mut metadata.labels, REVISION, revision);
    let mut spec = template.spec.clone().unwrap_or_default();
    spec.hostname = Some(name.clone());
    spec.subdomain = owner
        .spec
        .as_ref()
        .and_then(|spec| spec.service_name.clone())
        .filter(|name| !name.is_empty());
    let templates = claim_templates(owner);
    if !templates.is_empty() {
        let volumes = spec.volumes.get_or_insert_default();
        // A claim template stands before a volume of the same name.
        volumes.retain(|volume| {
            !templates
                .iter()
                .any(|template| template.metadata.name.as_deref() == Some(&volume.name))
        });
        volumes.extend(templates.iter().map(|template| Volume {
            name: template.metadata.name.clone().unwrap_or_default(),
            persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                claim_name: claim_name(template, &name),
                read_only: None,
            }),
            ..Volume::default()
        }));
    }
    Pod { metadata, spec: Some(spec), status: None }
}

/// The claims of one ordinal.
pub fn claims(owner: &StatefulSet, ordinal: i32) -> Vec<PersistentVolumeClaim> {
    let pod_name = name(owner, ordinal);
    let selected =
        owner.spec.as_ref().and_then(|spec| spec.selector.match_labels.clone()).unwrap_or_default();
    claim_templates(owner)
        .iter()
        .map(|template| {
            let mut claim = template.clone();
            claim.metadata.name = Some(claim_name(template, &pod_name));
            claim.metadata.namespace = owner.metadata.namespace.clone();
            claim.metadata.labels.get_or_insert_default().extend(selected.clone());
            claim.status = None;
            claim
        })
        .collect()
}

/// Who must own a claim so that it goes with the set, or with its pod, as the set's
/// `persistentVolumeClaimRetentionPolicy` says. `pod` is set when the ordinal is scaled away.
pub fn claim_owners(owner: &StatefulSet, scaled_away: Option<&Pod>) -> Vec<OwnerReference> {
    let policy =
        owner.spec.as_ref().and_then(|spec| spec.persistent_volume_claim_retention_policy.as_ref());
    let deletes = |choice: Option<&Option<String>>| {
        choice.is_some_and(|choice| choice.as_deref() == Some("Delete"))
    };
    if deletes(policy.map(|policy| &policy.when_scaled))
        && let Some(pod) = scaled_away
    {
        return vec![OwnerReference {
            controller: None,
            block_owner_deletion: None,
            ..owned_by(pod)
        }];
    }
    if deletes(policy.map(|policy| &policy.when_deleted)) {
        return vec![OwnerReference {
            controller: None,
            block_owner_deletion: None,
            ..owned_by(owner)
        }];
    }
    Vec::new()
}

/// The owners a claim has because of the retention policy: the set, or one of its pods.
pub fn is_retention_owner(owner: &StatefulSet, reference: &OwnerReference, pod_name: &str) -> bool {
    (reference.kind == "StatefulSet"
        && Some(reference.name.as_str()) == owner.metadata.name.as_deref())
        || (reference.kind == "Pod" && reference.name == pod_name)
}
