//! A server that is killed in the middle of what it does. It is a process of its own: this program
//! again, running the test `the_server_to_be_killed`.

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use authserver::{NewPerson, Store};
use jiff::Timestamp;
use rand::Rng;
use reqwest::StatusCode;
use runtime::{audit::Audit, health::Health, service::Context};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::support::*;

const FOLDER: &str = "DORMOUSE_TEST_FOLDER";
const READY: &str = "listening on ";

/// Does nothing in an ordinary run.
#[tokio::test]
async fn the_server_to_be_killed() {
    let Ok(folder) = std::env::var(FOLDER) else { return };
    let folder = Path::new(&folder);
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let context = Context {
        registry: prometheus::Registry::new(),
        audit: Audit::to_file("authserver", &folder.join("audit.jsonl")).unwrap(),
        health: Health::new(),
        shutdown: CancellationToken::new(),
    };
    let config = config(folder).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    println!("{READY}{}", listener.local_addr().unwrap());
    authserver::serve(config, listener, context).await.unwrap();
}

struct Killable {
    child: Child,
    base: String,
}

impl Killable {
    fn start(folder: &Path) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "provider::killed::the_server_to_be_killed", "--nocapture"])
            .env(FOLDER, folder)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let ready = lines
            .map_while(Result::ok)
            .find_map(|line| line.split_once(READY).map(|(_, address)| address.to_owned()));
        Self { child, base: format!("http://{}", ready.unwrap()) }
    }

    fn kill(&mut self) {
        // SIGKILL: nothing is flushed, nothing is said.
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Killable {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Kills a server while it rotates, starts it again, and comes back with the last token that
/// arrived. Returns in how many rounds the answer was lost.
async fn rotate_and_kill(rounds: usize) -> usize {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&database(folder.path()).await).await.unwrap();
    let alice = NewPerson { name: "alice".parse().unwrap(), email: None, groups: vec![] };
    store.ensure_user(&alice, Some(PASSWORD), Timestamp::now()).await.unwrap();
    let mut process = Killable::start(folder.path());
    let mut server = Server::elsewhere(folder, store, process.base.clone());
    let code = Browser::default().code(&server).await;
    let tokens = server.redeem(GATE, &code).await.1;
    let mut token = text(&tokens, "refresh_token").to_owned();
    let mut lost = 0;
    for round in 0..rounds {
        let delay = Duration::from_micros(rand::rng().random_range(0..12_000));
        let form = [("grant_type", "refresh_token"), ("refresh_token", token.as_str())];
        let request = server.request(reqwest::Method::POST, "/token");
        let request = request.basic_auth(GATE.0, Some(GATE.1)).form(&form).send();
        let (answer, ()) = tokio::join!(request, async {
            tokio::time::sleep(delay).await;
            process.kill();
        });
        process = Killable::start(server.folder.path());
        server.base.clone_from(&process.base);
        match answer {
            Ok(answer) if answer.status() == StatusCode::OK => {
                if let Ok(tokens) = answer.json::<serde_json::Value>().await {
                    token = text(&tokens, "refresh_token").to_owned();
                }
            }
            _ => lost += 1,
        }
        let (status, tokens) = server.refresh(&token).await;
        assert_eq!(status, StatusCode::OK, "round {round}: {tokens}");
        token = text(&tokens, "refresh_token").to_owned();
    }
    lost
}

#[tokio::test]
async fn a_session_survives_the_death_of_the_server() {
    rotate_and_kill(12).await;
}

/// Both kinds of rounds have to occur: answers that arrive, and answers that are lost.
#[tokio::test]
#[ignore = "takes a minute: cargo test -p dormouse-authserver -- --ignored killed"]
async fn a_session_survives_two_hundred_deaths() {
    let lost = rotate_and_kill(200).await;
    println!("the answer was lost in {lost} of 200 rounds");
    assert!((1..200).contains(&lost), "{lost}");
}
