//! A local copy of one kind of object, without a gap while it is listed again.

use std::collections::HashMap;

use kube::{
    Resource,
    runtime::{reflector::Lookup, watcher::Event},
};

/// Namespace and name.
type Key = (String, String);

#[derive(Debug)]
pub struct Mirror<K> {
    objects: HashMap<Key, K>,
    /// Filled while a list arrives, and put in place when it is whole.
    incoming: HashMap<Key, K>,
    synced: bool,
}

impl<K> Default for Mirror<K> {
    fn default() -> Self {
        Self { objects: HashMap::new(), incoming: HashMap::new(), synced: false }
    }
}

impl<K: Resource + Lookup> Mirror<K> {
    pub fn apply(&mut self, event: Event<K>) {
        match event {
            Event::Init => self.incoming.clear(),
            Event::InitApply(object) => {
                self.incoming.insert(key(&object), object);
            }
            Event::InitDone => {
                self.objects = std::mem::take(&mut self.incoming);
                self.synced = true;
            }
            Event::Apply(object) => {
                self.objects.insert(key(&object), object);
            }
            Event::Delete(object) => {
                self.objects.remove(&key(&object));
            }
        }
    }

    pub fn is_synced(&self) -> bool {
        self.synced
    }

    pub fn get(&self, namespace: &str, name: &str) -> Option<&K> {
        // Asked once per workload and table: a key of borrowed parts is not worth its trouble.
        self.objects.get(&(namespace.to_owned(), name.to_owned()))
    }

    pub fn iter(&self) -> impl Iterator<Item = &K> {
        self.objects.values()
    }
}

fn key<K: Resource>(object: &K) -> Key {
    let meta = object.meta();
    (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Namespace;

    use super::*;

    fn named(name: &str) -> Namespace {
        let mut namespace = Namespace::default();
        namespace.metadata.name = Some(name.to_owned());
        namespace
    }

    #[test]
    fn attack_27_a_new_list_leaves_no_gap() {
        let mut mirror = Mirror::default();
        for event in [Event::Init, Event::InitApply(named("a")), Event::InitDone] {
            mirror.apply(event);
        }
        assert!(mirror.is_synced() && mirror.get("", "a").is_some());
        mirror.apply(Event::Init);
        mirror.apply(Event::InitApply(named("b")));
        assert!(mirror.get("", "a").is_some(), "the old picture stays until the new one is whole");
        assert!(mirror.get("", "b").is_none());
        mirror.apply(Event::InitDone);
        assert!(mirror.get("", "a").is_none() && mirror.get("", "b").is_some());
    }

    #[test]
    fn a_list_that_breaks_off_is_forgotten() {
        let mut mirror = Mirror::default();
        mirror.apply(Event::Init);
        mirror.apply(Event::InitApply(named("a")));
        mirror.apply(Event::Init);
        mirror.apply(Event::InitDone);
        assert_eq!(mirror.iter().count(), 0);
    }
}
