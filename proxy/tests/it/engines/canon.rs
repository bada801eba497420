//! Messages without what means nothing.

use crate::world::find;

/// A message as both sides of a comparison understand it. Bytes are written as the characters of the
/// same numbers, so that none is lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    pub start: String,
    /// Names in lower case, sorted; of one name in the order they came. A line that is no field has no
    /// name.
    pub fields: Vec<(String, String)>,
    pub body: String,
    /// The lines behind the last chunk.
    pub trailers: Vec<String>,
    /// The body ended as its framing says.
    pub whole: bool,
}

pub fn text(bytes: &[u8]) -> String {
    bytes.iter().map(|&byte| char::from(byte)).collect()
}

impl Message {
    /// The first message of `bytes`, and how long it is. `bodiless` for answers to HEAD.
    pub fn read(bytes: &[u8], bodiless: bool) -> Option<(Self, usize)> {
        let end = find(bytes, b"\r\n\r\n")? + 4;
        let head = text(&bytes[..end - 4]);
        let mut lines = head.split("\r\n");
        let start = lines.next()?.to_owned();
        let field = |line: &str| match line.split_once(':') {
            Some((name, value)) if !name.is_empty() && name.bytes().all(is_token) => {
                (name.to_ascii_lowercase(), value.trim_matches([' ', '\t']).to_owned())
            }
            _ => (String::new(), line.to_owned()),
        };
        let mut fields: Vec<_> = lines.map(field).collect();
        fields.sort_by(|(a, _), (b, _)| a.cmp(b));
        let value = |name: &str| fields.iter().find(|(n, _)| n == name).map(|(_, v)| v.clone());
        let is_answer = start.starts_with("HTTP/");
        let status = start.split(' ').nth(1).unwrap_or_default();
        let none =
            bodiless || is_answer && (status.starts_with('1') || ["204", "304"].contains(&status));
        let rest = &bytes[end..];
        let mut body = Body { whole: true, ..Body::default() };
        if none {
        } else if value("transfer-encoding").is_some() {
            body = chunks(rest);
        } else if let Some(length) = value("content-length") {
            let length: usize = length.parse().ok()?;
            let taken = length.min(rest.len());
            body = Body { bytes: rest[..taken].to_vec(), taken, ..Body::default() };
            body.whole = taken == length;
        } else if is_answer {
            body = Body { bytes: rest.to_vec(), taken: rest.len(), whole: true, ..body };
        }
        let Body { bytes, taken, trailers, whole, .. } = body;
        Some((Self { start, fields, body: text(&bytes), trailers, whole }, end + taken))
    }

    pub fn values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.fields.iter().filter(move |(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// Without what our own answers have that is made by chance, or is another gateway's address; and
    /// with one `Date`, whatever it says.
    pub fn without_chance(mut self) -> Self {
        let after = |text: &str, mark: &str, end: char| {
            let rest = text.split_once(mark)?.1;
            Some(rest.split(end).next().unwrap_or_default().to_owned())
        };
        let policy = self.fields.iter().find(|(name, _)| name == "content-security-policy");
        if let Some(nonce) = policy.and_then(|(_, value)| after(value, "'nonce-", '\''))
            && !nonce.is_empty()
        {
            self.body = self.body.replace(&nonce, "NONCE");
            self.fields.iter_mut().for_each(|(_, value)| *value = value.replace(&nonce, "NONCE"));
        }
        // What is wrong with an answer is told by whoever looks first.
        let ours = self.values("content-type").any(|kind| kind == "application/problem+json")
            && self.values("x-content-type-options").count() == 1;
        if ours && self.start.starts_with("HTTP/1.1 502 ") {
            self.body.clear();
            self.fields.retain(|(name, _)| name != "content-length");
        }
        if let Some(time) = after(&self.body, "\"expires_at\":\"", '"') {
            self.body = self.body.replace(&time, "TIME");
        }
        for (name, value) in &mut self.fields {
            let at = match name.as_str() {
                "location" => value.contains("/authorize?").then_some(0),
                "set-cookie" => value.find("login=").map(|at| at + 6),
                "date" => Some(0),
                _ => None,
            };
            if let Some(at) = at {
                value.truncate(at);
            }
        }
        self.fields.dedup_by(|(a, _), (b, _)| a == "date" && b == "date");
        self
    }

    pub fn status(&self) -> u16 {
        self.start.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0)
    }

    /// What no request may lack that reaches a workload, and what no recipient could read in two ways.
    pub fn check_request(&self) -> Result<(), String> {
        let only = |name: &'static str| {
            let mut values = self.values(name);
            values.next().filter(|_| values.next().is_none())
        };
        if only("x-forwarded-user") != Some("alice") {
            return Err("the upstream is not told who asks".to_owned());
        }
        if only("host").is_none() {
            return Err("the upstream is told no host, or two".to_owned());
        }
        self.check_framing()
    }

    pub fn check_answer(&self, bodiless: bool) -> Result<(), String> {
        self.check_framing()?;
        let status = self.status();
        if !self.start.starts_with("HTTP/1.1 ") && !self.start.starts_with("HTTP/1.0 ")
            || !(100..1000).contains(&status)
        {
            return Err(format!("no status line: {}", self.start));
        }
        if status < 200 || status == 204 || status == 304 || bodiless {
            return Ok(());
        }
        if self.values("date").next().is_none() {
            return Err("an answer has no date".to_owned());
        }
        let theirs = |value: &str| {
            value.to_ascii_lowercase().starts_with("__host-dormouse=")
                && !value.contains("Max-Age=0")
        };
        match self.values("set-cookie").any(theirs) {
            true => Err("an upstream sets our cookie".to_owned()),
            false => Ok(()),
        }
    }

