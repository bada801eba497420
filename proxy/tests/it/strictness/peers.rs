//! nginx and HAProxy as their distribution ships them, one listener per case in front of the same
//! recording upstreams.

use std::{
    fmt::Write as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use tokio::net::UnixStream;

pub struct Peer {
    child: Child,
    folder: tempfile::TempDir,
}

/// What a program says of its version, as in `1.22.1`; `None` when it is not there.
pub fn version(program: &str) -> Option<String> {
    let said = Command::new(find(program)?).arg("-v").output().ok()?;
    let said = [said.stdout, said.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    let from = said.find(|char: char| char.is_ascii_digit())?;
    let version = said.get(from..)?;
    let end = version.find(|char: char| !char.is_ascii_digit() && char != '.');
    Some(version[..end.unwrap_or(version.len())].to_owned())
}

/// Debian keeps both out of the PATH of ordinary people.
fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/usr/local/sbin".into()])
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
}

impl Peer {
    pub async fn nginx(upstreams: &[SocketAddr]) -> Self {
        Self::start("nginx", upstreams.len(), |folder| {
            let mut text =
                "daemon off; master_process off; error_log stderr crit; pid nginx.pid;\n\
                events { worker_connections 4096; }\nhttp { access_log off;\n"
                    .to_owned();
            for kind in ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"] {
                let _ = writeln!(text, "{kind}_temp_path {}/{kind};", folder.display());
            }
            for (at, upstream) in upstreams.iter().enumerate() {
                let socket = socket(folder, at);
                let _ = writeln!(
                    text,
                    "server {{ listen unix:{}; location / {{ proxy_pass http://{upstream}; \
                     proxy_http_version 1.1; proxy_set_header Connection \"\"; \
                     proxy_set_header Host $host; }} }}",
                    socket.display()
                );
            }
            let file = folder.join("nginx.conf");
            std::fs::write(&file, text + "}\n").unwrap();
            let folder = folder.display().to_string();
            vec!["-e".into(), "stderr".into(), "-p".into(), folder, "-c".into(), shown(&file)]
        })
        .await
    }

    pub async fn haproxy(upstreams: &[SocketAddr]) -> Self {
        Self::start("haproxy", upstreams.len(), |folder| {
            let mut text = "defaults\n mode http\n timeout connect 5s\n timeout client 60s\n \
                timeout server 60s\n timeout http-request 60s\n"
                .to_owned();
            for (at, upstream) in upstreams.iter().enumerate() {
                let socket = socket(folder, at);
                let _ = writeln!(
                    text,
                    "listen c{at}\n bind unix@{}\n server up {upstream}",
                    socket.display()
                );
            }
            let file = folder.join("haproxy.cfg");
            std::fs::write(&file, text).unwrap();
            vec!["-db".into(), "-f".into(), shown(&file)]
        })
        .await
    }

    async fn start(
        program: &str,
        listeners: usize,
        arguments: impl FnOnce(&Path) -> Vec<String>,
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let arguments = arguments(folder.path());
        let program = find(program).unwrap();
        let child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let mut peer = Self { child, folder };
        let last = socket(peer.folder.path(), listeners - 1);
        while UnixStream::connect(&last).await.is_err() {
            assert_eq!(peer.child.try_wait().unwrap(), None, "it did not start");
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        peer
    }

    pub async fn connect(&self, case: usize) -> UnixStream {
        UnixStream::connect(socket(self.folder.path(), case)).await.unwrap()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn socket(folder: &Path, case: usize) -> PathBuf {
    folder.join(format!("{case}.sock"))
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}
