//! What HTTP/2 can say and HTTP/1.1 would misread: the upstream speaks HTTP/1.1 and must see one
//! request for each that was made, in the strictest form, or none.

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};

use super::{PATIENCE, recorder};
use crate::world::{HOST, World};

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const STATIC_200: u8 = 0x80 | 8;

/// Stands for the host of the workload.
const ITS_OWN: &str = "{host}";
/// A request that must never be read as one.
const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n";

#[derive(Clone)]
struct Case {
    name: &'static str,
    fields: Vec<(&'static str, &'static str)>,
    data: Option<String>,
    trailers: Vec<(&'static str, &'static str)>,
    /// Method, target and length of the body at the upstream; `None` when it must not get there.
    seen: Option<(&'static str, usize)>,
    /// The same for one that is refused after it has been sent on: the data is found to be too long
    /// when the upstream has all that was announced.
    too_late: Option<(&'static str, usize)>,
}

impl Case {
    fn get(name: &'static str, fields: &[(&'static str, &'static str)]) -> Self {
        let pseudo = [(":method", "GET"), (":scheme", "https"), (":path", "/a")];
        Self::only(name, &[&pseudo[..], &[(":authority", ITS_OWN)], fields].concat())
    }

    fn post(name: &'static str, fields: &[(&'static str, &'static str)], data: &str) -> Self {
        let pseudo = [(":method", "POST"), (":scheme", "https"), (":path", "/a")];
        let all = [&pseudo[..], &[(":authority", ITS_OWN)], fields].concat();
        Self { data: Some(data.to_owned()), ..Self::only(name, &all) }
    }

    fn path(path: &'static str) -> Self {
        let pseudo = [(":method", "GET"), (":scheme", "https"), (":path", path)];
        Self::only(path, &[&pseudo[..], &[(":authority", ITS_OWN)]].concat())
    }

    fn method(method: &'static str) -> Self {
        let pseudo = [(":method", method), (":scheme", "https"), (":path", "/a")];
        Self::only(method, &[&pseudo[..], &[(":authority", ITS_OWN)]].concat())
    }

    fn authority(authority: &'static str) -> Self {
        let pseudo = [(":method", "GET"), (":scheme", "https"), (":path", "/a")];
        Self::only(authority, &[&pseudo[..], &[(":authority", authority)]].concat())
    }

    fn only(name: &'static str, fields: &[(&'static str, &'static str)]) -> Self {
        Self {
            name,
            fields: fields.to_vec(),
            data: None,
            trailers: vec![],
            seen: None,
            too_late: None,
        }
    }

    fn trailer(mut self, name: &'static str, value: &'static str) -> Self {
        self.trailers.push((name, value));
        self
    }

    fn passes(self, line: &'static str, body: usize) -> Self {
        Self { seen: Some((line, body)), ..self }
    }
}

fn announced(length: usize, case: Case) -> Case {
    Case { too_late: Some(("POST /a", length)), ..case }
}

fn cases() -> Vec<Case> {
    let smuggled_length = SMUGGLED.len().to_string().leak();
    let chunked = format!("0\r\n\r\n{SMUGGLED}");
    vec![
        Case::get("plain", &[]).passes("GET /a", 0),
        Case::post("with its length", &[("content-length", "5")], "hello").passes("POST /a", 5),
        Case::post("without a length", &[], "hello").passes("POST /a", 5),
        Case::post("no length, and a request for a body", &[], SMUGGLED)
            .passes("POST /a", SMUGGLED.len()),
        // Lengths that are not those of the data.
        announced(0, Case::post("length 0", &[("content-length", "0")], SMUGGLED)),
        announced(5, Case::post("too short a length", &[("content-length", "5")], SMUGGLED)),
        Case::post("too long a length", &[("content-length", "500")], "hello"),
        Case::get("a length without data", &[("content-length", smuggled_length)]),
        Case::post("two lengths", &[("content-length", "5"), ("content-length", "0")], "hello"),
        Case::post("a list of lengths", &[("content-length", "5, 5")], "hello"),
        Case::post("a length with a plus", &[("content-length", "+5")], "hello"),
        Case::post("look-alike", &[("content_length", "3")], "hello").passes("POST /a", 5),
        // What belongs to a connection of HTTP/1.1 (RFC 9113, section 8.2.2).
        Case::post("chunked", &[("transfer-encoding", "chunked")], &chunked),
        Case::get("connection", &[("connection", "content-length")]),
        Case::get("keep-alive", &[("keep-alive", "5")]),
        Case::get("proxy-connection", &[("proxy-connection", "close")]),
        Case::get("upgrade", &[("upgrade", "websocket")]),
        Case::get("te", &[("te", "gzip")]),
        Case::get("te: trailers", &[("te", "trailers")]).passes("GET /a", 0),
        Case::post("expect", &[("expect", "y 100-continue")], SMUGGLED),
        // Line ends and more in fields (section 8.2.1).
        Case::get("line end in a value", &[("x", "y\r\ntransfer-encoding: chunked")]),
        Case::get("line feed in a value", &[("x", "y\ncontent-length: 50")]),
        Case::get("carriage return in a value", &[("x", "y\rz")]),
        Case::get("NUL in a value", &[("x", "y\0z")]),
        Case::get("line end in a name", &[("x: y\r\ntransfer-encoding", "chunked")]),
        Case::get("colon in a name", &[("x: y", "z")]),
        Case::get("space in a name", &[("content-length ", "5")]),
        Case::get("upper case in a name", &[("Transfer-Encoding", "chunked")]),
        Case::get("no name", &[("", "y")]),
        // Pseudo-header fields (section 8.3).
        Case::path("/ HTTP/1.1\r\nHost: x\r\n\r\nGET /smuggled"),
        Case::path("/a b"),
        Case::path("/a\tb"),
        Case::path("/a\0"),
        // Cut off before anything is decided.
        Case::path("/a#b").passes("GET /a", 0),
        Case::path("/é"),
        Case::path(""),
        Case::path("a"),
        Case::path("*"),
        Case::path("http://evil.test/a"),
        Case::path("/a/%2e%2e//b/./c%2f?%00").passes("GET /a/%2e%2e//b/./c%2f?%00", 0),
        Case::method("GET /smuggled HTTP/1.1\r\nX:"),
        Case::method("GE T"),
        Case::method(""),
        Case::method("TRACE"),
        Case::method("FROBNICATE").passes("FROBNICATE /a", 0),
        Case::authority("x\r\ntransfer-encoding: chunked"),
        Case::authority("evil@{host}"),
        Case::authority("{host}:x"),
        Case::authority("{host}, evil.test"),
        Case::authority("{host} evil"),
        Case::authority("evil.test"),
        Case::authority(""),
        Case::get("host besides", &[("host", "evil.test")]),
        Case::get("two paths", &[(":path", "/smuggled ")]),
        Case::get("unknown pseudo-header", &[(":smuggled", "x")]),
        Case::get("status", &[(":status", "200")]),
        Case::only(
            "pseudo-header behind a field",
            &[
                (":method", "GET"),
                (":scheme", "https"),
                ("x", "y"),
                (":path", "/a"),
                (":authority", ITS_OWN),
            ],
        ),
        Case::only("no path", &[(":method", "GET"), (":scheme", "https"), (":authority", ITS_OWN)]),
        Case::only(
            "a scheme that is a URL",
            &[
                (":method", "GET"),
                (":scheme", "http://evil.test/x?"),
                (":path", "/a"),
                (":authority", ITS_OWN),
            ],
        ),
        // Trailers do not get into the head.
        Case::post("trailer", &[], "hello").trailer("x-sum", "1").passes("POST /a", 5),
        Case::post("a length behind", &[], "hello")
            .trailer("content-length", "0")
            .passes("POST /a", 5),
        Case::post("somebody behind", &[], "hello")
            .trailer("x-forwarded-user", "root")
            .passes("POST /a", 5),
        // Malformed (section 8.1), and dropped with the rest.
        Case::post("a path behind", &[], "hello")
            .trailer(":path", "/smuggled")
            .passes("POST /a", 5),
    ]
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// Literal fields that are neither indexed nor compressed (RFC 7541, section 6.2.2).
fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, value) in fields {
        bytes.push(0);
        for text in [name, value] {
            let length = text.len();
            if length < 127 {
                bytes.push(length as u8);
            } else {
                // Up to 127 + 16383, in seven bits at a time (section 5.1).
                let rest = length - 127;
                bytes.extend([127, 0x80 | (rest & 0x7f) as u8, (rest >> 7) as u8]);
            }
            bytes.extend(text.as_bytes());
        }
    }
    bytes
}

fn bytes_of(case: &Case, bearer: &str) -> Vec<u8> {
    let values: Vec<_> =
        case.fields.iter().map(|(name, value)| (*name, value.replace(ITS_OWN, HOST))).collect();
    let mut fields: Vec<_> = values.iter().map(|(name, value)| (*name, value.as_str())).collect();
    fields.push(("authorization", bearer));
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend(frame(SETTINGS, 0, 0, &[]));
    let end = if case.data.is_none() { END_STREAM } else { 0 };
    bytes.extend(frame(HEADERS, END_HEADERS | end, 1, &block(&fields)));
    if let Some(data) = &case.data {
        let end = if case.trailers.is_empty() { END_STREAM } else { 0 };
        bytes.extend(frame(DATA, end, 1, data.as_bytes()));
    }
    if !case.trailers.is_empty() {
        let trailers = block(&case.trailers);
        bytes.extend(frame(HEADERS, END_HEADERS | END_STREAM, 1, &trailers));
    }
    bytes
}

/// Whether the request was answered 200; anything else, a reset or the end is a refusal.
async fn is_answered(world: &World, bytes: &[u8]) -> bool {
    let mut tls = world.tls(&[b"h2"]).await;
    let _ = tls.write_all(bytes).await;
    let _ = tls.flush().await;
    loop {
        let mut head = [0; 9];
        if tls.read_exact(&mut head).await.is_err() {
            return false;
        }
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        if tls.read_exact(&mut payload).await.is_err() {
            return false;
        }
        match head[3] {
            HEADERS => return payload.first() == Some(&STATIC_200),
            RST_STREAM | GOAWAY => return false,
            _ => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_7_nothing_is_smuggled_from_http_2_into_http_1_1() {
    let world = World::start().await;
    let (upstream, record) = recorder::start().await;
    world.running(upstream);
    let bearer = world.bearer("alice");
    let last = Case { seen: Some(("GET /last", 0)), ..Case::path("/last") };
    for case in cases() {
        let before = record.all().len();
        let answered = timeout(PATIENCE, is_answered(&world, &bytes_of(&case, &bearer))).await;
        assert_eq!(answered, Ok(case.seen.is_some()), "{:?} is answered", case.name);
        // Whatever was left of it on a connection to the upstream would now be in the way.
        let next = timeout(PATIENCE, is_answered(&world, &bytes_of(&last, &bearer))).await;
        assert_eq!(next, Ok(true), "what comes after {:?}", case.name);
        let seen = record.all().split_off(before);
        for one in &seen {
            assert_eq!(one.odd, [""; 0], "{:?}: {one:?}", case.name);
            assert_eq!(one.host, HOST, "{:?}: {one:?}", case.name);
        }
        let mut lines: Vec<_> = seen.iter().map(|one| (one.line.as_str(), one.body)).collect();
        if lines.first().copied() == case.too_late {
            lines.remove(0);
        }
        let wanted: Vec<_> = case.seen.into_iter().chain(last.seen).collect();
        assert_eq!(lines, wanted, "{:?}", case.name);
    }
}
