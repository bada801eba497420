//! Route tables from an API server whose watches break.
#![allow(clippy::unwrap_used)]

mod api;
mod scale;

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::http::StatusCode;
use cluster::{
    routes::{Options, watch},
    watch::Watches,
};
use domain::{
    access::{Readiness, Target, authorize},
    activity::Tracker,
    identity::{Credential, CredentialKind, Identity, USE},
    route::RouteTable,
};
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::{sync::watch::Receiver, task::JoinHandle, time::timeout};
use tokio_util::sync::CancellationToken;

use self::api::FaultyApi;

const STAYS: &str = "stays--team.localhost";

fn app(name: &str) -> Value {
    json!({"apiVersion": "dormouse.dev/v1alpha1", "kind": "App",
        "metadata": {"name": name, "namespace": "team", "uid": name,
            "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"owner": "alice", "image": "any"}, "status": {"phase": "Running"}})
}

fn endpoints(name: &str, address: &str) -> Value {
    json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": name, "namespace": "team", "labels": {"dormouse.dev/workload": name}},
        "addressType": "IPv4",
        "endpoints": [{"addresses": [address], "conditions": {"ready": true}}],
        "ports": [{"name": "http", "port": 8080}]})
}

fn alice() -> Arc<Identity> {
    Arc::new(Identity {
        subject: "alice".to_owned(),
        user: "alice".parse().unwrap(),
        email: None,
        groups: vec![],
        credential: Credential {
            kind: CredentialKind::AccessToken,
            id: "j".to_owned(),
            session: None,
            expires_at: Timestamp::MAX,
            scopes: vec![USE.to_owned()],
            workload: None,
        },
    })
}

/// Where a request for the host would go.
fn dialled(table: &RouteTable, host: &str) -> Option<Vec<SocketAddr>> {
    let grant = authorize(table, &alice(), Target::Host(host))?;
    match grant.readiness() {
        Readiness::Ready(addresses) => Some(addresses.to_vec()),
        _ => Some(vec![]),
    }
}

/// A gateway's view of the cluster, and whether it ever lost sight of what was there all the time.
struct View {
    table: Receiver<Arc<RouteTable>>,
    gaps: Arc<Mutex<Vec<String>>>,
    observer: JoinHandle<()>,
    shutdown: CancellationToken,
    watches: Watches,
}

impl View {
    async fn of(api: &FaultyApi) -> Self {
        let shutdown = CancellationToken::new();
        let watches = Watches::default();
        let options = Options { scope: Default::default(), base_domain: "localhost".to_owned() };
        let mut table = watch(
            api.client(),
            options,
            Arc::new(Tracker::new()),
            watches.clone(),
            shutdown.clone(),
        );
        table.wait_for(|table| table.is_synced()).await.unwrap();
        let gaps = Arc::<Mutex<Vec<String>>>::default();
        let (mut seen, noted) = (table.clone(), gaps.clone());
        let observer = tokio::spawn(async move {
            while seen.changed().await.is_ok() {
                let table = seen.borrow_and_update().clone();
                let there = dialled(&table, STAYS);
                if !table.is_synced() || there.as_ref().is_none_or(Vec::is_empty) {
                    noted.lock().unwrap().push(format!("{there:?}"));
                }
            }
        });
        Self { table, gaps, observer, shutdown, watches }
    }

    /// Waits for the table to say that, however often a watch has to be made anew.
    async fn converges(&mut self, name: &str, address: Option<&str>) {
        let host = format!("{name}--team.localhost");
        let wanted = address.map(|ip| vec![SocketAddr::new(ip.parse().unwrap(), 8080)]);
        let there = self.table.wait_for(|table| dialled(table, &host) == wanted);
        let reached = timeout(Duration::from_secs(600), there).await.is_ok();
        let last = dialled(&self.table.borrow(), &host);
        assert!(reached, "{name} is {last:?} and not {wanted:?}");
    }

    /// Waits until no watch is blind, and for as long as a silent one takes to count as working.
    async fn sees_again(&self) {
        let mut seen = self.watches.subscribe();
        let sees = seen.wait_for(|seen| seen.blind_since().is_none());
        timeout(Duration::from_secs(600), sees).await.expect("a watch stays blind").unwrap();
        tokio::time::sleep(Duration::from_secs(5)).await;
    }

    async fn had_no_gap(self) {
        self.shutdown.cancel();
        drop(self.table);
        self.observer.await.unwrap();
        assert_eq!(*self.gaps.lock().unwrap(), [""; 0]);
    }
}

async fn start() -> (FaultyApi, View) {
    let api = FaultyApi::default();
    for name in ["stays", "goes"] {
        api.put("apps", app(name), true);
        api.put("endpointslices", endpoints(name, "10.0.0.1"), true);
    }
    let mut view = View::of(&api).await;
    view.converges("stays", Some("10.0.0.1")).await;
    (api, view)
}

/// Changes that no watch tells of: only a new list or a new watch shows them.
fn behind_its_back(api: &FaultyApi, round: u8) {
    api.put("apps", app(&format!("new{round}")), false);
    let slice = endpoints(&format!("new{round}"), &format!("10.0.1.{round}"));
    api.put("endpointslices", slice, false);
    api.put("endpointslices", endpoints("stays", &format!("10.0.0.{round}")), false);
    if round == 2 {
        api.delete("apps", "goes", false);
    }
}

async fn settles(view: &mut View, round: u8) {
    view.converges("stays", Some(&format!("10.0.0.{round}"))).await;
    view.converges(&format!("new{round}"), Some(&format!("10.0.1.{round}"))).await;
    view.converges("goes", None).await;
}

#[tokio::test(start_paused = true)]
async fn attack_27_a_watch_that_is_closed_goes_on_where_it_was() {
    let (api, mut view) = start().await;
    for round in 2..6 {
        behind_its_back(&api, round);
        for kind in ["apps", "endpointslices", "projects", "workspaces"] {
            api.break_watches(kind, None);
        }
        settles(&mut view, round).await;
    }
    assert_eq!(api.lists("apps"), 1, "a watch that ends well is no reason to list again");
    view.had_no_gap().await;
}

#[tokio::test(start_paused = true)]
async fn attack_27_a_watch_that_is_gone_is_listed_again() {
    let gone = r#"{"type":"ERROR","object":{"kind":"Status","apiVersion":"v1","status":"Failure",
        "code":410,"reason":"Expired","message":"too old resource version"}}"#
        .replace('\n', " ");
    let (api, mut view) = start().await;
    for round in 2..6 {
        behind_its_back(&api, round);
        // Lists fail for a while, in ways of their own.
        let how =
            [StatusCode::GONE, StatusCode::INTERNAL_SERVER_ERROR, StatusCode::TOO_MANY_REQUESTS];
        api.fail_lists("apps", &how);
        for kind in ["apps", "endpointslices"] {
            api.break_watches(kind, Some(&format!("{gone}\n")));
        }
        settles(&mut view, round).await;
    }
    assert!(api.lists("apps") > 4);
    view.had_no_gap().await;
}

