//! The strictest reading of an HTTP/1.1 request head (RFC 9112): whatever two programs could read in
//! two ways is refused.

use crate::{
    answer::Refusal,
    gate::head::{Field, Head},
};

/// Most fields of a head.
pub const FIELDS_MAX: usize = 100;

/// Some servers take any text with `100-continue` in it for the expectation, and answer before the body.
pub const NO_SUCH_EXPECTATION: &str = "The only expectation is 100-continue";

/// How the body is delimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyFraming {
    /// Exactly so many bytes; 0 without a body.
    Length(u64),
    Chunked,
}

/// A well-formed request head at the start of a buffer.
#[derive(Debug, Clone, Copy)]
pub struct Parsed<'a> {
    pub head: Head<'a>,
    pub body: BodyFraming,
    /// HTTP/1.1, not 1.0.
    pub http_11: bool,
}

/// Length of the head at the start of `bytes` with its empty line, `None` while there is more to
/// come. Bad line ends are found as soon as they are there, so that nobody keeps us waiting with them.
pub fn length(bytes: &[u8], max: usize) -> Result<Option<usize>, Refusal> {
    let looked_at = bytes.get(..max).unwrap_or(bytes);
    let mut at = 0;
    let special = |rest| memchr::memchr3(b'\r', b'\n', 0, rest);
    while let Some(found) = looked_at.get(at..).and_then(special) {
        let here = at + found;
        match (looked_at.get(here), looked_at.get(here + 1), looked_at.get(here + 2)) {
            (Some(b'\r'), Some(b'\n'), next) => {
                if here == 0 {
                    return Err(bad("The request begins with an empty line"));
                }
                match next {
                    Some(b'\r') if looked_at.get(here + 3) == Some(&b'\n') => {
                        return Ok(Some(here + 4));
                    }
                    Some(b' ' | b'\t') => return Err(bad("A header line is folded")),
                    _ => at = here + 2,
                }
            }
            (Some(b'\r'), None, _) => break,
            (Some(b'\r'), ..) => return Err(bad("A carriage return stands alone")),
            (Some(b'\n'), ..) => return Err(bad("A line ends without a carriage return")),
            _ => return Err(bad("There is a NUL in the head")),
        }
    }
    if bytes.len() >= max { Err(Refusal::HeadTooLarge) } else { Ok(None) }
}

fn bad(why: &'static str) -> Refusal {
    Refusal::BadRequest(why)
}

/// Parses a head whose extent [`length`] has found. `fields` is room for them.
pub fn parse<'a>(bytes: &'a [u8], fields: &'a mut [Field<'a>]) -> Result<Parsed<'a>, Refusal> {
    let mut request = httparse::Request::new(fields);
    match request.parse(bytes) {
        Ok(httparse::Status::Complete(length)) if length == bytes.len() => {}
        Ok(_) => return Err(bad("The request head is malformed")),
        Err(httparse::Error::TooManyHeaders) => return Err(Refusal::HeadTooLarge),
        Err(_) => return Err(bad("The request head is malformed")),
    }
    let (method, target) = (request.method.unwrap_or_default(), request.path.unwrap_or_default());
    let http_11 = request.version == Some(1);
    let fields: &'a [Field<'a>] = request.headers;
    if matches!(method, "CONNECT" | "TRACE") {
        return Err(Refusal::MethodNotAllowed);
    }
    // Origin form only: an absolute target would name a host besides `Host`.
    if !target.starts_with('/') || !target.bytes().all(|b| b.is_ascii_graphic() && b != b'#') {
        return Err(bad("The request target is not a plain path"));
    }
    let mut head = Head { method, target, authority: "", fields };
    if fields.iter().any(|field| field.name.is_empty()) {
        return Err(bad("A header has no name"));
    }
    let mut hosts = head.values("host");
    let host = hosts.next().and_then(|host| std::str::from_utf8(host).ok());
    let host = host.ok_or(bad("There is no Host header"))?;
    if hosts.next().is_some() {
        return Err(bad("There are two Host headers"));
    }
    drop(hosts);
    // Whatever else is not a host's, no engine gets to interpret, or to answer in its own words.
    if !host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b':')) {
        return Err(bad("The Host header is malformed"));
    }
    head.authority = host;
    let mut expectations = head.values("expect");
    let plain = |value: &[u8]| value.eq_ignore_ascii_case(b"100-continue");
    if expectations.next().is_some_and(|value| !plain(value)) || expectations.next().is_some() {
        return Err(bad(NO_SUCH_EXPECTATION));
    }
    drop(expectations);
    let body = framing(&head, http_11)?;
    Ok(Parsed { head, body, http_11 })
}

