//! ATTACKS of parsing differences: the same raw requests to our front, to nginx and to HAProxy, before
//! upstreams that write down what they understood. What each does is the table in
//! `docs/strict-http.md`; `DORMOUSE_WRITE_STRICT_HTTP=1` writes it anew.

mod corpus;
mod downgrade;
mod outcome;
mod peers;
mod recorder;
mod table;

use std::{net::SocketAddr, time::Duration};

use domain::{route::State, workload::WorkloadRef};
use tokio::task::JoinSet;

use self::{
    corpus::{Case, cases},
    outcome::{Outcome, exchange},
    peers::Peer,
    recorder::Record,
    table::Table,
};
use crate::world::{World, spec};

/// How long nothing may come before a server counts as waiting for more.
const QUIET: Duration = Duration::from_secs(1);
/// How long an answer that is expected may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

struct Upstreams {
    addresses: Vec<SocketAddr>,
    records: Vec<Record>,
}

async fn upstreams(count: usize) -> Upstreams {
    let mut all = Upstreams { addresses: Vec::new(), records: Vec::new() };
    for _ in 0..count {
        let (address, record) = recorder::start().await;
        all.addresses.push(address);
        all.records.push(record);
    }
    all
}

fn host(case: usize) -> String {
    format!("c{case}--alice.example.test")
}

/// How long to wait for more from a server of which the table says that.
fn patience(expected: Option<&str>) -> Duration {
    match expected {
        Some(cell) if !cell.contains("waits") => PATIENCE,
        _ => QUIET,
    }
}

async fn ours(cases: &[Case], table: &Table, fast_lane: bool) -> Vec<Outcome> {
    let upstreams = upstreams(cases.len()).await;
    let world = World::with(|config| config.fast_lane = fast_lane).await;
    world.set(upstreams.addresses.iter().enumerate().map(|(at, &address)| {
        let mut route = spec(State::Running, &[address]);
        let name = format!("c{at}").parse().unwrap();
        route.workload = WorkloadRef { name, ..route.workload };
        route.host = host(at);
        route
    }));
    let bearer = world.bearer("alice");
    let mut running = JoinSet::new();
    for (at, case) in cases.iter().enumerate() {
        let (name, bytes) = (host(at), case.bytes(&host(at), &bearer));
        let expected = table.cell(case.name, 0).map(str::to_owned);
        let stream = world.tls(&[b"http/1.1"]).await;
        let record = upstreams.records[at].clone();
        running.spawn(async move {
            let patience = patience(expected.as_deref());
            (at, exchange(stream, bytes, &name, record, expected, patience).await)
        });
    }
    collect(running).await
}

async fn peer(column: usize, cases: &[Case], table: &Table) -> Vec<Outcome> {
    let upstreams = upstreams(cases.len()).await;
    let peer = match column {
        1 => Peer::nginx(&upstreams.addresses).await,
        _ => Peer::haproxy(&upstreams.addresses).await,
    };
    let mut running = JoinSet::new();
    for (at, case) in cases.iter().enumerate() {
        let (name, bytes) = (host(at), case.bytes(&host(at), "Bearer x"));
        let expected = table.cell(case.name, column).map(str::to_owned);
        let stream = peer.connect(at).await;
        let record = upstreams.records[at].clone();
        running.spawn(async move {
            let patience = patience(expected.as_deref());
            (at, exchange(stream, bytes, &name, record, expected, patience).await)
        });
    }
    collect(running).await
}

async fn collect(mut running: JoinSet<(usize, Outcome)>) -> Vec<Outcome> {
    let mut all = Vec::new();
    while let Some(done) = running.join_next().await {
        all.push(done.unwrap());
    }
    all.sort_by_key(|(at, _)| *at);
    all.into_iter().map(|(_, outcome)| outcome).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_7_no_request_is_smuggled_and_none_is_read_otherwise_than_we_say() {
    let (cases, mut table) = (cases(), Table::read());
    for fast_lane in [true, false] {
        let outcomes = ours(&cases, &table, fast_lane).await;
        for (case, outcome) in cases.iter().zip(&outcomes) {
            for seen in &outcome.seen {
                assert!(!seen.line.contains("smuggled"), "{}: {seen:?}", case.name);
                assert_eq!(seen.odd, [""; 0], "{}: {seen:?}", case.name);
            }
        }
        table.settle(0, None, &cases, &outcomes);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_peers_do_what_the_table_says_of_them() {
    let (cases, mut table) = (cases(), Table::read());
    for (column, program) in [(1, "nginx"), (2, "haproxy")] {
        let Some(version) = peers::version(program) else {
            eprintln!("{program} is not on this machine");
            continue;
        };
        if !table::writes() && table.version(column) != version {
            eprintln!("the table is of {program} {}, and this is {version}", table.version(column));
            continue;
        }
        let outcomes = peer(column, &cases, &table).await;
        table.settle(column, Some(&version), &cases, &outcomes);
    }
}

#[test]
fn every_difference_is_explained() {
    let (cases, table) = (cases(), Table::read());
    for differing in table.differing() {
        let case = cases.iter().find(|case| case.name == differing);
        let remark = case.map_or("", |case| case.remark.as_str());
        assert_ne!(remark, "", "{differing}: say why in requests.txt");
    }
}
