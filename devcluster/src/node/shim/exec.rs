//! Programs that run beside a container's process: hooks and probes.

use super::protocol::MAX_EXEC_OUTPUT;
use std::io::{self, PipeReader, Read};
use std::time::Instant;

/// A program running beside the container's process.
pub struct Exec {
    pub id: u64,
    pub pid: i32,
    pub deadline: Option<Instant>,
    pub output: PipeReader,
    pub kept: Vec<u8>,
    /// Reported already; only its output is still drained, so that a daemon it left can write and not die of it.
    pub done: bool,
    pub eof: bool,
}

impl Exec {
    /// Takes in what it has written so far, and keeps the first part.
    pub fn drain(&mut self) {
        let mut chunk = [0; 4096];
        loop {
            match self.output.read(&mut chunk) {
                Ok(0) => self.eof = true,
                Ok(read) => {
                    let room = MAX_EXEC_OUTPUT.saturating_sub(self.kept.len());
                    self.kept.extend_from_slice(chunk.get(..read.min(room)).unwrap_or_default());
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => self.eof = true,
            }
            return;
        }
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.kept).into_owned()
    }
}
