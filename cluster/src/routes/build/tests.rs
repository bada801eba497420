use domain::{
    access::{Readiness, Target, authorize},
    identity::{Credential, CredentialKind, Identity},
};
use kube::runtime::watcher::Event;
use serde_json::{Value, json};

use super::*;
use crate::watch::News;

fn listed<K>(objects: &[Value]) -> Vec<Event<K>>
where
    K: kube::Resource<DynamicType = ()> + Clone + serde::de::DeserializeOwned,
{
    let read = |object: &Value| serde_json::from_value(object.clone()).unwrap();
    let all = objects.iter().map(|object| Event::InitApply(read(object)));
    std::iter::once(Event::Init).chain(all).chain([Event::InitDone]).collect()
}

fn cluster(workspaces: &[Value], apps: &[Value], slices: &[Value]) -> Cluster {
    let project = json!({"apiVersion": "dormouse.dev/v1alpha1", "kind": "Project",
        "metadata": {"name": "team"},
        "spec": {"members": [{"user": "bob", "role": "Viewer"}, {"group": "ml", "role": "Member"}]}});
    let options = Options { scope: Default::default(), base_domain: "localhost".to_owned() };
    let mut cluster = Cluster::new(options, Arc::new(Tracker::new()));
    let scopes = listed(std::slice::from_ref(&project));
    let changes = scopes.into_iter().map(|event| Change::Scope(News::Event(event)));
    let changes = changes
        .chain(listed(&[project]).into_iter().map(|event| Change::Project(News::Event(event))));
    let changes = changes
        .chain(listed(workspaces).into_iter().map(|event| Change::Workspace(News::Event(event))));
    let changes =
        changes.chain(listed(apps).into_iter().map(|event| Change::App(News::Event(event))));
    let changes = changes
        .chain(listed(slices).into_iter().map(|event| Change::Endpoints(News::Event(event))));
    changes.for_each(|change| cluster.apply(change));
    cluster
}

fn workload(kind: &str, name: &str, created: &str, changes: Value) -> Value {
    let mut object = json!({"apiVersion": "dormouse.dev/v1alpha1", "kind": kind,
        "metadata": {"name": name, "namespace": "team", "uid": name, "creationTimestamp": created},
        "spec": {"owner": "alice", "image": "any"}});
    json_patch(&mut object, changes);
    object
}

fn json_patch(object: &mut Value, changes: Value) {
    match (object, changes) {
        (Value::Object(object), Value::Object(changes)) => {
            for (name, change) in changes {
                json_patch(object.entry(name).or_insert(Value::Null), change);
            }
        }
        (object, change) => *object = change,
    }
}

fn slice(name: &str, addresses: &[(&str, bool)]) -> Value {
    let endpoints: Vec<_> = addresses
        .iter()
        .map(|(address, ready)| json!({"addresses": [address], "conditions": {"ready": ready}}))
        .collect();
    json!({"metadata": {"name": format!("{name}-x"), "namespace": "team",
            "labels": {"dormouse.dev/workload": name}},
        "addressType": "IPv4", "endpoints": endpoints,
        "ports": [{"name": "http", "port": 8080}]})
}

fn identity(user: &str, groups: &[&str]) -> Arc<Identity> {
    let credential = Credential {
        kind: CredentialKind::AccessToken,
        id: "j".to_owned(),
        session: None,
        expires_at: Timestamp::MAX,
        scopes: vec![domain::identity::USE.to_owned()],
        workload: None,
    };
    Arc::new(Identity {
        subject: user.to_owned(),
        user: user.parse().unwrap(),
        email: None,
        groups: groups.iter().map(|&g| g.to_owned()).collect(),
        credential,
    })
}

fn table(mut cluster: Cluster) -> RouteTable {
    cluster.next().unwrap()
}

const HOST: Target<'_> = Target::Host("web--team.localhost");

#[test]
fn ready_addresses_of_all_slices_are_dialled() {
    let app =
        workload("App", "web", "2026-01-01T00:00:00Z", json!({"status": {"phase": "Running"}}));
    let slices = [slice("web", &[("10.0.0.2", true), ("10.0.0.3", false), ("10.0.0.1", true)])];
    let table = table(cluster(&[], &[app], &slices));
    let grant = authorize(&table, &identity("alice", &[]), HOST).unwrap();
    let expected: [std::net::SocketAddr; 2] =
        ["10.0.0.1:8080".parse().unwrap(), "10.0.0.2:8080".parse().unwrap()];
    assert_eq!(grant.readiness(), Readiness::Ready(&expected));
}

#[test]
fn sharing_resolves_members_of_the_project() {
    let shared = json!({"spec": {"sharing": {"project": true}}});
    let app = workload("App", "web", "2026-01-01T00:00:00Z", shared);
    let table = table(cluster(&[], &[app], &[]));
    assert!(authorize(&table, &identity("bob", &[]), HOST).is_some());
    assert!(authorize(&table, &identity("carol", &["ml"]), HOST).is_some());
    assert!(authorize(&table, &identity("carol", &["other"]), HOST).is_none());
}

