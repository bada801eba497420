//! Whether an answer ends where everybody thinks it does (RFC 9112, section 6). pingora passes on what
//! it does not know, and leaves the client to guess.

use http::{HeaderValue, StatusCode, Version, header};
use pingora::http::ResponseHeader;

use crate::{
    answer::Fault,
    lane::{ANSWER_FIELDS_MAX, ANSWER_HEAD_MAX, answer_length},
};

/// What is wrong with an answer, if anything.
pub fn fault(response: &ResponseHeader, bodiless: bool) -> Option<Fault> {
    if response.status == StatusCode::SWITCHING_PROTOCOLS {
        // Upgrades are the tunnel's.
        Some(Fault::Protocol)
    } else if !is_bounded(response) {
        Some(Fault::Size)
    } else if is_clear(response, bodiless) {
        None
    } else {
        let mut lengths = response.headers.get_all(header::CONTENT_LENGTH).iter();
        let good = lengths.next().is_none_or(|length| answer_length(length.as_bytes()).is_ok());
        Some(if good && lengths.next().is_none() { Fault::Coding } else { Fault::Length })
    }
}

/// At most one length, a number, and at most one coding: with a body, the chunked one of HTTP/1.1.
/// `bodiless` for answers that have none, whatever their fields say.
fn is_clear(response: &ResponseHeader, bodiless: bool) -> bool {
    let values = |name| response.headers.get_all(name).iter().map(HeaderValue::as_bytes);
    let mut lengths = values(header::CONTENT_LENGTH);
    let mut codings = values(header::TRANSFER_ENCODING);
    let known = |coding: &[u8]| {
        bodiless || response.version != Version::HTTP_10 && coding.eq_ignore_ascii_case(b"chunked")
    };
    lengths.next().is_none_or(|length| answer_length(length).is_ok())
        && codings.next().is_none_or(known)
        && lengths.next().is_none()
        && codings.next().is_none()
}

/// Whether the head is one that the fast lane would take, as far as can be told: white space is gone.
fn is_bounded(response: &ResponseHeader) -> bool {
    let fields = response.headers.iter();
    let length: usize = fields.map(|(name, value)| name.as_str().len() + value.len() + 3).sum();
    length <= ANSWER_HEAD_MAX && response.headers.len() <= ANSWER_FIELDS_MAX
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clear(fields: &[(&str, &str)], version: Version, bodiless: bool) -> bool {
        let mut response = ResponseHeader::build(200, None).unwrap();
        response.set_version(version);
        for (name, value) in fields {
            response.append_header((*name).to_owned(), *value).unwrap();
        }
        is_clear(&response, bodiless)
    }

    #[test]
    fn heads_are_bounded() {
        let with = |count: usize, length: usize| {
            let mut response = ResponseHeader::build(200, None).unwrap();
            for _ in 0..count {
                response.append_header("x", "y".repeat(length)).unwrap();
            }
            is_bounded(&response)
        };
        assert!(with(ANSWER_FIELDS_MAX, 100) && with(3, 20_000));
        assert!(!with(ANSWER_FIELDS_MAX + 1, 1) && !with(4, 20_000));
    }

    #[test]
    fn attack_7_answers_that_could_be_read_in_two_ways() {
        let now = |fields: &[(&str, &str)]| clear(fields, Version::HTTP_11, false);
        let (length, coding) = ("content-length", "transfer-encoding");
        for good in [
            &[][..],
            &[(length, "5")],
            &[(coding, "Chunked")],
            &[(coding, "chunked"), (length, "5")],
        ] {
            assert!(now(good), "{good:?}");
        }
        for bad in [
            &[(length, "5"), (length, "5")][..],
            &[(length, "5, 5")],
            &[(length, "+5")],
            &[(length, "")],
            &[(length, "1234567890123456789")],
            &[(coding, "gzip")],
            &[(coding, "gzip, chunked")],
            &[(coding, "chunked"), (coding, "chunked")],
        ] {
            assert!(!now(bad), "{bad:?}");
        }
        assert!(!clear(&[(coding, "chunked")], Version::HTTP_10, false));
        assert!(clear(&[(coding, "gzip")], Version::HTTP_11, true));
    }
}
