//! Socket.IO over Engine.IO: one digit or two say what a packet is, and an event has its name first.

use super::{Name, beat::Care, hash};

/// Events that clients send by themselves.
const BY_ITSELF: [&[u8]; 8] = [
    b"ack",
    b"heartbeat",
    b"ping",
    b"pong",
    b"keepalive",
    b"keep_alive",
    b"handshake",
    b"log_connection",
];

/// A text packet; `start` is its beginning.
pub fn packet(start: &[u8]) -> Name {
    match start {
        // open, close, ping, pong, upgrade, noop
        [b'0' | b'1' | b'2' | b'3' | b'5' | b'6', ..] => Name::Noise("heartbeat"),
        // A message: connect, disconnect, ack, error, binary ack; what is left are events.
        [b'4', b'0' | b'1' | b'3' | b'4' | b'6', ..] => Name::Noise("acknowledgement"),
        [b'4', b'2' | b'5', rest @ ..] => event(rest),
        _ => Name::Beat {
            what: "sent a message",
            kind: hash(2, b""),
            care: Care::Great,
            known: false,
        },
    }
}

/// `<attachments>-` and `/<namespace>,` and `<id>` may come before the array.
fn event(rest: &[u8]) -> Name {
    let name = memchr::memchr(b'[', rest).and_then(|at| rest.get(at + 1..)).unwrap_or_default();
    let name = name.trim_ascii_start().strip_prefix(b"\"").unwrap_or_default();
    let end = memchr::memchr(b'"', name).unwrap_or(name.len());
    let name = name.get(..end).unwrap_or_default();
    if BY_ITSELF.contains(&name) {
        Name::Noise("acknowledgement")
    } else {
        Name::Beat { what: "used the app", kind: hash(2, name), care: Care::Great, known: true }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heartbeats_and_acknowledgements_are_nobody() {
        for text in [
            "2",
            "3",
            "2probe",
            "5",
            "40",
            "430[]",
            "42[\"ack\",{\"id\":1}]",
            "42/a,7[\"heartbeat\"]",
        ] {
            assert!(matches!(packet(text.as_bytes()), Name::Noise(_)), "{text}");
        }
        for text in
            ["42[\"event\",{}]", "42/chat,1[\"client_message\",{}]", "451-[\"upload\",{}]", "x"]
        {
            assert!(matches!(packet(text.as_bytes()), Name::Beat { .. }), "{text}");
        }
    }
}