#[test]
fn unshared_is_the_owners_alone() {
    let app = workload("App", "web", "2026-01-01T00:00:00Z", json!({}));
    let table = table(cluster(&[], &[app], &[]));
    assert!(authorize(&table, &identity("alice", &[]), HOST).is_some());
    assert!(authorize(&table, &identity("bob", &["ml"]), HOST).is_none());
}

#[test]
fn the_older_workload_keeps_the_host() {
    let young =
        workload("Workspace", "web", "2026-02-01T00:00:00Z", json!({"spec": {"owner": "bob"}}));
    let old = workload("App", "web", "2026-01-01T00:00:00Z", json!({}));
    let table = table(cluster(&[young], &[old], &[]));
    assert_eq!(table.len(), 1);
    assert!(authorize(&table, &identity("bob", &[]), HOST).is_none());
}

#[test]
fn states_follow_sleep_and_wake() {
    let state_of = |changes| {
        let app = workload("App", "web", "2026-01-01T00:00:00Z", changes);
        state(&serde_json::from_value::<App>(app).unwrap())
    };
    let asleep = json!({"status": {"phase": "Sleeping", "sleepAt": "2026-01-01T10:00:00Z"}});
    assert_eq!(state_of(asleep.clone()), State::Sleeping);
    let mut woken = asleep;
    woken["metadata"] = json!({"annotations": {"dormouse.dev/wake-at": "2026-01-01T10:00:01Z"}});
    assert!(matches!(state_of(woken), State::Starting { .. }));
    assert_eq!(state_of(json!({"spec": {"replicas": 0}})), State::Stopped);
    assert!(matches!(state_of(json!({})), State::Starting { .. }));
    let failed = json!({"status": {"phase": "Failed", "message": "no such image"}});
    assert_eq!(state_of(failed), State::Failed { message: "no such image".to_owned() });
}

#[test]
fn what_is_being_deleted_is_gone() {
    let gone = json!({"metadata": {"deletionTimestamp": "2026-01-02T00:00:00Z"}});
    let app = workload("App", "web", "2026-01-01T00:00:00Z", gone);
    assert!(table(cluster(&[], &[app], &[])).is_empty());
}

fn web(changes: Value) -> App {
    serde_json::from_value(workload("App", "web", "2026-01-01T00:00:00Z", changes)).unwrap()
}

fn slice_of(addresses: &[(&str, bool)]) -> k8s_openapi::api::discovery::v1::EndpointSlice {
    serde_json::from_value(slice("web", addresses)).unwrap()
}

#[test]
fn what_does_not_change_a_route_makes_no_table() {
    let mut cluster = cluster(&[], &[], &[]);
    assert!(cluster.next().is_some());
    assert!(cluster.next().is_none(), "nothing happened");
    cluster.apply(Change::App(News::Event(Event::Apply(web(json!({}))))));
    assert_eq!(cluster.next().unwrap().len(), 1);
    let activity = json!({"status": {"lastActivity": {
        "at": "2026-01-01T00:00:00Z", "who": "alice", "how": "Http", "what": "open a page"}}});
    let active = json!({"metadata": {"resourceVersion": "9"}, "status": {"phase": "Running"}});
    cluster.apply(Change::App(News::Event(Event::Apply(web(active.clone())))));
    assert!(cluster.next().is_some());
    let mut again = active;
    json_patch(&mut again, activity);
    cluster.apply(Change::App(News::Event(Event::Apply(web(again)))));
    assert!(cluster.next().is_none());
}

#[test]
fn each_change_is_seen_and_older_tables_stay_as_they_were() {
    let running = json!({"status": {"phase": "Running"}});
    let alice = identity("alice", &[]);
    let ready = |table: &RouteTable| match authorize(table, &alice, HOST)?.readiness() {
        Readiness::Ready(addresses) => Some(addresses.len()),
        _ => Some(0),
    };
    let mut cluster = cluster(&[], &[], &[]);
    let empty = cluster.next().unwrap();
    cluster.apply(Change::App(News::Event(Event::Apply(web(running.clone())))));
    let without_pods = cluster.next().unwrap();
    cluster.apply(Change::Endpoints(News::Event(Event::Apply(slice_of(&[("10.0.0.1", true)])))));
    let one = cluster.next().unwrap();
    cluster.apply(Change::Endpoints(News::Event(Event::Apply(slice_of(&[
        ("10.0.0.1", true),
        ("10.0.0.2", true),
    ])))));
    let two = cluster.next().unwrap();
    cluster.apply(Change::Endpoints(News::Event(Event::Delete(slice_of(&[])))));
    let none = cluster.next().unwrap();
    cluster.apply(Change::App(News::Event(Event::Delete(web(running)))));
    let gone = cluster.next().unwrap();
    let seen: Vec<_> = [&empty, &without_pods, &one, &two, &none, &gone].map(ready).into();
    assert_eq!(seen, [None, Some(0), Some(1), Some(2), Some(0), None]);
}

