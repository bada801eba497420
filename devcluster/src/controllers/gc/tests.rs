use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::PropagationPolicy;
use proptest::prelude::*;

use super::graph::{FOREGROUND, Graph, KindName, ORPHAN, Object};
use super::plan::{Owner, Step, deletion_step, ownership_step};

fn object(uid: &str, owners: &[(&str, bool)]) -> Object {
    let owners = owners.iter().map(|(owner, blocks)| OwnerReference {
        uid: (*owner).to_owned(),
        name: (*owner).to_owned(),
        block_owner_deletion: Some(*blocks),
        ..OwnerReference::default()
    });
    Object {
        kind: KindName { group: String::new(), plural: "things".into() },
        namespace: Some("a".into()),
        name: uid.to_owned(),
        uid: uid.to_owned(),
        version: String::new(),
        owners: owners.collect(),
        finalizers: Vec::new(),
        deleting: false,
    }
}

/// An API server's objects, and a collector that hears of changes late and in any order.
#[derive(Default)]
struct World {
    objects: BTreeMap<String, Object>,
    graph: Graph,
    queue: BTreeSet<String>,
    unheard: BTreeSet<String>,
}

impl World {
    fn put(&mut self, object: Object) {
        self.unheard.insert(object.uid.clone());
        self.objects.insert(object.uid.clone(), object);
    }

    fn hear(&mut self, uid: &str) {
        self.unheard.remove(uid);
        let look = match self.objects.get(uid) {
            Some(object) => self.graph.observe(object.clone()),
            None => self.graph.bury(uid),
        };
        self.queue.extend(look);
    }

    /// A new process: it lists everything, and remembers nothing.
    fn restart(&mut self) {
        (self.graph, self.queue) = (Graph::default(), BTreeSet::new());
        self.unheard = self.objects.keys().cloned().collect();
    }

    fn delete(&mut self, uid: &str, policy: &PropagationPolicy) {
        let Some(object) = self.objects.get_mut(uid) else { return };
        object.deleting = true;
        match policy {
            PropagationPolicy::Background => {}
            PropagationPolicy::Foreground => object.finalizers.push(FOREGROUND.into()),
            PropagationPolicy::Orphan => object.finalizers.push(ORPHAN.into()),
        }
        self.settle(uid);
    }

    fn settle(&mut self, uid: &str) {
        self.unheard.insert(uid.to_owned());
        if self
            .objects
            .get(uid)
            .is_some_and(|object| object.deleting && object.finalizers.is_empty())
        {
            self.objects.remove(uid);
        }
    }

    fn work(&mut self, uid: &str) {
        self.queue.remove(uid);
        let Some(object) = self.graph.get(uid).cloned() else { return };
        let step = deletion_step(&object, &self.graph);
        let step = step.unwrap_or_else(|| {
            let owners: Vec<_> =
                object.owners.iter().map(|owner| (owner.clone(), self.resolve(owner))).collect();
            ownership_step(&object, &self.graph, &owners)
        });
        // A write on an old state is refused, and tried again after the next event.
        let stale = self.objects.get(uid) != Some(&object);
        if stale && !matches!(step, Step::Nothing | Step::LookAt(_)) {
            self.queue.insert(uid.to_owned());
            return;
        }
        match step {
            Step::Nothing => {}
            Step::LookAt(uids) => self.queue.extend(uids),
            Step::Delete(policy) => self.delete(uid, &policy),
            Step::KeepOwners(owners) => {
                self.objects.get_mut(uid).unwrap().owners = owners;
                self.settle(uid);
            }
            Step::RemoveFinalizer(name) => {
                self.objects.get_mut(uid).unwrap().finalizers.retain(|finalizer| finalizer != name);
                self.settle(uid);
            }
            Step::Orphan(dependents) => {
                for dependent in dependents {
                    if let Some(held) = self.objects.get_mut(&dependent) {
                        held.owners.retain(|owner| owner.uid != uid);
                    }
                    self.hear(&dependent);
                }
                self.queue.insert(uid.to_owned());
            }
        }
    }

