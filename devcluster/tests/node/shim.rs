//! The shim leaves nothing behind, whatever runs in it and however it is told to end.

use devcluster::node::shim::protocol::{self, Command, ExecOutcome, Exit, Notice, Request};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

/// Longer than anything here takes on a busy machine; only a failure waits for it.
const PATIENCE: Duration = Duration::from_secs(30);

struct Shim {
    control: UnixStream,
    buffer: Vec<u8>,
    child: Child,
    dir: tempfile::TempDir,
}

impl Shim {
    /// Runs `script` as the container. In it, `note NAME` writes down the id of the process that runs it.
    fn start(script: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut shim = Self::spawn(dir, Stdio::null());
        let cwd = shim.dir.path().display().to_string();
        let env = BTreeMap::from([("PATH".to_owned(), std::env::var("PATH").unwrap())]);
        // `sh -c 'echo $PPID'` is asked by the process whose id is wanted; written whole, then renamed.
        let script = format!("note() {{ sh -c 'echo $PPID' > .$1; mv .$1 $1; }}\n{script}");
        let argv = ["/bin/sh", "-c", &script].map(str::to_owned).to_vec();
        shim.send(&Request::Start(Command { argv, env, cwd }));
        assert!(matches!(shim.next(), Some(Notice::Started { .. })));
        shim
    }

    fn spawn(dir: tempfile::TempDir, stdout: Stdio) -> Self {
        let (control, theirs) = UnixStream::pair().unwrap();
        control.set_read_timeout(Some(PATIENCE)).unwrap();
        let child = std::process::Command::new(env!("CARGO_BIN_EXE_pod-shim"))
            .stdin(OwnedFd::from(theirs))
            .stdout(stdout)
            .process_group(0)
            .spawn()
            .unwrap();
        Self { control, buffer: Vec::new(), child, dir }
    }

    fn send(&mut self, request: &Request) {
        self.control.write_all(&protocol::encode(request).unwrap()).unwrap();
    }

    fn next(&mut self) -> Option<Notice> {
        loop {
            if let Some(notice) = protocol::decode(&mut self.buffer).unwrap() {
                return Some(notice);
            }
            let mut chunk = [0; 4096];
            match self.control.read(&mut chunk).unwrap() {
                0 => return None,
                read => self.buffer.extend_from_slice(&chunk[..read]),
            }
        }
    }

    fn exec(&mut self, script: &str, timeout_ms: Option<u64>) -> (ExecOutcome, String) {
        let argv = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
        self.send(&Request::Exec { id: 7, argv, timeout_ms });
        match self.next() {
            Some(Notice::ExecDone { id: 7, outcome, output }) => (outcome, output),
            other => panic!("not the end of the exec: {other:?}"),
        }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn pid(&self, name: &str) -> i32 {
        read_when_there(&self.file(name)).trim().parse().unwrap()
    }

    fn exit(&mut self) -> Exit {
        match self.next() {
            Some(Notice::Exited(exit)) => exit,
            other => panic!("not the end: {other:?}"),
        }
    }
}

impl Drop for Shim {
    fn drop(&mut self) {
        let _ = self.control.shutdown(std::net::Shutdown::Both);
        let _ = self.child.wait();
    }
}

fn read_when_there(path: &Path) -> String {
    eventually(|| std::fs::read_to_string(path).ok(), &path.display().to_string())
}

fn eventually<T>(mut check: impl FnMut() -> Option<T>, what: &str) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = check() {
            return found;
        }
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Not there, or only a zombie that somebody else has to reap.
fn is_gone(pid: i32) -> bool {
    match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
        Err(_) => true,
        Ok(stat) => stat.rsplit_once(')').unwrap().1.trim_start().starts_with('Z'),
    }
}

