//! Reads what an HTTP request is: method, path, names of the query, what the browser says of it, and
//! where those serve timers and people alike, the first bytes of the body.

use memchr::memmem;

use super::{Name, beat::Care, hash, hash_of};
use crate::workload::Protocol;

/// What is looked at in a request. `path` and `query` as they came.
#[derive(Debug, Clone, Copy, Default)]
pub struct Request<'a> {
    pub method: &'a str,
    pub path: &'a str,
    pub query: &'a str,
    /// A browser that opens a page: `Sec-Fetch-Mode: navigate`, or a GET that accepts HTML.
    pub navigation: bool,
    /// It brought a token, as programs do.
    pub token: bool,
    /// A browser loads it in case somebody wants it (`Sec-Purpose`, and what came before it).
    pub prefetch: bool,
    /// `Sec-Fetch-Dest`; `empty` is what scripts load.
    pub dest: Option<&'a str>,
    /// `Sec-Fetch-User: ?1`: somebody clicked, or typed an address.
    pub user: bool,
    /// It asks for a fresh copy (`Cache-Control`), as a reload does.
    pub reload: bool,
    /// A browser that says so whenever a person opens a page. Chromium does, and is known by
    /// `Sec-CH-UA`; Safari never says it.
    pub tells_user: bool,
}

/// How much of a body a rule may ask for, in bytes.
pub const BODY_MAX: usize = 512;

/// Bodies that are looked into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// `POST /_dash-update-component`: which property has changed.
    Dash,
    /// `POST .../queue/join` of Gradio: which function is called.
    Gradio,
    /// `POST .../set_ui_element_value` of marimo: which element.
    Marimo,
    /// Engine.IO without a WebSocket.
    EngineIo,
}

/// What is known before the body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Read {
    Whole(Name),
    /// The body tells. The name is what to think of it as long as the body is not there.
    Body(Form, Name),
}

pub fn read(protocol: Protocol, request: &Request<'_>) -> Read {
    // A program's use, whatever it asks for: those who only read use a workload as well.
    if request.token {
        return Read::Whole(Name::Person("called the API"));
    }
    if request.prefetch {
        return Read::Whole(Name::Noise("prefetch"));
    }
    if request.navigation {
        return Read::Whole(navigation(request));
    }
    if matches!(request.method, "GET" | "HEAD" | "OPTIONS") {
        return Read::Whole(reading(protocol, request));
    }
    // Only somebody who clicks leads a browser to a page by anything but GET.
    if request.user {
        return Read::Whole(Name::Person("sent a form"));
    }
    let path = request.path;
    // A callback in the background asks for its result with the click's own body.
    if path.ends_with("/_dash-update-component")
        && (has_query(request.query, "cacheKey") || has_query(request.query, "job"))
    {
        return Read::Whole(Name::Work("callback"));
    }
    if let Some(form) = form(request) {
        return Read::Body(form, beat("used the app", request));
    }
    Read::Whole(match protocol {
        Protocol::Jupyter => jupyter(request),
        _ if path.ends_with("/_stcore/health") => Name::Noise("health"),
        _ if path.contains("/_stcore/upload_file/") => Name::Person("uploaded a file"),
        _ => unknown(request),
    })
}

/// A page of its own that a person opened. Who clicks or types an address says `Sec-Fetch-User`; a
/// tab that is restored and a page that goes on by itself do not. Nor does a reload in a restored tab,
/// which a page can do by itself, too: there the beat tells. Where the browser never says so, a page
/// counts.
fn navigation(request: &Request<'_>) -> Name {
    let framed = ["iframe", "frame", "embed", "object", "fencedframe"];
    match request.dest {
        _ if request.user => Name::Opened("opened a page"),
        Some(dest) if framed.iter().any(|frame| dest.eq_ignore_ascii_case(frame)) => {
            Name::Noise("frame")
        }
        _ if request.tells_user && request.reload => {
            let kind = kind(request);
            Name::Beat { what: "opened a page", kind, care: Care::Great, known: true }
        }
        _ if request.tells_user => Name::Noise("restored page"),
        _ => Name::Opened("opened a page"),
    }
}

