//! Follows `docs/after-a-theft.md` and `docs/master-key.md` by the letter, with two servers running: the
//! commands are those in the pages.
#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeMap,
    net::TcpListener,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use reqwest::{Client, Response, StatusCode, header, redirect};
use serde_json::{Value, json};
use tempfile::TempDir;

const THEFT: &str = include_str!("../../docs/after-a-theft.md");
const MASTER_KEY: &str = include_str!("../../docs/master-key.md");
const ISSUER: &str = "https://auth.example.org";
const CALLBACK: &str = "https://lab--alice.example.org/.dormouse/callback";
const GATE: (&str, &str) = ("dormouse-gate", "gate-secret-gate-secret-gate-secret-1");
const PASSWORD: &str = "correct horse battery";
/// Of RFC 7636, appendix B.
const VERIFIER: &str = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";
const CHALLENGE: &str = "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM";

/// One fenced block, and the heading that it is under.
struct Block<'a> {
    heading: &'a str,
    language: &'a str,
    text: String,
}

fn blocks(page: &str) -> Vec<Block<'_>> {
    let (mut found, mut heading, mut inside) = (Vec::new(), "", false);
    for line in page.lines() {
        match line.strip_prefix("```") {
            Some(_) if inside => inside = false,
            Some(language) => {
                inside = true;
                found.push(Block { heading, language, text: String::new() });
            }
            None if inside => {
                let block = found.last_mut().unwrap();
                block.text += line;
                block.text.push('\n');
            }
            None => heading = line.strip_prefix("## ").unwrap_or(heading),
        }
    }
    found
}

/// A replica, as its operator runs it.
struct Replica {
    child: Child,
    base: String,
    admin: String,
}

impl Drop for Replica {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

struct Place {
    folder: TempDir,
    http: Client,
}

impl Place {
    fn new() -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("gate-secret"), GATE.1).unwrap();
        let http = Client::builder().redirect(redirect::Policy::none()).build().unwrap();
        let place = Self { folder, http };
        place.sh("umask 077; openssl rand -base64 32 > /etc/dormouse/master-key");
        place.settings("[authserver]\nmaster_key_file = \"/etc/dormouse/master-key\"\n");
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn here(&self, text: &str) -> String {
        text.replace("/etc/dormouse", self.folder.path().to_str().unwrap())
    }

    /// The settings that both replicas have, with what a page says of the master key.
    fn settings(&self, master_key: &str) {
        let text = format!(
            "listen = \"127.0.0.1:1\"\nadmin_listen = \"127.0.0.1:1\"\n\
             audit_file = \"/etc/dormouse/audit.jsonl\"\n\
             {master_key}issuer = \"{ISSUER}\"\nbase_domain = \"example.org\"\n\
             database = \"/etc/dormouse/authserver.db\"\nclient_secret_file = \"/etc/dormouse/gate-secret\"\n"
        );
        std::fs::write(self.path("authserver.toml"), self.here(&text)).unwrap();
    }

    /// What the commands print, with this program for `dormouse`.
    fn sh(&self, text: &str) -> String {
        let program = PathBuf::from(env!("CARGO_BIN_EXE_dormouse"));
        let path = std::env::var("PATH").unwrap();
        let path = format!("{}:{path}", program.parent().unwrap().display());
        let script = self.here(text).replace("NAME", "alice").replace("GROUP", "ml");
        let done = Command::new("sh").arg("-ec").arg(&script).env("PATH", path).output().unwrap();
        let (out, err) = (String::from_utf8(done.stdout).unwrap(), done.stderr);
        assert!(done.status.success(), "{script}: {out}{}", String::from_utf8_lossy(&err));
        out
    }

