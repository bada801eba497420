//! A gateway and an agent in this process, one workspace `lab` of alice's, and OpenSSH beside.
#![allow(dead_code)]

use std::{
    net::{IpAddr, SocketAddr},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Output, Stdio},
    sync::Arc,
    time::Duration,
};

use domain::{
    access::AccessPolicy,
    activity::Tracker,
    route::{AgentSpec, Progress, Route, RouteSpec, RouteTable, State, Step},
    token::{Expected, KeySet, TYP, Verifier},
    wake::WakeRequest,
    workload::{Protocol, WorkloadKind, WorkloadRef},
};
use jiff::Timestamp;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode, jwk::Jwk};
use russh::keys::{
    PrivateKey, PublicKey,
    ssh_key::{LineEnding, private::Ed25519Keypair},
};
use serde_json::{Value, json};
use ssh_gateway::{Config, Inputs, Limits};
use tokio::{
    net::TcpListener,
    process::Command,
    sync::{mpsc, watch},
};
use tokio_util::sync::CancellationToken;

/// Made for tests alone.
const TOKEN_KEY: &str = include_str!("../../../domain/src/token/test_key.pem");

pub struct World {
    pub dir: tempfile::TempDir,
    pub home: PathBuf,
    pub port: u16,
    pub host_key: String,
    pub agent: SocketAddr,
    pub agent_key: String,
    pub agent_stop: CancellationToken,
    pub tracker: Tracker,
    pub routes: watch::Sender<Arc<RouteTable>>,
    pub wishes: mpsc::Receiver<WakeRequest>,
    pub shutdown: CancellationToken,
    pub revocations: runtime::revocations::Revocations,
    pub registry: prometheus::Registry,
    audit: runtime::audit::Audit,
}

impl Drop for World {
    fn drop(&mut self) {
        self.agent_stop.cancel();
        self.shutdown.cancel();
    }
}

pub fn key(seed: u8) -> PrivateKey {
    PrivateKey::from(Ed25519Keypair::from_seed(&[seed; 32]))
}

pub fn lab() -> WorkloadRef {
    WorkloadRef {
        kind: WorkloadKind::Workspace,
        project: "alice".parse().unwrap(),
        name: "lab".parse().unwrap(),
    }
}

pub fn starting(step: Step) -> State {
    State::Starting { progress: Progress { step, message: String::new() } }
}

impl World {
    pub async fn start() -> Self {
        Self::with(|_| ()).await
    }

    pub async fn with(change: impl FnOnce(&mut Config)) -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().join("home");
        std::fs::create_dir(&home).unwrap();
        let mut config = Config {
            host_key_file: dir.path().join("host_key"),
            host_key_ecdsa_file: None,
            host_key_rsa_file: None,
            client_key_file: dir.path().join("client_key"),
            keys_url: None,
            client_id: "dormouse-gate".to_owned(),
            client_secret_file: None,
            wake_timeout: Duration::from_secs(30),
            drain: Duration::ZERO,
            limits: Limits::default(),
        };
        change(&mut config);
        let keys = ssh_gateway::public_keys(&config).unwrap();
        let shutdown = CancellationToken::new();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (routes, receiver) = watch::channel(Arc::new(RouteTable::default()));
        let (wake, wishes) = mpsc::channel(16);
        let ctx = runtime::service::Context {
            registry: prometheus::Registry::new(),
            audit: runtime::audit::Audit::to_file("test", &dir.path().join("audit")).unwrap(),
            health: runtime::health::Health::new(),
            shutdown: shutdown.clone(),
        };
        let http = runtime::http::client(None).unwrap();
        let revocations = runtime::revocations::Revocations::none();
        let inputs = Inputs {
            routes: receiver,
            wake,
            verifier: verifier(),
            jwks: runtime::jwks::JwksFollower::default(),
            revocations: revocations.clone(),
            http,
            listener,
        };
        let (audit, registry) = (ctx.audit.clone(), ctx.registry.clone());
        tokio::spawn(ssh_gateway::serve(config, inputs, ctx));
        let agent_stop = CancellationToken::new();
        let client = PublicKey::from_openssh(&keys.client).unwrap();
        let agent = start_agent(&home, client, agent_stop.clone()).await;
        let world = Self {
            revocations,
            audit,
            registry,
            home,
            port,
            host_key: keys.host,
            agent,
            agent_key: key(1).public_key().to_openssh().unwrap(),
            agent_stop,
            tracker: Tracker::new(),
            routes,
            wishes,
            shutdown,
            dir,
        };
        world.write_client_files();
        world.set(State::Running, "alice");
        world
    }

    fn write_client_files(&self) {
        let known = format!("[127.0.0.1]:{} {}\n", self.port, self.host_key);
        std::fs::write(self.path("known_hosts"), known).unwrap();
        let askpass = self.path("askpass");
        std::fs::write(&askpass, "#!/bin/sh\nprintf '%s\\n' \"$TOKEN\"\n").unwrap();
        std::fs::set_permissions(&askpass, PermissionsExt::from_mode(0o700)).unwrap();
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A command over a connection that several share: `yes` opens it, `no` uses it.
    pub fn multiplexed(&self, master: &str, command: &str) -> tokio::process::Child {
        let control = format!("ControlPath={}", self.path("control").display());
        let master = format!("ControlMaster={master}");
        let args = ["-o", &control, "-o", &master, "lab@127.0.0.1", command];
        let mut command = self.ssh(&args);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        command.spawn().unwrap()
    }

    /// The sum of a metric's values.
    pub fn metric(&self, name: &str) -> i64 {
        let families = self.registry.gather();
        let metrics = families.iter().filter(|f| f.name() == name).flat_map(|f| f.get_metric());
        metrics.map(|m| m.get_gauge().get_value() + m.get_counter().get_value()).sum::<f64>() as i64
    }

    pub fn audit(&self) -> String {
        self.audit.flush();
        std::fs::read_to_string(self.path("audit")).unwrap()
    }

    /// Publishes a table with `lab` in that state, owned by that person.
    pub fn set(&self, state: State, owner: &str) {
        let up = matches!(state, State::Running);
        let spec = RouteSpec {
            workload: lab(),
            host: "lab--alice.localhost".to_owned(),
            access: AccessPolicy { owner: Some(owner.parse().unwrap()), ..Default::default() },
            state,
            endpoints: if up {
                vec![SocketAddr::new(self.agent.ip(), 8888).into()]
            } else {
                vec![]
            },
            routing: Default::default(),
            protocol: Protocol::Jupyter,
            wake_hold: Duration::from_secs(60),
            traffic: Default::default(),
            agent: Some(AgentSpec { port: self.agent.port(), host_key: self.agent_key.clone() }),
        };
        let route = Arc::new(Route::new(spec, self.tracker.cell(&lab()), None));
        self.routes.send_replace(Arc::new(RouteTable::new([route])));
    }

    /// OpenSSH's options; `program` is ssh, scp or sftp.
    pub fn openssh(&self, program: &str, token: &str) -> Command {
        let mut command = Command::new(program);
        command.arg(if program == "ssh" { "-p" } else { "-P" }).arg(self.port.to_string());
        let known = format!("UserKnownHostsFile={}", self.path("known_hosts").display());
        for option in [
            known.as_str(),
            "StrictHostKeyChecking=yes",
            "IdentitiesOnly=yes",
            "IdentityFile=none",
            "IdentityAgent=none",
            "NumberOfPasswordPrompts=1",
            "ConnectTimeout=20",
        ] {
            command.arg("-o").arg(option);
        }
        command
            .arg("-F")
            .arg("none")
            .env("SSH_ASKPASS", self.path("askpass"))
            .env("SSH_ASKPASS_REQUIRE", "force")
            .env("TOKEN", token)
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }

    pub fn ssh(&self, args: &[&str]) -> Command {
        let mut command = self.openssh("ssh", &token("alice"));
        command.args(args);
        command
    }

    /// The activity that the gateway has seen: what kind, if any.
    pub fn doing(&self) -> Option<String> {
        let changes = self.tracker.changes(0);
        changes.changes.first().and_then(|change| change.last.clone()).map(|last| last.what)
    }
}

