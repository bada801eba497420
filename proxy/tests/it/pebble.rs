//! Pebble: the strict ACME server that the makers of Let's Encrypt test clients with. It refuses a
//! part of the good nonces, connects back for each challenge, and checks every signature and request.
//! `scripts/setup test` installs it (Debian's package `pebble`).

use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use proxy::tls_config::{AcmeConfig, OnDemand};
use rustls_pki_types::CertificateDer;
use serde_json::json;

use crate::{acme::until, pki::Authority};

/// Both programs, ended when dropped.
pub struct Pebble {
    _processes: [Killed; 2],
    folder: tempfile::TempDir,
    directory: String,
    management: String,
    http: reqwest::Client,
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Whether the programs are there. They must be, but where somebody says that they do without.
pub fn is_there() -> bool {
    let there = Command::new("pebble-challtestsrv")
        .arg("-h")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok();
    if !there && std::env::var("DORMOUSE_TEST_WITHOUT").is_ok_and(|without| without == "pebble") {
        eprintln!("skipped, as DORMOUSE_TEST_WITHOUT=pebble says");
        return false;
    }
    assert!(
        there,
        "pebble is not installed. Run `scripts/setup test`, which installs it, or set \
         DORMOUSE_TEST_WITHOUT=pebble to leave these tests out"
    );
    true
}

impl Pebble {
    /// Validates on those ports, and issues certificates that are good for so many seconds.
    pub async fn start(http_port: u16, tls_port: u16, seconds: u64) -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::new();
        fs::write(folder.path().join("ca.pem"), &authority.pem).unwrap();
        let (certificate, key) = authority.issue(&["localhost"]).write(folder.path(), "pebble");
        let (listen, management, dns, control) =
            (free_port(), free_port(), free_port(), free_port());
        let config = json!({"pebble": {
            "listenAddress": format!("127.0.0.1:{listen}"),
            "managementListenAddress": format!("127.0.0.1:{management}"),
            "certificate": certificate,
            "privateKey": key,
            "httpPort": http_port,
            "tlsPort": tls_port,
            "domainBlocklist": ["refused.example.test"],
            "certificateValidityPeriod": seconds,
        }});
        fs::write(folder.path().join("pebble.json"), config.to_string()).unwrap();
        let log = || Stdio::from(fs::File::create(folder.path().join("log")).unwrap());
        let names = Command::new("pebble-challtestsrv")
            .args(["-defaultIPv4", "127.0.0.1", "-defaultIPv6", ""])
            .args(["-http01", "", "-https01", "", "-tlsalpn01", ""])
            .args(["-dns01", &format!("127.0.0.1:{dns}")])
            .args(["-management", &format!("127.0.0.1:{control}")])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let pebble = Command::new("pebble")
            .args(["-strict", "-dnsserver", &format!("127.0.0.1:{dns}"), "-config"])
            .arg(folder.path().join("pebble.json"))
            .env("PEBBLE_VA_NOSLEEP", "1")
            .env("PEBBLE_WFE_NONCEREJECT", "5")
            .env("PEBBLE_AUTHZREUSE", "0")
            .stdout(log())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let http = runtime::http::client(Some(&folder.path().join("ca.pem"))).unwrap();
        let pebble = Self {
            _processes: [Killed(names), Killed(pebble)],
            directory: format!("https://localhost:{listen}/dir"),
            management: format!("https://localhost:{management}"),
            folder,
            http,
        };
        until("pebble", async || pebble.http.get(&pebble.directory).send().await.is_ok()).await;
        pebble
    }

    fn ca_file(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// The authority that its certificates lead to.
    pub async fn root(&self) -> CertificateDer<'static> {
        let answer = self.http.get(format!("{}/roots/0", self.management)).send().await.unwrap();
        let pem = answer.text().await.unwrap();
        rustls_pki_types::pem::PemObject::from_pem_slice(pem.as_bytes()).unwrap()
    }

    pub fn acme(&self, store: &Path) -> AcmeConfig {
        AcmeConfig {
            directory_url: self.directory.clone(),
            terms_of_service_agreed: true,
            store: store.to_owned(),
            contacts: vec!["mailto:ops@example.test".to_owned()],
            ca_file: Some(self.ca_file()),
            challenge: None,
            names: Vec::new(),
            on_demand: OnDemand::Off,
            on_demand_per_hour: 10,
            external_account: None,
        }
    }
}
