//! What probes and lifecycle hooks do: run a program, ask over HTTP, connect, wait.

use crate::node::env;
use crate::node::pathmap::PathMap;
use crate::node::process::Process;
use crate::node::shim::protocol::{ExecOutcome, Exit};
use k8s_openapi::api::core::v1::{
    Container, ExecAction, HTTPGetAction, LifecycleHandler, Probe, TCPSocketAction,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use std::net::IpAddr;
use std::time::Duration;

/// Most of an HTTP answer's body that a message quotes, in bytes.
const QUOTED_BODY: usize = 1 << 10;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    Exec(Vec<String>),
    Http {
        url: String,
        headers: Vec<(String, String)>,
    },
    Tcp {
        host: String,
        port: u16,
    },
    Sleep(Duration),
    /// Not something this node can do; the answer is always this message.
    Impossible(String),
}

/// Programs are looked up as for the container itself.
pub trait Programs {
    /// The command ready to run: mount paths replaced, the program found.
    fn command(&self, argv: &[String]) -> Result<Vec<String>, String>;
}

impl Action {
    pub fn of_probe(
        probe: &Probe,
        container: &Container,
        ip: IpAddr,
        programs: &impl Programs,
    ) -> Self {
        if let Some(exec) = &probe.exec {
            // As in Kubernetes, a probe's command sees the literal variables of the container's `env`; a hook's none.
            let literal = |name: &str| {
                container.env.iter().flatten().find(|var| var.name == name)?.value.clone()
            };
            let command =
                exec.command.iter().flatten().map(|arg| env::expand(arg, literal)).collect();
            Self::exec(&ExecAction { command: Some(command) }, programs)
        } else if let Some(http) = &probe.http_get {
            Self::http(http, container, ip)
        } else if let Some(tcp) = &probe.tcp_socket {
            Self::tcp(tcp, container, ip)
        } else if probe.grpc.is_some() {
            Self::Impossible(
                "gRPC probes are not served by this node; use exec, httpGet or tcpSocket"
                    .to_owned(),
            )
        } else {
            Self::Impossible("the probe says neither exec nor httpGet nor tcpSocket".to_owned())
        }
    }

    pub fn of_hook(
        hook: &LifecycleHandler,
        container: &Container,
        ip: IpAddr,
        programs: &impl Programs,
    ) -> Self {
        if let Some(exec) = &hook.exec {
            Self::exec(exec, programs)
        } else if let Some(http) = &hook.http_get {
            Self::http(http, container, ip)
        } else if let Some(sleep) = &hook.sleep {
            Self::Sleep(Duration::from_secs(u64::try_from(sleep.seconds).unwrap_or(0)))
        } else if let Some(tcp) = &hook.tcp_socket {
            Self::tcp(tcp, container, ip)
        } else {
            Self::Impossible("the hook says neither exec nor httpGet nor sleep".to_owned())
        }
    }

    fn exec(exec: &ExecAction, programs: &impl Programs) -> Self {
        match programs.command(exec.command.as_deref().unwrap_or_default()) {
            Ok(argv) => Self::Exec(argv),
            Err(message) => Self::Impossible(message),
        }
    }

    fn http(http: &HTTPGetAction, container: &Container, ip: IpAddr) -> Self {
        let Some(port) = port(&http.port, container) else {
            return Self::Impossible(format!("the container has no port {}", show(&http.port)));
        };
        let scheme = http.scheme.as_deref().unwrap_or("HTTP").to_ascii_lowercase();
        let host = http.host.clone().filter(|host| !host.is_empty()).unwrap_or_else(|| in_url(ip));
        let path = http.path.as_deref().unwrap_or("/");
        let slash = if path.starts_with('/') { "" } else { "/" };
        let headers =
            http.http_headers.iter().flatten().map(|h| (h.name.clone(), h.value.clone())).collect();
        Self::Http { url: format!("{scheme}://{host}:{port}{slash}{path}"), headers }
    }

    fn tcp(tcp: &TCPSocketAction, container: &Container, ip: IpAddr) -> Self {
        match port(&tcp.port, container) {
            Some(port) => {
                let host = tcp
                    .host
                    .clone()
                    .filter(|host| !host.is_empty())
                    .unwrap_or_else(|| ip.to_string());
                Self::Tcp { host, port }
            }
            None => Self::Impossible(format!("the container has no port {}", show(&tcp.port))),
        }
    }

