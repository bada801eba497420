//! Upgraded streams.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use domain::{revocation::Revoked, route::State, workload::Protocol};
use jiff::Timestamp;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::mpsc,
};

use crate::{
    upstream,
    world::{HOST, Raw, World, spec},
};

fn handshake(world: &World, path: &str, more: &str) -> String {
    handshake_with(&world.bearer("alice"), path, more)
}

fn handshake_with(bearer: &str, path: &str, more: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: {HOST}\r\nAuthorization: {bearer}\r\nConnection: keep-alive, Upgrade\r\n\
         Upgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         Sec-WebSocket-Version: 13\r\n{more}\r\n"
    )
}

async fn open(world: &World, path: &str) -> Raw {
    let mut raw = world.raw().await;
    raw.send(&handshake(world, path, "")).await;
    let (head, _) = raw.answer().await;
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    raw
}

fn frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mask = [9, 8, 7, 6];
    let mut bytes = vec![0x80 | opcode, 0x80 | payload.len() as u8];
    bytes.extend(mask);
    bytes.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, key)| byte ^ key));
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_upgrades_to_an_upstream_that_answers_at_once_and_none_dies() {
    let world = Arc::new(World::start().await);
    world.running(
        upstream::start(|mut request| async move {
            // The 101 and the first message leave in one packet.
            request
                .reply(
                    "HTTP/1.1 101 S\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n\u{1}\u{5}hello",
                )
                .await;
            let (mut read, mut write) = request.stream.split();
            let _ = tokio::io::copy(&mut read, &mut write).await;
        })
        .await,
    );
    let answered = Arc::new(AtomicU64::new(0));
    let workers = (0..16).map(|worker| {
        let (world, answered) = (world.clone(), answered.clone());
        tokio::spawn(async move {
            for _ in (worker..1000).step_by(16) {
                let mut raw = open(&world, "/ws").await;
                assert_eq!(raw.bytes(7).await, b"\x01\x05hello");
                let message = frame(1, b"ping");
                raw.stream.write_all(&message).await.unwrap();
                raw.stream.flush().await.unwrap();
                assert_eq!(raw.bytes(message.len()).await, message);
                answered.fetch_add(1, SeqCst);
            }
        })
    });
    for worker in workers.collect::<Vec<_>>() {
        worker.await.unwrap();
    }
    assert_eq!(answered.load(SeqCst), 1000);
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_1_and_16_what_a_workload_is_told_in_a_handshake() {
    let world = World::start().await;
    world.running(upstream::mirror().await);
    let mut raw = world.raw().await;
    raw.send(&handshake(
        &world,
        "/ws//%2e%2e?x",
        "X_Forwarded_User: root\r\nConnection: x-forwarded-user\r\nX-Forwarded-User: root\r\n\
         Cookie: __Host-dormouse=tok; a=1\r\nSec-WebSocket-Protocol: chat\r\n\
         Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits, other\r\n",
    ))
    .await;
    let (head, _) = raw.answer().await;
    let said = head.to_ascii_lowercase();
    assert!(said.contains("x-said: get /ws//%2e%2e?x http/1.1|"), "{head}");
    assert!(said.contains("|x-forwarded-user: alice|"), "{head}");
    assert!(said.contains("|cookie: a=1|") && said.contains("|sec-websocket-protocol: chat|"));
    assert!(said.contains("|sec-websocket-extensions: other|"), "{head}");
    for gone in ["root", "authorization", "tok", "deflate", "set-cookie"] {
        assert!(!said.contains(gone), "{gone} in {head}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_9_cross_site_websocket_hijack() {
    let world = World::start().await;
    world.running(upstream::mirror().await);
    let port = world.address.port();
    let token = world.issuer.access_token("alice", 600);
    for (origin, status) in [
        (format!("Origin: https://{HOST}:{port}\r\n"), "101"),
        ("Origin: https://evil.test\r\n".to_owned(), "403"),
        (format!("Origin: https://evil--bob.example.test:{port}\r\n"), "403"),
        ("Origin: null\r\n".to_owned(), "403"),
        (String::new(), "403"),
    ] {
        let mut raw = world.raw().await;
        raw.send(&format!(
            "GET /ws HTTP/1.1\r\nHost: {HOST}:{port}\r\nCookie: __Host-dormouse={token}\r\n{origin}\
             Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
        ))
        .await;
        let (head, _) = raw.answer().await;
        assert_eq!(&head[9..12], status, "{origin}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_7_bytes_before_the_101_stay_here_until_it_has_come() {
    let world = World::start().await;
    let (heads, mut seen) = mpsc::channel(1);
    let (go, gate) = tokio::sync::watch::channel(false);
    let address = upstream::start(move |mut request| {
        let (heads, mut gate) = (heads.clone(), gate.clone());
        async move {
            let mut early = [0; 64];
            let read =
                tokio::time::timeout(Duration::from_millis(200), request.stream.read(&mut early));
            heads.send((request.rest.len(), read.await.is_err())).await.unwrap();
            gate.wait_for(|go| *go).await.unwrap();
            upstream::echo(request).await;
        }
    })
    .await;
    world.running(address);
    let mut raw = world.raw().await;
    let early = "GET /internal HTTP/1.1\r\nHost: x\r\n\r\n";
    raw.send(&format!("{}{early}", handshake(&world, "/ws", ""))).await;
    assert_eq!(seen.recv().await, Some((0, true)), "nothing came behind the head");
    go.send(true).unwrap();
    assert!(raw.answer().await.0.starts_with("HTTP/1.1 101 "));
    assert_eq!(raw.bytes(early.len()).await, early.as_bytes());
}

#[tokio::test(flavor = "multi_thread")]
async fn another_answer_than_101_is_relayed_and_ends_the_connection() {
    let world = World::start().await;
    for (answer, body) in [
        ("HTTP/1.1 403 Forbidden\r\nContent-Length: 6\r\n\r\nnot so", "not so"),
        ("HTTP/1.1 404 No\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", "abc"),
        ("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 426 Up\r\nContent-Length: 0\r\n\r\n", ""),
    ] {
        let address = upstream::start(move |mut request| async move {
            request.reply(answer).await;
            // Keeps the connection: the end of the body is known by its framing.
            let _ = request.stream.read(&mut [0; 1]).await;
        })
        .await;
        world.running(address);
        let mut raw = world.raw().await;
        // Behind a handshake that fails, nothing is taken for a request.
        raw.send(&format!("{}GET /smuggled HTTP/1.1\r\n\r\n", handshake(&world, "/ws", ""))).await;
        let (head, said) = raw.answer().await;
        assert!(head.to_ascii_lowercase().contains("connection: close"), "{head}");
        assert_eq!(String::from_utf8(said).unwrap(), body);
        assert_eq!(raw.rest().await, "");
    }
    let address = upstream::start(|request| async move { drop(request) }).await;
    world.running(address);
    let mut raw = world.raw().await;
    raw.send(&handshake(&world, "/ws", "")).await;
    assert!(raw.answer().await.0.starts_with("HTTP/1.1 502 "));
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_are_a_persons_doing_and_pings_are_not() {
    let world = World::start().await;
    let mut lab = spec(State::Running, &[upstream::mirror().await]);
    lab.protocol = Protocol::Jupyter;
    world.set([lab]);
    // Opened by a person: a program's opening with a token counts.
    let mut terminal = world.raw().await;
    terminal
        .send(&format!(
            "GET /terminals/websocket/1 HTTP/1.1\r\nHost: {HOST}\r\nCookie: __Host-dormouse={}\r\n\
             Origin: https://{HOST}:{}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
            world.issuer.access_token("alice", 600),
            world.address.port(),
        ))
        .await;
    assert!(terminal.answer().await.0.starts_with("HTTP/1.1 101 "));
    let send = async |raw: &mut Raw, bytes: Vec<u8>| {
        raw.stream.write_all(&bytes).await.unwrap();
        raw.stream.flush().await.unwrap();
        // Echoed: it has passed the tunnel.
        assert_eq!(raw.bytes(bytes.len()).await, bytes);
    };
    send(&mut terminal, frame(9, b"")).await;
    send(&mut terminal, frame(1, b"[\"set_size\",24,80]")).await;
    assert_eq!(world.tracker.changes(0).changes, []);
    send(&mut terminal, frame(1, b"[\"stdin\",\"l\"]")).await;
    let changes = world.tracker.changes(0).changes;
    assert_eq!(changes[0].last.as_ref().unwrap().what, "typed in a terminal");
    assert_eq!((changes[0].open, changes[0].working), (1, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_side_that_does_not_read_stops_the_other_and_nothing_else() {
    let world = World::start().await;
    let sent = Arc::new(AtomicU64::new(0));
    let counted = sent.clone();
    let address = upstream::start(move |mut request| {
        let sent = counted.clone();
        async move {
            request
                .reply("HTTP/1.1 101 S\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
                .await;
            let (mut read, mut write) = request.stream.into_split();
            let flood = tokio::spawn(async move {
                let block = vec![7; 64 * 1024];
                for _ in 0..1024 {
                    if write.write_all(&block).await.is_err() {
                        return;
                    }
                    sent.fetch_add(block.len() as u64, SeqCst);
                }
            });
            let mut byte = [0; 1];
            // What the client says still arrives while it does not read.
            read.read_exact(&mut byte).await.unwrap();
            assert_eq!(byte, *b"!");
            let _ = flood.await;
        }
    })
    .await;
    world.running(address);
    let mut raw = open(&world, "/ws").await;
    // Until the flood stands still.
    let mut last = u64::MAX;
    while sent.load(SeqCst) != last || last == 0 {
        last = sent.load(SeqCst);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert!(last < 40 << 20, "buffered {last} bytes");
    raw.send("!").await;
    let mut got = raw.buffer.len();
    while got < 64 << 20 {
        raw.buffer.clear();
        assert!(raw.more().await, "closed after {got}");
        got += raw.buffer.len();
    }
    assert_eq!(got, 64 << 20, "and not one byte is lost");
}

#[tokio::test(flavor = "multi_thread")]
async fn half_a_close_lets_the_other_side_finish() {
    let world = World::start().await;
    let address = upstream::start(|mut request| async move {
        request.reply("HTTP/1.1 101 S\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n").await;
        let mut all = request.rest;
        request.stream.read_to_end(&mut all).await.unwrap();
        all.reverse();
        request.stream.write_all(&all).await.unwrap();
    })
    .await;
    world.running(address);
    let mut raw = open(&world, "/ws").await;
    raw.send("abc").await;
    raw.stream.shutdown().await.unwrap();
    assert_eq!(raw.rest().await, "cba");
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_26_a_stop_says_goodbye_and_the_client_is_to_come_back() {
    let world = World::start().await;
    let (said, mut heard) = mpsc::channel(1);
    let address = upstream::start(move |mut request| {
        let said = said.clone();
        async move {
            request
                .reply("HTTP/1.1 101 S\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
                .await;
            // Half a frame: our own must wait for its end.
            request.stream.write_all(&[0x82, 4, 1, 2]).await.unwrap();
            let mut first = [0; 8];
            request.stream.read_exact(&mut first).await.unwrap();
            request.stream.write_all(&[3, 4, 0x82, 1, 9]).await.unwrap();
            said.send(first).await.unwrap();
        }
    })
    .await;
    world.running(address);
    let mut raw = open(&world, "/ws").await;
    assert_eq!(raw.bytes(4).await, [0x82, 4, 1, 2]);
    world.shutdown.cancel();
    let close = heard.recv().await.unwrap();
    assert_eq!(close[..2], [0x88, 0x82], "the upstream gets a masked Close");
    assert_eq!([close[6] ^ close[2], close[7] ^ close[3]], 1001u16.to_be_bytes());
    let rest = raw.bytes(6).await;
    assert_eq!(rest, [3, 4, 0x88, 2, 3, 0xf4], "1012, service restart");
    raw.stream.write_all(&frame(8, &1012u16.to_be_bytes())).await.unwrap();
    assert_eq!(raw.rest().await, "");
    world.served.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_17_a_lost_right_ends_an_open_websocket() {
    let world = World::start().await;
    let (upstream, mut raw) = echoing(&world, &world.bearer("alice")).await;

    let mut given_away = spec(State::Running, &[upstream]);
    given_away.access.owner = Some("bob".parse().unwrap());
    world.set([given_away]);
    assert_eq!(raw.bytes(4).await, RIGHT_LOST);
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_17_a_withdrawn_token_ends_an_open_websocket_and_is_401() {
    let world = World::start().await;
    let bearer = world.bearer("alice");
    let (_, mut raw) = echoing(&world, &bearer).await;
    withdraw(&world, &bearer);
    assert_eq!(raw.bytes(4).await, RIGHT_LOST);

    let answer = world.client(true).get(world.url(HOST, "/")).header("Authorization", bearer);
    assert_eq!(answer.send().await.unwrap().status(), 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_17_a_token_that_is_withdrawn_before_the_socket_is_open_ends_it() {
    let world = World::start().await;
    let bearer = world.bearer("alice");
    let (_, mut open) = echoing(&world, &bearer).await;
    let (go, wait) = tokio::sync::watch::channel(false);
    let (asked, mut hears) = tokio::sync::mpsc::channel(1);
    let slow = upstream::start(move |mut request| {
        let (mut wait, asked) = (wait.clone(), asked.clone());
        async move {
            asked.send(()).await.unwrap();
            wait.wait_for(|go| *go).await.unwrap();
            request
                .reply("HTTP/1.1 101 S\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
                .await;
            let _ = request.stream.read_u8().await;
        }
    })
    .await;
    world.running(slow);
    let mut raw = world.raw().await;
    raw.send(&handshake_with(&bearer, "/ws", "")).await;
    hears.recv().await.unwrap();
    withdraw(&world, &bearer);
    // What was open has been looked through.
    assert_eq!(open.bytes(4).await, RIGHT_LOST);
    go.send(true).unwrap();
    let (head, _) = raw.answer().await;
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    assert_eq!(raw.bytes(4).await, RIGHT_LOST);
}

fn withdraw(world: &World, bearer: &str) {
    let payload = bearer.split('.').nth(1).unwrap();
    let claims = URL_SAFE_NO_PAD.decode(payload).unwrap();
    let claims: serde_json::Value = serde_json::from_slice(&claims).unwrap();
    let token = Revoked::Token(claims["jti"].as_str().unwrap());
    world.revocations.revoke(token, Timestamp::MAX, Timestamp::now());
}

/// A Close frame with status 1008, policy violation.
const RIGHT_LOST: [u8; 4] = [0x88, 2, 0x03, 0xf0];

/// A socket that has echoed once.
async fn echoing(world: &World, bearer: &str) -> (SocketAddr, Raw) {
    let upstream = upstream::start(|mut request| async move {
        request.reply("HTTP/1.1 101 S\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n").await;
        let (mut read, mut write) = request.stream.split();
        let _ = tokio::io::copy(&mut read, &mut write).await;
    })
    .await;
    world.running(upstream);
    let mut raw = world.raw().await;
    raw.send(&handshake_with(bearer, "/ws", "")).await;
    let (head, _) = raw.answer().await;
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    let message = frame(1, b"ping");
    raw.stream.write_all(&message).await.unwrap();
    raw.stream.flush().await.unwrap();
    assert_eq!(raw.bytes(message.len()).await, message);
    (upstream, raw)
}
