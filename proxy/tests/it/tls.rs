//! Certificates by server name, and how they change while connections run.

use std::{fs, process::Command, sync::Arc, time::Duration};

use domain::certificate::{Pair, Pairs};
use proxy::{
    Certificates, Tls,
    tls_config::{CertificateFiles, Profile, TlsConfig},
};
use rustls::{
    ClientConfig, ProtocolVersion, RootCertStore, SupportedProtocolVersion,
    version::{TLS12, TLS13},
};
use rustls_pki_types::ServerName;
use tokio::{net::TcpStream, sync::watch};
use tokio_rustls::{TlsConnector, client::TlsStream};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::{
    pki::{Authority, Issued},
    upstream,
    world::{HOST, Raw, World},
};

/// As browsers are today: with the post-quantum exchange, unless it must be TLS 1.2.
fn client(authority: &Authority, versions: &[&'static SupportedProtocolVersion]) -> TlsConnector {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let mut roots = RootCertStore::empty();
    roots.add(authority.der.clone()).unwrap();
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    provider.kx_groups = vec![rustls::crypto::aws_lc_rs::kx_group::X25519MLKEM768];
    if versions.iter().all(|version| **version == TLS12) {
        provider.kx_groups = vec![rustls::crypto::aws_lc_rs::kx_group::X25519];
    }
    let config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    TlsConnector::from(Arc::new(config))
}

async fn connect(
    world: &World,
    client: &TlsConnector,
    name: &str,
) -> std::io::Result<TlsStream<TcpStream>> {
    let tcp = TcpStream::connect(world.address).await.unwrap();
    client.connect(ServerName::try_from(name.to_owned()).unwrap(), tcp).await
}

/// The names and the serial number of the certificate that a client gets.
async fn served(world: &World, authority: &Authority, name: &str) -> Option<(String, String)> {
    let client = client(authority, &[&TLS13]);
    let stream = connect(world, &client, name).await.ok()?;
    let leaf = stream.get_ref().1.peer_certificates().unwrap()[0].clone();
    let (_, parsed) = X509Certificate::from_der(&leaf).unwrap();
    let names = parsed.subject_alternative_name().unwrap().unwrap();
    let names: Vec<_> = names.value.general_names.iter().map(|name| name.to_string()).collect();
    Some((names.join(","), parsed.raw_serial_as_string()))
}

async fn until(what: &str, mut reached: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !reached().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), waiting)
        .await
        .unwrap_or_else(|_| panic!("{what}"));
}

fn managed(config: TlsConfig, elsewhere: Option<watch::Receiver<Arc<Pairs>>>) -> Tls {
    Tls {
        certificates: Certificates::Managed { config: Box::new(config), elsewhere },
        redirect: None,
    }
}

fn quick() -> TlsConfig {
    TlsConfig { look_every: Duration::from_millis(20), ..TlsConfig::default() }
}

