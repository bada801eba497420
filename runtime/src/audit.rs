//! One schema for all audit events: who did what, to what, from where, by which credential, with
//! what outcome, when. Written as JSON lines.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    net::IpAddr,
    os::unix::fs::OpenOptionsExt,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use domain::identity::{Credential, CredentialKind};
use jiff::Timestamp;
use serde::Serialize;

/// Lines that may wait for a slow disk: about a second's worth of the busiest gateway.
const QUEUE: usize = 8192;

/// How long lines may wait for others.
const GATHER: Duration = Duration::from_millis(4);

/// Bytes that are written at once.
const TOGETHER: usize = 64 * 1024;

/// The longest that the end of a process waits for a slow disk.
const FLUSH: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    Allowed,
    Denied,
    Failed,
}

/// One event, borrowed from where it happened. Holds names and identifiers, never secrets.
#[derive(Debug, Clone, Copy)]
pub struct Event<'a> {
    pub who: Option<&'a str>,
    /// A verb in the past tense: `signed-in`, `opened`, `refused`, `token-issued`.
    pub did: &'a str,
    pub to: Option<&'a str>,
    pub from: Option<IpAddr>,
    pub credential: Option<&'a Credential>,
    pub outcome: Outcome,
    pub detail: Option<&'a str>,
}

#[derive(Serialize)]
struct Line<'a> {
    when: Timestamp,
    service: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    who: Option<&'a str>,
    did: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    to: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    credential: Option<CredentialName<'a>>,
    outcome: Outcome,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<&'a str>,
}

#[derive(Serialize)]
struct CredentialName<'a> {
    kind: CredentialKind,
    id: &'a str,
}

/// Cheap to clone; recording never blocks the caller.
#[derive(Debug, Clone)]
pub struct Audit {
    service: Arc<str>,
    lines: SyncSender<Entry>,
    lost: Arc<AtomicU64>,
}

impl Audit {
    /// Appends to a file that only its owner can read.
    pub fn to_file(service: &str, path: &Path) -> io::Result<Self> {
        Ok(Self::start(service, Sink::File(append_to(path)?)))
    }

    pub fn to_stdout(service: &str) -> Self {
        Self::start(service, Sink::Stdout)
    }

    /// The same destination under the name of another service of this process.
    pub fn for_service(&self, service: &str) -> Self {
        Self { service: service.into(), ..self.clone() }
    }

    fn start(service: &str, sink: Sink) -> Self {
        let (lines, queue) = sync_channel(QUEUE);
        // A thread of its own: writing to a disk may block. It ends with the last sender.
        thread::spawn(move || write_lines(&queue, sink));
        Self { service: service.into(), lines, lost: Arc::default() }
    }

    /// Waits, at most a few seconds, until what was recorded so far has been written. For the end of
    /// the process; blocks.
    pub fn flush(&self) {
        let deadline = Instant::now() + FLUSH;
        let (done, written) = sync_channel(1);
        let mut request = Entry::Flush(done);
        // The queue may be full before a disk that stalls: its place is waited for as well.
        while let Err(TrySendError::Full(back)) = self.lines.try_send(request) {
            if Instant::now() >= deadline {
                return;
            }
            request = back;
            thread::sleep(Duration::from_millis(5));
        }
        let _ = written.recv_timeout(deadline.saturating_duration_since(Instant::now()));
    }

    pub fn record(&self, now: Timestamp, event: Event<'_>) {
        let Ok(bytes) = line(&self.service, now, event) else { return };
        if self.lines.try_send(Entry::Line(bytes)).is_err() {
            let lost = self.lost.fetch_add(1, Ordering::Relaxed) + 1;
            // The first and then ever fewer: a full queue must not fill the log too.
            if lost.is_power_of_two() {
                tracing::error!(lost, "audit events were lost: the audit log is not keeping up");
            }
        }
    }
}

/// For a program that ends right after: what it has recorded is on disk when it goes on. Others may
/// write to the same file meanwhile, since each event is one write at its end.
#[derive(Debug)]
pub struct Journal {
    service: &'static str,
    /// Standard error when there is none: standard output belongs to the program's answer.
    file: Option<File>,
}

impl Journal {
    /// Appends to a file that only its owner can read.
    pub fn to_file(service: &'static str, path: &Path) -> io::Result<Self> {
        Ok(Self { service, file: Some(append_to(path)?) })
    }

    pub fn to_stderr(service: &'static str) -> Self {
        Self { service, file: None }
    }

