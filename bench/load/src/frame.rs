//! As much of WebSocket framing (RFC 6455, section 5.2) as an echo needs.

/// The frame at the beginning of `bytes`: where its payload lies, its mask and its opcode.
#[derive(Debug, Clone, Copy)]
pub struct Frame {
    pub opcode: u8,
    pub mask: Option<[u8; 4]>,
    pub start: usize,
    pub end: usize,
}

/// `None` until the whole frame is there.
pub fn first(bytes: &[u8]) -> Option<Frame> {
    let (&one, &two) = (bytes.first()?, bytes.get(1)?);
    let (length, mut start) = match two & 0x7f {
        126 => (u64::from(u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?)), 4),
        127 => (u64::from_be_bytes(bytes.get(2..10)?.try_into().ok()?), 10),
        short => (u64::from(short), 2),
    };
    let mask = match two & 0x80 {
        0 => None,
        _ => {
            let mask = bytes.get(start..start + 4)?.try_into().ok()?;
            start += 4;
            Some(mask)
        }
    };
    let end = start.checked_add(usize::try_from(length).ok()?)?;
    (bytes.len() >= end).then_some(Frame { opcode: one & 0x0f, mask, start, end })
}

/// Appends a whole frame, masked or not.
pub fn push(out: &mut Vec<u8>, opcode: u8, mask: Option<[u8; 4]>, payload: &[u8]) {
    let masked = if mask.is_some() { 0x80 } else { 0 };
    out.push(0x80 | opcode);
    match payload.len() {
        length @ 0..126 => out.push(masked | length as u8),
        length @ 126..=0xffff => {
            out.push(masked | 126);
            out.extend_from_slice(&(length as u16).to_be_bytes());
        }
        length => {
            out.push(masked | 127);
            out.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    match mask {
        None => out.extend_from_slice(payload),
        Some(mask) => {
            out.extend_from_slice(&mask);
            out.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, key)| byte ^ key));
        }
    }
}
