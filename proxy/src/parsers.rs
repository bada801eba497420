//! Parsers of what strangers and workloads send, as functions of bytes: for the fuzz targets in
//! `fuzz/`, and for the property tests below. Each panics when what it found breaks a promise.

use std::net::{IpAddr, Ipv4Addr};

use domain::{
    classify::{
        BODY_MAX, Content, Form, From, Name, PREFIX_MAX, Reader, Request, Socket, Workload, replay,
        request,
    },
    token::is_claimed,
    workload::Protocol,
};

use crate::{
    front::{
        chunked::Chunked,
        head::{self, FIELDS_MAX, Parsed},
        hops::TrustedHops,
    },
    gate::{
        credential::{self, Presented, Withheld, is_our_cookie},
        head::Head,
        host::{self, Host},
        scrub::{self, Scrub, Trust},
    },
    session::return_path::ReturnPath,
    trace::TraceParent,
    tunnel::{
        frames::{Frames, Seen},
        response::{self, Follows, Wanted},
    },
    upstream::sticky,
};

const HEAD_MAX: usize = 4096;

/// The head of a request over HTTP/1.1, and all that is read from it.
pub fn request_head(bytes: &[u8]) {
    let Ok(Some(length)) = head::length(bytes, HEAD_MAX) else { return };
    let (head, before) = (&bytes[..length], &bytes[..length - 1]);
    assert!(length <= HEAD_MAX && head.ends_with(b"\r\n\r\n"));
    assert_eq!(head::length(before, HEAD_MAX), Ok(None), "a head ends before its end");
    let mut room = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let Ok(Parsed { head: read, .. }) = head::parse(head, &mut room) else { return };
    let lines = head.split(|&byte| byte == b'\n').count() - 1;
    assert_eq!(read.fields.len() + 2, lines, "a line is not a field");
    for name in ["host", "content-length", "transfer-encoding", "expect"] {
        assert!(read.values(name).count() <= 1, "two of {name}");
    }
    assert!(read.target.starts_with('/') && read.path().len() <= read.target.len());
    authority(read.authority);
    return_path(read.target);
    credentials(&read);
    forwarded(&read);
    if let Some(Ok(parent)) = read.single("traceparent").map(str::parse::<TraceParent>) {
        assert_eq!(parent.to_string().parse(), Ok(parent));
    }
    for trust in [Trust::Workload, Trust::Service, Trust::ServiceWithToken] {
        scrubbed(&read, trust);
    }
}

fn authority(authority: &str) {
    if let Ok(Host::Ours(name)) = host::parse(authority, "example.test") {
        let label = name.strip_suffix(".example.test").unwrap_or_default();
        assert!(!label.is_empty() && !label.contains(['.', ':']), "{name}");
        assert!(!name.bytes().any(|byte| byte.is_ascii_uppercase()), "{name}");
    }
}

/// Wherever somebody is sent after signing in, it is the host they came from.
fn return_path(target: &str) {
    let Ok(here) = url::Url::parse("https://lab.example.test/.dormouse/callback") else { return };
    let there = here.join(ReturnPath::new(target).as_str()).map(|there| there.origin());
    assert_eq!(there, Ok(here.origin()), "{target}");
}

fn credentials(head: &Head<'_>) {
    let is_token = |token: &str| {
        !token.is_empty()
            && token.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~+/=".contains(&b))
    };
    let is_ours = |token: &str| is_claimed(token, "https://auth.example.test");
    match credential::presented(head, &is_ours) {
        Ok(Presented::Token(token)) => assert!(is_token(&token)),
        Ok(Presented::Session { access, refresh }) => {
            assert!(is_token(access) && refresh.is_none_or(is_token));
        }
        Ok(Presented::Nothing) | Err(_) => {}
    }
    let _ = sticky::read(head);
}

fn forwarded(head: &Head<'_>) {
    let (near, far) = (IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)));
    let hops = TrustedHops::new("127.0.0.0/8".parse().into_iter().collect());
    assert_eq!(hops.client(far, head), far, "a stranger says who it is");
    let client = hops.client(near, head);
    if head.values("x-forwarded-for").next().is_none() {
        assert_eq!(client, near);
    }
}

fn scrubbed(head: &Head<'_>, trust: Trust) {
    let is_ours = |token: &str| is_claimed(token, "https://auth.example.test");
    let withheld = Withheld::of(head, &is_ours);
    let scrub = Scrub::new(head, trust, &withheld, None);
    if let Some(target) = &withheld.target {
        assert!(target.starts_with('/') && target.len() < head.target.len(), "{target}");
        let again = Head { target, ..*head };
        assert_eq!(Withheld::of(&again, &is_ours).target, None, "a token leaves in {target}");
    }
    for field in head.fields.iter().filter(|field| scrub.keeps(field.name)) {
        let folded = field.name.to_ascii_lowercase().replace(['_', '.'], "-");
        assert!(!scrub::is_hop_by_hop(field.name), "{}", field.name);
        assert!(!folded.starts_with("x-forwarded-"), "{}", field.name);
        let token = trust == Trust::Workload && folded == "authorization" && withheld.authorization;
        assert!(!token, "a token leaves");
    }
    let Some(cookies) = scrub.cookie().filter(|_| trust == Trust::Workload) else { return };
    let ours = cookies.split(|&byte| byte == b';').any(|pair| is_our_cookie(pair.trim_ascii()));
    assert!(!ours, "a cookie of ours leaves");
}

