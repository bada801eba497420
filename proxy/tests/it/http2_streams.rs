//! How streams of HTTP/2 end: behind refusals and early answers, at the drain, and when they are cut.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::mpsc,
    time::timeout,
};

use crate::{
    http2::{END_HEADERS, END_STREAM, GOAWAY, HEADERS, RST_STREAM, Tls, frame, open, request},
    upstream,
    world::{HOST, World},
};

const DATA: u8 = 0;
const PING: u8 = 6;
const ACK: u8 = 1;
const NO_ERROR: [u8; 4] = [0; 4];

#[derive(Debug, PartialEq, Eq)]
struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: Vec<u8>,
}

impl Frame {
    fn ends(&self, stream: u32) -> bool {
        let ends = matches!(self.kind, DATA | HEADERS) && self.flags & END_STREAM != 0;
        self.stream == stream && ends
    }
}

/// The next frame; `None` at the end of the connection.
async fn next(tls: &mut Tls) -> Option<Frame> {
    let read = async {
        let mut head = [0; 9];
        tls.read_exact(&mut head).await.ok()?;
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        tls.read_exact(&mut payload).await.ok()?;
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        Some(Frame { kind: head[3], flags: head[4], stream, payload })
    };
    timeout(Duration::from_secs(30), read).await.expect("no frame came")
}

/// The frames up to and with one that is wanted.
async fn until(tls: &mut Tls, wanted: impl Fn(&Frame) -> bool) -> Vec<Frame> {
    let mut seen = Vec::new();
    loop {
        let frame = next(tls).await.unwrap_or_else(|| panic!("closed after {seen:?}"));
        let found = wanted(&frame);
        seen.push(frame);
        if found {
            return seen;
        }
    }
}

/// All that comes before the answer to a question that is asked now.
async fn up_to_now(tls: &mut Tls) -> Vec<Frame> {
    tls.write_all(&frame(PING, 0, 0, b"whatever")).await.unwrap();
    until(tls, |frame| frame.kind == PING && frame.flags & ACK != 0).await
}

fn has(frames: &[Frame], kind: u8) -> bool {
    frames.iter().any(|frame| frame.kind == kind)
}

