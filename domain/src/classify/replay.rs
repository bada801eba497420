//! Recordings of traffic, put before the same judge as in the gateway: a line of JSON per event, the
//! first one (`meta`) about the recording.
//!
//! A recording holds no contents: `msg_type` on a message says what a reader found in it. Bytes do not
//! go through here, so the readers have tests of their own.

use std::collections::{BTreeSet, HashMap};

use serde::Deserialize;
use serde_json::Value;

use super::{
    Form, Name, Read, Request, Ruling, Verdict,
    beat::Care,
    bokeh, hash,
    judge::{Socket, Workload},
    kernel, request,
    socket::{self, From},
    streamlit, vscode,
};
use crate::workload::Protocol;

/// Why a file is no recording.
#[derive(Debug, thiserror::Error)]
pub enum NoRecording {
    #[error("the file is empty")]
    Empty,
    #[error("line {line} is not JSON: {error}")]
    Json { line: usize, error: serde_json::Error },
    #[error(
        "line 1 is not about a recording: it has to be an object with \"kind\":\"meta\" and \"window\":[from,to]"
    )]
    Meta,
    #[error("line {line} is no event: {error}")]
    Event { line: usize, error: serde_json::Error },
}

/// What a replay came to, from the window's beginning to its end.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Counts {
    pub case: String,
    pub person: u32,
    pub work: u32,
    pub noise: u32,
    pub unknown: u32,
    /// Minutes in which a person or something unknown did something.
    pub active_minutes: usize,
    #[serde(skip)]
    pub label: String,
    #[serde(skip)]
    pub minutes: BTreeSet<i64>,
    /// Minutes in which somebody did something, as whoever recorded it says.
    #[serde(skip)]
    pub acts: BTreeSet<i64>,
}

#[derive(Deserialize)]
struct Event<'a> {
    t: f64,
    kind: &'a str,
    #[serde(default)]
    conn: u64,
    #[serde(default)]
    path: String,
    #[serde(default)]
    sub: String,
    #[serde(default)]
    q: String,
    #[serde(default)]
    method: String,
    #[serde(default)]
    fetch: String,
    #[serde(default)]
    dir: String,
    #[serde(default)]
    opcode: u8,
    #[serde(default)]
    msg_type: Option<Value>,
}

struct Replay {
    workload: Workload<()>,
    sockets: HashMap<u64, (String, String, Socket)>,
    /// Moments in doubt, by kind.
    doubts: HashMap<u64, Vec<i64>>,
    protocol: Protocol,
    end: i64,
    counts: Counts,
}

fn millis(seconds: f64) -> i64 {
    (seconds * 1000.0).round() as i64
}

/// Replays a recording.
pub fn replay(text: &str) -> Result<Counts, NoRecording> {
    let mut lines = text.lines().enumerate().map(|(at, line)| (at + 1, line));
    let mut lines = lines.by_ref().filter(|(_, line)| !line.trim().is_empty());
    let (_, first) = lines.next().ok_or(NoRecording::Empty)?;
    let meta: Value =
        serde_json::from_str(first).map_err(|error| NoRecording::Json { line: 1, error })?;
    let word = |key: &str| meta.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let end = meta.get("window").and_then(|window| window.get(1)).and_then(Value::as_f64);
    let end = end.filter(|_| word("kind") == "meta").ok_or(NoRecording::Meta)?;
    let app = word("app").to_ascii_lowercase();
    let protocol = [
        ("jupyter", Protocol::Jupyter),
        ("notebook", Protocol::Jupyter),
        ("code-server", Protocol::VsCode),
        ("streamlit", Protocol::Streamlit),
    ];
    let mut replay = Replay {
        workload: Workload::default(),
        sockets: HashMap::new(),
        doubts: HashMap::new(),
        protocol: protocol
            .iter()
            .find(|(name, _)| app.contains(name))
            .map_or(Protocol::Http, |(_, protocol)| *protocol),
        end: millis(end),
        counts: Counts { case: word("case"), label: word("label"), ..Counts::default() },
    };
    for (line, text) in lines {
        let json = |error: serde_json::Error| match error.is_data() {
            true => NoRecording::Event { line, error },
            false => NoRecording::Json { line, error },
        };
        replay.event(&serde_json::from_str(text).map_err(json)?);
    }
    replay.settle(i64::MAX);
    replay.counts.active_minutes = replay.counts.minutes.len();
    Ok(replay.counts)
}

