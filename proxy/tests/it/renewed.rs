//! Whatever answers a request whose session was renewed carries the new cookies: lost, they would be
//! taken for stolen the next time.

use std::{num::NonZeroU32, time::Duration};

use domain::{
    route::{RouteSpec, State},
    traffic::{Rate, Traffic},
    workload::WorkloadRef,
};
use proxy::Share;
use reqwest::header::SET_COOKIE;

use crate::{
    pods::dead,
    upstream,
    world::{HOST, World, spec},
};

const OTHER: &str = "other--bob.example.test";

/// Cookies of a session that is past its token's life.
fn expired(world: &World) -> String {
    let refresh = world.issuer.session("alice");
    let access = world.issuer.access_token("alice", -120);
    format!("__Host-dormouse={access}; __Host-dormouse-refresh={refresh}")
}

/// Sends one request with such a session over HTTP/1.1 and over HTTP/2, and looks at both answers.
async fn answered(world: &World, host: &str, path: &str, fields: &[(&str, &str)], status: u16) {
    for http_1_only in [true, false] {
        let method = fields.iter().find(|(name, _)| *name == ":method").map_or("GET", |f| f.1);
        let method = reqwest::Method::from_bytes(method.as_bytes()).unwrap();
        let mut request = world.client(http_1_only).request(method, world.url(host, path));
        request = request.header("Cookie", expired(world));
        for (name, value) in fields.iter().filter(|(name, _)| !name.starts_with(':')) {
            request = request.header(*name, *value);
        }
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status(), status, "{host}{path} {fields:?}");
        let all = answer.headers().get_all(SET_COOKIE).iter();
        let names: Vec<_> =
            all.map(|cookie| cookie.to_str().unwrap().split('=').next().unwrap()).collect();
        for cookie in ["__Host-dormouse", "__Host-dormouse-refresh"] {
            let count = names.iter().filter(|name| **name == cookie).count();
            assert_eq!(count, 1, "{host}{path} {fields:?}: {names:?}");
        }
    }
}