    /// Blocks until the event is on disk.
    pub fn record(&self, now: Timestamp, event: Event<'_>) -> io::Result<()> {
        let line = line(self.service, now, event)?;
        let Some(mut file) = self.file.as_ref() else { return io::stderr().write_all(&line) };
        // Not `write_all`: the rest of a line could come behind somebody else's.
        let written = file.write(&line)?;
        if written < line.len() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        // A pipe or a terminal keeps nothing.
        if file.metadata()?.is_file() { file.sync_data() } else { Ok(()) }
    }
}

fn append_to(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

/// The event as it is written, with the end of the line.
fn line(service: &str, now: Timestamp, event: Event<'_>) -> serde_json::Result<Vec<u8>> {
    let Event { who, did, to, from, credential, outcome, detail } = event;
    let credential = credential.map(|c| CredentialName { kind: c.kind, id: &c.id });
    let line = Line { when: now, service, who, did, to, from, credential, outcome, detail };
    let mut bytes = serde_json::to_vec(&line)?;
    bytes.push(b'\n');
    Ok(bytes)
}

/// What is written, in its order.
#[derive(Debug)]
enum Entry {
    Line(Vec<u8>),
    /// Told when everything before it has been written.
    Flush(SyncSender<()>),
}

enum Sink {
    File(File),
    Stdout,
}

/// Lines that wait are written together: a write for each would cost a busy service more than the
/// making of them.
fn write_lines(queue: &Receiver<Entry>, mut sink: Sink) {
    let mut lines = Vec::new();
    while let Ok(first) = queue.recv() {
        if matches!(first, Entry::Line(_)) {
            // Waking this thread for each line would cost more than the rest of it.
            thread::sleep(GATHER);
        }
        let mut done = None;
        let mut next = Some(first);
        while let Some(entry) = next {
            match entry {
                Entry::Line(line) => lines.extend_from_slice(&line),
                Entry::Flush(told) => done = Some(told),
            }
            let go_on = lines.len() < TOGETHER && done.is_none();
            next = if go_on { queue.try_recv().ok() } else { None };
        }
        let written = match &mut sink {
            Sink::File(file) => file.write_all(&lines),
            Sink::Stdout => io::stdout().write_all(&lines),
        };
        lines.clear();
        if let Err(error) = written {
            tracing::error!(%error, "audit events could not be written");
        }
        if let Some(done) = done {
            // Whoever asked may have stopped waiting.
            let _ = done.try_send(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_says_who_did_what_to_what_from_where_by_what_with_what_outcome_when() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.jsonl");
        let audit = Audit::to_file("proxy", &path).unwrap();
        let credential = Credential {
            kind: CredentialKind::PersonalAccessToken,
            id: "jti-1".to_owned(),
            session: None,
            expires_at: Timestamp::MAX,
            scopes: vec![],
            workload: None,
        };
        let event = Event {
            who: Some("alice"),
            did: "opened",
            to: Some("App alice/echo"),
            from: Some("127.0.0.1".parse().unwrap()),
            credential: Some(&credential),
            outcome: Outcome::Allowed,
            detail: None,
        };
        audit.record(Timestamp::from_second(0).unwrap(), event);
        audit.flush();
        let text = std::fs::read_to_string(&path).unwrap();
        let expected = concat!(
            r#"{"when":"1970-01-01T00:00:00Z","service":"proxy","who":"alice","did":"opened","#,
            r#""to":"App alice/echo","from":"127.0.0.1","credential":{"kind":"#,
            r#""personal-access-token","id":"jti-1"},"outcome":"allowed"}"#,
            "\n"
        );
        assert_eq!(text, expected);
    }

    fn event(to: &str) -> Event<'_> {
        Event {
            who: Some("operator:root"),
            did: "person-disabled",
            to: Some(to),
            from: None,
            credential: None,
            outcome: Outcome::Allowed,
            detail: None,
        }
    }

    #[test]
    fn programs_that_write_to_one_file_at_once_lose_and_mix_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.jsonl");
        let service = Audit::to_file("authserver", &path).unwrap();
        thread::scope(|scope| {
            for writer in 0..8 {
                let path = &path;
                scope.spawn(move || {
                    let journal = Journal::to_file("authserver", path).unwrap();
                    for number in 0..25 {
                        let to = format!("{writer}-{number}");
                        journal.record(Timestamp::UNIX_EPOCH, event(&to)).unwrap();
                        // There without a flush.
                        assert!(std::fs::read_to_string(path).unwrap().contains(&to));
                    }
                });
            }
            for number in 0..200 {
                service.record(Timestamp::UNIX_EPOCH, event(&format!("service-{number}")));
            }
        });
        service.flush();
        let text = std::fs::read_to_string(&path).unwrap();
        let seen: std::collections::BTreeSet<String> = text
            .lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["to"].to_string())
            .collect();
        assert_eq!((seen.len(), text.lines().count()), (400, 400));
    }
}
