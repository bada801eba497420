//! The head of an upstream's answer: read strictly, and written anew for the client.

use std::mem::MaybeUninit;

use bytes::{BufMut, BytesMut};
use http::HeaderValue;
use jiff::Timestamp;

use crate::{
    answer::Fault,
    date,
    front::chunked::Chunked,
    gate::{Admitted, scrub},
};

/// Longest head of an answer, in bytes.
pub const HEAD_MAX: usize = 64 * 1024;
/// Most fields of it.
pub const FIELDS_MAX: usize = 200;
const HSTS: &str = "Strict-Transport-Security";

/// How the body is delimited on its way from the upstream (RFC 9112, section 6.3).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Follows {
    /// An interim answer: another head.
    Head,
    Length(u64),
    Chunked(Chunked),
    /// By the end of the connection. The client gets chunks, so that it can tell an end from a break.
    UntilClosed,
}

/// What the client must be told besides, and what it can take.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// It asked with HEAD: no body follows, whatever the fields say.
    pub head_only: bool,
    /// From a service of ours, which may set our cookies.
    pub keep_cookies: bool,
    /// What is said besides: the gate's fields, and the cookie of the chosen pod.
    pub admitted: Option<&'a Admitted>,
    pub sticky: Option<&'a str>,
    /// For how long to come by HTTPS only. A workload's own word would be about the whole host.
    pub hsts: Option<&'a HeaderValue>,
    /// The client's connection stays open afterwards.
    pub keep_alive: bool,
}