fn with(state: State, traffic: Traffic) -> RouteSpec {
    RouteSpec { traffic, ..spec(state, &[]) }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_answer_carries_the_renewed_cookies() {
    let world = World::start().await;
    let (_kept, dead) = dead();
    world.running(upstream::mirror().await);
    let own = ("Sec-Fetch-Site", "same-origin");
    let page = ("Sec-Fetch-Mode", "navigate");
    answered(&world, HOST, "/", &[], 200).await;
    answered(&world, HOST, "/.dormouse/whoami", &[], 200).await;
    answered(&world, HOST, "/.dormouse/wake", &[own], 200).await;
    answered(&world, HOST, "/.dormouse/nothing", &[], 404).await;
    answered(&world, HOST, "/.dormouse/callback?state=x", &[page], 302).await;
    answered(&world, HOST, "/.dormouse/sign-out", &[page], 303).await;
    answered(&world, "nothing.example.test", "/", &[], 404).await;
    answered(&world, HOST, "/", &[(":method", "POST"), ("Sec-Fetch-Site", "same-site")], 403).await;
    let large = Traffic { body_bytes: Some(1), ..Traffic::default() };
    let fields = [(":method", "POST"), own, ("Content-Length", "5")];
    let broken =
        upstream::start(|mut request| async move { request.reply("nonsense").await }).await;
    for (route, path, fields, status) in [
        (with(State::Sleeping, Traffic::default()), "/", &[][..], 503),
        (with(State::Sleeping, Traffic::default()), "/", &[page][..], 503),
        (with(State::Sleeping, Traffic::default()), "/.dormouse/wake", &[own][..], 200),
        (with(State::Stopped, Traffic::default()), "/", &[page][..], 503),
        (with(State::Failed { message: "x".into() }, Traffic::default()), "/", &[][..], 503),
        (spec(State::Running, &[broken]), "/", &[][..], 502),
        (spec(State::Running, &[dead]), "/", &[][..], 502),
    ] {
        world.set([route]);
        answered(&world, HOST, path, fields, status).await;
    }
    world.set([RouteSpec { traffic: large, ..spec(State::Running, &[dead]) }]);
    for http_1_only in [true, false] {
        let request = world.client(http_1_only).post(world.url(HOST, "/")).body("12345");
        let request = request.header("Cookie", expired(&world)).header(own.0, own.1);
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status(), 413, "{fields:?}");
        assert_eq!(answer.headers().get_all(SET_COOKIE).iter().count(), 2);
    }
    assert_eq!(world.issuer.refused.load(std::sync::atomic::Ordering::SeqCst), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_by_a_limit_carries_them() {
    let rate = Rate::new(1, Some(1));
    let world = World::with(|config| {
        config.limits.person =
            Share { requests_per_second: Some(1), burst: Some(1), ..Share::default() };
    })
    .await;
    let traffic = Traffic { rate, concurrent: NonZeroU32::new(9), ..Traffic::default() };
    let upstream = upstream::mirror().await;
    world.set([RouteSpec { traffic, ..spec(State::Running, &[upstream]) }]);
    let until_refused = async |world: &World| loop {
        let request = world.client(true).get(world.url(HOST, "/")).header("Cookie", expired(world));
        let answer = request.send().await.unwrap();
        assert_eq!(answer.headers().get_all(SET_COOKIE).iter().count(), 2, "{}", answer.status());
        if answer.status() == 429 {
            break;
        }
    };
    until_refused(&world).await;
}

/// Opens a WebSocket with such a session; the whole head of the answer.
async fn handshake(world: &World, host: &str, origin: &str) -> String {
    let mut raw = world.raw().await;
    raw.send(&format!(
        "GET /ws HTTP/1.1\r\nHost: {host}:{port}\r\nCookie: {}\r\nOrigin: {origin}\r\n\
         Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\n\
         Sec-WebSocket-Version: 13\r\n\r\n",
        expired(world),
        port = world.address.port(),
    ))
    .await;
    raw.answer().await.0
}

#[tokio::test(flavor = "multi_thread")]
async fn every_answer_to_a_handshake_carries_them() {
    let world = World::start().await;
    let own = |host: &str| format!("https://{host}:{}", world.address.port());
    let elsewhere = upstream::start(|mut request| async move {
        let answer = "HTTP/1.1 307 T\r\nLocation: /login\r\nContent-Length: 0\r\n\r\n";
        request.reply(answer).await;
    })
    .await;
    let (_kept, dead) = dead();
    let running = |upstream| spec(State::Running, &[upstream]);
    let held = RouteSpec { wake_hold: Duration::from_millis(50), ..spec(State::Running, &[]) };
    let others = RouteSpec {
        workload: WorkloadRef { project: "bob".parse().unwrap(), ..held.workload.clone() },
        host: OTHER.to_owned(),
        access: domain::access::AccessPolicy::default(),
        ..held.clone()
    };
    for (route, host, origin, status) in [
        (running(upstream::mirror().await), HOST, own(HOST), "101"),
        (running(elsewhere), HOST, own(HOST), "307"),
        (running(upstream::mirror().await), HOST, "https://evil.test".to_owned(), "403"),
        (others, OTHER, own(OTHER), "404"),
        (spec(State::Stopped, &[]), HOST, own(HOST), "503"),
        (spec(State::Sleeping, &[]), HOST, own(HOST), "503"),
        (held, HOST, own(HOST), "503"),
        (running(dead), HOST, own(HOST), "502"),
    ] {
        world.set([route]);
        let head = handshake(&world, host, &origin).await;
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{status}: {head}");
        for cookie in ["__Host-dormouse=ey", "__Host-dormouse-refresh="] {
            let field = format!("\r\nSet-Cookie: {cookie}");
            assert_eq!(head.matches(&field).count(), 1, "{status}: {head}");
        }
    }
    assert_eq!(world.issuer.refused.load(std::sync::atomic::Ordering::SeqCst), 0);
}
