//! The front: heads, deadlines, limits, engine changes, the drain.

use std::time::Duration;

use tokio::io::AsyncReadExt;

use crate::{
    upstream,
    world::{HOST, World},
};

fn get(world: &World, path: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: {HOST}\r\nAuthorization: {}\r\n\r\n",
        world.bearer("alice")
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn one_connection_keeps_its_order_across_engines() {
    let world = World::start().await;
    world.running(upstream::mirror().await);
    let mut raw = world.raw().await;
    let token = world.bearer("alice");
    let post = |path: &str, framing: &str, body: &str| {
        format!(
            "POST {path} HTTP/1.1\r\nHost: {HOST}\r\nAuthorization: {token}\r\n{framing}\r\n\r\n{body}"
        )
    };
    // All at once: what follows a body is the next request, and no engine takes it for its own.
    let all = [
        get(&world, "/1"),
        post("/2", "Content-Length: 5", "hello"),
        get(&world, "/.dormouse/whoami"),
        post("/3", "Transfer-Encoding: chunked", "5\r\nworld\r\n0\r\n\r\n"),
        format!("GET /4 HTTP/1.1\r\nHost: {HOST}\r\n\r\n"),
        get(&world, "/5"),
    ]
    .concat();
    raw.send(&all).await;
    let mut answers = Vec::new();
    for _ in 0..6 {
        let (head, body) = raw.answer().await;
        let body = String::from_utf8(body).unwrap();
        let first = body.lines().next().unwrap_or_default().to_owned();
        answers.push((head[9..12].to_owned(), first));
    }
    let said: Vec<_> =
        answers.iter().map(|(status, first)| (status.as_str(), first.as_str())).collect();
    assert_eq!(said[0], ("200", "GET /1 HTTP/1.1"));
    assert_eq!(said[1], ("200", "POST /2 HTTP/1.1"));
    assert!(said[2].0 == "200" && said[2].1.contains("\"user\":\"alice\""));
    assert_eq!(said[3], ("200", "POST /3 HTTP/1.1"));
    assert_eq!(said[4].0, "401");
    assert_eq!(said[5], ("200", "GET /5 HTTP/1.1"));
    // Then the tunnel, on the same connection.
    raw.send(&format!(
        "GET /ws HTTP/1.1\r\nHost: {HOST}\r\nAuthorization: {token}\r\nConnection: Upgrade\r\n\
         Upgrade: websocket\r\n\r\n"
    ))
    .await;
    assert!(raw.answer().await.0.starts_with("HTTP/1.1 101 "));
    raw.send("bytes").await;
    assert_eq!(raw.bytes(5).await, b"bytes");
    // A body that nobody read ends the connection: it is never taken for a request.
    let mut raw = world.raw().await;
    let unread = post("/.dormouse/whoami", "Content-Length: 9", "GET /evil");
    raw.send(&format!("{unread}{}", get(&world, "/6"))).await;
    assert!(raw.answer().await.0.starts_with("HTTP/1.1 200 "));
    assert_eq!(raw.rest().await, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_7_smuggled_requests_are_refused_and_the_connection_closed() {
    let world = World::start().await;
    world.running(upstream::mirror().await);
    let bearer = world.bearer("alice");
    let smuggled =
        format!("GET /smuggled HTTP/1.1\r\nHost: {HOST}\r\nAuthorization: {bearer}\r\n\r\n");
    for framing in [
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "Content-Length: 0\r\nContent-Length: 5\r\n\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding: \u{b}chunked\r\n\r\n0\r\n\r\n",
        "X: y\n\r\n",
        "X: y\r\n folded\r\n\r\n",
        "Content-Length : 5\r\n\r\n",
        "Upgrade: websocket\r\nConnection: Upgrade\r\nHost: other\r\n\r\n",
    ] {
        let mut raw = world.raw().await;
        let head = format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nAuthorization: {bearer}\r\n");
        raw.send(&format!("{head}{framing}{smuggled}")).await;
        let all = raw.rest().await;
        assert!(all.starts_with("HTTP/1.1 400 "), "{framing:?}: {all}");
        assert!(!all.contains("smuggled"), "{framing:?}: {all}");
    }
    // A body whose chunks cheat ends the connection as well.
    let mut raw = world.raw().await;
    raw.send(&format!(
        "POST / HTTP/1.1\r\nHost: {HOST}\r\nAuthorization: {bearer}\r\nTransfer-Encoding: chunked\r\n\r\n\
         3;ext\r\nabc\r\n0\r\n\r\n{smuggled}"
    ))
    .await;
    assert!(!raw.rest().await.contains("200 OK"));
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_11_slow_heads_are_cut_and_others_served() {
    let world = World::with(|config| {
        config.limits.head_timeout = Duration::from_millis(300);
        config.limits.connections_per_address = 40;
    })
    .await;
    world.running(upstream::mirror().await);
    let mut slow = Vec::new();
    for _ in 0..30 {
        let mut raw = world.raw().await;
        raw.send("GET / HTTP/1.1\r\nHost: ").await;
        slow.push(raw);
    }
    let mut raw = world.raw().await;
    raw.send(&get(&world, "/")).await;
    assert!(raw.answer().await.0.starts_with("HTTP/1.1 200 "));
    for mut raw in slow {
        assert_eq!(raw.rest().await, "");
    }
    // A whole connection that waits between requests is not slow.
    raw.send(&get(&world, "/again")).await;
    assert!(raw.answer().await.0.starts_with("HTTP/1.1 200 "));
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_11_one_address_has_a_share() {
    let world = World::with(|config| config.limits.connections_per_address = 3).await;
    let held = [world.raw().await, world.raw().await, world.raw().await];
    let mut refused = tokio::net::TcpStream::connect(world.address).await.unwrap();
    assert_eq!(refused.read(&mut [0; 1]).await.unwrap_or(0), 0);
    drop(held);
}

#[tokio::test(flavor = "multi_thread")]
async fn large_heads_and_strange_methods() {
    let world = World::start().await;
    let long = "y".repeat(60_000);
    for (request, status) in [
        (format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nX: {long}\r\n\r\n"), "431"),
        (format!("CONNECT {HOST}:443 HTTP/1.1\r\nHost: {HOST}\r\n\r\n"), "405"),
        (format!("TRACE / HTTP/1.1\r\nHost: {HOST}\r\n\r\n"), "405"),
        ("GET / HTTP/1.1\r\nHost: a#@b\r\n\r\n".to_owned(), "400"),
        ("\u{16}\u{3}\u{1}garbage\r\n\r\n".to_owned(), "400"),
    ] {
        let mut raw = world.raw().await;
        raw.send(&request).await;
        let (head, _) = raw.answer().await;
        assert_eq!(&head[9..12], status, "{request:.40}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_finishes_what_runs_and_takes_nothing_new() {
    let world = World::with(|config| config.drain_grace = Duration::from_secs(30)).await;
    let (arrived, mut requests) = tokio::sync::mpsc::channel(4);
    let (go, gate) = tokio::sync::watch::channel(false);
    let address = upstream::start(move |mut request| {
        let (arrived, mut gate) = (arrived.clone(), gate.clone());
        async move {
            arrived.send(()).await.unwrap();
            gate.wait_for(|go| *go).await.unwrap();
            request.reply("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndone").await;
        }
    })
    .await;
    world.running(address);
    let mut idle = world.raw().await;
    let mut running = world.raw().await;
    running.send(&get(&world, "/")).await;
    let h2 = world.client(false).get(world.url(HOST, "/"));
    let h2 = tokio::spawn(h2.header("Authorization", world.bearer("alice")).send());
    requests.recv().await.unwrap();
    requests.recv().await.unwrap();
    world.shutdown.cancel();
    assert_eq!(idle.rest().await, "", "an idle connection closes at once");
    while tokio::net::TcpStream::connect(world.address).await.is_ok() {
        tokio::task::yield_now().await;
    }
    go.send(true).unwrap();
    assert_eq!(running.answer().await.1, b"done");
    assert_eq!(h2.await.unwrap().unwrap().text().await.unwrap(), "done");
    world.served.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_3_nothing_is_exempt_from_sign_in_by_a_trick() {
    let world = World::start().await;
    world.running(upstream::start(|_| async { panic!("a stranger got through") }).await);
    let mut raw = world.raw().await;
    for target in [
        "/.dormouse/callback/../../secret",
        "/.dormouse/callback%2f..%2f..%2fsecret",
        "/.dormouse/whoami?/.dormouse/callback",
        "/secret?x=/.dormouse/callback",
        "/secret/.dormouse/callback",
        "/%2edormouse/callback",
        "//.dormouse/callback",
        "/.DORMOUSE/callback",
        "/.dormouse/wake",
        "/robots.txt",
    ] {
        let agent = "User-Agent: kube-probe/1.33\r\nX-Original-URI: /.dormouse/callback";
        raw.send(&format!("GET {target} HTTP/1.1\r\nHost: {HOST}\r\n{agent}\r\n\r\n")).await;
        assert!(raw.answer().await.0.starts_with("HTTP/1.1 401 "), "{target}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_8_a_doubled_session_cookie_is_refused_and_not_sent_round() {
    let world = World::start().await;
    world.running(upstream::start(|_| async { panic!("it got through") }).await);
    let good = world.issuer.access_token("alice", 600);
    let mut raw = world.raw().await;
    for accept in ["text/html", "*/*"] {
        raw.send(&format!(
            "GET / HTTP/1.1\r\nHost: {HOST}\r\nAccept: {accept}\r\n\
             Cookie: __Host-dormouse={good}; __Host-dormouse={good}\r\n\r\n"
        ))
        .await;
        assert!(raw.answer().await.0.starts_with("HTTP/1.1 401 "), "{accept}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_11_slow_bodies_leave_others_served() {
    let world = World::start().await;
    world.running(upstream::mirror().await);
    let bearer = world.bearer("alice");
    let mut slow = Vec::new();
    for _ in 0..50 {
        let mut raw = world.raw().await;
        raw.send(&format!(
            "POST / HTTP/1.1\r\nHost: {HOST}\r\nAuthorization: {bearer}\r\nContent-Length: 9\r\n\r\nslow"
        ))
        .await;
        slow.push(raw);
    }
    let mut raw = world.raw().await;
    raw.send(&get(&world, "/")).await;
    assert!(raw.answer().await.0.starts_with("HTTP/1.1 200 "));
    for raw in &mut slow {
        raw.send(" body").await;
    }
    for raw in &mut slow {
        assert!(raw.answer().await.1.ends_with(b"slow body"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_2_behind_a_load_balancer_only_that_is_believed() {
    let world = World::start().await;
    world.running(upstream::mirror().await);
    // 127.0.0.0/9 is the load balancer's network, 127.128.0.0/9 is everybody else's.
    let from = async |peer: &str, forwarded: &[&str]| {
        let mut raw = world.plain(peer).await;
        let mut told = Vec::new();
        // On one connection: a load balancer sends many clients' requests on it.
        for forwarded in forwarded {
            for framing in ["Content-Length: 0", "Transfer-Encoding: chunked"] {
                raw.send(&format!(
                    "POST / HTTP/1.1\r\nHost: {HOST}\r\nAuthorization: {}\r\n\
                     X-Forwarded-For: {forwarded}\r\n{framing}\r\n\r\n",
                    world.bearer("alice")
                ))
                .await;
                if framing.starts_with('T') {
                    raw.send("0\r\n\r\n").await;
                }
                let (head, body) = raw.answer().await;
                assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
                let said = String::from_utf8(body).unwrap().to_ascii_lowercase();
                let at = said.split("x-forwarded-for: ").nth(1).unwrap();
                told.push(at.split("\r\n").next().unwrap().to_owned());
                assert!(said.contains("x-forwarded-proto: https\r\n"), "{said}");
            }
        }
        told.dedup();
        told
    };
    let told = from("127.0.0.2", &["6.6.6.6, 192.0.2.1", "192.0.2.2, 127.0.0.3", "evil"]).await;
    assert_eq!(told, ["192.0.2.1", "192.0.2.2", "127.0.0.2"]);
    assert_eq!(from("127.128.0.2", &["192.0.2.1", "127.0.0.3"]).await, ["127.128.0.2"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_http_at_the_port_for_https_is_answered_in_words() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let world = World::start().await;
    let mut tcp = tokio::net::TcpStream::connect(world.address).await.unwrap();
    tcp.write_all(b"GET / HTTP/1.1\r\nHost: lab.example.test\r\n\r\n").await.unwrap();
    tcp.shutdown().await.unwrap();
    let mut answer = String::new();
    tcp.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("https://"), "{answer}");
    assert!(answer.contains("Connection: close"), "{answer}");
}
