//! `dormouse agent serve --detach`: starts the daemon and answers when it listens.
//!
//! The daemon is this program again, so nothing of this process's threads, locks or open files is
//! taken along. It stays in the process group it was started in: whoever runs the pod finds and ends
//! it there.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    os::{fd::AsRawFd, unix::process::CommandExt},
    process::{Command, Stdio},
    sync::mpsc,
    time::Duration,
};

/// Set for the daemon: it must say that it listens, and then let go of its outputs.
const DETACHED: &str = "DORMOUSE_AGENT_DETACHED";

const READY: &str = "ready";

/// How long the daemon may take to listen.
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Debug, thiserror::Error)]
pub enum DetachError {
    #[error("cannot start the agent: {0}")]
    Start(#[from] io::Error),
    #[error("{0}")]
    Refused(String),
    #[error("the agent did not listen within {} s", PATIENCE.as_secs())]
    Late,
}

/// Was this process started by [`start`]?
pub fn is_daemon() -> bool {
    std::env::var_os(DETACHED).is_some()
}

/// Starts the daemon with the same environment; returns once it listens.
pub fn start() -> Result<(), DetachError> {
    let mut command = Command::new(std::env::current_exe()?);
    command
        .args(["agent", "serve"])
        .env(DETACHED, "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    // SAFETY: one system call, which is safe between fork and exec.
    unsafe {
        command.pre_exec(|| {
            close_inherited();
            Ok(())
        });
    }
    let mut child = command.spawn()?;
    let (sender, receiver) = mpsc::channel();
    if let Some(stdout) = child.stdout.take() {
        std::thread::spawn(move || {
            let mut line = String::new();
            let _ = BufReader::new(stdout).read_line(&mut line);
            let _ = sender.send(line.trim_end() == READY);
        });
    }
    match receiver.recv_timeout(PATIENCE) {
        Ok(true) => Ok(()),
        Ok(false) => {
            let mut reason = String::new();
            if let Some(stderr) = child.stderr.take() {
                let _ = stderr.take(64 << 10).read_to_string(&mut reason);
            }
            let _ = child.wait();
            let reason = reason.trim();
            let reason = reason.strip_prefix("dormouse: ").unwrap_or(reason);
            Err(DetachError::Refused(reason.to_owned()))
        }
        Err(_) => {
            let _ = child.kill();
            let _ = child.wait();
            Err(DetachError::Late)
        }
    }
}

/// Files that our parent left open by mistake are not the daemon's to hold.
fn close_inherited() {
    // SAFETY: closes at exec only what this process does not use; needs Linux 5.11, and without it
    // nothing happens.
    unsafe {
        libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC);
    }
}

/// Called by the daemon when it listens: says so, and lets go of the standard streams that it
/// inherited, so that nobody waits for their end.
pub fn listening() -> io::Result<()> {
    let mut stdout = io::stdout();
    writeln!(stdout, "{READY}")?;
    stdout.flush()?;
    let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
    for stream in 0..=2 {
        // SAFETY: both are open descriptors of this process.
        if unsafe { libc::dup2(null.as_raw_fd(), stream) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}
