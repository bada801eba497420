//! The node's side of a shim: one running container.

use super::shim::MARK;
use super::shim::protocol::{self, Command, ExecOutcome, Exit, Notice, Request};
use std::collections::HashMap;
use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::process::{ChildStderr, ChildStdout};
use tokio::sync::{mpsc, oneshot, watch};

/// Requests that may wait for a shim: probes and hooks of one container, far fewer than this.
const QUEUE: usize = 64;

/// Past an exec's own deadline, how long to wait for the shim to say so.
const EXEC_SLACK: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, thiserror::Error)]
pub enum ProcessError {
    /// The container's program could not be started; the message names it.
    #[error("{0}")]
    Start(String),
    #[error("the container's shim ({program}) cannot be started: {error}")]
    Shim { program: String, error: String },
}

/// How a container's process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    Exited(Exit),
    /// The shim was killed, so nobody saw how.
    Lost,
}

/// A container whose process has started. Dropping it ends the container as the node's death would.
#[derive(Debug)]
pub struct Process {
    requests: mpsc::Sender<Outgoing>,
    ended: watch::Receiver<Option<Ended>>,
}

#[derive(Debug)]
enum Outgoing {
    Exec {
        argv: Vec<String>,
        timeout: Option<Duration>,
        reply: oneshot::Sender<(ExecOutcome, String)>,
    },
    Stop {
        grace: Duration,
    },
}

/// A started container and what it writes.
pub struct Started {
    pub process: Process,
    pub stdout: ChildStdout,
    pub stderr: ChildStderr,
}

/// Starts `command` under a shim; `mark` is the value of [`MARK`] that all its processes carry.
pub async fn start(
    shim: &[OsString],
    mut command: Command,
    mark: &str,
) -> Result<Started, ProcessError> {
    let Some((program, args)) = shim.split_first() else {
        return Err(ProcessError::Shim {
            program: "none".to_owned(),
            error: "no command is set for it".to_owned(),
        });
    };
    let failed = |error: std::io::Error| ProcessError::Shim {
        program: program.to_string_lossy().into_owned(),
        error: error.to_string(),
    };
    command.env.insert(MARK.to_owned(), mark.to_owned());
    let (ours, theirs) = StdUnixStream::pair().map_err(failed)?;
    ours.set_nonblocking(true).map_err(failed)?;
    let mut control = UnixStream::from_std(ours).map_err(failed)?;
    let mut child = tokio::process::Command::new(program)
        .args(args)
        .env_clear()
        .env(MARK, mark)
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .map_err(failed)?;
    let (Some(stdout), Some(mut stderr)) = (child.stdout.take(), child.stderr.take()) else {
        return Err(failed(std::io::Error::other("it has no output")));
    };
    let frame = protocol::encode(&Request::Start(command))
        .map_err(|e| ProcessError::Start(e.to_string()))?;
    let mut buffer = Vec::new();
    let first = async {
        control.write_all(&frame).await?;
        next_notice(&mut control, &mut buffer).await
    };
    match first.await {
        Ok(Some(Notice::Started { .. })) => {}
        Ok(Some(Notice::StartFailed { message })) => {
            tokio::spawn(async move { child.wait().await });
            return Err(ProcessError::Start(message));
        }
        Ok(_) | Err(_) => {
            // What it says for itself is short, and ends with it.
            let mut said = String::new();
            let _ =
                tokio::time::timeout(EXEC_SLACK, (&mut stderr).take(500).read_to_string(&mut said))
                    .await;
            let status = child.wait().await.map(|status| status.to_string()).unwrap_or_default();
            return Err(failed(std::io::Error::other(format!(
                "it ended at once, {status}: {}",
                said.trim()
            ))));
        }
    }
    let (requests, outgoing) = mpsc::channel(QUEUE);
    let (tell, ended) = watch::channel(None);
    let mark = mark.to_owned();
    tokio::spawn(async move {
        let how = Link { control, buffer, pending: HashMap::new(), next: 0 }.run(outgoing).await;
        if how == Ended::Lost {
            sweep(mark).await;
        }
        let _ = child.wait().await;
        let _ = tell.send(Some(how));
    });
    Ok(Started { process: Process { requests, ended }, stdout, stderr })
}

