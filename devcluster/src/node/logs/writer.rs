//! From a container's pipes to its log file.

use super::{MAX_LINE, Progress, rotated};
use jiff::Timestamp;
use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::watch;

/// Room for one read from a pipe, in bytes.
const READ: usize = 8 << 10;

/// The writer of one run's log. Its file is there from the start, so that a reader finds it.
pub struct Collector {
    log: LogFile,
}

impl Collector {
    /// `max_file` in bytes; `progress` tells followers.
    pub fn open(path: PathBuf, max_file: u64, progress: watch::Sender<Progress>) -> Self {
        Self { log: LogFile::open(path, max_file, progress) }
    }

    /// Copies both pipes into the file until both end, then says so.
    ///
    /// A log that cannot be written does not stop the container: its pipes are drained all the same.
    pub async fn collect(
        mut self,
        mut stdout: impl AsyncRead + Unpin,
        mut stderr: impl AsyncRead + Unpin,
    ) {
        let (mut out, mut err) = (Lines::new("stdout"), Lines::new("stderr"));
        let (mut out_open, mut err_open) = (true, true);
        while out_open || err_open {
            out.pending.reserve(READ);
            err.pending.reserve(READ);
            tokio::select! {
                read = stdout.read_buf(&mut out.pending), if out_open => {
                    out_open = matches!(read, Ok(1..));
                    self.log.take(&mut out, !out_open);
                }
                read = stderr.read_buf(&mut err.pending), if err_open => {
                    err_open = matches!(read, Ok(1..));
                    self.log.take(&mut err, !err_open);
                }
            }
        }
        self.log.progress.send_modify(|progress| progress.closed = true);
    }
}

/// One pipe's bytes that are not in the file yet.
struct Lines {
    stream: &'static str,
    pending: Vec<u8>,
}

impl Lines {
    fn new(stream: &'static str) -> Self {
        Self { stream, pending: Vec::new() }
    }

    /// Moves what can be written into `out`: whole lines, the front of one that is too long, and at the end the rest.
    fn format(&mut self, end: bool, now: Timestamp, out: &mut Vec<u8>) {
        let mut rest = self.pending.as_slice();
        loop {
            let newline = rest.iter().take(MAX_LINE + 1).position(|&b| b == b'\n');
            let (text, flag, skip) = match newline {
                Some(at) => (rest.get(..at), 'F', 1),
                None if rest.len() > MAX_LINE => (rest.get(..MAX_LINE), 'P', 0),
                None if end && !rest.is_empty() => (Some(rest), 'P', 0),
                None => break,
            };
            let text = text.unwrap_or_default();
            // The kind of write that cannot fail: into memory.
            let _ = write!(out, "{now:.9} {} {flag} ", self.stream);
            out.extend_from_slice(text);
            out.push(b'\n');
            rest = rest.get(text.len() + skip..).unwrap_or_default();
        }
        let done = self.pending.len() - rest.len();
        self.pending.drain(..done);
    }
}

struct LogFile {
    path: PathBuf,
    file: Option<File>,
    size: u64,
    max: u64,
    progress: watch::Sender<Progress>,
}

impl LogFile {
    fn open(path: PathBuf, max: u64, progress: watch::Sender<Progress>) -> Self {
        let mut log = Self { path, file: None, size: 0, max, progress };
        if let Err(error) = log.reopen() {
            tracing::warn!(path = %log.path.display(), %error, "the container's log cannot be written");
        }
        log
    }

    fn reopen(&mut self) -> io::Result<()> {
        if let Some(dir) = self.path.parent() {
            std::fs::create_dir_all(dir)?;
        }
        let file = File::options().create(true).append(true).open(&self.path)?;
        self.size = file.metadata()?.len();
        self.file = Some(file);
        Ok(())
    }

    fn take(&mut self, lines: &mut Lines, end: bool) {
        let mut out = Vec::new();
        lines.format(end, Timestamp::now(), &mut out);
        if out.is_empty() {
            return;
        }
        if let Err(error) = self.append(&out) {
            tracing::debug!(path = %self.path.display(), %error, "log lines are lost");
        }
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.size > 0 && self.size + bytes.len() as u64 > self.max {
            self.file = None;
            std::fs::rename(&self.path, rotated(&self.path))?;
            self.reopen()?;
            self.progress.send_modify(|progress| progress.rotations += 1);
        }
        let Some(file) = &mut self.file else { return self.reopen() };
        file.write_all(bytes)?;
        self.size += bytes.len() as u64;
        self.progress.send_modify(|progress| progress.written += bytes.len() as u64);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn formatted(text: &[u8], end: bool) -> (String, usize) {
        let mut lines = Lines { stream: "stdout", pending: text.to_vec() };
        let mut out = Vec::new();
        lines.format(end, Timestamp::from_second(0).unwrap(), &mut out);
        (String::from_utf8(out).unwrap(), lines.pending.len())
    }

    #[test]
    fn lines_get_their_time_and_half_lines_wait() {
        let (out, left) = formatted(b"a\n\nhalf", false);
        assert_eq!(
            out,
            "1970-01-01T00:00:00.000000000Z stdout F a\n1970-01-01T00:00:00.000000000Z stdout F \n"
        );
        assert_eq!(left, 4);
        let (out, left) = formatted(b"half", true);
        assert_eq!((out.as_str(), left), ("1970-01-01T00:00:00.000000000Z stdout P half\n", 0));
    }

    #[test]
    fn a_line_without_end_is_cut() {
        let (out, left) = formatted(&vec![b'x'; 2 * MAX_LINE + 5], false);
        assert_eq!(out.matches(" P ").count(), 2);
        assert_eq!(left, 5);
    }

    #[tokio::test]
    async fn files_stay_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c/0.log");
        let (progress, _watch) = watch::channel(Progress::default());
        let text: Vec<u8> = (0..2000).flat_map(|i| format!("line {i}\n").into_bytes()).collect();
        Collector::open(path.clone(), 10_000, progress.clone())
            .collect(text.as_slice(), tokio::io::empty())
            .await;
        assert!(progress.borrow().closed && progress.borrow().rotations > 0);
        let sizes = [&path, &rotated(&path)].map(|p| std::fs::metadata(p).unwrap().len());
        assert!(sizes.iter().all(|&size| size <= 300_000), "{sizes:?}");
        let last = std::fs::read_to_string(&path).unwrap();
        assert!(last.ends_with("line 1999\n"));
    }
}
