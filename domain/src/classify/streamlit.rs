//! Streamlit's BackMsg (protocol buffers), as far as it says who wants a run.

use super::{Name, hash};

const RERUN_SCRIPT: u64 = 11;
const LOAD_GIT_INFO: u64 = 12;
const APP_HEARTBEAT: u64 = 17;
/// Within `ClientState`: a fragment refreshed itself.
const IS_AUTO_RERUN: u64 = 6;

pub fn message(message: &[u8]) -> Name {
    if let Some(state) = field(message, RERUN_SCRIPT) {
        let auto = match state {
            Field::Bytes(state) => matches!(field(state, IS_AUTO_RERUN), Some(Field::Varint(1..))),
            Field::Varint(_) => false,
        };
        return if auto { Name::Noise("fragment") } else { rerun() };
    }
    if field(message, APP_HEARTBEAT).is_some() || field(message, LOAD_GIT_INFO).is_some() {
        return Name::Noise("heartbeat");
    }
    rerun()
}

/// Also of components that refresh themselves; only their beat tells.
pub fn rerun() -> Name {
    Name::Begins { what: "used the app", kind: hash(4, b"") }
}

enum Field<'a> {
    Varint(u64),
    Bytes(&'a [u8]),
}

/// The first field of that number; `None` when it is absent or the bytes end or make no sense.
fn field(mut bytes: &[u8], wanted: u64) -> Option<Field<'_>> {
    loop {
        let tag = varint(&mut bytes)?;
        let found = match tag & 7 {
            0 => Field::Varint(varint(&mut bytes)?),
            1 => Field::Bytes(take(&mut bytes, 8)?),
            2 => {
                let length = usize::try_from(varint(&mut bytes)?).ok()?;
                // The message may have been cut at the prefix: what is there is looked at.
                let length = length.min(bytes.len());
                Field::Bytes(take(&mut bytes, length)?)
            }
            5 => Field::Bytes(take(&mut bytes, 4)?),
            _ => return None,
        };
        if tag >> 3 == wanted {
            return Some(found);
        }
    }
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn take<'a>(bytes: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (taken, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    Some(taken)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fragment_that_refreshes_itself_is_nobody() {
        // rerun_script { query_string: "", is_auto_rerun: true }, and the same without the flag.
        assert_eq!(message(&[0x5a, 4, 0x0a, 0, 0x30, 1]), Name::Noise("fragment"));
        assert_eq!(message(&[0x5a, 2, 0x0a, 0]), rerun());
        assert_eq!(message(&[0x8a, 1, 0]), Name::Noise("heartbeat"));
        assert_eq!(message(b"?"), rerun());
    }
}