#[tokio::test(start_paused = true)]
async fn attack_27_a_watch_that_speaks_nonsense_or_breaks_off_within_a_line() {
    let (api, mut view) = start().await;
    for (round, line) in [(2, "{\"type\":\"ADDED\",\"obj"), (3, "nonsense\n"), (4, "{}\n")] {
        behind_its_back(&api, round);
        for kind in ["apps", "endpointslices"] {
            api.break_watches(kind, Some(line));
        }
        settles(&mut view, round).await;
    }
    view.had_no_gap().await;
}

#[tokio::test(start_paused = true)]
async fn attack_27_a_watch_that_repeats_itself_ends_where_it_should() {
    let (api, mut view) = start().await;
    for round in 2..6 {
        behind_its_back(&api, round);
        for kind in ["apps", "endpointslices"] {
            api.repeat(kind);
            api.repeat(kind);
        }
        settles(&mut view, round).await;
    }
    view.had_no_gap().await;
}

#[tokio::test(start_paused = true)]
async fn attack_27_a_watch_that_falls_behind_catches_up() {
    let (api, mut view) = start().await;
    // Far more than is taken in at once, and the last of it never told.
    for round in 0..5_000u32 {
        let address = format!("10.1.{}.{}", round / 250, round % 250);
        api.put("endpointslices", endpoints("stays", &address), true);
        api.put("apps", app(&format!("many{}", round % 500)), true);
    }
    behind_its_back(&api, 2);
    let gone = json!({"type": "ERROR", "object": {"kind": "Status", "apiVersion": "v1",
        "status": "Failure", "code": 410, "reason": "Expired", "message": "too old"}});
    for kind in ["apps", "endpointslices"] {
        api.break_watches(kind, Some(&format!("{gone}\n")));
    }
    settles(&mut view, 2).await;
    let table = view.table.borrow().clone();
    let hosts: BTreeSet<_> = table.iter().map(|route| route.host().to_owned()).collect();
    assert_eq!(hosts.len(), 502, "500 of many, one new, and the one that stays");
    assert!(hosts.contains("many499--team.localhost") && hosts.contains(STAYS));
    view.had_no_gap().await;
}