    async fn start(&self) -> Replica {
        let (port, admin) = (free_port(), free_port());
        let child = Command::new(env!("CARGO_BIN_EXE_dormouse"))
            .arg("authserver")
            .arg("--config")
            .arg(self.path("authserver.toml"))
            .env("DORMOUSE_LISTEN", format!("127.0.0.1:{port}"))
            .env("DORMOUSE_ADMIN_LISTEN", format!("127.0.0.1:{admin}"))
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let (base, admin) =
            (format!("http://127.0.0.1:{port}"), format!("http://127.0.0.1:{admin}"));
        let mut replica = Replica { child, base, admin };
        let ready = async {
            loop {
                let asked = self.http.get(format!("{}/readyz", replica.admin)).send().await;
                if asked.is_ok_and(|answer| answer.status() == StatusCode::OK) {
                    return;
                }
                assert!(replica.child.try_wait().unwrap().is_none(), "the server does not start");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), ready)
            .await
            .expect("the server is not ready");
        replica
    }

    /// One after the other, so that there is always one of the step before.
    async fn restart(&self, replicas: &mut [Replica], browser: &mut Browser) {
        for n in 0..replicas.len() {
            kill(Pid::from_raw(i32::try_from(replicas[n].child.id()).unwrap()), Signal::SIGTERM)
                .unwrap();
            replicas[n].child.wait().unwrap();
            replicas[n] = self.start().await;
            browser.goes_on(self, replicas).await;
        }
    }

    async fn token(&self, replica: &Replica, form: &[(&str, &str)]) -> (StatusCode, Value) {
        let request =
            self.http.post(format!("{}/token", replica.base)).basic_auth(GATE.0, Some(GATE.1));
        let answer = request.form(form).send().await.unwrap();
        (answer.status(), answer.json().await.unwrap())
    }

    /// The status that a token gets.
    async fn userinfo(&self, replica: &Replica, token: &str) -> StatusCode {
        let request = self.http.get(format!("{}/userinfo", replica.base)).bearer_auth(token);
        request.send().await.unwrap().status()
    }

    async fn published(&self, replica: &Replica) -> String {
        let url = format!("{}/.well-known/jwks.json", replica.base);
        self.http.get(url).send().await.unwrap().text().await.unwrap()
    }
}

/// Cookies, and what a gateway keeps for a browser.
#[derive(Default)]
struct Browser {
    cookies: BTreeMap<String, String>,
    refresh_token: String,
    access_token: String,
}

impl Browser {
    fn with_cookies(&self, request: reqwest::RequestBuilder) -> reqwest::RequestBuilder {
        let cookies: Vec<_> =
            self.cookies.iter().map(|(name, value)| format!("{name}={value}")).collect();
        request.header(header::COOKIE, cookies.join("; "))
    }

    fn keep_cookies(&mut self, answer: &Response) {
        for cookie in answer.headers().get_all(header::SET_COOKIE) {
            let (name, value) =
                cookie.to_str().unwrap().split(';').next().unwrap().split_once('=').unwrap();
            self.cookies.insert(name.to_owned(), value.to_owned());
        }
    }

    async fn open(&mut self, place: &Place, replica: &Replica) -> Response {
        let url = reqwest::Url::parse_with_params(
            &format!("{}/authorize", replica.base),
            [
                ("client_id", GATE.0),
                ("redirect_uri", CALLBACK),
                ("response_type", "code"),
                ("scope", "openid profile email groups workload:use"),
                ("state", "s"),
                ("nonce", "n"),
                ("code_challenge", CHALLENGE),
                ("code_challenge_method", "S256"),
            ],
        );
        let request = self.with_cookies(place.http.get(url.unwrap()));
        let answer = request.send().await.unwrap();
        self.keep_cookies(&answer);
        answer
    }

    /// The ticket of a sign-in page.
    async fn ticket(&mut self, place: &Place, replica: &Replica) -> String {
        let page = self.open(place, replica).await.text().await.unwrap();
        let (_, rest) = page.split_once("name=\"ticket\" value=\"").expect("the page has a form");
        rest.split('"').next().unwrap().to_owned()
    }