impl Replay {
    fn event(&mut self, event: &Event<'_>) {
        let now = millis(event.t);
        self.settle(now);
        let said = match &event.msg_type {
            Some(Value::String(text)) => text.as_str(),
            _ => "",
        };
        match event.kind {
            "act" if (0..=self.end).contains(&now) => {
                self.counts.acts.insert(now / 60_000);
            }
            "wsopen" => {
                let socket = (event.path.clone(), event.sub.clone(), Socket::new(now));
                self.sockets.insert(event.conn, socket);
            }
            "wsclose" => {
                self.sockets.remove(&event.conn);
            }
            "http" => self.judge(http(self.protocol, event, said), None, now),
            "ws" => self.message(event, said, now),
            "ssh" => {
                // A number of RFC 4250: SSH_MSG_CHANNEL_DATA from the client is somebody's.
                let number = event.msg_type.as_ref().and_then(Value::as_i64);
                let number = number.or_else(|| said.parse().ok());
                let typed = event.dir == "c2s" && number == Some(94);
                let name = if typed { Name::Person("typed over SSH") } else { Name::Noise("SSH") };
                self.judge(name, None, now);
            }
            _ => {}
        }
    }

    fn message(&mut self, event: &Event<'_>, said: &str, now: i64) {
        let from = if event.dir == "c2s" { From::Client } else { From::Server };
        let known = self.sockets.get(&event.conn).map(|(path, sub, socket)| (path, sub, *socket));
        let (path, sub, mut socket) = match known {
            Some((path, sub, socket)) => (path.clone(), sub.clone(), socket),
            // It was open before the recording began.
            None => (String::new(), String::new(), Socket::new(i64::MIN / 2)),
        };
        for name in names(self.protocol, &path, &sub, from, event.opcode, said) {
            self.judge(name, Some(&mut socket), now);
        }
        if let Some((_, _, known)) = self.sockets.get_mut(&event.conn) {
            *known = socket;
        }
    }

    fn judge(&mut self, name: Name, socket: Option<&mut Socket>, now: i64) {
        let kind = match name {
            Name::Beat { kind, .. } | Name::Begins { kind, .. } => kind,
            _ => 0,
        };
        match self.workload.judge(name, socket, now, || ()) {
            Ruling::Later => self.doubts.entry(kind).or_default().push(now),
            Ruling::Now(verdict) => {
                // A beat that was learnt: so were those that led to it.
                if verdict == Verdict::Noise("a beat") {
                    for at in self.doubts.remove(&kind).unwrap_or_default() {
                        self.count(verdict, at);
                    }
                }
                self.count(verdict, now);
            }
        }
    }

    fn settle(&mut self, now: i64) {
        while let Some(settled) = self.workload.settle(now) {
            for at in self.doubts.remove(&settled.kind).unwrap_or_default() {
                self.count(settled.verdict, at);
            }
        }
    }

    fn count(&mut self, verdict: Verdict, at: i64) {
        if !(0..=self.end).contains(&at) {
            return;
        }
        let counts = &mut self.counts;
        match verdict {
            Verdict::Person(_) => counts.person += 1,
            Verdict::Work(_) => counts.work += 1,
            Verdict::Noise(_) => counts.noise += 1,
            Verdict::Unknown(_) => counts.unknown += 1,
        }
        if verdict.doing().is_some() {
            counts.minutes.insert(at / 60_000);
        }
    }
}

fn http(protocol: Protocol, event: &Event<'_>, said: &str) -> Name {
    let mut fetch = event.fetch.split(',');
    let navigation = fetch.next() == Some("navigate");
    let dest = fetch.next().or(Some("empty"));
    let request = Request {
        method: &event.method,
        path: &event.path,
        query: &event.q.replace(',', "&"),
        navigation,
        dest,
        user: fetch.next() == Some("?1"),
        tells_user: navigation,
        ..Request::default()
    };
    match request::read(protocol, &request) {
        Read::Whole(name) => name,
        Read::Body(form, before) => request::body(form, before, &body(form, said)),
    }
}

/// A body of which is said what a recording says.
fn body(form: Form, said: &str) -> Vec<u8> {
    let value = |key: &str| said.split(';').find_map(|part| part.strip_prefix(key));
    match form {
        Form::Dash => value("changed=").map(|changed| {
            let props: Vec<_> = changed.split(',').map(|prop| format!("\"{prop}\"")).collect();
            format!("{{\"changedPropIds\":[{}]}}", props.join(","))
        }),
        Form::Gradio => value("fn=").zip(value("trigger=")).map(|(function, trigger)| {
            format!("{{\"fn_index\":{function},\"trigger_id\":{trigger}}}")
        }),
        Form::Marimo | Form::EngineIo => None,
    }
    .unwrap_or_default()
    .into_bytes()
}

/// What a reader would have made of a message of which a recording says this.
fn names(
    protocol: Protocol,
    path: &str,
    sub: &str,
    from: From,
    opcode: u8,
    said: &str,
) -> Vec<Name> {
    if !matches!(opcode, 1 | 2) {
        return vec![Name::Noise("control frame")];
    }
    if let Some((_, calls)) = said.split_once('|').filter(|_| protocol == Protocol::VsCode) {
        return calls
            .split(',')
            .map(|call| match call.starts_with("regular") {
                true => vscode::call(from, call.as_bytes()),
                false => Name::Noise("keepalive"),
            })
            .collect();
    }
    if from == From::Server {
        let pushed = said == "header:PATCH-DOC";
        return vec![if pushed { Name::Pushed } else { Name::Noise("server") }];
    }
    vec![client(protocol, path, sub, opcode, said)]
}

