//! A workspace's volume: whose it is, and which changes of it the API server would refuse.

use cluster::{
    labels,
    resources::{WorkloadResource, Workspace},
};
use k8s_openapi::{
    api::core::v1::PersistentVolumeClaim, apimachinery::pkg::apis::meta::v1::OwnerReference,
};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

use crate::{
    manifest,
    own::{self, is_controlled_by, is_left_by_namesake, is_set_by_us},
    quantity::nanos,
    refusal::{Problem, Reason, ReconcileError},
};

/// Applies the claim. The first problem keeps the workspace from using the volume at all; the second
/// only says what of it stays as it was.
pub async fn apply(
    api: &Api<PersistentVolumeClaim>,
    workspace: &Workspace,
    owner: &OwnerReference,
) -> Result<Option<Problem>, ReconcileError> {
    let name = manifest::claim_name(&workspace.name_any());
    let check = |found: &PersistentVolumeClaim| check(found, workspace, owner);
    if let Some(found) = api.get_opt(&name).await? {
        check(&found).map_err(ReconcileError::Told)?;
        if plan(&found, workspace).fit == Fit::Replace {
            // It has never held anything: the version that is deleted had no volume.
            own::delete(api, &found).await?;
        }
    }
    let mut kept = None;
    let applied = own::put(api, &name, check, |found| {
        let Some(found) = found else { return Ok(manifest::claim(workspace)) };
        let plan = plan(found, workspace);
        kept = match plan.fit {
            Fit::Kept(why) => Some(Problem::new(Reason::VolumeKept, why)),
            _ => None,
        };
        Ok(plan.manifest)
    });
    match applied.await {
        Ok(_) => Ok(kept),
        Err(error) => {
            let Some(refused) = error.problem().filter(|told| told.reason == Reason::Refused)
            else {
                return Err(error);
            };
            // Without the size, what else changed must not wait: that the volume is to be kept, say.
            let mut size = String::new();
            let again = own::put(api, &name, check, |found| {
                let Some(found) = found else { return Err(told(refused.clone())) };
                size = requested(found).to_owned();
                Ok(as_it_is(found, workspace))
            });
            again.await?;
            Ok(Some(growth(&name, &size, refused)))
        }
    }
}

fn told(problem: Problem) -> ReconcileError {
    ReconcileError::Told(problem)
}

fn growth(name: &str, size: &str, refused: Problem) -> Problem {
    let message = if refused.message.contains("only dynamically provisioned pvc can be resized") {
        format!(
            "The volume {name} stays as it is, since its storage class lets no volume grow: set spec.storage.size back to {size}"
        )
    } else {
        format!("The volume {name} stays as it is. {}", refused.message)
    };
    Problem::new(Reason::VolumeKept, message)
}

/// Whether the claim is this workspace's and its owner's.
fn check(
    found: &PersistentVolumeClaim,
    workspace: &Workspace,
    owner: &OwnerReference,
) -> Result<(), Problem> {
    let name = found.name_any();
    let mine = workspace.owner();
    let person = found.annotations().get(labels::OWNER);
    let namespace = workspace.namespace().unwrap_or_default();
    let hand_over = format!(
        "to hand it over: kubectl annotate pvc {name} -n {namespace} --overwrite {}={mine}",
        labels::OWNER
    );
    let foreign = |message: String| Err(Problem::new(Reason::NotOurs, message));
    if !is_controlled_by(&found.metadata, owner) {
        let ours = manifest::labels_of(workspace);
        let labelled = ours.iter().all(|(name, value)| found.labels().get(*name) == Some(value));
        let controlled = found.owner_references().iter().any(|it| it.controller == Some(true));
        if controlled || !labelled {
            return own::check(found, owner);
        }
        let made_since = found.creation_timestamp() >= workspace.creation_timestamp();
        if person.is_none() && !made_since {
            return foreign(format!(
                "The volume claim {name} was kept from an earlier workspace and does not say whose it is; {hand_over}"
            ));
        }
    }
    if let Some(person) = person.filter(|person| *person != mine) {
        return foreign(format!(
            "The volume claim {name} is {person}'s and not {mine}'s; {hand_over}"
        ));
    }
    if found.metadata.deletion_timestamp.is_some() || is_left_by_namesake(&found.metadata, owner) {
        let message =
            format!("The volume claim {name} is being deleted: it is made anew when it is gone");
        return Err(Problem::new(Reason::Ending, message));
    }
    Ok(())
}

#[derive(Debug, PartialEq, Eq)]
enum Fit {
    AsAsked,
    /// Never bound to a volume and unlike what is asked: to be deleted and made anew.
    Replace,
    /// A part of it cannot be changed; why, and what to do.
    Kept(String),
}

struct Plan {
    manifest: Value,
    fit: Fit,
}

fn requested(found: &PersistentVolumeClaim) -> &str {
    let requests = found.spec.as_ref().and_then(|spec| spec.resources.as_ref()?.requests.as_ref());
    requests.and_then(|it| it.get("storage")).map_or("", |size| size.0.as_str())
}