    fn resolve(&mut self, owner: &OwnerReference) -> Owner {
        if self.graph.get(&owner.uid).is_none()
            && let Some(live) = self.objects.get(&owner.uid)
        {
            let look = self.graph.learn(live.clone()).unwrap();
            self.queue.extend(look);
        }
        self.graph.get(&owner.uid).map_or(Owner::Absent, |it| {
            if it.awaits_dependents() { Owner::Waiting } else { Owner::Present }
        })
    }

    /// One thing happens: an event arrives, or a key is worked on.
    fn step(&mut self, choice: usize) -> bool {
        let total = self.unheard.len() + self.queue.len();
        if total == 0 {
            return false;
        }
        let choice = choice % total;
        if let Some(uid) = self.unheard.iter().nth(choice).cloned() {
            self.hear(&uid);
        } else if let Some(uid) = self.queue.iter().nth(choice - self.unheard.len()).cloned() {
            self.work(&uid);
        }
        true
    }

    fn run(&mut self) {
        for round in 0..100_000 {
            if !self.step(round * 7) {
                return;
            }
        }
        panic!("it never comes to rest");
    }

    fn names(&self) -> Vec<&str> {
        self.objects.keys().map(String::as_str).collect()
    }
}

fn world(objects: &[(&str, &[(&str, bool)])]) -> World {
    let mut world = World::default();
    objects.iter().for_each(|(uid, owners)| world.put(object(uid, owners)));
    world.run();
    world
}

const CHAIN: &[(&str, &[(&str, bool)])] = &[
    ("deployment", &[]),
    ("set", &[("deployment", true)]),
    ("pod", &[("set", true)]),
    ("other", &[]),
];

#[test]
fn background_takes_the_whole_chain() {
    let mut world = world(CHAIN);
    world.delete("deployment", &PropagationPolicy::Background);
    assert!(!world.objects.contains_key("deployment"), "the owner goes at once");
    world.run();
    assert_eq!(world.names(), ["other"]);
}

#[test]
fn foreground_takes_the_leaves_first() {
    let mut world = world(CHAIN);
    world.objects.get_mut("pod").unwrap().finalizers.push("slow".into());
    world.unheard.insert("pod".into());
    world.run();
    world.delete("deployment", &PropagationPolicy::Foreground);
    world.run();
    assert_eq!(world.names(), ["deployment", "other", "pod", "set"], "all wait for the pod");
    assert!(world.objects["pod"].deleting && world.objects["set"].awaits_dependents());
    world.objects.get_mut("pod").unwrap().finalizers.clear();
    world.settle("pod");
    world.run();
    assert_eq!(world.names(), ["other"]);
}

#[test]
fn foreground_does_not_wait_for_what_does_not_block() {
    let mut world = world(&[("owner", &[]), ("claim", &[("owner", false)])]);
    world.objects.get_mut("claim").unwrap().finalizers.push("in use".into());
    world.hear("claim");
    world.delete("owner", &PropagationPolicy::Foreground);
    world.run();
    assert_eq!(world.names(), ["claim"]);
    assert!(world.objects["claim"].deleting);
}

#[test]
fn orphans_stay_without_owner() {
    let mut world = world(CHAIN);
    world.delete("deployment", &PropagationPolicy::Orphan);
    world.run();
    assert_eq!(world.names(), ["other", "pod", "set"]);
    assert!(world.objects["set"].owners.is_empty());
}

#[test]
fn a_dependent_that_comes_after_its_owner_went_goes_too() {
    let mut world = world(CHAIN);
    world.delete("set", &PropagationPolicy::Background);
    world.run();
    world.put(object("late", &[("set", true)]));
    world.run();
    assert_eq!(world.names(), ["deployment", "other"]);
}

