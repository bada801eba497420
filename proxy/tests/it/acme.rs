//! Certificates ordered by ACME: from Pebble, and from an authority that wants patience.

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use domain::certificate::{Pair, Pairs};
use proxy::{
    Certificates, Tls,
    tls_config::{AcmeConfig, Challenge, OnDemand, TlsConfig},
};
use rustls_pki_types::CertificateDer;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::watch,
};

use crate::{
    pebble::{Pebble, is_there},
    pki::Authority,
    upstream,
    world::{HOST, World},
};

pub async fn until(what: &str, mut reached: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !reached().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), waiting)
        .await
        .unwrap_or_else(|_| panic!("waited for {what}"));
}

/// A proxy whose certificates come from there. `redirect` is its plain port.
async fn world(pebble: &Pebble, acme: AcmeConfig, ports: Ports) -> World {
    let config = TlsConfig {
        look_every: Duration::from_millis(50),
        acme: Some(acme),
        ..TlsConfig::default()
    };
    let certificates = Certificates::Managed { config: Box::new(config), elsewhere: None };
    let tls = Tls { certificates, redirect: ports.redirect };
    World::with_tls_at(ports.tls, tls, pebble.root().await, |_| {}).await
}

/// Ports that the authority knows before the proxy listens.
struct Ports {
    tls: TcpListener,
    redirect: Option<TcpListener>,
}

impl Ports {
    fn open() -> (Self, [SocketAddr; 2]) {
        let (tls, redirect) =
            (TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap());
        let addresses = [tls.local_addr().unwrap(), redirect.local_addr().unwrap()];
        (Self { tls, redirect: Some(redirect) }, addresses)
    }

    fn again(addresses: [SocketAddr; 2]) -> Self {
        Self {
            tls: TcpListener::bind(addresses[0]).unwrap(),
            redirect: Some(TcpListener::bind(addresses[1]).unwrap()),
        }
    }
}

async fn is_trusted(world: &World, host: &str) -> bool {
    world.client(false).get(world.url(host, "/")).send().await.is_ok()
}

fn warning(world: &World) -> Option<String> {
    let warnings = world.health.warnings();
    warnings.into_iter().find(|(name, _)| *name == "certificate orders").map(|(_, why)| why)
}

fn kept(store: &Path, host: &str) -> Option<String> {
    fs::read_to_string(store.join(format!("certificates/{host}.pem"))).ok()
}

