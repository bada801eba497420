//! Packets of SFTP version 3 (draft-ietf-secsh-filexfer-02) as bytes. Names are bytes, and are never decoded.

use std::{ffi::OsStr, os::unix::ffi::OsStrExt};

use bytes::{Buf, Bytes, BytesMut};

/// Longest packet, in bytes: OpenSSH's own limit.
pub const PACKET_MAX: usize = 256 << 10;

/// What stands before the bytes in the answer to a read: length, type, request id, length of the bytes.
pub const DATA_HEAD: usize = 13;

mod kind {
    pub const INIT: u8 = 1;
    pub const VERSION: u8 = 2;
    pub const OPEN: u8 = 3;
    pub const CLOSE: u8 = 4;
    pub const READ: u8 = 5;
    pub const WRITE: u8 = 6;
    pub const LSTAT: u8 = 7;
    pub const FSTAT: u8 = 8;
    pub const SETSTAT: u8 = 9;
    pub const FSETSTAT: u8 = 10;
    pub const OPENDIR: u8 = 11;
    pub const READDIR: u8 = 12;
    pub const REMOVE: u8 = 13;
    pub const MKDIR: u8 = 14;
    pub const RMDIR: u8 = 15;
    pub const REALPATH: u8 = 16;
    pub const STAT: u8 = 17;
    pub const RENAME: u8 = 18;
    pub const READLINK: u8 = 19;
    pub const SYMLINK: u8 = 20;
    pub const STATUS: u8 = 101;
    pub const HANDLE: u8 = 102;
    pub const DATA: u8 = 103;
    pub const NAME: u8 = 104;
    pub const ATTRS: u8 = 105;
    pub const EXTENDED: u8 = 200;
    pub const EXTENDED_REPLY: u8 = 201;
}

/// Status codes of section 7.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    Ok = 0,
    Eof = 1,
    NoSuchFile = 2,
    PermissionDenied = 3,
    Failure = 4,
    BadMessage = 5,
    Unsupported = 8,
}

/// How a file is opened (section 6.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flags(pub u32);

impl Flags {
    pub const READ: u32 = 0x01;
    pub const WRITE: u32 = 0x02;
    pub const APPEND: u32 = 0x04;
    pub const CREATE: u32 = 0x08;
    pub const TRUNCATE: u32 = 0x10;
    pub const EXCLUSIVE: u32 = 0x20;

    pub fn has(self, flag: u32) -> bool {
        self.0 & flag != 0
    }
}

/// Section 5. What is `None` is not said, or not to be changed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Attributes {
    pub size: Option<u64>,
    /// User and group.
    pub owner: Option<(u32, u32)>,
    pub mode: Option<u32>,
    /// Of the last access and the last change, in seconds since 1970.
    pub times: Option<(u32, u32)>,
}

mod attribute {
    pub const SIZE: u32 = 0x1;
    pub const OWNER: u32 = 0x2;
    pub const MODE: u32 = 0x4;
    pub const TIMES: u32 = 0x8;
    pub const EXTENDED: u32 = 0x8000_0000;
}

/// An entry of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub name: Vec<u8>,
    pub long_name: Vec<u8>,
    pub attributes: Attributes,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    Open {
        path: Bytes,
        flags: Flags,
        attributes: Attributes,
    },
    Close {
        handle: Bytes,
    },
    Read {
        handle: Bytes,
        offset: u64,
        length: u32,
    },
    Write {
        handle: Bytes,
        offset: u64,
        data: Bytes,
    },
    LinkStatus {
        path: Bytes,
    },
    Status {
        path: Bytes,
    },
    HandleStatus {
        handle: Bytes,
    },
    Set {
        path: Bytes,
        attributes: Attributes,
    },
    HandleSet {
        handle: Bytes,
        attributes: Attributes,
    },
    OpenFolder {
        path: Bytes,
    },
    ReadFolder {
        handle: Bytes,
    },
    Remove {
        path: Bytes,
    },
    MakeFolder {
        path: Bytes,
        attributes: Attributes,
    },
    RemoveFolder {
        path: Bytes,
    },
    RealPath {
        path: Bytes,
    },
    Rename {
        from: Bytes,
        to: Bytes,
    },
    ReadLink {
        path: Bytes,
    },
    /// OpenSSH sends the target first, against the draft, and all others have followed it.
    Link {
        target: Bytes,
        link: Bytes,
    },
    Extended {
        name: Bytes,
        rest: Fields,
    },
    /// A type that version 3 does not have.
    Unknown,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Packet {
    Init,
    Request {
        id: u32,
        /// `None`: the packet ends before its fields do.
        request: Option<Request>,
    },
}