    fn check_framing(&self) -> Result<(), String> {
        if let Some((_, line)) = self.fields.iter().find(|(name, _)| name.is_empty()) {
            return Err(format!("no field: {line}"));
        }
        let framings =
            ["content-length", "transfer-encoding"].map(|name| self.values(name).count());
        match framings {
            [0, 0] | [0, 1] | [1, 0] => Ok(()),
            _ => Err("two framings".to_owned()),
        }
    }
}

/// What an upstream's answer says, if it is beyond reproach, so that no engine has a reason to refuse
/// it: its last message. `closed`: its end is the end of the connection.
pub fn sound(mut bytes: &[u8], head_only: bool, closed: bool) -> Option<Message> {
    loop {
        let end = find(bytes, b"\r\n\r\n")?;
        // Both engines take no longer heads.
        if end + 4 > 64 * 1024 || bytes[..end].iter().filter(|&&b| b == b'\n').count() > 200 {
            return None;
        }
        let head = text(&bytes[..end]);
        let mut lines = head.split("\r\n");
        let start = lines.next().unwrap_or_default();
        let (version, rest) = start.split_once(' ')?;
        let (status, reason) = rest.split_once(' ')?;
        let old = version == "HTTP/1.0";
        let is_text =
            |text: &str| text.chars().all(|c| matches!(c, '\t' | ' '..='~' | '\u{80}'..='\u{ff}'));
        if !old && version != "HTTP/1.1" || status.len() != 3 || !is_text(reason) {
            return None;
        }
        let Ok(status @ 100..600) = status.parse::<u16>() else { return None };
        if status == 101 || old && status < 200 {
            return None;
        }
        let (mut lengths, mut codings) = (Vec::new(), Vec::new());
        for line in lines {
            let (name, value) = line.split_once(':')?;
            if name.is_empty() || !name.bytes().all(is_token) || !is_text(value) {
                return None;
            }
            let value = value.trim_matches([' ', '\t']);
            match name.to_ascii_lowercase().as_str() {
                "content-length" => lengths.push(value),
                "transfer-encoding" => codings.push(value),
                _ => {}
            }
        }
        let rest = &bytes[end + 4..];
        let is_sound = match (status, &lengths[..], &codings[..]) {
            (100..200, [], []) => {
                bytes = rest;
                continue;
            }
            (204, [], []) | (304, [], []) => rest.is_empty(),
            (100..200 | 204 | 304, ..) => false,
            (_, [length], []) => {
                let digits =
                    (1..=9).contains(&length.len()) && length.bytes().all(|b| b.is_ascii_digit());
                let due = if head_only { 0 } else { length.parse().unwrap_or(usize::MAX) };
                digits && rest.len() == due
            }
            (_, [], ["chunked"]) if head_only => !old && rest.is_empty(),
            (_, [], ["chunked"]) => {
                let body = chunks(rest);
                let is_field = |line: &String| {
                    line.split_once(':').is_some_and(|(name, value)| {
                        !name.is_empty() && name.bytes().all(is_token) && is_text(value)
                    })
                };
                let fields = body.trailers.iter().all(is_field);
                !old && body.whole && body.taken == rest.len() && !body.extended && fields
            }
            (_, [], []) if head_only => rest.is_empty(),
            (_, [], []) => closed,
            _ => false,
        };
        return Message::read(bytes, head_only).map(|(message, _)| message).filter(|_| is_sound);
    }
}

#[derive(Default)]
struct Body {
    bytes: Vec<u8>,
    taken: usize,
    trailers: Vec<String>,
    whole: bool,
    /// A chunk has extensions.
    extended: bool,
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// A chunked body (RFC 9112, section 7.1); not whole when it breaks off or is malformed.
fn chunks(all: &[u8]) -> Body {
    let mut body = Body { taken: all.len(), ..Body::default() };
    let mut rest = all;
    loop {
        let Some(at) = find(rest, b"\r\n") else { return body };
        let line = &rest[..at];
        let size = line.split(|&byte| byte == b';').next().unwrap_or_default();
        body.extended |= size.len() < line.len();
        let digits = (1..=15).contains(&size.len()) && size.iter().all(u8::is_ascii_hexdigit);
        let size = std::str::from_utf8(size).ok().filter(|_| digits);
        let Some(size) = size.and_then(|size| usize::from_str_radix(size, 16).ok()) else {
            return body;
        };
        rest = &rest[at + 2..];
        if size == 0 {
            break;
        }
        let Some(data) = rest.get(..size) else {
            body.bytes.extend_from_slice(rest);
            return body;
        };
        body.bytes.extend_from_slice(data);
        let Some(after) = rest[size..].strip_prefix(b"\r\n") else { return body };
        rest = after;
    }
    loop {
        let Some(at) = find(rest, b"\r\n") else { return body };
        let line = text(&rest[..at]);
        rest = &rest[at + 2..];
        if line.is_empty() {
            body.taken = all.len() - rest.len();
            body.whole = true;
            return body;
        }
        body.trailers.push(line);
    }
}