fn framing(head: &Head<'_>, http_11: bool) -> Result<BodyFraming, Refusal> {
    let mut lengths = head.values("content-length");
    let mut codings = head.values("transfer-encoding");
    let (length, coding) = (lengths.next(), codings.next());
    if lengths.next().is_some() || codings.next().is_some() {
        return Err(bad("The body's framing is given twice"));
    }
    match (length, coding) {
        (None, None) => Ok(BodyFraming::Length(0)),
        (Some(_), Some(_)) => Err(bad("There are both Content-Length and Transfer-Encoding")),
        (Some(length), None) => {
            let digits = (1..=15).contains(&length.len()) && length.iter().all(u8::is_ascii_digit);
            let length = std::str::from_utf8(length).ok().filter(|_| digits);
            let length = length.and_then(|length| length.parse().ok());
            length.map(BodyFraming::Length).ok_or(bad("The Content-Length is malformed"))
        }
        (None, Some(coding)) if http_11 && coding.eq_ignore_ascii_case(b"chunked") => {
            Ok(BodyFraming::Chunked)
        }
        (None, Some(_)) => Err(bad("The only transfer coding is chunked, with HTTP/1.1")),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(text: &str) -> Result<Option<(String, BodyFraming)>, Refusal> {
        let Some(length) = length(text.as_bytes(), 4096)? else { return Ok(None) };
        let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
        let parsed = parse(&text.as_bytes()[..length], &mut fields)?;
        Ok(Some((parsed.head.target.to_owned(), parsed.body)))
    }

    fn refused(text: &str) -> bool {
        matches!(read(text), Err(Refusal::BadRequest(_)))
    }

    #[test]
    fn a_plain_head() {
        let text = "GET /a?b HTTP/1.1\r\nHost: h\r\nContent-Length: 12\r\n\r\nbody";
        let expected = Some(("/a?b".to_owned(), BodyFraming::Length(12)));
        assert_eq!(read(text), Ok(expected));
        for end in 1..text.len() - 4 {
            assert_eq!(read(&text[..end]), Ok(None), "{end}");
        }
        let chunked = "POST / HTTP/1.1\r\nhost: h\r\ntransfer-encoding: Chunked\r\n\r\n";
        assert_eq!(read(chunked), Ok(Some(("/".to_owned(), BodyFraming::Chunked))));
    }

    #[test]
    fn attack_4_paths_are_kept_byte_for_byte() {
        for path in ["/a/%2e%2e/b", "//a", "/./a", "/a%2fb", "/a%00b", "/%2edormouse/wake"] {
            let text = format!("GET {path} HTTP/1.1\r\nHost: h\r\n\r\n");
            assert_eq!(read(&text).unwrap().unwrap().0, path);
        }
        assert!(refused("GET /a\0b HTTP/1.1\r\nHost: h\r\n\r\n"));
    }

    #[test]
    fn attack_5_two_hosts_or_absolute_targets() {
        for head in [
            "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nhost: a\r\n\r\n",
            "GET / HTTP/1.1\r\n\r\n",
            "GET http://evil/ HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /#x HTTP/1.1\r\nHost: a\r\n\r\n",
            "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
        ] {
            assert!(refused(head), "{head:?}");
        }
    }

    #[test]
    fn attack_7_request_smuggling() {
        let with = |fields: &str| format!("POST / HTTP/1.1\r\nHost: h\r\n{fields}\r\n\r\n");
        for fields in [
            "Content-Length: 3\r\nTransfer-Encoding: chunked",
            "Content-Length: 3\r\nContent-Length: 4",
            "Content-Length: 3\r\nContent-Length: 3",
            "Content-Length: 3, 3",
            "Content-Length: +3",
            "Content-Length: 0x3",
            "Content-Length: ",
            "Content-Length: 1 2",
            "Content-Length: 99999999999999999999",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
            "Transfer-Encoding: gzip, chunked",
            "Transfer-Encoding: chunked, identity",
            "Transfer-Encoding: xchunked",
            "Transfer-Encoding: \"chunked\"",
            "Transfer-Encoding : chunked",
            "Content-Length : 3",
            "X: a\r\n folded",
            "X: a\r\n\tfolded",
            "X: a\nTransfer-Encoding: chunked",
            "X: a\rTransfer-Encoding: chunked",
            "X: a\0b",
            ": nameless",
            "no colon",
            "X\u{b}: a",
        ] {
            assert!(refused(&with(fields)), "{fields:?}");
        }
        assert!(refused("\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n"));
        assert!(refused("GET / HTTP/1.1\nHost: h\n\n"));
        assert!(refused("GET / HTTP/2.0\r\nHost: h\r\n\r\n"));
        assert!(refused("GET /  HTTP/1.1\r\nHost: h\r\n\r\n"));
        assert!(refused("POST / HTTP/1.0\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"));
    }

    #[test]
    fn attack_7_expectations_that_some_take_for_another() {
        let with = |fields: &str| format!("POST / HTTP/1.1\r\nHost: h\r\n{fields}\r\n\r\n");
        assert!(read(&with("Expect: 100-Continue")).is_ok());
        for fields in [
            "Expect: y 100-continue",
            "Expect: 100-continue, y",
            "Expect: 100-continue\r\nExpect: 100-continue",
            "Expect:",
            "Expect: 200-ok",
        ] {
            assert!(refused(&with(fields)), "{fields:?}");
        }
    }

    #[test]
    fn attack_7_header_floods() {
        let many = "X: y\r\n".repeat(FIELDS_MAX);
        let text = format!("GET / HTTP/1.1\r\nHost: h\r\n{many}\r\n");
        assert_eq!(read(&text), Err(Refusal::HeadTooLarge));
        let long = format!("GET / HTTP/1.1\r\nHost: h\r\nX: {}", "y".repeat(5000));
        assert_eq!(read(&long), Err(Refusal::HeadTooLarge));
    }

    proptest! {
        #[test]
        fn any_bytes_are_refused_or_read(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(Some(length)) = length(&bytes, 150) {
                prop_assert!(length <= 150);
                let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
                let _ = parse(&bytes[..length], &mut fields);
            }
        }

        #[test]
        fn what_is_accepted_has_one_host_and_one_framing(
            lines in prop::collection::vec(
                prop::sample::select(vec![
                    "Host: a", "Host: b", "Content-Length: 1", "Content-Length: 2",
                    "Transfer-Encoding: chunked", "X: y", " X: y",
                ]), 0..5),
        ) {
            let text = format!("POST / HTTP/1.1\r\n{}\r\n\r\n", lines.join("\r\n"));
            let count = |start: &str| lines.iter().filter(|line| line.starts_with(start)).count();
            if let Ok(Some(_)) = read(&text) {
                prop_assert_eq!(count("Host"), 1);
                prop_assert!(count("Content-Length") + count("Transfer-Encoding") <= 1);
                prop_assert_eq!(count(" "), 0);
            }
        }
    }
}
