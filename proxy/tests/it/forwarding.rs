//! Plain requests through the gate and pingora.

use std::time::Duration;

use domain::route::RouteTable;
use reqwest::StatusCode;
use std::sync::Arc;
use tokio::sync::mpsc;

use crate::{
    upstream,
    world::{HOST, World},
};

#[tokio::test(flavor = "multi_thread")]
async fn attack_1_and_16_what_a_workload_is_told_on_every_engine() {
    let world = World::start().await;
    world.running(upstream::mirror().await);
    let token = world.issuer.access_token("alice", 600);
    for http_1_only in [true, false] {
        let request = world
            .client(http_1_only)
            .get(world.url(HOST, "/a//b%2Fc?q=%2F"))
            .header("Cookie", format!("a=1; __Host-dormouse={token}; b=2"))
            .header("X-Forwarded-User", "root")
            .header("X_Forwarded_User", "root")
            .header("x-forwarded-for", "6.6.6.6")
            .header("X-Forwarded-Host", "evil")
            .header("Remote-User", "root")
            .header("X-Kept", "yes");
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status(), 200);
        let said = answer.text().await.unwrap();
        let lower = said.to_ascii_lowercase();
        assert!(said.starts_with("GET /a//b%2Fc?q=%2F HTTP/1.1\r\n"), "{said}");
        assert!(lower.contains("\r\nx-forwarded-user: alice\r\n"), "{said}");
        assert!(lower.contains("\r\nx-forwarded-email: alice@example.test\r\n"), "{said}");
        assert!(lower.contains("\r\nx-forwarded-groups: ml\r\n"), "{said}");
        assert!(lower.contains("\r\nx-forwarded-for: 127.0.0.1\r\n"), "{said}");
        assert!(lower.contains("\r\nx-forwarded-proto: https\r\n"), "{said}");
        let host = format!("{HOST}:{}", world.address.port());
        assert!(lower.contains(&format!("\r\nx-forwarded-host: {host}\r\n")), "{said}");
        assert!(lower.contains(&format!("\r\nhost: {host}\r\n")), "{said}");
        assert!(lower.contains("\r\nx-kept: yes\r\n"), "{said}");
        assert!(lower.contains("\r\ncookie: a=1; b=2\r\n"), "{said}");
        for gone in ["root", "6.6.6.6", "evil", "dormouse", &token, "remote-user"] {
            assert!(!said.contains(gone), "{gone} in {said}");
        }
        assert_eq!(lower.matches("x-forwarded-user").count(), 1);
    }
    let by_bearer = world.client(true).get(world.url(HOST, "/")).bearer_auth(&token).send().await;
    assert!(
        !by_bearer.unwrap().text().await.unwrap().to_ascii_lowercase().contains("authorization")
    );
    // Another scheme is the workload's own.
    let mut raw = world.raw().await;
    raw.send(&format!(
        "GET //a/./%2e%2e/b HTTP/1.1\r\nHost: {HOST}\r\nConnection: X-Forwarded-User, x-secret\r\n\
         X-Secret: 1\r\nX.Forwarded.User: root\r\nX-Forwarded-User: root\r\n\
         Authorization: token app\r\nCookie: __Host-dormouse={token}\r\n\r\n"
    ))
    .await;
    let said = String::from_utf8(raw.answer().await.1).unwrap().to_ascii_lowercase();
    assert!(said.starts_with("get //a/./%2e%2e/b http/1.1\r\n"), "{said}");
    assert!(said.contains("authorization: token app") && said.contains("x-forwarded-user: alice"));
    assert!(!said.contains("root") && !said.contains("x-secret") && !said.contains("cookie"));
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_and_forbidden_look_the_same() {
    let world = World::start().await;
    world.running(upstream::mirror().await);
    let client = world.client(false);
    let unknown = "nothing--alice.example.test";
    let mut seen = Vec::new();
    for host in [HOST, unknown] {
        for (user, accept) in [(Some("bob"), "*/*"), (Some("bob"), "text/html"), (None, "*/*")] {
            let mut request = client.get(world.url(host, "/")).header("Accept", accept);
            if let Some(user) = user {
                request = request.header("Authorization", world.bearer(user));
            }
            let answer = request.send().await.unwrap();
            let (status, headers) = (answer.status(), answer.headers().clone());
            let policy = |text: &str| text.split('\'').map(str::len).collect::<Vec<_>>();
            let policy =
                headers.get("content-security-policy").map(|p| policy(p.to_str().unwrap()));
            let names: Vec<_> = headers.keys().map(|name| name.as_str().to_owned()).collect();
            let length = answer.text().await.unwrap().len();
            seen.push((host, status, names, policy, length));
        }
    }
    for (known, unknown) in seen[..3].iter().zip(&seen[3..]) {
        assert_eq!(
            (&known.1, &known.2, &known.3, &known.4),
            (&unknown.1, &unknown.2, &unknown.3, &unknown.4)
        );
    }
    assert_eq!(
        (seen[0].1, seen[1].1, seen[2].1),
        (StatusCode::NOT_FOUND, StatusCode::NOT_FOUND, StatusCode::UNAUTHORIZED)
    );
    // Whoever may, may.
    let alice = client.get(world.url(HOST, "/")).header("Authorization", world.bearer("alice"));
    assert_eq!(alice.send().await.unwrap().status(), 200);
    let foreign = client.get(world.url("evil.test", "/")).send().await;
    // The certificate is not for it; over a connection of ours it is not there.
    assert!(foreign.is_err());
    let mut raw = world.raw().await;
    raw.send("GET / HTTP/1.1\r\nHost: evil.test\r\n\r\n").await;
    assert!(raw.answer().await.0.starts_with("HTTP/1.1 404 "));
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_6_and_12_bad_tokens_are_401() {
    let world = World::start().await;
    world.running(upstream::mirror().await);
    let good = world.issuer.access_token("alice", 600);
    let mut tampered = good.clone().into_bytes();
    let at = tampered.len() - 10;
    tampered[at] = if tampered[at] == b'A' { b'B' } else { b'A' };
    let expired = world.issuer.access_token("alice", -60);
    let id_token = world.issuer.sign("JWT", &serde_json::json!({ "sub": "alice" }));
    let none = "eyJhbGciOiJub25lIiwidHlwIjoiYXQrand0In0.eyJzdWIiOiJhIn0.";
    let client = world.client(true);
    for token in [std::str::from_utf8(&tampered).unwrap(), &expired, &id_token, none, "x"] {
        for name in ["Authorization", "Cookie"] {
            let value = match name {
                "Cookie" => format!("__Host-dormouse={token}"),
                _ => format!("Bearer {token}"),
            };
            let answer = client.get(world.url(HOST, "/")).header(name, value).send().await.unwrap();
            assert_eq!(answer.status(), 401, "{name} {token}");
            let challenge = answer.headers()["www-authenticate"].to_str().unwrap().to_owned();
            assert!(challenge.contains("error=\"invalid_token\""), "{challenge}");
            let problem: serde_json::Value = answer.json().await.unwrap();
            assert_eq!(problem["status"], 401);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_believed_before_routes_have_arrived() {
    let world = World::start().await;
    world.routes.send_replace(Arc::new(RouteTable::default()));
    let request = world.client(false).get(world.url(HOST, "/"));
    let answer = request.header("Authorization", world.bearer("alice")).send().await.unwrap();
    assert_eq!(answer.status(), 503);
    assert!(answer.headers().contains_key("retry-after"));
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_are_passed_on_as_they_come() {
    let world = World::start().await;
    let (go, gates) = mpsc::channel::<()>(1);
    let gates = Arc::new(tokio::sync::Mutex::new(gates));
    let address = upstream::start(move |mut request| {
        let gates = gates.clone();
        async move {
            let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
            request.reply(head).await;
            for _ in 0..3 {
                request.reply("8\r\ndata: x\n\r\n").await;
                // The next event only when the client has this one.
                gates.lock().await.recv().await.unwrap();
            }
            request.reply("0\r\n\r\n").await;
        }
    })
    .await;
    world.running(address);
    for http_1_only in [true, false] {
        let client = world.client(http_1_only);
        let request = client.get(world.url(HOST, "/events"));
        let mut answer =
            request.header("Authorization", world.bearer("alice")).send().await.unwrap();
        for _ in 0..3 {
            let chunk = answer.chunk().await.unwrap().unwrap();
            assert_eq!(&chunk[..], b"data: x\n");
            go.send(()).await.unwrap();
        }
        assert_eq!(answer.text().await.unwrap(), "");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn large_bodies_pass_both_ways() {
    let world = World::start().await;
    world.running(upstream::mirror().await);
    let body: String = (0..3_000_000).map(|n| char::from(b'a' + (n % 26) as u8)).collect();
    for http_1_only in [true, false] {
        let request = world.client(http_1_only).post(world.url(HOST, "/upload"));
        let request = request.header("Authorization", world.bearer("alice")).body(body.clone());
        let said = request.send().await.unwrap().text().await.unwrap();
        assert!(said.ends_with(&body));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workload_cannot_set_our_cookies() {
    let world = World::start().await;
    let address = upstream::start(|mut request| async move {
        request
            .reply(
                "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nSet-Cookie: a=1\r\n\
                 Set-Cookie: __Host-dormouse=evil; Path=/\r\n\
                 Set-Cookie: __host-dormouse-refresh=evil\r\nSet-Cookie: b=2\r\n\r\nok",
            )
            .await;
    })
    .await;
    world.running(address);
    let request = world.client(false).get(world.url(HOST, "/"));
    let answer = request.header("Authorization", world.bearer("alice")).send().await.unwrap();
    let cookies: Vec<_> = answer
        .headers()
        .get_all("set-cookie")
        .iter()
        .map(|v| v.to_str().unwrap().to_owned())
        .collect();
    assert_eq!(cookies, ["a=1", "b=2"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workload_that_is_not_quite_there_is_dialled_again() {
    let world = World::start().await;
    let reserved = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = reserved.local_addr().unwrap();
    drop(reserved);
    world.running(address);
    let request = world.client(true).post(world.url(HOST, "/")).body("once");
    let request = request.header("Authorization", world.bearer("alice"));
    let sent = tokio::spawn(request.send());
    let retries = || {
        let families = world.registry.gather();
        let family = families.iter().find(|f| f.name() == "dormouse_proxy_connect_retries_total");
        family.map_or(0.0, |family| family.get_metric()[0].get_counter().get_value())
    };
    while retries() < 1.0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let listener = tokio::net::TcpListener::bind(address).await.unwrap();
    let (stream, _) = listener.accept().await.unwrap();
    let mut request = upstream::next(stream, Vec::new()).await.unwrap();
    request.reply("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    assert_eq!(sent.await.unwrap().unwrap().text().await.unwrap(), "ok");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_answer_is_a_bad_gateway_and_a_post_is_never_sent_twice() {
    let world = World::start().await;
    let (seen, mut requests) = mpsc::unbounded_channel();
    let address = upstream::start(move |request| {
        let seen = seen.clone();
        async move {
            let _ = seen.send(request.head.clone());
        }
    })
    .await;
    world.running(address);
    let request = world.client(true).post(world.url(HOST, "/pay")).body("1");
    let answer = request.header("Authorization", world.bearer("alice")).send().await.unwrap();
    assert_eq!(answer.status(), 502);
    assert!(requests.recv().await.unwrap().starts_with("POST /pay"));
    assert!(requests.try_recv().is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn system_hosts_and_their_closed_paths() {
    let portal = upstream::mirror().await;
    let world = World::with(|config| {
        config.system_hosts.push(proxy::SystemHost {
            host: "portal.example.test".to_owned(),
            upstream: portal,
            access: proxy::SystemAccess::SignedIn,
            closed_paths: vec![],
        });
    })
    .await;
    let client = world.client(true);
    let get = async |path: &str| {
        let answer = client.get(world.url("auth.example.test", path)).send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    };
    assert_eq!(get("/sign-in").await, (200, "issuer /sign-in".to_owned()));
    for closed in
        ["/internal/ssh-keys", "/internal", "/%69nternal/x", "//internal/x", "/INTERNAL/x"]
    {
        assert_eq!(get(closed).await.0, 404, "{closed}");
    }
    let mut raw = world.raw().await;
    raw.send("GET /x/../internal/ssh-keys HTTP/1.1\r\nHost: auth.example.test\r\n\r\n").await;
    assert!(raw.answer().await.0.starts_with("HTTP/1.1 404 "));

    let anonymous = client.get(world.url("portal.example.test", "/")).send().await.unwrap();
    assert_eq!(anonymous.status(), 401);
    let token = world.issuer.access_token("bob", 600);
    let cookie = format!("__Host-dormouse={token}; theme=dark");
    let request = client.get(world.url("portal.example.test", "/")).header("Cookie", cookie);
    let said = request.send().await.unwrap().text().await.unwrap();
    assert!(said.to_ascii_lowercase().contains("cookie: theme=dark"), "{said}");
    assert!(said.contains(&format!("Bearer {token}")), "{said}");
    assert!(!said.contains("__Host-dormouse"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_are_classified_and_opening_is_written_down_once() {
    let world = World::start().await;
    world.running(upstream::mirror().await);
    let client = world.client(true);
    let read = client.get(world.url(HOST, "/"));
    let session = format!("__Host-dormouse={}", world.issuer.access_token("alice", 600));
    read.header("Cookie", session).send().await.unwrap().text().await.unwrap();
    assert_eq!(world.tracker.changes(0).changes, []);
    // A program uses what it reads.
    let read = client.get(world.url(HOST, "/")).header("Authorization", world.bearer("alice"));
    read.send().await.unwrap().text().await.unwrap();
    let changes = world.tracker.changes(0).changes;
    assert_eq!(changes[0].last.as_ref().unwrap().who.as_str(), "alice");
    let mut text = world.audit();
    while !text.contains("opened") {
        tokio::task::yield_now().await;
        text = world.audit();
    }
    assert_eq!(text.matches("opened").count(), 1, "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_may_wait_for_100_continue() {
    let world = World::start().await;
    let address = upstream::start(|mut request| async move {
        assert!(request.head.to_ascii_lowercase().contains("expect: 100-continue"));
        request.reply("HTTP/1.1 100 Continue\r\n\r\n").await;
        while request.rest.len() < 4 {
            tokio::io::AsyncReadExt::read_buf(&mut request.stream, &mut request.rest)
                .await
                .unwrap();
        }
        request.reply("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    })
    .await;
    world.running(address);
    let mut raw = world.raw().await;
    raw.send(&format!(
        "POST / HTTP/1.1\r\nHost: {HOST}\r\nAuthorization: {}\r\nExpect: 100-continue\r\n\
         Content-Length: 4\r\n\r\n",
        world.bearer("alice")
    ))
    .await;
    assert!(raw.answer().await.0.starts_with("HTTP/1.1 100 "));
    raw.send("body").await;
    assert_eq!(raw.answer().await.1, b"ok");
}
