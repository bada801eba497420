//! Names that strangers write: the user name of an SSH connection, and what it may come to.
#![no_main]

use std::{sync::Arc, time::Duration};

use domain::{
    access::{AccessPolicy, Target, authorize},
    activity::Tracker,
    identity::{Credential, CredentialKind, Identity},
    name::{NAME_MAX, ProjectName, USER_MAX, UserName, WorkloadName},
    route::{Route, RouteSpec, RouteTable, State},
    workload::{Protocol, WorkloadKind, WorkloadRef},
};
use libfuzzer_sys::fuzz_target;

fn route(tracker: &Tracker, name: &str, project: &str, owner: &str) -> Arc<Route> {
    let workload = WorkloadRef {
        kind: WorkloadKind::Workspace,
        project: project.parse().unwrap(),
        name: name.parse().unwrap(),
    };
    let cell = tracker.cell(&workload);
    let spec = RouteSpec {
        host: format!("{}.example.test", workload.host_label()),
        workload,
        access: AccessPolicy { owner: Some(owner.parse().unwrap()), ..Default::default() },
        state: State::Running,
        endpoints: Vec::new(),
        routing: Default::default(),
        protocol: Protocol::Http,
        wake_hold: Duration::from_secs(60),
        traffic: Default::default(),
        agent: None,
    };
    Arc::new(Route::new(spec, cell, None))
}

fuzz_target!(|text: &str| {
    if let Ok(name) = text.parse::<UserName>() {
        assert_eq!(name.as_str(), text);
        assert!(text.len() <= USER_MAX && text.is_ascii());
    }
    let label = text.parse::<WorkloadName>().is_ok();
    assert_eq!(label, text.parse::<ProjectName>().is_ok());
    assert!(!label || text.len() <= NAME_MAX && !text.contains("--"));

    let tracker = Tracker::new();
    let table = RouteTable::new([
        route(&tracker, "lab", "alice", "alice"),
        route(&tracker, "lab", "bob", "bob"),
        route(&tracker, "gpu", "bob", "bob"),
    ]);
    let identity = Arc::new(Identity {
        subject: "alice".to_owned(),
        user: "alice".parse().unwrap(),
        email: None,
        groups: Vec::new(),
        credential: Credential {
            kind: CredentialKind::SshKey,
            id: "k".to_owned(),
            session: None,
            expires_at: jiff::Timestamp::MAX,
            scopes: Vec::new(),
            workload: None,
        },
    });
    for target in [Target::Ssh(text), Target::Host(text)] {
        if let Some(grant) = authorize(&table, &identity, target) {
            assert_eq!(grant.workload().project.as_str(), "alice");
        }
    }
    let known = ["lab", "lab.alice"].contains(&text);
    assert_eq!(authorize(&table, &identity, Target::Ssh(text)).is_some(), known);
});