/// A daemon with a session of its own, forked twice, that ignores SIGTERM; and a shell in another session.
const STUBBORN: &str = "
    setsid sh -c '(trap \"\" TERM HUP; sh -c \"echo \\$PPID\" > .daemon; mv .daemon daemon; while :; do sleep 1; done) &'
    setsid sh -c 'trap \"\" TERM HUP; sh -c \"echo \\$PPID\" > .session; mv .session session; while :; do sleep 1; done' &
";

#[test]
fn the_exit_code_and_the_signal_are_told() {
    assert_eq!(Shim::start("exit 3").exit(), Exit::Code(3));
    assert_eq!(Shim::start("kill -USR1 $$").exit(), Exit::Signal(10));
}

#[test]
fn daemons_end_with_the_containers_process() {
    let mut shim = Shim::start(&format!(
        "{STUBBORN} while ! [ -e daemon -a -e session ]; do sleep 0.01; done; exit 0"
    ));
    let pids = [shim.pid("daemon"), shim.pid("session")];
    assert_eq!(shim.exit(), Exit::Code(0));
    assert!(pids.into_iter().all(is_gone));
    assert_eq!(shim.next(), None);
}

#[test]
fn a_stop_is_obeyed_at_once_by_who_obeys() {
    let mut shim = Shim::start("trap 'exit 5' TERM; note ready; while :; do sleep 0.01; done");
    shim.pid("ready");
    shim.send(&Request::Stop { grace_ms: 60_000 });
    assert_eq!(shim.exit(), Exit::Code(5));
}

#[test]
fn who_does_not_obey_is_killed_with_the_whole_tree() {
    let mut shim =
        Shim::start(&format!("trap '' TERM; {STUBBORN} note main; while :; do sleep 1; done"));
    let pids = ["main", "daemon", "session"].map(|name| shim.pid(name));
    shim.send(&Request::Stop { grace_ms: 50 });
    assert_eq!(shim.exit(), Exit::Signal(9));
    assert!(pids.into_iter().all(is_gone));
}

#[test]
fn a_stop_can_be_brought_nearer() {
    let mut shim = Shim::start("trap '' TERM; note main; while :; do sleep 1; done");
    shim.pid("main");
    shim.send(&Request::Stop { grace_ms: 3_600_000 });
    shim.send(&Request::Stop { grace_ms: 0 });
    assert_eq!(shim.exit(), Exit::Signal(9));
}

#[test]
fn nothing_outlives_the_node() {
    let mut shim =
        Shim::start(&format!("trap '' TERM; {STUBBORN} note main; while :; do sleep 1; done"));
    let pids = ["main", "daemon", "session"].map(|name| shim.pid(name));
    // What the kernel does to the node's end when the node is killed.
    shim.control.shutdown(std::net::Shutdown::Both).unwrap();
    assert!(shim.child.wait().unwrap().success());
    assert!(pids.into_iter().all(is_gone));
}

#[test]
fn a_killed_shim_takes_the_containers_process_along() {
    let mut shim = Shim::start("note main; exec sleep 1000");
    let pid = shim.pid("main");
    shim.child.kill().unwrap();
    shim.child.wait().unwrap();
    eventually(|| is_gone(pid).then_some(()), "the end of the process");
}

#[test]
fn a_terminated_shim_ends_the_container_first() {
    let mut shim = Shim::start("trap 'exit 5' TERM; note main; while :; do sleep 0.01; done");
    shim.pid("main");
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(shim.child.id().try_into().unwrap()),
        nix::sys::signal::SIGTERM,
    )
    .unwrap();
    assert_eq!(shim.exit(), Exit::Code(5));
}