    async fn submit(&mut self, place: &Place, replica: &Replica, ticket: &str) -> Response {
        let form = [("ticket", ticket), ("name", "alice"), ("password", PASSWORD)];
        let request =
            place.http.post(format!("{}/sign-in", replica.base)).header(header::ORIGIN, ISSUER);
        let answer = self.with_cookies(request).form(&form).send().await.unwrap();
        self.keep_cookies(&answer);
        answer
    }

    async fn redeem(&mut self, place: &Place, replica: &Replica, sent: Response) {
        assert_eq!(sent.status(), StatusCode::SEE_OTHER);
        let to =
            sent.headers()[header::LOCATION].to_str().unwrap().parse::<reqwest::Url>().unwrap();
        let code = to.query_pairs().find(|(name, _)| name == "code").unwrap().1.into_owned();
        let form = [
            ("grant_type", "authorization_code"),
            ("code", &code),
            ("redirect_uri", CALLBACK),
            ("code_verifier", VERIFIER),
        ];
        let (status, tokens) = place.token(replica, &form).await;
        assert_eq!(status, StatusCode::OK, "{tokens}");
        self.keep_tokens(&tokens);
    }

    fn keep_tokens(&mut self, tokens: &Value) {
        self.refresh_token = tokens["refresh_token"].as_str().unwrap().to_owned();
        self.access_token = tokens["access_token"].as_str().unwrap().to_owned();
    }

    /// As a gateway does for it, at each of the replicas.
    async fn goes_on(&mut self, place: &Place, replicas: &[Replica]) {
        for replica in replicas {
            let form =
                [("grant_type", "refresh_token"), ("refresh_token", self.refresh_token.as_str())];
            let (status, tokens) = place.token(replica, &form).await;
            assert_eq!(status, StatusCode::OK, "{tokens}");
            self.keep_tokens(&tokens);
        }
    }
}

fn ssh_keygen(arguments: &[&str]) -> String {
    let done = Command::new("ssh-keygen").args(arguments).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).unwrap()
}