pub async fn start_agent(
    home: &Path,
    authorized_key: PublicKey,
    stop: CancellationToken,
) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let listen = listener.local_addr().unwrap();
    let settings = agent::Settings {
        listen,
        host_key: key(1),
        authorized_key,
        authorized_file: home.join("no-secret-is-mounted"),
        loopback: None::<IpAddr>,
        home: home.to_owned(),
    };
    tokio::spawn(agent::serve(settings, listener, stop));
    listen
}

fn verifier() -> Arc<Verifier> {
    let encoding = EncodingKey::from_rsa_pem(TOKEN_KEY.as_bytes()).unwrap();
    let mut jwk = Jwk::from_encoding_key(&encoding, Algorithm::RS256).unwrap();
    jwk.common.key_id = Some("k1".to_owned());
    let expected = Expected {
        issuer: "https://auth.localhost".to_owned(),
        audience: "dormouse".to_owned(),
        leeway: Duration::from_secs(5),
    };
    let verifier = Verifier::new(expected, 100);
    let keys = json!({ "keys": [jwk] }).to_string();
    verifier.set_keys(KeySet::from_json(keys.as_bytes()).unwrap());
    Arc::new(verifier)
}

pub fn token(user: &str) -> String {
    token_with(user, |_| ())
}

pub fn token_with(user: &str, change: impl FnOnce(&mut Value)) -> String {
    let now = Timestamp::now().as_second();
    let mut claims = json!({
        "iss": "https://auth.localhost", "sub": format!("sub-{user}"), "aud": "dormouse",
        "exp": now + 600, "nbf": now, "iat": now, "jti": "j1", "client_id": "test",
        "scope": "openid workload:use", "kind": "personal", "preferred_username": user, "groups": [],
    });
    change(&mut claims);
    let mut header = Header::new(Algorithm::RS256);
    header.typ = Some(TYP.to_owned());
    header.kid = Some("k1".to_owned());
    encode(&header, &claims, &EncodingKey::from_rsa_pem(TOKEN_KEY.as_bytes()).unwrap()).unwrap()
}

/// Says why a test is skipped when OpenSSH is not there.
pub fn openssh_is_here() -> bool {
    let here = std::process::Command::new("ssh").arg("-V").output().is_ok();
    if !here {
        eprintln!("skipped: there is no OpenSSH client on this machine (install openssh-client)");
    }
    here
}

pub async fn run(mut command: Command) -> Output {
    let work = command.stdout(Stdio::piped()).stderr(Stdio::piped()).output();
    tokio::time::timeout(Duration::from_secs(60), work).await.expect("a minute").unwrap()
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

pub fn write_private_key(path: &Path, key: &PrivateKey) {
    std::fs::write(path, key.to_openssh(LineEnding::LF).unwrap().as_bytes()).unwrap();
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o600)).unwrap();
}
