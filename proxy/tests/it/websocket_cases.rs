//! Cases in the manner of the Autobahn suite. The tunnel decides none of them: every byte passes, and
//! the ends speak for themselves. So each case is told to a WebSocket server through the tunnel and
//! without it, whole and in pieces, and must end the same, byte for byte.

use std::{net::SocketAddr, time::Duration};

use futures::{SinkExt, StreamExt};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tokio_tungstenite::{
    accept_async_with_config,
    tungstenite::{Message, protocol::WebSocketConfig},
};

use crate::world::{HOST, World, find};

const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;
const FIN: u8 = 0x80;
const LARGE: usize = 16 << 20;

/// A WebSocket server that echoes messages, and closes as RFC 6455 wants it.
async fn echo_server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            tokio::spawn(async move {
                let config = WebSocketConfig::default()
                    .max_frame_size(Some(LARGE + 1))
                    .max_message_size(Some(LARGE + 1));
                let Ok(mut socket) = accept_async_with_config(tcp, Some(config)).await else {
                    return;
                };
                while let Some(Ok(message)) = socket.next().await {
                    let said = match message {
                        Message::Text(_) | Message::Binary(_) => socket.send(message).await,
                        // Answered by the library with the next flush.
                        _ => socket.flush().await,
                    };
                    if said.is_err() {
                        break;
                    }
                }
                let _ = socket.flush().await;
                let tcp = socket.get_mut();
                let _ = tcp.shutdown().await;
                // Unread bytes would reset the connection, and what was said would be lost.
                let _ = tokio::io::copy(tcp, &mut tokio::io::sink()).await;
            });
        }
    });
    address
}

/// Appends a frame: first byte, payload, mask or none, and bytes of the length's form.
fn put(bytes: &mut Vec<u8>, first: u8, payload: &[u8], masked: bool, form: Form) {
    let mask = if masked { 0x80 } else { 0 };
    bytes.push(first);
    match form {
        Form::Short => bytes.push(mask | payload.len() as u8),
        Form::Medium => {
            bytes.push(mask | 126);
            bytes.extend((payload.len() as u16).to_be_bytes());
        }
        Form::Long => {
            bytes.push(mask | 127);
            bytes.extend((payload.len() as u64).to_be_bytes());
        }
    }
    if masked {
        let key = [0x37, 0xfa, 0x21, 0x3d];
        bytes.extend(key);
        bytes.extend(payload.iter().zip(key.iter().cycle()).map(|(byte, key)| byte ^ key));
    } else {
        bytes.extend(payload);
    }
}

#[derive(Clone, Copy)]
enum Form {
    Short,
    Medium,
    Long,
}

struct Case {
    name: String,
    bytes: Vec<u8>,
}

impl Case {
    fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), bytes: Vec::new() }
    }

    /// A frame as a client should send it.
    fn frame(mut self, first: u8, payload: &[u8]) -> Self {
        let form = match payload.len() {
            0..126 => Form::Short,
            126..65536 => Form::Medium,
            _ => Form::Long,
        };
        put(&mut self.bytes, first, payload, true, form);
        self
    }

    fn odd(mut self, first: u8, payload: &[u8], masked: bool, form: Form) -> Self {
        put(&mut self.bytes, first, payload, masked, form);
        self
    }

    fn close(self) -> Self {
        self.frame(FIN | CLOSE, &1000u16.to_be_bytes())
    }
}

fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    // Sizes on both sides of each form of the length.
    for size in [0, 1, 125, 126, 127, 128, 65_535, 65_536, 65_537, 1_000_003] {
        let payload: Vec<u8> = (0..size).map(|at| b'a' + (at % 26) as u8).collect();
        for opcode in [TEXT, BINARY] {
            let case = Case::new(format!("{size} bytes of {opcode}"));
            all.push(case.frame(FIN | opcode, &payload).close());
        }
    }
    // Lengths that are written longer than they need be.
    for (name, form) in [("16", Form::Medium), ("64", Form::Long)] {
        let case = Case::new(format!("five bytes with a length of {name} bits"));
        all.push(case.odd(FIN | TEXT, b"hello", true, form).close());
        let case = Case::new(format!("a ping with a length of {name} bits"));
        all.push(case.odd(FIN | PING, b"hello", true, form).close());
    }
    let mut high = Case::new("a length with its highest bit set");
    high.bytes.extend([FIN | BINARY, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 5, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
    all.push(high);
    // Control frames.
    for size in [0, 1, 125] {
        all.push(Case::new(format!("ping of {size}")).frame(FIN | PING, &vec![7; size]).close());
        all.push(Case::new(format!("pong of {size}")).frame(FIN | PONG, &vec![7; size]).close());
    }
    all.push(Case::new("ping of 126").frame(FIN | PING, &[7; 126]));
    all.push(Case::new("half a ping").frame(PING, b"x").frame(FIN, b"y"));
    let ten = (0..10).fold(Case::new("ten pings"), |case, at| case.frame(FIN | PING, &[at]));
    all.push(ten.close());
    // Reserved bits and opcodes.
    for rsv in [0x40, 0x20, 0x10, 0x70] {
        all.push(Case::new(format!("reserved bits {rsv:x}")).frame(FIN | rsv | TEXT, b"x"));
        all.push(Case::new(format!("ping, bits {rsv:x}")).frame(FIN | rsv | PING, b"x"));
    }
    for opcode in [3, 4, 5, 6, 7, 11, 12, 13, 14, 15] {
        let case = Case::new(format!("opcode {opcode}")).frame(FIN | TEXT, b"before");
        all.push(case.frame(FIN | opcode, b"x").frame(FIN | TEXT, b"after"));
    }
    // Fragments.
    let split = |name: &str| Case::new(name).frame(TEXT, b"frag").frame(0, b"men");
    all.push(split("three fragments").frame(FIN, b"ted").close());
    all.push(
        split("pings between fragments")
            .frame(FIN | PING, b"1")
            .frame(0, b"")
            .frame(FIN | PONG, b"2")
            .frame(FIN, b"ted")
            .close(),
    );
    all.push(Case::new("empty fragments").frame(BINARY, b"").frame(0, b"").frame(FIN, b"").close());
    all.push(split("a close between fragments").close());
    all.push(split("a text between fragments").frame(FIN | TEXT, b"new"));
    all.push(Case::new("a continuation of nothing").frame(FIN, b"x").frame(FIN | TEXT, b"after"));
    all.push(Case::new("an open continuation of nothing").frame(0, b"x").frame(FIN, b"y"));
    let many = (0..2000).fold(Case::new("2000 fragments").frame(BINARY, b"0"), |case, at| {
        case.frame(0, &[at as u8; 3])
    });
    all.push(many.frame(FIN, b"end").close());
    // Text that is none, and text that is cut within a character.
    all.push(Case::new("no UTF-8").frame(FIN | TEXT, b"\xce\xba\xe1\xbd\xb9\xcf\x83\xed\xa0\x80"));
    all.push(Case::new("cut UTF-8").frame(FIN | TEXT, "κ".as_bytes().get(..1).unwrap()));
    all.push(Case::new("UTF-8 in two").frame(TEXT, b"\xce").frame(FIN, b"\xba").close());
    all.push(Case::new("no UTF-8 in two").frame(TEXT, b"\xce").frame(FIN, b"z"));
    // Masks.
    all.push(Case::new("not masked").odd(FIN | TEXT, b"hello", false, Form::Short));
    all.push(Case::new("a ping that is not masked").odd(FIN | PING, b"", false, Form::Short));
    // Closing.
    for code in [999u16, 1000, 1001, 1002, 1003, 1004, 1005, 1006, 1007, 1011, 1015, 1016, 2999] {
        all.push(Case::new(format!("close {code}")).frame(FIN | CLOSE, &code.to_be_bytes()));
    }
    for code in [3000u16, 4999, 5000, 65_535] {
        all.push(Case::new(format!("close {code}")).frame(FIN | CLOSE, &code.to_be_bytes()));
    }
    all.push(Case::new("close without a code").frame(FIN | CLOSE, b""));
    all.push(Case::new("close with half a code").frame(FIN | CLOSE, &[3]));
    let reason = [&1000u16.to_be_bytes()[..], &[b'r'; 123]].concat();
    all.push(Case::new("close with the longest reason").frame(FIN | CLOSE, &reason));
    let reason = [&1000u16.to_be_bytes()[..], &[b'r'; 124]].concat();
    all.push(Case::new("close with too long a reason").frame(FIN | CLOSE, &reason));
    all.push(Case::new("close, no UTF-8").frame(FIN | CLOSE, b"\x03\xe8\xce\xba\xed\xa0\x80"));
    all.push(Case::new("a text after the close").close().frame(FIN | TEXT, b"late"));
    all.push(Case::new("two closes").close().close());
    let burst = (0..500).fold(Case::new("a burst"), |case, at: u32| {
        case.frame(FIN | TEXT, at.to_string().as_bytes())
    });
    all.push(burst.close());
    all
}

const HANDSHAKE: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

/// What came back behind the 101, to the end of the stream.
async fn told(stream: impl AsyncRead + AsyncWrite, head: &str, pieces: &[&[u8]]) -> Vec<u8> {
    let (mut read, mut write) = tokio::io::split(stream);
    write.write_all(head.as_bytes()).await.unwrap();
    write.flush().await.unwrap();
    let mut said = Vec::new();
    let body = loop {
        assert!(read.read_buf(&mut said).await.unwrap() > 0, "closed in the handshake");
        if let Some(at) = find(&said, b"\r\n\r\n") {
            assert!(said.starts_with(b"HTTP/1.1 101 "), "{}", said.escape_ascii());
            break said.split_off(at + 4);
        }
    };
    said = body;
    let sending = async {
        for piece in pieces {
            // The server may have closed already.
            if write.write_all(piece).await.is_err() || write.flush().await.is_err() {
                break;
            }
        }
        std::future::pending::<()>().await;
    };
    let reading = async { while read.read_buf(&mut said).await.is_ok_and(|more| more > 0) {} };
    tokio::select! {
        () = reading => {}
        () = sending => {}
    }
    said
}

async fn through(world: &World, pieces: &[&[u8]]) -> Vec<u8> {
    let bearer = world.bearer("alice");
    let head =
        format!("GET /ws HTTP/1.1\r\nHost: {HOST}\r\nAuthorization: {bearer}\r\n{HANDSHAKE}");
    told(world.tls(&[b"http/1.1"]).await, &head, pieces).await
}

async fn direct(server: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let head = format!("GET /ws HTTP/1.1\r\nHost: {HOST}\r\n{HANDSHAKE}");
    told(TcpStream::connect(server).await.unwrap(), &head, &[bytes]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn every_case_ends_through_the_tunnel_as_it_does_without() {
    let server = echo_server().await;
    let world = World::start().await;
    world.running(server);
    for case in cases() {
        let bytes = case.bytes.as_slice();
        let wanted = timeout(Duration::from_secs(30), direct(server, bytes)).await;
        let wanted = wanted.unwrap_or_else(|_| panic!("{}: no end without the tunnel", case.name));
        let whole = [bytes];
        let odd: Vec<_> = bytes.chunks(bytes.len() / 7 + 1).collect();
        let single: Vec<_> = bytes.chunks(1).collect();
        for pieces in [&whole[..], &odd, &single] {
            // The large ones byte by byte would take long and show nothing new.
            if pieces.len() > 3000 {
                continue;
            }
            let got = timeout(Duration::from_secs(30), through(&world, pieces)).await;
            let got = got.unwrap_or_else(|_| panic!("{}: no end in {}", case.name, pieces.len()));
            assert!(got == wanted, "{}: {} and not {}", case.name, show(&got), show(&wanted));
        }
    }
}

fn show(bytes: &[u8]) -> String {
    format!("{} bytes {}", bytes.len(), bytes.get(..60).unwrap_or(bytes).escape_ascii())
}

#[tokio::test(flavor = "multi_thread")]
async fn large_messages_pass_whole_and_in_fragments() {
    let server = echo_server().await;
    let world = World::start().await;
    world.running(server);
    let payload: Vec<u8> = (0..LARGE).map(|at| ((at * 31) >> 3) as u8).collect();
    let whole = Case::new("whole").frame(FIN | BINARY, &payload).close();
    let mut parts = Case::new("in fragments");
    for (at, part) in payload.chunks(1 << 20).enumerate() {
        parts = parts.frame(if at == 0 { BINARY } else { 0 }, part).frame(FIN | PING, b"");
    }
    for case in [whole, parts.frame(FIN, b"").close()] {
        let got = timeout(Duration::from_secs(120), through(&world, &[&case.bytes])).await.unwrap();
        // Pongs come when the server has the time for them: only the message is looked at.
        let at = find(&got, &[FIN | BINARY, 127]).unwrap();
        let echoed = got.get(at + 10..at + 10 + LARGE).unwrap();
        assert!(echoed == payload, "{}", case.name);
        assert!(got.ends_with(&[FIN | CLOSE, 2, 3, 0xe8]), "{}", case.name);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_time_limit_cuts_a_socket_that_is_silent_or_only_pings() {
    let short = Duration::from_millis(100);
    let world = World::with(|config| {
        config.limits.keep_alive = short;
        config.limits.stall_timeout = short;
    })
    .await;
    world.running(echo_server().await);
    let bearer = world.bearer("alice");
    let mut stream = world.tls(&[b"http/1.1"]).await;
    let head =
        format!("GET /ws HTTP/1.1\r\nHost: {HOST}\r\nAuthorization: {bearer}\r\n{HANDSHAKE}");
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut said = Vec::new();
    while find(&said, b"\r\n\r\n").is_none() {
        assert!(stream.read_buf(&mut said).await.unwrap() > 0);
    }
    let ping = Case::new("ping").frame(FIN | PING, b"still here").bytes;
    for _ in 0..3 {
        // Ten times as long as anything else may take.
        let silence = timeout(10 * short, stream.read_u8()).await;
        assert!(silence.is_err(), "{silence:?}");
        stream.write_all(&ping).await.unwrap();
        stream.flush().await.unwrap();
        let mut pong = [0; 12];
        stream.read_exact(&mut pong).await.unwrap();
        assert_eq!(&pong, b"\x8a\x0astill here");
    }
}