    /// Does it once. The error is what an event says about it. Without a `timeout` only a hook's program has no end
    /// but the container's.
    pub async fn run(
        &self,
        process: &Process,
        http: &reqwest::Client,
        timeout: Option<Duration>,
    ) -> Result<(), String> {
        match self {
            Self::Exec(argv) => exec_result(process.exec(argv.clone(), timeout).await, timeout),
            Self::Sleep(duration) => {
                tokio::time::sleep(timeout.map_or(*duration, |limit| limit.min(*duration))).await;
                Ok(())
            }
            Self::Impossible(message) => Err(message.clone()),
            Self::Http { .. } | Self::Tcp { .. } => {
                let limit = timeout.unwrap_or(Duration::from_secs(30));
                match tokio::time::timeout(limit, self.ask(http)).await {
                    Ok(result) => result,
                    Err(_) => {
                        Err(format!("no answer from {} within {}s", self.place(), limit.as_secs()))
                    }
                }
            }
        }
    }

    fn place(&self) -> String {
        match self {
            Self::Http { url, .. } => url.clone(),
            Self::Tcp { host, port } => format!("{host}:{port}"),
            Self::Exec(_) | Self::Sleep(_) | Self::Impossible(_) => String::new(),
        }
    }

    async fn ask(&self, http: &reqwest::Client) -> Result<(), String> {
        match self {
            Self::Http { url, headers } => {
                let mut request = http.get(url);
                for (name, value) in headers {
                    request = request.header(name, value);
                }
                let mut response = request
                    .send()
                    .await
                    .map_err(|error| format!("Get {url:?}: {}", root(&error)))?;
                let status = response.status();
                if status.is_success() || status.is_redirection() {
                    return Ok(());
                }
                let mut body = Vec::new();
                while let Ok(Some(chunk)) = response.chunk().await
                    && body.len() < QUOTED_BODY
                {
                    body.extend_from_slice(&chunk);
                }
                body.truncate(QUOTED_BODY);
                let body = String::from_utf8_lossy(&body);
                Err(format!(
                    "HTTP probe failed with statuscode: {} {}",
                    status.as_u16(),
                    body.trim()
                ))
            }
            Self::Tcp { host, port } => tokio::net::TcpStream::connect((host.as_str(), *port))
                .await
                .map(drop)
                .map_err(|error| format!("dial tcp {host}:{port}: {error}")),
            Self::Exec(_) | Self::Sleep(_) | Self::Impossible(_) => Ok(()),
        }
    }
}

/// The innermost cause: what the outer ones say (which URL, that it is a request) is said already.
fn root(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

fn exec_result(
    (outcome, output): (ExecOutcome, String),
    timeout: Option<Duration>,
) -> Result<(), String> {
    let output = output.trim();
    match outcome {
        ExecOutcome::Exited(Exit::Code(0)) => Ok(()),
        ExecOutcome::Exited(Exit::Code(code)) => {
            Err(format!("command exited with code {code}: {output}"))
        }
        ExecOutcome::Exited(Exit::Signal(signal)) => {
            Err(format!("command was ended by signal {signal}: {output}"))
        }
        ExecOutcome::StartFailed { message } => Err(message),
        ExecOutcome::TimedOut => Err(format!(
            "command timed out after {}s: {output}",
            timeout.unwrap_or_default().as_secs()
        )),
    }
}

fn in_url(ip: IpAddr) -> String {
    match ip {
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => format!("[{ip}]"),
    }
}

fn show(port: &IntOrString) -> String {
    match port {
        IntOrString::Int(port) => port.to_string(),
        IntOrString::String(name) => name.clone(),
    }
}

/// A port by number, or by its name among the container's ports.
fn port(port: &IntOrString, container: &Container) -> Option<u16> {
    let number = match port {
        IntOrString::Int(port) => *port,
        IntOrString::String(name) => {
            match container.ports.iter().flatten().find(|p| p.name.as_ref() == Some(name)) {
                Some(found) => found.container_port,
                None => name.parse().ok()?,
            }
        }
    };
    u16::try_from(number).ok().filter(|&port| port != 0)
}

/// The client of HTTP probes and hooks: as a kubelet's, it does not verify the peer, keeps no connection, and lets a
/// redirect count as an answer.
pub fn http_client() -> Result<reqwest::Client, reqwest::Error> {
    reqwest::Client::builder()
        .tls_danger_accept_invalid_certs(true)
        .redirect(reqwest::redirect::Policy::none())
        .pool_max_idle_per_host(0)
        .no_proxy()
        .user_agent("kube-probe/1.33")
        .build()
}

/// Looks programs up in the directories of a `PATH`.
pub struct ProgramPath<'a> {
    pub env: &'a std::collections::BTreeMap<String, String>,
    pub paths: &'a PathMap,
    pub cwd: &'a std::path::Path,
}

