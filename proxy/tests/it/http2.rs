//! HTTP/2, frame by frame (RFC 9113).

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::client::TlsStream;

use crate::{
    upstream,
    world::{HOST, World},
};

pub type Tls = TlsStream<tokio::net::TcpStream>;

pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const GOAWAY: u8 = 7;
pub const CONTINUATION: u8 = 9;
pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;

pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// The length of a string that is not Huffman-coded: an integer with a prefix of 7 bits (RFC 7541,
/// section 5.1).
fn length(value: usize) -> Vec<u8> {
    let Some(mut left) = value.checked_sub(127) else { return vec![value as u8] };
    let mut bytes = vec![127];
    while left >= 128 {
        bytes.push(left as u8 | 0x80);
        left >>= 7;
    }
    bytes.push(left as u8);
    bytes
}

/// A literal field without indexing (RFC 7541, section 6.2.2).
pub fn field(name: &str, value: &str) -> Vec<u8> {
    let mut bytes = vec![0];
    for text in [name, value] {
        bytes.extend(length(text.len()));
        bytes.extend(text.as_bytes());
    }
    bytes
}

/// `GET / https` by the static table.
pub fn request(more: &[(&str, &str)]) -> Vec<u8> {
    let mut block = vec![0x82, 0x84, 0x87];
    more.iter().for_each(|(name, value)| block.extend(field(name, value)));
    block
}

pub async fn open(world: &World) -> Tls {
    let mut tls = world.tls(&[b"h2"]).await;
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend(frame(SETTINGS, 0, 0, &[]));
    tls.write_all(&bytes).await.unwrap();
    tls
}

/// The frames that come, until one of that kind or the end.
async fn until(tls: &mut Tls, wanted: u8) -> Option<Vec<u8>> {
    loop {
        let mut head = [0; 9];
        tls.read_exact(&mut head).await.ok()?;
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        tls.read_exact(&mut payload).await.ok()?;
        if head[3] == wanted {
            return Some(payload);
        }
    }
}

pub async fn is_served(world: &World) -> bool {
    let request = world.client(false).get(world.url(HOST, "/"));
    let answer = request.header("Authorization", world.bearer("alice")).send().await;
    answer.is_ok_and(|answer| answer.status() == 200)
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_7_rapid_reset_ends_the_connection_and_others_are_served() {
    let world = World::start().await;
    world.running(upstream::mirror().await);
    let mut tls = open(&world).await;
    let block = request(&[(":authority", HOST)]);
    let mut flood = Vec::new();
    for stream in (1..4000).step_by(2) {
        flood.extend(frame(HEADERS, END_HEADERS | END_STREAM, stream, &block));
        flood.extend(frame(RST_STREAM, 0, stream, &8u32.to_be_bytes()));
    }
    // The other side may hang up while we still write.
    let _ = tls.write_all(&flood).await;
    let goaway = until(&mut tls, GOAWAY).await;
    if let Some(goaway) = goaway {
        assert_eq!(goaway[4..8], 11u32.to_be_bytes(), "ENHANCE_YOUR_CALM");
    }
    assert!(is_served(&world).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_7_continuation_flood_ends_the_connection() {
    let world = World::start().await;
    world.running(upstream::mirror().await);
    let mut tls = open(&world).await;
    tls.write_all(&frame(HEADERS, 0, 1, &request(&[]))).await.unwrap();
    let more = field("x-flood", &"y".repeat(100)).repeat(100);
    let mut sent = 0;
    while tls.write_all(&frame(CONTINUATION, 0, 1, &more)).await.is_ok() {
        sent += more.len();
        assert!(sent < 64 << 20, "it takes everything");
    }
    assert!(is_served(&world).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_5_two_hosts_over_http_2_are_refused() {
    let world = World::start().await;
    world.running(upstream::mirror().await);
    for more in [
        &[(":authority", HOST), ("host", "other.example.test")][..],
        &[("host", HOST), ("host", "other.example.test")],
        &[(":authority", "a#@b.example.test")],
        &[],
    ] {
        let mut tls = open(&world).await;
        let block = request(more);
        tls.write_all(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &block)).await.unwrap();
        // Either an answer of 400 (static index 12) or the stream is reset.
        let refused = loop {
            let mut head = [0; 9];
            if tls.read_exact(&mut head).await.is_err() {
                break true;
            }
            let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
            tls.read_exact(&mut payload).await.unwrap();
            match head[3] {
                HEADERS => break payload[0] == 0x80 | 12,
                RST_STREAM | GOAWAY => break true,
                _ => {}
            }
        };
        assert!(refused, "{more:?}");
    }
}