/// Pages that only read show what somebody looks at by what they never asked for before. Of the
/// applications that have a rule of their own a read says nothing.
fn reading(protocol: Protocol, request: &Request<'_>) -> Name {
    let script = request.method == "GET" && request.dest == Some("empty");
    let file = request.path.rsplit('/').next().is_some_and(|name| name.contains('.'));
    let known =
        ["/_stcore/", "/socket.io/", "/gradio_api/", "/_dash-", "/api/kernels", "/api/sessions"];
    if protocol != Protocol::Http
        || !script
        || file
        || known.iter().any(|part| request.path.contains(part))
    {
        return Name::Noise("read");
    }
    Name::Looked { what: "looked at something else", kind: kind(request) }
}

fn form(request: &Request<'_>) -> Option<Form> {
    if request.method != "POST" {
        return None;
    }
    let path = request.path;
    if path.ends_with("/_dash-update-component") {
        Some(Form::Dash)
    } else if path.ends_with("/queue/join") || path.ends_with("/run/predict") {
        Some(Form::Gradio)
    } else if path.ends_with("/api/kernel/set_ui_element_value") {
        Some(Form::Marimo)
    } else if has_query(request.query, "EIO") && has_query(request.query, "transport") {
        Some(Form::EngineIo)
    } else {
        None
    }
}

/// Whether the query has a parameter of that name.
fn has_query(query: &str, name: &str) -> bool {
    query.split('&').any(|pair| pair.split('=').next() == Some(name))
}

/// A kind that a timer may send: method, path and names of the query.
fn kind(request: &Request<'_>) -> u64 {
    // Without digits: a number in a path makes no other kind.
    let path = request.path.as_bytes().iter().filter(|byte| !byte.is_ascii_digit());
    let mut kind = hash_of(hash(0, request.method.as_bytes()), path);
    for pair in request.query.split('&').take(16) {
        kind = hash(kind, pair.split('=').next().unwrap_or_default().as_bytes());
    }
    kind
}

fn beat(what: &'static str, request: &Request<'_>) -> Name {
    Name::Beat { what, kind: kind(request), care: Care::Usual, known: true }
}

fn unknown(request: &Request<'_>) -> Name {
    Name::Beat { what: "sent a request", kind: kind(request), care: Care::Usual, known: false }
}

fn jupyter(request: &Request<'_>) -> Name {
    let path = request.path;
    // JupyterLab writes its layout and settings without being asked.
    if path.contains("/lab/api/workspaces") || path.contains("/lab/api/settings") {
        Name::Noise("layout")
    } else if let Some((_, git)) = path.split_once("/git/") {
        git_call(git, request)
    } else if path.contains("/api/contents") {
        if request.method == "PUT" && path.ends_with(".ipynb") {
            Name::Saved { what: "changed a file", file: hash(1, path.as_bytes()) }
        } else {
            Name::Person("changed a file")
        }
    } else if path.contains("/api/kernels") || path.contains("/api/sessions") {
        Name::Person("managed a kernel")
    } else if path.contains("/api/terminals") {
        Name::Person("managed a terminal")
    } else {
        unknown(request)
    }
}

/// jupyterlab-git reads by POST, also with nobody there: `/git/<directory>/<call>`.
fn git_call(rest: &str, request: &Request<'_>) -> Name {
    const READS: [&str; 22] = [
        "all_history",
        "branch",
        "changed_files",
        "config",
        "content",
        "detailed_log",
        "diff",
        "diffnotebook",
        "fetch",
        "files",
        "has_submodules",
        "log",
        "remote_fetch",
        "settings",
        "show_prefix",
        "show_top_level",
        "ssh_hosts",
        "stash_list",
        "status",
        "submodules",
        "tags",
        "show",
    ];
    let call = rest.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
    match call {
        // A change of settings has the same path as reading them.
        "config" => beat("used git", request),
        call if READS.contains(&call) => Name::Noise("git status"),
        _ => Name::Person("used git"),
    }
}

