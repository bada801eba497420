//! WebSocket frames as they pass by (RFC 6455, section 5.2): nothing is held back, only looked at.

use domain::classify::Content;

/// The beginning of a message, unmasked, as far as it is needed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    pub opcode: u8,
    pub start: Vec<u8>,
}

/// Follows one direction. Small: an idle WebSocket keeps one of these each way.
#[derive(Debug)]
pub struct Frames {
    state: State,
    /// What of the messages is looked at besides their headers.
    content: Content,
    message: Option<Message>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Header {
        bytes: [u8; 14],
        have: u8,
    },
    Payload {
        left: u64,
        mask: [u8; 4],
        at: u8,
        control: bool,
        fin: bool,
    },
    /// Not WebSocket framing; nothing more is understood.
    Lost,
}

const START: State = State::Header { bytes: [0; 14], have: 0 };

/// What a reader is told.
#[derive(Debug, PartialEq, Eq)]
pub enum Seen<'a> {
    /// Once per message: when its beginning is complete.
    Message(Message),
    /// Some of a message's bytes, unmasked, if all are looked at.
    Part(&'a [u8]),
    /// A Close frame has begun.
    Close,
    /// The framing was lost, or has been; these bytes may be anything.
    Lost,
}

impl Frames {
    pub fn new(content: Content) -> Self {
        Self { state: START, content, message: None }
    }

    /// Between two frames: the only place where a frame of our own can be put in.
    pub fn at_boundary(&self) -> bool {
        self.state == START
    }

    /// How many of the bytes belong to the frame that is under way.
    pub fn to_boundary(&self, bytes: &[u8]) -> usize {
        let mut frames = Self { state: self.state, content: Content::No, message: None };
        if frames.at_boundary() {
            return 0;
        }
        for (at, byte) in bytes.iter().enumerate() {
            frames.pass(std::slice::from_ref(byte), |_| {});
            if frames.at_boundary() {
                return at + 1;
            }
        }
        bytes.len()
    }

