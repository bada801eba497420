//! Names and hashes in the form Kubernetes gives them, and ownership between objects.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference};
use kube::Resource;
use rand::Rng;
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::Arc;

use super::pods::selects;

/// Letters and digits that form no words (k8s.io/apimachinery `rand`).
const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";

/// Five random characters, as at the end of a ReplicaSet's pod name.
pub fn random_suffix() -> String {
    let mut rng = rand::rng();
    (0..5).map(|_| char::from(ALPHABET[rng.random_range(0..ALPHABET.len())])).collect()
}

/// A short hash of an object's JSON, safe in names and label values.
pub fn short_hash(value: &impl Serialize) -> String {
    // The types hashed here are plain data; what serde_json cannot write would hash as empty.
    let json = serde_json::to_vec(value).unwrap_or_default();
    let hash = json
        .iter()
        .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
    hash.to_string()
        .bytes()
        .map(|digit| char::from(ALPHABET[usize::from(digit) % ALPHABET.len()]))
        .collect()
}

/// `base` cut so that `base` + `suffix` stays a DNS label (63 characters).
pub fn bounded_name(base: &str, suffix: &str) -> String {
    let room = 63_usize.saturating_sub(suffix.len());
    let mut end = base.len().min(room);
    while !base.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{suffix}", &base[..end])
}

/// The owner reference of a controller to what it makes.
pub fn owned_by<K: Resource<DynamicType = ()>>(owner: &K) -> OwnerReference {
    OwnerReference {
        api_version: K::api_version(&()).into_owned(),
        kind: K::kind(&()).into_owned(),
        name: owner.meta().name.clone().unwrap_or_default(),
        uid: owner.meta().uid.clone().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

pub fn controller_of(meta: &ObjectMeta) -> Option<&OwnerReference> {
    meta.owner_references.as_ref()?.iter().find(|owner| owner.controller == Some(true))
}

/// The name of the controller, if it is of kind `K`.
pub fn controller_named<K: Resource<DynamicType = ()>>(meta: &ObjectMeta) -> Option<&str> {
    let owner = controller_of(meta)?;
    let group = |version: &str| {
        version.rsplit_once('/').map_or(String::new(), |(group, _)| group.to_owned())
    };
    (owner.kind == K::kind(&()) && group(&owner.api_version) == K::group(&()))
        .then_some(owner.name.as_str())
}

pub fn is_controlled_by(meta: &ObjectMeta, uid: Option<&str>) -> bool {
    controller_of(meta).is_some_and(|owner| Some(owner.uid.as_str()) == uid)
}

pub fn label<'a>(meta: &'a ObjectMeta, name: &str) -> Option<&'a str> {
    meta.labels.as_ref()?.get(name).map(String::as_str)
}

pub fn annotation<'a>(meta: &'a ObjectMeta, name: &str) -> Option<&'a str> {
    meta.annotations.as_ref()?.get(name).map(String::as_str)
}

pub fn set(map: &mut Option<BTreeMap<String, String>>, name: &str, value: impl Into<String>) {
    map.get_or_insert_default().insert(name.to_owned(), value.into());
}

/// How a controller stands to the objects of its namespace.
pub struct Claim<K> {
    /// Its own.
    pub owned: Vec<Arc<K>>,
    /// They match its selector and have no controller: it takes them.
    pub adopt: Vec<Arc<K>>,
    /// Its own, but they match no more: it lets them go.
    pub release: Vec<Arc<K>>,
}

/// Sorts `objects` by their relation to the controller `owner` with `selector`.
/// A controller being deleted adopts and releases nothing.
pub fn claim<K: Resource>(
    owner: &ObjectMeta,
    selector: &LabelSelector,
    objects: Vec<Arc<K>>,
) -> Claim<K> {
    let mut claim = Claim { owned: Vec::new(), adopt: Vec::new(), release: Vec::new() };
    let leaving = owner.deletion_timestamp.is_some();
    for object in objects {
        let meta = object.meta();
        let controller = controller_of(meta).map(|owner| owner.uid.as_str());
        let matches = selects(selector, meta.labels.as_ref());
        match controller {
            Some(uid) if Some(uid) == owner.uid.as_deref() => {
                if matches || leaving || meta.deletion_timestamp.is_some() {
                    claim.owned.push(object);
                } else {
                    claim.release.push(object);
                }
            }
            None if matches && !leaving && meta.deletion_timestamp.is_none() => {
                claim.adopt.push(object)
            }
            _ => {}
        }
    }
    claim
}