/// The manifest with the size and the class that the claim has.
fn as_it_is(found: &PersistentVolumeClaim, workspace: &Workspace) -> Value {
    let mut manifest = manifest::claim(workspace);
    manifest["spec"]["resources"]["requests"]["storage"] = json!(requested(found));
    let class = found.spec.as_ref().and_then(|spec| spec.storage_class_name.as_ref());
    let set_by_us = is_set_by_us(&found.metadata, &CLASS);
    // Left out, an applied class would be taken away, which is refused; one that came by default stays by itself.
    match class.filter(|_| set_by_us || workspace.spec.storage.storage_class_name.is_some()) {
        Some(class) => manifest["spec"]["storageClassName"] = json!(class),
        None => {
            if let Some(spec) = manifest["spec"].as_object_mut() {
                spec.remove("storageClassName");
            }
        }
    }
    manifest
}

const CLASS: [&str; 2] = ["f:spec", "f:storageClassName"];

/// What the API server takes of the change: a claim without a volume takes none, one with a volume
/// may ask for more and for nothing else.
fn plan(found: &PersistentVolumeClaim, workspace: &Workspace) -> Plan {
    let name = found.name_any();
    let storage = &workspace.spec.storage;
    let status = found.status.as_ref();
    let capacity = status.and_then(|status| status.capacity.as_ref()?.get("storage"));
    let spec = found.spec.as_ref();
    let has = spec.and_then(|spec| spec.storage_class_name.as_deref());
    let phase = status.and_then(|status| status.phase.as_deref());
    let unbound = spec
        .is_none_or(|spec| spec.volume_name.as_deref().unwrap_or_default().is_empty())
        && matches!(phase, None | Some("Pending"));

    let size = requested(found);
    let (before, wanted) = (nanos(size), nanos(&storage.size.0));
    let resized = before != wanted;
    let reclassed = match storage.storage_class_name.as_deref() {
        Some(wanted) => has != Some(wanted),
        // The default class of a claim without a volume may be another one by now.
        None => unbound && has.is_some() && is_set_by_us(&found.metadata, &CLASS),
    };
    let mut manifest = as_it_is(found, workspace);
    if unbound {
        let fit = if resized || reclassed { Fit::Replace } else { Fit::AsAsked };
        return Plan { manifest, fit };
    }
    let mut kept = Vec::new();
    if resized {
        let least = capacity.map_or(before, |capacity| nanos(&capacity.0));
        if wanted < least {
            let is = capacity.map_or(size, |capacity| capacity.0.as_str());
            kept.push(format!(
                "The volume {name} has {is} and cannot be made smaller: set spec.storage.size back to {size}"
            ));
        } else {
            manifest["spec"]["resources"]["requests"]["storage"] = json!(storage.size);
        }
    }
    if reclassed {
        let back = match has {
            Some(class) => format!("set spec.storage.storageClassName back to {class}"),
            None => "leave spec.storage.storageClassName out".to_owned(),
        };
        kept.push(format!(
            "The volume {name} keeps its storage class, which a volume cannot change: {back}, or make another workspace"
        ));
    }
    let fit = if kept.is_empty() { Fit::AsAsked } else { Fit::Kept(kept.join(". ")) };
    Plan { manifest, fit }
}

#[cfg(test)]
mod tests {
    use kube::Resource;

    use super::*;

    fn workspace(person: &str, storage: Value) -> Workspace {
        serde_json::from_value(json!({
            "apiVersion": "dormouse.dev/v1alpha1", "kind": "Workspace",
            "metadata": {
                "name": "lab", "namespace": "vision", "uid": "u2",
                "creationTimestamp": "2026-03-01T00:00:00Z",
            },
            "spec": {"owner": person, "image": "jupyter", "storage": storage},
        }))
        .unwrap()
    }

    /// As the workspace of `person` with that uid leaves it; `more` goes on top.
    fn claim(person: &str, storage: Value, more: Value) -> PersistentVolumeClaim {
        let mut claim = manifest::claim(&workspace(person, storage));
        merge(&mut claim, more);
        serde_json::from_value(claim).unwrap()
    }

    fn merge(to: &mut Value, from: Value) {
        match (to, from) {
            (Value::Object(to), Value::Object(from)) => {
                for (name, value) in from {
                    merge(to.entry(name).or_insert(Value::Null), value);
                }
            }
            (to, from) => *to = from,
        }
    }

    fn checked(found: &PersistentVolumeClaim, workspace: &Workspace) -> Result<(), Problem> {
        check(found, workspace, &workspace.controller_owner_ref(&()).unwrap())
    }

    fn at(time: &str) -> Value {
        json!({"metadata": {"creationTimestamp": time}})
    }

    const BEFORE: &str = "2026-02-01T00:00:00Z";
    const AFTER: &str = "2026-03-02T00:00:00Z";