/// `POST /` by the static table.
fn post(more: &[(&str, &str)]) -> Vec<u8> {
    let mut block = request(more);
    block[0] = 0x83;
    block
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_post_is_heard_out_before_its_stream_ends() {
    let world = World::start().await;
    let mut tls = open(&world).await;
    let block = post(&[(":authority", HOST), ("authorization", "Bearer expired")]);
    tls.write_all(&frame(HEADERS, END_HEADERS, 1, &block)).await.unwrap();
    let answer = until(&mut tls, |frame| frame.ends(1)).await;
    assert!(!has(&answer, RST_STREAM), "{answer:?}");
    let after = up_to_now(&mut tls).await;
    assert!(!has(&after, RST_STREAM), "reset while its body was on its way");
    tls.write_all(&frame(DATA, END_STREAM, 1, b"{}")).await.unwrap();
    let after = up_to_now(&mut tls).await;
    assert!(!has(&after, RST_STREAM) && !has(&after, GOAWAY), "{after:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_post_that_never_ends_is_reset_without_an_error() {
    let world = World::start().await;
    let mut tls = open(&world).await;
    let block = post(&[(":authority", HOST)]);
    tls.write_all(&frame(HEADERS, END_HEADERS, 1, &block)).await.unwrap();
    until(&mut tls, |frame| frame.ends(1)).await;
    let end = until(&mut tls, |frame| frame.kind == RST_STREAM).await;
    assert_eq!(end.last().unwrap().payload, NO_ERROR);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_early_answer_ends_an_upload_that_nobody_reads() {
    let world = World::start().await;
    for reply in [
        "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nenough",
        "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    ] {
        let address = upstream::start(move |mut request| async move {
            request.reply(reply).await;
            // It keeps the connection and reads no more.
            std::future::pending::<()>().await;
        });
        world.running(address.await);
        let mut tls = open(&world).await;
        let block = post(&[(":authority", HOST), ("authorization", &world.bearer("alice"))]);
        let mut bytes = frame(HEADERS, END_HEADERS, 1, &block);
        bytes.extend(frame(DATA, 0, 1, &[b'x'; 16_384]));
        tls.write_all(&bytes).await.unwrap();
        until(&mut tls, |frame| frame.ends(1)).await;
        let end = until(&mut tls, |frame| frame.kind == RST_STREAM).await;
        assert_eq!(end.last().unwrap().payload, NO_ERROR, "{reply}");
    }
}

/// A workload that begins a stream of events, and goes on as it is told: `Some` is said, and at the
/// end of the orders its connection breaks off within the answer.
async fn events(world: &World) -> mpsc::UnboundedSender<&'static str> {
    let (tell, orders) = mpsc::unbounded_channel::<&'static str>();
    let orders = std::sync::Arc::new(tokio::sync::Mutex::new(orders));
    let address = upstream::start(move |mut request| {
        let orders = orders.clone();
        async move {
            let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
            request.reply(head).await;
            request.reply("9\r\ndata: a\n\n\r\n").await;
            let mut orders = orders.lock().await;
            while let Some(more) = orders.recv().await {
                request.reply(more).await;
            }
        }
    });
    world.running(address.await);
    tell
}

async fn listen(world: &World) -> Tls {
    let mut tls = open(world).await;
    let block = request(&[(":authority", HOST), ("authorization", &world.bearer("alice"))]);
    tls.write_all(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &block)).await.unwrap();
    until(&mut tls, |frame| frame.kind == DATA).await;
    tls
}

/// Waits until the gateway takes no new connection.
async fn stop(world: &World) {
    world.shutdown.cancel();
    let stopped = async {
        while TcpStream::connect(world.address).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(30), stopped).await.expect("it goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_26_goaway_waits_for_what_is_in_flight() {
    let world = World::with(|config| config.drain_grace = Duration::from_secs(300)).await;
    let tell = events(&world).await;
    let mut tls = listen(&world).await;
    stop(&world).await;
    assert!(!has(&up_to_now(&mut tls).await, GOAWAY), "within an answer");
    tell.send("9\r\ndata: b\n\n\r\n0\r\n\r\n").unwrap();
    let answer = until(&mut tls, |frame| frame.ends(1)).await;
    assert!(!has(&answer, GOAWAY), "{answer:?}");
    until(&mut tls, |frame| frame.kind == GOAWAY).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_is_never_idle_is_told_to_go_near_the_end_of_the_grace() {
    let world = World::with(|config| config.drain_grace = Duration::from_secs(2)).await;
    let _tell = events(&world).await;
    let mut tls = listen(&world).await;
    stop(&world).await;
    until(&mut tls, |frame| frame.kind == GOAWAY).await;
    let mut rest = Vec::new();
    while let Some(frame) = next(&mut tls).await {
        rest.push(frame);
    }
    assert!(!rest.iter().any(|frame| frame.ends(1)), "cut short, and yet ended: {rest:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_stream_that_the_workload_breaks_off_is_reset() {
    let world = World::start().await;
    let tell = events(&world).await;
    let mut tls = listen(&world).await;
    drop(tell);
    let rest = until(&mut tls, |frame| frame.kind == RST_STREAM || frame.ends(1)).await;
    let end = rest.last().unwrap();
    assert!(end.kind == RST_STREAM && end.payload != NO_ERROR, "{end:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_stream_that_is_cut_has_no_last_chunk() {
    for drained in [false, true] {
        let world = World::with(|config| config.drain_grace = Duration::from_secs(1)).await;
        let tell = events(&world).await;
        let mut raw = world.raw().await;
        let bearer = world.bearer("alice");
        raw.send(&format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nAuthorization: {bearer}\r\n\r\n"))
            .await;
        while crate::world::find(&raw.buffer, b"data: a").is_none() {
            assert!(raw.more().await, "closed");
        }
        let _tell = if drained {
            world.shutdown.cancel();
            Some(tell)
        } else {
            drop(tell);
            None
        };
        let all = raw.rest().await;
        assert!(!all.contains("\r\n0\r\n"), "drained {drained}: {all}");
    }
}