#[test]
fn execs_run_inside_and_what_they_leave_belongs_to_the_container() {
    let mut shim = Shim::start("note main; while :; do sleep 1; done");
    shim.pid("main");
    let (outcome, output) = shim.exec("pwd; echo oops >&2; exit 4", None);
    assert_eq!(outcome, ExecOutcome::Exited(Exit::Code(4)));
    assert_eq!(output, format!("{}\noops\n", shim.dir.path().canonicalize().unwrap().display()));
    // A daemon that keeps the exec's output open does not keep the exec.
    let (outcome, output) = shim.exec(&format!("{STUBBORN} echo started"), None);
    assert_eq!((outcome, output.as_str()), (ExecOutcome::Exited(Exit::Code(0)), "started\n"));
    let pids = [shim.pid("daemon"), shim.pid("session")];
    assert!(!pids.into_iter().any(is_gone));
    let (outcome, _) = shim.exec("sleep 1000", Some(20));
    assert_eq!(outcome, ExecOutcome::TimedOut);
    let (outcome, output) = shim.exec("exec >&-; exec 2>&-; sleep 0.05; exit 6", Some(60_000));
    assert_eq!((outcome, output.as_str()), (ExecOutcome::Exited(Exit::Code(6)), ""));
    shim.send(&Request::Stop { grace_ms: 60_000 });
    assert_eq!(shim.exit(), Exit::Signal(15));
    assert!(pids.into_iter().all(is_gone));
}

#[test]
fn much_output_of_an_exec_is_cut_and_does_not_block_it() {
    let mut shim = Shim::start("while :; do sleep 1; done");
    let (outcome, output) = shim.exec("head -c 300000 /dev/zero | tr '\\0' x", None);
    assert_eq!(outcome, ExecOutcome::Exited(Exit::Code(0)));
    assert_eq!(output.len(), protocol::MAX_EXEC_OUTPUT);
}

#[test]
fn a_program_that_cannot_start_is_named() {
    let mut shim = Shim::spawn(tempfile::tempdir().unwrap(), Stdio::null());
    let cwd = "/nowhere/at/all".to_owned();
    shim.send(&Request::Start(Command {
        argv: vec!["/bin/true".to_owned()],
        env: BTreeMap::new(),
        cwd,
    }));
    let Some(Notice::StartFailed { message }) = shim.next() else { panic!("it started") };
    assert!(message.contains("/bin/true") && message.contains("/nowhere/at/all"), "{message}");
    let mut shim = Shim::spawn(tempfile::tempdir().unwrap(), Stdio::null());
    let argv = vec!["/no/such/program".to_owned()];
    shim.send(&Request::Start(Command { argv, env: BTreeMap::new(), cwd: "/".to_owned() }));
    assert!(
        matches!(shim.next(), Some(Notice::StartFailed { message }) if message.contains("/no/such/program"))
    );
}

#[test]
fn the_container_sees_only_its_environment_and_no_foreign_descriptor() {
    let mut shim = Shim::spawn(tempfile::tempdir().unwrap(), Stdio::piped());
    let env = BTreeMap::from([("ONLY".to_owned(), "this".to_owned())]);
    let script = "/usr/bin/env; /bin/ls -l /proc/self/fd | /bin/grep -c socket; /bin/true";
    let argv = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
    shim.send(&Request::Start(Command { argv, env, cwd: "/".to_owned() }));
    let mut output = String::new();
    shim.child.stdout.take().unwrap().read_to_string(&mut output).unwrap();
    assert!(output.contains("ONLY=this") && !output.contains("CARGO"), "{output}");
    assert!(output.ends_with("\n0\n"), "{output}");
}

#[test]
fn no_signal_is_blocked_in_the_container() {
    let mut shim = Shim::spawn(tempfile::tempdir().unwrap(), Stdio::piped());
    let argv = ["/bin/grep", "SigBlk", "/proc/self/status"].map(str::to_owned).to_vec();
    shim.send(&Request::Start(Command { argv, env: BTreeMap::new(), cwd: "/".to_owned() }));
    let mut output = String::new();
    shim.child.stdout.take().unwrap().read_to_string(&mut output).unwrap();
    assert_eq!(output, "SigBlk:\t0000000000000000\n");
}

#[test]
fn a_shim_without_a_node_says_whose_tool_it_is() {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_pod-shim"))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("node"));
}