#[test]
fn one_living_owner_is_enough() {
    let mut world = world(&[("a", &[]), ("b", &[]), ("shared", &[("a", true), ("b", true)])]);
    world.delete("a", &PropagationPolicy::Background);
    world.run();
    assert_eq!(world.names(), ["b", "shared"]);
    assert_eq!(world.objects["shared"].owners.len(), 1);
}

#[test]
fn an_owner_that_is_known_only_by_asking_is_missed_when_its_kind_is_listed() {
    let mut graph = Graph::default();
    assert!(graph.observe(object("child", &[("owner", true)])).contains(&"child".to_owned()));
    assert_eq!(graph.learn(object("owner", &[])), Some(vec![]));
    // The first list of its kind comes after it was deleted.
    assert_eq!(graph.of_kind(&object("owner", &[]).kind).len(), 2);
    assert_eq!(graph.remove("owner"), ["child"]);
    // A list that misses it may be older than the answer.
    assert!(graph.learn(object("owner", &[("gone", true)])).unwrap().contains(&"owner".to_owned()));
    graph.bury("owner");
    assert_eq!(graph.learn(object("owner", &[])), None, "a deletion is final");
}

proptest! {
    /// Whatever is deleted, however late and in whatever order events arrive, and with restarts in
    /// the middle: what has a living owner (or never had one) stays, all else goes.
    #[test]
    fn exactly_what_nobody_owns_goes(
        owners in proptest::collection::vec(proptest::collection::vec((0..12_usize, any::<bool>()), 0..3), 1..12),
        late in proptest::collection::vec(0..12_usize, 0..4),
        deletions in proptest::collection::vec((0..12_usize, 0..2_u8, 0..40_usize, 0..4_u8), 0..6),
    ) {
        let mut world = World::default();
        let uid = |index: usize| format!("o{index:02}");
        for (index, owners) in owners.iter().enumerate() {
            // Only earlier ones can own, so there are no cycles.
            let owners: Vec<_> = owners.iter().filter(|(owner, _)| *owner < index).map(|(owner, blocks)| (uid(*owner), *blocks)).collect();
            let owners: Vec<_> = owners.iter().map(|(owner, blocks)| (owner.as_str(), *blocks)).collect();
            world.put(object(&uid(index), &owners));
        }
        let mut deleted = BTreeSet::new();
        for (index, policy, steps, restart) in deletions {
            (0..steps).for_each(|step| { world.step(step * 5 + index); });
            if restart == 0 {
                world.restart();
            }
            if world.objects.get(&uid(index)).is_some_and(|object| !object.deleting) {
                deleted.insert(uid(index));
                let policies = [PropagationPolicy::Background, PropagationPolicy::Foreground];
                world.delete(&uid(index), &policies[usize::from(policy)]);
            }
        }
        let mut made: BTreeMap<String, Vec<String>> = owners.iter().enumerate().map(|(index, owners)| {
            (uid(index), owners.iter().filter(|(owner, _)| *owner < index).map(|(owner, _)| uid(*owner)).collect())
        }).collect();
        for (number, owner) in late.iter().enumerate() {
            let name = format!("late{number}");
            world.put(object(&name, &[(&uid(*owner), true)]));
            made.insert(name, vec![uid(*owner)]);
        }
        world.run();
        // In order of creation, so owners are judged before what they own.
        let mut alive: BTreeSet<String> = BTreeSet::new();
        for (name, owners) in made.iter().filter(|(name, _)| name.starts_with('o')).chain(made.iter().filter(|(name, _)| name.starts_with('l'))) {
            let owned = owners.is_empty() || owners.iter().any(|owner| alive.contains(owner));
            if owned && !deleted.contains(name) {
                alive.insert(name.clone());
            }
        }
        prop_assert_eq!(world.objects.keys().cloned().collect::<BTreeSet<_>>(), alive);
    }
}
