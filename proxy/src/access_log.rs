//! One line of JSON per exchange: without queries, without secrets, and without ever holding up the
//! exchange.
//!
//! Lines go into a bounded queue, which a thread empties a few times in a second; what does not fit
//! is dropped and counted. Errors and slow exchanges are always written, others as often as
//! configured. What the gate refused is written only so often in a second, so that strangers cannot
//! fill a disk.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    net::IpAddr,
    os::unix::fs::OpenOptionsExt,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use crossbeam_queue::ArrayQueue;
use jiff::Timestamp;
use parking_lot::Mutex;
use prometheus::IntCounterVec;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Lines that wait, at most.
const QUEUE: usize = 8_192;
/// Between two looks of the thread that writes.
const EVERY: Duration = Duration::from_millis(50);

/// Settings of the access log.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AccessLogConfig {
    /// A file that lines are appended to; standard error when unset.
    pub file: Option<PathBuf>,
    /// Of ordinary exchanges each so many-th is written: 1 is all of them, 0 none.
    pub sample: u32,
    /// An exchange that takes this long is always written. WebSockets are not slow.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub slow: Duration,
    /// Of what was refused, at most so many lines in a second.
    pub refused_per_second: u32,
}

impl Default for AccessLogConfig {
    fn default() -> Self {
        Self { file: None, sample: 100, slow: Duration::from_secs(10), refused_per_second: 10 }
    }
}

/// One exchange that has ended.
pub struct Line<'a> {
    pub from: IpAddr,
    pub method: &'a str,
    pub host: &'a str,
    /// Without the query: it may hold secrets.
    pub path: &'a str,
    /// 0 when nothing was answered.
    pub status: u16,
    pub bytes: u64,
    pub took: Duration,
    pub user: Option<&'a str>,
    /// Whether the gate let it pass.
    pub admitted: bool,
    pub broken_off: bool,
}

#[derive(Serialize)]
struct Written<'a> {
    when: Timestamp,
    from: IpAddr,
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<&'a str>,
    method: &'a str,
    host: &'a str,
    path: &'a str,
    status: u16,
    bytes: u64,
    ms: u64,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    broken_off: bool,
}

pub struct AccessLog {
    sample: u64,
    slow: Duration,
    refused_per_second: u64,
    ordinary: AtomicU64,
    /// The second, and how many lines of refusals were written in it, in the lower 32 bits.
    refused: AtomicU64,
    shared: Arc<Shared>,
    writer: Mutex<Option<thread::JoinHandle<()>>>,
    lines: IntCounterVec,
}

struct Shared {
    queue: ArrayQueue<Vec<u8>>,
    closing: AtomicBool,
}

impl AccessLog {
    /// Opens the file and starts writing. `lines` counts by outcome.
    pub fn start(config: &AccessLogConfig, lines: IntCounterVec) -> io::Result<Self> {
        let file = match &config.file {
            Some(path) => {
                Some(OpenOptions::new().append(true).create(true).mode(0o600).open(path)?)
            }
            None => None,
        };
        let shared =
            Arc::new(Shared { queue: ArrayQueue::new(QUEUE), closing: AtomicBool::new(false) });
        let writer = thread::spawn({
            let shared = shared.clone();
            // A thread of its own: writing may block.
            move || write_lines(&shared, file)
        });
        Ok(Self {
            sample: config.sample.into(),
            slow: config.slow,
            refused_per_second: config.refused_per_second.into(),
            ordinary: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            shared,
            writer: Mutex::new(Some(writer)),
            lines,
        })
    }

    pub fn write(&self, line: &Line<'_>, now: Timestamp) {
        if !self.is_written(line, now) {
            return;
        }
        let Line { from, method, host, path, status, bytes, user, broken_off, .. } = *line;
        let ms = u64::try_from(line.took.as_millis()).unwrap_or(u64::MAX);
        let written =
            Written { when: now, from, user, method, host, path, status, bytes, ms, broken_off };
        let mut text = Vec::with_capacity(256);
        if serde_json::to_writer(&mut text, &written).is_err() {
            return;
        }
        text.push(b'\n');
        if self.shared.queue.push(text).is_err() {
            self.lines.with_label_values(&["dropped"]).inc();
        }
    }

    fn is_written(&self, line: &Line<'_>, now: Timestamp) -> bool {
        if !line.admitted {
            return self.may_write_refusal(now);
        }
        let websocket = line.status == 101;
        if line.status >= 500 || line.broken_off && !websocket {
            return true;
        }
        if line.took >= self.slow && !websocket {
            return true;
        }
        self.sample > 0 && self.ordinary.fetch_add(1, Relaxed).is_multiple_of(self.sample)
    }

