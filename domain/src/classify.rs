//! Tells a person's doing from background chatter.
//!
//! The rules are those that separated recordings of real programs: polling, autosaved layout,
//! heartbeats and self-refreshing pages are nobody's doing. The interface is two questions, one per
//! HTTP request and one per WebSocket message; everything a rule needs is passed in.

use std::{sync::LazyLock, time::Duration};

use memchr::memmem::Finder;

use crate::workload::Protocol;

/// Some kind of a person's doing, or `None` for background chatter.
pub type Doing = Option<&'static str>;

/// What is looked at in a request. `path` is without the query.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    pub method: &'a str,
    pub path: &'a str,
    /// A browser opening a page: `Sec-Fetch-Mode: navigate`, or a GET that accepts HTML.
    pub navigation: bool,
}

pub fn request(protocol: Protocol, request: Request<'_>) -> Doing {
    if request.navigation {
        return Some("opened a page");
    }
    if matches!(request.method, "GET" | "HEAD" | "OPTIONS") {
        return None;
    }
    match protocol {
        Protocol::Jupyter => jupyter_request(request.path),
        Protocol::Streamlit if request.path.ends_with("/_stcore/health") => None,
        _ => Some("sent a request"),
    }
}

/// JupyterLab writes its layout and settings without being asked.
fn jupyter_request(path: &str) -> Doing {
    if path.contains("/lab/api/workspaces") || path.contains("/lab/api/settings") {
        None
    } else if path.contains("/api/contents") {
        Some("changed a file")
    } else if path.contains("/api/kernels") || path.contains("/api/sessions") {
        Some("managed a kernel")
    } else if path.contains("/api/terminals") {
        Some("managed a terminal")
    } else {
        Some("sent a request")
    }
}

/// What a WebSocket is for, decided once when it opens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Channel {
    /// Nothing sent on it is a person's doing.
    Background,
    JupyterKernel,
    JupyterTerminal,
    StreamlitStream,
    /// Unknown: any message may be a person's, and doubt keeps the workload.
    Unknown,
}

pub fn channel(protocol: Protocol, path: &str) -> Channel {
    match protocol {
        Protocol::Jupyter if path.contains("/api/kernels/") => Channel::JupyterKernel,
        Protocol::Jupyter if path.contains("/terminals/websocket/") => Channel::JupyterTerminal,
        Protocol::Jupyter if path.contains("/api/") => Channel::Background,
        Protocol::Streamlit if path.ends_with("/_stcore/stream") => Channel::StreamlitStream,
        _ => Channel::Unknown,
    }
}

/// How much of a message's beginning a rule may ask for, in bytes.
pub const PREFIX_MAX: usize = 1024;

/// A fresh Streamlit page asks for its first run by itself.
const STREAMLIT_OPENING: Duration = Duration::from_secs(3);

/// A message from client to server. `start` is its beginning, unmasked, up to [`PREFIX_MAX`] bytes;
/// control frames (opcodes 8 to 10, RFC 6455, section 5.5) are nobody's doing and need not be asked.
pub fn message(channel: Channel, opcode: u8, start: &[u8], since_open: Duration) -> Doing {
    if !matches!(opcode, 1 | 2) {
        return None;
    }
    match channel {
        Channel::Background => None,
        Channel::JupyterKernel => kernel_message(start),
        // A JSON array whose first item names the message.
        Channel::JupyterTerminal => {
            TERMINAL_SIZE.find(start).is_none().then_some("typed in a terminal")
        }
        Channel::StreamlitStream => {
            (since_open > STREAMLIT_OPENING && !is_auto_rerun(start)).then_some("used the app")
        }
        Channel::Unknown => Some("sent a message"),
    }
}

/// What the front end asks by itself: at opening, for widgets and for the debugger.
static KERNEL_BACKGROUND: LazyLock<[Finder<'static>; 3]> = LazyLock::new(|| {
    ["\"kernel_info_request\"", "\"comm_info_request\"", "\"debug_request\""].map(Finder::new)
});

