//! An upstream that takes whatever it is sent, as leniently as the worst of servers, and remembers.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

/// A request as this upstream understood it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Method, target, and the version if it is not HTTP/1.1.
    pub line: String,
    pub host: String,
    /// Length of the body without its framing.
    pub body: usize,
    /// What another server could have read otherwise. Empty for a request in the strictest form.
    pub odd: Vec<&'static str>,
}

#[derive(Clone, Default)]
pub struct Record(Arc<Mutex<Vec<Seen>>>);

impl Record {
    /// Requests that came to their end, in their order.
    pub fn all(&self) -> Vec<Seen> {
        self.0.lock().unwrap().clone()
    }
}

pub async fn start() -> (SocketAddr, Record) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let record = Record::default();
    let kept = record.clone();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let mut connection = Connection { tcp, buffer: Vec::new(), record: kept.clone() };
            tokio::spawn(async move { while connection.serve().await.is_some() {} });
        }
    });
    (address, record)
}

struct Connection {
    tcp: TcpStream,
    buffer: Vec<u8>,
    record: Record,
}

impl Connection {
    /// Serves one request; `None` when there is no further one.
    async fn serve(&mut self) -> Option<()> {
        let mut raw = Vec::new();
        loop {
            let line = self.line().await?;
            let empty = line.trim_ascii().is_empty();
            if raw.is_empty() && empty {
                continue;
            }
            raw.extend(line);
            if empty {
                break;
            }
        }
        let (mut seen, head) = read_head(&raw);
        if head.expects {
            self.tcp.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.ok()?;
        }
        seen.body = match head.framing {
            Framing::Chunked => self.chunks(&mut seen.odd).await?,
            Framing::Length(length) => self.take(length).await?.len(),
        };
        let body = if seen.line.starts_with("HEAD ") { "" } else { "ok" };
        self.record.0.lock().unwrap().push(seen);
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{body}");
        self.tcp.write_all(answer.as_bytes()).await.ok()?;
        (!head.close).then_some(())
    }

    async fn more(&mut self) -> Option<()> {
        (self.tcp.read_buf(&mut self.buffer).await.ok()? > 0).then_some(())
    }

    /// Up to a line feed, with it.
    async fn line(&mut self) -> Option<Vec<u8>> {
        loop {
            if let Some(at) = self.buffer.iter().position(|&byte| byte == b'\n') {
                return Some(self.buffer.drain(..=at).collect());
            }
            self.more().await?;
        }
    }

    async fn take(&mut self, length: usize) -> Option<Vec<u8>> {
        while self.buffer.len() < length {
            self.more().await?;
        }
        Some(self.buffer.drain(..length).collect())
    }

    async fn chunks(&mut self, odd: &mut Vec<&'static str>) -> Option<usize> {
        let mut all = 0;
        loop {
            let line = self.line().await?;
            let text = String::from_utf8_lossy(&line).into_owned();
            let digits = text.strip_suffix("\r\n").unwrap_or("?");
            if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
                odd.push("odd chunk");
            }
            let size = text.split(';').next().unwrap_or_default().trim();
            let size = usize::from_str_radix(size, 16).ok()?;
            if size == 0 {
                break;
            }
            all += self.take(size).await?.len();
            if self.line().await? != b"\r\n" {
                odd.push("odd chunk");
            }
        }
        while !self.line().await?.trim_ascii().is_empty() {
            odd.push("trailer");
        }
        Some(all)
    }
}

enum Framing {
    Length(usize),
    Chunked,
}

struct Head {
    framing: Framing,
    expects: bool,
    close: bool,
}

fn read_head(raw: &[u8]) -> (Seen, Head) {
    let mut odd = Vec::new();
    let text: String = raw.iter().map(|&byte| char::from(byte)).collect();
    if text.matches('\n').count() != text.matches("\r\n").count()
        || text.matches('\r').count() != text.matches("\r\n").count()
    {
        odd.push("bare CR or LF");
    }
    let mut lines = text.lines();
    let line = lines.next().unwrap_or_default();
    let line = line.strip_suffix(" HTTP/1.1").unwrap_or(line).to_owned();
    if line.split(' ').count() != 2 || !line.bytes().all(|b| b == b' ' || b.is_ascii_graphic()) {
        odd.push("odd request line");
    }
    let mut fields: Vec<(String, String)> = Vec::new();
    for line in lines.take_while(|line| !line.trim().is_empty()) {
        let (name, value) = line.split_once(':').unwrap_or((line, ""));
        let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
        if name.is_empty() || !name.bytes().all(token) {
            odd.push("odd field name");
        }
        if value.bytes().any(|b| b != b'\t' && (b < b' ' || b == 0x7f)) {
            odd.push("control in a field");
        }
        fields.push((name.trim().to_ascii_lowercase(), value.trim().to_owned()));
    }
    let values = |wanted: &str| -> Vec<&str> {
        fields.iter().filter(|(name, _)| name == wanted).map(|(_, value)| value.as_str()).collect()
    };
    let (lengths, codings) = (values("content-length"), values("transfer-encoding"));
    if lengths.len() + codings.len() > 1 {
        odd.push("framed twice");
    }
    if lengths.iter().any(|l| l.is_empty() || !l.bytes().all(|b| b.is_ascii_digit()))
        || codings.iter().any(|coding| !coding.eq_ignore_ascii_case("chunked"))
    {
        odd.push("odd framing");
    }
    if values("host").len() != 1 {
        odd.push("not one host");
    }
    let framed = ["content-length", "transfer-encoding", "host"];
    if fields.iter().any(|(name, _)| {
        let folded = name.replace(['_', '.'], "-");
        *name != folded && framed.contains(&folded.as_str())
    }) {
        odd.push("look-alike of framing");
    }
    let framing = if codings.iter().any(|c| c.to_ascii_lowercase().contains("chunked")) {
        Framing::Chunked
    } else {
        Framing::Length(lengths.first().and_then(|length| length.parse().ok()).unwrap_or(0))
    };
    let lists = |name: &str, token: &str| {
        values(name).iter().any(|value| value.to_ascii_lowercase().contains(token))
    };
    let head = Head {
        framing,
        expects: lists("expect", "100-continue"),
        close: lists("connection", "close"),
    };
    let host = values("host").join(" and ");
    (Seen { line, host, body: 0, odd }, head)
}
