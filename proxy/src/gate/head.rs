//! A request head as the gate sees it, whichever engine read it.

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
    /// A program, or a script in a page.
    Client,
    /// A WebSocket handshake.
    Upgrade,
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
        } else if self.is_navigation() {
            Audience::Navigation
        } else {
            Audience::Client
        }
    }

    /// Browsers say so by `Sec-Fetch-Mode`; without any `Sec-Fetch-*`, whoever wants HTML is one.
    fn is_navigation(&self) -> bool {
        if self.method != "GET" {
            return false;
        }
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
        use Audience::{Client, Navigation, Upgrade};
        let html = field("Accept", "application/xml, text/html;q=0.9");
        assert_eq!(audience("GET", &[html]), Navigation);
        assert_eq!(audience("POST", &[html]), Client);
        assert_eq!(audience("GET", &[html, field("Sec-Fetch-Mode", "cors")]), Client);
        assert_eq!(audience("GET", &[html, field("Sec-Fetch-Site", "none")]), Client);
        assert_eq!(audience("GET", &[field("Sec-Fetch-Mode", "navigate")]), Navigation);
        assert_eq!(audience("GET", &[field("Accept", "*/*")]), Client);
        let upgrade = [field("Connection", "keep-alive, Upgrade"), field("Upgrade", "WebSocket")];
        assert_eq!(audience("GET", &upgrade), Upgrade);
        assert_eq!(audience("POST", &upgrade), Client);
    }
}
