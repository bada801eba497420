//! Messages to a Jupyter kernel, in both subprotocols: the header's JSON is near the beginning.

use memchr::memmem::Finder;

use super::{Key, Name, beat::Care, hash, json_string};

static MSG_TYPE: Key = Key::new(|| Finder::new("\"msg_type\""));
static METHOD: Key = Key::new(|| Finder::new("\"method\""));
static COMM_ID: Key = Key::new(|| Finder::new("\"comm_id\""));

/// What front ends ask by themselves: at opening, for widgets, the debugger and the resource monitor.
const BY_ITSELF: [&[u8]; 8] = [
    b"kernel_info_request",
    b"comm_info_request",
    b"debug_request",
    b"history_request",
    b"usage_request",
    b"comm_open",
    b"comm_close",
    b"connect_request",
];

pub fn message(start: &[u8]) -> Name {
    let kind = json_string(start, &MSG_TYPE).unwrap_or_default();
    if BY_ITSELF.contains(&kind) {
        return Name::Noise("kernel housekeeping");
    }
    if kind != b"comm_msg" {
        return Name::Person("worked with a kernel");
    }
    match json_string(start, &METHOD) {
        Some(b"request_state" | b"request_states" | b"echo_update") => Name::Noise("widget state"),
        // A slider in somebody's hand, or one that a player moves.
        Some(b"update") => widget(json_string(start, &COMM_ID).unwrap_or_default()),
        _ => Name::Person("used a widget"),
    }
}

pub fn widget(comm: &[u8]) -> Name {
    let kind = hash(3, comm);
    Name::Beat { what: "used a widget", kind, care: Care::Usual, known: true }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_to_a_kernel() {
        let person = |text: &str| match message(text.as_bytes()) {
            Name::Person(_) => true,
            Name::Noise(_) => false,
            other => panic!("{other:?}"),
        };
        assert!(person(r#"{"header":{"msg_type":"execute_request"}}"#));
        assert!(person(r#"{"header": {"msg_type": "input_reply"}}"#));
        assert!(!person(r#"{"header": {"msg_type": "kernel_info_request"}}"#));
        assert!(!person("\x06\0\0\0\0\0\0\0shell{\"msg_type\":\"comm_open\"}"));
        assert!(person(r#"{"content":{"code":"\"msg_type\":\"debug_request\""},"header":{"msg_"#));
        assert!(person(r#"{"msg_type":"comm_msg","content":{"data":{"method":"custom"}}}"#));
        let update =
            r#"{"msg_type":"comm_msg","content":{"comm_id":"a","data":{"method":"update"}}}"#;
        assert!(matches!(message(update.as_bytes()), Name::Beat { .. }));
    }
}