static TERMINAL_SIZE: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new("\"set_size\""));

/// Both subprotocols carry the header's JSON near the beginning, so the type is found by its text.
fn kernel_message(start: &[u8]) -> Doing {
    let background = KERNEL_BACKGROUND.iter().any(|kind| kind.find(start).is_some());
    (!background).then_some("worked with a kernel")
}

/// Streamlit's BackMsg (protocol buffers): field 11 is rerun_script with a ClientState, whose field
/// 6 says that a fragment refreshed itself.
fn is_auto_rerun(message: &[u8]) -> bool {
    field(message, 11).is_some_and(|state| match state {
        Field::Bytes(state) => matches!(field(state, 6), Some(Field::Varint(1..))),
        Field::Varint(_) => false,
    })
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
    use proptest::prelude::*;

    use super::*;

    fn http(protocol: Protocol, method: &str, path: &str) -> Doing {
        request(protocol, Request { method, path, navigation: false })
    }

    #[test]
    fn an_untouched_jupyterlab_is_background() {
        for (method, path) in [
            ("GET", "/api/kernels"),
            ("GET", "/api/contents/a.ipynb"),
            ("PUT", "/lab/api/workspaces/default"),
            ("PUT", "/lab/api/settings/@jupyterlab/apputils-extension:themes"),
        ] {
            assert_eq!(http(Protocol::Jupyter, method, path), None, "{method} {path}");
        }
        let lab = |path| channel(Protocol::Jupyter, path);
        assert_eq!(lab("/api/events/subscribe"), Channel::Background);
        assert_eq!(lab("/api/kernels/abc/channels"), Channel::JupyterKernel);
        assert_eq!(lab("/terminals/websocket/1"), Channel::JupyterTerminal);
    }

    #[test]
    fn a_person_in_jupyterlab_is_seen() {
        assert!(http(Protocol::Jupyter, "POST", "/api/contents/a.ipynb/checkpoints").is_some());
        assert!(http(Protocol::Jupyter, "DELETE", "/api/terminals/1").is_some());
        let page = Request { method: "GET", path: "/lab", navigation: true };
        assert!(request(Protocol::Jupyter, page).is_some());
        let late = Duration::from_secs(60);
        let kernel = |text: &str| message(Channel::JupyterKernel, 1, text.as_bytes(), late);
        assert!(kernel(r#"{"header":{"msg_type":"execute_request"}}"#).is_some());
        assert!(kernel(r#"{"header":{"msg_type":"kernel_info_request"}}"#).is_none());
        let terminal = |text: &str| message(Channel::JupyterTerminal, 1, text.as_bytes(), late);
        assert!(terminal(r#"["stdin","l"]"#).is_some());
        assert!(terminal(r#"["set_size",24,80,0,0]"#).is_none());
    }

    #[test]
    fn control_frames_are_nobody() {
        for opcode in 8..=10 {
            assert_eq!(message(Channel::Unknown, opcode, b"", Duration::MAX), None);
        }
        assert!(message(Channel::Unknown, 2, b"", Duration::ZERO).is_some());
    }

    #[test]
    fn a_streamlit_fragment_that_refreshes_itself_is_background() {
        // rerun_script { query_string: "", is_auto_rerun: true }, and the same without the flag.
        let auto = [0x5a, 4, 0x0a, 0, 0x30, 1];
        let click = [0x5a, 2, 0x0a, 0];
        let sent = |bytes: &[u8], after| {
            message(Channel::StreamlitStream, 2, bytes, Duration::from_secs(after)).is_some()
        };
        assert!(!sent(&auto, 60));
        assert!(sent(&click, 60));
        assert!(!sent(&click, 1), "the page's own first run");
    }

    proptest! {
        #[test]
        fn no_message_panics(bytes in prop::collection::vec(any::<u8>(), 0..64), opcode in 0u8..16) {
            for channel in [Channel::JupyterKernel, Channel::StreamlitStream, Channel::JupyterTerminal] {
                let _ = message(channel, opcode, &bytes, Duration::MAX);
            }
        }
    }
}