    #[test]
    fn a_volume_that_was_kept_is_its_persons_and_nobody_elses() {
        let keep = json!({"onDelete": "Retain"});
        let kept = claim("alice", keep.clone(), at(BEFORE));
        assert_eq!(checked(&kept, &workspace("alice", json!({}))), Ok(()));
        let told = checked(&kept, &workspace("bob", json!({}))).unwrap_err();
        assert_eq!(told.reason, Reason::NotOurs);
        assert!(told.message.contains("lab-home is alice's and not bob's"), "{told:?}");
        // Nor by a workspace that is made as alice's and then changed to bob's.
        let bound = claim("alice", json!({}), at(AFTER));
        assert_eq!(
            checked(&bound, &workspace("bob", json!({}))).unwrap_err().reason,
            Reason::NotOurs
        );
    }

    #[test]
    fn a_volume_of_an_earlier_version_says_no_person() {
        let keep = json!({"onDelete": "Retain"});
        let mut kept = claim("alice", keep.clone(), at(BEFORE));
        kept.metadata.annotations = None;
        let told = checked(&kept, &workspace("alice", keep.clone())).unwrap_err();
        assert!(told.message.contains("does not say whose it is"), "{told:?}");
        let mut kept = claim("alice", keep.clone(), at(AFTER));
        kept.metadata.annotations = None;
        assert_eq!(checked(&kept, &workspace("alice", keep)), Ok(()), "made for this workspace");
    }

    #[test]
    fn a_claim_that_nobody_made_for_it_is_refused() {
        let mut found = claim("alice", json!({}), at(AFTER));
        found.metadata.owner_references = None;
        found.metadata.labels = None;
        let told = checked(&found, &workspace("alice", json!({}))).unwrap_err();
        assert!(told.message.contains("PersistentVolumeClaim lab-home exists"), "{told:?}");
    }

    fn bound(storage: Value) -> PersistentVolumeClaim {
        claim(
            "alice",
            storage,
            json!({
                "spec": {"volumeName": "pv1"},
                "status": {"phase": "Bound", "capacity": {"storage": "10Gi"}},
            }),
        )
    }

    fn size(plan: &Plan) -> &Value {
        &plan.manifest["spec"]["resources"]["requests"]["storage"]
    }

    #[test]
    fn a_volume_is_never_made_smaller_and_may_grow() {
        let fit = |size: &str| plan(&bound(json!({})), &workspace("alice", json!({"size": size})));
        let smaller = fit("5Gi");
        assert_eq!(size(&smaller), "10Gi");
        let Fit::Kept(why) = &smaller.fit else { panic!("{:?}", smaller.fit) };
        assert_eq!(
            why,
            "The volume lab-home has 10Gi and cannot be made smaller: set spec.storage.size back to 10Gi"
        );
        assert_eq!((size(&fit("20Gi")), fit("20Gi").fit), (&json!("20Gi"), Fit::AsAsked));
        assert_eq!((size(&fit("10240Mi")), fit("10240Mi").fit), (&json!("10Gi"), Fit::AsAsked));
    }

    #[test]
    fn a_class_is_never_changed_once_there_is_a_volume() {
        let found = bound(json!({"storageClassName": "slow"}));
        let planned = plan(&found, &workspace("alice", json!({"storageClassName": "fast"})));
        assert_eq!(planned.manifest["spec"]["storageClassName"], "slow");
        let Fit::Kept(why) = planned.fit else { panic!() };
        assert!(why.contains("storageClassName back to slow"), "{why}");
        // Left out: an applied class is sent on, one that came by default is not.
        let mut ours = found.clone();
        ours.metadata.managed_fields = serde_json::from_value(json!([
            {"manager": labels::MANAGER, "operation": "Apply",
             "fieldsV1": {"f:spec": {"f:storageClassName": {}}}},
        ]))
        .unwrap();
        let out = plan(&ours, &workspace("alice", json!({})));
        assert_eq!(
            (&out.manifest["spec"]["storageClassName"], out.fit),
            (&json!("slow"), Fit::AsAsked)
        );
        let out = plan(&found, &workspace("alice", json!({})));
        assert!(out.manifest["spec"]["storageClassName"].is_null() && out.fit == Fit::AsAsked);
    }

    #[test]
    fn a_claim_without_a_volume_is_never_changed_but_made_anew() {
        let pending = json!({"status": {"phase": "Pending"}});
        let found = claim("alice", json!({"storageClassName": "nosuch"}), pending.clone());
        for storage in [
            json!({"storageClassName": "fast"}),
            json!({"storageClassName": "nosuch", "size": "20Gi"}),
            json!({"storageClassName": "nosuch", "size": "1Gi"}),
        ] {
            let planned = plan(&found, &workspace("alice", storage));
            assert_eq!(planned.fit, Fit::Replace);
            assert_eq!(size(&planned), "10Gi");
            assert_eq!(planned.manifest["spec"]["storageClassName"], "nosuch");
        }
        let same = plan(&found, &workspace("alice", json!({"storageClassName": "nosuch"})));
        assert_eq!(same.fit, Fit::AsAsked);
        let by_default = claim("alice", json!({"storageClassName": "slow"}), pending);
        assert_eq!(plan(&by_default, &workspace("alice", json!({}))).fit, Fit::AsAsked);
    }
}
