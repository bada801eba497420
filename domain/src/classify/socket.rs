//! Reads the messages of a WebSocket: which application it belongs to is decided once, by the
//! workload's protocol or by its own path and subprotocol.

use std::sync::LazyLock;

use memchr::memmem::Finder;

use super::{Name, beat::Care, bokeh, hash, hash_of, kernel, socketio, streamlit, vscode};
use crate::workload::Protocol;

/// How much of a message's beginning a rule may ask for, in bytes.
pub const PREFIX_MAX: usize = 1024;
/// Bokeh's header fits in it.
const HEADER_MAX: usize = 128;

/// Who says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum From {
    Client,
    Server,
}

/// How much of a direction a reader wants to see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// Nothing.
    No,
    /// The beginning of each message, up to so many bytes.
    Start(usize),
    /// Every byte: the protocol makes messages of its own.
    All,
}

#[derive(Debug)]
enum App {
    /// Nothing sent on it is a person's doing.
    Background,
    Kernel,
    Terminal,
    /// Documents that several edit: Yjs.
    Shared,
    Streamlit,
    SocketIo,
    Bokeh(bokeh::Parts),
    VsCode(Box<[vscode::Stream; 2]>),
    /// The kind of its messages is made of the path.
    Unknown(u64),
}

/// Reads one WebSocket.
#[derive(Debug)]
pub struct Reader(App);

static TERMINAL_SIZE: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new("\"set_size\""));

impl Reader {
    /// For a socket of a service of ours: nothing on it counts.
    pub fn background() -> Self {
        Self(App::Background)
    }

    /// `subprotocol` is what the client asked for.
    pub fn new(protocol: Protocol, path: &str, query: &str, subprotocol: &str) -> Self {
        let ends = |end: &str| path.trim_end_matches('/').ends_with(end);
        let bokeh = subprotocol.split(',').any(|name| name.trim().eq_ignore_ascii_case("bokeh"));
        Self(if path.contains("/api/kernels/") && ends("/channels") {
            App::Kernel
        } else if path.contains("/terminals/websocket/") {
            App::Terminal
        } else if path.contains("/api/collaboration/") || path.contains("/api/yjs/") {
            App::Shared
        } else if ends("/api/events/subscribe") {
            App::Background
        } else if ends("/_stcore/stream") {
            App::Streamlit
        } else if path.contains("/socket.io") || path.contains("/engine.io") {
            App::SocketIo
        } else if bokeh && ends("/ws") {
            App::Bokeh(bokeh::Parts::default())
        } else if protocol == Protocol::VsCode || query.contains("reconnectionToken=") {
            App::VsCode(Box::default())
        } else {
            App::Unknown(hash(7, path.as_bytes()))
        })
    }

    /// What it wants to see of a direction.
    pub fn wants(&self, from: From) -> Content {
        match (from, &self.0) {
            (_, App::Background) => Content::No,
            (_, App::VsCode(_)) => Content::All,
            (From::Server, App::Bokeh(_)) => Content::Start(HEADER_MAX),
            (From::Server, _) => Content::No,
            (From::Client, _) => Content::Start(PREFIX_MAX),
        }
    }

    /// Whether anything on it may be a person's.
    pub fn is_background(&self) -> bool {
        matches!(self.0, App::Background)
    }

    /// A message, by its beginning. Control frames (opcodes 8 to 10, RFC 6455, section 5.5) are
    /// nobody's doing and need not be asked about.
    pub fn message(&mut self, from: From, opcode: u8, start: &[u8]) -> Name {
        if !matches!(opcode, 1 | 2) {
            return Name::Noise("control frame");
        }
        match (&mut self.0, from) {
            (App::Bokeh(_), From::Server) => bokeh::server_says(start),
            (_, From::Server) => Name::Noise("server"),
            (App::Background | App::VsCode(_), _) => Name::Noise("background"),
            (App::Kernel, _) => kernel::message(start),
            // A JSON array whose first item names the message.
            (App::Terminal, _) => match TERMINAL_SIZE.find(start) {
                Some(_) => Name::Noise("terminal size"),
                None => Name::Person("typed in a terminal"),
            },
            (App::Shared, _) => shared(start),
            (App::Streamlit, _) => streamlit::message(start),
            (App::SocketIo, _) if opcode == 1 => socketio::packet(start),
            // What an event has attached.
            (App::SocketIo, _) => Name::Noise("attachment"),
            (App::Bokeh(parts), _) => parts.client_says(start),
            (App::Unknown(path), _) => unknown(*path, start),
        }
    }

