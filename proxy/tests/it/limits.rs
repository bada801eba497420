//! What one person, one token, one route and whoever is not signed in may take.

use std::time::Duration;

use domain::{
    route::State,
    traffic::{Rate, Traffic},
};
use proxy::Share;
use tokio::io::AsyncWriteExt;

use crate::{
    upstream,
    world::{HOST, World, spec},
};

fn share(per_second: u32, burst: u32) -> Share {
    Share { requests_per_second: Some(per_second), burst: Some(burst), ..Share::default() }
}

async fn get(world: &World, client: &reqwest::Client, user: &str) -> reqwest::Response {
    let request = client.get(world.url(HOST, "/")).header("Authorization", world.bearer(user));
    request.send().await.unwrap()
}

fn field<'a>(answer: &'a reqwest::Response, name: &str) -> &'a str {
    answer.headers().get(name).unwrap_or_else(|| panic!("no {name}")).to_str().unwrap()
}

#[tokio::test]
async fn a_person_past_their_rate_is_told_when_to_come_again() {
    let world = World::with(|config| config.limits.person = share(1, 2)).await;
    world.running(upstream::mirror().await);
    for http_1 in [true, false] {
        let client = world.client(http_1);
        let user = "alice";
        let answer = get(&world, &client, user).await;
        if http_1 {
            assert_eq!(answer.status(), 200);
            assert_eq!(field(&answer, "ratelimit-policy"), "\"person\";q=2;w=2");
            assert_eq!(field(&answer, "ratelimit"), "\"person\";r=1;t=1");
            assert_eq!(get(&world, &client, user).await.status(), 200);
        }
        let mut answer = get(&world, &client, user).await;
        while answer.status() == 200 {
            answer = get(&world, &client, user).await;
        }
        assert_eq!(answer.status(), 429);
        assert_eq!(field(&answer, "retry-after"), "1");
        assert_eq!(field(&answer, "ratelimit"), "\"person\";r=0;t=1");
        assert_eq!(field(&answer, "content-type"), "application/problem+json");
        let problem: serde_json::Value = answer.json().await.unwrap();
        assert_eq!(problem["status"], 429);
        assert!(problem["detail"].as_str().unwrap().contains("than you may send"), "{problem}");
    }
    assert_eq!(get(&world, &world.client(true), "bob").await.status(), 404, "bob has his own");
}

#[tokio::test]
async fn a_route_holds_its_users_to_what_it_says_itself() {
    let world = World::start().await;
    let address = upstream::mirror().await;
    let mut route = spec(State::Running, &[address]);
    route.access.everyone = true;
    route.traffic = Traffic { rate: Rate::new(1, Some(1)), ..Traffic::default() };
    world.set([route]);
    let client = world.client(true);
    assert_eq!(get(&world, &client, "alice").await.status(), 200);
    let mut last = get(&world, &client, "bob").await;
    while last.status() == 200 {
        last = get(&world, &client, "bob").await;
    }
    assert_eq!(last.status(), 429);
    assert!(field(&last, "ratelimit").starts_with("\"route\";r=0"));
}