#[test]
fn what_is_open_at_a_pod_is_counted_across_tables() {
    let running = json!({"status": {"phase": "Running"}});
    let slices = [slice("web", &[("10.0.0.1", true)])];
    let app = workload("App", "web", "2026-01-01T00:00:00Z", running);
    let mut cluster = cluster(&[], &[app], &slices);
    let outstanding = |table: &RouteTable| {
        let grant = authorize(table, &identity("alice", &[]), HOST).unwrap();
        grant.endpoints()[0].load().outstanding()
    };
    let first = cluster.next().unwrap();
    let grant = authorize(&first, &identity("alice", &[]), HOST).unwrap();
    let open = grant.endpoints()[0].load().begin(Duration::ZERO);
    cluster.apply(Change::Endpoints(News::Event(Event::Apply(slice_of(&[
        ("10.0.0.1", true),
        ("10.0.0.2", true),
    ])))));
    let second = cluster.next().unwrap();
    assert_eq!(outstanding(&second), 1);
    drop(open);
    assert_eq!(outstanding(&second), 0);
}

#[test]
fn terminating_pods_drain_and_a_members_change_reaches_every_route_of_the_project() {
    let shared = json!({"spec": {"sharing": {"project": true}}, "status": {"phase": "Running"}});
    let app = workload("App", "web", "2026-01-01T00:00:00Z", shared);
    let mut slice = slice("web", &[("10.0.0.1", false), ("10.0.0.2", true), ("10.0.0.3", false)]);
    slice["endpoints"][0]["conditions"] =
        json!({"ready": false, "serving": true, "terminating": true});
    let mut cluster = cluster(&[], &[app], &[slice]);
    let table = cluster.next().unwrap();
    let grant = authorize(&table, &identity("bob", &[]), HOST).unwrap();
    let ready: Vec<_> =
        grant.endpoints().iter().map(|e| (e.address().to_string(), e.is_ready())).collect();
    let expected = [("10.0.0.1:8080", false), ("10.0.0.2:8080", true)];
    assert_eq!(ready, expected.map(|(address, ready)| (address.to_owned(), ready)));
    let project = json!({"apiVersion": "dormouse.dev/v1alpha1", "kind": "Project",
        "metadata": {"name": "team"}, "spec": {"members": []}});
    cluster.apply(Change::Project(News::Event(Event::Apply(
        serde_json::from_value(project).unwrap(),
    ))));
    assert!(authorize(&cluster.next().unwrap(), &identity("bob", &[]), HOST).is_none());
}

#[test]
fn a_project_of_another_scope_has_no_routes_while_it_is_so() {
    let app = workload("App", "web", "2026-01-01T00:00:00Z", json!({}));
    let mut cluster = cluster(&[], &[app], &[slice("web", &[("10.0.0.1", true)])]);
    assert_eq!(cluster.next().unwrap().len(), 1);
    for (scope, routes) in [(Some("dev"), 0), (None, 1), (Some("other"), 0)] {
        let labels = scope.map(|scope| json!({"dormouse.dev/scope": scope}));
        // A Project that cannot be read has a scope as well.
        let project = json!({"metadata": {"name": "team", "labels": labels}, "spec": 5});
        let project = serde_json::from_value(project).unwrap();
        cluster.apply(Change::Scope(News::Event(Event::Apply(project))));
        assert_eq!(cluster.next().unwrap().len(), routes, "{scope:?}");
    }
}

/// `cargo test -p dormouse-cluster -- --ignored --nocapture ten_thousand`
#[test]
#[ignore = "prints a figure"]
fn a_change_among_ten_thousand_routes() {
    let name = |n: usize| format!("w{n}");
    let apps: Vec<_> =
        (0..10_000).map(|n| workload("App", &name(n), "2026-01-01T00:00:00Z", json!({}))).collect();
    let slices: Vec<_> = (0..10_000).map(|n| slice(&name(n), &[("10.0.0.1", true)])).collect();
    let mut cluster = cluster(&[], &apps, &slices);
    let started = std::time::Instant::now();
    assert_eq!(cluster.next().unwrap().len(), 10_000);
    println!("all routes: {:?}", started.elapsed());
    // Somebody holds each table for a while, as requests do.
    let mut held = std::collections::VecDeque::new();
    let mut took: Vec<_> = (0..1000)
        .map(|n| {
            let slice = slice(&name(n * 7), &[("10.0.0.1", true), ("10.0.0.2", true)]);
            let change = Change::Endpoints(News::Event(Event::Apply(
                serde_json::from_value(slice).unwrap(),
            )));
            let started = std::time::Instant::now();
            cluster.apply(change);
            held.push_back(cluster.next().unwrap());
            let took = started.elapsed();
            held.drain(..held.len().saturating_sub(10));
            took
        })
        .collect();
    took.sort_unstable();
    println!("one change: p50 {:?}, p99 {:?}", took[500], took[990]);
}