impl Packet {
    /// `body` is a packet without its length. `None` for what has no request id to answer to.
    pub fn parse(body: Bytes) -> Option<Self> {
        let mut fields = Fields(body);
        let kind = fields.byte()?;
        if kind == kind::INIT {
            return Some(Self::Init);
        }
        let id = fields.number()?;
        Some(Self::Request { id, request: Request::parse(kind, fields) })
    }
}

impl Request {
    /// What follows the last field is passed over, as other servers do.
    fn parse(kind: u8, mut f: Fields) -> Option<Self> {
        Some(match kind {
            kind::OPEN => {
                let (path, flags) = (f.string()?, Flags(f.number()?));
                Self::Open { path, flags, attributes: f.attributes()? }
            }
            kind::CLOSE => Self::Close { handle: f.string()? },
            kind::READ => {
                Self::Read { handle: f.string()?, offset: f.long()?, length: f.number()? }
            }
            kind::WRITE => {
                Self::Write { handle: f.string()?, offset: f.long()?, data: f.string()? }
            }
            kind::LSTAT => Self::LinkStatus { path: f.string()? },
            kind::STAT => Self::Status { path: f.string()? },
            kind::FSTAT => Self::HandleStatus { handle: f.string()? },
            kind::SETSTAT => Self::Set { path: f.string()?, attributes: f.attributes()? },
            kind::FSETSTAT => Self::HandleSet { handle: f.string()?, attributes: f.attributes()? },
            kind::OPENDIR => Self::OpenFolder { path: f.string()? },
            kind::READDIR => Self::ReadFolder { handle: f.string()? },
            kind::REMOVE => Self::Remove { path: f.string()? },
            kind::MKDIR => Self::MakeFolder { path: f.string()?, attributes: f.attributes()? },
            kind::RMDIR => Self::RemoveFolder { path: f.string()? },
            kind::REALPATH => Self::RealPath { path: f.string()? },
            kind::RENAME => Self::Rename { from: f.string()?, to: f.string()? },
            kind::READLINK => Self::ReadLink { path: f.string()? },
            kind::SYMLINK => Self::Link { target: f.string()?, link: f.string()? },
            kind::EXTENDED => Self::Extended { name: f.string()?, rest: f },
            _ => Self::Unknown,
        })
    }
}

/// Takes one field after the other; `None` when there is not enough left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fields(Bytes);

impl Fields {
    fn byte(&mut self) -> Option<u8> {
        self.0.try_get_u8().ok()
    }

    fn number(&mut self) -> Option<u32> {
        self.0.try_get_u32().ok()
    }

    fn long(&mut self) -> Option<u64> {
        self.0.try_get_u64().ok()
    }

    pub fn string(&mut self) -> Option<Bytes> {
        let length = usize::try_from(self.number()?).ok()?;
        (length <= self.0.len()).then(|| self.0.split_to(length))
    }

    pub fn attributes(&mut self) -> Option<Attributes> {
        let flags = self.number()?;
        let has = |flag| flags & flag != 0;
        let mut found = Attributes::default();
        if has(attribute::SIZE) {
            found.size = Some(self.long()?);
        }
        if has(attribute::OWNER) {
            found.owner = Some((self.number()?, self.number()?));
        }
        if has(attribute::MODE) {
            found.mode = Some(self.number()?);
        }
        if has(attribute::TIMES) {
            found.times = Some((self.number()?, self.number()?));
        }
        if has(attribute::EXTENDED) {
            // Each pair takes bytes, so a made-up count ends with the packet.
            for _ in 0..self.number()? {
                self.string()?;
                self.string()?;
            }
        }
        Some(found)
    }
}

/// Cuts what arrives into packets.
#[derive(Debug, Default)]
pub struct Packets(BytesMut);

/// A packet that is empty or longer than [`PACKET_MAX`]: where the next one begins is unknown.
#[derive(Debug, PartialEq, Eq)]
pub struct OutOfStep;

