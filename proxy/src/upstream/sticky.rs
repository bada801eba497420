//! The cookie that keeps a browser with one pod. It names the pod by a keyed hash: it means nothing
//! to anybody else, is the same in every replica of the gateway, and ends with the browser.

use aws_lc_rs::hmac;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use domain::{endpoint::Endpoint, workload::WorkloadRef};

use crate::gate::{credential::cookie, head::Head};

/// Of our family of names, so that it reaches no workload and none can set it.
pub const COOKIE: &str = "__Host-dormouse-pod";

pub type Tag = [u8; 16];

#[derive(Debug)]
pub struct Namer(hmac::Key);

impl Namer {
    /// From a secret that all replicas share.
    pub fn new(secret: &[u8]) -> Self {
        let secret = hmac::Key::new(hmac::HMAC_SHA256, secret);
        let derived = hmac::sign(&secret, b"dormouse sticky pods");
        Self(hmac::Key::new(hmac::HMAC_SHA256, derived.as_ref()))
    }

    pub fn tag(&self, workload: &WorkloadRef, endpoint: &Endpoint) -> Tag {
        endpoint.load().tag(|| {
            let pod = endpoint.pod().unwrap_or_default();
            let text = format!("{workload}\n{}\n{pod}", endpoint.address());
            let mut tag = Tag::default();
            let whole = hmac::sign(&self.0, text.as_bytes());
            tag.iter_mut().zip(whole.as_ref()).for_each(|(to, from)| *to = *from);
            tag
        })
    }
}

/// What a request brings. Anything but one well-formed cookie counts as none.
pub fn read(head: &Head<'_>) -> Option<Tag> {
    let value = cookie(head, COOKIE).ok()??;
    URL_SAFE_NO_PAD.decode(value).ok()?.try_into().ok()
}

pub fn set(tag: &Tag) -> String {
    let value = URL_SAFE_NO_PAD.encode(tag);
    format!("{COOKIE}={value}; Path=/; Secure; HttpOnly; SameSite=Lax")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gate::head::Field;

    fn read_from(cookies: &[&str]) -> Option<Tag> {
        let fields: Vec<_> =
            cookies.iter().map(|c| Field { name: "cookie", value: c.as_bytes() }).collect();
        read(&Head { method: "GET", target: "/", authority: "a", fields: &fields })
    }

    #[test]
    fn a_cookie_comes_back_as_it_was_set() {
        let set = set(&[7; 16]);
        let pair = set.split(';').next().unwrap();
        assert_eq!(read_from(&[&format!("a=1; {pair}")]), Some([7; 16]));
        assert_eq!(read_from(&[pair, pair]), None, "doubled");
        assert_eq!(read_from(&[&format!("{COOKIE}=AAAA")]), None, "too short");
        assert_eq!(read_from(&["a=1"]), None);
        assert!(crate::gate::credential::is_our_cookie(COOKIE.as_bytes()));
    }
}