#[derive(Debug, PartialEq, Eq)]
pub struct Head {
    pub status: u16,
    /// Bytes of the head in the buffer.
    pub length: usize,
    pub follows: Follows,
    /// The upstream's connection may be used again after the body.
    pub reusable: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the answer is malformed")]
pub struct Malformed(pub Fault);

type Field<'a> = httparse::Header<'a>;

/// Reads the head at the start of `bytes`; `None` while it is incomplete. Appends to `out` the head
/// for the client, nothing if it is an interim one.
pub fn read(
    bytes: &[u8],
    wanted: &Wanted<'_>,
    out: &mut BytesMut,
) -> Result<Option<Head>, Malformed> {
    let mut fields = [const { MaybeUninit::uninit() }; FIELDS_MAX];
    let mut response = httparse::Response::new(&mut []);
    let parsed = httparse::ParserConfig::default().parse_response_with_uninit_headers(
        &mut response,
        bytes,
        &mut fields,
    );
    let length = match parsed {
        Ok(httparse::Status::Complete(length)) if length <= HEAD_MAX => length,
        Ok(httparse::Status::Partial) if bytes.len() < HEAD_MAX => return Ok(None),
        Ok(_) | Err(httparse::Error::TooManyHeaders) => return Err(Malformed(Fault::Size)),
        Err(_) => return Err(Malformed(Fault::Head)),
    };
    let status = response.code.unwrap_or_default();
    // Nobody asked for another protocol.
    if status < 100 || status == 101 {
        return Err(Malformed(if status == 101 { Fault::Protocol } else { Fault::Head }));
    }
    let http_11 = response.version == Some(1);
    let fields = &*response.headers;
    let seen = Seen::look(fields)?;
    let interim = status < 200;
    let bodiless = wanted.head_only || matches!(status, 204 | 304);
    let mut reusable = match seen.connection {
        Connection::Unsaid => http_11,
        Connection::KeepAlive => true,
        Connection::Close => false,
    };
    let follows = match (interim, bodiless, seen.coding, seen.length) {
        (true, ..) => Follows::Head,
        (false, true, ..) => Follows::Length(0),
        (false, false, Some(coding), length) => {
            if !http_11 || !coding.eq_ignore_ascii_case(b"chunked") {
                return Err(Malformed(Fault::Coding));
            }
            // Two framings: the chunks count (RFC 9112, section 6.3), and then nothing more.
            reusable &= length.is_none();
            Follows::Chunked(Chunked::response())
        }
        (false, false, None, Some(length)) => Follows::Length(length),
        (false, false, None, None) => {
            reusable = false;
            Follows::UntilClosed
        }
    };

    if interim {
        // Many HTTP/1.1 clients take an answer that they did not ask for as the final one (RFC 8297,
        // section 3), and the next one for that of their next request.
        return Ok(Some(Head { status, length, follows, reusable }));
    }
    out.reserve(length + 256);
    out.put_slice(b"HTTP/1.1 ");
    put_number(out, u64::from(status));
    out.put_u8(b' ');
    out.put_slice(response.reason.unwrap_or_default().as_bytes());
    out.put_slice(b"\r\n");
    for field in fields {
        if passes(field, fields, &seen, wanted) {
            let location = wanted.admitted.filter(|_| field.name.eq_ignore_ascii_case("location"));
            let moved = location.and_then(|admitted| admitted.location(field.value));
            put_field(out, field.name, moved.as_deref().unwrap_or(field.value));
        }
    }
    if follows == Follows::UntilClosed {
        out.put_slice(b"Transfer-Encoding: chunked\r\n");
    }
    if let Some(hsts) = wanted.hsts {
        put_field(out, HSTS, hsts.as_bytes());
    }
    for (name, value) in wanted.admitted.iter().flat_map(|admitted| admitted.besides.fields()) {
        put_field(out, name, value.as_bytes());
    }
    if let Some(cookie) = wanted.sticky {
        put_field(out, "Set-Cookie", cookie.as_bytes());
    }
    if !seen.date {
        put_date(out);
    }
    let connection: &[u8] = match wanted.keep_alive {
        true => b"Connection: keep-alive\r\n",
        false => b"Connection: close\r\n",
    };
    out.put_slice(connection);
    out.put_slice(b"\r\n");
    Ok(Some(Head { status, length, follows, reusable }))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Connection {
    Unsaid,
    KeepAlive,
    Close,
}

/// What the fields say about the connection and the body.
struct Seen<'a> {
    connection: Connection,
    /// `Connection` names other fields.
    nominates: bool,
    coding: Option<&'a [u8]>,
    length: Option<u64>,
    date: bool,
}

impl<'a> Seen<'a> {
    fn look(fields: &[Field<'a>]) -> Result<Self, Malformed> {
        let mut seen = Self {
            connection: Connection::Unsaid,
            nominates: false,
            coding: None,
            length: None,
            date: false,
        };
        for field in fields {
            let is = |name: &str| field.name.eq_ignore_ascii_case(name);
            match field.name.len() {
                4 if is("date") => seen.date = true,
                10 if is("connection") => {
                    for option in scrub::options(field.value) {
                        if option.eq_ignore_ascii_case(b"close") {
                            seen.connection = Connection::Close;
                        } else if !option.eq_ignore_ascii_case(b"keep-alive") {
                            seen.nominates = true;
                        } else if seen.connection == Connection::Unsaid {
                            seen.connection = Connection::KeepAlive;
                        }
                    }
                }
                14 if is("content-length")
                    && seen.length.replace(number(field.value)?).is_some() =>
                {
                    return Err(Malformed(Fault::Length));
                }
                17 if is("transfer-encoding") && seen.coding.replace(field.value).is_some() => {
                    return Err(Malformed(Fault::Coding));
                }
                _ => {}
            }
        }
        Ok(seen)
    }
}

fn passes(field: &Field<'_>, all: &[Field<'_>], seen: &Seen<'_>, wanted: &Wanted<'_>) -> bool {
    let cookie = field.name.len() == 10 && field.name.eq_ignore_ascii_case("set-cookie");
    if cookie && !wanted.keep_cookies && !scrub::keeps_set_cookie(field.value) {
        return false;
    }
    if wanted.hsts.is_some() && field.name.eq_ignore_ascii_case(HSTS) {
        return false;
    }
    // The framing is not the sender's to take away.
    if field.name.eq_ignore_ascii_case("content-length") {
        return seen.coding.is_none();
    }
    let options = || {
        let values = all.iter().filter(|other| other.name.eq_ignore_ascii_case("connection"));
        values.flat_map(|other| scrub::options(other.value))
    };
    !match seen.nominates {
        true => scrub::answer_ends_here(field.name, &mut options()),
        false => scrub::answer_ends_here(field.name, &mut std::iter::empty()),
    }
}

/// A `Content-Length`: one number that fits.
pub fn number(digits: &[u8]) -> Result<u64, Malformed> {
    if !(1..=18).contains(&digits.len()) {
        return Err(Malformed(Fault::Length));
    }
    digits.iter().try_fold(0, |number: u64, digit| {
        let digit = digit.is_ascii_digit().then(|| digit - b'0').ok_or(Malformed(Fault::Length))?;
        Ok(number * 10 + u64::from(digit))
    })
}

pub fn put_field(out: &mut BytesMut, name: &str, value: &[u8]) {
    out.reserve(name.len() + value.len() + 4);
    out.put_slice(name.as_bytes());
    out.put_slice(b": ");
    out.put_slice(value);
    out.put_slice(b"\r\n");
}

fn put_number(out: &mut BytesMut, number: u64) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    let mut left = number;
    while let Some(before) = at.checked_sub(1) {
        if let (Some(digit), Ok(value)) = (digits.get_mut(before), u8::try_from(left % 10)) {
            *digit = b'0' + value;
        }
        at = before;
        left /= 10;
        if left == 0 {
            break;
        }
    }
    out.put_slice(digits.get(at..).unwrap_or_default());
}