/// What a body that was asked for says. `start` is its beginning, up to [`BODY_MAX`] bytes; `before`
/// is what the head said.
pub fn body(form: Form, before: Name, start: &[u8]) -> Name {
    let beat = |what, discriminator: &[u8]| match before {
        Name::Beat { kind, .. } => {
            Name::Beat { what, kind: hash(kind, discriminator), care: Care::Usual, known: true }
        }
        other => other,
    };
    match form {
        Form::Dash => {
            let Some(changed) = after(start, b"\"changedPropIds\"") else { return before };
            let end = memchr::memchr(b']', changed).unwrap_or(changed.len());
            let changed = changed.get(..end).unwrap_or_default();
            let any = memmem::find(changed, b".").is_some();
            let mut props = changed.split(|&byte| byte == b'"').filter(|part| part.contains(&b'.'));
            if any && props.all(|prop| prop.ends_with(b".n_intervals")) {
                return Name::Noise("interval");
            }
            beat("used the app", changed)
        }
        Form::Gradio => {
            let function = after(start, b"\"fn_index\"").map(number).unwrap_or_default();
            let trigger = after(start, b"\"trigger_id\"").map(number).unwrap_or_default();
            match (function, trigger) {
                (b"", b"") => before,
                _ => match beat("used the app", function) {
                    Name::Beat { what, kind, care, known } => {
                        Name::Beat { what, kind: hash(kind, trigger), care, known }
                    }
                    other => other,
                },
            }
        }
        Form::Marimo => {
            let Some(values) = after(start, b"\"values\"") else { return before };
            if is_refresh(values) {
                return Name::Noise("refresh");
            }
            let Some(ids) = after(start, b"\"objectIds\"") else { return before };
            let end = memchr::memchr(b']', ids).unwrap_or(ids.len());
            beat("used the app", ids.get(..end).unwrap_or_default())
        }
        Form::EngineIo => start
            .split(|&byte| byte == 0x1e)
            .map(super::socketio::packet)
            .find(|name| !matches!(name, Name::Noise(_)))
            .unwrap_or(Name::Noise("heartbeat")),
    }
}

/// What comes behind the key and its colon.
fn after<'a>(text: &'a [u8], key: &[u8]) -> Option<&'a [u8]> {
    let rest = text.get(memmem::find(text, key)? + key.len()..)?.trim_ascii_start();
    Some(rest.strip_prefix(b":")?.trim_ascii_start())
}

fn number(text: &[u8]) -> &[u8] {
    let digits = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    text.get(..digits).unwrap_or_default()
}