fn client(protocol: Protocol, path: &str, sub: &str, opcode: u8, said: &str) -> Name {
    let mut reader = socket::Reader::new(protocol, path, "", sub);
    if reader.is_background() || protocol == Protocol::VsCode {
        return Name::Noise("background");
    }
    let mut read = |start: &str| reader.message(From::Client, opcode, start.as_bytes());
    let parts: Vec<_> = said.split(':').collect();
    match *parts.as_slice() {
        ["header", _] | ["metadata"] => Name::Noise("header"),
        ["content", "PATCH-DOC", changes] => patch(changes),
        ["content", ..] => Name::Noise("content"),
        ["eio", _] => Name::Noise("heartbeat"),
        ["sio", "event", name, ..] => read(&format!("42[\"{name}\"")),
        ["sio", ..] => Name::Noise("acknowledgement"),
        ["stdin"] => Name::Person("typed in a terminal"),
        ["set_size"] => Name::Noise("terminal size"),
        ["awareness"] => socket::shared(&[1]),
        ["sync", step] => socket::shared(&[0, if step == "update" { 2 } else { 0 }]),
        ["shell" | "control" | "stdin", kind, ref rest @ ..] => {
            let method = rest.first().copied().unwrap_or_default();
            match (kind, method) {
                // Of which comm it is, a recording does not say.
                ("comm_msg", "update") => kernel::widget(rest.join(":").as_bytes()),
                _ => kernel::message(
                    format!("{{\"msg_type\":\"{kind}\",\"method\":\"{method}\"}}").as_bytes(),
                ),
            }
        }
        [method, ..] if method.starts_with("method=") => shiny(&mut read, said),
        _ if said.starts_with("rerun_script") => match said.contains("+auto") {
            true => Name::Noise("fragment"),
            false => streamlit::rerun(),
        },
        _ if path.ends_with("/_stcore/stream") => streamlit::rerun(),
        // Binary messages without a name are parts of others or control messages of a collaboration.
        [""] if path.contains("/api/collaboration/") => Name::Noise("awareness"),
        _ => {
            let kind = hash(hash(7, path.as_bytes()), said.as_bytes());
            Name::Beat { what: "sent a message", kind, care: Care::Usual, known: false }
        }
    }
}

fn shiny(read: &mut impl FnMut(&str) -> Name, said: &str) -> Name {
    let Some(names) = said.strip_prefix("method=update:") else {
        return read("{\"method\":\"init\",\"data\":{}");
    };
    let data: Vec<_> = names.split(',').map(|name| format!("\"{name}\":0")).collect();
    read(&format!("{{\"method\":\"update\",\"data\":{{{}}}}}", data.join(",")))
}

/// `ModelChanged.value,ModelChanged.start` or `MessageSent.bokeh_event.button_click`.
fn patch(changes: &str) -> Name {
    if let Some(event) = changes.strip_prefix("MessageSent.") {
        let event = event.rsplit('.').next().unwrap_or_default();
        let text = format!("{{\"kind\":\"MessageSent\",\"name\":\"{event}\"}}");
        return bokeh::content(text.as_bytes());
    }
    let events = changes.split(',').map(|change| {
        let attr = change.rsplit('.').next().unwrap_or_default();
        format!("{{\"attr\":\"{attr}\"}}")
    });
    bokeh::content(events.collect::<Vec<_>>().join(",").as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    const META: &str = r#"{"kind":"meta","case":"a","app":"x","label":"idle","window":[0,120]}"#;

    #[test]
    fn what_is_no_recording_is_said_so() {
        let error = |text: &str| replay(text).unwrap_err().to_string();
        assert_eq!(error(""), "the file is empty");
        assert!(error("hello").starts_with("line 1 is not JSON"));
        assert!(error("{}").starts_with("line 1 is not about a recording"));
        assert!(error(&format!("{META}\n{{\"t\":1")).starts_with("line 2 is not JSON"));
        assert!(error(&format!("{META}\n{{\"t\":\"x\"}}")).starts_with("line 2 is no event"));
    }

    #[test]
    fn only_the_window_counts() {
        let event = |t: f64| {
            format!(r#"{{"t":{t},"kind":"http","method":"DELETE","path":"/api/kernels/a"}}"#)
        };
        let lab = META.replace("\"x\"", "\"jupyterlab\"");
        let text = [lab, event(-1.0), event(1.0), event(61.0), event(121.0)].join("\n");
        let counts = replay(&text).unwrap();
        assert_eq!((counts.person, counts.active_minutes), (2, 2));
        let json = serde_json::to_string(&counts).unwrap();
        assert_eq!(
            json,
            r#"{"case":"a","person":2,"work":0,"noise":0,"unknown":0,"active_minutes":2}"#
        );
    }
}