fn attempts(store: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(store.join("attempts.json")).unwrap()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn http_01_for_system_hosts_and_for_routes_as_they_appear() {
    if !is_there() {
        return;
    }
    let (ports, addresses) = Ports::open();
    let pebble = Pebble::start(addresses[1].port(), addresses[0].port(), 90 * 24 * 3600).await;
    let store = tempfile::tempdir().unwrap();
    let store = store.path();
    let acme = AcmeConfig {
        names: vec!["extra.example.test".to_owned()],
        on_demand: OnDemand::Routes,
        ..pebble.acme(store)
    };
    let world = world(&pebble, acme.clone(), ports).await;
    assert!(world.health.problems().iter().all(|(name, _)| *name != "certificates"));
    for host in ["auth.example.test", "extra.example.test"] {
        until(host, async || is_trusted(&world, host).await).await;
    }
    assert_eq!(kept(store, HOST), None);
    world.running(upstream::mirror().await);
    until(HOST, async || is_trusted(&world, HOST).await).await;
    // Nothing is left of the challenges, and what is kept is for the owner alone.
    assert_eq!(fs::read_dir(store.join("challenges")).unwrap().count(), 0);
    let mode = fs::metadata(store.join(format!("certificates/{HOST}.pem"))).unwrap();
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&mode.permissions()) & 0o777, 0o600);
    assert_eq!(attempts(store)["failures"], json!({}));
    assert_eq!(attempts(store)["on_demand"].as_array().unwrap().len(), 1);
    let metrics = world.registry.gather();
    let expires = metrics.iter().find(|f| f.name() == "dormouse_proxy_certificate_expires_seconds");
    assert_eq!(expires.unwrap().get_metric().len(), 2, "the configured ones only");

    // Another start uses what is kept, and orders nothing.
    let before: Vec<_> = ["auth.example.test", HOST].map(|host| kept(store, host)).into();
    world.shutdown.cancel();
    world.served.await.unwrap().unwrap();
    let again = self::world(&pebble, acme, Ports::again(addresses)).await;
    assert!(is_trusted(&again, "auth.example.test").await);
    let after: Vec<_> = ["auth.example.test", HOST].map(|host| kept(store, host)).into();
    assert_eq!(before, after);
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_alpn_01_and_renewal_without_a_plain_port() {
    if !is_there() {
        return;
    }
    let (mut ports, addresses) = Ports::open();
    ports.redirect = None;
    // So short that a third of its life is left after a few seconds.
    let pebble = Pebble::start(1, addresses[0].port(), 12).await;
    let store = tempfile::tempdir().unwrap();
    let world = world(&pebble, pebble.acme(store.path()), ports).await;
    let host = "auth.example.test";
    until(host, async || is_trusted(&world, host).await).await;
    let first = kept(store.path(), host).unwrap();
    until("a renewal", async || kept(store.path(), host).unwrap() != first).await;
    until(host, async || is_trusted(&world, host).await).await;
    assert_eq!(warning(&world), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_name_that_fails_is_told_and_keeps_no_other_back() {
    if !is_there() {
        return;
    }
    let (ports, addresses) = Ports::open();
    // The authority looks at a port where nobody answers, for HTTP.
    let pebble = Pebble::start(1, addresses[0].port(), 3600).await;
    let store = tempfile::tempdir().unwrap();
    let acme = AcmeConfig {
        names: vec!["a.example.test".to_owned(), "refused.example.test".to_owned()],
        challenge: Some(Challenge::Http01),
        ..pebble.acme(store.path())
    };
    let world = world(&pebble, acme, ports).await;
    let failed = async || {
        let failures = attempts(store.path())["failures"].as_object().unwrap().len();
        // What is told follows what is written.
        failures == 3 && warning(&world).is_some_and(|why| why.contains("refused.example.test"))
    };
    until("an account", async || store.path().join("attempts.json").exists()).await;
    until("three failures", failed).await;
    let why = warning(&world).unwrap();
    assert!(why.contains("a.example.test could not be ordered"), "{why}");
    assert!(why.contains("did not accept that the name is ours"), "{why}");
    assert!(why.contains("refused.example.test could not be ordered"), "{why}");
    let failures = attempts(store.path())["failures"].clone();
    assert_eq!(failures["a.example.test"]["count"], 1, "not tried again at once");
    assert!(world.health.problems().iter().all(|(name, _)| *name != "certificates"));
    assert_eq!(fs::read_dir(store.path().join("challenges")).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_replicas_share_a_store_and_one_of_them_orders() {
    if is_there() {
        two_replicas(Challenge::Http01).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_replicas_share_what_is_asked_over_tls_as_well() {
    if is_there() {
        two_replicas(Challenge::TlsAlpn01).await;
    }
}

/// The authority asks one of them, and the other one orders.
async fn two_replicas(challenge: Challenge) {
    let (ports, _) = Ports::open();
    let (other_ports, asked) = Ports::open();
    let pebble = Pebble::start(asked[1].port(), asked[0].port(), 3600).await;
    let store = tempfile::tempdir().unwrap();
    let acme = AcmeConfig { challenge: Some(challenge), ..pebble.acme(store.path()) };
    // It holds no lock, and so the first is the one that orders.
    let one = world(&pebble, acme.clone(), ports).await;
    let other = world(&pebble, acme, other_ports).await;
    for replica in [&one, &other] {
        let host = "auth.example.test";
        until(host, async || is_trusted(replica, host).await).await;
    }
    let orders = |world: &World| {
        let families = world.registry.gather();
        let orders = families.iter().find(|f| f.name() == "dormouse_proxy_acme_orders_total");
        orders.map_or(0.0, |f| f.get_metric().iter().map(|m| m.get_counter().get_value()).sum())
    };
    let (first, second): (f64, f64) = (orders(&one), orders(&other));
    assert!(first == 0.0 || second == 0.0, "{first} {second}");
    assert!(first + second >= 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_ordered_that_a_secret_turns_out_to_cover() {
    let (folder, directory, _) = busy_authority().await;
    let store = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let acme = AcmeConfig {
        names: ["a", "b"].map(|name| format!("{name}.example.test")).into(),
        ..busy(directory, folder.path(), store.path())
    };
    let (secrets, elsewhere) = watch::channel(Arc::new(Pairs::default()));
    let config = TlsConfig {
        look_every: Duration::from_millis(10),
        acme: Some(acme),
        ..TlsConfig::default()
    };
    let certificates =
        Certificates::Managed { config: Box::new(config), elsewhere: Some(elsewhere) };
    let (ports, _) = Ports::open();
    let tls = Tls { certificates, redirect: ports.redirect };
    let world = World::with_tls_at(ports.tls, tls, authority.der.clone(), |_| {}).await;
    let listed = world.health.problems().iter().any(|(_, why)| why.contains("not been listed"));
    assert!(listed, "{:?}", world.health.problems());
    let issued = authority.issue(&["a.example.test", "auth.example.test"]);
    let pair = Pair {
        name: "dormouse/a".to_owned(),
        chain: issued.chain.into_bytes(),
        key: issued.key.into_bytes(),
    };
    secrets.send_replace(Arc::new(Pairs { synced: true, pairs: vec![pair] }));
    // Had it not waited, the first of the names would have been ordered first.
    until("the order that is due", async || warning(&world).is_some()).await;
    let tried = attempts(store.path())["failures"].as_object().unwrap().clone();
    assert_eq!(tried.keys().collect::<Vec<_>>(), ["b.example.test"]);
}

fn busy(directory: String, folder: &Path, store: &Path) -> AcmeConfig {
    AcmeConfig {
        directory_url: directory,
        terms_of_service_agreed: true,
        store: store.to_owned(),
        contacts: Vec::new(),
        ca_file: Some(folder.join("ca.pem")),
        challenge: None,
        names: vec!["a.example.test".to_owned()],
        on_demand: OnDemand::Off,
        on_demand_per_hour: 10,
        external_account: None,
    }
}

/// An authority that refuses the first good nonce, and then always says that it is too much.
async fn busy_authority() -> (tempfile::TempDir, String, Arc<AtomicUsize>) {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    fs::write(folder.path().join("ca.pem"), &authority.pem).unwrap();
    let issued = authority.issue(&["localhost"]);
    let pem = |text: &str| text.as_bytes().to_vec();
    use rustls_pki_types::{PrivateKeyDer, pem::PemObject};
    let config = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(
            vec![CertificateDer::from_pem_slice(&pem(&issued.chain)).unwrap()],
            PrivateKeyDer::from_pem_slice(&pem(&issued.key)).unwrap(),
        )
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("https://localhost:{}", listener.local_addr().unwrap().port());
    let orders = Arc::new(AtomicUsize::new(0));
    let (url, counted) = (base.clone(), orders.clone());
    tokio::spawn(async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            let (acceptor, base, counted) = (acceptor.clone(), base.clone(), counted.clone());
            tokio::spawn(async move {
                let Ok(mut tls) = acceptor.accept(tcp).await else { return };
                let mut bytes = Vec::new();
                while !bytes.ends_with(b"\r\n\r\n") && !bytes.ends_with(b"}") {
                    if tls.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
                        return;
                    }
                }
                let request = String::from_utf8_lossy(&bytes).into_owned();
                let path = request.split(' ').nth(1).unwrap_or_default();
                let (status, more, body) = match path {
                    "/dir" => (
                        "200 OK",
                        "",
                        json!({
                            "newNonce": format!("{base}/nonce"), "newAccount": format!("{base}/account"),
                            "newOrder": format!("{base}/order"), "revokeCert": format!("{base}/revoke"),
                            "keyChange": format!("{base}/key"),
                        }),
                    ),
                    "/account" => (
                        "201 Created",
                        "Location: https://localhost/account/1\r\n",
                        json!({"status": "valid"}),
                    ),
                    "/order" if counted.fetch_add(1, Relaxed) == 0 => (
                        "400 Bad Request",
                        "",
                        json!({"type": "urn:ietf:params:acme:error:badNonce", "status": 400}),
                    ),
                    "/order" => (
                        "429 Too Many Requests",
                        "Retry-After: 7200\r\n",
                        json!({
                            "type": "urn:ietf:params:acme:error:rateLimited",
                            "detail": "too many certificates", "status": 429,
                        }),
                    ),
                    _ => ("200 OK", "", json!({})),
                };
                let body =
                    if request.starts_with("HEAD") { String::new() } else { body.to_string() };
                let answer = format!(
                    "HTTP/1.1 {status}\r\nReplay-Nonce: bm9uY2U\r\n{more}Content-Length: {}\r\n\
                     Connection: close\r\n\r\n{body}",
                    body.len()
                );
                let _ = tls.write_all(answer.as_bytes()).await;
                let _ = tls.shutdown().await;
            });
        }
    });
    (folder, format!("{url}/dir"), orders)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rate_limit_is_kept_to_across_restarts() {
    let (folder, directory, orders) = busy_authority().await;
    let store = tempfile::tempdir().unwrap();
    let acme = busy(directory, folder.path(), store.path());
    for _ in 0..2 {
        let (ports, _) = Ports::open();
        let config = TlsConfig {
            look_every: Duration::from_millis(10),
            acme: Some(acme.clone()),
            ..TlsConfig::default()
        };
        let certificates = Certificates::Managed { config: Box::new(config), elsewhere: None };
        let tls = Tls { certificates, redirect: ports.redirect };
        let root = Authority::new().der;
        let world = World::with_tls_at(ports.tls, tls, root, |_| {}).await;
        until("patience", async || warning(&world).is_some()).await;
        let why = warning(&world).unwrap();
        assert!(why.contains("too many certificates"), "{why}");
        let until_then: jiff::Timestamp =
            attempts(store.path())["failures"]["a.example.test"]["not_before"]
                .as_str()
                .unwrap()
                .parse()
                .unwrap();
        let wait = until_then.duration_since(jiff::Timestamp::now());
        assert!(wait.as_secs() > 7100 && wait.as_secs() <= 7200, "{wait}");
        world.shutdown.cancel();
        world.served.await.unwrap().unwrap();
    }
    assert_eq!(orders.load(Relaxed), 2);
}