    fn may_write_refusal(&self, now: Timestamp) -> bool {
        let second = u64::try_from(now.as_second()).unwrap_or(0) << 32;
        let one_more = |before: u64| {
            let count = if before >> 32 == second >> 32 { before & u64::from(u32::MAX) } else { 0 };
            (count < self.refused_per_second).then_some(second | (count + 1))
        };
        let may = self.refused.fetch_update(Relaxed, Relaxed, one_more).is_ok();
        if !may {
            self.lines.with_label_values(&["refused"]).inc();
        }
        may
    }

    /// Writes what waits, and ends. Blocks for as long as that takes, at most a few seconds.
    pub fn close(&self) {
        self.shared.closing.store(true, Relaxed);
        let Some(writer) = self.writer.lock().take() else { return };
        let give_up_at = Instant::now() + Duration::from_secs(3);
        while !writer.is_finished() && Instant::now() < give_up_at {
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for AccessLog {
    fn drop(&mut self) {
        self.shared.closing.store(true, Relaxed);
    }
}

fn write_lines(shared: &Shared, mut file: Option<File>) {
    let mut failed = 0u64;
    loop {
        let closing = shared.closing.load(Relaxed);
        let mut text = Vec::new();
        while let Some(line) = shared.queue.pop() {
            text.extend_from_slice(&line);
            if text.len() >= 1 << 16 {
                break;
            }
        }
        if text.is_empty() {
            if closing {
                return;
            }
            thread::sleep(EVERY);
            continue;
        }
        let written = match &mut file {
            Some(file) => file.write_all(&text),
            None => io::stderr().write_all(&text),
        };
        if let Err(error) = written {
            failed += 1;
            if failed.is_power_of_two() {
                tracing::error!(%error, failed, "the access log cannot be written");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(config: AccessLogConfig) -> (AccessLog, tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        let config = AccessLogConfig { file: Some(folder.path().join("access.jsonl")), ..config };
        let lines =
            IntCounterVec::new(prometheus::Opts::new("lines", "lines"), &["outcome"]).unwrap();
        (AccessLog::start(&config, lines).unwrap(), folder)
    }

    fn line(status: u16, path: &str) -> Line<'_> {
        Line {
            from: "192.0.2.1".parse().unwrap(),
            method: "GET",
            host: "echo--alice.example.test",
            path,
            status,
            bytes: 12,
            took: Duration::from_millis(34),
            user: Some("alice"),
            admitted: true,
            broken_off: false,
        }
    }

    fn text(log: &AccessLog, folder: &tempfile::TempDir) -> Vec<String> {
        log.close();
        let text = std::fs::read_to_string(folder.path().join("access.jsonl")).unwrap();
        text.lines().map(ToOwned::to_owned).collect()
    }

    #[test]
    fn one_object_a_line() {
        let (log, folder) = log(AccessLogConfig { sample: 1, ..AccessLogConfig::default() });
        log.write(&line(200, "/a\n\"b"), Timestamp::UNIX_EPOCH);
        let expected = concat!(
            r#"{"when":"1970-01-01T00:00:00Z","from":"192.0.2.1","user":"alice","method":"GET","#,
            r#""host":"echo--alice.example.test","path":"/a\n\"b","status":200,"bytes":12,"ms":34}"#
        );
        assert_eq!(text(&log, &folder), [expected]);
    }

    #[test]
    fn errors_and_slow_ones_always_and_of_the_others_each_so_many_th() {
        let (log, folder) = log(AccessLogConfig { sample: 10, ..AccessLogConfig::default() });
        let now = Timestamp::UNIX_EPOCH;
        for _ in 0..100 {
            log.write(&line(200, "/ordinary"), now);
        }
        for _ in 0..5 {
            log.write(&line(502, "/error"), now);
            log.write(&Line { broken_off: true, ..line(200, "/broken") }, now);
            log.write(&Line { took: Duration::from_secs(11), ..line(200, "/slow") }, now);
        }
        let lines = text(&log, &folder);
        let count = |path: &str| lines.iter().filter(|line| line.contains(path)).count();
        assert_eq!(
            [count("/ordinary"), count("/error"), count("/broken"), count("/slow")],
            [10, 5, 5, 5]
        );
    }

    #[test]
    fn attack_24_refusals_fill_no_log() {
        let (log, folder) = log(AccessLogConfig::default());
        for second in [1, 1, 2] {
            for _ in 0..1000 {
                let refused = Line { admitted: false, user: None, ..line(401, "/flood") };
                log.write(&refused, Timestamp::from_second(second).unwrap());
            }
        }
        assert_eq!(text(&log, &folder).len(), 20);
        assert_eq!(log.lines.with_label_values(&["refused"]).get(), 2980);
    }

    #[test]
    fn a_disk_that_does_not_keep_up_holds_nobody_up() {
        let (log, _folder) = log(AccessLogConfig { sample: 1, ..AccessLogConfig::default() });
        log.close();
        for _ in 0..QUEUE + 7 {
            log.write(&line(200, "/"), Timestamp::UNIX_EPOCH);
        }
        assert_eq!(log.lines.with_label_values(&["dropped"]).get(), 7);
    }
}