#[tokio::test(start_paused = true)]
async fn an_object_that_cannot_be_read_keeps_its_route_and_hides_no_other() {
    let (api, mut view) = start().await;
    let mut newer = app("goes");
    newer["spec"]["protocol"] = json!("OfANewerVersion");
    newer["spec"]["env"] = json!([{"name": "PASSWORD", "value": "hunter2"}]);
    api.put("apps", newer.clone(), true);
    api.put("apps", app("new"), true);
    api.put("endpointslices", endpoints("new", "10.0.2.1"), true);
    view.converges("new", Some("10.0.2.1")).await;
    view.converges("goes", Some("10.0.0.1")).await;
    // A new list has it as well.
    api.break_watches("apps", Some(&expired()));
    behind_its_back(&api, 3);
    view.converges("new3", Some("10.0.1.3")).await;
    view.converges("goes", Some("10.0.0.1")).await;
    let seen = view.watches.subscribe().borrow().clone();
    let reports: Vec<_> = seen.unreadable().into_values().collect();
    assert_eq!(reports.len(), 1);
    assert_eq!(reports[0].field, "spec.protocol");
    assert_eq!(reports[0].object.name.as_deref(), Some("goes"));
    assert!(!format!("{seen:?}").contains("hunter2"));
    api.delete("apps", "goes", true);
    view.converges("goes", None).await;
    assert!(view.watches.subscribe().borrow().unreadable().is_empty());
    view.had_no_gap().await;
}

fn expired() -> String {
    let gone = json!({"type": "ERROR", "object": {"kind": "Status", "apiVersion": "v1",
        "status": "Failure", "code": 410, "reason": "Expired", "message": "too old"}});
    format!("{gone}\n")
}

/// 403 and 429 for a while, then 410 for every watch, all kinds at once: as a real one after a restart.
#[tokio::test(start_paused = true)]
async fn a_restarted_api_server_is_followed_again_within_seconds() {
    let (api, mut view) = start().await;
    let kinds = ["apps", "endpointslices", "projects", "workspaces"];
    for round in 2..22 {
        behind_its_back(&api, round);
        let restarting = [
            vec![StatusCode::SERVICE_UNAVAILABLE; 2],
            vec![StatusCode::FORBIDDEN; 2],
            vec![StatusCode::TOO_MANY_REQUESTS; 3],
        ];
        for kind in kinds {
            api.fail_lists(kind, &restarting.concat());
            api.break_watches(kind, Some(&expired()));
        }
        let began = tokio::time::Instant::now();
        view.converges("stays", Some(&format!("10.0.0.{round}"))).await;
        view.converges(&format!("new{round}"), Some(&format!("10.0.1.{round}"))).await;
        // Of the paused clock: only the pauses count.
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
        // Restarts that follow each other within a second are one to the pauses.
        view.sees_again().await;
    }
    view.had_no_gap().await;
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_stays_silent_is_listed_again() {
    let (api, mut view) = start().await;
    let lists = api.lists("apps");
    // No event tells of it, and the watch lives on.
    api.put("apps", app("untold"), false);
    api.put("endpointslices", endpoints("untold", "10.0.3.1"), false);
    view.converges("untold", Some("10.0.3.1")).await;
    assert!(api.lists("apps") > lists);
    view.had_no_gap().await;
}