    pub fn pass(&mut self, mut bytes: &[u8], mut seen: impl FnMut(Seen<'_>)) {
        while !bytes.is_empty() {
            match self.state {
                State::Lost => return seen(Seen::Lost),
                State::Header { bytes: mut header, have } => {
                    let have = usize::from(have);
                    let wanted = if have < 2 { 2 } else { header_length(&header) };
                    let (here, rest) = bytes.split_at(bytes.len().min(wanted - have));
                    bytes = rest;
                    for (slot, byte) in header.iter_mut().skip(have).zip(here) {
                        *slot = *byte;
                    }
                    let have = have + here.len();
                    if have >= 2 && have == header_length(&header) {
                        self.begin(&header, &mut seen);
                    } else {
                        let have = u8::try_from(have).unwrap_or(u8::MAX);
                        self.state = State::Header { bytes: header, have };
                    }
                }
                State::Payload { left, mask, at, control, fin } => {
                    let here = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
                    let (payload, rest) = bytes.split_at(here);
                    bytes = rest;
                    if !control {
                        self.collect(payload, mask, at, &mut seen);
                    }
                    let left = left - here as u64;
                    let at = u8::try_from((usize::from(at) + here) % 4).unwrap_or(0);
                    self.state = State::Payload { left, mask, at, control, fin };
                    if left == 0 {
                        self.end(control, fin, &mut seen);
                    }
                }
            }
        }
    }

    fn begin(&mut self, header: &[u8; 14], seen: &mut impl FnMut(Seen<'_>)) {
        let [first, second, rest @ ..] = *header;
        let (fin, opcode) = (first & 0x80 != 0, first & 0x0f);
        let control = opcode >= 8;
        let (left, mask_at) = match second & 0x7f {
            126 => (u64::from(u16::from_be_bytes([rest[0], rest[1]])), 2),
            127 => {
                let [a, b, c, d, e, f, g, h, ..] = rest;
                (u64::from_be_bytes([a, b, c, d, e, f, g, h]), 8)
            }
            short => (u64::from(short), 0),
        };
        let mask = match second & 0x80 {
            0 => [0; 4],
            _ => [rest[mask_at], rest[mask_at + 1], rest[mask_at + 2], rest[mask_at + 3]],
        };
        let bad = first & 0x70 != 0
            || matches!(opcode, 3..=7 | 11..)
            || (control && (!fin || left > 125))
            || left > u64::MAX >> 1;
        if bad {
            self.state = State::Lost;
            return seen(Seen::Lost);
        }
        if opcode == 8 {
            seen(Seen::Close);
        }
        if matches!(opcode, 1 | 2) {
            match self.content {
                Content::No => seen(Seen::Message(Message { opcode, start: Vec::new() })),
                Content::Start(_) => self.message = Some(Message { opcode, start: Vec::new() }),
                Content::All => {}
            }
        }
        self.state = State::Payload { left, mask, at: 0, control, fin };
        if left == 0 {
            self.end(control, fin, seen);
        }
    }

    fn collect(&mut self, payload: &[u8], mask: [u8; 4], at: u8, seen: &mut impl FnMut(Seen<'_>)) {
        let prefix_max = match self.content {
            Content::No => return,
            Content::All => return parts(payload, mask, at, seen),
            Content::Start(most) => most,
        };
        let Some(message) = &mut self.message else { return };
        let had = message.start.len();
        let taken = prefix_max.saturating_sub(had).min(payload.len());
        message.start.reserve_exact(taken);
        message.start.extend_from_slice(payload.get(..taken).unwrap_or_default());
        unmask(message.start.get_mut(had..).unwrap_or_default(), mask, at);
        if message.start.len() >= prefix_max {
            self.tell(seen);
        }
    }

    fn end(&mut self, control: bool, fin: bool, seen: &mut impl FnMut(Seen<'_>)) {
        self.state = START;
        if fin && !control {
            self.tell(seen);
        }
    }

    fn tell(&mut self, seen: &mut impl FnMut(Seen<'_>)) {
        if let Some(message) = self.message.take() {
            seen(Seen::Message(message));
        }
    }
}

/// Unmasks piece by piece, without memory of its own.
fn parts(payload: &[u8], mask: [u8; 4], at: u8, seen: &mut impl FnMut(Seen<'_>)) {
    let mut piece = [0; 512];
    for bytes in payload.chunks(piece.len()) {
        let piece = piece.get_mut(..bytes.len()).unwrap_or_default();
        piece.copy_from_slice(bytes);
        // A whole piece is a multiple of four.
        unmask(piece, mask, at);
        seen(Seen::Part(piece));
    }
}

/// The bytes begin at that place of the frame's payload, modulo four (RFC 6455, section 5.3).
fn unmask(bytes: &mut [u8], mask: [u8; 4], at: u8) {
    let key: [u8; 8] = std::array::from_fn(|byte| mask[(usize::from(at) + byte) % 4]);
    let (eights, rest) = bytes.as_chunks_mut::<8>();
    for eight in eights {
        *eight = (u64::from_ne_bytes(*eight) ^ u64::from_ne_bytes(key)).to_ne_bytes();
    }
    rest.iter_mut().zip(key).for_each(|(byte, key)| *byte ^= key);
}

/// Length of the header whose first two bytes are there.
fn header_length(header: &[u8; 14]) -> usize {
    let mask = if header[1] & 0x80 == 0 { 0 } else { 4 };
    let length = match header[1] & 0x7f {
        126 => 2,
        127 => 8,
        _ => 0,
    };
    2 + length + mask
}

/// Why we end a WebSocket (RFC 6455, section 7.4.1, and the registry that it makes).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Farewell {
    /// The gateway is going away.
    GoingAway,
    /// The person may not use the workload any more.
    RightLost,
}

/// To which end a Close frame goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Towards {
    Client,
    /// Its frames are masked.
    Upstream,
}

impl Farewell {
    fn status(self, towards: Towards) -> u16 {
        match (self, towards) {
            // "Service restart": the client is to connect again. After 1000 and 1001 many do not
            // (JupyterLab's kernels and terminals: `ServerConnection` of @jupyterlab/services 7).
            (Self::GoingAway, Towards::Client) => 1012,
            // What a browser says that leaves a page, so every server takes it for a usual end.
            (Self::GoingAway, Towards::Upstream) => 1001,
            (Self::RightLost, _) => 1008,
        }
    }
}

/// A Close frame (RFC 6455, section 5.5.1).
pub fn close_frame(farewell: Farewell, towards: Towards) -> Vec<u8> {
    let status = farewell.status(towards).to_be_bytes();
    if towards == Towards::Client {
        return vec![0x88, 2, status[0], status[1]];
    }
    let key: [u8; 4] = rand::random();
    vec![0x88, 0x82, key[0], key[1], key[2], key[3], status[0] ^ key[0], status[1] ^ key[1]]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(fin: bool, opcode: u8, payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![if fin { 0x80 } else { 0 } | opcode];
        match payload.len() {
            short @ 0..126 => bytes.push(0x80 | short as u8),
            medium @ 126..65536 => {
                bytes.push(0xfe);
                bytes.extend((medium as u16).to_be_bytes());
            }
            long => {
                bytes.push(0xff);
                bytes.extend((long as u64).to_be_bytes());
            }
        }
        let mask = [1, 2, 3, 4];
        bytes.extend(mask);
        bytes.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, key)| byte ^ key));
        bytes
    }

    const PREFIX_MAX: usize = 1024;

    fn owned(seen: Seen<'_>) -> Seen<'static> {
        match seen {
            Seen::Message(message) => Seen::Message(message),
            Seen::Part(_) => Seen::Part(&[]),
            Seen::Close => Seen::Close,
            Seen::Lost => Seen::Lost,
        }
    }

    fn read(parts: &[&[u8]], with_content: bool) -> (Vec<Seen<'static>>, Frames) {
        let content = if with_content { Content::Start(PREFIX_MAX) } else { Content::No };
        let mut frames = Frames::new(content);
        let mut all = Vec::new();
        for part in parts {
            frames.pass(part, |seen| all.push(owned(seen)));
        }
        (all, frames)
    }

    fn text(start: &[u8]) -> Seen<'static> {
        Seen::Message(Message { opcode: 1, start: start.to_vec() })
    }

    #[test]
    fn messages_are_told_once_with_their_beginning() {
        let long = vec![b'x'; 70_000];
        let bytes = [
            frame(true, 1, b"hello"),
            frame(true, 9, b"ping"),
            frame(true, 2, &long),
            frame(true, 1, b""),
            frame(true, 8, b""),
        ]
        .concat();
        let (seen, frames) = read(&[&bytes], true);
        let binary = Message { opcode: 2, start: long[..PREFIX_MAX].to_vec() };
        assert_eq!(seen, [text(b"hello"), Seen::Message(binary), text(b""), Seen::Close]);
        assert!(frames.at_boundary());
    }

    #[test]
    fn fragments_with_a_ping_between_are_one_message() {
        let bytes = [frame(false, 1, b"he"), frame(true, 9, b""), frame(true, 0, b"llo")].concat();
        assert_eq!(read(&[&bytes], true).0, [text(b"hello")]);
        assert_eq!(read(&[&bytes], false).0, [text(b"")]);
    }

    #[test]
    fn what_is_no_framing_is_lost_and_said_so() {
        for bad in [vec![0xc1, 0], vec![0x83, 0], frame(false, 9, b"")] {
            let (seen, mut frames) = read(&[&bad], true);
            assert_eq!(seen.first(), Some(&Seen::Lost), "{bad:?}");
            let mut more = Vec::new();
            frames.pass(b"more", |seen| more.push(owned(seen)));
            assert_eq!(more, [Seen::Lost]);
        }
    }

    #[test]
    fn the_rest_of_a_frame_is_found() {
        let bytes = [frame(true, 1, b"hello"), frame(true, 1, b"x")].concat();
        let (_, frames) = read(&[&bytes[..4]], false);
        assert_eq!(frames.to_boundary(&bytes[4..]), frame(true, 1, b"hello").len() - 4);
        assert_eq!(Frames::new(Content::No).to_boundary(&bytes), 0);
    }

    proptest! {
        #[test]
        fn all_bytes_are_told_wherever_they_are_cut(
            payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..1500), 1..4),
            cut in 0usize..5000,
        ) {
            let bytes: Vec<u8> = payloads.iter().flat_map(|payload| frame(true, 2, payload)).collect();
            let (first, second) = bytes.split_at(cut.min(bytes.len()));
            let (mut frames, mut told) = (Frames::new(Content::All), Vec::new());
            for part in [first, second] {
                frames.pass(part, |seen| match seen {
                    Seen::Part(bytes) => told.extend_from_slice(bytes),
                    other => panic!("{other:?}"),
                });
            }
            prop_assert_eq!(told, payloads.concat());
        }

