//! The shim's loop: one thread, one `poll(2)`, no runtime.

use super::exec::Exec;
use super::protocol::{self, Command, ExecOutcome, Exit, FrameError, Notice, Request};
use super::tree;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, killpg};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::WaitStatus;
use nix::unistd::Pid;
use std::fs::OpenOptions;
use std::io::{self, PipeReader, Read, Write};
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::Stdio;
use std::time::{Duration, Instant};

/// How long the container may take to end by itself after its node died.
const NODE_GONE_GRACE: Duration = Duration::from_millis(500);
/// How long what the container's process leaves behind may take to end after SIGTERM, once that process has ended.
const LEFTOVER_GRACE: Duration = Duration::from_millis(300);
/// Grace when somebody sends the shim itself a SIGTERM.
const SIGNALLED_GRACE: Duration = Duration::from_secs(10);
/// How long to wait for killed processes to be gone: longer only in an uninterruptible sleep.
const KILL_PATIENCE: Duration = Duration::from_secs(5);

#[derive(Debug, thiserror::Error)]
pub enum ShimError {
    #[error(
        "standard input is not the node's control socket ({0}); this command is for the node's use only"
    )]
    NoControl(#[source] io::Error),
    #[error("{what}: {error}")]
    System { what: &'static str, error: io::Error },
    #[error(transparent)]
    Frame(#[from] FrameError),
}

fn system<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> ShimError {
    move |error| ShimError::System { what, error: error.into() }
}

pub fn run() -> Result<(), ShimError> {
    // Nothing that the node forgot to close reaches a container.
    // SAFETY: marks descriptors close-on-exec; touches no memory.
    unsafe { libc::close_range(3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC as libc::c_int) };
    let control = take_control()?;
    nix::sys::prctl::set_child_subreaper(true).map_err(system("becoming a subreaper"))?;
    let mut mask = SigSet::empty();
    for signal in
        [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT]
    {
        mask.add(signal);
    }
    mask.thread_block().map_err(system("blocking signals"))?;
    let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .map_err(system("signalfd"))?;
    Shim {
        control,
        signals,
        buffer: Vec::new(),
        command: Command::default(),
        execs: Vec::new(),
        phase: Phase::Waiting,
    }
    .serve()
}

/// Moves the control socket away from descriptor 0, where containers would inherit it.
fn take_control() -> Result<UnixStream, ShimError> {
    let control = io::stdin().as_fd().try_clone_to_owned().map_err(ShimError::NoControl)?;
    nix::sys::socket::getsockname::<nix::sys::socket::UnixAddr>(std::os::fd::AsRawFd::as_raw_fd(
        &control,
    ))
    .map_err(|e| ShimError::NoControl(e.into()))?;
    let null = OpenOptions::new().read(true).open("/dev/null").map_err(system("/dev/null"))?;
    redirect(&null, 0)?;
    Ok(UnixStream::from(control))
}

fn redirect(from: &impl AsFd, to: i32) -> Result<(), ShimError> {
    // SAFETY: `to` is one of the three standard descriptors, which stay open for good, so it is not closed on drop.
    let mut target = std::mem::ManuallyDrop::new(unsafe { OwnedFd::from_raw_fd(to) });
    nix::unistd::dup2(from, &mut target).map_err(system("redirecting a standard descriptor"))
}

enum Phase {
    /// The first frame is not here yet.
    Waiting,
    Running {
        main: i32,
    },
    /// SIGTERM was sent; at the deadline follows SIGKILL.
    Stopping {
        main: i32,
        deadline: Instant,
    },
    /// The container's process ended after a SIGTERM; what it left behind may finish until the deadline.
    Leftovers {
        exit: Exit,
        deadline: Instant,
    },
    Ended {
        exit: Exit,
    },
}

struct Shim {
    control: UnixStream,
    signals: SignalFd,
    buffer: Vec<u8>,
    command: Command,
    execs: Vec<Exec>,
    phase: Phase,
}

impl Shim {
    fn serve(mut self) -> Result<(), ShimError> {
        loop {
            self.wait()?;
            self.check_deadlines();
            if let Phase::Ended { exit } = self.phase {
                let gone = tree::kill_all(KILL_PATIENCE, |_, _| {});
                if !gone {
                    // Nobody is left to see to them but init.
                    let _ = writeln!(io::stderr(), "pod-shim: a killed process has not ended yet");
                }
                self.tell(&Notice::Exited(exit));
                return Ok(());
            }
        }
    }

    /// Waits for the next thing to happen and takes it in.
    fn wait(&mut self) -> Result<(), ShimError> {
        let timeout = match self.next_deadline() {
            None => PollTimeout::NONE,
            Some(at) => {
                let left = at.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
                PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
            }
        };
        let mut fds = vec![
            PollFd::new(self.control.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
        ];
        // An output at its end would be ready for ever.
        let open = self.execs.iter().filter(|exec| !exec.eof);
        fds.extend(open.map(|exec| PollFd::new(exec.output.as_fd(), PollFlags::POLLIN)));
        match poll(&mut fds, timeout) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(system("poll")(error)),
        }
        let ready: Vec<bool> = fds.iter().map(|fd| fd.any().unwrap_or(true)).collect();
        drop(fds);
        let open = self.execs.iter_mut().filter(|exec| !exec.eof);
        for (exec, ready) in open.zip(ready.iter().skip(2)) {
            if *ready {
                exec.drain();
            }
        }
        if ready.get(1) == Some(&true) {
            self.take_signals();
        }
        self.execs.retain(|exec| !(exec.done && exec.eof));
        if ready.first() == Some(&true) {
            self.take_requests()?;
        }
        Ok(())
    }

    fn next_deadline(&self) -> Option<Instant> {
        let own = match self.phase {
            Phase::Stopping { deadline, .. } | Phase::Leftovers { deadline, .. } => Some(deadline),
            Phase::Waiting | Phase::Running { .. } | Phase::Ended { .. } => None,
        };
        self.execs
            .iter()
            .filter(|exec| !exec.done)
            .filter_map(|exec| exec.deadline)
            .chain(own)
            .min()
    }

    fn check_deadlines(&mut self) {
        let now = Instant::now();
        let mut late = Vec::new();
        for exec in self
            .execs
            .iter_mut()
            .filter(|exec| !exec.done && exec.deadline.is_some_and(|at| at <= now))
        {
            exec.done = true;
            let _ = killpg(Pid::from_raw(exec.pid), Signal::SIGKILL);
            late.push(Notice::ExecDone {
                id: exec.id,
                outcome: ExecOutcome::TimedOut,
                output: exec.text(),
            });
        }
        for notice in late {
            self.tell(&notice);
        }
        match self.phase {
            Phase::Stopping { main, deadline } if deadline <= now => {
                let mut exit = Exit::Signal(Signal::SIGKILL as i32);
                tree::kill_all(KILL_PATIENCE, |pid, status| {
                    if pid == main
                        && let Some(status) = exit_of(status)
                    {
                        exit = status;
                    }
                });
                self.phase = Phase::Ended { exit };
            }
            Phase::Leftovers { exit, deadline } if deadline <= now => {
                self.phase = Phase::Ended { exit }
            }
            _ => {}
        }
    }

    fn take_signals(&mut self) {
        while let Ok(Some(info)) = self.signals.read_signal() {
            if info.ssi_signo == Signal::SIGTERM as u32 {
                self.stop(SIGNALLED_GRACE);
            }
        }
        let mut ended = Vec::new();
        let alive = tree::reap(|pid, status| ended.push((pid, status)));
        for (pid, status) in ended {
            let Some(exit) = exit_of(status) else { continue };
            self.ended(pid, exit);
        }
        if let Phase::Leftovers { exit, .. } = self.phase
            && !alive
        {
            self.phase = Phase::Ended { exit };
        }
    }

    fn ended(&mut self, pid: i32, exit: Exit) {
        if let Some(exec) = self.execs.iter_mut().find(|exec| exec.pid == pid && !exec.done) {
            exec.drain();
            exec.done = true;
            let notice = Notice::ExecDone {
                id: exec.id,
                outcome: ExecOutcome::Exited(exit),
                output: exec.text(),
            };
            self.tell(&notice);
        }
        match self.phase {
            Phase::Running { main } if main == pid => self.phase = Phase::Ended { exit },
            Phase::Stopping { main, deadline } if main == pid => {
                tree::signal_all(Signal::SIGTERM);
                let deadline = deadline.min(Instant::now() + LEFTOVER_GRACE);
                self.phase = Phase::Leftovers { exit, deadline };
            }
            _ => {}
        }
    }

    fn take_requests(&mut self) -> Result<(), ShimError> {
        let mut chunk = [0; 8192];
        match self.control.read(&mut chunk) {
            Ok(0) => self.node_gone(),
            Ok(read) => self.buffer.extend_from_slice(chunk.get(..read).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => self.node_gone(),
        }
        while let Some(request) = protocol::decode(&mut self.buffer)? {
            match request {
                Request::Start(command) => self.start(command)?,
                Request::Exec { id, argv, timeout_ms } => self.exec(id, &argv, timeout_ms),
                Request::Stop { grace_ms } => self.stop(Duration::from_millis(grace_ms)),
            }
        }
        Ok(())
    }

    fn node_gone(&mut self) {
        // The socket stays readable for ever at its end: a closed pipe in its place stays silent.
        if let Ok((ours, theirs)) = UnixStream::pair() {
            std::mem::forget(theirs);
            self.control = ours;
        }
        self.stop(NODE_GONE_GRACE);
    }

    fn start(&mut self, command: Command) -> Result<(), ShimError> {
        if !matches!(self.phase, Phase::Waiting) {
            return Ok(());
        }
        self.command = command;
        let started = self.spawn(&self.command.argv, Stdio::inherit(), Stdio::inherit());
        let null = OpenOptions::new().write(true).open("/dev/null").map_err(system("/dev/null"))?;
        redirect(&null, 1)?;
        redirect(&null, 2)?;
        match started {
            Ok(pid) => {
                self.phase = Phase::Running { main: pid };
                self.tell(&Notice::Started { pid });
            }
            Err(message) => {
                self.phase = Phase::Ended { exit: Exit::Code(128) };
                self.tell(&Notice::StartFailed { message });
            }
        }
        Ok(())
    }

    fn exec(&mut self, id: u64, argv: &[String], timeout_ms: Option<u64>) {
        let started = match self.phase {
            Phase::Running { .. } | Phase::Stopping { .. } => self.start_exec(argv),
            Phase::Waiting | Phase::Leftovers { .. } | Phase::Ended { .. } => {
                Err("the container is not running".to_owned())
            }
        };
        match started {
            Ok((pid, output)) => {
                let deadline = timeout_ms.map(|ms| Instant::now() + Duration::from_millis(ms));
                self.execs.push(Exec {
                    id,
                    pid,
                    deadline,
                    output,
                    kept: Vec::new(),
                    done: false,
                    eof: false,
                });
            }
            Err(message) => {
                let outcome = ExecOutcome::StartFailed { message };
                self.tell(&Notice::ExecDone { id, outcome, output: String::new() });
            }
        }
    }

    fn start_exec(&self, argv: &[String]) -> Result<(i32, PipeReader), String> {
        let pipes = || -> io::Result<_> {
            let (output, input) = io::pipe()?;
            fcntl(&output, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
            Ok((output, input.try_clone()?, input))
        };
        let (output, stdout, stderr) =
            pipes().map_err(|error| format!("no pipe for the output: {error}"))?;
        let pid = self.spawn(argv, stdout.into(), stderr.into())?;
        Ok((pid, output))
    }

    /// Starts a process in a session of its own.
    fn spawn(&self, argv: &[String], stdout: Stdio, stderr: Stdio) -> Result<i32, String> {
        let (program, args) = argv.split_first().ok_or("no command is given")?;
        let mut command = std::process::Command::new(program);
        command
            .args(args)
            .env_clear()
            .envs(&self.command.env)
            .current_dir(&self.command.cwd)
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(stderr);
        // SAFETY: all three calls are async-signal-safe system calls and touch no memory.
        unsafe {
            command.pre_exec(|| {
                // What the shim blocks for itself would stay blocked.
                SigSet::empty().thread_set_mask()?;
                nix::unistd::setsid()?;
                // Should the shim itself be killed, its children at least go with it at once.
                nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
                Ok(())
            });
        }
        let child = command.spawn().map_err(|error| {
            let place = &self.command.cwd;
            if std::path::Path::new(place).is_dir() {
                format!("cannot start {program}: {error}")
            } else {
                format!("cannot start {program}: its working directory {place} is not there")
            }
        })?;
        i32::try_from(child.id()).map_err(|_| "a process id that does not fit".to_owned())
    }

    fn stop(&mut self, grace: Duration) {
        let until = Instant::now() + grace;
        match &mut self.phase {
            Phase::Waiting => {
                self.phase = Phase::Ended { exit: Exit::Signal(Signal::SIGTERM as i32) }
            }
            Phase::Running { main } => {
                let main = *main;
                let _ = killpg(Pid::from_raw(main), Signal::SIGTERM);
                self.phase = Phase::Stopping { main, deadline: until };
            }
            Phase::Stopping { deadline, .. } | Phase::Leftovers { deadline, .. } => {
                *deadline = until.min(*deadline)
            }
            Phase::Ended { .. } => {}
        }
    }

    /// The node may be gone: then its end of file, read next, says so.
    fn tell(&mut self, notice: &Notice) {
        if let Ok(frame) = protocol::encode(notice) {
            let _ = self.control.write_all(&frame);
        }
    }
}

fn exit_of(status: WaitStatus) -> Option<Exit> {
    match status {
        WaitStatus::Exited(_, code) => Some(Exit::Code(code)),
        WaitStatus::Signaled(_, signal, _) => Some(Exit::Signal(signal as i32)),
        _ => None,
    }
}
