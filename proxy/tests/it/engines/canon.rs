//! Messages without what means nothing.

use crate::world::find;

/// A message as both sides of a comparison understand it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    pub start: String,
    /// Names in lower case, sorted; of one name in the order they came.
    pub fields: Vec<(String, String)>,
    pub body: String,
    /// The body ended as its framing says.
    pub whole: bool,
}

impl Message {
    /// The first message of `bytes`, and how long it is. `bodiless` for answers to HEAD.
    pub fn read(bytes: &[u8], bodiless: bool) -> Option<(Self, usize)> {
        let end = find(bytes, b"\r\n\r\n")? + 4;
        let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
        let mut lines = head.trim_end_matches("\r\n").split("\r\n");
        let start = lines.next()?.to_owned();
        let mut fields: Vec<_> = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        fields.sort_by(|(a, _), (b, _)| a.cmp(b));
        let value = |name: &str| fields.iter().find(|(n, _)| n == name).map(|(_, v)| v.clone());
        let is_answer = start.starts_with("HTTP/");
        let status = start.split(' ').nth(1).unwrap_or_default();
        let none =
            bodiless || is_answer && (status.starts_with('1') || ["204", "304"].contains(&status));
        let rest = &bytes[end..];
        let (body, taken, whole) = if none {
            (Vec::new(), 0, true)
        } else if value("transfer-encoding").is_some() {
            chunks(rest)
        } else if let Some(length) = value("content-length") {
            let length: usize = length.parse().ok()?;
            let taken = length.min(rest.len());
            (rest[..taken].to_vec(), taken, taken == length)
        } else if is_answer {
            (rest.to_vec(), rest.len(), true)
        } else {
            (Vec::new(), 0, true)
        };
        let body = String::from_utf8_lossy(&body).into_owned();
        Some((Self { start, fields, body, whole }, end + taken))
    }

    pub fn without(mut self, names: &[&str]) -> Self {
        self.fields.retain(|(name, _)| !names.contains(&name.as_str()));
        self
    }

    /// Without what our own answers have that is made by chance, or is another gateway's address.
    pub fn without_chance(mut self) -> Self {
        let after = |text: &str, mark: &str, end: char| {
            let rest = text.split_once(mark)?.1;
            Some(rest.split(end).next().unwrap_or_default().to_owned())
        };
        let policy = self.fields.iter().find(|(name, _)| name == "content-security-policy");
        if let Some(nonce) = policy.and_then(|(_, value)| after(value, "'nonce-", '\'')) {
            self.body = self.body.replace(&nonce, "NONCE");
            self.fields.iter_mut().for_each(|(_, value)| *value = value.replace(&nonce, "NONCE"));
        }
        if let Some(time) = after(&self.body, "\"expires_at\":\"", '"') {
            self.body = self.body.replace(&time, "TIME");
        }
        for (name, value) in &mut self.fields {
            let at = match name.as_str() {
                "location" => value.contains("/authorize?").then_some(0),
                "set-cookie" => value.find("login-").map(|at| at + 6),
                _ => None,
            };
            if let Some(at) = at {
                value.truncate(at);
            }
        }
        self
    }

    pub fn status(&self) -> u16 {
        self.start.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0)
    }
}

/// Whether an answer is beyond reproach, so that no engine has a reason to refuse it. `closed`: its end
/// is the end of the connection.
pub fn is_sound(mut bytes: &[u8], head_only: bool, closed: bool) -> bool {
    loop {
        let Some(end) = find(bytes, b"\r\n\r\n") else { return false };
        let Ok(head) = std::str::from_utf8(&bytes[..end]) else { return false };
        let mut lines = head.split("\r\n");
        let start = lines.next().unwrap_or_default();
        let Some((status, reason)) =
            start.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.split_once(' '))
        else {
            return false;
        };
        let Ok(status @ 100..600) = status.parse::<u16>() else { return false };
        let plain = |text: &str| text.bytes().all(|b| matches!(b, b' '..=b'~'));
        let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
        if status == 101 || start.len() != 13 + reason.len() || !plain(reason) {
            return false;
        }
        let (mut lengths, mut codings) = (Vec::new(), Vec::new());
        for line in lines {
            let Some((name, value)) = line.split_once(':') else { return false };
            if name.is_empty() || !name.bytes().all(token) || !plain(value) {
                return false;
            }
            match name.to_ascii_lowercase().as_str() {
                "content-length" => lengths.push(value.trim()),
                "transfer-encoding" => codings.push(value.trim()),
                _ => {}
            }
        }
        let rest = &bytes[end + 4..];
        return match (status, &lengths[..], &codings[..]) {
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
            (_, [], ["chunked"]) if head_only => rest.is_empty(),
            (_, [], ["chunked"]) => {
                let (_, taken, whole) = chunks(rest);
                whole && taken == rest.len() && !rest.contains(&b';')
            }
            (_, [], []) => {
                if head_only {
                    rest.is_empty()
                } else {
                    closed
                }
            }
            _ => false,
        };
    }
}

fn chunks(mut rest: &[u8]) -> (Vec<u8>, usize, bool) {
    let (all, mut body) = (rest.len(), Vec::new());
    loop {
        let Some(at) = find(rest, b"\r\n") else { return (body, all, false) };
        let line = String::from_utf8_lossy(&rest[..at]).into_owned();
        let size = line.split(';').next().unwrap_or_default();
        let Ok(size) = usize::from_str_radix(size, 16) else { return (body, all, false) };
        rest = &rest[at + 2..];
        if rest.len() < size + 2 {
            return (body, all, false);
        }
        body.extend_from_slice(&rest[..size]);
        rest = &rest[size + 2..];
        if size == 0 {
            return (body, all - rest.len(), true);
        }
    }
}
