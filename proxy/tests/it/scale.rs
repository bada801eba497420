//! What many routes that change all the time are to a request.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use domain::route::{Route, RouteTable, State};

use crate::{
    upstream,
    world::{HOST, World, spec},
};

const ROUTES: usize = 10_000;
const EVERY: Duration = Duration::from_millis(10);

async fn requests(world: &World, lasting: Duration) -> Vec<Duration> {
    let mut raw = world.raw().await;
    let request = format!(
        "GET / HTTP/1.1\r\nHost: {HOST}\r\nAuthorization: {}\r\n\r\n",
        world.bearer("alice")
    );
    let (begun, mut took) = (Instant::now(), Vec::new());
    while begun.elapsed() < lasting {
        let sent = Instant::now();
        raw.send(&request).await;
        assert!(raw.answer().await.0.starts_with("HTTP/1.1 200 "));
        took.push(sent.elapsed());
    }
    took.sort_unstable();
    took
}

/// `cargo test --release -p dormouse-proxy --test it -- --ignored --nocapture a_hundred_tables`
#[tokio::test(flavor = "multi_thread")]
#[ignore = "prints figures, for ten seconds"]
async fn a_hundred_tables_a_second_of_ten_thousand_routes() {
    let world = World::start().await;
    let upstream = upstream::mirror().await;
    let table = |address: &str| {
        let ours = std::iter::once(spec(State::Running, &[upstream]));
        let others = (0..ROUTES).map(|n| {
            let mut other = spec(State::Running, &[address.parse().unwrap()]);
            other.workload.name = format!("app{n}").parse().unwrap();
            other.host = format!("app{n}--alice.example.test");
            other
        });
        let routes = ours.chain(others).map(|spec| {
            let cell = world.tracker.cell(&spec.workload);
            Arc::new(Route::new(spec, cell, None))
        });
        Arc::new(RouteTable::new(routes))
    };
    let tables = [table("10.0.0.1:80"), table("10.0.0.2:80")];
    world.routes.send_replace(tables[0].clone());
    let quiet = requests(&world, Duration::from_secs(3)).await;
    let routes = world.routes.clone();
    let changing = tokio::spawn(async move {
        let mut ticks = tokio::time::interval(EVERY);
        for table in tables.iter().cycle() {
            ticks.tick().await;
            routes.send_replace(table.clone());
        }
    });
    let busy = requests(&world, Duration::from_secs(7)).await;
    changing.abort();
    for (what, took) in [("while nothing changes", quiet), ("meanwhile", busy)] {
        let at = |part: usize| took[(took.len() - 1) * part / 1000];
        let count = took.len();
        println!("{count} requests, {what}: p50 {:?}, p99 {:?}", at(500), at(990));
    }
}
