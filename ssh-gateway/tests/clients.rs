//! What SSH clients expect beside a shell: codes, names, variables, kinds of keys.
#![allow(clippy::unwrap_used)]

mod support;

use std::{
    ffi::OsString,
    os::unix::{ffi::OsStringExt, fs::PermissionsExt},
    process::Stdio,
    sync::Arc,
};

use russh::{ChannelMsg, keys::PublicKeyOrCertificate};
use support::{World, key, openssh_is_here, run, text, token, write_private_key};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};

/// How often a command is run whose code was lost about every second time.
const RUNS: usize = 12;

struct AnyGateway;

impl russh::client::Handler for AnyGateway {
    type Error = russh::Error;

    async fn check_server_key(&mut self, _: &PublicKeyOrCertificate) -> Result<bool, Self::Error> {
        Ok(true)
    }
}

/// What a client that is told the end of the output does next is its close: the status comes first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_status_is_told_before_the_end_of_the_output() {
    let world = World::start().await;
    let mut connection =
        russh::client::connect(Arc::default(), ("127.0.0.1", world.port), AnyGateway)
            .await
            .unwrap();
    assert!(connection.authenticate_password("lab", token("alice")).await.unwrap().success());
    let commands = [
        ("echo out; exit 7", false, "status 7"),
        ("echo out; kill -TERM $$", false, "signal"),
        ("echo out; exit 5", true, "status 5"),
    ];
    for (command, terminal, told) in commands {
        let mut channel = connection.channel_open_session().await.unwrap();
        if terminal {
            channel.request_pty(false, "xterm", 80, 24, 0, 0, &[]).await.unwrap();
        }
        channel.exec(true, command).await.unwrap();
        let mut seen = Vec::new();
        while let Some(message) = channel.wait().await {
            match message {
                ChannelMsg::Data { .. } => seen.push("output".to_owned()),
                ChannelMsg::ExitStatus { exit_status } => {
                    seen.push(format!("status {exit_status}"))
                }
                ChannelMsg::ExitSignal { .. } => seen.push("signal".to_owned()),
                ChannelMsg::Eof => seen.push("end".to_owned()),
                _ => {}
            }
        }
        assert_eq!(seen, ["output", told, "end"], "{command}");
    }
}

/// A client that shares its connection has closed its own side long before the command ends, and
/// answers the end of the output at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exit_codes_survive_a_shared_connection() {
    let world = World::start().await;
    if !openssh_is_here() {
        return;
    }
    let control = format!("ControlPath={}", world.path("control").display());
    let shared = |master: &str, command: &str| {
        let master = format!("ControlMaster={master}");
        world.ssh(&["-o", &control, "-o", &master, "lab@127.0.0.1", command])
    };
    let mut first = shared("yes", "echo up; cat");
    let mut first = first.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(first.stdout.take().unwrap()).read_line(&mut line).await.unwrap();
    for _ in 0..RUNS {
        assert_eq!(run(shared("no", "exit 7")).await.status.code(), Some(7));
    }
    // Closes its outputs early and goes on.
    let output = run(shared("no", "exec >&- 2>&-; sleep 0.3; exit 9")).await;
    assert_eq!(output.status.code(), Some(9));
    // Something in the background holds the outputs: the code is known all the same.
    assert_eq!(run(shared("no", "sleep 2 & exit 8")).await.status.code(), Some(8));
}