/// A chunked body, cut where the first byte says.
pub fn chunked(bytes: &[u8]) {
    let Some((&cut, bytes)) = bytes.split_first() else { return };
    let (first, second) = bytes.split_at(usize::from(cut).min(bytes.len()));
    let mut taken = Vec::new();
    for new in [Chunked::request, Chunked::response] {
        let (mut whole, mut parts) = (new(), new());
        let at_once = whole.advance(bytes);
        let one_by_one = parts.advance(first).and_then(|taken| {
            let more = if taken < first.len() { 0 } else { parts.advance(second)? };
            Ok(taken + more)
        });
        assert_eq!(at_once, one_by_one);
        if let Ok(taken) = at_once {
            assert_eq!(whole, parts);
            assert!(taken == bytes.len() || taken < bytes.len() && whole.is_done());
        }
        taken.push(at_once);
    }
    if let [Ok(strict), lenient] = taken[..] {
        assert_eq!(lenient, Ok(strict), "what is right is read in two ways");
    }
}

/// The frames of a WebSocket, cut where the first byte says, and what a classifier reads in them.
pub fn frames(bytes: &[u8]) {
    let Some((&cut, bytes)) = bytes.split_first() else { return };
    let (first, second) = bytes.split_at(usize::from(cut).min(bytes.len()));
    for content in [Content::No, Content::Start(PREFIX_MAX), Content::All] {
        let pass = |frames: &mut Frames, parts: &[&[u8]]| {
            let (mut all, mut told) = (Vec::new(), Vec::new());
            for part in parts {
                frames.pass(part, |seen| match seen {
                    Seen::Part(bytes) => told.extend_from_slice(bytes),
                    other => all.push(format!("{other:?}")),
                });
            }
            // That it is lost is said again with each part.
            all.dedup();
            (all, told)
        };
        let (mut whole, mut parts) = (Frames::new(content), Frames::new(content));
        let seen = pass(&mut whole, &[bytes]);
        assert_eq!(seen, pass(&mut parts, &[first, second]));
        assert_eq!(whole.at_boundary(), parts.at_boundary());
        if seen.0.last().is_some_and(|last| last == "Lost") {
            continue;
        }
        let mut begun = Frames::new(content);
        pass(&mut begun, &[first]);
        let rest = begun.to_boundary(second);
        assert!(rest <= second.len());
        pass(&mut begun, &[&second[..rest]]);
        assert!(begun.at_boundary() || rest == second.len());
    }
}

const SOCKETS: [(Protocol, &str, &str); 8] = [
    (Protocol::Jupyter, "/api/kernels/a/channels", ""),
    (Protocol::Jupyter, "/terminals/websocket/1", ""),
    (Protocol::Jupyter, "/api/collaboration/room/a", ""),
    (Protocol::Streamlit, "/_stcore/stream", "streamlit"),
    (Protocol::Http, "/socket.io/", ""),
    (Protocol::Http, "/app/ws", "bokeh"),
    (Protocol::Http, "/websocket/", ""),
    (Protocol::VsCode, "/stable-a", ""),
];

fn vscode(parts: &[&[u8]]) -> Vec<Name> {
    let mut reader = Reader::new(Protocol::VsCode, "/stable-a", "", "");
    let mut names = Vec::new();
    parts.iter().for_each(|part| reader.part(From::Client, part, |name| names.push(name)));
    // That it is not understood is said again with each part.
    names.dedup();
    names
}

/// What the judge's readers make of anything: one that reads a stream finds the same wherever it is
/// cut, and every doubt ends.
pub fn classify(bytes: &[u8]) {
    let [which, cut, rest @ ..] = bytes else { return };
    let (protocol, path, sub) = SOCKETS[usize::from(*which) % SOCKETS.len()];
    let start = &rest[..rest.len().min(PREFIX_MAX)];
    let mut reader = Reader::new(protocol, path, "", sub);
    let (mut workload, mut socket) = (Workload::default(), Socket::new(0));
    for (opcode, now) in [(1, 1), (2, 100_000), (9, 200_000)] {
        for from in [From::Client, From::Server] {
            let name = reader.message(from, opcode, start);
            workload.judge(name, Some(&mut socket), now, || ());
        }
    }
    while workload.settle(i64::MAX).is_some() {}
    assert!(!workload.is_in_doubt());

    let (first, second) = rest.split_at(usize::from(*cut).min(rest.len()));
    assert_eq!(vscode(&[rest]), vscode(&[first, second]));

    let body = &rest[..rest.len().min(BODY_MAX)];
    for form in [Form::Dash, Form::Gradio, Form::Marimo, Form::EngineIo] {
        request::body(form, Name::Person("used the app"), body);
    }
    if let Ok(text) = std::str::from_utf8(rest) {
        let (path, query) = text.split_once('?').unwrap_or((text, ""));
        for method in ["GET", "POST", "PUT"] {
            let asked = Request { method, path, query, dest: Some("empty"), ..Request::default() };
            request::read(protocol, &asked);
        }
        let _ = replay::replay(text);
    }
}

