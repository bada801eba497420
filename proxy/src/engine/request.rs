//! pingora's request, as the gate looks at it.

use std::net::SocketAddr;

use http::{HeaderValue, header};
use pingora::{http::RequestHeader, proxy::Session};

use crate::{
    answer::Refusal,
    front::head::{FIELDS_MAX, NO_SUCH_EXPECTATION},
    gate::head::{Field, Head},
};

/// The parts of pingora's request that a [`Head`] borrows.
pub struct Borrowed<'a> {
    authority: &'a str,
    target: &'a str,
    method: &'a str,
    fields: Vec<Field<'a>>,
}

impl<'a> Borrowed<'a> {
    pub fn of(request: &'a RequestHeader) -> Result<Self, Refusal> {
        let bad = Refusal::BadRequest;
        let target = std::str::from_utf8(request.raw_path())
            .map_err(|_| bad("The request target is not a plain path"))?;
        if !target.starts_with('/') || !target.bytes().all(|b| b.is_ascii_graphic() && b != b'#') {
            return Err(bad("The request target is not a plain path"));
        }
        let mut hosts = request.headers.get_all(header::HOST).iter();
        let host = hosts.next().map(HeaderValue::to_str).transpose();
        let host = host.map_err(|_| bad("The Host header is malformed"))?;
        let authority = request.uri.authority().map(|authority| authority.as_str());
        let same = host.is_none() || authority.is_none() || host == authority;
        if hosts.next().is_some() || !same {
            return Err(bad("There are two hosts"));
        }
        let authority = authority.or(host).ok_or(bad("There is no Host header"))?;
        let mut expectations = request.headers.get_all(header::EXPECT).iter();
        let plain = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"100-continue");
        if expectations.next().is_some_and(|value| !plain(value)) || expectations.next().is_some() {
            return Err(bad(NO_SUCH_EXPECTATION));
        }
        if request.headers.len() > FIELDS_MAX {
            return Err(Refusal::HeadTooLarge);
        }
        let fields = request
            .headers
            .iter()
            .map(|(name, value)| Field { name: name.as_str(), value: value.as_bytes() })
            .collect();
        Ok(Self { authority, target, method: request.method.as_str(), fields })
    }

    pub fn head(&self) -> Head<'_> {
        let Self { authority, target, method, fields } = self;
        Head { method, target, authority, fields }
    }
}

/// Who asks; no address where it is not known.
pub fn client(session: &Session) -> SocketAddr {
    let address = session.client_addr().and_then(|address| address.as_inet());
    address.copied().unwrap_or(SocketAddr::from(([0, 0, 0, 0], 0)))
}

/// The host as the request names it, for the log.
pub fn host_of(request: &RequestHeader) -> &str {
    let host = request.uri.authority().map(|authority| authority.as_str());
    let host = host.or_else(|| request.headers.get(header::HOST)?.to_str().ok());
    host.unwrap_or_default()
}
