//! Sessions that run out while they are in use: nothing is lost, and nobody is signed out by it.

use std::{
    collections::HashSet,
    sync::atomic::Ordering::SeqCst,
    time::{Duration, Instant},
};

use domain::revocation::Revoked;
use jiff::Timestamp;
use reqwest::header::SET_COOKIE;
use tokio::io::AsyncWriteExt;

use crate::{
    upstream,
    world::{HOST, Raw, World},
};

/// Cookies of a session whose access token ends so many seconds from now.
fn session(world: &World, seconds: i64) -> String {
    let access = world.issuer.access_token("alice", seconds);
    format!("__Host-dormouse={access}; __Host-dormouse-refresh={}", world.issuer.session("alice"))
}

fn new_refresh_tokens(answer: &reqwest::Response) -> impl Iterator<Item = String> + '_ {
    answer.headers().get_all(SET_COOKIE).iter().filter_map(|cookie| {
        let cookie = cookie.to_str().unwrap().split(';').next().unwrap();
        cookie.strip_prefix("__Host-dormouse-refresh=").map(str::to_owned)
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_15_a_hundred_requests_on_two_replicas_share_one_successor() {
    let first = World::start().await;
    let second = World::beside(&first, |_| {}).await;
    first.issuer.repeats.store(true, SeqCst);
    for seconds in [-120, 100] {
        let before = first.issuer.refreshes.load(SeqCst);
        let cookie = session(&first, seconds);
        let mut sent = Vec::new();
        for world in [&first, &second] {
            world.running(upstream::mirror().await);
            let client = world.client(false);
            sent.extend((0..50).map(|_| {
                let request = client.get(world.url(HOST, "/")).header("Cookie", cookie.clone());
                tokio::spawn(request.send())
            }));
        }
        let mut successors = HashSet::new();
        for sent in sent {
            let answer = sent.await.unwrap().unwrap();
            assert_eq!(answer.status(), 200);
            successors.extend(new_refresh_tokens(&answer));
        }
        // Whichever answer the browser hears last, its session goes on.
        assert!(successors.len() <= 1, "{} refresh tokens for one session", successors.len());
        let calls = first.issuer.refreshes.load(SeqCst) - before;
        assert!((1..=2).contains(&calls), "one call for each replica, and not {calls}");
        assert_eq!(first.issuer.refused.load(SeqCst), 0);
    }
}

/// The browser still sends the old cookies of both kinds long after the renewal: a tab that slept, or
/// an answer that was lost on the way.
#[tokio::test(flavor = "multi_thread")]
async fn attack_15_who_missed_the_renewal_is_not_signed_out() {
    let world = World::start().await;
    world.running(upstream::mirror().await);
    let cookie = session(&world, -120);
    let client = world.client(true);
    for kind in ["navigate", "cors", "navigate"] {
        let request = client.get(world.url(HOST, "/")).header("Cookie", cookie.clone());
        let answer = request.header("Sec-Fetch-Mode", kind).send().await.unwrap();
        assert_eq!(answer.status(), 200, "{kind}");
        assert_eq!(new_refresh_tokens(&answer).count(), 1, "it is told its new cookies again");
    }
    assert_eq!(world.issuer.refreshes.load(SeqCst), 1);
}

/// A body that was already on its way is not lost to a renewal before it.
#[tokio::test(flavor = "multi_thread")]
async fn an_upload_with_an_expired_token_arrives_whole() {
    let world = World::start().await;
    world.running(upstream::mirror().await);
    let body: String = (0..1_000_000).map(|n| char::from(b'a' + (n % 26) as u8)).collect();
    for http_1_only in [true, false] {
        let request = world.client(http_1_only).post(world.url(HOST, "/upload"));
        let request = request.header("Sec-Fetch-Site", "same-origin");
        let request = request.header("Cookie", session(&world, -120)).body(body.clone());
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status(), 200);
        assert!(answer.text().await.unwrap().ends_with(&body));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_15_a_websocket_outlives_its_token_and_not_its_session() {
    // The leeway of the verifier is half a minute, so the token is good for four seconds more.
    let world = World::start().await;
    world.running(upstream::mirror().await);
    let access = world.issuer.access_token("alice", -26);
    let mut raw = open(&world, &access).await;
    let expired = Instant::now();
    // Nobody may come in with it any more ...
    loop {
        let request = world.client(true).get(world.url(HOST, "/"));
        if request.bearer_auth(&access).send().await.unwrap().status() == 401 {
            break;
        }
        assert!(expired.elapsed() < Duration::from_secs(20));
    }
    // ... and routes have changed meanwhile, which looks through what is open.
    world.running(upstream::mirror().await);
    tokio::time::sleep(Duration::from_millis(1500)).await;
    echo(&mut raw).await;
    // The session's end is another matter.
    let ended = Revoked::Session("sid-alice");
    world.revocations.revoke(ended, Timestamp::MAX, Timestamp::now());
    assert_eq!(raw.bytes(4).await, [0x88, 2, 0x03, 0xf0]);
}

async fn open(world: &World, access: &str) -> Raw {
    let mut raw = world.raw().await;
    let port = world.address.port();
    raw.send(&format!(
        "GET /ws HTTP/1.1\r\nHost: {HOST}:{port}\r\nOrigin: https://{HOST}:{port}\r\n\
         Cookie: __Host-dormouse={access}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    ))
    .await;
    let (head, _) = raw.answer().await;
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    raw
}

async fn echo(raw: &mut Raw) {
    let message = [0x81, 0x82, 0, 0, 0, 0, b'h', b'i'];
    raw.stream.write_all(&message).await.unwrap();
    raw.stream.flush().await.unwrap();
    assert_eq!(raw.bytes(message.len()).await, message);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_session_a_page_goes_to_sign_in_and_a_script_is_told() {
    let world = World::start().await;
    world.running(upstream::mirror().await);
    let cookie = format!("__Host-dormouse={}", world.issuer.access_token("alice", -120));
    let client = world.client(false);
    for (mode, status) in [
        ("navigate", 302),
        ("cors", 401),
        ("same-origin", 401),
        ("no-cors", 401),
        ("websocket", 401),
    ] {
        let request = client.get(world.url(HOST, "/")).header("Accept", "text/html");
        let request = request.header("Sec-Fetch-Mode", mode).header("Cookie", cookie.clone());
        assert_eq!(request.send().await.unwrap().status(), status, "{mode}");
    }
}
