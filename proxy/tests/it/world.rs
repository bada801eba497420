//! A running proxy and everything around it.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use domain::{
    access::{AccessPolicy, Target, authorize},
    activity::Tracker,
    endpoint::Endpoint,
    identity::{Credential, CredentialKind, Identity},
    route::{Route, RouteSpec, RouteTable, State},
    token::{Expected, Verifier},
    wake::WakeRequest,
    workload::{Protocol, WorkloadKind, WorkloadRef},
};
use proxy::{Config, Inputs, Limits, Plain, SystemAccess, SystemHost, Tls};
use runtime::{audit::Audit, health::Health, revocations::Revocations, service::Context};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    sync::{mpsc, watch},
    task::JoinHandle,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_util::sync::CancellationToken;

use crate::issuer::Issuer;

pub const HOST: &str = "echo--alice.example.test";

pub struct World {
    pub address: SocketAddr,
    /// Without TLS; 127.0.0.0/9 is a load balancer's.
    pub plain: SocketAddr,
    pub routes: watch::Sender<Arc<RouteTable>>,
    pub wakes: mpsc::Receiver<WakeRequest>,
    pub tracker: Arc<Tracker>,
    pub issuer: Arc<Issuer>,
    pub shutdown: CancellationToken,
    pub served: JoinHandle<anyhow::Result<()>>,
    pub registry: prometheus::Registry,
    pub health: Health,
    ca: CertificateDer<'static>,
    folder: tempfile::TempDir,
    pub revocations: Revocations,
    audit: Audit,
}

pub fn spec(state: State, endpoints: &[SocketAddr]) -> RouteSpec {
    RouteSpec {
        workload: WorkloadRef {
            kind: WorkloadKind::App,
            project: "alice".parse().unwrap(),
            name: "echo".parse().unwrap(),
        },
        host: HOST.to_owned(),
        access: AccessPolicy { owner: Some("alice".parse().unwrap()), ..Default::default() },
        state,
        endpoints: endpoints.iter().map(|&address| address.into()).collect(),
        routing: Default::default(),
        protocol: Protocol::Http,
        wake_hold: Duration::from_secs(60),
        traffic: Default::default(),
        agent: None,
    }
}

impl World {
    pub async fn start() -> Self {
        Self::with(|_| {}).await
    }

    pub async fn with(adjust: impl FnOnce(&mut Config)) -> Self {
        Self::at(None, adjust).await
    }

    /// Another replica, with the same issuer.
    pub async fn beside(other: &World, adjust: impl FnOnce(&mut Config)) -> Self {
        Self::at(Some(other.issuer.clone()), adjust).await
    }

