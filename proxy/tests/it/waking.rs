//! Workloads that sleep.

use std::time::Duration;

use domain::{
    revocation::Revoked,
    route::{Progress, State, Step},
};
use jiff::Timestamp;

use crate::{
    upstream,
    world::{HOST, World, find, spec},
};

fn starting(step: Step, message: &str) -> State {
    State::Starting { progress: Progress { step, message: message.to_owned() } }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_call_is_held_until_the_workload_is_there() {
    let mut world = World::start().await;
    world.set([spec(State::Sleeping, &[])]);
    let calls: Vec<_> = (0..20)
        .map(|_| {
            let request = world.client(true).get(world.url(HOST, "/"));
            tokio::spawn(request.header("Authorization", world.bearer("alice")).send())
        })
        .collect();
    let asked = world.wakes.recv().await.unwrap();
    assert_eq!(asked.workload.to_string(), "App alice/echo");
    assert_eq!(asked.who.as_str(), "alice");
    world.set([spec(starting(Step::Scheduled, "Placed"), &[])]);
    world.running(upstream::mirror().await);
    for call in calls {
        assert_eq!(call.await.unwrap().unwrap().status(), 200);
    }
    assert!(world.wakes.try_recv().is_err(), "twenty calls ask once");
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_17_a_held_call_is_not_made_for_somebody_whose_session_has_ended() {
    let mut world = World::start().await;
    world.set([spec(State::Sleeping, &[])]);
    let request = world.client(true).get(world.url(HOST, "/"));
    let request = request.header("Authorization", world.bearer("alice"));
    let call = tokio::spawn(request.send());
    world.wakes.recv().await.unwrap();
    let ended = Revoked::Session("sid-alice");
    world.revocations.revoke(ended, Timestamp::MAX, Timestamp::now());
    world.running(upstream::mirror().await);
    assert_eq!(call.await.unwrap().unwrap().status(), 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_held_call_ends_with_503_and_says_when_to_come_again() {
    let world = World::start().await;
    let mut waking = spec(starting(Step::Starting, "Starting"), &[]);
    waking.wake_hold = Duration::from_millis(50);
    world.set([waking]);
    let request = world.client(true).get(world.url(HOST, "/"));
    let answer = request.header("Authorization", world.bearer("alice")).send().await.unwrap();
    assert_eq!(answer.status(), 503);
    assert!(answer.headers().contains_key("retry-after"));
    assert_eq!(answer.headers()["content-type"], "application/problem+json");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_navigation_gets_the_waiting_page_and_its_events() {
    let mut world = World::start().await;
    world.set([spec(State::Sleeping, &[])]);
    let client = world.client(false);
    let cookie = format!("__Host-dormouse={}", world.issuer.access_token("alice", 600));
    let page = client.get(world.url(HOST, "/")).header("Cookie", &cookie);
    let page = page.header("Sec-Fetch-Mode", "navigate").send().await.unwrap();
    assert_eq!(page.status(), 503);
    let html = page.text().await.unwrap();
    assert!(html.contains("Waking echo") && html.contains("http-equiv=\"refresh\""), "{html}");
    world.wakes.recv().await.unwrap();

    let events = client.get(world.url(HOST, "/.dormouse/wake")).header("Cookie", &cookie);
    let events = events.header("Sec-Fetch-Site", "same-origin");
    let mut events = events.send().await.unwrap();
    assert_eq!(events.headers()["content-type"], "text/event-stream");
    let mut story = Vec::new();
    let mut until = async |needle: &str| {
        while find(&story, needle.as_bytes()).is_none() {
            story.extend(events.chunk().await.unwrap().expect("the story goes on"));
        }
    };
    until("\"step\":0").await;
    world.set([spec(starting(Step::Starting, "Pulling \"image\""), &[])]);
    until("{\"message\":\"Pulling \\\"image\\\"\",\"step\":2}").await;
    world.running(upstream::mirror().await);
    until("event: ready").await;
    assert_eq!(events.text().await.unwrap(), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_and_stopped_are_said() {
    let mut world = World::start().await;
    let client = world.client(true);
    let get = async |world: &World, path: &str, mode: &str| {
        let request = client.get(world.url(HOST, path)).header("Sec-Fetch-Mode", mode.to_owned());
        let request = request.header("Authorization", world.bearer("alice"));
        let answer = request.send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    };
    world.set([spec(State::Stopped, &[])]);
    for mode in ["navigate", "cors"] {
        let (status, text) = get(&world, "/", mode).await;
        assert_eq!(status, 503);
        assert!(text.contains("Its owner can start it again"), "{text}");
    }
    world.set([spec(State::Failed { message: "no such image <x>".to_owned() }, &[])]);
    let (_, page) = get(&world, "/", "navigate").await;
    assert!(page.contains("no such image &#60;x&#62;"), "{page}");
    let (_, events) = get(&world, "/.dormouse/wake", "cors").await;
    assert!(
        events
            .contains("event: failed\ndata: {\"message\":\"It did not start: no such image <x>\"}"),
        "{events}"
    );
    assert!(world.wakes.try_recv().is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_tab_does_not_keep_waking_what_sleeps() {
    let mut world = World::start().await;
    let mut asleep = spec(State::Sleeping, &[]);
    asleep.protocol = domain::workload::Protocol::Jupyter;
    world.set([asleep]);
    let cookie = format!("__Host-dormouse={}", world.issuer.access_token("alice", 600));
    let request = world.client(true).get(world.url(HOST, "/api/kernels"));
    let answer = request.header("Cookie", &cookie).send().await.unwrap();
    assert_eq!(answer.status(), 503);
    assert!(world.wakes.try_recv().is_err());
    let mut raw = world.raw().await;
    raw.send(&format!(
        "GET /api/kernels/1/channels HTTP/1.1\r\nHost: {HOST}\r\nOrigin: https://{HOST}:{}\r\n\
         Cookie: {cookie}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        world.address.port()
    ))
    .await;
    assert!(raw.answer().await.0.starts_with("HTTP/1.1 503 "));
    assert!(world.wakes.try_recv().is_err());
    assert_eq!(world.tracker.changes(0).changes, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_24_strangers_wake_nothing_and_count_for_nothing() {
    let mut world = World::start().await;
    world.set([spec(State::Sleeping, &[])]);
    let client = world.client(false);
    for credential in ["", "Bearer x", &world.bearer("bob")] {
        for mode in ["navigate", "cors"] {
            for path in ["/", "/.dormouse/wake", "/.dormouse/whoami"] {
                let request = client.post(world.url(HOST, path)).header("Sec-Fetch-Mode", mode);
                let answer = request.header("Authorization", credential).send().await.unwrap();
                assert!(answer.status().is_client_error(), "{credential} {path}");
            }
        }
    }
    assert!(world.wakes.try_recv().is_err());
    assert_eq!(world.tracker.changes(0).changes, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn held_requests_are_bounded() {
    let mut world = World::with(|config| config.limits.held_per_workload = 2).await;
    world.set([spec(State::Sleeping, &[])]);
    let client = world.client(false);
    let (url, bearer) = (world.url(HOST, "/"), world.bearer("alice"));
    let call = || {
        let request = client.get(&url);
        tokio::spawn(request.header("Authorization", &bearer).send())
    };
    let held = [call(), call()];
    world.wakes.recv().await.unwrap();
    let registry = world.registry.clone();
    let gauge = || {
        let families = registry.gather();
        let family = families.iter().find(|family| family.name() == "dormouse_proxy_held");
        family.unwrap().get_metric()[0].get_gauge().get_value()
    };
    while gauge() < 2.0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(call().await.unwrap().unwrap().status(), 503);
    world.running(upstream::mirror().await);
    for call in held {
        assert_eq!(call.await.unwrap().unwrap().status(), 200);
    }
    while gauge() > 0.0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_is_held_and_gives_its_place_back_when_the_client_leaves() {
    let mut world = World::start().await;
    world.set([spec(State::Sleeping, &[])]);
    let head = |path: &str, world: &World| {
        format!(
            "GET {path} HTTP/1.1\r\nHost: {HOST}\r\nAuthorization: {}\r\nConnection: Upgrade\r\n\
             Upgrade: websocket\r\n\r\n",
            world.bearer("alice")
        )
    };
    let mut leaves = world.raw().await;
    leaves.send(&head("/ws", &world)).await;
    world.wakes.recv().await.unwrap();
    let gauge = |world: &World| {
        let families = world.registry.gather();
        let family = families.iter().find(|family| family.name() == "dormouse_proxy_held");
        family.unwrap().get_metric()[0].get_gauge().get_value()
    };
    drop(leaves);
    while gauge(&world) > 0.0 {
        tokio::task::yield_now().await;
    }
    let mut stays = world.raw().await;
    stays.send(&head("/ws", &world)).await;
    while gauge(&world) < 1.0 {
        tokio::task::yield_now().await;
    }
    world.running(upstream::mirror().await);
    assert!(stays.answer().await.0.starts_with("HTTP/1.1 101 "));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_held_call_gives_its_place_back_when_the_client_leaves() {
    let world = World::start().await;
    world.set([spec(State::Sleeping, &[])]);
    let held = || {
        let families = world.registry.gather();
        let family = families.iter().find(|family| family.name() == "dormouse_proxy_held");
        family.unwrap().get_metric()[0].get_gauge().get_value()
    };
    for http_1_only in [true, false] {
        let request = world.client(http_1_only).get(world.url(HOST, "/"));
        let call = tokio::spawn(request.header("Authorization", world.bearer("alice")).send());
        while held() < 1.0 {
            tokio::task::yield_now().await;
        }
        call.abort();
        while held() > 0.0 {
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_falls_asleep_while_a_request_is_on_its_way_is_woken() {
    let mut world = World::start().await;
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    world.running(gone);
    let request =
        world.client(false).get(world.url(HOST, "/")).header("Sec-Fetch-Mode", "navigate");
    let request = request.header("Authorization", world.bearer("alice"));
    let sent = tokio::spawn(request.send());
    let retried = || {
        let families = world.registry.gather();
        let family = families.iter().find(|f| f.name() == "dormouse_proxy_connect_retries_total");
        family.unwrap().get_metric()[0].get_counter().get_value() > 0.0
    };
    while !retried() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    world.set([spec(State::Sleeping, &[])]);
    let page = sent.await.unwrap().unwrap();
    assert_eq!(page.status(), 503);
    assert!(page.text().await.unwrap().contains("Waking echo"));
    world.wakes.recv().await.unwrap();
}