/// The merge patch that makes `owner` the controller, on the condition that it is still that object.
pub fn adopt_patch(meta: &ObjectMeta, owner: OwnerReference) -> serde_json::Value {
    let mut owners = meta.owner_references.clone().unwrap_or_default();
    owners.push(owner);
    owners_patch(meta, &owners)
}

/// The merge patch that takes the owner with `uid` away.
pub fn release_patch(meta: &ObjectMeta, uid: Option<&str>) -> serde_json::Value {
    let mut owners = meta.owner_references.clone().unwrap_or_default();
    owners.retain(|owner| Some(owner.uid.as_str()) != uid);
    owners_patch(meta, &owners)
}

/// The merge patch that sets all owners. The resource version makes it fail when somebody else
/// changed the object, for a merge patch replaces the whole list.
pub fn owners_patch(meta: &ObjectMeta, owners: &[OwnerReference]) -> serde_json::Value {
    serde_json::json!({"metadata": {
        "uid": meta.uid, "resourceVersion": meta.resource_version, "ownerReferences": owners,
    }})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controllers::pods::build::pod;
    use k8s_openapi::api::apps::v1::{ReplicaSet, StatefulSet};
    use k8s_openapi::api::core::v1::Pod;

    #[test]
    fn hashes_are_stable_short_and_safe() {
        let hash = short_hash(&serde_json::json!({"a": 1}));
        assert_eq!(hash, short_hash(&serde_json::json!({"a": 1})));
        assert_ne!(hash, short_hash(&serde_json::json!({"a": 2})));
        assert!(hash.len() <= 10 && hash.bytes().all(|byte| ALPHABET.contains(&byte)));
        assert_eq!(random_suffix().len(), 5);
        assert_eq!(bounded_name(&"x".repeat(80), "-12345").len(), 63);
    }

    #[test]
    fn owner_kinds_are_told_apart_by_group() {
        let mut set = StatefulSet::default();
        set.metadata.name = Some("lab".into());
        set.metadata.uid = Some("u".into());
        let mut it = pod("a", "lab-0");
        it.metadata.owner_references = Some(vec![owned_by(&set)]);
        assert_eq!(controller_named::<StatefulSet>(&it.metadata), Some("lab"));
        assert_eq!(controller_named::<ReplicaSet>(&it.metadata), None);
        it.metadata.owner_references.as_mut().unwrap()[0].api_version = "example.com/v1".into();
        assert_eq!(controller_named::<StatefulSet>(&it.metadata), None);
    }

    #[test]
    fn orphans_that_match_are_adopted_and_own_ones_that_do_not_are_released() {
        let mut owner = StatefulSet::default();
        owner.metadata.uid = Some("me".into());
        let selector = LabelSelector {
            match_labels: Some([("app".to_owned(), "x".to_owned())].into()),
            ..LabelSelector::default()
        };
        let make = |name: &str, app: &str, uid: Option<&str>| {
            let mut it = pod("a", name);
            set(&mut it.metadata.labels, "app", app);
            it.metadata.owner_references =
                uid.map(|uid| vec![OwnerReference { uid: uid.to_owned(), ..owned_by(&owner) }]);
            Arc::new(it)
        };
        let objects = vec![
            make("own", "x", Some("me")),
            make("changed", "y", Some("me")),
            make("orphan", "x", None),
            make("foreign", "x", Some("other")),
            make("stranger", "y", None),
        ];
        let claim: Claim<Pod> = claim(&owner.metadata, &selector, objects);
        let names = |pods: &[Arc<Pod>]| {
            pods.iter().map(|pod| pod.metadata.name.clone().unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(names(&claim.owned), ["own"]);
        assert_eq!(names(&claim.release), ["changed"]);
        assert_eq!(names(&claim.adopt), ["orphan"]);
    }
}
