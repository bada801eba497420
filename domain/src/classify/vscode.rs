//! VS Code's persistent protocol, as code-server and the remote extension host speak it: a byte stream
//! within WebSocket messages. Each of its messages has 13 bytes before it: type, number, number that
//! is acknowledged, length (big-endian).

use memchr::memmem::Finder;

use super::{From, Key, Name, beat::Care, hash};

const HEADER: usize = 13;
/// The beginning of a body, in which the call's name stands.
const START: usize = 160;
const LENGTH_MAX: u32 = 1 << 30;
const REGULAR: u8 = 1;
const TYPE_MAX: u8 = 9;

/// One direction of one socket.
#[derive(Debug, Clone)]
pub struct Stream {
    header: [u8; HEADER],
    have: u8,
    left: u32,
    start: [u8; START],
    got: u8,
    lost: bool,
}

impl Default for Stream {
    fn default() -> Self {
        Self { header: [0; HEADER], have: 0, left: 0, start: [0; START], got: 0, lost: false }
    }
}

impl Stream {
    /// Some of the stream, cut anywhere.
    pub fn feed(&mut self, from: From, mut bytes: &[u8], mut named: impl FnMut(Name)) {
        while let Some((&first, rest)) = bytes.split_first() {
            if self.lost {
                return named(lost(from));
            }
            let have = usize::from(self.have);
            if have < HEADER {
                if let Some(slot) = self.header.get_mut(have) {
                    *slot = first;
                }
                self.have += 1;
                bytes = rest;
                if usize::from(self.have) == HEADER {
                    self.begin();
                    if self.left == 0 {
                        self.end(from, &mut named);
                    }
                }
                continue;
            }
            let here = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len());
            let (body, rest) = bytes.split_at(here);
            bytes = rest;
            let got = usize::from(self.got);
            let room = self.start.get_mut(got..).unwrap_or_default();
            let taken = room.len().min(body.len());
            room.iter_mut().zip(body).for_each(|(slot, byte)| *slot = *byte);
            self.got = u8::try_from(got + taken).unwrap_or(u8::MAX);
            self.left -= u32::try_from(here).unwrap_or(self.left);
            if self.left == 0 {
                self.end(from, &mut named);
            }
        }
    }

    fn begin(&mut self) {
        let [kind, .., a, b, c, d] = self.header;
        self.left = u32::from_be_bytes([a, b, c, d]);
        self.lost = kind == 0 || kind > TYPE_MAX || self.left > LENGTH_MAX;
    }

    fn end(&mut self, from: From, named: &mut impl FnMut(Name)) {
        if !self.lost {
            let start = self.start.get(..usize::from(self.got)).unwrap_or_default();
            named(if self.header[0] == REGULAR {
                call(from, start)
            } else {
                Name::Noise("keepalive")
            });
            (self.have, self.got) = (0, 0);
        }
    }
}

/// Not that protocol.
fn lost(from: From) -> Name {
    match from {
        From::Client => {
            Name::Beat { what: "sent data", kind: hash(6, b""), care: Care::Usual, known: false }
        }
        From::Server => Name::Noise("server"),
    }
}

static PORT: Key = Key::new(|| Finder::new("$onFoundNewCandidates"));
static TERMINAL: Key = Key::new(|| Finder::new("remoteterminal"));
static FILES: Key = Key::new(|| Finder::new("remoteFilesystem"));
static WRITE: Key = Key::new(|| Finder::new("writeFile"));

/// A call by the text of its beginning, or by its name in a recording.
pub fn call(from: From, start: &[u8]) -> Name {
    if from == From::Server {
        return if PORT.find(start).is_some() { Name::FoundPort } else { Name::Noise("server") };
    }
    // Names of calls between the window and the extensions begin with it.
    for at in memchr::memchr_iter(b'$', start) {
        let name = start.get(at + 1..).unwrap_or_default();
        if name.starts_with(b"acceptProcessInput")
            || name.starts_with(b"input") && TERMINAL.find(start).is_some()
        {
            return Name::Person("typed in a terminal");
        }
        let edits: [&[u8]; 3] =
            [b"acceptModelChanged", b"acceptEditorPropertiesChanged", b"acceptModelSaved"];
        if edits.iter().any(|edit| name.starts_with(edit)) {
            return Name::Edited("edited a file");
        }
    }
    if WRITE.find(start).is_some() && FILES.find(start).is_some() {
        return Name::Edited("edited a file");
    }
    Name::Noise("editor housekeeping")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(kind: u8, body: &[u8]) -> Vec<u8> {
        let mut bytes = vec![kind, 0, 0, 0, 1, 0, 0, 0, 0];
        bytes.extend(u32::try_from(body.len()).unwrap().to_be_bytes());
        bytes.extend(body);
        bytes
    }

    fn read(parts: &[&[u8]]) -> Vec<Name> {
        let (mut stream, mut all) = (Stream::default(), Vec::new());
        parts.iter().for_each(|part| stream.feed(From::Client, part, |name| all.push(name)));
        all
    }

    #[test]
    fn several_calls_in_one_message_are_all_seen() {
        let stream = [
            message(9, b""),
            message(1, b"\x04\x04\x06d\x01\x0eremoteterminal\x01\x06$input"),
            message(1, b"\x05\0\0\0\x07\x12$acceptModelChanged"),
            message(3, b""),
        ]
        .concat();
        let (quiet, typed) = (Name::Noise("keepalive"), Name::Person("typed in a terminal"));
        assert_eq!(read(&[&stream]), [quiet, typed, Name::Edited("edited a file"), quiet]);
        assert!(matches!(read(&[b"GET / HTTP/1.1"])[..], [Name::Beat { known: false, .. }]));
    }

    proptest! {
        #[test]
        fn where_the_stream_is_cut_does_not_matter(
            sizes in prop::collection::vec((1u8..10, 0usize..400), 0..6),
            cut in 0usize..2000,
        ) {
            let messages = sizes.iter().map(|&(kind, size)| message(kind, &vec![b'$'; size]));
            let bytes = messages.collect::<Vec<_>>().concat();
            let cut = cut.min(bytes.len());
            prop_assert_eq!(read(&[&bytes]), read(&[&bytes[..cut], &bytes[cut..]]));
            prop_assert_eq!(read(&[&bytes]).len(), sizes.len());
        }
    }
}
