//! A session's program: in a session and process group of its own, with a terminal or with pipes.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
    process::{ExitStatus, Stdio},
};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use russh::Sig;
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};

use crate::pty;

/// Hangs up on its process group when it is dropped before its end.
#[derive(Debug)]
pub struct Program {
    child: Child,
    /// `None` once it has ended: the number may belong to somebody else then.
    group: Option<Pid>,
}

pub struct Pipes {
    pub stdin: ChildStdin,
    pub stdout: ChildStdout,
    pub stderr: ChildStderr,
}

pub fn with_pipes(mut command: Command) -> io::Result<(Program, Pipes)> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut program = spawn(command, None)?;
    let child = &mut program.child;
    let (Some(stdin), Some(stdout), Some(stderr)) =
        (child.stdin.take(), child.stdout.take(), child.stderr.take())
    else {
        return Err(io::Error::other("the pipes are missing"));
    };
    Ok((program, Pipes { stdin, stdout, stderr }))
}

pub fn with_terminal(
    mut command: Command,
    request: &pty::Request,
) -> io::Result<(Program, pty::Master)> {
    let pair = pty::open(request)?;
    command.env("TERM", request.term());
    if let Some(name) = pair.name {
        command.env("SSH_TTY", name);
    }
    command
        .stdin(Stdio::from(pair.slave.try_clone()?))
        .stdout(Stdio::from(pair.slave.try_clone()?))
        .stderr(Stdio::from(pair.slave.try_clone()?));
    Ok((spawn(command, Some(&pair.slave))?, pair.master))
}

fn spawn(mut command: Command, terminal: Option<&OwnedFd>) -> io::Result<Program> {
    let terminal = terminal.map(AsRawFd::as_raw_fd);
    // SAFETY: three system calls, all safe between fork and exec. The terminal's descriptor is open
    // until the caller lets go of it after the spawn.
    unsafe {
        command.pre_exec(move || {
            nix::unistd::setsid()?;
            if let Some(terminal) = terminal
                && libc::ioctl(terminal, libc::TIOCSCTTY, 0) < 0
            {
                return Err(io::Error::last_os_error());
            }
            // The agent may be killed without a chance to hang up itself.
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGHUP);
            Ok(())
        });
    }
    let child = command.spawn()?;
    let group = child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw);
    Ok(Program { child, group })
}

impl Program {
    pub async fn wait(&mut self) -> io::Result<ExitStatus> {
        let status = self.child.wait().await?;
        self.group = None;
        Ok(status)
    }

    pub fn group(&self) -> Option<Pid> {
        self.group
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if let Some(group) = self.group {
            let _ = killpg(group, Signal::SIGHUP);
        }
    }
}

/// The signals of RFC 4254, section 6.10, and those that OpenSSH knows beside them.
pub fn signal(name: &Sig) -> Option<Signal> {
    Some(match name {
        Sig::ABRT => Signal::SIGABRT,
        Sig::ALRM => Signal::SIGALRM,
        Sig::FPE => Signal::SIGFPE,
        Sig::HUP => Signal::SIGHUP,
        Sig::ILL => Signal::SIGILL,
        Sig::INT => Signal::SIGINT,
        Sig::KILL => Signal::SIGKILL,
        Sig::PIPE => Signal::SIGPIPE,
        Sig::QUIT => Signal::SIGQUIT,
        Sig::SEGV => Signal::SIGSEGV,
        Sig::TERM => Signal::SIGTERM,
        Sig::USR1 => Signal::SIGUSR1,
        Sig::Custom(name) => match name.as_str() {
            "USR2" => Signal::SIGUSR2,
            "TSTP" => Signal::SIGTSTP,
            "CONT" => Signal::SIGCONT,
            "WINCH" => Signal::SIGWINCH,
            _ => return None,
        },
    })
}

/// The name that an exit-signal message gives to a signal.
pub fn name(signal: i32) -> Sig {
    match Signal::try_from(signal) {
        Ok(Signal::SIGABRT) => Sig::ABRT,
        Ok(Signal::SIGALRM) => Sig::ALRM,
        Ok(Signal::SIGFPE) => Sig::FPE,
        Ok(Signal::SIGHUP) => Sig::HUP,
        Ok(Signal::SIGILL) => Sig::ILL,
        Ok(Signal::SIGINT) => Sig::INT,
        Ok(Signal::SIGKILL) => Sig::KILL,
        Ok(Signal::SIGPIPE) => Sig::PIPE,
        Ok(Signal::SIGQUIT) => Sig::QUIT,
        Ok(Signal::SIGSEGV) => Sig::SEGV,
        Ok(Signal::SIGTERM) => Sig::TERM,
        Ok(Signal::SIGUSR1) => Sig::USR1,
        Ok(other) => Sig::Custom(other.as_str().trim_start_matches("SIG").to_owned()),
        Err(_) => Sig::Custom(format!("{signal}@dormouse.dev")),
    }
}
