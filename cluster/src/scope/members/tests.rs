use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::{labels::SCOPE, resources::Workspace};

fn project(name: &str, scope: Option<&str>) -> Meta {
    let labels = scope.map(|scope| json!({SCOPE: scope}));
    let metadata = json!({"name": name, "labels": labels});
    serde_json::from_value(json!({"metadata": metadata})).unwrap()
}

fn lab(namespace: &str) -> Workspace {
    serde_json::from_value(json!({
        "apiVersion": "dormouse.dev/v1alpha1", "kind": "Workspace",
        "metadata": {"name": "lab", "namespace": namespace},
        "spec": {"owner": "alice", "image": "any"},
    }))
    .unwrap()
}

/// What a store would hold after the events, and whether it is whole.
#[derive(Default)]
struct Store {
    objects: BTreeSet<String>,
    incoming: BTreeSet<String>,
    whole: bool,
}

impl Store {
    fn learn(&mut self, events: Vec<Event<Workspace>>) {
        for event in events {
            let namespace = |object: &Workspace| object.metadata.namespace.clone().unwrap();
            match event {
                Event::Init => self.incoming.clear(),
                Event::InitApply(object) => drop(self.incoming.insert(namespace(&object))),
                Event::InitDone => {
                    self.objects = std::mem::take(&mut self.incoming);
                    self.whole = true;
                }
                Event::Apply(object) => drop(self.objects.insert(namespace(&object))),
                Event::Delete(object) => {
                    assert!(self.objects.remove(&namespace(&object)), "it was never there");
                }
            }
        }
    }
}

struct Followed {
    members: Members<Workspace>,
    store: Store,
}

impl Followed {
    fn new(scope: &str) -> Self {
        Self { members: Members::new(scope.parse().unwrap()), store: Store::default() }
    }

    fn project(&mut self, event: Event<Meta>) {
        let events = self.members.learn(Change::Project(Box::new(News::Event(event))));
        self.store.learn(events);
    }

    fn object(&mut self, news: News<Workspace>) {
        let events = self.members.learn(Change::Object(news));
        self.store.learn(events);
    }

    fn shown(&self) -> Vec<&str> {
        self.store.objects.iter().map(String::as_str).collect()
    }
}

#[test]
fn a_workload_that_is_seen_before_its_project_waits() {
    for scope in ["default", "dev"] {
        let mut it = Followed::new(scope);
        it.object(News::Event(Event::Init));
        it.object(News::Event(Event::InitApply(lab("dev-alice"))));
        it.object(News::Event(Event::InitDone));
        assert!(!it.store.whole, "nobody knows yet whose it is");
        it.project(Event::Init);
        it.project(Event::InitApply(project("dev-alice", Some("dev"))));
        it.project(Event::InitDone);
        assert!(it.store.whole);
        assert_eq!(it.shown().len(), usize::from(scope == "dev"));
    }
}

#[test]
fn a_label_that_changes_moves_what_is_in_the_namespace() {
    let (mut one, mut other) = (Followed::new("default"), Followed::new("dev"));
    for it in [&mut one, &mut other] {
        it.project(Event::Init);
        it.project(Event::InitDone);
        it.object(News::Event(Event::Init));
        it.object(News::Event(Event::InitDone));
        it.object(News::Event(Event::Apply(lab("team"))));
    }
    assert_eq!((one.shown(), other.shown()), (vec!["team"], vec![]), "no Project is the default");
    for (label, mine, theirs) in [
        (Some("dev"), vec![], vec!["team"]),
        (None, vec!["team"], vec![]),
        (Some("Nobody's"), vec![], vec![]),
        (Some("dev"), vec![], vec!["team"]),
    ] {
        for it in [&mut one, &mut other] {
            it.project(Event::Apply(project("team", label)));
        }
        assert_eq!((one.shown(), other.shown()), (mine, theirs), "{label:?}");
    }
    let key = || (String::from("team"), String::from("lab"));
    other.object(News::Unreadable(key()));
    assert!(other.shown().is_empty(), "what cannot be read is not acted on");
    for it in [&mut one, &mut other] {
        it.project(Event::Delete(project("team", Some("dev"))));
    }
    assert_eq!(one.shown(), ["team"], "it was readable when it was seen last");
    assert!(other.shown().is_empty());
}

#[derive(Debug, Clone)]
enum Step {
    Project(usize, Option<Option<&'static str>>),
    Object(usize, bool),
    ListProjects,
    ListObjects,
}

fn step() -> impl Strategy<Value = Step> {
    let label = prop::sample::select(vec![None, Some(""), Some("dev"), Some("other"), Some("X")]);
    prop_oneof![
        4 => (0..3usize, prop::option::of(label)).prop_map(|(at, to)| Step::Project(at, to)),
        4 => (0..3usize, any::<bool>()).prop_map(|(at, there)| Step::Object(at, there)),
        1 => Just(Step::ListProjects),
        1 => Just(Step::ListObjects),
    ]
}

const NAMESPACES: [&str; 3] = ["a", "b", "c"];

proptest! {
    /// In whatever order it is learnt, each workload is in exactly the scope of its Project.
    #[test]
    fn every_order_ends_with_the_same_members(steps in prop::collection::vec(step(), 0..40)) {
        let mut all = [Followed::new("default"), Followed::new("dev"), Followed::new("other")];
        let mut projects = BTreeMap::<&str, Option<&str>>::new();
        let mut objects = BTreeSet::<&str>::new();
        for step in steps.into_iter().chain([Step::ListObjects, Step::ListProjects]) {
            match step {
                Step::Project(at, to) => {
                    let name = NAMESPACES[at];
                    let before = projects.remove(name);
                    let event = match (to, before) {
                        (Some(label), _) => {
                            projects.insert(name, label);
                            Event::Apply(project(name, label))
                        }
                        (None, Some(label)) => Event::Delete(project(name, label)),
                        (None, None) => continue,
                    };
                    all.iter_mut().for_each(|it| it.project(event.clone()));
                }
                Step::Object(at, there) => {
                    let name = NAMESPACES[at];
                    let event = match (there, objects.remove(name)) {
                        (true, _) => {
                            objects.insert(name);
                            Event::Apply(lab(name))
                        }
                        (false, true) => Event::Delete(lab(name)),
                        (false, false) => continue,
                    };
                    all.iter_mut().for_each(|it| it.object(News::Event(event.clone())));
                }
                Step::ListProjects => for it in &mut all {
                    it.project(Event::Init);
                    for (name, label) in &projects {
                        it.project(Event::InitApply(project(name, *label)));
                    }
                    it.project(Event::InitDone);
                },
                Step::ListObjects => for it in &mut all {
                    it.object(News::Event(Event::Init));
                    for name in &objects {
                        it.object(News::Event(Event::InitApply(lab(name))));
                    }
                    it.object(News::Event(Event::InitDone));
                },
            }
        }
        for (it, scope) in all.iter().zip([None, Some("dev"), Some("other")]) {
            let of = |name: &&&str| {
                let label = projects.get(**name).copied().flatten().filter(|label| !label.is_empty());
                label == scope
            };
            let wanted: Vec<_> = objects.iter().filter(of).copied().collect();
            prop_assert_eq!(it.shown(), wanted, "{:?}", scope);
        }
    }
}
