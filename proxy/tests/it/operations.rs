//! What operators count on: draining, traces, and streams that are kept alive.

use std::time::Duration;

use domain::{
    route::State,
    traffic::{Rate, Traffic},
};

use crate::{
    upstream,
    world::{HOST, World, spec},
};

fn get(world: &World, more: &str) -> String {
    format!(
        "GET / HTTP/1.1\r\nHost: {HOST}\r\nAuthorization: {}\r\n{more}\r\n",
        world.bearer("alice")
    )
}

#[tokio::test]
async fn attack_26_a_connection_that_waits_gets_one_more_answer_when_the_gateway_stops() {
    let world = World::with(|config| config.drain_grace = Duration::from_secs(20)).await;
    world.running(upstream::mirror().await);
    let mut raw = world.raw().await;
    raw.send(&get(&world, "")).await;
    let (head, _) = raw.answer().await;
    assert!(!head.to_ascii_lowercase().contains("connection: close"), "{head}");
    world.shutdown.cancel();
    // Longer than it takes to notice.
    tokio::time::sleep(Duration::from_millis(200)).await;
    raw.send(&get(&world, "")).await;
    let (head, _) = raw.answer().await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert!(head.to_ascii_lowercase().contains("connection: close"), "{head}");
    assert_eq!(raw.rest().await, "");
    world.served.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_request_that_is_held_is_answered_although_the_gateway_stops() {
    let world = World::with(|config| config.drain_grace = Duration::from_secs(20)).await;
    world.set([spec(State::Sleeping, &[])]);
    let mut raw = world.raw().await;
    raw.send(&get(&world, "")).await;
    let mut wakes = world.wakes;
    wakes.recv().await.unwrap();
    world.shutdown.cancel();
    let route = spec(State::Running, &[upstream::mirror().await]);
    let cell = world.tracker.cell(&route.workload);
    let route = std::sync::Arc::new(domain::route::Route::new(route, cell, None));
    world.routes.send_replace(std::sync::Arc::new(domain::route::RouteTable::new([route])));
    let (head, _) = raw.answer().await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
}

#[tokio::test]
async fn a_trace_is_passed_on_when_it_is_well_formed() {
    let world = World::start().await;
    world.running(upstream::mirror().await);
    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let mut raw = world.raw().await;
    for (sent, passes) in [
        (format!("Traceparent: {PARENT}\r\nTracestate: a=b\r\n"), true),
        (format!("traceparent: {PARENT}0\r\ntracestate: a=b\r\n"), false),
        (format!("traceparent: {PARENT}\r\ntraceparent: {PARENT}\r\n"), false),
    ] {
        raw.send(&get(&world, &sent)).await;
        let said = String::from_utf8(raw.answer().await.1).unwrap().to_ascii_lowercase();
        let expected = usize::from(passes);
        assert_eq!(said.matches(&format!("traceparent: {PARENT}\r\n")).count(), expected, "{said}");
        assert_eq!(said.matches("trace").count(), 2 * expected, "{said}");
    }
}

#[tokio::test]
async fn a_silent_stream_of_events_is_kept_alive_over_both_protocols() {
    let world = World::start().await;
    let address = upstream::start(|mut request| async move {
        request
            .reply(
                "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\
                 Transfer-Encoding: chunked\r\n\r\n9\r\ndata: a\n\n\r\n",
            )
            .await;
        assert!(request.head.to_ascii_lowercase().contains("connection: close"));
        // Until the client has heard enough and leaves.
        let _ = tokio::io::AsyncReadExt::read(&mut request.stream, &mut [0]).await;
    })
    .await;
    let mut route = spec(State::Running, &[address]);
    let keep_alive = Some(Duration::from_millis(50));
    route.traffic = Traffic { keep_alive, ..Traffic::default() };
    world.set([route]);
    for http_1 in [true, false] {
        let client = world.client(http_1);
        let request =
            client.get(world.url(HOST, "/")).header("Authorization", world.bearer("alice"));
        let mut answer = request.send().await.unwrap();
        let mut heard = String::new();
        while heard.matches(": keep-alive\n\n").count() < 3 {
            heard.push_str(std::str::from_utf8(&answer.chunk().await.unwrap().unwrap()).unwrap());
        }
        let expected = format!("data: a\n\n{}", ": keep-alive\n\n".repeat(3));
        assert!(heard.starts_with(&expected), "{heard:?}");
    }
}

#[tokio::test]
async fn an_admitted_answer_carries_what_is_left_and_what_the_workload_says_itself() {
    let world = World::start().await;
    let address = upstream::start(|mut request| async move {
        request.reply("HTTP/1.1 204 No Content\r\nRateLimit: \"own\";r=1;t=1\r\n\r\n").await;
    })
    .await;
    let mut route = spec(State::Running, &[address]);
    route.traffic = Traffic { rate: Rate::new(5, Some(9)), ..Traffic::default() };
    world.set([route]);
    let request = world.client(true).get(world.url(HOST, "/"));
    let answer = request.header("Authorization", world.bearer("alice")).send().await.unwrap();
    let all: Vec<_> = answer.headers().get_all("ratelimit").iter().collect();
    assert_eq!(all, ["\"own\";r=1;t=1", "\"route\";r=8;t=1"]);
}