/// A workload's answer to a WebSocket handshake.
pub fn handshake_answer(bytes: &[u8]) {
    let Ok(Some(answer)) =
        response::parse(bytes, &Wanted { sticky: Some("pod=1"), ..Wanted::default() })
    else {
        return;
    };
    assert!(answer.length <= bytes.len());
    assert_eq!(answer.follows == Follows::Stream, answer.status == 101);
    let mut room = [httparse::EMPTY_HEADER; 256];
    let mut again = httparse::Response::new(&mut room);
    let whole = Ok(httparse::Status::Complete(answer.head.len()));
    assert_eq!(again.parse(&answer.head), whole, "{}", answer.head.escape_ascii());
    assert_eq!(again.code, Some(answer.status));
    let mut cookies = again.headers.iter().filter(|f| f.name.eq_ignore_ascii_case("set-cookie"));
    assert!(cookies.all(|field| scrub::keeps_set_cookie(field.value)), "a cookie of ours is set");
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pieces(of: &'static [&'static str]) -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(prop::sample::select(of), 0..10).prop_map(|all| all.concat().into())
    }

    proptest! {
        #[test]
        fn a_request_head_breaks_nothing(
            noise in prop::collection::vec(any::<u8>(), 0..60),
            fields in pieces(&[
                "Host: a.example.test\r\n", "Cookie: a=1; __Host-dormouse=x\r\n", "Cookie: __host-dormouse\r\n",
                "Authorization: Bearer a\r\n", "X_Forwarded.User: a\r\n", "Connection: cookie, x\r\n",
                "X-Forwarded-For: 127.0.0.2, 1.2.3.4\r\n", "Content-Length: 1\r\n", " a\r\n", "a: b\n",
                "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n",
            ]),
        ) {
            let start = b"GET /a?b HTTP/1.1\r\nHost: a.example.test:80\r\n";
            request_head(&[&start[..], &fields, b"\r\n"].concat());
            request_head(&[&start[..], &noise, b"\r\n", &fields, b"\r\n"].concat());
            request_head(&noise);
        }

        #[test]
        fn a_chunked_body_breaks_nothing(
            cut in 0u8..40,
            bytes in pieces(&["1\r\n", "a", "\r\n", "0\r\n", "0;b\r\n", "X: y\r\n", "\r\n\r\n", "f", "\n", "\0"]),
        ) {
            chunked(&[&[cut], &bytes[..]].concat());
        }

        #[test]
        fn frames_break_nothing(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            frames(&bytes);
        }

        #[test]
        fn no_message_or_body_breaks_the_judge(
            which in 0u8..8,
            cut in any::<u8>(),
            noise in prop::collection::vec(any::<u8>(), 0..60),
            text in pieces(&[
                "{\"msgid\":\"1\",\"msgtype\":\"PATCH-DOC\"}", "{\"events\":[", "\"attr\":\"start\"", "\"MessageSent\"", "42[", "\"event\"",
                "{\"method\":\"update\",\"data\":{", "\"msg_type\":", "\"comm_msg\"", "\"changedPropIds\":[", "\"values\":[\"2s (4)\"]",
                "\u{1}\0\0\0\u{1}\0\0\0\0\0\0\0\u{14}", "$input", "remoteterminal", "Z\u{4}0\u{1}", "{\"kind\":\"meta\",\"window\":[0,9]}\n",
                "{\"t\":1,\"kind\":\"ws\",\"dir\":\"c2s\",\"opcode\":1}\n", ":", ",", "]", "\\", "POST /git/status",
            ]),
        ) {
            classify(&[&[which, cut], &text[..], &noise].concat());
            classify(&[&[which, cut], &noise[..], &text].concat());
        }

        #[test]
        fn an_answer_to_a_handshake_breaks_nothing(
            fields in pieces(&[
                "Upgrade: websocket\r\n", "Set-Cookie: __Host-dormouse=x\r\n", "Content-Length: 1\r\n",
                "Transfer-Encoding: chunked\r\n", "X: \u{fc}\r\n", "X : y\r\n", "a\rb\r\n", "Connection: x\r\n",
            ]),
            status in prop::sample::select(vec!["101", "200", "304", "103", "99", "999"]),
        ) {
            handshake_answer(&[b"HTTP/1.1 ", status.as_bytes(), b" S\r\n", &fields, b"\r\n"].concat());
        }
    }
}
