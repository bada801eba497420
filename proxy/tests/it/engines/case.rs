//! What goes in: a request, an answer, and how they come.

use std::fmt;

use super::canon::{self, Message};
use crate::world::find;

/// What `LONG` stands for: more than is read at once.
const LONG: usize = 20_000;
/// Longest request and longest answer: what two sockets take without anybody reading.
const LENGTH_MAX: usize = 200_000;

#[derive(Clone, Default)]
pub struct Case {
    /// Mostly one request; `TOKEN` stands for a good token.
    pub request: Vec<u8>,
    /// Where the request is cut into two writes.
    pub cut: usize,
    pub answer: Vec<u8>,
    pub answer_cut: usize,
    /// The upstream closes its connection after the answer.
    pub closes: bool,
    /// Another request goes first, so that this one comes on a connection that was used.
    pub warm: bool,
    /// The last request goes out once nothing moves any more, and not right behind this one.
    pub apart: bool,
    /// The upstream answers as soon as it has a head.
    pub early: bool,
    /// The answer breaks the protocol.
    pub odd: bool,
    /// What the client must get, if it is beyond doubt.
    pub sound: Option<Message>,
}

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { request, cut, answer, answer_cut, closes, warm, apart, early, odd, .. } = self;
        let (request, answer) = (request.escape_ascii(), answer.escape_ascii());
        write!(f, "\nrequest, cut at {cut}: {request}\nanswer, cut at {answer_cut}: {answer}\n")?;
        write!(f, "closes: {closes}, warm: {warm}, apart: {apart}, early: {early}, odd: {odd}")
    }
}

impl Case {
    /// A byte that says where both are cut; a byte of flags, of which the low four are closes, warm,
    /// apart and early; a request; a line `====`; an answer.
    pub fn of_bytes(bytes: &[u8]) -> Option<Self> {
        const BETWEEN: &[u8] = b"\n====\n";
        let (&[cuts, flags], rest) = bytes.split_first_chunk()?;
        let at = find(rest, BETWEEN)?;
        let long = |bytes: &[u8]| replace(bytes, b"LONG", &[b'x'; LONG]);
        let (request, answer) = (long(&rest[..at]), long(&rest[at + BETWEEN.len()..]));
        if request.len() > LENGTH_MAX || answer.len() > LENGTH_MAX {
            return None;
        }
        let cut = |length: usize, part: u8| length * usize::from(part) / 15;
        let flag = |bit: u8| flags >> bit & 1 == 1;
        let case = Self {
            cut: cut(request.len(), cuts & 15),
            answer_cut: cut(answer.len(), cuts >> 4),
            closes: flag(0),
            warm: flag(1),
            apart: flag(2),
            early: flag(3),
            request,
            answer,
            ..Self::default()
        };
        let case = case.judged();
        Some(Self { odd: case.sound.is_none(), ..case })
    }

    pub fn judged(self) -> Self {
        let sound = canon::sound(&self.answer, self.head_only(), self.closes);
        Self { sound, ..self }
    }

    fn head_only(&self) -> bool {
        self.request.starts_with(b"HEAD ")
    }

    /// Of each request, whether its answer has no body.
    pub fn bodiless(&self) -> Vec<bool> {
        let mut rest = &self.request[..];
        let mut all = Vec::new();
        while let Some((message, length)) = Message::read(rest, false) {
            all.push(message.start.starts_with("HEAD "));
            rest = &rest[length..];
        }
        all
    }

    /// The bytes with the token in them, in two parts. The token is not cut.
    pub fn parts(&self, token: &str) -> (Vec<u8>, Vec<u8>) {
        let at = match find(&self.request, b"TOKEN") {
            Some(at) if (at..at + 5).contains(&self.cut) => at,
            _ => self.cut.min(self.request.len()),
        };
        let (first, second) = self.request.split_at(at);
        let put = |bytes| replace(bytes, b"TOKEN", token.as_bytes());
        (put(first), put(second))
    }
}

fn replace(mut bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len());
    while let Some(at) = find(bytes, from) {
        out.extend_from_slice(&bytes[..at]);
        out.extend_from_slice(to);
        bytes = &bytes[at + from.len()..];
    }
    out.extend_from_slice(bytes);
    out
}
