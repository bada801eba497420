//! HTTP/2 from clients that break its rules (RFC 9113): the connection or the stream ends as the
//! rules say, nothing reaches the workload, and others are served.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};

use crate::{
    http2::{
        CONTINUATION, END_HEADERS, END_STREAM, GOAWAY, HEADERS, RST_STREAM, SETTINGS, Tls, field,
        frame, is_served, open, request,
    },
    upstream,
    world::{HOST, World},
};

const DATA: u8 = 0;
const PUSH_PROMISE: u8 = 5;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;
const ACK: u8 = 1;

const PROTOCOL_ERROR: u32 = 1;
const FLOW_CONTROL_ERROR: u32 = 3;
const STREAM_CLOSED: u32 = 5;
const FRAME_SIZE_ERROR: u32 = 6;
const REFUSED_STREAM: u32 = 7;
const COMPRESSION_ERROR: u32 = 9;
const ENHANCE_YOUR_CALM: u32 = 11;

/// The library under the engine says PROTOCOL_ERROR where the RFC has a more exact word; the
/// connection ends either way.
const WRONG_SIZE: [u32; 2] = [FRAME_SIZE_ERROR, PROTOCOL_ERROR];
const WRONG_WINDOW: [u32; 2] = [FLOW_CONTROL_ERROR, PROTOCOL_ERROR];
const WRONG_BLOCK: [u32; 2] = [COMPRESSION_ERROR, PROTOCOL_ERROR];

struct Frame {
    kind: u8,
    stream: u32,
    payload: Vec<u8>,
}

/// `None` at the end of the connection.
async fn next(tls: &mut Tls) -> Option<Frame> {
    let read = async {
        let mut head = [0; 9];
        tls.read_exact(&mut head).await.ok()?;
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        tls.read_exact(&mut payload).await.ok()?;
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        Some(Frame { kind: head[3], stream, payload })
    };
    timeout(Duration::from_secs(30), read).await.expect("the connection hangs")
}

fn code(bytes: &[u8]) -> u32 {
    u32::from_be_bytes(bytes.try_into().unwrap())
}

/// The error of the GOAWAY that ends the connection, `None` when it just ends.
async fn end(tls: &mut Tls) -> Option<u32> {
    let mut error = None;
    while let Some(frame) = next(tls).await {
        if frame.kind == GOAWAY {
            error = Some(code(&frame.payload[4..8]));
        }
    }
    error
}

