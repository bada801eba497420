//! Requests and answers, most of them plain, and some a little odd.

use proptest::{prelude::*, sample::select};

use super::case::Case;
use crate::world::HOST;

pub fn case() -> impl Strategy<Value = Case> {
    let cut = || any::<prop::sample::Index>();
    (request(), cut(), answer(), cut(), any::<[bool; 4]>()).prop_map(
        |(request, cut, (answer, must_close, odd), answer_cut, [closes, warm, apart, early])| {
            let case = Case {
                cut: cut.index(request.len() + 1),
                answer_cut: answer_cut.index(answer.len() + 1),
                closes: closes || must_close,
                request,
                answer,
                odd,
                warm,
                apart,
                early,
                ..Case::default()
            };
            case.judged()
        },
    )
}

fn request() -> impl Strategy<Value = Vec<u8>> {
    let methods =
        ["GET", "GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "PROPFIND", "get"];
    let targets = [
        "/",
        "/a?b=c",
        "//a/./%2e%2e/b",
        "/a%2Fb",
        "/a|b",
        "/.dormouse/whoami",
        "/.dormouse/x",
        "/%2edormouse/whoami",
        "/a;b=1,2",
        "/a?<script>",
        "/a\\b",
        "/[::]",
        "/a%zz",
        "/\"",
    ];
    let fields = [
        "Accept: text/html",
        "Accept: */*",
        "Connection: keep-alive",
        "Connection: close",
        "Connection: X-Hop, close",
        "Connection: Keep-Alive, close",
        "X-Hop: 1",
        "X_Hop: 2",
        "Keep-Alive: 5",
        "TE: trailers",
        "Trailer: X",
        "X-Forwarded-User: root",
        "X_Forwarded_User: root",
        "x-forwarded-for: 6.6.6.6",
        "Forwarded: for=6.6.6.6",
        "Cookie: a=1",
        "Cookie: b=2; __Host-dormouse-login-1=x;c=\"3\"",
        "Cookie: ",
        "X-Empty:",
        "X-Space:  a  b ",
        "X-Tab:\ta\tb",
        "X-Text: \u{fc}",
        "X: y",
        "X: z",
        "x: w",
        "Range: bytes=0-1",
        "If-None-Match: \"a\"",
        "Origin: https://evil.test",
        "Proxy-Authorization: Basic eA==",
        "Proxy-Connection: close",
        "Upgrade: h2c",
        "HTTP2-Settings: AAMAAABkAAQAAP__",
        "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "tracestate: a=b",
        "Content-Type: text/plain",
        "Content_Length: 3",
        "Sec-Fetch-Mode: navigate",
        "Expect: 100-continue",
        "Host: other",
        "X : y",
        " folded",
        "Strict-Transport-Security: x",
    ];
    let credentials = [
        "Authorization: Bearer TOKEN",
        "Authorization: Bearer TOKEN",
        "Authorization: Bearer TOKEN",
        "authorization: bearer  TOKEN",
        "Cookie: __Host-dormouse=TOKEN; a=1",
        "Authorization: Bearer x",
        "Authorization: Basic eA==",
        "X: none",
    ];
    let bodies = [
        ("", ""),
        ("", ""),
        ("", ""),
        ("Content-Length: 0\r\n", ""),
        ("Content-Length: 5\r\n", "hello"),
        ("content-length: 5\r\n", "a\r\n\r\n"),
        ("Transfer-Encoding: chunked\r\n", "5\r\nhello\r\n0\r\n\r\n"),
        ("Transfer-Encoding: chunked\r\n", "0\r\n\r\n"),
        ("Content-Length: 5\r\nContent-Length: 5\r\n", "hello"),
    ];
    let versions = ["HTTP/1.1", "HTTP/1.1", "HTTP/1.1", "HTTP/1.1", "HTTP/1.0"];
    (
        (select(methods.to_vec()), select(targets.to_vec()), select(versions.to_vec())).prop_map(
            |(method, target, version)| format!("{method} {target} {version}\r\nHost: {HOST}\r\n"),
        ),
        select(credentials.to_vec()),
        prop::collection::vec(select(fields.to_vec()), 0..4),
        select(bodies.to_vec()),
    )
        .prop_map(|(start, credential, fields, (framing, body))| {
            let fields: String = fields.iter().map(|field| format!("{field}\r\n")).collect();
            format!("{start}{credential}\r\n{fields}{framing}\r\n{body}").into_bytes()
        })
}

/// The bytes, whether only a close can end them, and whether they break the protocol.
fn answer() -> impl Strategy<Value = (Vec<u8>, bool, bool)> {
    let starts = [
        ("HTTP/1.1 200 OK\r\n", false),
        ("HTTP/1.1 200 OK\r\n", false),
        ("HTTP/1.1 404 Not Found\r\n", false),
        ("HTTP/1.1 204 No Content\r\n", false),
        ("HTTP/1.1 304 Not Modified\r\n", false),
        ("HTTP/1.0 200 OK\r\n", false),
        (
            "HTTP/1.1 103 Early Hints\r\nLink: a\r\nSet-Cookie: __Host-dormouse=1\r\n\r\nHTTP/1.1 200 OK\r\n",
            false,
        ),
        ("HTTP/1.1 500 \r\n", false),
        ("HTTP/1.1 299 Odd reason\r\n", false),
        ("HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n", true),
        ("SSH-2.0-x\r\n", true),
        ("HTTP/1.1 099 Low\r\n", true),
    ];
    let fields = [
        ("Content-Type: text/plain\r\n", false),
        ("Set-Cookie: a=1\r\n", false),
        ("Set-Cookie: b=2\r\n", false),
        ("Set-Cookie: __Host-dormouse=evil\r\n", false),
        ("Connection: close\r\n", false),
        ("Connection: keep-alive\r\n", false),
        ("Connection: X-Hop\r\n", false),
        ("X-Hop: 1\r\n", false),
        ("Keep-Alive: timeout=5\r\n", false),
        ("Upgrade: h2c\r\n", false),
        ("Date: Tue, 24 Nov 2026 08:00:00 GMT\r\n", false),
        ("Strict-Transport-Security: max-age=0\r\n", false),
        ("X-Text: \u{fc}\r\n", false),
        ("X: y\r\n", false),
        ("X: z\r\n", false),
        ("X-Empty:\r\n", false),
        ("Trailer: X\r\n", false),
        ("X : y\r\n", true),
        ("X: y\r\n folded\r\n", true),
    ];
    let bodies = [
        ("Content-Length: 5\r\n\r\nhello", false, false),
        ("Content-Length: 5\r\n\r\nhello", false, false),
        ("Content-Length: 0\r\n\r\n", false, false),
        ("\r\nhello", true, false),
        ("Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", false, false),
        ("Transfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n003\r\nllo\r\n0\r\n\r\n", false, false),
        ("transfer-encoding: Chunked\r\n\r\n5;a=b\r\nhello\r\n0\r\n\r\n", false, false),
        (
            "Content-Length: 9\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
            false,
            false,
        ),
        ("Content-Length: 9\r\n\r\nhello", true, false),
        ("Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", true, false),
        ("Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello", false, true),
        ("Content-Length: 5, 5\r\n\r\nhello", false, true),
        ("Content-Length: +5\r\n\r\nhello", true, true),
        ("Transfer-Encoding: gzip, chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", true, true),
        ("Transfer-Encoding: chunked\r\n\r\nxyz\r\n", true, true),
    ];
    (
        select(starts.to_vec()),
        prop::collection::vec(select(fields.to_vec()), 0..4),
        select(bodies.to_vec()),
    )
        .prop_map(|((start, start_odd), fields, (body, closes, body_odd))| {
            let text: String = fields.iter().map(|(field, _)| *field).collect();
            let odd = start_odd || body_odd || fields.iter().any(|(_, odd)| *odd);
            // Chunks are none of HTTP/1.0's.
            let old =
                start.starts_with("HTTP/1.0") && body.to_ascii_lowercase().contains("chunked");
            (format!("{start}{text}{body}").into_bytes(), closes || odd || old, odd || old)
        })
}
