//! Files and forwarded connections, through the gateway and the agent, with OpenSSH.
#![allow(clippy::unwrap_used)]

mod support;

use std::process::Stdio;

use sha2::{Digest, Sha256};
use support::{World, openssh_is_here, run, text, token};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    process::{Child, Command},
};

fn hash(path: &std::path::Path) -> Vec<u8> {
    Sha256::digest(std::fs::read(path).unwrap()).to_vec()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scp_keeps_the_bytes_both_ways() {
    let world = World::start().await;
    if !openssh_is_here() {
        return;
    }
    let (there, back) = (world.path("there"), world.path("back"));
    let bytes: Vec<u8> =
        (0..20u32 << 20).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    std::fs::write(&there, &bytes).unwrap();
    let scp = |from: &str, to: &str| {
        let mut command = world.openssh("scp", &token("alice"));
        command.args(["-p", from, to]);
        run(command)
    };
    let output = scp(there.to_str().unwrap(), "lab@127.0.0.1:data.bin").await;
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(hash(&world.home.join("data.bin")), hash(&there));
    let output = scp("lab@127.0.0.1:data.bin", back.to_str().unwrap()).await;
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(hash(&back), hash(&there));
    assert_eq!(world.doing().as_deref(), Some("transferred files"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sftp_does_what_people_do_with_it() {
    let world = World::start().await;
    if !openssh_is_here() {
        return;
    }
    let local = world.path("local");
    std::fs::write(&local, "hello\n").unwrap();
    let batch = format!(
        "mkdir d\nput {0} d/one\nrename d/one d/two\nln -s two d/link\nchmod 600 d/two\n\
         get d/link {0}.back\nls -la d\nmkdir e\nrmdir e\npwd\ncd d\nrm link\ndf\n",
        local.display()
    );
    let batch_file = world.path("batch");
    std::fs::write(&batch_file, batch).unwrap();
    let mut command = world.openssh("sftp", &token("alice"));
    // A batch turns off questions, and the token is the answer to one.
    command.args(["-o", "BatchMode=no", "-b"]).arg(&batch_file).arg("lab@127.0.0.1");
    let output = run(command).await;
    assert!(output.status.success(), "{}", text(&output.stderr));
    let seen = text(&output.stdout);
    assert!(seen.contains("-rw-------"), "{seen}");
    assert!(seen.contains(world.home.to_str().unwrap()), "{seen}");
    assert_eq!(std::fs::read_to_string(world.home.join("d/two")).unwrap(), "hello\n");
    assert_eq!(std::fs::read_to_string(world.path("local.back")).unwrap(), "hello\n");
    assert!(!world.home.join("d/link").exists() && !world.home.join("e").exists());
    let mut command = world.openssh("sftp", &token("alice"));
    command.arg("lab@127.0.0.1:absent").arg(world.path("never"));
    let output = run(command).await;
    assert!(!output.status.success());
    assert!(text(&output.stderr).contains("not found"), "{}", text(&output.stderr));
}

/// A server that answers one line with `pong`, and says who asked.
async fn pong() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (read, mut write) = stream.into_split();
                let mut line = String::new();
                BufReader::new(read).read_line(&mut line).await.unwrap();
                write.write_all(format!("pong {line}").as_bytes()).await.unwrap();
            });
        }
    });
    port
}

async fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port()
}

/// Starts ssh and waits until it says that it is there.
async fn tunnel(mut command: Command) -> Child {
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).stdin(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut line = String::new();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    out.read_line(&mut line).await.unwrap();
    assert_eq!(line, "up\n");
    child
}

async fn ask(port: u16) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    stream.write_all(b"ping\n").await.unwrap();
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer).await;
    answer
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attack_22_local_forwarding_reaches_the_workload_and_nothing_else() {
    let world = World::start().await;
    if !openssh_is_here() {
        return;
    }
    let server = pong().await;
    let specs = ["localhost", "127.0.0.1", "0.0.0.0", "169.254.169.254", "example.com", "[::2]"];
    let mut ports = Vec::new();
    let mut forwards = Vec::new();
    for host in specs {
        ports.push(free_port().await);
        forwards.push(format!("{}:{host}:{server}", ports.last().unwrap()));
    }
    let mut args = Vec::new();
    for forward in &forwards {
        args.extend(["-L", forward]);
    }
    args.extend(["lab@127.0.0.1", "echo up; cat"]);
    let mut child = tunnel(world.ssh(&args)).await;
    for (host, port) in specs.iter().zip(ports) {
        let inside = matches!(*host, "localhost" | "127.0.0.1");
        assert_eq!(ask(port).await, if inside { "pong ping\n" } else { "" }, "{host}");
    }
    child.kill().await.unwrap();
    let mut errors = String::new();
    child.stderr.take().unwrap().read_to_string(&mut errors).await.unwrap();
    assert!(errors.contains("administratively prohibited"), "{errors}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn remote_forwarding_listens_in_the_workload_only() {
    let world = World::start().await;
    if !openssh_is_here() {
        return;
    }
    let (server, there) = (pong().await, free_port().await);
    // Asking for all addresses still binds the loopback alone.
    let forward = format!("0.0.0.0:{there}:127.0.0.1:{server}");
    let mut child = tunnel(world.ssh(&["-R", &forward, "lab@127.0.0.1", "echo up; cat"])).await;
    assert_eq!(ask(there).await, "pong ping\n");
    let listening = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let local = format!("0100007F:{there:04X} 00000000:0000 0A");
    assert!(listening.contains(&local), "bound to the loopback");
    child.kill().await.unwrap();
    while TcpStream::connect(("127.0.0.1", there)).await.is_ok() {
        tokio::task::yield_now().await;
    }
}
