//! Several pods behind one host: who is asked, who is asked instead, and who is asked again.

use std::net::SocketAddr;

use domain::{
    endpoint::{EndpointSpec, FAILURES_MAX, Revision, Serving},
    route::{RouteSpec, State},
    upstream::Routing,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpSocket,
};

use crate::{
    upstream,
    world::{HOST, World, spec},
};

/// Answers with its name and the cookies that it was sent, or greets on a WebSocket with its name.
async fn named(name: &'static str) -> SocketAddr {
    upstream::start(move |mut request| async move {
        loop {
            if request.is_upgrade() {
                let greeting = format!(
                    "HTTP/1.1 101 S\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n{name}"
                );
                request.reply(&greeting).await;
                // Until the other side is done.
                let _ = request.stream.read(&mut [0]).await;
                return;
            }
            let cookies =
                request.head.lines().find(|line| line.to_lowercase().starts_with("cookie"));
            let said = format!("{name} {}", cookies.unwrap_or_default());
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{said}", said.len());
            request.reply(&answer).await;
            match upstream::next(request.stream, request.rest).await {
                Some(following) => request = following,
                None => return,
            }
        }
    })
    .await
}

/// An address at which nobody listens, for as long as the socket is kept: nobody else is given the port.
pub fn dead() -> (TcpSocket, SocketAddr) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = socket.local_addr().unwrap();
    (socket, address)
}

fn with(routing: Routing, endpoints: Vec<EndpointSpec>) -> RouteSpec {
    RouteSpec { routing, endpoints, ..spec(State::Running, &[]) }
}

fn sticky() -> Routing {
    Routing { sticky: true, ..Routing::default() }
}

struct Got {
    status: u16,
    name: String,
    whole: String,
    cookie: Option<String>,
}

async fn get(world: &World, user: &str, cookie: Option<&str>) -> Got {
    let mut request = world.client(true).get(world.url(HOST, "/"));
    request = request.header("Authorization", world.bearer(user));
    if let Some(cookie) = cookie {
        request = request.header("Cookie", cookie);
    }
    let answer = request.send().await.unwrap();
    let status = answer.status().as_u16();
    let cookie = answer.headers().get("set-cookie").map(|c| c.to_str().unwrap().to_owned());
    let whole = answer.text().await.unwrap();
    Got { status, name: whole.split(' ').next().unwrap().to_owned(), whole, cookie }
}

