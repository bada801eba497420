//! How long a change takes from the API server to the route table, with 10,000 routes and 100 changes
//! a second, and what looking up a route costs meanwhile. Prints figures:
//! `cargo test --release -p dormouse-cli --test route_changes -- --ignored --nocapture`
#![allow(clippy::unwrap_used)]

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use cluster::{
    crds,
    resources::{App, Project},
    routes::{Options, watch},
    watch::Watches,
};
use domain::{activity::Tracker, route::RouteTable};
use kube::{
    Api, Client, Config,
    api::{Patch, PatchParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::json;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

const PROJECTS: usize = 100;
const CHANGES_PER_SECOND: u64 = 100;

fn setting(name: &str, default: usize) -> usize {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn project(number: usize) -> String {
    format!("p{}", number % PROJECTS)
}

fn name(number: usize) -> String {
    format!("w{number}")
}

fn host(number: usize) -> String {
    format!("{}--{}.localhost", name(number), project(number))
}

fn app(number: usize) -> App {
    serde_json::from_value(json!({
        "apiVersion": "dormouse.dev/v1alpha1", "kind": "App",
        "metadata": {"name": name(number), "namespace": project(number)},
        "spec": {"owner": "alice", "image": "any", "sharing": {"project": true}},
    }))
    .unwrap()
}

async fn fill(client: &Client, apps: usize) {
    let mut making = JoinSet::new();
    for number in 0..PROJECTS {
        let projects = Api::<Project>::all(client.clone());
        let namespaces = Api::<k8s_openapi::api::core::v1::Namespace>::all(client.clone());
        making.spawn(async move {
            let name = project(number);
            let project = json!({"apiVersion": "dormouse.dev/v1alpha1", "kind": "Project",
                "metadata": {"name": name}, "spec": {"members": []}});
            let project = serde_json::from_value(project).unwrap();
            projects.create(&PostParams::default(), &project).await.unwrap();
            let namespace = serde_json::from_value(json!({"metadata": {"name": name}})).unwrap();
            namespaces.create(&PostParams::default(), &namespace).await.unwrap();
        });
    }
    while let Some(made) = making.join_next().await {
        made.unwrap();
    }
    for number in 0..apps {
        let api = Api::<App>::namespaced(client.clone(), &project(number));
        making.spawn(async move {
            api.create(&PostParams::default(), &app(number)).await.unwrap();
        });
        if making.len() >= 16 {
            making.join_next().await.unwrap().unwrap();
        }
    }
    while let Some(made) = making.join_next().await {
        made.unwrap();
    }
}

fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    sorted[(sorted.len() * percent / 100).min(sorted.len() - 1)]
}

/// Looks up and authorizes nothing else than a request does of the table.
async fn look_up(
    routes: tokio::sync::watch::Receiver<Arc<RouteTable>>,
    apps: usize,
) -> Vec<Duration> {
    let mut took = Vec::new();
    let until = Instant::now() + Duration::from_secs(5);
    let mut number = 0;
    while Instant::now() < until {
        let host = host(number % apps);
        let started = Instant::now();
        let table = routes.borrow().clone();
        assert!(table.by_host(&host).is_some());
        drop(table);
        took.push(started.elapsed());
        number += 7919;
        tokio::time::sleep(Duration::from_micros(500)).await;
    }
    took.sort_unstable();
    took
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes and prints figures"]
async fn from_the_api_to_the_table() {
    let apps = setting("ROUTES", 10_000);
    let seconds = setting("SECONDS", 20) as u64;
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let folder = tempfile::tempdir().unwrap();
    let shutdown = CancellationToken::new();
    let options = devcluster::api::ApiOptions {
        data_dir: folder.path().to_owned(),
        listen: "127.0.0.1:0".parse().unwrap(),
    };
    let server = devcluster::api::serve(options, shutdown.clone()).await.unwrap();
    let kubeconfig = Kubeconfig::read_from(server.kubeconfig()).unwrap();
    let options = KubeConfigOptions::default();
    let config = Config::from_custom_kubeconfig(kubeconfig, &options).await.unwrap();
    let client = Client::try_from(config).unwrap();
    crds::apply(&client, crds::There::Replace, Duration::from_secs(60)).await.unwrap();
    let started = Instant::now();
    fill(&client, apps).await;
    println!("{apps} apps made in {:.1} s", started.elapsed().as_secs_f64());

    let tracker = Arc::new(Tracker::new());
    let options = Options { scope: Default::default(), base_domain: "localhost".to_owned() };
    let started = Instant::now();
    let mut routes = watch(client.clone(), options, tracker, Watches::default(), shutdown.clone());
    routes.wait_for(|table| table.is_synced() && table.len() == apps).await.unwrap();
    println!("first table after {:.2} s", started.elapsed().as_secs_f64());

    let quiet = look_up(routes.clone(), apps).await;
    // When each change was asked for, and when the API server had answered it.
    let sent: Arc<Mutex<HashMap<String, Instant>>> = Arc::default();
    let answered: Arc<Mutex<HashMap<String, Instant>>> = Arc::default();
    let routed: Arc<Mutex<HashMap<String, Instant>>> = Arc::default();
    let seen = tokio::spawn({
        let (sent, routed, mut routes) = (sent.clone(), routed.clone(), routes.clone());
        async move {
            let mut took = Vec::new();
            let mut tables = 0u64;
            while let Ok(Ok(())) =
                tokio::time::timeout(Duration::from_secs(3), routes.changed()).await
            {
                let table = routes.borrow_and_update().clone();
                let now = Instant::now();
                tables += 1;
                sent.lock().unwrap().retain(|host, at| {
                    let route = table.by_host(host).unwrap();
                    let changed = route.describe(Duration::ZERO).access.everyone;
                    if changed {
                        routed.lock().unwrap().insert(host.clone(), now);
                        took.push(now.saturating_duration_since(*at));
                    }
                    !changed
                });
            }
            (took, tables)
        }
    });
    let mut every = tokio::time::interval(Duration::from_micros(1_000_000 / CHANGES_PER_SECOND));
    let mut changing = JoinSet::new();
    let busy = tokio::spawn(look_up(routes.clone(), apps));
    let total = (seconds * CHANGES_PER_SECOND) as usize;
    for change in 0..total.min(apps) {
        every.tick().await;
        let number = change * (apps / total.min(apps));
        let api = Api::<App>::namespaced(client.clone(), &project(number));
        // From the moment it is asked for: that holds more than it has to.
        sent.lock().unwrap().insert(host(number), Instant::now());
        let answered = answered.clone();
        changing.spawn(async move {
            let patch = Patch::Merge(json!({"spec": {"sharing": {"everyone": true}}}));
            api.patch(&name(number), &PatchParams::default(), &patch).await.unwrap();
            answered.lock().unwrap().insert(host(number), Instant::now());
        });
        while changing.len() > 64 {
            changing.join_next().await;
        }
    }
    while changing.join_next().await.is_some() {}
    let busy = busy.await.unwrap();
    let (mut took, tables) = seen.await.unwrap();
    took.sort_unstable();
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    println!(
        "{} changes in {tables} tables: asked for to routed p50 {:.2} ms, p99 {:.2} ms, most {:.2} ms",
        took.len(),
        ms(percentile(&took, 50)),
        ms(percentile(&took, 99)),
        ms(*took.last().unwrap()),
    );
    let mut after: Vec<_> = {
        let (answered, routed) = (answered.lock().unwrap(), routed.lock().unwrap());
        routed.iter().map(|(host, at)| at.saturating_duration_since(answered[host])).collect()
    };
    after.sort_unstable();
    println!(
        "answered to routed p50 {:.2} ms, p99 {:.2} ms (0 where the table came before the answer)",
        ms(percentile(&after, 50)),
        ms(percentile(&after, 99)),
    );
    for (when, times) in [("quiet", &quiet), ("under changes", &busy)] {
        let (p50, p99) = (percentile(times, 50), percentile(times, 99));
        println!("a look-up, {when}: p50 {p50:?}, p99 {p99:?}, {} of them", times.len());
    }
    assert_eq!(took.len(), total.min(apps), "every change arrived");
    shutdown.cancel();
    server.ended().await;
}
