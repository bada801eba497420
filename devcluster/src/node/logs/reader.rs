//! From a log file to whoever asks for it.

use super::{Progress, render, rotated};
use bytes::Bytes;
use jiff::Timestamp;
use std::io::{self, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio::sync::{mpsc, watch};

/// Pieces of an answer that may wait for a slow reader.
const QUEUE: usize = 8;
const CHUNK: usize = 64 << 10;

/// Which part of a log is wanted, as in `PodLogOptions`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Query {
    pub follow: bool,
    pub tail: Option<u64>,
    pub since: Option<Timestamp>,
    pub timestamps: bool,
    pub limit: Option<u64>,
}

/// Streams the log at `path`. With `follow`, `live` tells of new lines; a log nobody writes any more has none.
pub fn stream(
    path: PathBuf,
    query: Query,
    live: Option<watch::Receiver<Progress>>,
) -> mpsc::Receiver<io::Result<Bytes>> {
    let (sender, receiver) = mpsc::channel(QUEUE);
    tokio::spawn(async move {
        let mut sink = Sink { sender, left: query.limit, query };
        let closed = sink.sender.clone();
        tokio::select! {
            result = run(&path, live.filter(|_| query.follow), &mut sink) => {
                if let Err(Stop::Io(error)) = result {
                    let _ = sink.sender.send(Err(error)).await;
                }
            }
            () = closed.closed() => {}
        }
    });
    receiver
}

enum Stop {
    Io(io::Error),
    /// The reader went away, or has what it asked for.
    Enough,
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Stop::Io(error)
    }
}

struct Sink {
    sender: mpsc::Sender<io::Result<Bytes>>,
    left: Option<u64>,
    query: Query,
}

impl Sink {
    /// Takes the whole lines of `buffer` away.
    async fn lines(&mut self, buffer: &mut Vec<u8>) -> Result<(), Stop> {
        let Some(end) = buffer.iter().rposition(|&b| b == b'\n') else { return Ok(()) };
        let mut out = Vec::new();
        for line in buffer.get(..end).unwrap_or_default().split(|&b| b == b'\n') {
            render(line, self.query.since, self.query.timestamps, &mut out);
        }
        buffer.drain(..=end);
        if let Some(left) = &mut self.left {
            out.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
            *left -= out.len() as u64;
        }
        if !out.is_empty() {
            self.sender.send(Ok(Bytes::from(out))).await.map_err(|_| Stop::Enough)?;
        }
        if self.left == Some(0) { Err(Stop::Enough) } else { Ok(()) }
    }
}

async fn run(
    path: &Path,
    live: Option<watch::Receiver<Progress>>,
    sink: &mut Sink,
) -> Result<(), Stop> {
    // Seen before the first byte is read, so that a rotation in between is noticed.
    let mut rotations = live.as_ref().map_or(0, |live| live.borrow().rotations);
    let mut older = open(&rotated(path)).await?;
    let Some(mut file) = open(path).await? else { return Ok(()) };
    if let Some(tail) = sink.query.tail {
        let (start, found) = start_of_last(&mut file, tail).await?;
        file.seek(SeekFrom::Start(start)).await?;
        if let Some(older) = &mut older {
            let (start, _) = start_of_last(older, tail - found).await?;
            older.seek(SeekFrom::Start(start)).await?;
        }
    }
    let mut buffer = Vec::new();
    if let Some(mut older) = older {
        to_end(&mut older, &mut buffer, sink).await?;
        buffer.clear();
    }
    let Some(mut live) = live else {
        return to_end(&mut file, &mut buffer, sink).await;
    };
    loop {
        let progress = *live.borrow_and_update();
        to_end(&mut file, &mut buffer, sink).await?;
        if progress.rotations != rotations {
            rotations = progress.rotations;
            if let Some(next) = open(path).await?
                && next.metadata().await?.ino() != file.metadata().await?.ino()
            {
                file = next;
                buffer.clear();
            }
        } else if progress.closed || live.changed().await.is_err() {
            return to_end(&mut file, &mut buffer, sink).await;
        }
    }
}