/// A workload that counts requests.
async fn counting() -> (SocketAddr, Arc<AtomicUsize>) {
    let count = Arc::new(AtomicUsize::new(0));
    let counted = count.clone();
    let address = upstream::start(move |mut request| {
        counted.fetch_add(1, Relaxed);
        async move {
            request.reply("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
        }
    })
    .await;
    (address, count)
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_7_bad_frames_end_the_connection() {
    let world = World::start().await;
    let (address, reached) = counting().await;
    world.running(address);
    let good = request(&[(":authority", HOST)]);
    let get = |stream| frame(HEADERS, END_HEADERS | END_STREAM, stream, &good);
    let setting = |id: u16, value: u32| {
        let payload = [&id.to_be_bytes()[..], &value.to_be_bytes()].concat();
        frame(SETTINGS, 0, 0, &payload)
    };
    let max = 0x7fff_ffff_u32.to_be_bytes();
    let cases: Vec<(&str, Vec<u8>, &[u32])> = vec![
        ("DATA on no stream", frame(DATA, 0, 0, b"x"), &[PROTOCOL_ERROR]),
        ("DATA on an idle stream", frame(DATA, 0, 9, b"x"), &[PROTOCOL_ERROR, STREAM_CLOSED]),
        ("HEADERS on no stream", frame(HEADERS, END_HEADERS, 0, &good), &[PROTOCOL_ERROR]),
        ("an even stream", get(2), &[PROTOCOL_ERROR]),
        ("HEADERS without room for padding", frame(HEADERS, 8, 1, &[200, 1]), &[PROTOCOL_ERROR]),
        ("SETTINGS on a stream", frame(SETTINGS, 0, 1, &[]), &[PROTOCOL_ERROR]),
        ("SETTINGS cut short", frame(SETTINGS, 0, 0, &[0; 5]), &WRONG_SIZE),
        ("an acknowledgement with a payload", frame(SETTINGS, ACK, 0, &[0; 6]), &WRONG_SIZE),
        ("push neither on nor off", setting(2, 2), &[PROTOCOL_ERROR]),
        ("a window too large", setting(4, 0x8000_0000), &WRONG_WINDOW),
        ("a frame size too small", setting(5, 1), &[PROTOCOL_ERROR]),
        ("PING cut short", frame(PING, 0, 0, &[0; 7]), &WRONG_SIZE),
        ("PING on a stream", frame(PING, 0, 1, &[0; 8]), &[PROTOCOL_ERROR]),
        ("RST_STREAM of an idle stream", frame(RST_STREAM, 0, 9, &[0; 4]), &[PROTOCOL_ERROR]),
        ("RST_STREAM cut short", frame(RST_STREAM, 0, 1, &[0; 3]), &WRONG_SIZE),
        ("an update by nothing", frame(WINDOW_UPDATE, 0, 0, &[0; 4]), &[PROTOCOL_ERROR]),
        ("an update past the end", frame(WINDOW_UPDATE, 0, 0, &max), &[FLOW_CONTROL_ERROR]),
        ("a pushed stream", frame(PUSH_PROMISE, END_HEADERS, 1, &[0; 4]), &[PROTOCOL_ERROR]),
        ("CONTINUATION of nothing", frame(CONTINUATION, END_HEADERS, 1, &good), &[PROTOCOL_ERROR]),
        (
            "a frame amid a header block",
            [frame(HEADERS, 0, 1, &good), frame(PING, 0, 0, &[0; 8])].concat(),
            &[PROTOCOL_ERROR],
        ),
        (
            "CONTINUATION of another stream",
            [frame(HEADERS, 0, 1, &good), frame(CONTINUATION, END_HEADERS, 3, &[])].concat(),
            &[PROTOCOL_ERROR],
        ),
        (
            "a header block that is none",
            frame(HEADERS, END_HEADERS | END_STREAM, 1, &[0xff; 20]),
            &WRONG_BLOCK,
        ),
        (
            "a reference to a field that was never sent",
            frame(HEADERS, END_HEADERS | END_STREAM, 1, &[0xbf + 1]),
            &WRONG_BLOCK,
        ),
        ("a frame too large", frame(PING, 0, 0, &vec![0; 20_000]), &WRONG_SIZE),
        ("streams that go back", [get(5), get(3)].concat(), &[PROTOCOL_ERROR, STREAM_CLOSED]),
        ("a stream that depends on itself", frame(2, 0, 1, &[0, 0, 0, 1, 16]), &[PROTOCOL_ERROR]),
    ];
    let mut wrong = Vec::new();
    for (what, bytes, expected) in cases {
        let mut tls = open(&world).await;
        tls.write_all(&bytes).await.unwrap();
        // Where it may take the stream alone, what follows must not be served for it.
        let mut error = None;
        while let Some(frame) = next(&mut tls).await {
            let at = match frame.kind {
                GOAWAY => 4,
                RST_STREAM => 0,
                _ => continue,
            };
            error = Some(code(&frame.payload[at..at + 4]));
            if frame.kind == RST_STREAM {
                break;
            }
        }
        if !error.is_some_and(|error| expected.contains(&error)) {
            wrong.push((what, error));
        }
    }
    assert_eq!(wrong, []);
    let mut tls = world.tls(&[b"h2"]).await;
    tls.write_all(b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n").await.unwrap();
    let _ = end(&mut tls).await;
    assert_eq!(reached.load(Relaxed), 0);
    assert!(is_served(&world).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_7_malformed_requests_never_reach_a_workload() {
    let world = World::start().await;
    let (address, reached) = counting().await;
    world.running(address);
    let bearer = world.bearer("alice");
    let whole = |fields: &[(&str, &str)]| {
        let mut block = Vec::new();
        for (name, value) in fields {
            // Names and values of any length.
            block.push(0);
            for text in [name, value] {
                if text.len() < 127 {
                    block.push(text.len() as u8);
                } else {
                    let rest = text.len() - 127;
                    block.extend([127, (rest % 128 + 128) as u8, (rest / 128) as u8]);
                }
                block.extend(text.as_bytes());
            }
        }
        block
    };
    let plain = [(":method", "GET"), (":scheme", "https"), (":path", "/"), (":authority", HOST)];
    let with = |more: &[(&'static str, &'static str)]| [&plain[..], more].concat();
    let without = |name: &str| plain.into_iter().filter(|(n, _)| *n != name).collect::<Vec<_>>();
    let cases = [
        ("upper case", with(&[("X-Upper", "1")])),
        ("a field of the connection", with(&[("connection", "x-a")])),
        ("keep-alive", with(&[("keep-alive", "1")])),
        ("a coding of the transfer", with(&[("transfer-encoding", "chunked")])),
        ("an upgrade", with(&[("upgrade", "websocket")])),
        ("te other than trailers", with(&[("te", "gzip")])),
        ("no method", without(":method")),
        ("no path", without(":path")),
        ("no scheme", without(":scheme")),
        ("two paths", with(&[(":path", "/other")])),
        ("two methods", with(&[(":method", "POST")])),
        ("a pseudo-field behind a field", [&[("a", "b")], &plain[..]].concat()),
        ("a pseudo-field of answers", with(&[(":status", "200")])),
        ("a pseudo-field that is none", with(&[(":evil", "1")])),
        ("an empty path", [&without(":path")[..], &[(":path", "")]].concat()),
        ("a path without a slash", [&without(":path")[..], &[(":path", "evil")]].concat()),
        ("a line break in a value", with(&[("x", "a\r\nb: c")])),
        ("a NUL in a value", with(&[("x", "a\0b")])),
        ("a name with a blank", with(&[("x y", "1")])),
        ("a name with a colon", with(&[("x:y", "1")])),
        ("a length without a body", with(&[("content-length", "5")])),
        ("two lengths", with(&[("content-length", "0"), ("content-length", "5")])),
        ("a length that is none", with(&[("content-length", "+0")])),
    ];
    for (what, fields) in cases {
        let mut tls = open(&world).await;
        let fields = [&fields[..], &[("authorization", bearer.as_str())]].concat();
        let block = whole(&fields);
        tls.write_all(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &block)).await.unwrap();
        loop {
            let Some(frame) = next(&mut tls).await else { break };
            match frame.kind {
                RST_STREAM | GOAWAY => break,
                HEADERS => {
                    // 400 by the static table, or another refusal as text.
                    let first = frame.payload[0];
                    assert_ne!(first, 0x88, "{what}: answered 200");
                    break;
                }
                _ => {}
            }
        }
    }
    assert_eq!(reached.load(Relaxed), 0, "something got through");
    assert!(is_served(&world).await);
    assert_eq!(reached.load(Relaxed), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_7_made_you_reset_ends_the_connection() {
    let world = World::start().await;
    let (address, reached) = counting().await;
    world.running(address);
    let bearer = world.bearer("alice");
    let mut block = request(&[(":authority", HOST)]);
    block.push(0);
    block
        .extend([13, b'a', b'u', b't', b'h', b'o', b'r', b'i', b'z', b'a', b't', b'i', b'o', b'n']);
    let rest = bearer.len() - 127;
    block.extend([127, (rest % 128 + 128) as u8, (rest / 128) as u8]);
    block.extend(bearer.as_bytes());
    // Each stream is a good request, and then gives the server a reason to reset it itself.
    let provocations: [fn(u32) -> Vec<u8>; 2] = [
        |stream| frame(WINDOW_UPDATE, 0, stream, &[0; 4]),
        |stream| frame(DATA, 0, stream, b"too late"),
    ];
    for provoke in provocations {
        let mut tls = open(&world).await;
        let (mut read, mut write) = tokio::io::split(&mut tls);
        let flood = async {
            for stream in (1..20_000).step_by(2) {
                let mut bytes = frame(HEADERS, END_HEADERS | END_STREAM, stream, &block);
                bytes.extend(provoke(stream));
                if write.write_all(&bytes).await.is_err() {
                    return;
                }
            }
        };
        // The end of the connection, however it comes, ends the flood.
        let ended = async {
            let mut bytes = Vec::new();
            let _ = read.read_to_end(&mut bytes).await;
            bytes
        };
        let flooded = async { tokio::join!(flood, ended).1 };
        let bytes = timeout(Duration::from_secs(60), flooded).await.expect("it goes on for ever");
        let goaway = bytes
            .windows(17)
            .find(|w| w[..4] == [0, 0, 8, GOAWAY] && w[5..9] == [0; 4])
            .map(|w| code(&w[13..17]));
        if let Some(error) = goaway {
            let known = [PROTOCOL_ERROR, STREAM_CLOSED, ENHANCE_YOUR_CALM].contains(&error);
            assert!(known, "error {error}");
        }
    }
    let reached = reached.load(Relaxed);
    assert!(
        reached < 5_000,
        "{reached} of 20,000 requests that were given up reached the workload"
    );
    assert!(is_served(&world).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_7_header_floods_are_refused() {
    let world = World::start().await;
    let (address, reached) = counting().await;
    world.running(address);
    // One field of four kilobytes is put into the table once, and then named again and again.
    let mut bomb = request(&[(":authority", HOST)]);
    bomb.extend([0x40, 6]);
    bomb.extend(b"x-bomb");
    let long = 4000 - 127;
    bomb.extend([127, (long % 128 + 128) as u8, (long / 128) as u8]);
    bomb.extend([b'y'; 4000]);
    bomb.extend([0x80 | 62; 10_000]);
    // Many fields that are all different.
    let mut many = request(&[(":authority", HOST)]);
    for n in 0..5_000 {
        many.extend(field(&format!("x-{n}"), "y"));
    }
    for block in [bomb, many] {
        let mut tls = open(&world).await;
        let mut parts = block.chunks(16_000);
        let mut bytes = frame(HEADERS, END_STREAM, 1, parts.next().unwrap());
        let mut rest = parts.peekable();
        while let Some(part) = rest.next() {
            let last = if rest.peek().is_none() { END_HEADERS } else { 0 };
            bytes.extend(frame(CONTINUATION, last, 1, part));
        }
        let _ = tls.write_all(&bytes).await;
        let refused = loop {
            match next(&mut tls).await {
                None => break true,
                Some(frame) if matches!(frame.kind, RST_STREAM | GOAWAY) => break true,
                Some(frame) if frame.kind == HEADERS => break frame.payload[0] != 0x88,
                Some(_) => {}
            }
        };
        assert!(refused);
    }
    assert_eq!(reached.load(Relaxed), 0);
    assert!(is_served(&world).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_11_streams_that_take_nothing_are_bounded_and_others_served() {
    let world = World::start().await;
    world.running(upstream::mirror().await);
    let mut tls = open(&world).await;
    // No window: no answer's body can leave.
    let setting = [&4u16.to_be_bytes()[..], &0u32.to_be_bytes()].concat();
    tls.write_all(&frame(SETTINGS, 0, 0, &setting)).await.unwrap();
    let block = request(&[(":authority", HOST)]);
    // Whoever waits for an acknowledgement knows the bound, and whoever does not is refused.
    let mut bytes = Vec::new();
    for stream in (1..1001).step_by(2) {
        bytes.extend(frame(HEADERS, END_HEADERS | END_STREAM, stream, &block));
    }
    tls.write_all(&bytes).await.unwrap();
    let mut refused = 0;
    while refused == 0 {
        let frame = next(&mut tls).await.expect("the connection ended");
        if frame.kind == RST_STREAM && code(&frame.payload) == REFUSED_STREAM {
            assert!(frame.stream > 400, "stream {}", frame.stream);
            refused += 1;
        }
        assert_ne!(frame.kind, GOAWAY);
    }
    assert!(is_served(&world).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_11_floods_of_small_frames_that_want_answers_are_held_up() {
    let world = World::start().await;
    world.running(upstream::mirror().await);
    for small in [frame(PING, 0, 0, &[7; 8]), frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 100])] {
        let mut tls = open(&world).await;
        let flood = small.repeat(4096);
        let mut sent = 0usize;
        // Nothing is read here. A server that keeps its answers in memory takes all of it.
        loop {
            match timeout(Duration::from_secs(2), tls.write_all(&flood)).await {
                Ok(Ok(())) => sent += flood.len(),
                // Held up, or hung up.
                _ => break,
            }
            assert!(sent < 128 << 20, "it takes everything");
        }
        assert!(is_served(&world).await);
    }
}
