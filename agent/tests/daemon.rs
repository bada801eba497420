//! `dormouse agent install` and `serve --detach`, with this program in the place of dormouse.
#![allow(clippy::unwrap_used)]

use std::{
    fs,
    io::Read,
    net::{TcpListener, TcpStream},
    os::unix::process::CommandExt,
    path::Path,
    process::{Command, ExitCode, Output},
};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use russh::keys::{
    PrivateKey,
    ssh_key::{LineEnding, private::Ed25519Keypair},
};

const TESTS: [(&str, fn()); 3] = [
    ("installs_itself", installs_itself),
    ("says_why_it_cannot_start", says_why_it_cannot_start),
    ("listens_before_it_answers", listens_before_it_answers),
];

/// Speaks as much of the usual harness' language as test runners do: `--list`, and names of tests.
fn main() -> ExitCode {
    let args: Vec<_> = std::env::args_os().skip(1).collect();
    if args.first().is_some_and(|first| first == "agent") {
        return agent::main(args.into_iter().skip(1).collect());
    }
    let given = |word: &str| args.iter().any(|arg| arg == word);
    if given("--list") {
        for (name, _) in TESTS.iter().filter(|_| !given("--ignored")) {
            println!("{name}: test");
        }
        return ExitCode::SUCCESS;
    }
    let named = TESTS.iter().any(|(name, _)| given(name));
    for (name, check) in TESTS.iter().filter(|(name, _)| !named || given(name)) {
        check();
        println!("{name} ... ok");
    }
    ExitCode::SUCCESS
}

fn agent(args: &[&str], variables: &[(&str, &str)]) -> (i32, Output) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.arg("agent").args(args).envs(variables.iter().copied()).process_group(0);
    let mut child = command
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let group = i32::try_from(child.id()).unwrap();
    let status = child.wait().unwrap();
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    // Ends only when the daemon has let go of the streams too.
    child.stdout.take().unwrap().read_to_end(&mut stdout).unwrap();
    child.stderr.take().unwrap().read_to_end(&mut stderr).unwrap();
    (group, Output { status, stdout, stderr })
}

fn installs_itself() {
    let dir = tempfile::tempdir().unwrap();
    let (_, output) = agent(&["install", "--to", dir.path().to_str().unwrap()], &[]);
    assert!(output.status.success(), "{output:?}");
    let installed = fs::read(dir.path().join("dormouse")).unwrap();
    assert!(installed == fs::read(std::env::current_exe().unwrap()).unwrap());
    let (_, output) = agent(&["install"], &[]);
    assert_eq!(output.status.code(), Some(2));
}

fn keys(dir: &Path) {
    let key = PrivateKey::from(Ed25519Keypair::from_seed(&[5; 32]));
    fs::write(dir.join("host_key"), key.to_openssh(LineEnding::LF).unwrap().as_bytes()).unwrap();
    fs::write(dir.join("authorized_key"), key.public_key().to_openssh().unwrap()).unwrap();
}

fn says_why_it_cannot_start() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().to_str().unwrap();
    let refused = |variables: &[(&str, &str)]| {
        let (_, output) = agent(&["serve", "--detach"], variables);
        assert_eq!(output.status.code(), Some(1));
        let reason = String::from_utf8(output.stderr).unwrap();
        assert!(reason.starts_with("dormouse: ") && reason.matches('\n').count() == 1, "{reason}");
        reason
    };
    let reason = refused(&[(agent::LISTEN, "127.0.0.1:0"), (agent::KEYS, folder)]);
    assert!(reason.contains("host_key"), "{reason}");
    keys(dir.path());
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let reason = refused(&[(agent::LISTEN, &address), (agent::KEYS, folder)]);
    assert!(reason.contains(&address) && reason.contains("port"), "{reason}");
}

/// The processes of a group, without their leader that has ended.
fn members(group: i32) -> Vec<i32> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        // After the name in brackets: state, parent, group (proc_pid_stat(5)).
        let rest = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        let fields: Vec<&str> = rest.split_whitespace().collect();
        if fields.get(2).and_then(|text| text.parse().ok()) == Some(group)
            && fields.first() != Some(&"Z")
        {
            found.push(pid);
        }
    }
    found
}

fn listens_before_it_answers() {
    let dir = tempfile::tempdir().unwrap();
    keys(dir.path());
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let variables =
        [(agent::LISTEN, address.as_str()), (agent::KEYS, dir.path().to_str().unwrap())];
    let (group, output) = agent(&["serve", "--detach"], &variables);
    assert!(output.status.success(), "{output:?}");
    let mut greeting = [0; 8];
    TcpStream::connect(&address).unwrap().read_exact(&mut greeting).unwrap();
    assert_eq!(&greeting, b"SSH-2.0-");
    let daemons = members(group);
    assert_eq!(daemons.len(), 1, "in the group that it was started in");
    for stream in 0..=2 {
        let link = fs::read_link(format!("/proc/{}/fd/{stream}", daemons[0])).unwrap();
        assert_eq!(link, Path::new("/dev/null"), "lets go of what it inherited");
    }
    killpg(Pid::from_raw(group), Signal::SIGTERM).unwrap();
    while !members(group).is_empty() {
        std::thread::yield_now();
    }
}
