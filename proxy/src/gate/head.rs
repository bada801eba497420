//! A request head as the gate sees it, whichever engine read it.

use domain::classify;

/// Name and value as they came.
pub type Field<'a> = httparse::Header<'a>;

/// The parts of a request that decisions are made on. Borrowed: making one copies nothing.
#[derive(Debug, Clone, Copy)]
pub struct Head<'a> {
    pub method: &'a str,
    /// Path and query (origin form, RFC 9112, section 3.2.1), forwarded byte for byte.
    pub target: &'a str,
    /// The `Host` field or `:authority`, as it came.
    pub authority: &'a str,
    pub fields: &'a [Field<'a>],
}

/// How the answer should look to whoever asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Audience {
    /// A browser opening a page.
    Navigation,
    /// A browser sending a form, whose answer is a page.
    Submission,
    /// A program, or a script in a page.
    Client,
    /// A WebSocket handshake.
    Upgrade,
}

impl Audience {
    /// Of a head that cannot be read: a guess from its bytes.
    pub fn guess(bytes: &[u8]) -> Self {
        let head = bytes.to_ascii_lowercase();
        let says = |text: &[u8]| memchr::memmem::find(&head, text).is_some();
        match says(b"\nsec-fetch-mode: navigate\r") {
            true if head.starts_with(b"get ") => Self::Navigation,
            true if !head.starts_with(b"head ") => Self::Submission,
            _ => Self::Client,
        }
    }
}

