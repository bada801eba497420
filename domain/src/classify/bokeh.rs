//! Bokeh's and Panel's protocol: a message is three text frames, header, metadata and content, and
//! after them buffers.

use memchr::memmem::Finder;

use super::{Key, Name, beat::Care, hash, json_string};

static MSGTYPE: Key = Key::new(|| Finder::new("\"msgtype\""));
static MESSAGE_SENT: Key = Key::new(|| Finder::new("\"MessageSent\""));
static ATTR: Key = Key::new(|| Finder::new("\"attr\""));
static ID: Key = Key::new(|| Finder::new("\"id\""));

/// Which part comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Parts {
    stage: u8,
    is_patch: bool,
}

/// What the browser's window says of itself.
const WINDOW: [&[u8]; 14] = [
    b"inner_width",
    b"inner_height",
    b"outer_width",
    b"outer_height",
    b"dark_mode",
    b"device_pixel_ratio",
    b"navigator",
    b"timezone",
    b"timezone_offset",
    b"webdriver",
    b"webgl",
    b"language",
    b"hash",
    b"search",
];

/// Events that no hand makes.
const BY_ITSELF: [&[u8]; 4] =
    [b"document_ready", b"rangesupdate", b"connection_lost", b"client_reconnected"];

impl Parts {
    pub fn client_says(&mut self, start: &[u8]) -> Name {
        if let Some(kind) = message_kind(start) {
            *self = Self { stage: 1, is_patch: kind == b"PATCH-DOC" };
            return Name::Noise("header");
        }
        self.stage = match self.stage {
            1 => 2,
            2 if self.is_patch => {
                self.stage = 0;
                return content(start);
            }
            _ => 0,
        };
        Name::Noise("metadata")
    }
}

pub fn server_says(start: &[u8]) -> Name {
    match message_kind(start) {
        Some(b"PATCH-DOC") => Name::Pushed,
        _ => Name::Noise("server"),
    }
}

fn message_kind(start: &[u8]) -> Option<&[u8]> {
    start.starts_with(b"{\"msgid\"").then(|| json_string(start, &MSGTYPE)).flatten()
}

/// `{"events":[{"kind":"ModelChanged","model":{"id":"p1"},"attr":"value","new":1}, ...`
pub fn content(start: &[u8]) -> Name {
    if MESSAGE_SENT.find(start).is_some() {
        let mut names = start.split(|&byte| byte == b'"');
        return match names.any(|name| BY_ITSELF.contains(&name)) {
            true => Name::Noise("event of the page"),
            false => Name::Person("used the app"),
        };
    }
    let (mut rest, mut window, mut range, mut other) = (start, false, false, None);
    while let Some(at) = ATTR.find(rest) {
        rest = rest.get(at..).unwrap_or_default();
        let attr = json_string(rest, &ATTR).unwrap_or_default();
        rest = rest.get(6..).unwrap_or_default();
        match attr {
            attr if WINDOW.contains(&attr) => window = true,
            b"start" | b"end" => range = true,
            attr => other = Some(attr),
        }
    }
    let model = json_string(start, &ID).unwrap_or_default();
    attributes(window, range, other, model)
}

fn attributes(window: bool, range: bool, other: Option<&[u8]>, model: &[u8]) -> Name {
    let kind = match (other, window, range) {
        (None, _, true) => return Name::Range("moved a plot"),
        (None, true, false) => return Name::Noise("window"),
        (other, ..) => hash(hash(5, model), other.unwrap_or_default()),
    };
    Name::Beat { what: "used the app", kind, care: Care::Usual, known: true }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patch(content: &str) -> Name {
        let mut parts = Parts::default();
        let header = parts.client_says(br#"{"msgid":"1","msgtype":"PATCH-DOC"}"#);
        assert_eq!(header, Name::Noise("header"));
        assert_eq!(parts.client_says(b"{}"), Name::Noise("metadata"));
        let name = parts.client_says(content.as_bytes());
        assert_eq!(parts, Parts { stage: 0, is_patch: true });
        name
    }

    #[test]
    fn what_a_page_sends() {
        let model = |attr: &str| {
            format!(r#"{{"kind":"ModelChanged","model":{{"id":"p1"}},"attr":"{attr}","new":0}}"#)
        };
        let events = |events: &[String]| patch(&format!(r#"{{"events":[{}]}}"#, events.join(",")));
        assert_eq!(events(&[model("start"), model("end")]), Name::Range("moved a plot"));
        assert_eq!(events(&[model("inner_width")]), Name::Noise("window"));
        assert!(matches!(events(&[model("value")]), Name::Beat { .. }));
        assert!(matches!(events(&[model("start"), model("value")]), Name::Beat { .. }));
        let sent = |name: &str| {
            patch(&format!(
                r#"{{"events":[{{"kind":"MessageSent","msg_type":"bokeh_event","msg_data":{{"type":"event","name":"{name}"}}}}]}}"#
            ))
        };
        assert_eq!(sent("button_click"), Name::Person("used the app"));
        assert_eq!(sent("document_ready"), Name::Noise("event of the page"));
    }

    #[test]
    fn what_is_no_patch_is_nobody() {
        let mut parts = Parts::default();
        for text in [r#"{"msgid":"1","msgtype":"PULL-DOC-REQ"}"#, "{}", "{}", "buffer", "{}"] {
            assert!(matches!(parts.client_says(text.as_bytes()), Name::Noise(_)));
        }
        assert_eq!(server_says(br#"{"msgid":"1","msgtype":"PATCH-DOC"}"#), Name::Pushed);
        assert_ne!(server_says(br#"{"msgid":"1","msgtype":"OK"}"#), Name::Pushed);
    }
}
