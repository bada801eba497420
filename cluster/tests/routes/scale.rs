//! Many routes, and many changes: from the API server's word to the table that requests read.

use std::{
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::Instant,
};

use super::*;

const ROUTES: usize = 10_000;
const EVERY: Duration = Duration::from_millis(10);
const CHANGES: usize = 1_000;

fn percentiles(mut took: Vec<Duration>) -> String {
    took.sort_unstable();
    let at = |part: usize| took[(took.len() - 1) * part / 1000];
    format!("p50 {:?}, p99 {:?}, most {:?}", at(500), at(990), at(1000))
}

/// How long it takes to find out where a request goes, again and again until told to stop.
fn asking(table: Receiver<Arc<RouteTable>>, stop: Arc<AtomicBool>) -> Vec<Duration> {
    let alice = alice();
    let mut took = Vec::new();
    while !stop.load(Relaxed) {
        let host = format!("app{}--team.localhost", took.len() * 7919 % ROUTES);
        let started = Instant::now();
        let table = table.borrow().clone();
        assert!(authorize(&table, &alice, Target::Host(&host)).is_some());
        drop(table);
        took.push(started.elapsed());
        std::thread::sleep(Duration::from_micros(500));
    }
    took
}

/// `cargo test --release -p dormouse-cluster --test routes -- --ignored --nocapture a_hundred_changes`
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "prints figures, for ten seconds"]
async fn a_hundred_changes_a_second_among_ten_thousand_routes() {
    let api = FaultyApi::default();
    api.put("apps", app("stays"), true);
    api.put("endpointslices", endpoints("stays", "10.0.0.1"), true);
    for n in 0..ROUTES {
        api.put("apps", app(&format!("app{n}")), true);
        api.put("endpointslices", endpoints(&format!("app{n}"), "10.0.0.1"), true);
    }
    let mut view = View::of(&api).await;
    for n in [0, ROUTES - 1] {
        view.converges(&format!("app{n}"), Some("10.0.0.1")).await;
    }
    let ask = |table: &Receiver<Arc<RouteTable>>| {
        let (table, stop) = (table.clone(), Arc::new(AtomicBool::new(false)));
        let asked = stop.clone();
        (stop, tokio::task::spawn_blocking(move || asking(table, asked)))
    };
    let (stop, quiet) = ask(&view.table);
    tokio::time::sleep(EVERY * 300).await;
    stop.store(true, Relaxed);
    let quiet = quiet.await.unwrap();

    let (stop, busy) = ask(&view.table);
    let mut ticks = tokio::time::interval(EVERY);
    let mut waiting = Vec::new();
    for change in 0..CHANGES {
        ticks.tick().await;
        let name = format!("app{}", change * 7 % ROUTES);
        let ip = format!("10.1.{}.{}", change / 250, change % 250);
        let wanted = Some(vec![SocketAddr::new(ip.parse().unwrap(), 8080)]);
        let (mut table, host) = (view.table.clone(), format!("{name}--team.localhost"));
        let started = Instant::now();
        api.put("endpointslices", endpoints(&name, &ip), true);
        waiting.push(tokio::spawn(async move {
            let routed = table.wait_for(|table| dialled(table, &host) == wanted).await.is_ok();
            assert!(routed);
            started.elapsed()
        }));
    }
    let mut routed = Vec::new();
    for one in waiting {
        routed
            .push(timeout(Duration::from_secs(30), one).await.expect("it is not routed").unwrap());
    }
    stop.store(true, Relaxed);
    let busy = busy.await.unwrap();
    println!("from a change to its route: {}", percentiles(routed.clone()));
    println!("finding a route, while nothing changes: {}", percentiles(quiet));
    println!("finding a route, meanwhile: {}", percentiles(busy));
    routed.sort_unstable();
    assert!(routed[CHANGES * 99 / 100] < Duration::from_secs(1), "{:?}", routed.last());
    view.had_no_gap().await;
}
