//! The file of raw requests, and how one of them goes out.

const FILE: &str = include_str!("requests.txt");

/// One case of the file.
pub struct Case {
    /// Heading of the page under which it comes.
    pub part: &'static str,
    pub name: &'static str,
    pub remark: String,
    text: String,
}

pub fn cases() -> Vec<Case> {
    let mut all: Vec<Case> = Vec::new();
    let mut part = "";
    for line in FILE.lines() {
        if let Some(heading) = line.strip_prefix("@ ") {
            part = heading;
        } else if let Some(name) = line.strip_prefix("== ") {
            all.push(Case { part, name, remark: String::new(), text: String::new() });
        } else if line.starts_with('#') || line.is_empty() {
        } else if let Some(remark) = line.strip_prefix("> ") {
            let case = all.last_mut().unwrap();
            assert!(case.text.is_empty(), "{}: the remark comes first", case.name);
            if !case.remark.is_empty() {
                case.remark.push(' ');
            }
            case.remark.push_str(remark);
        } else {
            all.last_mut().unwrap().text.push_str(line);
        }
    }
    all
}

impl Case {
    /// The bytes of the case, with the request for `/last` behind them.
    pub fn bytes(&self, host: &str, bearer: &str) -> Vec<u8> {
        let last = "GET /last HTTP/1.1\\r\\nHost: {host}\\r\\n{auth}Connection: close\\r\\n\\r\\n";
        let text = format!("{}{last}", self.text);
        let auth = format!("Authorization: {bearer}\\r\\n");
        let smuggled =
            "GET /smuggled HTTP/1.1\\r\\nHost: {host}\\r\\n\\r\\n".replace("{host}", host);
        let length = unescape(&smuggled).len();
        let text = text
            .replace("{smuggled}", &smuggled)
            .replace("{length}", &length.to_string())
            .replace("{length+5}", &(length + 5).to_string())
            .replace("{hex}", &format!("{length:x}"))
            .replace("{hex+5}", &format!("{:x}", length + 5));
        let text = text.replace("{auth}", &auth).replace("{host}", host);
        unescape(&repeat(&text.replace("{HOST}", &host.to_ascii_uppercase())))
    }
}

/// `{3*ab}` becomes `ababab`.
fn repeat(text: &str) -> String {
    let mut done = String::new();
    let mut rest = text;
    while let Some((before, inner)) = rest.split_once('{') {
        done.push_str(before);
        let repeated = inner
            .split_once('}')
            .and_then(|(inner, after)| Some((inner.split_once('*')?, after)))
            .and_then(|((count, what), after)| Some((what.repeat(count.parse().ok()?), after)));
        match repeated {
            Some((repeated, after)) => {
                done.push_str(&repeated);
                rest = after;
            }
            None => {
                done.push('{');
                rest = inner;
            }
        }
    }
    done + rest
}

fn unescape(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut chars = text.chars();
    while let Some(char) = chars.next() {
        if char != '\\' {
            bytes.extend(char.to_string().bytes());
            continue;
        }
        bytes.push(match chars.next().unwrap() {
            'r' => b'\r',
            'n' => b'\n',
            't' => b'\t',
            '0' => 0,
            '\\' => b'\\',
            'x' => {
                let hex: String = chars.by_ref().take(2).collect();
                u8::from_str_radix(&hex, 16).unwrap()
            }
            other => panic!("no such escape: {other}"),
        });
    }
    bytes
}
