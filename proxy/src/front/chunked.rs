//! Finds the end of a chunked body (RFC 9112, section 7.1) in bytes that pass by.

/// Longest trailer section and longest chunk line, in bytes.
const LINES_MAX: usize = 8 * 1024;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunked {
    state: State,
    /// Answers may have chunk extensions, and anything in their trailers; requests may not.
    lenient: bool,
    /// Bytes of lines, against [`LINES_MAX`].
    line: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Size {
        value: u64,
        digits: u8,
    },
    Extension {
        value: u64,
    },
    SizeLf {
        value: u64,
    },
    Data {
        left: u64,
    },
    DataCr,
    DataLf,
    /// At the start of a trailer line.
    Trailer,
    TrailerName,
    TrailerValue,
    TrailerLf,
    LastLf,
    Done,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the chunked body is malformed")]
pub struct Malformed;

impl Chunked {
    pub fn request() -> Self {
        Self { state: State::Size { value: 0, digits: 0 }, lenient: false, line: 0 }
    }

    pub fn response() -> Self {
        Self { lenient: true, ..Self::request() }
    }

    /// Bytes of the chunk that is under way; `None` outside of one's data.
    pub fn data_left(&self) -> Option<u64> {
        match self.state {
            State::Data { left } if left > 0 => Some(left),
            _ => None,
        }
    }

    /// Whether a chunk could be put here.
    pub fn is_between_chunks(&self) -> bool {
        matches!(self.state, State::Size { digits: 0, .. })
    }

    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// How many of the bytes belong to the body; fewer than given only when it has ended.
    pub fn advance(&mut self, bytes: &[u8]) -> Result<usize, Malformed> {
        let mut at = 0;
        while let Some(&byte) = bytes.get(at) {
            if let State::Data { left } = self.state {
                let here = (bytes.len() - at) as u64;
                let taken = left.min(here);
                at += usize::try_from(taken).unwrap_or(usize::MAX);
                self.state =
                    if taken == left { State::DataCr } else { State::Data { left: left - taken } };
                continue;
            }
            if self.state == State::Done {
                break;
            }
            self.state = self.next(byte)?;
            at += 1;
        }
        Ok(at)
    }

    fn next(&mut self, byte: u8) -> Result<State, Malformed> {
        self.line += 1;
        if self.line > LINES_MAX {
            return Err(Malformed);
        }
        let next = match (self.state, byte) {
            (State::Size { value, digits }, byte) if byte.is_ascii_hexdigit() && digits < 15 => {
                let digit = char::from(byte).to_digit(16).unwrap_or(0);
                State::Size { value: value << 4 | u64::from(digit), digits: digits + 1 }
            }
            (State::Size { value, digits: 1.. }, b'\r') => State::SizeLf { value },
            (State::Size { value, digits: 1.. }, b';') if self.lenient => {
                State::Extension { value }
            }
            (State::Extension { value }, b'\r') => State::SizeLf { value },
            (State::Extension { value }, byte) if byte != b'\n' => State::Extension { value },
            (State::SizeLf { value: 0 }, b'\n') => State::Trailer,
            (State::SizeLf { value }, b'\n') => {
                self.line = 0;
                State::Data { left: value }
            }
            (State::DataCr, b'\r') => State::DataLf,
            (State::DataLf, b'\n') => State::Size { value: 0, digits: 0 },
            (State::Trailer, b'\r') => State::LastLf,
            (State::TrailerName, b':') => State::TrailerValue,
            (State::Trailer | State::TrailerName, byte) if is_token(byte) => State::TrailerName,
            (State::Trailer, byte) if self.lenient && byte > b' ' => State::TrailerValue,
            (State::TrailerName, b' ' | b'!'..) if self.lenient => State::TrailerValue,
            (State::TrailerName, b'\r') if self.lenient => State::TrailerLf,
            (State::TrailerValue, b'\r') => State::TrailerLf,
            (State::TrailerValue, b'\t' | b' '..=b'~' | 0x80..) => State::TrailerValue,
            (State::TrailerLf, b'\n') => State::Trailer,
            (State::LastLf, b'\n') => State::Done,
            _ => return Err(Malformed),
        };
        Ok(next)
    }
}

/// Of a field name (RFC 9110, section 5.6.2).
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GOOD: &str = "5\r\nhello\r\n00A\r\n0123456789\r\n0\r\nX: y\r\n\r\n";

    #[test]
    fn the_end_is_found_to_the_byte() {
        let mut body = Chunked::request();
        let text = format!("{GOOD}GET /next");
        assert_eq!(body.advance(text.as_bytes()), Ok(GOOD.len()));
        assert!(body.is_done());
    }

    #[test]
    fn attack_7_chunk_tricks() {
        for bad in [
            "5;ext=1\r\nhello\r\n0\r\n\r\n",
            "5\nhello\r\n0\r\n\r\n",
            "5 \r\nhello\r\n0\r\n\r\n",
            "+5\r\nhello\r\n0\r\n\r\n",
            "0x5\r\nhello\r\n0\r\n\r\n",
            "\r\nhello\r\n0\r\n\r\n",
            "5\r\nhelloX\r\n0\r\n\r\n",
            "5\r\nhello\n0\r\n\r\n",
            "fffffffffffffffff\r\n",
            "0\r\n folded\r\n\r\n",
            "0\r\nX: y\n\r\n",
            "0\r\nGET / HTTP/1.1\r\n\r\n",
            "0\r\nX : y\r\n\r\n",
            "0\r\n: y\r\n\r\n",
            "0\r\nX: y\0\r\n\r\n",
        ] {
            assert_eq!(Chunked::request().advance(bad.as_bytes()), Err(Malformed), "{bad:?}");
        }
        let extended = b"5;a=\"b\"\r\nhello\r\n0\r\n\r\n";
        assert_eq!(Chunked::response().advance(extended), Ok(extended.len()));
        let odd = b"0\r\nno colon\r\nX\r\nX: y\r\n\r\n";
        assert_eq!(Chunked::response().advance(odd), Ok(odd.len()));
        let endless = format!("0\r\n{}", "X: y\r\n".repeat(2000));
        assert_eq!(Chunked::request().advance(endless.as_bytes()), Err(Malformed));
    }

    proptest! {
        #[test]
        fn where_the_bytes_are_cut_does_not_matter(cuts in prop::collection::vec(0usize..GOOD.len(), 0..6)) {
            let mut cuts = cuts;
            cuts.extend([0, GOOD.len()]);
            cuts.sort_unstable();
            let mut body = Chunked::request();
            for pair in cuts.windows(2) {
                let part = &GOOD.as_bytes()[pair[0]..pair[1]];
                prop_assert_eq!(body.advance(part), Ok(part.len()));
            }
            prop_assert!(body.is_done());
        }
    }
}