impl<'a> Head<'a> {
    /// Path without the query.
    pub fn path(&self) -> &'a str {
        self.target.split_once('?').map_or(self.target, |(path, _)| path)
    }

    pub fn query(&self) -> &'a str {
        self.target.split_once('?').map_or("", |(_, query)| query)
    }

    pub fn values<'s>(&'s self, name: &'s str) -> impl Iterator<Item = &'a [u8]> + 's {
        let same = move |field: &&Field<'a>| field.name.eq_ignore_ascii_case(name);
        self.fields.iter().filter(same).map(|field| field.value)
    }

    /// The only value of the field; `None` when it is absent, doubled or not text.
    pub fn single(&self, name: &str) -> Option<&'a str> {
        let mut values = self.values(name);
        let value = std::str::from_utf8(values.next()?).ok()?;
        values.next().is_none().then_some(value)
    }

    /// Whether a comma-separated field lists the token, in any case.
    pub fn lists(&self, name: &str, token: &str) -> bool {
        self.values(name).any(|value| {
            value
                .split(|&byte| byte == b',')
                .any(|item| item.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
        })
    }

    /// A WebSocket handshake (RFC 6455, section 4.1).
    pub fn is_upgrade(&self) -> bool {
        self.method == "GET"
            && self.lists("connection", "upgrade")
            && self.lists("upgrade", "websocket")
    }

    pub fn audience(&self) -> Audience {
        if self.is_upgrade() {
            Audience::Upgrade
        } else if self.is_for_a_page() {
            match self.method {
                "GET" => Audience::Navigation,
                "HEAD" | "OPTIONS" => Audience::Client,
                _ => Audience::Submission,
            }
        } else {
            Audience::Client
        }
    }

    /// Browsers say so by `Sec-Fetch-Mode`; without any `Sec-Fetch-*`, whoever wants HTML is one.
    fn is_for_a_page(&self) -> bool {
        match self.single("sec-fetch-mode") {
            Some(mode) => mode.eq_ignore_ascii_case("navigate"),
            None => {
                let fetch_metadata = self.fields.iter().any(|field| {
                    field.name.get(..10).is_some_and(|n| n.eq_ignore_ascii_case("sec-fetch-"))
                });
                !fetch_metadata && self.accepts_html()
            }
        }
    }

    /// A method that promises to change nothing (RFC 9110, section 9.2.1).
    pub fn is_safe(&self) -> bool {
        matches!(self.method, "GET" | "HEAD" | "OPTIONS")
    }

    /// What a browser loads before anybody has asked for it: `Sec-Purpose` (Fetch, section 3.8), and
    /// what came before it.
    pub fn is_prefetch(&self) -> bool {
        let says = |value: &[u8]| value.to_ascii_lowercase().starts_with(b"prefetch");
        let names = ["sec-purpose", "purpose", "x-moz"];
        self.is_safe() && names.iter().any(|name| self.values(name).any(says))
    }

    /// What tells a person from a machine in it. `token`: it brought one of ours.
    pub fn asked(&self, token: bool) -> classify::Request<'a> {
        classify::Request {
            method: self.method,
            path: self.path(),
            query: self.query(),
            navigation: self.audience() == Audience::Navigation,
            token,
            prefetch: self.is_prefetch(),
            dest: self.single("sec-fetch-dest"),
            user: self.single("sec-fetch-user") == Some("?1"),
            reload: self.lists("cache-control", "max-age=0")
                || self.lists("cache-control", "no-cache"),
            tells_user: self.values("sec-ch-ua").next().is_some(),
        }
    }

    /// A question of the browser itself, whether a page of another origin may ask (Fetch, section
    /// 3.3.2): the method that it would use.
    pub fn preflight(&self) -> Option<&'a str> {
        let asked = self.method == "OPTIONS" && self.single("origin").is_some();
        self.single("access-control-request-method").filter(|_| asked)
    }

    fn accepts_html(&self) -> bool {
        self.values("accept").any(|value| {
            value.split(|&byte| byte == b',').any(|item| {
                let kind = item.split(|&byte| byte == b';').next().unwrap_or_default();
                kind.trim_ascii().eq_ignore_ascii_case(b"text/html")
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field<'a>(name: &'a str, value: &'a str) -> Field<'a> {
        Field { name, value: value.as_bytes() }
    }

    fn audience(method: &str, fields: &[Field<'_>]) -> Audience {
        Head { method, target: "/", authority: "a", fields }.audience()
    }

    #[test]
    fn who_is_asking() {
        use Audience::{Client, Navigation, Submission, Upgrade};
        let html = field("Accept", "application/xml, text/html;q=0.9");
        assert_eq!(audience("GET", &[html]), Navigation);
        assert_eq!(audience("POST", &[html]), Submission);
        assert_eq!(audience("POST", &[html, field("Sec-Fetch-Mode", "cors")]), Client);
        assert_eq!(audience("POST", &[field("Sec-Fetch-Mode", "navigate")]), Submission);
        assert_eq!(audience("OPTIONS", &[html]), Client);
        assert_eq!(audience("GET", &[html, field("Sec-Fetch-Mode", "cors")]), Client);
        assert_eq!(audience("GET", &[html, field("Sec-Fetch-Site", "none")]), Client);
        assert_eq!(audience("GET", &[field("Sec-Fetch-Mode", "navigate")]), Navigation);
        assert_eq!(audience("GET", &[field("Accept", "*/*")]), Client);
        let upgrade = [field("Connection", "keep-alive, Upgrade"), field("Upgrade", "WebSocket")];
        assert_eq!(audience("GET", &upgrade), Upgrade);
        assert_eq!(audience("POST", &upgrade), Client);
    }

    #[test]
    fn a_person_whose_head_cannot_be_read_is_guessed() {
        let page = b"GET /a HTTP/1.1\r\nHost: a\r\nSec-Fetch-Mode: navigate\r\nCookie: aaa";
        assert_eq!(Audience::guess(page), Audience::Navigation);
        assert_eq!(Audience::guess(&[b"POST", &page[3..]].concat()), Audience::Submission);
        assert_eq!(Audience::guess(&page[..20]), Audience::Client);
        assert_eq!(Audience::guess(b"\x16\x03\x01"), Audience::Client);
    }

    #[test]
    fn what_nobody_has_asked_for_yet() {
        let prefetch = |method, fields: &[Field<'_>]| {
            Head { method, target: "/", authority: "a", fields }.is_prefetch()
        };
        for (name, value) in [
            ("Sec-Purpose", "prefetch"),
            ("Sec-Purpose", "prefetch;prerender"),
            ("Purpose", "prefetch"),
            ("X-Moz", "Prefetch"),
        ] {
            assert!(prefetch("GET", &[field(name, value)]), "{name}: {value}");
            assert!(!prefetch("POST", &[field(name, value)]), "{name}: {value}");
        }
        assert!(!prefetch("GET", &[field("Sec-Purpose", "partitioned-popins")]));
        assert!(!prefetch("GET", &[]));
    }

    #[test]
    fn what_a_preflight_is() {
        let asks = |method, fields: &[Field<'_>]| {
            Head { method, target: "/", authority: "a", fields }.preflight().map(str::to_owned)
        };
        let origin = field("Origin", "https://front.example");
        let asked = field("Access-Control-Request-Method", "PUT");
        assert_eq!(asks("OPTIONS", &[origin, asked]).as_deref(), Some("PUT"));
        assert_eq!(asks("POST", &[origin, asked]), None);
        assert_eq!(asks("OPTIONS", &[asked]), None);
        assert_eq!(asks("OPTIONS", &[origin]), None);
        assert_eq!(asks("OPTIONS", &[origin, asked, asked]), None);
    }
}