    /// Some of a direction's bytes, for [`Content::All`].
    pub fn part(&mut self, from: From, bytes: &[u8], named: impl FnMut(Name)) {
        if let App::VsCode(streams) = &mut self.0 {
            let [up, down] = &mut **streams;
            match from {
                From::Client => up.feed(from, bytes, named),
                From::Server => down.feed(from, bytes, named),
            }
        }
    }

    /// The framing was lost: what comes may be anything.
    pub fn lost(&self, from: From) -> Name {
        match from {
            From::Client if !self.is_background() => Name::Beat {
                what: "sent data",
                kind: hash(8, b""),
                care: Care::Usual,
                known: false,
            },
            _ => Name::Noise("background"),
        }
    }
}

/// Yjs's protocols of synchronisation and awareness: a number says which, and in the first another
/// one says whether it is a change.
pub(super) fn shared(start: &[u8]) -> Name {
    match start {
        [0, 2, ..] => Name::Person("edited together"),
        _ => Name::Noise("awareness"),
    }
}

/// Heartbeats that many protocols have: a word alone, or a JSON object that begins with its type.
fn is_heartbeat(start: &[u8]) -> bool {
    const WORDS: [&[u8]; 6] =
        [b"ping", b"pong", b"heartbeat", b"keepalive", b"keep-alive", b"keep_alive"];
    const KEYS: [&[u8]; 5] = [b"type", b"op", b"event", b"action", b"method"];
    if start.len() > 128 {
        return false;
    }
    let mut parts = start.splitn(5, |&byte| byte == b'"');
    let word = match (parts.next(), parts.next(), parts.next(), parts.next()) {
        (Some(word), None, ..) => word,
        (Some(b"{"), Some(key), Some(colon), Some(word))
            if colon.trim_ascii() == b":" && KEYS.contains(&key) =>
        {
            word
        }
        (Some(b""), Some(word), Some(b""), None) => word,
        _ => return false,
    };
    WORDS.iter().any(|beat| word.eq_ignore_ascii_case(beat))
}

fn unknown(path: u64, start: &[u8]) -> Name {
    if is_heartbeat(start) {
        return Name::Noise("heartbeat");
    }
    if let Some(name) = shiny(start) {
        return name;
    }
    // Without digits: many number their messages.
    let kind = hash_of(path, start.iter().take(24).filter(|byte| !byte.is_ascii_digit()));
    Name::Beat { what: "sent a message", kind, care: Care::Usual, known: false }
}