fn warns(world: &World, of: &str) -> bool {
    world.health.warnings().iter().any(|(component, _)| *component == of)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_name_chooses() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let write = |name: &str, hosts: &[&str]| authority.issue(hosts).write(folder.path(), name);
    let (certificate_file, key_file) = write("wild", &["*.example.test"]);
    let (exact, exact_key) = write("exact", &["auth.example.test", "portal.example.test"]);
    fs::create_dir(folder.path().join("more")).unwrap();
    authority.issue(&["other.test"]).write(&folder.path().join("more"), "other");
    let config = TlsConfig {
        certificate_file: Some(certificate_file),
        key_file: Some(key_file),
        certificates: vec![CertificateFiles { certificate_file: exact, key_file: exact_key }],
        directory: Some(folder.path().join("more")),
        ..quick()
    };
    let world = World::with_tls(managed(config, None), authority.der.clone(), |_| {}).await;
    for (name, expected) in [
        ("auth.example.test", "DNSName(auth.example.test),DNSName(portal.example.test)"),
        ("AUTH.example.test", "DNSName(auth.example.test),DNSName(portal.example.test)"),
        ("lab--alice.example.test", "DNSName(*.example.test)"),
        ("other.test", "DNSName(other.test)"),
    ] {
        assert_eq!(served(&world, &authority, name).await.unwrap().0, expected, "{name}");
    }
    // The default is for another name, and a client that checks says so.
    let client = client(&authority, &[&TLS13]);
    let error = connect(&world, &client, "unknown.test").await.unwrap_err();
    assert!(
        error.to_string().contains("NotValidForName")
            || error.to_string().contains("not valid for name"),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_say_to_come_by_https_as_well() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let (chain, key) = authority.issue(&["*.example.test"]).write(folder.path(), "a");
    for fast_lane in [true, false] {
        let config = TlsConfig {
            certificate_file: Some(chain.clone()),
            key_file: Some(key.clone()),
            ..quick()
        };
        let world = World::with_tls(managed(config, None), authority.der.clone(), |config| {
            config.fast_lane = fast_lane;
            config.limits.body_stall = Duration::from_millis(100);
        })
        .await;
        world.running(
            upstream::start(|mut request| async move {
                while tokio::io::AsyncReadExt::read_buf(&mut request.stream, &mut request.rest)
                    .await
                    .unwrap_or(0)
                    > 0
                {}
            })
            .await,
        );
        let bearer = world.bearer("alice");
        let long = "y".repeat(60_000);
        for (status, request) in [
            ("400", "GET / HTTP/1.1\r\nHost: a#@b\r\n\r\n".to_owned()),
            ("400", "garbage\r\n\r\n".to_owned()),
            ("431", format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nX: {long}\r\n\r\n")),
            ("405", format!("TRACE / HTTP/1.1\r\nHost: {HOST}\r\n\r\n")),
            (
                "408",
                format!(
                    "POST / HTTP/1.1\r\nHost: {HOST}\r\nAuthorization: {bearer}\r\n\
                     Content-Length: 100\r\n\r\npart"
                ),
            ),
            (
                "400",
                format!(
                    "POST / HTTP/1.1\r\nHost: {HOST}\r\nAuthorization: {bearer}\r\n\
                     Transfer-Encoding: chunked\r\n\r\n3;ext=1\r\nabc\r\nnonsense"
                ),
            ),
        ] {
            let mut raw = world.raw().await;
            raw.send(&request).await;
            let (head, _) = raw.answer().await;
            assert_eq!(&head[9..12], status, "{request:.60}");
            let lower = head.to_ascii_lowercase();
            assert!(lower.contains("strict-transport-security: max-age="), "{request:.60}: {head}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn new_files_are_taken_up_while_connections_run_and_broken_ones_are_not() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let hosts = ["*.example.test"];
    let (chain, key) = authority.issue(&hosts).write(folder.path(), "a");
    let config =
        TlsConfig { certificate_file: Some(chain.clone()), key_file: Some(key.clone()), ..quick() };
    let world = World::with_tls(managed(config, None), authority.der.clone(), |_| {}).await;
    world.running(upstream::mirror().await);
    let first = served(&world, &authority, HOST).await.unwrap();
    let mut running = world.raw().await;
    let request = format!(
        "GET / HTTP/1.1\r\nHost: {HOST}\r\nAuthorization: {}\r\n\r\n",
        world.bearer("alice")
    );
    running.send(&request).await;
    let (head, _) = running.answer().await;
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    let hsts = head.lines().find(|line| line.to_ascii_lowercase().starts_with("strict-transport"));
    assert!(hsts.unwrap().ends_with(": max-age=31536000"), "{head}");

    authority.issue(&hosts).write(folder.path(), "a");
    until("a new certificate", async || served(&world, &authority, HOST).await.unwrap() != first)
        .await;
    let second = served(&world, &authority, HOST).await.unwrap();
    running.send(&request).await;
    assert!(running.answer().await.0.starts_with("HTTP/1.1 200 "), "the connection goes on");

    // Half a certificate; then one without its key; then a file that is gone.
    fs::write(&chain, "-----BEGIN CERTIFICATE-----\nMIIB").unwrap();
    until("a warning", async || warns(&world, "certificate files")).await;
    assert_eq!(served(&world, &authority, HOST).await.unwrap(), second);
    fs::write(&chain, authority.issue(&hosts).chain).unwrap();
    let key_fault =
        || world.health.warnings().iter().any(|(_, why)| why.contains("belong together"));
    until("the new warning", async || key_fault()).await;
    assert_eq!(served(&world, &authority, HOST).await.unwrap(), second);
    fs::remove_file(&key).unwrap();
    until("that it is gone", async || !key_fault() && warns(&world, "certificate files")).await;
    assert_eq!(served(&world, &authority, HOST).await.unwrap(), second);
    assert!(world.health.problems().is_empty(), "none of it keeps traffic away");
    let broken = world
        .registry
        .gather()
        .into_iter()
        .find(|family| family.name() == "dormouse_proxy_certificate_loads_total");
    let broken: f64 = broken
        .unwrap()
        .get_metric()
        .iter()
        .filter(|metric| metric.get_label().iter().any(|label| label.value() == "broken"))
        .map(|metric| metric.get_counter().get_value())
        .sum();
    assert!(broken >= 3.0, "{broken}");

    authority.issue(&hosts).write(folder.path(), "a");
    until("the warning to end", async || !warns(&world, "certificate files")).await;
    assert_ne!(served(&world, &authority, HOST).await.unwrap(), second);
}

fn pair(name: &str, issued: &Issued) -> Pair {
    Pair {
        name: name.to_owned(),
        chain: issued.chain.clone().into_bytes(),
        key: issued.key.clone().into_bytes(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_kept_elsewhere_appear_change_and_vanish() {
    let authority = Authority::new();
    let (sender, elsewhere) = watch::channel(Arc::new(Pairs::default()));
    let tls = managed(quick(), Some(elsewhere));
    let world = World::with_tls(tls, authority.der.clone(), |_| {}).await;
    let set = |pairs: Vec<Pair>| {
        sender.send_replace(Arc::new(Pairs { pairs, synced: true }));
    };
    let not_ready = || world.health.problems().iter().any(|(name, _)| *name == "certificates");
    until("not to be ready", async || not_ready()).await;
    assert_eq!(served(&world, &authority, HOST).await, None);
    let first = authority.issue(&[HOST]);
    set(vec![pair("ns/lab", &first)]);
    until("the first", async || served(&world, &authority, HOST).await.is_some()).await;
    until("to be ready", async || !not_ready()).await;
    let before = served(&world, &authority, HOST).await;

    let broken = Pair { chain: b"half".to_vec(), ..pair("ns/lab", &first) };
    set(vec![broken]);
    until("a warning", async || warns(&world, "certificate secrets")).await;
    assert_eq!(served(&world, &authority, HOST).await, before, "the old one stays");

    set(vec![pair("ns/lab", &authority.issue(&[HOST]))]);
    until("the second", async || served(&world, &authority, HOST).await != before).await;
    until("no warning", async || !warns(&world, "certificate secrets")).await;
    set(vec![pair("ns/other", &authority.issue(&["*.example.test"]))]);
    until("the other", async || {
        served(&world, &authority, HOST).await.is_some_and(|(names, _)| names.contains('*'))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn profiles_and_tickets() {
    let authority = Authority::new();
    for (profile, tls_12) in [(Profile::Modern, false), (Profile::Intermediate, true)] {
        let folder = tempfile::tempdir().unwrap();
        let (chain, key) = authority.issue(&["*.example.test"]).write(folder.path(), "a");
        let config =
            TlsConfig { certificate_file: Some(chain), key_file: Some(key), profile, ..quick() };
        let world = World::with_tls(managed(config, None), authority.der.clone(), |_| {}).await;
        let old = client(&authority, &[&TLS12]);
        assert_eq!(connect(&world, &old, HOST).await.is_ok(), tls_12, "{profile:?}");
        let new = client(&authority, &[&TLS13, &TLS12]);
        // The ticket comes behind the handshake, before the first answer.
        let mut raw =
            Raw { stream: connect(&world, &new, HOST).await.unwrap(), buffer: Vec::new() };
        assert_eq!(raw.stream.get_ref().1.protocol_version(), Some(ProtocolVersion::TLSv1_3));
        let group = raw.stream.get_ref().1.negotiated_key_exchange_group().unwrap().name();
        assert_eq!(group, rustls::NamedGroup::X25519MLKEM768);
        raw.send(&format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n")).await;
        assert!(raw.answer().await.0.starts_with("HTTP/1.1 401 "));
        let again = connect(&world, &new, HOST).await.unwrap();
        assert_eq!(again.get_ref().1.handshake_kind(), Some(rustls::HandshakeKind::Resumed));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_served_to_an_authority_without_a_challenge() {
    let world = World::start().await;
    let mut roots = RootCertStore::empty();
    let _ = roots.add(Authority::new().der);
    let mut config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"acme-tls/1".to_vec()];
    let client = TlsConnector::from(Arc::new(config));
    assert!(connect(&world, &client, HOST).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn curl_follows_the_redirect_and_trusts_the_certificate() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let (chain, key) = authority.issue(&[HOST]).write(folder.path(), "a");
    let ca = folder.path().join("ca.pem");
    fs::write(&ca, &authority.pem).unwrap();
    let config = TlsConfig { certificate_file: Some(chain), key_file: Some(key), ..quick() };
    let redirect = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let plain = redirect.local_addr().unwrap().port();
    let tls = Tls {
        certificates: Certificates::Managed { config: Box::new(config), elsewhere: None },
        redirect: Some(redirect),
    };
    let world = World::with_tls(tls, authority.der.clone(), |_| {}).await;
    world.running(upstream::mirror().await);
    let port = world.address.port();
    let bearer = world.bearer("alice");
    let ca = ca.display().to_string();
    let asked = tokio::task::spawn_blocking(move || {
        Command::new("curl")
            .args(["--silent", "--show-error", "--location", "--cacert", &ca])
            .args(["--resolve", &format!("{HOST}:{plain}:127.0.0.1")])
            .args(["--resolve", &format!("{HOST}:{port}:127.0.0.1")])
            // To the same host by another scheme and port: curl asks before it sends it again.
            .args(["--location-trusted", "--header", &format!("Authorization: {bearer}")])
            .args([
                "--write-out",
                "\n%{http_code} %{http_version} %{num_redirects} %{url_effective}",
            ])
            .arg(format!("http://{HOST}:{plain}/a?b=c"))
            .output()
    });
    let output = asked.await.unwrap().expect("curl is needed for this test");
    let said = String::from_utf8(output.stdout).unwrap();
    let end = format!("\n200 2 1 https://{HOST}:{port}/a?b=c");
    assert!(said.ends_with(&end), "{said} {}", String::from_utf8_lossy(&output.stderr));
}
