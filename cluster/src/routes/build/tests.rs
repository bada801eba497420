use domain::{
    access::{Readiness, Target, authorize},
    identity::{Credential, CredentialKind, Identity},
};
use kube::runtime::watcher::Event;
use serde_json::{Value, json};

use super::*;

fn cluster(workspaces: &[Value], apps: &[Value], slices: &[Value]) -> Cluster {
    fn fill<K>(objects: &[Value]) -> Mirror<K>
    where
        K: kube::Resource<DynamicType = ()> + Clone + serde::de::DeserializeOwned,
    {
        let mut mirror = Mirror::default();
        for object in objects {
            mirror.apply(Event::InitApply(serde_json::from_value(object.clone()).unwrap()));
        }
        mirror.apply(Event::InitDone);
        mirror
    }
    let project = json!({"apiVersion": "dormouse.dev/v1alpha1", "kind": "Project",
        "metadata": {"name": "team"},
        "spec": {"members": [{"user": "bob", "role": "Viewer"}, {"group": "ml", "role": "Member"}]}});
    Cluster {
        projects: fill(&[project]),
        workspaces: fill(workspaces),
        apps: fill(apps),
        endpoints: fill(slices),
    }
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

fn table(cluster: &Cluster) -> RouteTable {
    let options = Options { base_domain: "localhost".to_owned() };
    cluster.route_table(&options, &Tracker::new())
}

const HOST: Target<'_> = Target::Host("web--team.localhost");

#[test]
fn ready_addresses_of_all_slices_are_dialled() {
    let app =
        workload("App", "web", "2026-01-01T00:00:00Z", json!({"status": {"phase": "Running"}}));
    let slices = [slice("web", &[("10.0.0.2", true), ("10.0.0.3", false), ("10.0.0.1", true)])];
    let table = table(&cluster(&[], &[app], &slices));
    let grant = authorize(&table, &identity("alice", &[]), HOST).unwrap();
    let expected: [SocketAddr; 2] =
        ["10.0.0.1:8080".parse().unwrap(), "10.0.0.2:8080".parse().unwrap()];
    assert_eq!(grant.readiness(), Readiness::Ready(&expected));
}

#[test]
fn sharing_resolves_members_of_the_project() {
    let shared = json!({"spec": {"sharing": {"project": true}}});
    let app = workload("App", "web", "2026-01-01T00:00:00Z", shared);
    let table = table(&cluster(&[], &[app], &[]));
    assert!(authorize(&table, &identity("bob", &[]), HOST).is_some());
    assert!(authorize(&table, &identity("carol", &["ml"]), HOST).is_some());
    assert!(authorize(&table, &identity("carol", &["other"]), HOST).is_none());
}

#[test]
fn unshared_is_the_owners_alone() {
    let app = workload("App", "web", "2026-01-01T00:00:00Z", json!({}));
    let table = table(&cluster(&[], &[app], &[]));
    assert!(authorize(&table, &identity("alice", &[]), HOST).is_some());
    assert!(authorize(&table, &identity("bob", &["ml"]), HOST).is_none());
}

#[test]
fn the_older_workload_keeps_the_host() {
    let young =
        workload("Workspace", "web", "2026-02-01T00:00:00Z", json!({"spec": {"owner": "bob"}}));
    let old = workload("App", "web", "2026-01-01T00:00:00Z", json!({}));
    let table = table(&cluster(&[young], &[old], &[]));
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
    assert!(table(&cluster(&[], &[app], &[])).is_empty());
}