/// Ends what a killed shim left behind.
async fn sweep(mark: String) {
    #[cfg(target_os = "linux")]
    let _ = tokio::task::spawn_blocking(move || super::shim::tree::kill_marked(MARK, &mark)).await;
    #[cfg(not(target_os = "linux"))]
    drop(mark);
}

impl Process {
    /// Resolves when the process and all it had started are gone.
    pub async fn ended(&self) -> Ended {
        let mut ended = self.ended.clone();
        match ended.wait_for(Option::is_some).await {
            Ok(how) => how.unwrap_or(Ended::Lost),
            Err(_) => Ended::Lost,
        }
    }

    /// SIGTERM now, SIGKILL for the whole tree after `grace`. Await [`Process::ended`] for the end.
    pub async fn stop(&self, grace: Duration) {
        let _ = self.requests.send(Outgoing::Stop { grace }).await;
    }

    /// Runs a program in the container's surroundings, and returns how it ended and the first part of what it wrote.
    pub async fn exec(
        &self,
        argv: Vec<String>,
        timeout: Option<Duration>,
    ) -> (ExecOutcome, String) {
        let gone = || {
            let message = "the container ended".to_owned();
            (ExecOutcome::StartFailed { message }, String::new())
        };
        let (reply, outcome) = oneshot::channel();
        if self.requests.send(Outgoing::Exec { argv, timeout, reply }).await.is_err() {
            return gone();
        }
        match timeout {
            None => outcome.await.unwrap_or_else(|_| gone()),
            Some(limit) => match tokio::time::timeout(limit + EXEC_SLACK, outcome).await {
                Ok(outcome) => outcome.unwrap_or_else(|_| gone()),
                Err(_) => (ExecOutcome::TimedOut, String::new()),
            },
        }
    }
}

struct Link {
    control: UnixStream,
    buffer: Vec<u8>,
    pending: HashMap<u64, oneshot::Sender<(ExecOutcome, String)>>,
    next: u64,
}

impl Link {
    async fn run(mut self, mut outgoing: mpsc::Receiver<Outgoing>) -> Ended {
        loop {
            tokio::select! {
                notice = next_notice(&mut self.control, &mut self.buffer) => match notice {
                    Ok(Some(Notice::Exited(exit))) => return Ended::Exited(exit),
                    Ok(Some(Notice::ExecDone { id, outcome, output })) => {
                        if let Some(reply) = self.pending.remove(&id) {
                            let _ = reply.send((outcome, output));
                        }
                    }
                    Ok(Some(Notice::Started { .. } | Notice::StartFailed { .. })) => {}
                    Ok(None) | Err(_) => return Ended::Lost,
                },
                request = outgoing.recv() => {
                    // Nobody holds the container any more: the shim is told so by the end of the socket.
                    let Some(request) = request else { break };
                    if self.send(request).await.is_err() {
                        return Ended::Lost;
                    }
                }
            }
        }
        if self.control.shutdown().await.is_err() {
            return Ended::Lost;
        }
        loop {
            match next_notice(&mut self.control, &mut self.buffer).await {
                Ok(Some(Notice::Exited(exit))) => return Ended::Exited(exit),
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => return Ended::Lost,
            }
        }
    }

    async fn send(&mut self, request: Outgoing) -> std::io::Result<()> {
        let request = match request {
            Outgoing::Stop { grace } => Request::Stop { grace_ms: millis(grace) },
            Outgoing::Exec { argv, timeout, reply } => {
                let id = self.next;
                self.next += 1;
                self.pending.retain(|_, reply| !reply.is_closed());
                self.pending.insert(id, reply);
                Request::Exec { id, argv, timeout_ms: timeout.map(millis) }
            }
        };
        let frame = protocol::encode(&request).map_err(std::io::Error::other)?;
        self.control.write_all(&frame).await
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Cancel-safe: what was read stays in `buffer`. `None` at the end of the stream.
async fn next_notice(
    control: &mut UnixStream,
    buffer: &mut Vec<u8>,
) -> std::io::Result<Option<Notice>> {
    loop {
        if let Some(notice) = protocol::decode(buffer).map_err(std::io::Error::other)? {
            return Ok(Some(notice));
        }
        if control.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    }
}
