//! Applies, stops and deletes what was made for one owner, and nothing else.
//!
//! An object is looked at before it is written, and every write carries the uid and the version that
//! were looked at, so that nobody else's object can take its place in between.

use std::fmt::Debug;

use cluster::labels::MANAGER;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{
    FieldsV1, ManagedFieldsEntry, ObjectMeta, OwnerReference,
};
use kube::{
    Api, Resource, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use crate::refusal::{Problem, Reason, ReconcileError};

/// Somebody may write between our look and our write; more often in a row is left to the next try.
const TRIES: usize = 5;

/// What a part of a workload must be able to do.
pub trait Part: Resource<DynamicType = ()> + Clone + Debug + Serialize + DeserializeOwned {}

impl<K: Resource<DynamicType = ()> + Clone + Debug + Serialize + DeserializeOwned> Part for K {}

/// Whether the object was made for `owner`, by the uid of its controlling owner reference.
///
/// # Errors
/// Says whose it is, or that it is on its way out.
pub fn check<K: Part>(found: &K, owner: &OwnerReference) -> Result<(), Problem> {
    let name = format!("{} {}", K::kind(&()), found.name_any());
    if is_controlled_by(found.meta(), owner) {
        return match found.meta().deletion_timestamp {
            Some(_) => Err(Problem::new(
                Reason::Ending,
                format!("The {name} is being deleted: it is made anew when it is gone"),
            )),
            None => Ok(()),
        };
    }
    if is_left_by_namesake(found.meta(), owner) {
        let message = format!(
            "The {name} belongs to an earlier {} of this name, and the cluster is about to delete it",
            owner.kind
        );
        return Err(Problem::new(Reason::Ending, message));
    }
    let whose = match found.owner_references().iter().find(|other| other.controller == Some(true)) {
        Some(other) => format!("belongs to {} {}", other.kind, other.name),
        None => format!("was not made for this {}", owner.kind),
    };
    Err(Problem::new(
        Reason::NotOurs,
        format!("The {name} exists and {whose}: delete it, or choose another name"),
    ))
}

pub fn is_controlled_by(meta: &ObjectMeta, owner: &OwnerReference) -> bool {
    let mut owners = meta.owner_references.iter().flatten();
    owners.any(|found| found.uid == owner.uid && found.controller == Some(true))
}

/// Controlled by what had the same name and is gone, so that garbage collection takes it.
pub fn is_left_by_namesake(meta: &ObjectMeta, owner: &OwnerReference) -> bool {
    let group = |of: &OwnerReference| of.api_version.split('/').next().map(str::to_owned);
    let mut owners = meta.owner_references.iter().flatten();
    owners.any(|found| {
        found.controller == Some(true)
            && found.uid != owner.uid
            && (&found.kind, &found.name) == (&owner.kind, &owner.name)
            && group(found) == group(owner)
    })
}

/// Creates the object, or applies onto the one that `check` finds to be ours. `manifest` is given
/// what is there.
///
/// # Errors
/// [`ReconcileError::Told`] with what `check` says of an object that is not ours.
pub async fn put<K: Part>(
    api: &Api<K>,
    name: &str,
    check: impl Fn(&K) -> Result<(), Problem>,
    mut manifest: impl FnMut(Option<&K>) -> Result<Value, ReconcileError>,
) -> Result<K, ReconcileError> {
    let mut tries = 1;
    loop {
        match put_once(api, name, &check, &mut manifest).await {
            Err(error) if error.is_conflict() && tries < TRIES => tries += 1,
            result => return result,
        }
    }
}

async fn put_once<K: Part>(
    api: &Api<K>,
    name: &str,
    check: &impl Fn(&K) -> Result<(), Problem>,
    manifest: &mut impl FnMut(Option<&K>) -> Result<Value, ReconcileError>,
) -> Result<K, ReconcileError> {
    let Some(found) = api.get_opt(name).await? else {
        // An apply would take over what somebody creates at this moment; a POST cannot.
        let object: K = serde_json::from_value(manifest(None)?).map_err(kube::Error::SerdeError)?;
        let params =
            PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() };
        let made = api.create(&params, &object).await?;
        return Ok(hand_to_apply(api, made).await?);
    };
    check(&found).map_err(ReconcileError::Told)?;
    let found = hand_to_apply(api, found).await?;
    let mut wanted = manifest(Some(&found))?;
    wanted["metadata"]["uid"] = json!(found.uid());
    wanted["metadata"]["resourceVersion"] = json!(found.resource_version());
    let params = PatchParams::apply(MANAGER).force();
    Ok(api.patch(name, &params, &Patch::Apply(wanted)).await?)
}

