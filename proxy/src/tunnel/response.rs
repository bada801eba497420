//! The upstream's answer to a handshake.

use std::fmt::Write as _;

use http::HeaderValue;

use crate::{
    answer::Fault,
    front::chunked::Chunked,
    gate::{Admitted, scrub, scrub::Trust},
};

/// Longest head of an answer, in bytes.
pub const HEAD_MAX: usize = 64 * 1024;
const FIELDS_MAX: usize = 200;
const HSTS: &str = "Strict-Transport-Security";

/// What follows the head.
#[derive(Debug, PartialEq, Eq)]
pub enum Follows {
    /// The upgraded stream.
    Stream,
    /// An interim answer: another head.
    Head,
    Length(u64),
    Chunked(Chunked),
    UntilClosed,
}

#[derive(Debug)]
pub struct Response {
    pub status: u16,
    /// Bytes of the head in the buffer.
    pub length: usize,
    pub follows: Follows,
    /// The head to send on.
    pub head: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the answer is malformed")]
pub struct Malformed(pub Fault);

/// What the client is told besides: the gate's fields, for how long to come by HTTPS only, and the
/// cookie of the chosen pod.
#[derive(Clone, Copy, Default)]
pub struct Wanted<'a> {
    pub admitted: Option<&'a Admitted>,
    pub hsts: Option<&'a HeaderValue>,
    pub sticky: Option<&'a str>,
}

/// Reads the head at the start of `bytes`; `None` while it is incomplete.
pub fn parse(bytes: &[u8], wanted: &Wanted<'_>) -> Result<Option<Response>, Malformed> {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let mut response = httparse::Response::new(&mut fields);
    let length = match response.parse(bytes) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) if bytes.len() < HEAD_MAX => return Ok(None),
        Ok(_) | Err(httparse::Error::TooManyHeaders) => return Err(Malformed(Fault::Size)),
        Err(_) => return Err(Malformed(Fault::Head)),
    };
    let status = response.code.unwrap_or_default();
    // Written anew it would have fewer digits, and no client could read it (RFC 9112, section 4).
    if status < 100 {
        return Err(Malformed(Fault::Head));
    }
    let fields = &*response.headers;
    let values = |name: &'static str| {
        fields.iter().filter(move |field| field.name.eq_ignore_ascii_case(name)).map(|f| f.value)
    };
    let upgraded = status == 101;
    if upgraded && !values("upgrade").any(|value| value.eq_ignore_ascii_case(b"websocket")) {
        return Err(Malformed(Fault::Protocol));
    }
    let follows = if upgraded {
        Follows::Stream
    } else if (100..200).contains(&status) {
        Follows::Head
    } else if matches!(status, 204 | 304) {
        Follows::Length(0)
    } else {
        let coding = values("transfer-encoding").next_back();
        let mut lengths = values("content-length");
        match (coding, lengths.next(), lengths.next()) {
            (Some(coding), ..) if coding.to_ascii_lowercase().ends_with(b"chunked") => {
                Follows::Chunked(Chunked::response())
            }
            (Some(_), ..) | (None, None, None) => Follows::UntilClosed,
            (None, Some(length), None) => {
                let digits = !length.is_empty() && length.iter().all(u8::is_ascii_digit);
                let text = std::str::from_utf8(length).ok().filter(|_| digits);
                let length =
                    text.and_then(|text| text.parse().ok()).ok_or(Malformed(Fault::Length))?;
                Follows::Length(length)
            }
            _ => return Err(Malformed(Fault::Length)),
        }
    };

    let mut head = format!("HTTP/1.1 {status} {}\r\n", response.reason.unwrap_or_default());
    if upgraded {
        head.push_str("Connection: Upgrade\r\nUpgrade: websocket\r\n");
    } else {
        head.push_str("Connection: close\r\n");
    }
    let mut head = head.into_bytes();
    for field in fields {
        let is = |name: &str| field.name.eq_ignore_ascii_case(name);
        let hop = is("connection") || is("keep-alive") || is("proxy-connection") || is("upgrade");
        // A service of ours may set our cookies.
        let keeps = wanted.admitted.is_some_and(|admitted| admitted.trust == Trust::Service);
        let ours = is("set-cookie") && !keeps && !scrub::keeps_set_cookie(field.value)
            || is(HSTS) && wanted.hsts.is_some();
        if !hop && !ours {
            let location = wanted.admitted.filter(|_| is("location"));
            let moved = location.and_then(|admitted| admitted.location(field.value));
            push_field(&mut head, field.name, moved.as_deref().unwrap_or(field.value));
        }
    }
    if follows != Follows::Head {
        for (name, value) in wanted.admitted.iter().flat_map(|admitted| admitted.besides.fields()) {
            push_field(&mut head, name, value.as_bytes());
        }
        if let Some(hsts) = wanted.hsts {
            push_field(&mut head, HSTS, hsts.as_bytes());
        }
        if let Some(cookie) = wanted.sticky {
            push_field(&mut head, "Set-Cookie", cookie.as_bytes());
        }
    }
    head.extend_from_slice(b"\r\n");
    Ok(Some(Response { status, length, follows, head }))
}