impl Programs for ProgramPath<'_> {
    fn command(&self, argv: &[String]) -> Result<Vec<String>, String> {
        let mapped: Vec<String> = argv.iter().map(|arg| self.paths.apply(arg)).collect();
        self.find(mapped)
    }
}

impl ProgramPath<'_> {
    /// `argv` with its first word replaced by the path of the program to run.
    pub fn find(&self, mut argv: Vec<String>) -> Result<Vec<String>, String> {
        let Some(program) = argv.first_mut() else {
            return Err(
                "no command is given: on this node the image is only a label, so set command"
                    .to_owned(),
            );
        };
        if program.contains('/') {
            let path = self.cwd.join(&program);
            if !path.exists() {
                return Err(format!("exec: {program:?}: there is no such file on this machine"));
            }
            *program = path.to_string_lossy().into_owned();
            return Ok(argv);
        }
        let search = self.env.get("PATH").map(String::as_str).unwrap_or_default();
        let candidates = search
            .split(':')
            .filter(|dir| !dir.is_empty())
            .map(|dir| self.cwd.join(dir).join(&*program));
        match candidates.into_iter().find(|path| is_executable(path)) {
            Some(path) => {
                *program = path.to_string_lossy().into_owned();
                Ok(argv)
            }
            None => Err(format!("exec: {program:?}: executable file not found in PATH ({search})")),
        }
    }
}

fn is_executable(path: &std::path::Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::collections::BTreeMap;

    fn container() -> Container {
        serde_json::from_value(
            json!({"name": "a", "ports": [{"name": "http", "containerPort": 8888}]}),
        )
        .unwrap()
    }

    fn ip() -> IpAddr {
        "127.77.0.4".parse().unwrap()
    }

    struct Found;
    impl Programs for Found {
        fn command(&self, argv: &[String]) -> Result<Vec<String>, String> {
            Ok(argv.to_vec())
        }
    }

    fn action(probe: serde_json::Value) -> Action {
        Action::of_probe(&serde_json::from_value(probe).unwrap(), &container(), ip(), &Found)
    }

    #[test]
    fn probes_become_actions() {
        let http = action(
            json!({"httpGet": {"path": "api", "port": "http", "httpHeaders": [{"name": "A", "value": "b"}]}}),
        );
        let headers = vec![("A".to_owned(), "b".to_owned())];
        assert_eq!(http, Action::Http { url: "http://127.77.0.4:8888/api".to_owned(), headers });
        let tls =
            action(json!({"httpGet": {"port": 443, "scheme": "HTTPS", "host": "example.test"}}));
        assert_eq!(
            tls,
            Action::Http { url: "https://example.test:443/".to_owned(), headers: vec![] }
        );
        assert_eq!(
            action(json!({"tcpSocket": {"port": 22}})),
            Action::Tcp { host: "127.77.0.4".to_owned(), port: 22 }
        );
        assert_eq!(
            action(json!({"exec": {"command": ["true"]}})),
            Action::Exec(vec!["true".to_owned()])
        );
        for odd in [
            json!({"tcpSocket": {"port": "none"}}),
            json!({"grpc": {"port": 1}}),
            json!({}),
            json!({"httpGet": {"port": 70000}}),
        ] {
            assert!(matches!(action(odd), Action::Impossible(_)));
        }
    }

    #[test]
    fn a_program_that_is_not_there_is_named_with_where_it_was_looked_for() {
        let dir = tempfile::tempdir().unwrap();
        let tool = dir.path().join("tool");
        std::fs::write(&tool, "").unwrap();
        let search = format!("/nowhere:{}", dir.path().display());
        let env = BTreeMap::from([("PATH".to_owned(), search.clone())]);
        let paths = PathMap::new([("/opt".to_owned(), dir.path().display().to_string())]);
        let programs = ProgramPath { env: &env, paths: &paths, cwd: dir.path() };
        let missing = programs.command(&["tool".to_owned()]).unwrap_err();
        assert!(missing.contains("\"tool\"") && missing.contains(&search), "{missing}");
        std::fs::set_permissions(&tool, std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .unwrap();
        let found = programs.command(&["tool".to_owned(), "/opt/x".to_owned()]).unwrap();
        assert_eq!(found, [tool.display().to_string(), dir.path().join("x").display().to_string()]);
        assert_eq!(
            programs.command(&["/opt/tool".to_owned()]).unwrap(),
            [tool.display().to_string()]
        );
        assert!(programs.command(&["./none".to_owned()]).unwrap_err().contains("./none"));
        assert!(programs.command(&[]).unwrap_err().contains("command"));
    }
}