        #[test]
        fn where_the_bytes_are_cut_does_not_matter(
            payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 1..4),
            cuts in prop::collection::vec(0usize..1000, 0..8),
        ) {
            let bytes: Vec<u8> = payloads.iter().flat_map(|payload| frame(true, 2, payload)).collect();
            let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let parts: Vec<_> = cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect();
            let expected: Vec<_> = payloads
                .iter()
                .map(|payload| Seen::Message(Message { opcode: 2, start: payload.clone() }))
                .collect();
            prop_assert_eq!(read(&parts, true).0, expected);
        }

        #[test]
        fn any_bytes_in_any_cuts_are_read_the_same(
            frames in prop::collection::vec(
                (any::<bool>(), prop::sample::select(vec![0u8, 1, 2, 8, 9, 10, 3, 0x41]), 0usize..400),
                0..6,
            ),
            noise in prop::collection::vec(any::<u8>(), 0..20),
            cuts in prop::collection::vec(0usize..2500, 0..40),
        ) {
            let framed = frames.iter().map(|&(fin, opcode, size)| frame(fin, opcode, &vec![b'x'; size]));
            let mut bytes: Vec<u8> = framed.flatten().collect();
            bytes.extend(noise);
            let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let parts: Vec<_> = cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect();
            for with_content in [false, true] {
                let (mut whole, at_end) = read(&[&bytes], with_content);
                let (mut cut, cut_end) = read(&parts, with_content);
                // That it is lost is said again with each part.
                whole.dedup();
                cut.dedup();
                prop_assert_eq!(whole, cut);
                prop_assert_eq!(at_end.state, cut_end.state);
            }
        }

        #[test]
        fn the_end_of_a_frame_is_where_the_next_begins(
            sizes in prop::collection::vec(0usize..300, 1..4),
            cut in 0usize..900,
        ) {
            let all: Vec<_> = sizes.iter().map(|&size| frame(true, 2, &vec![1; size])).collect();
            let bytes = all.concat();
            let cut = cut.min(bytes.len());
            let ends = all.iter().scan(0, |end, frame| { *end += frame.len(); Some(*end) });
            let next = ends.into_iter().find(|&end| end >= cut).unwrap_or(0);
            let (_, frames) = read(&[&bytes[..cut]], true);
            let rest = if cut == 0 { 0 } else { next - cut };
            prop_assert_eq!(frames.to_boundary(&bytes[cut..]), rest);
        }

        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = read(&[&bytes], true);
        }
    }
}