/// Makes what our POST set the property of our applies, or no later apply could remove it.
async fn hand_to_apply<K: Part>(api: &Api<K>, object: K) -> kube::Result<K> {
    let Some(fields) = handed_to_apply(object.managed_fields()) else { return Ok(object) };
    let patch = json!({"metadata": {
        "uid": object.uid(),
        "resourceVersion": object.resource_version(),
        "managedFields": fields,
    }});
    let params = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
    api.patch(&object.name_any(), &params, &Patch::Merge(patch)).await
}

/// The entries with our own of a POST turned into one of an apply; `None` when there is none. The API
/// server keeps the two apart, though the manager is the same.
fn handed_to_apply(entries: &[ManagedFieldsEntry]) -> Option<Vec<ManagedFieldsEntry>> {
    let is = |entry: &ManagedFieldsEntry, operation| {
        entry.manager.as_deref() == Some(MANAGER)
            && entry.operation.as_deref() == Some(operation)
            && entry.subresource.as_deref().unwrap_or_default().is_empty()
    };
    let mut posted = entries.iter().find(|entry| is(entry, "Update"))?.clone();
    posted.operation = Some("Apply".to_owned());
    if let Some(applied) = entries.iter().find(|entry| is(entry, "Apply")) {
        let sets = [&posted.fields_v1, &applied.fields_v1].into_iter().flatten();
        let union = sets.fold(json!({}), |mut all, set| {
            unite(&mut all, &set.0);
            all
        });
        posted.fields_v1 = Some(FieldsV1(union));
    }
    let others = entries.iter().filter(|entry| !is(entry, "Update") && !is(entry, "Apply"));
    Some(others.cloned().chain([posted]).collect())
}

/// Field sets are trees of names.
fn unite(all: &mut Value, more: &Value) {
    if let (Some(all), Some(more)) = (all.as_object_mut(), more.as_object()) {
        for (name, below) in more {
            unite(all.entry(name).or_insert_with(|| json!({})), below);
        }
    }
}

/// Whether one of our writes set the field, such as `["f:spec", "f:replicas"]`.
pub fn is_set_by_us(meta: &ObjectMeta, path: &[&str]) -> bool {
    let ours = meta.managed_fields.iter().flatten();
    ours.filter(|entry| entry.manager.as_deref() == Some(MANAGER)).any(|entry| {
        let fields = entry.fields_v1.as_ref().map(|fields| &fields.0);
        path.iter().try_fold(fields, |at, name| at.map(|at| at.get(name))).flatten().is_some()
    })
}

/// What has a number of pods.
pub trait Scaled: Part {
    fn wanted(&self) -> Option<i32>;
}

impl Scaled for k8s_openapi::api::apps::v1::StatefulSet {
    fn wanted(&self) -> Option<i32> {
        self.spec.as_ref()?.replicas
    }
}

impl Scaled for k8s_openapi::api::apps::v1::Deployment {
    fn wanted(&self) -> Option<i32> {
        self.spec.as_ref()?.replicas
    }
}

/// The manager of [`halt`]'s one field. With [`MANAGER`] the field would look like one that was made
/// by our POST.
const HALTER: &str = "dormouse-stop";

/// Sets the number of pods to 0 and nothing else, so that no other part of a change can prevent it.
pub async fn halt<K: Scaled>(
    api: &Api<K>,
    name: &str,
    owner: &OwnerReference,
) -> Result<(), ReconcileError> {
    let mut tries = 1;
    loop {
        let Some(found) = api.get_opt(name).await? else { return Ok(()) };
        if !is_controlled_by(found.meta(), owner) || found.wanted() == Some(0) {
            return Ok(());
        }
        let patch = json!({
            "metadata": {"uid": found.uid(), "resourceVersion": found.resource_version()},
            "spec": {"replicas": 0},
        });
        let params =
            PatchParams { field_manager: Some(HALTER.to_owned()), ..PatchParams::default() };
        match api.patch(name, &params, &Patch::Merge(patch)).await {
            Ok(_) => return Ok(()),
            Err(kube::Error::Api(status)) if status.code == 404 => return Ok(()),
            Err(kube::Error::Api(status)) if status.code == 409 && tries < TRIES => tries += 1,
            Err(error) => return Err(error.into()),
        }
    }
}

