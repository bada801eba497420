//! The bytes of one exchange, when its sides do not keep to the simplest order.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use domain::{revocation::Revoked, route::State};
use futures::StreamExt;
use jiff::Timestamp;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::mpsc,
    time::{sleep, timeout},
};

use crate::{
    upstream,
    world::{HOST, Raw, World, spec},
};

/// Within this an exchange must end whose right is lost.
const ENDED_WITHIN: Duration = Duration::from_secs(5);

fn head(world: &World, method: &str, path: &str, more: &str) -> String {
    let bearer = world.bearer("alice");
    format!("{method} {path} HTTP/1.1\r\nHost: {HOST}\r\nAuthorization: {bearer}\r\n{more}\r\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_sent_on_an_old_connection_is_sent_again_only_if_that_does_no_harm() {
    let world = World::start().await;
    let (seen, mut requests) = mpsc::unbounded_channel();
    // Each connection is closed within its second request, before a byte of an answer.
    let address = upstream::start(move |mut request| {
        let seen = seen.clone();
        async move {
            seen.send(request.head.lines().next().unwrap().to_owned()).unwrap();
            request.reply("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
            if let Some(second) = upstream::next(request.stream, request.rest).await {
                seen.send(second.head.lines().next().unwrap().to_owned()).unwrap();
            }
        }
    })
    .await;
    world.running(address);
    let mut raw = world.raw().await;
    let mut statuses = Vec::new();
    for (method, path) in [("GET", "/1"), ("GET", "/2"), ("POST", "/3"), ("DELETE", "/4")] {
        raw.send(&head(&world, method, path, "Content-Length: 0\r\n")).await;
        let (answer, _) = raw.answer().await;
        statuses.push(answer[9..12].to_owned());
        if answer.to_ascii_lowercase().contains("connection: close") {
            raw = world.raw().await;
        }
    }
    // The POST came on the connection that had been made for the repeated `/2`.
    assert_eq!(statuses, ["200", "200", "502", "200"]);
    let mut counts = std::collections::BTreeMap::new();
    while let Ok(line) = requests.try_recv() {
        *counts.entry(line[..line.len() - 9].to_owned()).or_insert(0) += 1;
    }
    assert_eq!(counts["GET /2"], 2, "{counts:?}");
    assert_eq!(counts["POST /3"], 1, "{counts:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_may_come_before_the_body_is_there() {
    let world = World::start().await;
    let address = upstream::start(|mut request| async move {
        if request.head.starts_with("POST") {
            request.reply("HTTP/1.1 413 No\r\nContent-Length: 3\r\n\r\nno!").await;
            // It reads on, as one does that wants its answer to arrive.
            while request.stream.read_buf(&mut request.rest).await.unwrap_or(0) > 0 {}
        } else {
            request.reply("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nnext").await;
        }
    })
    .await;
    world.running(address);
    let mut raw = world.raw().await;
    raw.send(&head(&world, "POST", "/", "Content-Length: 10\r\n")).await;
    raw.send("12345").await;
    let (answer, body) = raw.answer().await;
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    assert_eq!(body, b"no!");
    // What is left of the body is taken for no request; if the connection lives on, the next is served.
    let next = head(&world, "GET", "/next", "");
    let _ = raw.stream.write_all(format!("67890{next}").as_bytes()).await;
    let _ = raw.stream.flush().await;
    if answer.to_ascii_lowercase().contains("connection: close") {
        assert_eq!(raw.rest().await, "");
    } else {
        assert_eq!(raw.answer().await.1, b"next");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_and_its_answer_pass_each_other_without_standing_in_each_others_way() {
    const LENGTH: usize = 24 << 20;
    let world = World::start().await;
    // Answers with what comes, as it comes: more than all buffers on the way can hold.
    let address = upstream::start(|mut request| async move {
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {LENGTH}\r\n\r\n");
        request.reply(&answer).await;
        let (mut read, mut write) = request.stream.split();
        write.write_all(&request.rest).await.unwrap();
        let _ = tokio::io::copy(&mut read, &mut write).await;
    })
    .await;
    world.running(address);
    let Raw { stream, .. } = world.raw().await;
    let (mut read, mut write) = tokio::io::split(stream);
    let request = head(&world, "POST", "/", &format!("Content-Length: {LENGTH}\r\n"));
    let sending = tokio::spawn(async move {
        write.write_all(request.as_bytes()).await.unwrap();
        for block in 0..LENGTH / 4096 {
            write.write_all(&[block as u8; 4096]).await.unwrap();
        }
        write.flush().await.unwrap();
        write
    });
    let receiving = async {
        let mut bytes = Vec::new();
        let body = loop {
            assert!(read.read_buf(&mut bytes).await.unwrap() > 0);
            if let Some(at) = crate::world::find(&bytes, b"\r\n\r\n") {
                break at + 4;
            }
        };
        while bytes.len() < body + LENGTH {
            assert!(read.read_buf(&mut bytes).await.unwrap() > 0, "closed within the body");
        }
        for (block, part) in bytes[body..].chunks(4096).enumerate() {
            assert!(part.iter().all(|byte| *byte == block as u8), "block {block}");
        }
    };
    timeout(Duration::from_secs(60), receiving).await.expect("it stands");
    drop(sending.await.unwrap());
}

/// What an exchange is doing when its right is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Doing {
    /// The workload thinks.
    Waiting,
    SilentAnswer,
    LongAnswer,
    SilentUpload,
    LongUpload,
}

/// A workload that answers `/answer` with a stream, now and then or once, and takes everything else.
async fn workload(bytes_seen: Arc<AtomicU64>) -> std::net::SocketAddr {
    upstream::start(move |mut request| {
        let seen = bytes_seen.clone();
        async move {
            if request.head.starts_with("GET /answer") {
                request.reply("HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\nx").await;
                let goes_on = request.head.starts_with("GET /answer/on");
                while goes_on && request.stream.write_all(b"x").await.is_ok() {
                    sleep(Duration::from_millis(10)).await;
                }
            }
            seen.fetch_add(1 + request.rest.len() as u64, SeqCst);
            let mut part = [0; 1024];
            while let Ok(read @ 1..) = request.stream.read(&mut part).await {
                seen.fetch_add(read as u64, SeqCst);
            }
        }
    })
    .await
}

async fn reaches(seen: &AtomicU64, least: u64) {
    while seen.load(SeqCst) < least {
        sleep(Duration::from_millis(2)).await;
    }
}

const ALL: [Doing; 5] = [
    Doing::Waiting,
    Doing::SilentAnswer,
    Doing::LongAnswer,
    Doing::SilentUpload,
    Doing::LongUpload,
];

/// Begins it and, once it is under way, lets `lose` take the right; then waits for its end.
async fn is_ended(world: &World, doing: Doing, lose: impl Fn()) {
    let seen = Arc::new(AtomicU64::new(0));
    let address = workload(seen.clone()).await;
    world.running(address);
    let raw = world.raw().await;
    let (mut read, mut write) = tokio::io::split(raw.stream);
    let request = match doing {
        Doing::Waiting => head(world, "GET", "/wait", ""),
        Doing::SilentAnswer => head(world, "GET", "/answer", ""),
        Doing::LongAnswer => head(world, "GET", "/answer/on", ""),
        _ => format!("{}up", head(world, "POST", "/up", "Content-Length: 1000000\r\n")),
    };
    write.write_all(request.as_bytes()).await.unwrap();
    write.flush().await.unwrap();
    if matches!(doing, Doing::SilentAnswer | Doing::LongAnswer) {
        let mut bytes = Vec::new();
        while !bytes.ends_with(b"x") {
            assert!(read.read_buf(&mut bytes).await.unwrap() > 0);
        }
    } else {
        reaches(&seen, 1 + u64::from(doing != Doing::Waiting)).await;
    }
    let sending = tokio::spawn(async move {
        while doing == Doing::LongUpload && write.write_all(b"x").await.is_ok() {
            let _ = write.flush().await;
            sleep(Duration::from_millis(10)).await;
        }
        write
    });
    lose();
    let mut rest = Vec::new();
    let ended = timeout(ENDED_WITHIN, read.read_to_end(&mut rest)).await;
    assert!(ended.is_ok(), "{doing:?} goes on");
    assert!(!rest.windows(12).any(|part| part == b"HTTP/1.1 200"), "{doing:?}");
    sending.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_17_a_right_that_is_taken_away_ends_the_exchange_whatever_it_is_doing() {
    for doing in ALL {
        let world = World::start().await;
        is_ended(&world, doing, || {
            let mut given_away = spec(State::Running, &[]);
            given_away.access.owner = Some("bob".parse().unwrap());
            world.set([given_away]);
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_17_a_session_that_ends_ends_the_exchange_whatever_it_is_doing() {
    for doing in ALL {
        let world = World::start().await;
        is_ended(&world, doing, || {
            let ended = Revoked::Session("sid-alice");
            world.revocations.revoke(ended, Timestamp::MAX, Timestamp::now());
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_17_a_silent_stream_of_http_2_ends_alone() {
    let world = World::start().await;
    let seen = Arc::new(AtomicU64::new(0));
    let address = workload(seen.clone()).await;
    let mut theirs = spec(State::Running, &[address]);
    theirs.access.everyone = true;
    world.set([theirs]);
    let client = world.client(false);
    let upload = |user: &str| {
        let first = futures::stream::iter([Ok::<_, std::io::Error>("up")]);
        let body = reqwest::Body::wrap_stream(first.chain(futures::stream::pending()));
        let request = client.post(world.url(HOST, "/up")).body(body);
        tokio::spawn(request.header("Authorization", world.bearer(user)).send())
    };
    let (alice, bob) = (upload("alice"), upload("bob"));
    reaches(&seen, 6).await;
    let ended = Revoked::Session("sid-alice");
    world.revocations.revoke(ended, Timestamp::MAX, Timestamp::now());
    let alice = timeout(ENDED_WITHIN, alice).await.expect("alice's goes on").unwrap();
    assert!(alice.is_err());
    assert!(!bob.is_finished());
    bob.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_11_a_body_that_comes_drop_by_drop_is_not_waited_for() {
    let world = World::with(|config| {
        config.limits.body_stall = Duration::from_millis(300);
        config.limits.body_bytes_per_second = 100_000;
    })
    .await;
    world.running(upstream::mirror().await);
    let mut raw = world.raw().await;
    raw.send(&head(&world, "POST", "/", "Content-Length: 1000000\r\n")).await;
    let mut drops = 0;
    // Never silent for as long as a stall takes.
    while raw.stream.write_all(b"x").await.is_ok() && raw.stream.flush().await.is_ok() {
        drops += 1;
        assert!(drops < 2_000, "it is waited for");
        sleep(Duration::from_millis(10)).await;
        let read = timeout(Duration::from_millis(1), raw.stream.read_buf(&mut raw.buffer));
        if matches!(read.await, Ok(Ok(_) | Err(_))) {
            break;
        }
    }
    let rest = raw.rest().await;
    assert!(rest.starts_with("HTTP/1.1 408 "), "{rest}");
    // One that hurries is served, however long its body is.
    let body = "x".repeat(1_000_000);
    let request = world.client(true).post(world.url(HOST, "/")).body(body.clone());
    let answer = request.header("Authorization", world.bearer("alice")).send().await.unwrap();
    assert!(answer.text().await.unwrap().ends_with(&body));
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_11_a_body_of_http_2_that_comes_drop_by_drop_is_not_waited_for() {
    let world = World::with(|config| {
        config.limits.body_stall = Duration::from_millis(300);
        config.limits.body_bytes_per_second = 100_000;
    })
    .await;
    world.running(upstream::mirror().await);
    let drops = futures::stream::unfold((), |()| async {
        sleep(Duration::from_millis(10)).await;
        Some((Ok::<_, std::io::Error>("x"), ()))
    });
    let client = world.client(false);
    let request = client.post(world.url(HOST, "/")).body(reqwest::Body::wrap_stream(drops));
    let request = request.header("Content-Length", "1000000");
    let answer = request.header("Authorization", world.bearer("alice")).send().await.unwrap();
    assert_eq!((answer.version(), answer.status().as_u16()), (reqwest::Version::HTTP_2, 408));
}