/// `SHA256:...` in a text of `ssh-keygen`.
fn fingerprint(text: &str) -> &str {
    text.split_ascii_whitespace().rfind(|word| word.starts_with("SHA256:")).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attack_12_after_a_theft_of_the_database_the_pages_commands_leave_the_thief_nothing() {
    let place = Place::new();
    let mut replicas = [place.start().await, place.start().await];
    place.sh(&format!(
        "printf '{PASSWORD}' | dormouse auth user add --config /etc/dormouse/authserver.toml \
         --name NAME --group GROUP"
    ));
    let mut browser = Browser::default();
    let ticket = browser.ticket(&place, &replicas[0]).await;
    let sent = browser.submit(&place, &replicas[0], &ticket).await;
    browser.redeem(&place, &replicas[0], sent).await;
    let old_token = browser.access_token.clone();
    let key = place.path("key");
    ssh_keygen(&["-q", "-t", "ed25519", "-N", "", "-f", key.to_str().unwrap()]);
    let public = std::fs::read_to_string(key.with_extension("pub")).unwrap();
    let request =
        place.http.post(format!("{}/ssh/certificate", replicas[0].base)).bearer_auth(&old_token);
    let made = request.json(&json!({ "public_key": public })).send().await.unwrap();
    let made: Value = made.json().await.unwrap();
    let certificate = place.path("key-cert.pub");
    std::fs::write(&certificate, made["certificate"].as_str().unwrap()).unwrap();
    let shown = ssh_keygen(&["-L", "-f", certificate.to_str().unwrap()]);
    let signed_by = shown.lines().find(|line| line.contains("Signing CA")).unwrap();
    // Somebody is about to sign in.
    let mut other = Browser::default();
    let old_ticket = other.ticket(&place, &replicas[1]).await;
    std::fs::copy(place.path("master-key"), place.path("stolen-key")).unwrap();

    // The page, and the one that it leads to.
    let mut steps = blocks(THEFT);
    let at = steps.iter().position(|block| block.heading.starts_with("4.")).unwrap();
    let more = blocks(MASTER_KEY).into_iter().filter(|block| block.heading == "Change it");
    steps.splice(at..at, more);
    assert!(THEFT.contains("(master-key.md)") && steps.len() == 8, "{}", steps.len());
    let mut said = Vec::new();
    for Block { language, text, .. } in &steps {
        match *language {
            "sh" => {
                let before = place.published(&replicas[0]).await;
                said.push(place.sh(text));
                if text.contains("--all\n") {
                    for replica in &replicas {
                        while place.published(replica).await == before {
                            tokio::time::sleep(Duration::from_millis(20)).await;
                        }
                    }
                }
            }
            "toml" => {
                place.settings(text);
                place.restart(&mut replicas, &mut browser).await;
            }
            other => panic!("a block of {other}"),
        }
        browser.goes_on(&place, &replicas).await;
    }

    // The old token, the old certificate, the old form.
    for replica in &replicas {
        assert_eq!(place.userinfo(replica, &old_token).await, StatusCode::UNAUTHORIZED);
        assert_eq!(place.userinfo(replica, &browser.access_token).await, StatusCode::OK);
        let feed = place.http.get(format!("{}/internal/ssh-keys", replica.base));
        let feed = feed.basic_auth(GATE.0, Some(GATE.1)).send().await.unwrap();
        let feed: Value = feed.json().await.unwrap();
        let authorities = feed["authorities"].as_array().unwrap();
        assert_eq!(authorities.len(), 1);
        let file = place.path("authority.pub");
        std::fs::write(&file, authorities[0].as_str().unwrap()).unwrap();
        let listed = ssh_keygen(&["-l", "-f", file.to_str().unwrap()]);
        assert!(!signed_by.contains(fingerprint(&listed)), "{signed_by} {listed}");
        let refused = other.submit(&place, replica, &old_ticket).await;
        assert_eq!(refused.status(), StatusCode::BAD_REQUEST);
        let told = refused.text().await.unwrap();
        assert!(told.contains("Go back and reload the page"), "{told}");
        let metrics = place.http.get(format!("{}/metrics", replica.admin)).send().await.unwrap();
        let metrics = metrics.text().await.unwrap();
        assert!(metrics.contains("\ndormouse_authserver_signing_keys 1\n"), "{metrics}");
        assert!(metrics.contains("\ndormouse_authserver_signing_keys_max 512\n"), "{metrics}");
    }
    // The browser's session asks nobody anything.
    let sent = browser.open(&place, &replicas[1]).await;
    browser.redeem(&place, &replicas[1], sent).await;

    // As the page says of the list.
    let list = said.iter().rev().find(|said| said.contains("active")).unwrap();
    assert!(list.lines().all(|line| line.ends_with("  sealed")), "{list}");
    assert_eq!(list.lines().filter(|line| !line.starts_with("secret")).count(), 1, "{list}");
    assert!(said[0].starts_with("would be replaced: 1 signing keys"), "{said:?}");
    assert!(said[0].contains("\nreplaced: 1 signing keys"), "{said:?}");
    assert!(said.iter().any(|said| said.contains("secrets sealed anew")), "{said:?}");
    // The old master key opens nothing, and changes nothing.
    let list = place.sh("dormouse auth key list --database /etc/dormouse/authserver.db \
         --master-key-file /etc/dormouse/stolen-key");
    assert!(list.lines().count() > 4, "{list}");
    assert!(
        list.lines().all(|line| line.ends_with("sealed with a master key that is not named")),
        "{list}"
    );
    let told = place.sh("! dormouse auth key rotate --all --config /etc/dormouse/authserver.toml \
         --master-key-file /etc/dormouse/stolen-key 2>&1");
    assert!(told.contains("is sealed with another master key"), "{told}");
    let log = std::fs::read_to_string(place.path("audit.jsonl")).unwrap();
    for did in ["all-keys-replaced", "keys-resealed", "person-changed"] {
        assert!(log.contains(&format!("\"did\":\"{did}\"")), "{did}: {log}");
    }
}