async fn socket(world: &World, cookie: Option<&str>) -> (String, String, crate::world::Raw) {
    let cookie = cookie.map(|cookie| format!("Cookie: {cookie}\r\n")).unwrap_or_default();
    let mut raw = world.raw().await;
    raw.send(&format!(
        "GET / HTTP/1.1\r\nHost: {HOST}\r\nAuthorization: {}\r\n{cookie}Connection: Upgrade\r\n\
         Upgrade: websocket\r\nSec-WebSocket-Key: x\r\nSec-WebSocket-Version: 13\r\n\r\n",
        world.bearer("alice")
    ))
    .await;
    let (head, _) = raw.answer().await;
    let name = String::from_utf8(raw.bytes(1).await).unwrap();
    (name, head, raw)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_pod_costs_no_request_and_is_left_alone() {
    let world = World::start().await;
    let (_kept, dead) = dead();
    world.set([with(Routing::default(), vec![dead.into(), named("a").await.into()])]);
    for _ in 0..30 {
        let url = world.url(HOST, "/");
        let request = world.client(true).post(url).header("Authorization", world.bearer("alice"));
        let answer = request.body("x").send().await.unwrap();
        assert_eq!((answer.status().as_u16(), answer.text().await.unwrap().as_str()), (200, "a "));
    }
    assert_eq!(socket(&world, None).await.0, "a");
    let retries = counter(&world, "dormouse_proxy_connect_retries_total");
    let ejections = counter(&world, "dormouse_proxy_ejections_total");
    assert!((1.0..30.0).contains(&ejections), "{ejections}");
    assert!(retries >= f64::from(FAILURES_MAX), "{retries}");
}

fn counter(world: &World, name: &str) -> f64 {
    let families = world.registry.gather();
    let family = families.iter().find(|family| family.name() == name).unwrap();
    family.get_metric()[0].get_counter().get_value()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_drains_keeps_its_streams_and_gets_nothing_new() {
    let world = World::start().await;
    let (a, b) = (named("a").await, named("b").await);
    world.set([with(Routing::default(), vec![a.into()])]);
    let (name, _, mut open) = socket(&world, None).await;
    assert_eq!(name, "a");
    let draining = EndpointSpec { serving: Serving::Draining, ..a.into() };
    world.set([with(Routing::default(), vec![draining, b.into()])]);
    for _ in 0..20 {
        assert_eq!(get(&world, "alice", None).await.name, "b");
    }
    let outstanding = || world.endpoints("alice")[usize::from(a > b)].load().outstanding();
    assert_eq!(outstanding(), 1, "the stream is still there");
    open.stream.shutdown().await.unwrap();
    open.rest().await;
    while outstanding() > 0 {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_browser_stays_with_its_pod_on_every_engine_until_the_pod_is_gone() {
    let world = World::start().await;
    let (a, b) = (named("a").await, named("b").await);
    world.set([with(sticky(), vec![a.into(), b.into()])]);
    let first = get(&world, "alice", None).await;
    let set = first.cookie.unwrap();
    assert!(set.starts_with("__Host-dormouse-pod="), "{set}");
    for attribute in ["Path=/", "Secure", "HttpOnly", "SameSite=Lax"] {
        assert!(set.contains(attribute), "{set}");
    }
    assert!(!set.contains("127.0.0.1") && !set.contains("Domain"), "{set}");
    let pair = set.split(';').next().unwrap().to_owned();
    for _ in 0..10 {
        let again = get(&world, "alice", Some(&format!("mine=1; {pair}"))).await;
        assert_eq!(again.name, first.name);
        assert_eq!(again.cookie, None, "it has one already");
        assert!(
            again.whole.contains("mine=1") && !again.whole.contains("dormouse"),
            "{}",
            again.whole
        );
        let (name, head, _) = socket(&world, Some(&pair)).await;
        assert_eq!(name, first.name);
        assert!(!head.contains("Set-Cookie"), "{head}");
    }
    // Gone: another pod, and a cookie for it, which a WebSocket brings as well.
    let left = if first.name == "a" { b } else { a };
    let other = named("c").await;
    world.set([with(sticky(), vec![left.into(), other.into()])]);
    let (name, head, _) = socket(&world, Some(&pair)).await;
    assert_ne!(name, first.name);
    let again = head.lines().find_map(|line| line.strip_prefix("Set-Cookie: ")).unwrap();
    let pair = again.split(';').next().unwrap();
    for _ in 0..10 {
        assert_eq!(get(&world, "alice", Some(pair)).await.name, name);
    }
    for bad in ["__Host-dormouse-pod=AAAA", "__Host-dormouse-pod=%%%", &format!("{pair}; {pair}")] {
        let got = get(&world, "alice", Some(bad)).await;
        assert_eq!(got.status, 200, "{bad}");
        assert!(got.cookie.is_some(), "{bad}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_did_not_ask_for_it_gets_no_cookie_and_nor_does_an_app_with_one_pod() {
    let world = World::start().await;
    let (a, b) = (named("a").await, named("b").await);
    world.set([with(Routing::default(), vec![a.into(), b.into()])]);
    assert_eq!(get(&world, "alice", None).await.cookie, None);
    world.set([with(sticky(), vec![a.into()])]);
    assert_eq!(get(&world, "alice", None).await.cookie, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_stays_on_one_side_of_a_canary() {
    let world = World::start().await;
    let stable = named("stable").await;
    let canary = EndpointSpec { revision: Revision::Canary, ..named("canary").await.into() };
    let route = |weight| {
        let routing = Routing { canary_weight: weight, ..Routing::default() };
        let mut route = with(routing, vec![stable.into(), canary.clone()]);
        route.access.everyone = true;
        route
    };
    world.set([route(50)]);
    let mut seen = std::collections::BTreeSet::new();
    for n in 0..12 {
        let user = format!("user-{n}");
        let first = get(&world, &user, None).await.name;
        for _ in 0..3 {
            assert_eq!(get(&world, &user, None).await.name, first);
        }
        seen.insert(first);
    }
    assert_eq!(seen.len(), 2, "both sides are used");
    for (weight, name) in [(0, "stable"), (100, "canary")] {
        world.set([route(weight)]);
        for n in 0..6 {
            assert_eq!(get(&world, &format!("user-{n}"), None).await.name, name);
        }
    }
}