/// A recipient with a clock that passes an answer on says when, if nobody did (RFC 9110, 6.6.1).
fn put_date(out: &mut BytesMut) {
    date::with(Timestamp::now(), |date| put_field(out, "Date", date.as_bytes()));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const WANTED: Wanted<'_> = Wanted {
        head_only: false,
        keep_cookies: false,
        admitted: None,
        sticky: None,
        hsts: None,
        keep_alive: true,
    };

    fn follows(fields: &str) -> Result<(Follows, bool), Malformed> {
        let text = format!("HTTP/1.1 200 OK\r\n{fields}\r\n");
        let head = read(text.as_bytes(), &WANTED, &mut BytesMut::new())?.unwrap();
        Ok((head.follows, head.reusable))
    }

    fn written(text: &str, wanted: Wanted<'_>) -> String {
        let mut out = BytesMut::new();
        read(text.as_bytes(), &wanted, &mut out).unwrap().unwrap();
        String::from_utf8(out.to_vec()).unwrap()
    }

    #[test]
    fn how_a_body_ends() {
        let chunked = || Follows::Chunked(Chunked::response());
        assert_eq!(follows("Content-Length: 7\r\n"), Ok((Follows::Length(7), true)));
        assert_eq!(follows("Transfer-Encoding: Chunked\r\n"), Ok((chunked(), true)));
        let both = "Content-Length: 7\r\nTransfer-Encoding: chunked\r\n";
        assert_eq!(follows(both), Ok((chunked(), false)));
        assert_eq!(follows(""), Ok((Follows::UntilClosed, false)));
        assert!(!follows("Content-Length: 7\r\nConnection: x, Close\r\n").unwrap().1);
        for bad in [
            "Content-Length: 7\r\nContent-Length: 7\r\n",
            "Content-Length: 7, 7\r\n",
            "Content-Length: +7\r\n",
            "Content-Length: \r\n",
            "Content-Length: 1234567890123456789\r\n",
            "Transfer-Encoding: gzip, chunked\r\n",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            "Content-Length : 7\r\n",
            "X: y\r\n z\r\n",
        ] {
            assert!(follows(bad).is_err(), "{bad:?}");
        }
        let read = |text: &str, wanted: Wanted<'_>| {
            read(text.as_bytes(), &wanted, &mut BytesMut::new())
                .map(|head| head.map(|head| (head.follows, head.reusable)))
        };
        let head_only = Wanted { head_only: true, ..WANTED };
        let text = "HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n";
        assert_eq!(read(text, head_only), Ok(Some((Follows::Length(0), true))));
        let not_modified = "HTTP/1.1 304 N\r\nTransfer-Encoding: chunked\r\n\r\n";
        assert_eq!(read(not_modified, WANTED), Ok(Some((Follows::Length(0), true))));
        let old = "HTTP/1.0 200 OK\r\nContent-Length: 7\r\n\r\n";
        assert_eq!(read(old, WANTED), Ok(Some((Follows::Length(7), false))));
        assert_eq!(read("HTTP/1.1 103 E\r\n\r\n", WANTED).unwrap().unwrap().0, Follows::Head);
        assert_eq!(
            read("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", WANTED),
            Err(Malformed(Fault::Coding))
        );
        assert_eq!(
            read("HTTP/1.1 101 S\r\nUpgrade: websocket\r\n\r\n", WANTED),
            Err(Malformed(Fault::Protocol))
        );
        assert_eq!(read("SSH-2.0-OpenSSH\r\n", WANTED), Err(Malformed(Fault::Head)));
        assert_eq!(read("HTTP/1.1 200 OK\r\nX: y\r\n", WANTED), Ok(None));
    }

    #[test]
    fn what_the_client_gets() {
        let text = "HTTP/1.1 403 No\r\nConnection: keep-alive, X-Hop\r\nKeep-Alive: 5\r\n\
                    X_Hop: 1\r\nstrict-transport-security: max-age=0\r\nUpgrade: h2c\r\nSet-Cookie: __Host-dormouse=evil\r\nDate: now\r\n\
                    Set-Cookie: a=b\r\nContent-Length: 0\r\nX: y\r\n\r\n";
        let hsts = HeaderValue::from_static("max-age=1");
        let out = written(text, Wanted { sticky: Some("pod=1"), hsts: Some(&hsts), ..WANTED });
        let expected = "HTTP/1.1 403 No\r\nDate: now\r\nSet-Cookie: a=b\r\nContent-Length: 0\r\nX: y\r\n\
                        Strict-Transport-Security: max-age=1\r\nSet-Cookie: pod=1\r\nConnection: keep-alive\r\n\r\n";
        assert_eq!(out, expected);
        let early = written("HTTP/1.1 103 Early\r\nLink: a\r\nConnection: x\r\n\r\n", WANTED);
        assert_eq!(early, "", "interim answers end here");
        let open = written("HTTP/1.0 200 OK\r\n\r\n", Wanted { keep_alive: false, ..WANTED });
        let (start, date) = open.split_once("Date: ").unwrap();
        assert_eq!(start, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n");
        assert!(date.ends_with(" GMT\r\nConnection: close\r\n\r\n"), "{date}");
        let both = "HTTP/1.1 200 OK\r\nContent-Length: 7\r\nTransfer-Encoding: chunked\r\n\r\n";
        assert!(!written(both, WANTED).contains("Length"));
    }

    proptest! {
        #[test]
        fn whatever_comes_the_head_that_leaves_is_whole(
            bytes in prop::collection::vec(any::<u8>(), 0..200),
            fields in prop::collection::vec(prop::sample::select(vec![
                "Content-Length: 5", "Transfer-Encoding: chunked", "Connection: close, content-length",
                "X:\ty", "Set-Cookie: __host-dormouse=1", "Keep-Alive: 1", "A: b\rc", "A: b\nc",
            ]), 0..5),
        ) {
            let mut text = b"HTTP/1.1 200 OK\r\n".to_vec();
            text.extend(fields.iter().flat_map(|field| [field.as_bytes(), b"\r\n"].concat()));
            text.extend(&bytes);
            text.extend(b"\r\n\r\n");
            let mut out = BytesMut::new();
            if let Ok(Some(_)) = read(&text, &WANTED, &mut out) {
                let mut fields = [httparse::EMPTY_HEADER; 64];
                let mut response = httparse::Response::new(&mut fields);
                prop_assert_eq!(response.parse(&out), Ok(httparse::Status::Complete(out.len())));
                let count = |name: &str| response.headers.iter().filter(|f| f.name.eq_ignore_ascii_case(name)).count();
                prop_assert_eq!(count("content-length") + count("transfer-encoding"), 1);
                prop_assert_eq!(count("connection"), 1);
                prop_assert!(!out.to_ascii_lowercase().windows(15).any(|w| w == b"__host-dormouse"));
            }
        }

        #[test]
        fn numbers_are_written_as_they_are(number: u64) {
            let mut out = BytesMut::new();
            put_number(&mut out, number);
            let text = number.to_string();
            prop_assert_eq!(&out[..], text.as_bytes());
        }
    }
}
