//! Tells a person's doing from background chatter, in two layers.
//!
//! A *reader* takes the [`Name`] out of a request ([`request`]) or of a message's first bytes
//! ([`socket`]). The *judge* sees names, directions and times alone ([`judge`]), and keeps what is
//! needed of the past: the beats that machines keep ([`beat`]). Both are pure and wait for nothing.
//!
//! The rules are those that separated recordings of real programs: polling, autosaved layout,
//! heartbeats and self-refreshing pages are nobody's doing. What no rule knows is a person's.

pub mod beat;
mod bokeh;
pub mod judge;
mod kernel;
pub mod replay;
pub mod request;
pub mod socket;
mod socketio;
mod streamlit;
mod vscode;

use beat::Care;

pub use judge::{Ruling, Socket, Workload};
pub use request::{BODY_MAX, Form, Read, Request};
pub use socket::{Content, From, PREFIX_MAX, Reader};

/// What somebody or something did. The words are kinds, never contents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Person(&'static str),
    /// A job that runs.
    Work(&'static str),
    Noise(&'static str),
    /// Not understood: counts as a person's, since doubt keeps the workload.
    Unknown(&'static str),
}

impl Verdict {
    /// The word of it, for a metric.
    pub fn label(self) -> &'static str {
        match self {
            Self::Person(_) => "person",
            Self::Work(_) => "work",
            Self::Noise(_) => "noise",
            Self::Unknown(_) => "unknown",
        }
    }

    /// What keeps the workload awake.
    pub fn doing(self) -> Option<&'static str> {
        match self {
            Self::Person(what) | Self::Unknown(what) => Some(what),
            Self::Work(_) | Self::Noise(_) => None,
        }
    }
}

/// What a reader makes of a request or message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Name {
    Person(&'static str),
    Work(&'static str),
    Noise(&'static str),
    /// A page, after which notebooks are saved once by themselves.
    Opened(&'static str),
    /// A page's script reads: somebody looks at something else if it was never read before.
    Looked {
        what: &'static str,
        kind: u64,
    },
    /// A notebook, by its path.
    Saved {
        what: &'static str,
        file: u64,
    },
    /// A person's or a timer's: the beat tells. `known` is whether a rule knows the message.
    Beat {
        what: &'static str,
        kind: u64,
        care: Care,
        known: bool,
    },
    /// A fresh page does it by itself; later it is like [`Name::Beat`] with great care.
    Begins {
        what: &'static str,
        kind: u64,
    },
    /// A plot's range, which follows new data by itself.
    Range(&'static str),
    /// From the server: new data for a plot.
    Pushed,
    /// In an editor, which does it by itself at its beginning and when a port was found.
    Edited(&'static str),
    /// From the server: a port was found.
    FoundPort,
}

/// FNV-1a, seeded with what came before: small, and good enough to tell a few kinds apart.
fn hash(seed: u64, bytes: &[u8]) -> u64 {
    hash_of(seed, bytes.iter())
}

fn hash_of<'a>(seed: u64, bytes: impl Iterator<Item = &'a u8>) -> u64 {
    let start = 0xcbf2_9ce4_8422_2325 ^ seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    bytes.fold(start, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

/// Of a JSON key with its quotes. Made once: making it costs more than most searches.
type Key = std::sync::LazyLock<memchr::memmem::Finder<'static>>;

/// The value of a JSON string behind `key`, such as `"msg_type"`, as far as it is there.
fn json_string<'a>(text: &'a [u8], key: &Key) -> Option<&'a [u8]> {
    let mut rest = text;
    loop {
        rest = rest.get(key.find(rest)? + key.needle().len()..)?;
        let Some(value) = rest.trim_ascii_start().strip_prefix(b":") else { continue };
        let Some(value) = value.trim_ascii_start().strip_prefix(b"\"") else { continue };
        let end = memchr::memchr(b'"', value).unwrap_or(value.len());
        return value.get(..end);
    }
}
