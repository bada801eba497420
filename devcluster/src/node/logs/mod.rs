//! Containers' logs on disk, in the format of the Container Runtime Interface: a line is
//! `<RFC 3339 time> <stdout|stderr> <F|P> <text>`, where `P` says that the text goes on in the next line.

mod reader;
mod writer;

pub use reader::{Query, stream};
pub use writer::Collector;

use jiff::Timestamp;
use std::path::{Path, PathBuf};

/// A log file is rotated at this size, in bytes; one rotated file is kept.
pub const MAX_FILE: u64 = 10 << 20;

/// Longest text of one line, in bytes, as container runtimes cut it.
const MAX_LINE: usize = 16 << 10;

/// How far a container's log has come: what a follower waits for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    written: u64,
    rotations: u64,
    closed: bool,
}

/// The log of one run of a container.
pub fn file(dir: &Path, restarts: i32) -> PathBuf {
    dir.join(format!("{restarts}.log"))
}

/// The last lines of a log, as a termination message shows them: 80 lines, 2048 bytes.
pub async fn last(path: &Path) -> Option<String> {
    let query = Query { tail: Some(80), ..Query::default() };
    let mut parts = stream(path.to_owned(), query, None);
    let mut bytes = Vec::new();
    while let Some(Ok(part)) = parts.recv().await {
        bytes.extend_from_slice(&part);
    }
    let start = bytes.len().saturating_sub(2048);
    let text = String::from_utf8_lossy(bytes.get(start..)?).into_owned();
    (!text.is_empty()).then_some(text)
}

fn rotated(path: &Path) -> PathBuf {
    path.with_extension("log.1")
}

/// Removes the logs of all runs before the one before `restarts`.
pub fn prune(dir: &Path, restarts: i32) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let run = name
            .to_str()
            .and_then(|name| name.split('.').next())
            .and_then(|run| run.parse::<i32>().ok());
        if run.is_some_and(|run| run < restarts - 1) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

/// A line of a log file.
#[derive(Debug, PartialEq, Eq)]
struct Line<'a> {
    time: &'a str,
    whole: bool,
    text: &'a [u8],
}

fn parse(line: &[u8]) -> Option<Line<'_>> {
    let mut fields = line.splitn(4, |&b| b == b' ');
    let time = std::str::from_utf8(fields.next()?).ok()?;
    let (_stream, flag, text) = (fields.next()?, fields.next()?, fields.next()?);
    Some(Line { time, whole: flag != b"P", text })
}

/// The line as `kubectl logs` shows it; nothing if it was written before `since`.
fn render(line: &[u8], since: Option<Timestamp>, timestamps: bool, out: &mut Vec<u8>) {
    let Some(Line { time, whole, text }) = parse(line) else { return };
    if let Some(since) = since
        && time.parse::<Timestamp>().is_ok_and(|time| time < since)
    {
        return;
    }
    if timestamps {
        out.extend_from_slice(time.as_bytes());
        out.push(b' ');
    }
    out.extend_from_slice(text);
    if whole {
        out.push(b'\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lines_are_shown_as_kubectl_shows_them() {
        let line = b"2026-01-02T03:04:05.678901234Z stdout F hello  world";
        let shown = |since: Option<&str>, timestamps| {
            let mut out = Vec::new();
            render(line, since.map(|t| t.parse().unwrap()), timestamps, &mut out);
            String::from_utf8(out).unwrap()
        };
        assert_eq!(shown(None, false), "hello  world\n");
        assert_eq!(
            shown(Some("2026-01-02T03:04:05Z"), true),
            "2026-01-02T03:04:05.678901234Z hello  world\n"
        );
        assert_eq!(shown(Some("2026-01-02T03:04:06Z"), false), "");
    }

    #[test]
    fn old_runs_are_pruned() {
        let dir = tempfile::tempdir().unwrap();
        for run in 0..4 {
            std::fs::write(file(dir.path(), run), "").unwrap();
            std::fs::write(rotated(&file(dir.path(), run)), "").unwrap();
        }
        prune(dir.path(), 3);
        let mut left: Vec<_> = std::fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        assert_eq!(left, ["2.log", "2.log.1", "3.log", "3.log.1"]);
    }

    proptest! {
        #[test]
        fn any_bytes_are_harmless(line in prop::collection::vec(any::<u8>(), 0..80)) {
            render(&line, Some(Timestamp::UNIX_EPOCH), true, &mut Vec::new());
        }
    }
}
