//! What counts as a person's doing, in the running gateway.

use domain::{activity::Change, route::State, workload::Protocol};
use reqwest::Method;
use tokio::io::AsyncWriteExt;

use crate::{
    upstream,
    world::{HOST, Raw, World, spec},
};

async fn world(protocol: Protocol) -> World {
    let world = World::start().await;
    let mut workload = spec(State::Running, &[upstream::mirror().await]);
    workload.protocol = protocol;
    world.set([workload]);
    world
}

fn change(world: &World) -> Option<Change> {
    world.tracker.settle(jiff::Timestamp::now());
    world.tracker.changes(0).changes.pop()
}

fn last(world: &World) -> Option<String> {
    change(world)?.last.map(|last| last.what)
}

fn session(world: &World) -> String {
    format!("__Host-dormouse={}", world.issuer.access_token("alice", 600))
}

/// A request of a page's script; its answer has come.
async fn ask(
    world: &World,
    http_1_only: bool,
    method: Method,
    path: &str,
    body: &str,
    more: &[(&str, &str)],
) {
    let origin = format!("https://{HOST}:{}", world.address.port());
    let mut request = world.client(http_1_only).request(method, world.url(HOST, path));
    request = request.header("Cookie", session(world)).header("Origin", origin);
    for (name, value) in more {
        request = request.header(*name, *value);
    }
    let answer = request.body(body.to_owned()).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    answer.bytes().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_body_tells_a_timer_from_a_click_in_every_engine() {
    let path = "/_dash-update-component";
    let tick = r#"{"output":"clock.children","changedPropIds":["timer.n_intervals"],"inputs":[]}"#;
    let click = r#"{"output":"clock.children","changedPropIds":["go.n_clicks"],"inputs":[]}"#;
    for http_1_only in [true, false] {
        let world = world(Protocol::Http).await;
        ask(&world, http_1_only, Method::POST, path, tick, &[]).await;
        assert_eq!(change(&world), None, "a tick");
        ask(&world, http_1_only, Method::POST, path, click, &[]).await;
        // A beat may come of it; until then it is in use.
        while change(&world).unwrap().open > 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(change(&world).unwrap().working, 1, "a click");
        world.tracker.settle(jiff::Timestamp::now() + jiff::SignedDuration::from_secs(120));
        assert_eq!(last(&world).as_deref(), Some("used the app"));
        assert_eq!(change(&world).unwrap().working, 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_pages_do_by_themselves_is_nobody() {
    let world = world(Protocol::Jupyter).await;
    for (method, path, fields) in [
        (Method::POST, "/git/project/status", &[][..]),
        (Method::PUT, "/lab/api/workspaces/default", &[]),
        (Method::GET, "/lab", &[("Sec-Fetch-Mode", "navigate"), ("Sec-Fetch-Dest", "iframe")]),
        (
            Method::GET,
            "/lab",
            &[
                ("Sec-Fetch-Mode", "navigate"),
                ("Sec-Fetch-Dest", "document"),
                ("Sec-CH-UA", "\"Chromium\""),
            ],
        ),
        (Method::GET, "/lab", &[("Sec-Fetch-Mode", "navigate"), ("Purpose", "prefetch")]),
    ] {
        for http_1_only in [true, false] {
            ask(&world, http_1_only, method.clone(), path, "", fields).await;
            assert_eq!(change(&world), None, "{path} {fields:?}");
        }
    }
    let clicked =
        [("Sec-Fetch-Mode", "navigate"), ("Sec-Fetch-User", "?1"), ("Sec-CH-UA", "\"Chromium\"")];
    ask(&world, true, Method::GET, "/lab", "", &clicked).await;
    assert_eq!(last(&world).as_deref(), Some("opened a page"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_understood_is_in_use_and_counted() {
    let world = world(Protocol::Http).await;
    ask(&world, true, Method::POST, "/do", "x", &[]).await;
    while change(&world).unwrap().open > 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(change(&world).unwrap().working, 1);
    let judged = |verdict: &str| {
        let families = world.registry.gather();
        let family = families.iter().find(|f| f.name() == "dormouse_proxy_judged_total").unwrap();
        let metric = family.get_metric().iter().find(|m| m.get_label()[0].value() == verdict);
        metric.unwrap().get_counter().get_value()
    };
    assert_eq!(judged("unknown") as u64, 1);
    assert_eq!(judged("person") as u64, 0);
}

fn frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mask = [9, 8, 7, 6];
    let mut bytes = vec![0x80 | opcode, 0x80 | payload.len() as u8];
    bytes.extend(mask);
    bytes.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, key)| byte ^ key));
    bytes
}

async fn open(world: &World, path: &str, more: &str) -> Raw {
    let mut raw = world.raw().await;
    raw.send(&format!(
        "GET {path} HTTP/1.1\r\nHost: {HOST}\r\nCookie: {}\r\nOrigin: https://{HOST}:{}\r\n\
         Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         Sec-WebSocket-Version: 13\r\n{more}\r\n",
        session(world),
        world.address.port(),
    ))
    .await;
    let (head, _) = raw.answer().await;
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    raw
}

/// Sends a message, and waits until it is echoed: it has passed the tunnel.
async fn say(raw: &mut Raw, opcode: u8, payload: &[u8]) {
    let bytes = frame(opcode, payload);
    raw.stream.write_all(&bytes).await.unwrap();
    raw.stream.flush().await.unwrap();
    assert_eq!(raw.bytes(bytes.len()).await, bytes);
}

/// One message of VS Code's protocol.
fn vscode(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![kind, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, body.len() as u8];
    bytes.extend(body);
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_tab_of_vs_code_is_nobody_and_typing_in_it_is_somebody() {
    let world = world(Protocol::VsCode).await;
    let offer = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n";
    let mut editor = open(&world, "/stable-abc?reconnectionToken=a", offer).await;
    say(&mut editor, 2, &vscode(9, b"")).await;
    say(&mut editor, 2, &vscode(1, b"\x04\x04\x06d\x01\x09telemetry\x01\x04ping")).await;
    assert_eq!(change(&world), None);
    // One call in two messages.
    let typed = vscode(1, b"\x04\x04\x06d\x01\x0eremoteterminal\x01\x06$input");
    say(&mut editor, 2, &typed[..20]).await;
    assert_eq!(change(&world), None);
    say(&mut editor, 2, &typed[20..]).await;
    assert_eq!(last(&world).as_deref(), Some("typed in a terminal"));
}

#[tokio::test(flavor = "multi_thread")]
async fn heartbeats_and_awareness_are_nobody_and_events_and_edits_are_somebody() {
    for (path, more, quiet, person) in [
        (
            "/_nicegui_ws/socket.io/",
            "",
            &["3", "42[\"ack\",{\"next_message_id\":1}]"][..],
            "42[\"event\",{}]",
        ),
        ("/api/collaboration/room/a", "", &["\u{1}\u{2}\u{3}", "\0\0\u{1}"], "\0\u{2}\u{1}"),
        (
            "/app/ws",
            "Sec-WebSocket-Protocol: bokeh, token\r\n",
            &["{\"msgid\":\"1\",\"msgtype\":\"PATCH-DOC\"}", "{}"],
            "{\"events\":[{\"kind\":\"MessageSent\",\"name\":\"button_click\"}]}",
        ),
    ] {
        let world = world(Protocol::Http).await;
        let mut socket = open(&world, path, more).await;
        for message in quiet {
            say(&mut socket, 1, message.as_bytes()).await;
        }
        assert_eq!(change(&world), None, "{path}");
        say(&mut socket, 1, person.as_bytes()).await;
        assert!(last(&world).is_some(), "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_beat_of_a_forgotten_tab_wakes_nothing() {
    let mut world = World::start().await;
    world.set([spec(State::Sleeping, &[])]);
    let (cookie, origin) = (session(&world), format!("https://{HOST}:{}", world.address.port()));
    let get = |world: &World, path: &str| {
        let request =
            world.client(true).get(world.url(HOST, path)).header("Sec-Fetch-Dest", "empty");
        request.header("Cookie", &cookie).header("Origin", &origin)
    };
    assert_eq!(get(&world, "/never/read/before").send().await.unwrap().status(), 503);
    assert!(world.wakes.try_recv().is_err(), "a page's reading");
    let post = world.client(true).post(world.url(HOST, "/_dash-update-component"));
    let post = post.header("Cookie", &cookie).header("Origin", &origin).body("{}").send();
    // Held until it is there.
    let _held = tokio::spawn(post);
    world.wakes.recv().await.unwrap();
}
