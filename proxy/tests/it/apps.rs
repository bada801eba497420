//! What programs behind the gate, and the clients of such programs, count on.

use domain::{
    route::{RouteSpec, State},
    workload::Protocol,
};
use reqwest::Method;

use crate::{
    upstream,
    world::{HOST, World, spec},
};

struct Got {
    status: u16,
    /// What the mirror was sent, in lower case.
    said: String,
    location: Option<String>,
}

async fn get(world: &World, http_1_only: bool, path: &str, fields: &[(&str, &str)]) -> Got {
    send(world, http_1_only, Method::GET, path, fields).await
}

async fn send(
    world: &World,
    http_1_only: bool,
    method: Method,
    path: &str,
    fields: &[(&str, &str)],
) -> Got {
    let mut request = world.client(http_1_only).request(method, world.url(HOST, path));
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    let answer = request.send().await.unwrap();
    let status = answer.status().as_u16();
    let location = answer.headers().get("location").map(|to| to.to_str().unwrap().to_owned());
    Got { status, location, said: answer.text().await.unwrap().to_ascii_lowercase() }
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_16_the_apps_own_authorization_is_passed_on_and_ours_never_is() {
    let world = World::start().await;
    world.running(upstream::mirror().await);
    let ours = world.issuer.access_token("alice", 600);
    let session = format!("__Host-dormouse={ours}");
    let cookie = ("Cookie", session.as_str());
    let expired = world.issuer.access_token("alice", -120);
    let other = world
        .issuer
        .sign("JWT", &serde_json::json!({ "iss": "https://app.example", "sub": "alice" }));
    for http_1_only in [true, false] {
        for app in
            ["Bearer sk-of-the-app", "Bearer null", "Bearer \"abc\"", &format!("Bearer {other}")]
        {
            let got = get(&world, http_1_only, "/api", &[cookie, ("Authorization", app)]).await;
            assert_eq!(got.status, 200, "{app}");
            let field = format!("\r\nauthorization: {app}\r\n").to_ascii_lowercase();
            assert!(got.said.contains(&field) && got.said.contains("x-forwarded-user: alice"));
            let alone = get(&world, http_1_only, "/api", &[("Authorization", app)]).await;
            assert_eq!(alone.status, 401, "{app} is no credential of ours");
        }
        for scheme in ["Bearer", "bearer", "token"] {
            let value = format!("{scheme} {ours}");
            let got = get(&world, http_1_only, "/api", &[("Authorization", value.as_str())]).await;
            assert_eq!(got.status, 200, "{scheme}");
            assert!(!got.said.contains("authorization"), "{}", got.said);
            let bad = format!("{scheme} {expired}");
            let got =
                get(&world, http_1_only, "/", &[cookie, ("Authorization", bad.as_str())]).await;
            assert_eq!(got.status, 401, "what claims to be ours is verified");
        }
        let own = [("Dormouse-Token", ours.as_str()), ("Authorization", "Bearer sk-of-the-app")];
        let got = get(&world, http_1_only, "/api", &own).await;
        assert_eq!(got.status, 200);
        assert!(got.said.contains("\r\nauthorization: bearer sk-of-the-app\r\n"), "{}", got.said);
        assert!(!got.said.contains("dormouse"), "{}", got.said);
        let got = get(&world, http_1_only, "/", &[cookie, ("Dormouse-Token", &expired)]).await;
        assert_eq!(got.status, 401);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_16_a_token_in_the_query_is_taken_out() {
    let world = World::start().await;
    world.running(upstream::mirror().await);
    let token = world.issuer.access_token("alice", 600);
    for http_1_only in [true, false] {
        let target = format!("/api/kernels?a=%20b&token={token}&c");
        let got = get(&world, http_1_only, &target, &[]).await;
        assert_eq!(got.status, 200);
        assert!(got.said.starts_with("get /api/kernels?a=%20b&c http/1.1\r\n"), "{}", got.said);
        let bad = format!("/api/kernels?token={}", world.issuer.access_token("alice", -120));
        assert_eq!(get(&world, http_1_only, &bad, &[]).await.status, 401);
        let bearer = world.bearer("alice");
        let from = format!("https://{HOST}/lab?token={token}");
        let fields = [("Authorization", bearer.as_str()), ("Referer", from.as_str())];
        let got = get(&world, http_1_only, "/x?token=of-the-app", &fields).await;
        assert!(got.said.starts_with("get /x?token=of-the-app http/1.1\r\n"), "{}", got.said);
        assert!(!got.said.contains("referer"), "{}", got.said);
        // In a page's address it would stay in the history, and go into what the page loads.
        let got = get(&world, http_1_only, &target, &[("Sec-Fetch-Mode", "navigate")]).await;
        let (status, to) = (got.status, got.location.unwrap());
        assert_eq!((status, to.as_str()), (302, "/api/kernels?a=%20b&c"));
    }
    let mut raw = world.raw().await;
    raw.send(&format!(
        "GET /api/kernels/1/channels?token={token} HTTP/1.1\r\nHost: {HOST}\r\nConnection: Upgrade\r\n\
         Upgrade: websocket\r\nSec-WebSocket-Key: x\r\nSec-WebSocket-Version: 13\r\n\r\n"
    ))
    .await;
    let (head, _) = raw.answer().await;
    assert!(head.contains("X-Said: GET /api/kernels/1/channels HTTP/1.1|"), "{head}");
}

#[tokio::test(flavor = "multi_thread")]
async fn jupyter_gets_its_double_submit_from_programs_with_a_token_only() {
    let world = World::start().await;
    let mirror = upstream::mirror().await;
    let token = world.issuer.access_token("alice", 600);
    let (bearer, session) = (format!("Bearer {token}"), format!("__Host-dormouse={token}"));
    let by_token = ("Authorization", bearer.as_str());
    let by_session = [("Cookie", session.as_str()), ("Sec-Fetch-Site", "same-origin")];
    for (protocol, fields, expected) in [
        (Protocol::Jupyter, &[by_token][..], true),
        (Protocol::Jupyter, &[by_token, ("Cookie", "_xsrf=own")], false),
        (Protocol::Jupyter, &by_session, false),
        (Protocol::Http, &[by_token], false),
    ] {
        world.set([RouteSpec { protocol, ..spec(State::Running, &[mirror]) }]);
        for http_1_only in [true, false] {
            let got = send(&world, http_1_only, Method::POST, "/api/kernels", fields).await;
            assert_eq!(got.status, 200);
            let line = |name: &str| {
                let line = got.said.lines().find_map(|line| line.strip_prefix(name));
                line.map(str::to_owned)
            };
            let (cookie, field) = (line("cookie: _xsrf="), line("x-xsrftoken: "));
            assert_eq!(field.is_some(), expected, "{}", got.said);
            assert!(!expected || field == cookie, "{}", got.said);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redirect_of_the_app_to_its_own_host_stays_on_https() {
    let world = World::start().await;
    let port = world.address.port();
    let redirects = upstream::start(|mut request| async move {
        loop {
            let to = request.head.split(' ').nth(1).unwrap().split_once("?to=").unwrap().1;
            let answer =
                format!("HTTP/1.1 307 T\r\nLocation: http://{to}\r\nContent-Length: 0\r\n\r\n");
            request.reply(&answer).await;
            match upstream::next(request.stream, request.rest).await {
                Some(following) => request = following,
                None => return,
            }
        }
    })
    .await;
    world.running(redirects);
    let bearer = world.bearer("alice");
    let token = ("Authorization", bearer.as_str());
    for http_1_only in [true, false] {
        for (to, expected) in [
            (format!("{HOST}:{port}/items/"), format!("https://{HOST}:{port}/items/")),
            (format!("{HOST}/items/"), format!("https://{HOST}:{port}/items/")),
            ("elsewhere.example/".to_owned(), "http://elsewhere.example/".to_owned()),
        ] {
            let got = get(&world, http_1_only, &format!("/items?to={to}"), &[token]).await;
            assert_eq!(got.location.as_deref(), Some(expected.as_str()));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_not_passed_on_says_which_part_of_it_is_wrong() {
    let world = World::start().await;
    let bearer = world.bearer("alice");
    for (fields, words) in [
        ("Content-Length: 5\r\nContent-Length: 5\r\n".to_owned(), "content-length"),
        ("Transfer-Encoding: gzip\r\n".to_owned(), "transfer-encoding"),
        ("X: y\r\n".repeat(201), "more than 200 fields"),
    ] {
        let answer = format!("HTTP/1.1 200 OK\r\n{fields}\r\nhello");
        let bad = upstream::start(move |mut request| {
            let answer = answer.clone();
            async move { request.reply(&answer).await }
        });
        world.running(bad.await);
        for mode in ["navigate", "cors"] {
            let fields = [("Authorization", bearer.as_str()), ("Sec-Fetch-Mode", mode)];
            let got = get(&world, true, "/", &fields).await;
            assert_eq!(got.status, 502);
            assert!(got.said.contains("bad answer") && got.said.contains(words), "{}", got.said);
            assert_eq!(got.said.starts_with("<!doctype html>"), mode == "navigate");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_whose_request_is_too_large_gets_a_page() {
    let world = World::start().await;
    for http_1_only in [true, false] {
        let large = "x".repeat(60_000);
        let fields = [("Sec-Fetch-Mode", "navigate"), ("Cookie", large.as_str())];
        let mut request = world.client(http_1_only).get(world.url(HOST, "/"));
        for (name, value) in fields {
            request = request.header(name, value);
        }
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status(), 431);
        if http_1_only {
            assert_eq!(answer.headers()["content-type"], "text/html; charset=utf-8");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_that_is_refused_has_no_body_when_none_was_asked_for() {
    let world = World::start().await;
    let mut raw = world.raw().await;
    raw.send(&format!("HEAD / HTTP/1.1\r\nHost: {HOST}\r\nHost: other\r\n\r\n")).await;
    let said = raw.rest().await;
    assert!(said.starts_with("HTTP/1.1 400 ") && said.ends_with("\r\n\r\n"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prefetch_neither_wakes_nor_counts() {
    let mut world = World::start().await;
    let session = format!("__Host-dormouse={}", world.issuer.access_token("alice", 600));
    let page = [("Cookie", session.as_str()), ("Sec-Fetch-Mode", "navigate")];
    let last_activity = |world: &World| {
        let mut changes = world.tracker.changes(0).changes;
        changes.pop().and_then(|change| change.last).map(|last| last.what)
    };
    for purpose in ["prefetch", "prefetch;prerender"] {
        let prefetch = [page[0], page[1], ("Sec-Purpose", purpose)];
        world.set([spec(State::Sleeping, &[])]);
        for http_1_only in [true, false] {
            assert_eq!(get(&world, http_1_only, "/", &prefetch).await.status, 503);
        }
        assert!(world.wakes.try_recv().is_err(), "{purpose} wakes");
        world.running(upstream::mirror().await);
        assert_eq!(get(&world, true, "/", &prefetch).await.status, 200);
        assert_eq!(last_activity(&world), None, "{purpose} counts");
        let stranger = get(&world, true, "/", &prefetch[1..]).await;
        assert_eq!(stranger.status, 401, "and starts no sign-in");
    }
    assert_eq!(get(&world, true, "/", &page).await.status, 200);
    assert_eq!(last_activity(&world), Some("opened a page".to_owned()));
    world.set([spec(State::Sleeping, &[])]);
    assert_eq!(get(&world, true, "/", &page).await.status, 503);
    world.wakes.recv().await.unwrap();
}
