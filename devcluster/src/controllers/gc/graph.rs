//! Who owns whom: the metadata of all objects of all kinds, by uid.

use std::collections::{HashMap, HashSet, VecDeque};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

pub const FOREGROUND: &str = "foregroundDeletion";
pub const ORPHAN: &str = "orphan";

/// How many removed objects are remembered, so that a late answer cannot bring one back.
const REMEMBERED_DELETIONS: usize = 4096;

/// A kind of object, as the API serves it; versions of one kind are the same objects.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KindName {
    pub group: String,
    pub plural: String,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Object {
    pub kind: KindName,
    pub namespace: Option<String>,
    pub name: String,
    pub uid: String,
    pub version: String,
    pub owners: Vec<OwnerReference>,
    pub finalizers: Vec<String>,
    pub deleting: bool,
}

impl Object {
    /// `None` for an object without uid, which no API server sends.
    pub fn new(kind: KindName, meta: ObjectMeta) -> Option<Self> {
        Some(Self {
            kind,
            uid: meta.uid?,
            namespace: meta.namespace,
            name: meta.name?,
            version: meta.resource_version.unwrap_or_default(),
            owners: meta.owner_references.unwrap_or_default(),
            finalizers: meta.finalizers.unwrap_or_default(),
            deleting: meta.deletion_timestamp.is_some(),
        })
    }

    pub fn has_finalizer(&self, name: &str) -> bool {
        self.finalizers.iter().any(|finalizer| finalizer == name)
    }

    /// It stays until its dependents are gone.
    pub fn awaits_dependents(&self) -> bool {
        self.deleting && self.has_finalizer(FOREGROUND)
    }

    pub fn blocks(&self, owner: &str) -> bool {
        self.owners.iter().any(|it| it.uid == owner && it.block_owner_deletion == Some(true))
    }
}

#[derive(Default)]
pub struct Graph {
    objects: HashMap<String, Object>,
    dependents: HashMap<String, HashSet<String>>,
    deleted: VecDeque<String>,
    /// Counts the lists that were compared with the graph.
    pub lists: u64,
}

impl Graph {
    pub fn get(&self, uid: &str) -> Option<&Object> {
        self.objects.get(uid)
    }

    pub fn dependents(&self, uid: &str) -> impl Iterator<Item = &Object> {
        self.dependents.get(uid).into_iter().flatten().filter_map(|uid| self.objects.get(uid))
    }

    /// The uids of all objects of one kind.
    pub fn of_kind(&self, kind: &KindName) -> Vec<String> {
        self.objects
            .values()
            .filter(|object| object.kind == *kind)
            .map(|object| object.uid.clone())
            .collect()
    }

    pub fn in_namespace(&self, namespace: &str) -> Vec<Object> {
        let inside =
            self.objects.values().filter(|object| object.namespace.as_deref() == Some(namespace));
        inside.cloned().collect()
    }

    /// Takes in an object's present state; returns the uids that must be looked at.
    pub fn observe(&mut self, object: Object) -> Vec<String> {
        let uid = object.uid.clone();
        let old = self.objects.get(&uid).cloned();
        if let Some(old) = &old {
            for owner in &old.owners {
                self.unlink(&owner.uid, &uid);
            }
        }
        for owner in &object.owners {
            self.dependents.entry(owner.uid.clone()).or_default().insert(uid.clone());
        }
        let mut look = Vec::new();
        // An owner that waits for its dependents may have lost, or got, one that blocks it.
        for owner in old.iter().flat_map(|old| &old.owners).chain(&object.owners) {
            if self.objects.get(&owner.uid).is_some_and(Object::awaits_dependents) {
                look.push(owner.uid.clone());
            }
        }
        let unsure = object
            .owners
            .iter()
            .any(|owner| self.objects.get(&owner.uid).is_none_or(Object::awaits_dependents));
        let working =
            object.deleting && (object.has_finalizer(FOREGROUND) || object.has_finalizer(ORPHAN));
        let same = old.as_ref().is_some_and(|old| {
            old.owners == object.owners
                && old.deleting == object.deleting
                && old.finalizers == object.finalizers
        });
        if !same && (unsure || working) {
            look.push(uid.clone());
        }
        self.objects.insert(uid, object);
        look
    }

    /// Takes in an owner that was found by asking the API, so that its end will be noticed even if its
    /// kind is not watched yet: the kind's first list will miss it. Returns the uids that must be
    /// looked at; `None`: it was deleted since.
    pub fn learn(&mut self, object: Object) -> Option<Vec<String>> {
        if self.deleted.contains(&object.uid) {
            return None;
        }
        if self.objects.contains_key(&object.uid) {
            return Some(Vec::new());
        }
        Some(self.observe(object))
    }

    /// Takes a deleted object out for good; returns the uids that must be looked at.
    pub fn bury(&mut self, uid: &str) -> Vec<String> {
        if self.deleted.len() == REMEMBERED_DELETIONS {
            self.deleted.pop_front();
        }
        self.deleted.push_back(uid.to_owned());
        self.remove(uid)
    }

    /// Takes an object out; returns the uids that must be looked at.
    pub fn remove(&mut self, uid: &str) -> Vec<String> {
        let Some(gone) = self.objects.remove(uid) else { return Vec::new() };
        let mut look: Vec<String> =
            self.dependents.get(uid).into_iter().flatten().cloned().collect();
        for owner in &gone.owners {
            self.unlink(&owner.uid, uid);
            if self.objects.get(&owner.uid).is_some_and(|owner| owner.deleting) {
                look.push(owner.uid.clone());
            }
        }
        look
    }

    fn unlink(&mut self, owner: &str, dependent: &str) {
        if let Some(dependents) = self.dependents.get_mut(owner) {
            dependents.remove(dependent);
            if dependents.is_empty() {
                self.dependents.remove(owner);
            }
        }
    }
}