/// Deletes the object if it is still the one that was looked at.
pub async fn delete<K: Part>(api: &Api<K>, seen: &K) -> kube::Result<()> {
    let mut params = DeleteParams::background();
    params.preconditions =
        Some(Preconditions { uid: seen.uid(), resource_version: seen.resource_version() });
    match api.delete(&seen.name_any(), &params).await {
        Ok(_) => Ok(()),
        // Gone, or another one or another version by now: to be looked at anew.
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Deletes the object of that name if it was made for `owner`.
pub async fn delete_ours<K: Part>(
    api: &Api<K>,
    name: &str,
    owner: &OwnerReference,
) -> kube::Result<()> {
    match api.get_opt(name).await? {
        Some(found) if is_controlled_by(found.meta(), owner) => delete(api, &found).await,
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Service;

    use super::*;

    fn owner(uid: &str) -> OwnerReference {
        serde_json::from_value(json!({
            "apiVersion": "dormouse.dev/v1alpha1", "kind": "Workspace", "name": "lab", "uid": uid,
            "controller": true,
        }))
        .unwrap()
    }

    fn service(owners: Value) -> Service {
        let metadata = json!({"name": "lab", "ownerReferences": owners});
        serde_json::from_value(json!({"metadata": metadata})).unwrap()
    }

    #[test]
    fn only_the_uid_of_the_controlling_owner_makes_it_ours() {
        let told = |owners| check(&service(owners), &owner("u1")).unwrap_err();
        assert_eq!(check(&service(json!([owner("u1")])), &owner("u1")), Ok(()));
        let nobodys = told(json!([]));
        assert_eq!(nobodys.reason, Reason::NotOurs);
        assert_eq!(
            nobodys.message,
            "The Service lab exists and was not made for this Workspace: delete it, or choose another name"
        );
        let mut other = owner("u9");
        other.name = "web".to_owned();
        assert!(told(json!([other])).message.contains("belongs to Workspace web"));
        let mut guest = owner("u1");
        guest.controller = None;
        assert_eq!(told(json!([guest])).reason, Reason::NotOurs);
        assert_eq!(told(json!([owner("u0")])).reason, Reason::Ending, "of an earlier one");
    }

    #[test]
    fn what_a_post_set_is_handed_to_applies() {
        let entry = |manager, operation, fields: Value| {
            serde_json::from_value::<ManagedFieldsEntry>(json!({
                "manager": manager, "operation": operation, "apiVersion": "v1",
                "fieldsType": "FieldsV1", "fieldsV1": fields,
            }))
            .unwrap()
        };
        let posted = entry(MANAGER, "Update", json!({"f:spec": {"f:ports": {}}}));
        let applied = entry(MANAGER, "Apply", json!({"f:spec": {"f:selector": {}}}));
        let other = entry("kubectl", "Update", json!({"f:metadata": {}}));
        assert_eq!(handed_to_apply(&[applied.clone(), other.clone()]), None);
        let both = handed_to_apply(&[posted, other.clone(), applied]).unwrap();
        let union = json!({"f:spec": {"f:ports": {}, "f:selector": {}}});
        assert_eq!(both, [other, entry(MANAGER, "Apply", union)]);
    }

    #[test]
    fn fields_of_ours_are_told_from_others() {
        let meta: ObjectMeta = serde_json::from_value(json!({"managedFields": [
            {"manager": MANAGER, "fieldsV1": {"f:spec": {"f:storageClassName": {}}}},
            {"manager": "other", "fieldsV1": {"f:spec": {"f:volumeName": {}}}},
        ]}))
        .unwrap();
        assert!(is_set_by_us(&meta, &["f:spec", "f:storageClassName"]));
        assert!(!is_set_by_us(&meta, &["f:spec", "f:volumeName"]));
    }
}
