//! Which requests the lane takes, and what the upstream gets of them.

use bytes::{BufMut, BytesMut};

use super::answer::put_field;
use crate::{
    front::head::{BodyFraming, Parsed},
    gate::{Admitted, head::Head, is_own_path, scrub::Scrub},
};

const METHODS: [&str; 7] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];

/// Fields that ask for more than one plain exchange.
const OTHERS: [&str; 5] = ["upgrade", "expect", "te", "trailer", "http2-settings"];

/// What is remembered of a request that the lane takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plain {
    /// Bytes of the body.
    pub body: u64,
    /// The client closes the connection afterwards.
    pub close: bool,
    pub head_only: bool,
    /// The request may be sent twice (RFC 9110, section 9.2.2).
    pub idempotent: bool,
}

impl Plain {
    /// `None` for everything that is not, to the byte, the plainest exchange there is.
    pub fn of(parsed: &Parsed<'_>) -> Option<Self> {
        let Parsed { head, body: BodyFraming::Length(body), http_11: true } = parsed else {
            return None;
        };
        let target = head.target.as_bytes();
        if !METHODS.contains(&head.method)
            || is_own_path(head.path())
            || !target.iter().all(|&byte| is_target(byte))
        {
            return None;
        }
        let mut close = false;
        for field in head.fields {
            // Without an early end, many bytes are looked at at once.
            let plain = |byte: u8| (b' '..=b'~').contains(&byte) | (byte == b'\t');
            if !field.value.iter().fold(true, |all, &byte| all & plain(byte)) {
                return None;
            }
            let is = |name: &str| field.name.eq_ignore_ascii_case(name);
            if is("connection") {
                for option in field.value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii) {
                    if option.eq_ignore_ascii_case(b"close") {
                        close = true;
                    } else if !option.eq_ignore_ascii_case(b"keep-alive") {
                        return None;
                    }
                }
            } else if OTHERS.iter().any(|other| is(other)) {
                return None;
            }
        }
        Some(Self {
            body: *body,
            close,
            head_only: head.method == "HEAD",
            idempotent: !matches!(head.method, "POST" | "PATCH"),
        })
    }
}

/// What a path or a query is made of (RFC 3986, section 3.3), and percent signs.
fn is_target(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=:@/?".contains(&byte)
}

/// The head for the upstream.
pub fn write(head: &Head<'_>, length: usize, admitted: &Admitted) -> BytesMut {
    // Ours are longer than what is taken out, seldom by more.
    let mut out = BytesMut::with_capacity(length + 384);
    out.put_slice(head.method.as_bytes());
    out.put_u8(b' ');
    out.put_slice(admitted.target(head).as_bytes());
    out.put_slice(b" HTTP/1.1\r\n");
    let scrub = Scrub::of(head, admitted);
    for field in head.fields {
        if scrub.keeps(field.name) {
            put_field(&mut out, field.name, field.value);
        }
    }
    if let Some(cookie) = scrub.cookie() {
        put_field(&mut out, "Cookie", &cookie);
    }
    admitted.fields(head, |name, value| put_field(&mut out, name, value));
    out.put_slice(b"\r\n");
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::front::head::{self, FIELDS_MAX};

    fn takes(text: &str) -> bool {
        let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
        Plain::of(&head::parse(text.as_bytes(), &mut fields).unwrap()).is_some()
    }

    #[test]
    fn only_the_plainest_is_taken() {
        let with = |field: &str| takes(&format!("POST /a HTTP/1.1\r\nHost: h\r\n{field}\r\n"));
        for plain in [
            "",
            "Content-Length: 5\r\n",
            "Connection: Keep-Alive\r\n",
            "Connection: close\r\n",
            "X:\ty\r\n",
        ] {
            assert!(with(plain), "{plain:?}");
        }
        for other in [
            "Transfer-Encoding: chunked\r\n",
            "Expect: 100-continue\r\n",
            "Upgrade: h2c\r\n",
            "TE: trailers\r\n",
            "Trailer: X\r\n",
            "HTTP2-Settings: AAMAAABkAAQAAP__\r\n",
            "Connection: X-Secret\r\n",
            "Connection: close,\r\n",
            "X: \u{fc}\r\n",
        ] {
            assert!(!with(other), "{other:?}");
        }
        assert!(takes("GET //a/./%2e%2e/b?c=%2F HTTP/1.1\r\nHost: h\r\n\r\n"));
        assert!(!takes("GET /a|b HTTP/1.1\r\nHost: h\r\n\r\n"));
        assert!(!takes("GET / HTTP/1.0\r\nHost: h\r\n\r\n"));
        assert!(!takes("PROPFIND / HTTP/1.1\r\nHost: h\r\n\r\n"));
        assert!(!takes("get / HTTP/1.1\r\nHost: h\r\n\r\n"));
        assert!(!takes("GET /.dormouse/whoami?a HTTP/1.1\r\nHost: h\r\n\r\n"));
    }
}