/// Shiny: `{"method":"update","data":{"n:shiny.number":5}}`. What it says of the window by itself
/// begins with `.clientdata_`.
fn shiny(start: &[u8]) -> Option<Name> {
    let rest = start.strip_prefix(b"{\"method\":\"")?;
    if rest.starts_with(b"init\"") {
        return Some(Name::Noise("opening"));
    }
    let data = rest.strip_prefix(b"update\",\"data\":{")?;
    let (mut depth, mut in_string, mut escaped, mut expects_key) = (0u32, false, false, true);
    for (at, &byte) in data.iter().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' if !in_string && expects_key => {
                let key = data.get(at + 1..).unwrap_or_default();
                if !key.starts_with(b".clientdata_") && !b".clientdata_".starts_with(key) {
                    return Some(Name::Person("used the app"));
                }
                (in_string, expects_key) = (true, false);
            }
            b'"' => in_string = !in_string,
            _ if in_string => {}
            b'{' | b'[' => depth += 1,
            b'}' | b']' if depth == 0 => break,
            b'}' | b']' => depth -= 1,
            b',' if depth == 0 => expects_key = true,
            _ => {}
        }
    }
    Some(Name::Noise("window"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn reader(path: &str) -> Reader {
        Reader::new(Protocol::Http, path, "", "")
    }

    fn text(reader: &mut Reader, text: &str) -> Name {
        reader.message(From::Client, 1, text.as_bytes())
    }

    #[test]
    fn an_application_is_known_by_its_socket() {
        assert!(reader("/api/events/subscribe").is_background());
        let mut lab = reader("/user/a/api/kernels/b/channels");
        let run = text(&mut lab, r#"{"header":{"msg_type":"execute_request"}}"#);
        assert_eq!(run, Name::Person("worked with a kernel"));
        let mut terminal = reader("/terminals/websocket/1");
        assert_eq!(text(&mut terminal, r#"["stdin","l"]"#), Name::Person("typed in a terminal"));
        assert_eq!(text(&mut terminal, r#"["set_size",1,2]"#), Name::Noise("terminal size"));
        let mut nicegui = reader("/_nicegui_ws/socket.io/");
        assert_eq!(text(&mut nicegui, "3"), Name::Noise("heartbeat"));
        let panel = Reader::new(Protocol::Http, "/app/ws", "", "bokeh, eyJ");
        assert_eq!(panel.wants(From::Server), Content::Start(HEADER_MAX));
        for (protocol, query) in [(Protocol::VsCode, ""), (Protocol::Http, "reconnectionToken=a")] {
            let code = Reader::new(protocol, "/stable-abc", query, "");
            assert_eq!(code.wants(From::Client), Content::All);
        }
    }

    #[test]
    fn edits_of_a_shared_document_are_a_person_and_awareness_is_not() {
        let mut room = reader("/api/collaboration/room/json:notebook:a");
        let mut sent = |bytes: &[u8]| room.message(From::Client, 2, bytes);
        assert_eq!(sent(&[0, 2, 5, 1, 1]), Name::Person("edited together"));
        for quiet in [&[1, 20, 1][..], &[0, 0, 1], &[0, 1, 1], &[]] {
            assert_eq!(sent(quiet), Name::Noise("awareness"));
        }
    }

    #[test]
    fn what_shiny_says_of_its_window_is_nobody() {
        let mut app = reader("/websocket/");
        let update = |data: &str| format!(r#"{{"method":"update","data":{{{data}}}}}"#);
        let window = update(r#"".clientdata_output_a_width":1,".clientdata_x":{"b":[1,","]}"#);
        assert_eq!(text(&mut app, &window), Name::Noise("window"));
        let used = update(r#"".clientdata_x":"a\",","n:shiny.number":5"#);
        assert_eq!(text(&mut app, &used), Name::Person("used the app"));
    }

    #[test]
    fn what_nobody_knows_is_not_understood() {
        let mut app = reader("/live");
        assert_eq!(text(&mut app, "ping"), Name::Noise("heartbeat"));
        assert_eq!(text(&mut app, r#"{"type":"ping","t":17}"#), Name::Noise("heartbeat"));
        let name = text(&mut app, r#"{"n":17,"do":"it"}"#);
        assert!(matches!(name, Name::Beat { known: false, .. }));
        assert_eq!(name, text(&mut app, r#"{"n":18,"do":"it"}"#));
        assert_eq!(app.message(From::Client, 9, b""), Name::Noise("control frame"));
    }

    proptest! {
        #[test]
        fn no_message_panics(bytes in prop::collection::vec(any::<u8>(), 0..64), opcode in 0u8..16) {
            for path in ["/api/kernels/a/channels", "/_stcore/stream", "/socket.io/", "/x", "/api/collaboration/r"] {
                let mut reader = reader(path);
                let _ = reader.message(From::Client, opcode, &bytes);
            }
            let mut panel = Reader::new(Protocol::Http, "/ws", "", "bokeh");
            let _ = panel.message(From::Server, opcode, &bytes);
            let _ = panel.message(From::Client, opcode, &bytes);
        }
    }
}