/// marimo's `mo.ui.refresh` sends its interval and a count: `["2s (4)"]`.
fn is_refresh(values: &[u8]) -> bool {
    let Some(value) = values.strip_prefix(b"[\"") else { return false };
    let Some(end) = memchr::memchr(b'"', value) else { return false };
    let value = value.get(..end).unwrap_or_default();
    let Some((interval, count)) = memmem::find(value, b" (").map(|at| value.split_at(at)) else {
        return false;
    };
    let count = count.strip_prefix(b" (").and_then(|count| count.strip_suffix(b")"));
    interval.first().is_some_and(u8::is_ascii_digit)
        && interval.last().is_some_and(|unit| b"smhd".contains(unit))
        && count.is_some_and(|count| !count.is_empty() && count.iter().all(u8::is_ascii_digit))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn post(protocol: Protocol, path: &str) -> Read {
        read(protocol, &Request { method: "POST", path, ..Request::default() })
    }

    fn with_body(path: &str, query: &str, text: &str) -> Name {
        let request = Request { method: "POST", path, query, ..Request::default() };
        match read(Protocol::Http, &request) {
            Read::Body(form, before) => body(form, before, text.as_bytes()),
            Read::Whole(name) => name,
        }
    }

    #[test]
    fn what_opens_a_page() {
        let page = Request { method: "GET", path: "/lab", navigation: true, ..Request::default() };
        let read = |request| match read(Protocol::Jupyter, &request) {
            Read::Whole(name) => name,
            Read::Body(..) => panic!(),
        };
        let opened = Name::Opened("opened a page");
        assert_eq!(read(Request { user: true, tells_user: true, ..page }), opened);
        assert_eq!(read(page), opened, "a browser that never says who opened it");
        assert_eq!(read(Request { tells_user: true, ..page }), Name::Noise("restored page"));
        let reloaded = read(Request { tells_user: true, reload: true, ..page });
        assert!(matches!(reloaded, Name::Beat { care: Care::Great, .. }));
        assert_eq!(read(Request { dest: Some("iframe"), ..page }), Name::Noise("frame"));
        assert_eq!(read(Request { dest: Some("document"), ..page }), opened);
        assert_eq!(read(Request { prefetch: true, user: true, ..page }), Name::Noise("prefetch"));
        let form = Request { method: "POST", navigation: false, user: true, ..page };
        assert_eq!(read(form), Name::Person("sent a form"));
        let clicked = Request { dest: Some("iframe"), user: true, ..page };
        assert_eq!(read(clicked), opened, "a click within the frame");
    }

    #[test]
    fn a_program_with_a_token_uses_what_it_reads() {
        let get = Request { method: "GET", path: "/v1/models", ..Request::default() };
        assert_eq!(read(Protocol::Http, &get), Read::Whole(Name::Noise("read")));
        let token = Request { token: true, ..get };
        assert_eq!(read(Protocol::Http, &token), Read::Whole(Name::Person("called the API")));
    }

    #[test]
    fn jupyterlab_git_reads_by_post() {
        for call in ["status", "log", "branch", "diff", "remote/show", "all_history"] {
            let read = post(Protocol::Jupyter, &format!("/git/project/{call}"));
            assert_eq!(read, Read::Whole(Name::Noise("git status")), "{call}");
        }
        for call in ["commit", "push", "pull", "checkout", "add"] {
            let read = post(Protocol::Jupyter, &format!("/git/project/{call}"));
            assert_eq!(read, Read::Whole(Name::Person("used git")), "{call}");
        }
    }

    #[test]
    fn bodies_tell_timers_from_people() {
        let dash = |query, changed| {
            let text =
                format!(r#"{{"output":"a.children","changedPropIds":[{changed}],"inputs":[]}}"#);
            with_body("/_dash-update-component", query, &text)
        };
        assert_eq!(dash("", r#""iv.n_intervals""#), Name::Noise("interval"));
        assert!(matches!(dash("", r#""go.n_clicks""#), Name::Beat { .. }));
        assert!(matches!(dash("", r#""iv.n_intervals","go.n_clicks""#), Name::Beat { .. }));
        assert_eq!(dash("cacheKey=a&job=b", r#""go.n_clicks""#), Name::Work("callback"));

        let gradio = |text| with_body("/gradio_api/queue/join", "", text);
        let tick = gradio(r#"{"data":[],"fn_index":0,"trigger_id":4,"session_hash":"a"}"#);
        let click = gradio(r#"{"data":[],"fn_index":1,"trigger_id":1,"session_hash":"a"}"#);
        assert_ne!(tick, click);
        assert_eq!(tick, gradio(r#"{"data":[1],"fn_index":0,"trigger_id":4,"session_hash":"b"}"#));

        let marimo = |text| with_body("/api/kernel/set_ui_element_value", "", text);
        let refresh = marimo(r#"{"objectIds":["a-0"],"values":["2s (41)"]}"#);
        assert_eq!(refresh, Name::Noise("refresh"));
        let slider = marimo(r#"{"objectIds":["a-1"],"values":[3]}"#);
        assert!(matches!(slider, Name::Beat { .. }));

        let polling = |text| with_body("/socket.io/", "EIO=4&transport=polling&sid=a", text);
        assert_eq!(polling("3"), Name::Noise("heartbeat"));
        assert_ne!(polling("3\u{1e}42[\"client_message\",{}]"), Name::Noise("heartbeat"));
    }
}