#[tokio::test]
async fn no_more_at_a_time_than_the_route_allows_and_a_websocket_counts_until_it_ends() {
    let world = World::start().await;
    let address = upstream::mirror().await;
    let mut route = spec(State::Running, &[address]);
    route.traffic = Traffic { concurrent: std::num::NonZeroU32::new(1), ..Traffic::default() };
    world.set([route]);
    let client = world.client(true);
    let bearer = world.bearer("alice");
    let mut socket = world.raw().await;
    socket
        .send(&format!(
            "GET /ws HTTP/1.1\r\nHost: {HOST}\r\nAuthorization: {bearer}\r\nConnection: Upgrade\r\n\
             Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        ))
        .await;
    let (head, _) = socket.answer().await;
    assert!(head.starts_with("HTTP/1.1 101"), "{head}");
    let refused = get(&world, &client, "alice").await;
    assert_eq!(refused.status(), 429);
    assert_eq!(field(&refused, "ratelimit-policy"), "\"route\";q=1;qu=\"concurrent-requests\"");
    assert_eq!(field(&refused, "retry-after"), "1");
    drop(socket);
    tokio::time::timeout(Duration::from_secs(20), async {
        while get(&world, &client, "alice").await.status() != 200 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("the place is given back");
}

#[tokio::test]
async fn a_body_that_says_it_is_too_long_is_refused_before_it_is_sent() {
    let world = World::start().await;
    let mut route = spec(State::Running, &[upstream::mirror().await]);
    route.traffic = Traffic { body_bytes: Some(10), ..Traffic::default() };
    world.set([route]);
    let bearer = world.bearer("alice");
    let post = |length: usize| {
        format!(
            "POST / HTTP/1.1\r\nHost: {HOST}\r\nAuthorization: {bearer}\r\n\
             Content-Length: {length}\r\n\r\n"
        )
    };
    let mut raw = world.raw().await;
    raw.send(&format!("{}0123456789", post(10))).await;
    assert!(raw.answer().await.0.starts_with("HTTP/1.1 200"));
    raw.send(&post(11)).await;
    let (head, _) = raw.answer().await;
    assert!(head.starts_with("HTTP/1.1 413"), "{head}");
    assert!(head.to_ascii_lowercase().contains("connection: close"), "{head}");
}

#[tokio::test]
async fn a_body_of_unknown_length_is_cut_when_it_has_become_too_long() {
    let world = World::start().await;
    let mut route = spec(State::Running, &[upstream::mirror().await]);
    route.traffic = Traffic { body_bytes: Some(10), ..Traffic::default() };
    world.set([route]);
    let bearer = world.bearer("alice");
    let mut raw = world.raw().await;
    raw.send(&format!(
        "POST / HTTP/1.1\r\nHost: {HOST}\r\nAuthorization: {bearer}\r\n\
         Transfer-Encoding: chunked\r\n\r\n8\r\n01234567\r\n"
    ))
    .await;
    raw.send("8\r\n01234567\r\n").await;
    let (head, _) = raw.answer().await;
    assert!(head.starts_with("HTTP/1.1 413"), "{head}");

    let body = futures::stream::iter((0..3).map(|_| Ok::<_, std::io::Error>("01234567")));
    let client = world.client(false);
    let request = client.post(world.url(HOST, "/")).header("Authorization", &bearer);
    let answer = request.body(reqwest::Body::wrap_stream(body)).send().await.unwrap();
    assert_eq!((answer.version(), answer.status().as_u16()), (reqwest::Version::HTTP_2, 413));
}

#[tokio::test]
async fn attack_11_the_body_of_a_stranger_that_does_not_come_is_not_waited_for() {
    let world = World::with(|config| {
        config.limits.stranger_body = Duration::from_millis(200);
    })
    .await;
    // Form data, or the stand-in would not read it.
    let head = "POST /token HTTP/1.1\r\nHost: auth.example.test\r\nContent-Length: 100\r\n\
                Content-Type: application/x-www-form-urlencoded\r\n\r\n";
    let mut raw = world.raw().await;
    raw.send(&format!("{head}part")).await;
    let rest = raw.rest().await;
    assert!(rest.starts_with("HTTP/1.1 408"), "{rest}");
    // Drop by drop is no better.
    let mut raw = world.raw().await;
    raw.send(head).await;
    for _ in 0..90 {
        if raw.stream.write_all(b"x").await.is_err() || raw.stream.flush().await.is_err() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let rest = raw.rest().await;
    assert!(rest.starts_with("HTTP/1.1 408"), "{rest}");
}

#[tokio::test]
async fn attack_11_a_body_that_stops_coming_is_not_waited_for_in_any_engine() {
    let world = World::with(|config| {
        config.limits.body_stall = Duration::from_millis(200);
    })
    .await;
    world.running(upstream::mirror().await);
    let bearer = world.bearer("alice");
    // The second is none for the fast lane.
    for more in ["", "Expect: 100-continue\r\n"] {
        let mut raw = world.raw().await;
        raw.send(&format!(
            "POST / HTTP/1.1\r\nHost: {HOST}\r\nAuthorization: {bearer}\r\n{more}\
             Content-Length: 100\r\n\r\npart"
        ))
        .await;
        let rest = raw.rest().await;
        assert!(rest.contains("HTTP/1.1 408"), "{more:?}: {rest}");
    }
}

#[tokio::test]
async fn attack_24_a_flood_of_strangers_wakes_nothing_counts_for_nothing_and_fills_no_log() {
    let mut world = World::with(|config| {
        config.limits.stranger_connection = share(1, 20);
        config.limits.stranger = share(1, 100);
    })
    .await;
    world.set([spec(State::Sleeping, &[])]);
    let client = world.client(true);
    let mut seen = std::collections::BTreeMap::new();
    let series = || world.registry.gather().iter().map(|f| f.get_metric().len()).sum::<usize>();
    let mut before = 0;
    for n in 0..300 {
        if n == 100 {
            before = series();
        }
        let host = if n % 2 == 0 { HOST.to_owned() } else { format!("n{n}--alice.example.test") };
        let request = client.get(world.url(&host, &format!("/{n}")));
        let request = match n % 3 {
            0 => request.header("Accept", "text/html"),
            1 => request.header("Authorization", format!("Bearer a.b{n}.c")),
            _ => request.header("Cookie", format!("__Host-dormouse=a.b{n}.c")),
        };
        let status = request.send().await.unwrap().status().as_u16();
        *seen.entry(status).or_insert(0) += 1;
    }
    assert_eq!(series(), before, "metrics do not grow with what is asked for");
    assert!(seen[&429] >= 50, "{seen:?}");
    assert!(seen.keys().all(|status| [302, 303, 401, 429].contains(status)), "{seen:?}");
    assert!(world.wakes.try_recv().is_err(), "nothing was asked to wake");
    assert!(world.tracker.changes(0).changes.is_empty(), "nobody was there");
    assert!(world.audit().lines().count() <= 3, "{}", world.audit());
    // Whoever is signed in is not among them, from the same address.
    world.running(upstream::mirror().await);
    assert_eq!(get(&world, &client, "alice").await.status(), 200);
}
