//! Shells and commands, through the gateway and the agent, with OpenSSH.
#![allow(clippy::unwrap_used)]

mod support;

use std::{
    io::{Read, Write},
    os::fd::AsRawFd,
    process::Stdio,
};

use nix::pty::{Winsize, openpty};
use support::{World, openssh_is_here, run, text};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_has_its_code_and_a_standard_error_of_its_own() {
    let world = World::start().await;
    if !openssh_is_here() {
        return;
    }
    let command = "echo $((6*7)); echo oops >&2; exit 3";
    let output = run(world.ssh(&["lab@127.0.0.1", command])).await;
    assert_eq!(text(&output.stdout), "42\n");
    assert_eq!(text(&output.stderr), "oops\n");
    assert_eq!(output.status.code(), Some(3));
    assert_eq!(world.doing().as_deref(), Some("ran a command"));
    let output = run(world.ssh(&["lab.alice@127.0.0.1", "pwd; kill -TERM $$"])).await;
    assert_eq!(text(&output.stdout).trim(), world.home.to_str().unwrap());
    assert_eq!(output.status.code(), Some(255), "ended by a signal, as with sshd");
    let output =
        run(world.ssh(&["-o", "SetEnv=LC_X=y LD_PRELOAD=z", "lab@127.0.0.1", "env"])).await;
    let environment = text(&output.stdout);
    assert!(environment.contains("LC_X=y\n"), "{environment}");
    assert!(!environment.contains("LD_PRELOAD=z"), "{environment}");
    assert!(!environment.contains("DORMOUSE_AGENT"), "{environment}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn standard_input_streams_and_ends() {
    let world = World::start().await;
    if !openssh_is_here() {
        return;
    }
    let mut command = world.ssh(&["lab@127.0.0.1", "wc -c; echo end"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // More than all buffers on the way hold.
    let chunk = vec![b'x'; 1 << 20];
    for _ in 0..24 {
        stdin.write_all(&chunk).await.unwrap();
    }
    drop(stdin);
    let mut out = String::new();
    child.stdout.take().unwrap().read_to_string(&mut out).await.unwrap();
    assert_eq!(out.split_whitespace().collect::<Vec<_>>(), [&(24 << 20).to_string(), "end"]);
    assert!(child.wait().await.unwrap().success());
    assert_eq!(world.doing().as_deref(), Some("typed in a shell"));
}

fn resize(terminal: &impl AsRawFd, rows: u16, columns: u16) {
    let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: an open descriptor and a value that outlives the call.
    assert_eq!(unsafe { nix::libc::ioctl(terminal.as_raw_fd(), nix::libc::TIOCSWINSZ, &size) }, 0);
}

/// Reads until the text appears.
fn expect(terminal: &mut std::fs::File, wanted: &str) -> String {
    let mut seen = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let read = terminal.read(&mut buffer).unwrap();
        seen.extend_from_slice(&buffer[..read]);
        if text(&seen).contains(wanted) {
            return text(&seen);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_shell_has_a_terminal_that_follows_a_resize() {
    let world = World::start().await;
    if !openssh_is_here() {
        return;
    }
    let pair = openpty(None, None).unwrap();
    resize(&pair.master, 33, 101);
    let mut command = world.ssh(&["-tt", "lab@127.0.0.1"]);
    let slave = || Stdio::from(pair.slave.try_clone().unwrap());
    command.env("TERM", "xterm-256color").stdin(slave()).stdout(slave()).stderr(slave());
    // SAFETY: two system calls between fork and exec.
    unsafe {
        command.pre_exec(|| {
            nix::unistd::setsid()?;
            nix::libc::ioctl(0, nix::libc::TIOCSCTTY, 0);
            Ok(())
        });
    }
    let mut child = command.spawn().unwrap();
    drop(pair.slave);
    let terminal = tokio::task::spawn_blocking(move || {
        let mut terminal = std::fs::File::from(pair.master);
        terminal.write_all(b"echo $TERM; tty; echo $0; stty size; echo o''ne\n").unwrap();
        let seen = expect(&mut terminal, "one\r\n");
        assert!(seen.contains("xterm-256color"), "{seen}");
        assert!(seen.contains("/dev/pts/"), "{seen}");
        assert!(seen.contains("\r\n-"), "a login shell's name starts with a hyphen: {seen}");
        assert!(seen.contains("33 101"), "{seen}");
        resize(&terminal, 50, 140);
        // The signal and the message take their time: the shell waits for the new size.
        let wait = "until stty size | grep -q '50 140'; do sleep 0.05; done; echo t''wo; exit 7\n";
        terminal.write_all(wait.as_bytes()).unwrap();
        expect(&mut terminal, "two");
        terminal
    });
    let terminal = terminal.await.unwrap();
    assert_eq!(child.wait().await.unwrap().code(), Some(7));
    drop(terminal);
    assert_eq!(world.doing().as_deref(), Some("typed in a shell"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_of_a_session_hangs_up_on_its_program() {
    let world = World::start().await;
    if !openssh_is_here() {
        return;
    }
    let mark = world.path("mark");
    let line = format!(
        "exec 2>/dev/null; trap 'echo hup > {}; exit' HUP; echo up; while :; do sleep 0.05; done",
        mark.display()
    );
    let mut command = world.ssh(&["lab@127.0.0.1", &line]);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut out = child.stdout.take().unwrap();
    out.read_exact(&mut [0; 3]).await.unwrap();
    child.kill().await.unwrap();
    while std::fs::read_to_string(&mark).ok().as_deref() != Some("hup\n") {
        tokio::task::yield_now().await;
    }
}

/// A download whose reader has stopped must not hold up others on the same connection, however much
/// there is of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_download_that_nobody_reads_leaves_its_siblings_alone() {
    let world = World::start().await;
    if !openssh_is_here() {
        return;
    }
    let shared = |master: &str, command: &str| world.multiplexed(master, command);
    let mut live = shared("yes", "cat");
    let (mut to, mut from) = (live.stdin.take().unwrap(), live.stdout.take().unwrap());
    let mut round_trip = async || {
        to.write_all(b"here\n").await.unwrap();
        let answer = from.read_exact(&mut [0; 5]).await.map(|_| ());
        answer.unwrap();
    };
    round_trip().await;
    // Counts what it could write; its terminal is this pipe, which nobody reads.
    let (pid, count) = (world.path("pid"), world.path("count"));
    let line = format!(
        "echo $$ > {}; i=0; while printf %65536s x; do i=$((i+1)); echo $i > {}; done",
        pid.display(),
        count.display()
    );
    let stalled = shared("no", &line);
    let (mut last, mut held_up) = (0, 0);
    while held_up < 300 {
        let answer = tokio::time::timeout(std::time::Duration::from_secs(30), round_trip()).await;
        assert!(answer.is_ok(), "the sibling is held up after {} bytes", last * 65536);
        let number = |path| std::fs::read_to_string(path).ok()?.trim().parse::<usize>().ok();
        let (Some(pid), Some(now)) = (number(&pid), number(&count)) else { continue };
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        // The loop sleeps in a write and nowhere else.
        let asleep = stat.contains(") S ") && now == last;
        held_up = if asleep { held_up + 1 } else { 0 };
        last = now;
    }
    // What the client's own window holds, and what the agent may be ahead of it.
    assert!(last * 65536 < 4 << 20, "what nobody reads waits at its program: {}", last * 65536);
    drop(stalled);
}

/// Channels of one connection share connections to the agent: forty of them that nobody reads leave
/// room for the next, and hold little here.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forty_downloads_that_nobody_reads_leave_their_siblings_alone() {
    let world = World::start().await;
    if !openssh_is_here() {
        return;
    }
    let shared = |master: &str, command: &str| world.multiplexed(master, command);
    let mut live = shared("yes", "cat");
    let (mut to, mut from) = (live.stdin.take().unwrap(), live.stdout.take().unwrap());
    let mut round_trip = async || {
        to.write_all(b"here\n").await.unwrap();
        from.read_exact(&mut [0; 5]).await.unwrap();
    };
    round_trip().await;
    let started = world.path("started");
    std::fs::create_dir(&started).unwrap();
    let line = format!("touch {}/$$; cat /dev/zero", started.display());
    let stalled: Vec<_> = (0..40).map(|_| shared("no", &line)).collect();
    let (mut last, mut same) = (0, 0);
    while same < 200 {
        let answer = tokio::time::timeout(std::time::Duration::from_secs(30), round_trip()).await;
        assert!(answer.is_ok(), "the sibling is held up at {last} unread bytes");
        let now = world.metric("dormouse_ssh_gateway_unread_bytes");
        let all = std::fs::read_dir(&started).unwrap().count() == stalled.len();
        same = if all && now == last { same + 1 } else { 0 };
        last = now;
    }
    // Half of a connection's bound is for this direction, and half of that for what waits beyond the
    // first credit of each channel.
    assert!(last < 41 * (16 << 10) + (17 << 20), "{last} unread bytes");
    assert_eq!(world.metric("dormouse_ssh_gateway_slowed_total"), 0);
    let other = shared("no", "echo new").wait_with_output();
    let other = tokio::time::timeout(std::time::Duration::from_secs(30), other).await;
    assert_eq!(text(&other.expect("a new channel opens").unwrap().stdout), "new\n");
}

/// An upload that its program does not read must not hold up others on the same connection, nor a
/// channel that is opened meanwhile, however much there is of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_that_nobody_reads_leaves_its_siblings_alone() {
    let world = World::start().await;
    if !openssh_is_here() {
        return;
    }
    let shared = |master: &str, command: &str| world.multiplexed(master, command);
    let mut live = shared("yes", "cat");
    let (mut to, mut from) = (live.stdin.take().unwrap(), live.stdout.take().unwrap());
    let mut round_trip = async || {
        to.write_all(b"here\n").await.unwrap();
        from.read_exact(&mut [0; 5]).await.unwrap();
    };
    round_trip().await;
    let mut stalled = shared("no", "sleep 1000");
    let mut into = stalled.stdin.take().unwrap();
    let written = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let count = written.clone();
    let flood = tokio::spawn(async move {
        let zeros = vec![0; 64 << 10];
        while into.write_all(&zeros).await.is_ok() {
            count.fetch_add(zeros.len(), std::sync::atomic::Ordering::Relaxed);
        }
    });
    // Stalled: so many round trips without a byte that was taken.
    let (mut last, mut same) = (0, 0);
    while same < 200 || last == 0 {
        let answer = tokio::time::timeout(std::time::Duration::from_secs(30), round_trip()).await;
        assert!(answer.is_ok(), "the sibling is held up after {last} bytes");
        let now = written.load(std::sync::atomic::Ordering::Relaxed);
        same = if now == last { same + 1 } else { 0 };
        last = now;
        assert!(last < 64 << 20, "what nobody reads is held back at its client");
    }
    let other = shared("no", "echo new").wait_with_output();
    let other = tokio::time::timeout(std::time::Duration::from_secs(30), other).await;
    assert_eq!(text(&other.expect("a new channel opens").unwrap().stdout), "new\n");
    flood.abort();
}
