//! What operators' commands leave in the audit log, by running them.
#![allow(clippy::unwrap_used)]

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::Duration,
};

use authserver::{Authentication, Database, Store};
use jiff::Timestamp;
use serde_json::Value;
use tempfile::TempDir;

const PASSWORD: &str = "correct horse battery staple";
const PROVIDER: &str = "https://login.example.com";

/// An authserver's folder, as its service would leave it, with nothing running.
struct Place {
    folder: TempDir,
}

impl Place {
    async fn new() -> Self {
        let place = Self { folder: tempfile::tempdir().unwrap() };
        std::fs::write(place.path("gate-secret"), "g".repeat(40)).unwrap();
        let settings = format!(
            "listen = '127.0.0.1:0'\nadmin_listen = '127.0.0.1:0'\naudit_file = '{}'\n\
             [authserver]\nissuer = 'https://auth.example.org'\nbase_domain = 'example.org'\n\
             database = '{}'\nclient_secret_file = '{}'\nlocal_sign_in = true\n",
            place.path("log.jsonl").display(),
            place.path("authserver.db").display(),
            place.path("gate-secret").display(),
        );
        std::fs::write(place.path("authserver.toml"), settings).unwrap();
        place.store().await.close().await;
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    async fn store(&self) -> Store {
        Store::open(&Database::File(self.path("authserver.db"))).await.unwrap()
    }

    fn run(&self, order: &str, at: &[&str]) -> Output {
        run(order, at, &[])
    }

    /// With the service's settings.
    fn by_settings(&self, order: &str) -> Output {
        let file = self.path("authserver.toml");
        self.run(order, &["--config", file.to_str().unwrap()])
    }

    fn log(&self, name: &str) -> Vec<Value> {
        let text = std::fs::read_to_string(self.path(name)).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

fn run(order: &str, at: &[&str], variables: &[(&str, &Path)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dormouse"));
    for name in ["DORMOUSE_AUDIT_FILE", "DORMOUSE_AUTHSERVER__MASTER_KEY"] {
        command.env_remove(name);
    }
    command.envs(variables.iter().copied()).arg("auth").args(order.split(' ')).args(at);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // Most do not read it.
    let _ = child.stdin.take().unwrap().write_all(PASSWORD.as_bytes());
    child.wait_with_output().unwrap()
}

/// What it printed, when it went well.
fn answer(output: &Output) -> String {
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{out}{err}");
    out
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_owned()).unwrap()
}

/// Who runs this.
fn operator() -> String {
    let id = Command::new("id").arg("-un").output().unwrap();
    format!("operator:{}", text(&id.stdout).trim())
}

#[tokio::test]
async fn each_change_is_in_the_services_audit_log_and_no_secret_is() {
    let place = Place::new().await;
    let mut secrets = vec![PASSWORD.to_owned()];
    let did: Vec<String> = {
        answer(&place.by_settings("user add --name carol --group ml"));
        answer(&place.by_settings("user add --name carol --group staff"));
        let link = format!("--name carol --provider {PROVIDER} --subject 00u1");
        answer(&place.by_settings(&format!("user link-upstream {link}")));
        let said = answer(&place.by_settings(&format!("user unlink-upstream {link} --json")));
        let said: Value = serde_json::from_str(&said).unwrap();
        answer(&place.by_settings("user second-password --name carol"));
        answer(&place.by_settings("user second-password --name carol --remove"));
        assert_eq!((&said["locked_out"], &said["ended"]), (&false.into(), &0.into()));
        secrets.push(answer(&place.by_settings("token --user carol --workload carol/lab")));
        answer(&place.by_settings("key rotate --after 10m"));
        answer(&place.by_settings("key rotate --void-all-tokens"));

        let (store, now) = (place.store().await, Timestamp::now());
        let carol = store.person(&"carol".parse().unwrap()).await.unwrap().unwrap();
        let long = Duration::from_secs(3600);
        let proof = Authentication::here("pwd", now);
        for _ in 0..3 {
            store.begin_session(carol.clone(), &proof, long, now).await.unwrap();
        }
        let session = store.list_sessions(None, 1, now).await.unwrap()[0].id.clone();
        store.close().await;
        answer(&place.by_settings(&format!("session end --id {session}")));
        answer(&place.by_settings("session end --user carol"));

        let uri = "https://hub.example.org/cb";
        let made =
            place.by_settings(&format!("client create --json --id hub --redirect-uri {uri}"));
        let made: Value = serde_json::from_str(&answer(&made)).unwrap();
        secrets.push(made["client_secret"].as_str().unwrap().to_owned());
        secrets.push(answer(&place.by_settings("client rotate-secret --id hub")));
        answer(&place.by_settings("client delete --id hub"));
        answer(&place.by_settings("passkey remove --user carol --all"));
        let made = place.by_settings("service-account add --json --name bot --scope usage:read");
        let made: Value = serde_json::from_str(&answer(&made)).unwrap();
        secrets.push(made["client_secret"].as_str().unwrap().to_owned());
        answer(&place.by_settings("service-account revoke --name bot"));
        answer(&place.by_settings("user disable --name carol"));
        answer(&place.by_settings("user enable --name carol"));
        // Reading leaves nothing.
        for order in ["user list", "user show --name carol", "key list", "client list"] {
            answer(&place.by_settings(order));
        }
        place
            .log("log.jsonl")
            .iter()
            .map(|event| event["did"].as_str().unwrap().to_owned())
            .collect()
    };
    let expected = [
        "person-added",
        "person-changed",
        "upstream-linked",
        "upstream-unlinked",
        "second-password-set",
        "second-password-removed",
        "token-issued",
        "key-rotated",
        "keys-replaced",
        "session-ended",
        "sessions-ended",
        "client-added",
        "client-secret-rotated",
        "client-deleted",
        "passkey-removed",
        "service-account-added",
        "service-account-revoked",
        "person-disabled",
        "person-enabled",
    ];
    assert_eq!(did, expected);
    for event in place.log("log.jsonl") {
        assert_eq!(event["service"], "authserver");
        assert_eq!(event["who"], operator());
        assert_eq!(event["outcome"], "allowed");
        assert!(event["when"].is_string() && event["to"].is_string(), "{event}");
    }
    let log = std::fs::read_to_string(place.path("log.jsonl")).unwrap();
    for secret in secrets {
        assert!(secret.trim().len() > 20 && !log.contains(secret.trim()), "{log}");
    }
    // What was changed is told.
    for known in [
        "Person carol",
        "groups staff",
        "subject 00u1 of https://login.example.com",
        "carol/lab alone",
        "2 ended",
        "of carol",
        "codes to https://hub.example.org/cb",
        "scopes usage:read",
    ] {
        assert!(log.contains(known), "{known}: {log}");
    }
}

#[tokio::test]
async fn refusals_and_failures_are_written_down_too() {
    let place = Place::new().await;
    let refused = [
        ("user disable --name nobody", "person-disabled: there is no person named nobody"),
        ("user unlink-upstream --name nobody --provider P --subject S", "there is no person named"),
        ("user link-upstream --name nobody --provider P --subject S", "issuer URL"),
        ("token --user nobody", "there is no person named nobody"),
        ("session end --id none", "session-ended: there is no session none"),
        ("client delete --id none", "there is no client none"),
        ("service-account revoke --name none", "there is no service account none"),
    ];
    for (order, _) in refused {
        let output = place.by_settings(order);
        assert!(!output.status.success() && output.stdout.is_empty(), "{order}");
        assert_eq!(text(&output.stderr).lines().count(), 1, "{}", text(&output.stderr));
    }
    let events = place.log("log.jsonl");
    assert_eq!(events.len(), refused.len());
    for (event, (order, why)) in events.iter().zip(refused) {
        assert_eq!((&event["did"], &event["outcome"]), (&"refused".into(), &"denied".into()));
        assert!(event["detail"].as_str().unwrap().contains(why), "{order}: {event}");
    }

    // A database that is not one: nothing was decided.
    std::fs::write(place.path("authserver.db"), "x".repeat(5000)).unwrap();
    for side in ["-wal", "-shm"] {
        let _ = std::fs::remove_file(place.path(&format!("authserver.db{side}")));
    }
    assert!(!place.by_settings("user disable --name carol").status.success());
    let event = place.log("log.jsonl").pop().unwrap();
    assert_eq!((&event["did"], &event["outcome"]), (&"person-disabled".into(), &"failed".into()));
}

#[tokio::test]
async fn a_log_that_cannot_be_written_keeps_everything_as_it_is() {
    let place = Place::new().await;
    let database = place.path("authserver.db");
    let at = ["--database", database.to_str().unwrap()];
    let nowhere = place.path("missing/audit.jsonl");
    let output = run("user add --name carol", &at, &[("DORMOUSE_AUDIT_FILE", &nowhere)]);
    assert!(!output.status.success());
    let told = text(&output.stderr);
    assert!(told.contains("nothing was changed: the audit log"), "{told}");
    let output = place.run("user list", &at);
    assert_eq!(answer(&output), "", "nobody was made");
    // Nor is anything made where there is no authserver.
    let empty = place.path("empty");
    std::fs::create_dir(&empty).unwrap();
    let output = place.run("user disable --name carol", &["--data-dir", empty.to_str().unwrap()]);
    assert!(text(&output.stderr).contains("there is no database"));
    assert_eq!(std::fs::read_dir(&empty).unwrap().count(), 0);
}

#[tokio::test]
async fn the_log_is_the_services_own_or_standard_error() {
    let place = Place::new().await;
    // Standard output belongs to the answer.
    let database = place.path("authserver.db");
    let at = ["--database", database.to_str().unwrap()];
    let output = place.run("user add --name carol", &at);
    assert_eq!(answer(&output), "");
    let event: Value = serde_json::from_slice(&output.stderr).unwrap();
    assert_eq!((&event["did"], &event["to"]), (&"person-added".into(), &"Person carol".into()));
    let output =
        place.run("client create --json --id hub --redirect-uri https://hub.example.org/cb", &at);
    let said: Value = serde_json::from_str(&answer(&output)).unwrap();
    assert_eq!(said["client_id"], "hub");
    assert_eq!(text(&output.stderr).lines().count(), 1);

    // The whole system on one machine has one log.
    let output = place
        .run("user disable --name carol", &["--data-dir", place.folder.path().to_str().unwrap()]);
    assert_eq!((answer(&output).as_str(), output.stderr.len()), ("", 0));
    assert_eq!(place.log("audit.jsonl")[0]["did"], "person-disabled");

    // A named file goes before that of the settings, as for the service.
    let named = place.path("named.jsonl");
    let config = place.path("authserver.toml");
    let at = ["--config", config.to_str().unwrap()];
    let output = run("user enable --name carol", &at, &[("DORMOUSE_AUDIT_FILE", &named)]);
    assert_eq!((answer(&output).as_str(), output.stderr.len()), ("", 0));
    assert_eq!((place.log("named.jsonl").len(), place.log("log.jsonl").len()), (1, 0));
}

#[tokio::test]
async fn commands_at_once_each_leave_a_whole_line() {
    let place = Place::new().await;
    answer(&place.by_settings("user add --name carol"));
    std::thread::scope(|scope| {
        for number in 0..8 {
            let place = &place;
            let order = ["user enable --name carol", "user enable --name nobody"][number % 2];
            scope.spawn(move || place.by_settings(order));
        }
    });
    let events = place.log("log.jsonl");
    let allowed = events.iter().filter(|event| event["outcome"] == "allowed").count();
    assert_eq!((events.len(), allowed), (9, 5));
}