    async fn at(issuer: Option<Arc<Issuer>>, adjust: impl FnOnce(&mut Config)) -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let key = rcgen::generate_simple_self_signed(vec!["*.example.test".to_owned()]).unwrap();
        let ca = key.cert.der().clone();
        let private = PrivateKeyDer::try_from(key.signing_key.serialize_der()).unwrap();
        let tls = rustls::ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![ca.clone()], private)
            .unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        Self::made_of(issuer, listener, Arc::new(tls).into(), ca, adjust).await
    }

    /// With certificates of another making; `ca` is whom clients trust.
    pub async fn with_tls(
        tls: Tls,
        ca: CertificateDer<'static>,
        adjust: impl FnOnce(&mut Config),
    ) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        Self::with_tls_at(listener, tls, ca, adjust).await
    }

    pub async fn with_tls_at(
        listener: std::net::TcpListener,
        tls: Tls,
        ca: CertificateDer<'static>,
        adjust: impl FnOnce(&mut Config),
    ) -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        Self::made_of(None, listener, tls, ca, adjust).await
    }

    async fn made_of(
        issuer: Option<Arc<Issuer>>,
        listener: std::net::TcpListener,
        tls: Tls,
        ca: CertificateDer<'static>,
        adjust: impl FnOnce(&mut Config),
    ) -> Self {
        let address = listener.local_addr().unwrap();
        let issuer = match issuer {
            Some(issuer) => issuer,
            None => Issuer::start(format!("https://auth.example.test:{}", address.port())).await,
        };
        let folder = tempfile::tempdir().unwrap();
        let client_secret_file: PathBuf = folder.path().join("secret");
        std::fs::write(&client_secret_file, "s3cret").unwrap();
        let internal = format!("http://{}", issuer.address);
        let general = std::thread::current().name().is_some_and(|n| n.starts_with("general::"));
        let mut config = Config {
            base_domain: "example.test".to_owned(),
            external_port: address.port(),
            issuer: issuer.url.clone(),
            issuer_internal_url: internal.clone(),
            client_id: "dormouse-gate".to_owned(),
            client_secret_file,
            system_hosts: vec![SystemHost {
                host: "auth.example.test".to_owned(),
                upstream: issuer.address,
                access: SystemAccess::Open,
                closed_paths: vec!["/internal/".to_owned()],
            }],
            limits: Limits::default(),
            access_log: Default::default(),
            trace: Default::default(),
            fast_lane: !general,
            drain_grace: Duration::from_millis(300),
        };
        adjust(&mut config);

        let ctx = Context {
            registry: prometheus::Registry::new(),
            audit: Audit::to_file("test", &folder.path().join("audit.jsonl")).unwrap(),
            health: Health::new(),
            shutdown: CancellationToken::new(),
        };
        let expected = Expected {
            issuer: issuer.url.clone(),
            audience: "dormouse".to_owned(),
            leeway: Duration::from_secs(30),
        };
        let verifier = Arc::new(Verifier::new(expected, 1000));
        let http = runtime::http::client(None).unwrap();
        let jwks = format!("{internal}/jwks").parse().unwrap();
        let jwks = runtime::jwks::follow(jwks, http.clone(), verifier.clone(), &ctx);
        let (routes, table) = watch::channel(Arc::new(RouteTable::new([])));
        let (wake, wakes) = mpsc::channel(16);
        let revocations = Revocations::none();
        let plain = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let plain_address = plain.local_addr().unwrap();
        let plain = Plain { listener: plain, trusted_hops: vec!["127.0.0.0/9".parse().unwrap()] };
        let inputs = Inputs {
            routes: table,
            wake,
            verifier,
            jwks,
            revocations: revocations.clone(),
            http,
            tls,
            listener,
            plain: Some(plain),
        };
        let (registry, shutdown, health) =
            (ctx.registry.clone(), ctx.shutdown.clone(), ctx.health.clone());
        let audit = ctx.audit.clone();
        let served = tokio::spawn(proxy::serve(config, inputs, ctx));
        let world = Self {
            address,
            plain: plain_address,
            routes,
            wakes,
            tracker: Arc::new(Tracker::new()),
            revocations,
            audit,
            issuer,
            shutdown,
            served,
            registry,
            health: health.clone(),
            ca,
            folder,
        };
        // Keys and the issuer's metadata are fetched at once.
        loop {
            let problems = health.problems();
            let named = |name| problems.iter().any(|(component, _)| *component == name);
            if !named("keys") && !named("sign-in") && world.registry.gather().len() > 1 {
                break world;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub fn set(&self, specs: impl IntoIterator<Item = RouteSpec>) {
        let before = self.routes.borrow().clone();
        let routes = specs.into_iter().map(|spec| {
            let cell = self.tracker.cell(&spec.workload);
            let before = before.by_host(&spec.host).cloned();
            Arc::new(Route::new(spec, cell, before.as_deref()))
        });
        self.routes.send_replace(Arc::new(RouteTable::new(routes)));
    }

    pub fn running(&self, upstream: SocketAddr) {
        self.set([spec(State::Running, &[upstream])]);
    }

    /// What a person would be sent to.
    pub fn endpoints(&self, user: &str) -> Vec<Endpoint> {
        let identity = Identity {
            subject: user.to_owned(),
            user: user.parse().unwrap(),
            email: None,
            groups: Vec::new(),
            credential: Credential {
                kind: CredentialKind::SshKey,
                id: "k".to_owned(),
                session: None,
                expires_at: jiff::Timestamp::MAX,
                scopes: Vec::new(),
                workload: None,
            },
        };
        let grant = authorize(&self.routes.borrow(), &Arc::new(identity), Target::Host(HOST));
        grant.unwrap().endpoints().to_vec()
    }

    pub fn url(&self, host: &str, path: &str) -> String {
        format!("https://{host}:{}{path}", self.address.port())
    }

    pub fn bearer(&self, user: &str) -> String {
        format!("Bearer {}", self.issuer.access_token(user, 600))
    }

    pub fn audit(&self) -> String {
        self.audit.flush();
        std::fs::read_to_string(self.folder.path().join("audit.jsonl")).unwrap()
    }

    /// Follows no redirects; HTTP/2 unless told otherwise.
    pub fn client(&self, http_1_only: bool) -> reqwest::Client {
        let address = self.address;
        let mut builder = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .tls_certs_only([reqwest::Certificate::from_der(&self.ca).unwrap()])
            .dns_resolver(Arc::new(Everywhere(address)))
            .timeout(Duration::from_secs(60));
        if http_1_only {
            builder = builder.http1_only();
        }
        builder.build().unwrap()
    }

    /// A TLS connection that speaks HTTP/1.1, byte by byte.
    pub async fn raw(&self) -> Raw {
        Raw { stream: self.tls(&[b"http/1.1"]).await, buffer: Vec::new() }
    }

    /// A connection to the plain listener, from an address of this machine.
    pub async fn plain(&self, from: &str) -> Raw<TcpStream> {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::new(from.parse().unwrap(), 0)).unwrap();
        Raw { stream: socket.connect(self.plain).await.unwrap(), buffer: Vec::new() }
    }

    pub async fn tls(&self, protocols: &[&[u8]]) -> TlsStream<TcpStream> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.ca.clone()).unwrap();
        let mut config =
            rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
        let tcp = TcpStream::connect(self.address).await.unwrap();
        let name = ServerName::try_from(HOST).unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, tcp).await.unwrap()
    }
}