/// dropbear's client takes a code that it was not told for 0.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exit_codes_reach_dropbears_client() {
    let world = World::start().await;
    if std::process::Command::new("dbclient").arg("-V").output().is_err() {
        eprintln!("skipped: there is no dbclient on this machine (install dropbear-bin)");
        return;
    }
    for _ in 0..RUNS {
        let mut client = tokio::process::Command::new("dbclient");
        client
            .args(["-y", "-y", "-p", &world.port.to_string(), "lab@127.0.0.1", "exit 7"])
            .env("DROPBEAR_PASSWORD", token("alice"))
            .env("HOME", world.path("."))
            .stdin(Stdio::null())
            .kill_on_drop(true);
        let output = run(client).await;
        assert_eq!(output.status.code(), Some(7), "{}", text(&output.stderr));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_that_are_not_utf8_are_copied_both_ways() {
    let world = World::start().await;
    if !openssh_is_here() {
        return;
    }
    let name = |bytes: &[u8]| OsString::from_vec(bytes.to_vec());
    let names = [name(b"caf\xe8.txt"), name(b"caf\xe9.txt"), name(b"plain.txt")];
    let local = world.path("local");
    std::fs::create_dir(&local).unwrap();
    for one in &names {
        std::fs::write(local.join(one), one.as_encoded_bytes()).unwrap();
    }
    let copy = |from: String, to: String| {
        let mut command = world.openssh("scp", &token("alice"));
        command.arg("-r").arg(from).arg(to);
        run(command)
    };
    let up = copy(local.display().to_string(), "lab@127.0.0.1:there".to_owned()).await;
    assert!(up.status.success(), "{}", text(&up.stderr));
    let back = world.path("back");
    let down = copy("lab@127.0.0.1:there".to_owned(), back.display().to_string()).await;
    assert!(down.status.success(), "{}", text(&down.stderr));
    for folder in [world.home.join("there"), back] {
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), names.len());
        for one in &names {
            assert_eq!(std::fs::read(folder.join(one)).unwrap(), one.as_encoded_bytes());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_knows_whence_it_came_and_a_client_cannot_say() {
    let world = World::start().await;
    if !openssh_is_here() {
        return;
    }
    let forged = "SetEnv=SSH_CONNECTION=forged SSH_CLIENT=forged";
    let command = "echo \"$SSH_CONNECTION|$SSH_CLIENT\"";
    let output = run(world.ssh(&["-o", forged, "lab@127.0.0.1", command])).await;
    let out = text(&output.stdout);
    let (connection, client) = out.trim().split_once('|').unwrap();
    let fields: Vec<&str> = connection.split(' ').collect();
    let port = world.port.to_string();
    let [from, number, here, there] = fields[..] else { panic!("{out}") };
    assert_eq!((from, here, there), ("127.0.0.1", "127.0.0.1", port.as_str()));
    assert!(number.parse::<u16>().unwrap() > 0);
    assert_eq!(client, format!("{from} {number} {port}"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_variable_that_is_not_passed_on_is_named_on_a_terminal_only() {
    let world = World::start().await;
    if !openssh_is_here() {
        return;
    }
    let variables = "SetEnv=FOO=bar LC_X=y GIT_AUTHOR_NAME=me";
    let args =
        |terminal| ["-o", variables, terminal, "lab@127.0.0.1", "echo [$FOO$LC_X$GIT_AUTHOR_NAME]"];
    let plain = run(world.ssh(&args("-T"))).await;
    assert_eq!((text(&plain.stdout), text(&plain.stderr)), ("[yme]\n".into(), String::new()));
    let terminal = run(world.ssh(&args("-tt"))).await;
    assert!(text(&terminal.stderr).contains("not passed on: FOO;"), "{}", text(&terminal.stderr));
}

/// Clients in FIPS mode know no ed25519 and no ChaCha20.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_kind_of_host_key_is_offered_to_clients_that_know_no_other() {
    let world = World::start().await;
    if !openssh_is_here() {
        return;
    }
    for algorithm in ["ssh-ed25519", "ecdsa-sha2-nistp256", "rsa-sha2-256", "rsa-sha2-512"] {
        let kind = format!("HostKeyAlgorithms={algorithm}");
        let known = format!("UserKnownHostsFile={}", world.path(algorithm).display());
        // Before the support's own options: the first one counts.
        let mut command = tokio::process::Command::new("ssh");
        command
            .args(["-F", "none", "-p", &world.port.to_string(), "-o", &kind, "-o", &known])
            .args(["-o", "StrictHostKeyChecking=accept-new", "-o", "PubkeyAuthentication=no"])
            .args([
                "-o",
                "KexAlgorithms=diffie-hellman-group16-sha512,diffie-hellman-group14-sha256",
            ])
            .args(["-o", "Ciphers=aes256-gcm@openssh.com,aes256-ctr", "lab@127.0.0.1", "echo in"])
            .env("SSH_ASKPASS", world.path("askpass"))
            .env("SSH_ASKPASS_REQUIRE", "force")
            .env("TOKEN", token("alice"))
            .stdin(Stdio::null());
        let output = run(command).await;
        assert_eq!(text(&output.stdout), "in\n", "{algorithm}: {}", text(&output.stderr));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_unix_socket_is_forwarded_from_the_workspace_and_goes_at_the_end() {
    let world = World::start().await;
    if !openssh_is_here() {
        return;
    }
    let (here, there) = (world.path("here.sock"), world.home.join("there.sock"));
    let listener = tokio::net::UnixListener::bind(&here).unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.write_all(b"from outside").await;
        }
    });
    let forward = format!("{}:{}", there.display(), here.display());
    let options = ["-o", "ExitOnForwardFailure=yes", "-R", &forward];
    let args = [&options[..], &["lab@127.0.0.1", "echo up; cat"]].concat();
    let mut command = world.ssh(&args);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).await.unwrap();
    assert_eq!(line, "up\n");
    assert_eq!(std::fs::metadata(&there).unwrap().permissions().mode() & 0o777, 0o600);
    let mut answer = String::new();
    let mut stream = tokio::net::UnixStream::connect(&there).await.unwrap();
    stream.read_to_string(&mut answer).await.unwrap();
    assert_eq!(answer, "from outside");
    child.kill().await.unwrap();
    while there.exists() {
        tokio::task::yield_now().await;
    }
    // What is there already is not replaced, and the client is told.
    std::fs::write(&there, "a file").unwrap();
    let refused = run(world.ssh(&args)).await;
    assert_eq!(refused.status.code(), Some(255));
    assert_eq!(std::fs::read_to_string(&there).unwrap(), "a file");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_offers_too_many_keys_is_told_how_to_offer_one() {
    let world = World::with(|config| config.limits.attempts = 3).await;
    if !openssh_is_here() {
        return;
    }
    let mut command = tokio::process::Command::new("ssh");
    command.args(["-F", "none", "-p", &world.port.to_string(), "-o", "IdentitiesOnly=yes"]);
    command.args(["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]);
    for seed in 10..15 {
        let file = world.path(&format!("id_{seed}"));
        write_private_key(&file, &key(seed));
        command.arg("-i").arg(file);
    }
    command.args(["lab@127.0.0.1", "echo in"]).stdin(Stdio::null());
    let output = run(command).await;
    assert_eq!(output.status.code(), Some(255));
    assert!(text(&output.stderr).contains("IdentitiesOnly=yes"), "{}", text(&output.stderr));
}
