//! A local copy of one kind of object, without a gap while it is listed again.

use std::collections::BTreeMap;

use kube::{
    Resource,
    runtime::{reflector::Lookup, watcher::Event},
};

use crate::watch::News;
pub use crate::watch::{Key, key};

#[derive(Debug)]
pub struct Mirror<K> {
    objects: BTreeMap<Key, K>,
    /// Filled while a list arrives, and put in place when it is whole.
    incoming: BTreeMap<Key, K>,
    synced: bool,
}

/// What an event did to the copy.
#[derive(Debug)]
pub enum Changed<K> {
    Nothing,
    /// A list took the place of everything.
    All,
    One {
        key: Key,
        before: Option<K>,
        gone: bool,
    },
}

impl<K> Default for Mirror<K> {
    fn default() -> Self {
        Self { objects: BTreeMap::new(), incoming: BTreeMap::new(), synced: false }
    }
}

impl<K: Resource + Lookup + Clone> Mirror<K> {
    pub fn learn(&mut self, news: News<K>) -> Changed<K> {
        match news {
            News::Event(event) => self.apply(event),
            // What was known of it goes on; a list that arrives is not allowed to lose it.
            News::Unreadable(key) => {
                if let Some(known) = self.objects.get(&key) {
                    self.incoming.insert(key, known.clone());
                }
                Changed::Nothing
            }
            News::Gone(key) => {
                self.incoming.remove(&key);
                let before = self.objects.remove(&key);
                Changed::One { key, before, gone: true }
            }
        }
    }

    pub fn apply(&mut self, event: Event<K>) -> Changed<K> {
        match event {
            Event::Init => {
                self.incoming.clear();
                Changed::Nothing
            }
            Event::InitApply(object) => {
                self.incoming.insert(key(object.meta()), object);
                Changed::Nothing
            }
            Event::InitDone => {
                self.objects = std::mem::take(&mut self.incoming);
                self.synced = true;
                Changed::All
            }
            Event::Apply(object) => {
                let key = key(object.meta());
                let before = self.objects.insert(key.clone(), object);
                Changed::One { key, before, gone: false }
            }
            Event::Delete(object) => {
                let key = key(object.meta());
                let before = self.objects.remove(&key);
                Changed::One { key, before, gone: true }
            }
        }
    }

    pub fn is_synced(&self) -> bool {
        self.synced
    }

    pub fn get(&self, key: &Key) -> Option<&K> {
        self.objects.get(key)
    }

    pub fn iter(&self) -> impl Iterator<Item = &K> {
        self.objects.values()
    }

    pub fn entries(&self) -> impl Iterator<Item = (&Key, &K)> {
        self.objects.iter()
    }

    pub fn keys_in<'m>(&'m self, namespace: &'m str) -> impl Iterator<Item = &'m Key> {
        let from = (namespace.to_owned(), String::new());
        let keys = self.objects.range(from..).map(|(key, _)| key);
        keys.take_while(move |key| key.0 == namespace)
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{Namespace, Pod};

    use super::*;

    fn named(name: &str) -> Namespace {
        let mut namespace = Namespace::default();
        namespace.metadata.name = Some(name.to_owned());
        namespace
    }

    fn has(mirror: &Mirror<Namespace>, name: &str) -> bool {
        mirror.get(&(String::new(), name.to_owned())).is_some()
    }

    #[test]
    fn attack_27_a_new_list_leaves_no_gap() {
        let mut mirror = Mirror::default();
        for event in [Event::Init, Event::InitApply(named("a")), Event::InitDone] {
            mirror.apply(event);
        }
        assert!(mirror.is_synced() && has(&mirror, "a"));
        mirror.apply(Event::Init);
        mirror.apply(Event::InitApply(named("b")));
        assert!(has(&mirror, "a"), "the old picture stays until the new one is whole");
        assert!(!has(&mirror, "b"));
        assert!(matches!(mirror.apply(Event::InitDone), Changed::All));
        assert!(!has(&mirror, "a") && has(&mirror, "b"));
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

    #[test]
    fn what_becomes_unreadable_keeps_its_last_state_until_it_goes() {
        let key = |name: &str| (String::new(), name.to_owned());
        let mut mirror = Mirror::default();
        for event in [Event::Init, Event::InitApply(named("a")), Event::InitDone] {
            mirror.learn(News::Event(event));
        }
        assert!(matches!(mirror.learn(News::Unreadable(key("a"))), Changed::Nothing));
        mirror.learn(News::Event(Event::Init));
        mirror.learn(News::Unreadable(key("a")));
        mirror.learn(News::Unreadable(key("never-read")));
        mirror.learn(News::Event(Event::InitDone));
        assert!(has(&mirror, "a") && !has(&mirror, "never-read"));
        let gone = mirror.learn(News::Gone(key("a")));
        assert!(matches!(gone, Changed::One { gone: true, before: Some(_), .. }));
        assert!(!has(&mirror, "a"));
    }

    #[test]
    fn a_namespace_is_all_of_its_own_and_nothing_else() {
        let mut mirror = Mirror::default();
        for (namespace, name) in [("a", "z"), ("b", "y"), ("b", "x"), ("bb", "w")] {
            let mut pod = Pod::default();
            pod.metadata.namespace = Some(namespace.to_owned());
            pod.metadata.name = Some(name.to_owned());
            mirror.apply(Event::Apply(pod));
        }
        let names: Vec<_> = mirror.keys_in("b").map(|key| key.1.as_str()).collect();
        assert_eq!(names, ["x", "y"]);
    }
}