async fn open(path: &Path) -> io::Result<Option<File>> {
    match File::open(path).await {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

async fn to_end(file: &mut File, buffer: &mut Vec<u8>, sink: &mut Sink) -> Result<(), Stop> {
    loop {
        buffer.reserve(CHUNK);
        if file.read_buf(buffer).await? == 0 {
            return Ok(());
        }
        sink.lines(buffer).await?;
    }
}

/// Where the last `count` lines of a file begin, and how many there are of them.
async fn start_of_last(file: &mut File, count: u64) -> io::Result<(u64, u64)> {
    let mut end = file.metadata().await?.len();
    if count == 0 {
        return Ok((end, 0));
    }
    let mut found = 0;
    let mut block = vec![0; CHUNK];
    while end > 0 {
        let length = end.min(CHUNK as u64);
        let begin = end - length;
        file.seek(SeekFrom::Start(begin)).await?;
        let part = block.get_mut(..usize::try_from(length).unwrap_or(0)).unwrap_or_default();
        file.read_exact(part).await?;
        for (offset, _) in part.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n') {
            if found == count {
                return Ok((begin + offset as u64 + 1, count));
            }
            found += 1;
        }
        end = begin;
    }
    Ok((0, found))
}

#[cfg(test)]
mod tests {
    use super::super::writer::Collector;
    use super::*;
    use proptest::prelude::*;
    use tokio::io::AsyncWriteExt;

    async fn all(mut receiver: mpsc::Receiver<io::Result<Bytes>>) -> String {
        let mut out = Vec::new();
        while let Some(part) = receiver.recv().await {
            out.extend_from_slice(&part.unwrap());
        }
        String::from_utf8(out).unwrap()
    }

    async fn written(dir: &Path, lines: std::ops::Range<u32>, max: u64) -> PathBuf {
        let path = dir.join("0.log");
        let (progress, _watch) = watch::channel(Progress::default());
        for line in lines {
            let text = format!("{line}\n");
            Collector::open(path.clone(), max, progress.clone())
                .collect(text.as_bytes(), tokio::io::empty())
                .await;
        }
        path
    }

    fn numbers(range: std::ops::Range<u32>) -> String {
        range.map(|i| format!("{i}\n")).collect()
    }

    #[tokio::test]
    async fn tails_reach_into_the_rotated_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = written(dir.path(), 0..10, 250).await;
        assert!(rotated(&path).exists());
        let tail = |n| Query { tail: Some(n), ..Query::default() };
        assert_eq!(all(stream(path.clone(), tail(0), None)).await, "");
        assert_eq!(all(stream(path.clone(), tail(1), None)).await, "9\n");
        assert_eq!(all(stream(path.clone(), tail(5), None)).await, numbers(5..10));
        let limited = Query { limit: Some(3), ..tail(5) };
        assert_eq!(all(stream(path.clone(), limited, None)).await, "5\n6");
        assert!(all(stream(path, Query::default(), None)).await.ends_with("8\n9\n"));
        assert_eq!(all(stream(dir.path().join("none.log"), Query::default(), None)).await, "");
    }

    #[tokio::test]
    async fn a_follower_sees_each_line_once_across_rotations_and_ends_with_the_container() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let (progress, live) = watch::channel(Progress::default());
        let (mut pipe, stdout) = tokio::io::duplex(64);
        let collector = Collector::open(path.clone(), 2_000, progress);
        let writer = tokio::spawn(collector.collect(stdout, tokio::io::empty()));
        let mut follower = stream(path, Query { follow: true, ..Query::default() }, Some(live));
        let mut text = String::new();
        for line in 0..200u32 {
            pipe.write_all(format!("{line}\n").as_bytes()).await.unwrap();
            while !text.ends_with(&numbers(line..line + 1)) {
                text.push_str(
                    std::str::from_utf8(&follower.recv().await.unwrap().unwrap()).unwrap(),
                );
            }
        }
        drop(pipe);
        writer.await.unwrap();
        text.push_str(&all(follower).await);
        assert_eq!(text, numbers(0..200));
    }

    proptest! {
        #[test]
        fn any_tail_of_any_file(lines in 0u64..40, tail in 0u64..50) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(async {
                let dir = tempfile::tempdir().unwrap();
                let path = dir.path().join("f");
                let text: String = (0..lines).map(|i| format!("{i}\n")).collect();
                std::fs::write(&path, &text).unwrap();
                let mut file = File::open(&path).await.unwrap();
                let (start, found) = start_of_last(&mut file, tail).await.unwrap();
                assert_eq!(found, tail.min(lines));
                let rest = &text[usize::try_from(start).unwrap()..];
                assert_eq!(rest.lines().count() as u64, found);
            });
        }
    }
}