struct Everywhere(SocketAddr);

impl reqwest::dns::Resolve for Everywhere {
    fn resolve(&self, _: reqwest::dns::Name) -> reqwest::dns::Resolving {
        let addresses: reqwest::dns::Addrs = Box::new(std::iter::once(self.0));
        Box::pin(std::future::ready(Ok(addresses)))
    }
}

pub struct Raw<S = TlsStream<TcpStream>> {
    pub stream: S,
    pub buffer: Vec<u8>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Raw<S> {
    pub async fn send(&mut self, text: &str) {
        self.stream.write_all(text.as_bytes()).await.unwrap();
        self.stream.flush().await.unwrap();
    }

    /// One answer: its head, and its body by Content-Length or chunks.
    pub async fn answer(&mut self) -> (String, Vec<u8>) {
        let head = loop {
            if let Some(at) = find(&self.buffer, b"\r\n\r\n") {
                break String::from_utf8(self.buffer.drain(..at + 4).collect()).unwrap();
            }
            assert!(
                self.more().await,
                "closed within a head: {:?}",
                self.buffer.escape_ascii().to_string()
            );
        };
        let lower = head.to_ascii_lowercase();
        if head.starts_with("HTTP/1.1 101") {
            return (head, Vec::new());
        }
        let mut body = Vec::new();
        if let Some(length) = lower.split("content-length: ").nth(1) {
            let length: usize = length.split("\r\n").next().unwrap().parse().unwrap();
            while self.buffer.len() < length {
                assert!(self.more().await, "closed within a body");
            }
            body = self.buffer.drain(..length).collect();
        } else if lower.contains("transfer-encoding: chunked") {
            loop {
                let line = loop {
                    if let Some(at) = find(&self.buffer, b"\r\n") {
                        break String::from_utf8(self.buffer.drain(..at + 2).collect()).unwrap();
                    }
                    assert!(self.more().await, "closed within a chunk");
                };
                let length = usize::from_str_radix(line.trim(), 16).unwrap();
                while self.buffer.len() < length + 2 {
                    assert!(self.more().await, "closed within a chunk");
                }
                body.extend(self.buffer.drain(..length));
                self.buffer.drain(..2);
                if length == 0 {
                    break;
                }
            }
        }
        (head, body)
    }

    pub async fn bytes(&mut self, length: usize) -> Vec<u8> {
        while self.buffer.len() < length {
            assert!(self.more().await, "closed");
        }
        self.buffer.drain(..length).collect()
    }

    /// False at the end of the stream.
    pub async fn more(&mut self) -> bool {
        let read =
            tokio::time::timeout(Duration::from_secs(30), self.stream.read_buf(&mut self.buffer));
        read.await.expect("nothing came").unwrap_or(0) > 0
    }

    pub async fn rest(&mut self) -> String {
        while self.more().await {}
        String::from_utf8_lossy(&std::mem::take(&mut self.buffer)).into_owned()
    }
}

pub fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}