pub fn push_field(head: &mut Vec<u8>, name: &str, value: &[u8]) {
    head.extend_from_slice(name.as_bytes());
    head.extend_from_slice(b": ");
    head.extend_from_slice(value);
    head.extend_from_slice(b"\r\n");
}

/// The offered extensions without `permessage-deflate`, whose frames could not be looked into.
pub fn without_deflate(offers: &str) -> String {
    let mut kept = String::new();
    for offer in offers.split(',').map(str::trim) {
        let name = offer.split(';').next().unwrap_or_default().trim();
        let deflate = name.eq_ignore_ascii_case("permessage-deflate")
            || name.eq_ignore_ascii_case("x-webkit-deflate-frame");
        if !deflate && !offer.is_empty() {
            let separator = if kept.is_empty() { "" } else { ", " };
            let _ = write!(kept, "{separator}{offer}");
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn follows(head: &str) -> Result<Follows, Malformed> {
        parse(head.as_bytes(), &Wanted::default()).map(|response| response.unwrap().follows)
    }

    #[test]
    fn what_follows_a_head() {
        let upgraded = "HTTP/1.1 101 S\r\nUpgrade: WebSocket\r\nConnection: upgrade\r\n\r\n";
        assert_eq!(follows(upgraded), Ok(Follows::Stream));
        assert_eq!(
            follows("HTTP/1.1 101 S\r\nUpgrade: h2c\r\n\r\n"),
            Err(Malformed(Fault::Protocol))
        );
        assert_eq!(follows("HTTP/1.1 103 Early\r\n\r\n"), Ok(Follows::Head));
        assert_eq!(follows("HTTP/1.1 006 Low\r\n\r\n"), Err(Malformed(Fault::Head)));
        assert_eq!(follows("HTTP/1.1 404 No\r\nContent-Length: 7\r\n\r\n"), Ok(Follows::Length(7)));
        let two = "HTTP/1.1 404 No\r\nContent-Length: 7\r\nContent-Length: 8\r\n\r\n";
        assert_eq!(follows(two), Err(Malformed(Fault::Length)));
        assert_eq!(follows("HTTP/1.1 403 No\r\n\r\n"), Ok(Follows::UntilClosed));
        let chunked = "HTTP/1.1 403 No\r\nTransfer-Encoding: chunked\r\n\r\n";
        assert_eq!(follows(chunked), Ok(Follows::Chunked(Chunked::response())));
        assert!(parse(b"HTTP/1.1 101 S\r\nUpgr", &Wanted::default()).unwrap().is_none());
        assert!(parse(b"SSH-2.0-OpenSSH\r\n", &Wanted::default()).is_err());
    }

    #[test]
    fn our_cookies_and_hop_by_hop_fields_are_taken_out() {
        let text = "HTTP/1.1 403 No\r\nConnection: keep-alive\r\nKeep-Alive: 5\r\n\
                    Set-Cookie: __Host-dormouse=evil\r\nSet-Cookie: a=b\r\nX: y\r\n\r\n";
        let head = parse(text.as_bytes(), &Wanted::default()).unwrap().unwrap().head;
        let expected = "HTTP/1.1 403 No\r\nConnection: close\r\nSet-Cookie: a=b\r\nX: y\r\n\r\n";
        assert_eq!(String::from_utf8(head).unwrap(), expected);
    }

    #[test]
    fn deflate_is_not_offered() {
        assert_eq!(without_deflate("permessage-deflate; client_max_window_bits"), "");
        assert_eq!(without_deflate("foo; a=1, Permessage-Deflate, bar"), "foo; a=1, bar");
    }
}