impl Packets {
    pub fn push(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// The next packet without its length; `None` while more of it must arrive.
    pub fn next(&mut self) -> Result<Option<Bytes>, OutOfStep> {
        let Some(head) = self.0.first_chunk::<4>() else { return Ok(None) };
        let length = usize::try_from(u32::from_be_bytes(*head)).map_err(|_| OutOfStep)?;
        if !(1..=PACKET_MAX).contains(&length) {
            return Err(OutOfStep);
        }
        if self.0.len() < 4 + length {
            // Room for all of it at once.
            self.0.reserve(4 + length - self.0.len());
            return Ok(None);
        }
        self.0.advance(4);
        Ok(Some(self.0.split_to(length).freeze()))
    }
}

/// Writes one answer.
pub struct Answer(Vec<u8>);

impl Answer {
    fn new(kind: u8) -> Self {
        Self(vec![0, 0, 0, 0, kind])
    }

    fn to(kind: u8, id: u32) -> Self {
        Self::new(kind).number(id)
    }

    pub fn number(mut self, number: u32) -> Self {
        self.0.extend_from_slice(&number.to_be_bytes());
        self
    }

    pub fn long(mut self, number: u64) -> Self {
        self.0.extend_from_slice(&number.to_be_bytes());
        self
    }

    fn string(self, bytes: &[u8]) -> Self {
        let mut answer = self.number(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
        answer.0.extend_from_slice(bytes);
        answer
    }

    fn attributes(mut self, of: &Attributes) -> Self {
        let flag = |there: bool, flag: u32| if there { flag } else { 0 };
        self = self.number(
            flag(of.size.is_some(), attribute::SIZE)
                | flag(of.owner.is_some(), attribute::OWNER)
                | flag(of.mode.is_some(), attribute::MODE)
                | flag(of.times.is_some(), attribute::TIMES),
        );
        if let Some(size) = of.size {
            self = self.long(size);
        }
        for (one, two) in of.owner.into_iter() {
            self = self.number(one).number(two);
        }
        if let Some(mode) = of.mode {
            self = self.number(mode);
        }
        for (one, two) in of.times.into_iter() {
            self = self.number(one).number(two);
        }
        self
    }

    pub fn done(self) -> Bytes {
        let mut bytes = self.0;
        let length = u32::try_from(bytes.len() - 4).unwrap_or(u32::MAX).to_be_bytes();
        if let Some(head) = bytes.first_chunk_mut() {
            *head = length;
        }
        bytes.into()
    }
}

pub fn version(extensions: &[(&str, &str)]) -> Bytes {
    let mut answer = Answer::new(kind::VERSION).number(3);
    for (name, revision) in extensions {
        answer = answer.string(name.as_bytes()).string(revision.as_bytes());
    }
    answer.done()
}

pub fn status(id: u32, code: Code, text: &str) -> Bytes {
    Answer::to(kind::STATUS, id).number(code as u32).string(text.as_bytes()).string(b"").done()
}

pub fn handle(id: u32, handle: &[u8]) -> Bytes {
    Answer::to(kind::HANDLE, id).string(handle).done()
}

/// `room` holds [`DATA_HEAD`] bytes of any value, then what was read.
pub fn data(id: u32, mut room: Vec<u8>) -> Bytes {
    let length = |less: usize| u32::try_from(room.len().saturating_sub(less)).unwrap_or(u32::MAX);
    let (whole, inner) = (length(4).to_be_bytes(), length(DATA_HEAD).to_be_bytes());
    let fields = whole.into_iter().chain([kind::DATA]).chain(id.to_be_bytes()).chain(inner);
    for (place, byte) in room.iter_mut().zip(fields) {
        *place = byte;
    }
    room.into()
}

pub fn names(id: u32, entries: &[Entry]) -> Bytes {
    let count = u32::try_from(entries.len()).unwrap_or(u32::MAX);
    let mut answer = Answer::to(kind::NAME, id).number(count);
    for entry in entries {
        answer = answer.string(&entry.name).string(&entry.long_name).attributes(&entry.attributes);
    }
    answer.done()
}

/// One name, of which nothing else is said.
pub fn name(id: u32, name: &OsStr) -> Bytes {
    let name = name.as_bytes().to_vec();
    names(id, &[Entry { long_name: name.clone(), name, attributes: Attributes::default() }])
}

pub fn attributes(id: u32, of: &Attributes) -> Bytes {
    Answer::to(kind::ATTRS, id).attributes(of).done()
}

pub fn extended(id: u32) -> Answer {
    Answer::to(kind::EXTENDED_REPLY, id)
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    /// A request as a client writes it, without its length.
    fn request(kind: u8, fill: impl FnOnce(Answer) -> Answer) -> Bytes {
        fill(Answer::to(kind, 7)).done().slice(4..)
    }

    fn parsed(body: Bytes) -> Option<Request> {
        match Packet::parse(body) {
            Some(Packet::Request { id: 7, request }) => request,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn names_are_bytes() {
        let name = b"caf\xe9.txt";
        let asked = parsed(request(kind::RENAME, |a| a.string(name).string(b"\xff\xfe")));
        let (from, to) = (Bytes::from_static(name), Bytes::from_static(b"\xff\xfe"));
        assert_eq!(asked, Some(Request::Rename { from, to }));
        let entry = Entry {
            name: name.to_vec(),
            long_name: b"-rw caf\xe9.txt".to_vec(),
            attributes: Attributes::default(),
        };
        let answer = names(1, &[entry]);
        assert!(answer.windows(name.len()).filter(|window| window == name).count() == 2);
    }

    #[test]
    fn data_is_a_packet_in_its_own_room() {
        let mut room = vec![0xaa; DATA_HEAD];
        room.extend_from_slice(b"bytes");
        let expected = Answer::to(kind::DATA, 9).string(b"bytes").done();
        assert_eq!(data(9, room), expected);
    }

    #[test]
    fn a_length_that_cannot_be_ends_the_transfer() {
        for length in [0, PACKET_MAX as u32 + 1, u32::MAX] {
            let mut packets = Packets::default();
            packets.push(&length.to_be_bytes());
            assert_eq!(packets.next(), Err(OutOfStep));
        }
    }

    fn some_attributes() -> impl Strategy<Value = Attributes> {
        let pair = || proptest::option::of(any::<(u32, u32)>());
        let (size, mode) = (proptest::option::of(any::<u64>()), proptest::option::of(any::<u32>()));
        (size, pair(), mode, pair()).prop_map(|(size, owner, mode, times)| Attributes {
            size,
            owner,
            mode,
            times,
        })
    }

    proptest! {
        #[test]
        fn nothing_that_arrives_panics_or_reads_past_its_end(body in vec(any::<u8>(), 0..300)) {
            let body = Bytes::from(body);
            if let Some(Packet::Request { request: Some(Request::Extended { mut rest, .. }), .. }) =
                Packet::parse(body)
            {
                while rest.string().is_some() {}
                rest.attributes();
            }
        }

        #[test]
        fn each_type_with_cut_fields_is_told_apart(
            kind in 3u8..=20, path in vec(any::<u8>(), 0..40), cut in 1usize..20,
        ) {
            let whole = request(kind, |a| {
                a.string(&path).string(&path).string(&path).long(0).long(0)
            });
            let body = whole.slice(..whole.len().min(4 + cut));
            // Cut before the first name ends, no request can be whole.
            if body.len() < 5 + 4 + path.len() && body.len() >= 5 {
                prop_assert_eq!(parsed(body), None);
            }
        }

        #[test]
        fn attributes_come_back_as_they_were(of in some_attributes(), path in vec(any::<u8>(), 0..40)) {
            let body = request(kind::SETSTAT, |a| a.string(&path).attributes(&of));
            let expected = Request::Set { path: path.into(), attributes: of };
            prop_assert_eq!(parsed(body), Some(expected));
        }

        #[test]
        fn packets_are_cut_the_same_however_they_arrive(
            bodies in vec(vec(any::<u8>(), 1..50), 0..8), step in 1usize..30,
        ) {
            let mut stream = Vec::new();
            for body in &bodies {
                stream.extend_from_slice(&(body.len() as u32).to_be_bytes());
                stream.extend_from_slice(body);
            }
            let (mut packets, mut found) = (Packets::default(), Vec::new());
            for chunk in stream.chunks(step) {
                packets.push(chunk);
                while let Ok(Some(packet)) = packets.next() {
                    found.push(packet.to_vec());
                }
            }
            prop_assert_eq!(found, bodies);
        }
    }
}
