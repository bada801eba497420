//! The SSH authority, read by OpenSSH.

use std::process::Command;

use reqwest::{Method, StatusCode, header};
use serde_json::{Value, json};

use crate::support::*;

const KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGPKSUTyz5fOfbrU3VwNxqTV9lT9KTXMAO8LLlqEKcn4";

async fn certify(server: &Server, token: &str, key: &str) -> (StatusCode, Value) {
    let wish = json!({ "public_key": key });
    let response = server.api(Method::POST, "/ssh/certificate", token, wish).await;
    (response.status(), response.json().await.unwrap())
}

#[tokio::test]
async fn a_token_gives_a_certificate_for_a_working_day() {
    let server = Server::start().await;
    let code = Browser::default().code(&server).await;
    let (_, tokens) = server.redeem(GATE, &code).await;
    let access = text(&tokens, "access_token");
    let (status, made) = certify(&server, access, &format!("{KEY} alice@laptop")).await;
    assert_eq!(status, StatusCode::CREATED, "{made}");
    let claims = claims(access);
    assert_eq!(made["key_id"], json!(format!("alice/{}", text(&claims, "jti"))));
    assert_eq!(made["principals"], json!(["alice"]));
    let before: jiff::Timestamp = text(&made, "valid_before").parse().unwrap();
    assert_eq!(before.duration_since(server.now()).as_secs(), 8 * 3600);

    let authority = server.get("/ssh/authority").await;
    assert!(authority.headers()[header::CONTENT_TYPE].to_str().unwrap().starts_with("text/plain"));
    let authority = authority.text().await.unwrap();
    assert!(authority.starts_with("ssh-ed25519 AAAA"), "{authority}");
    // A replica has the same.
    let other = server.replica().await.get("/ssh/authority").await.text().await.unwrap();
    assert_eq!(other, authority);
    let audit = server.audited("certificate-issued").await;
    assert!(audit.contains("Key SHA256:"), "{audit}");

    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let certificate = file("key-cert.pub", text(&made, "certificate"));
    let read = |option: &str, path: &std::path::Path| {
        Command::new("ssh-keygen").env("TZ", "UTC").arg(option).arg("-f").arg(path).output()
    };
    let shown = read("-L", &certificate).expect("OpenSSH is installed; run scripts/setup test");
    let shown = String::from_utf8(shown.stdout).unwrap();
    let fingerprint = read("-l", &file("authority.pub", &authority)).unwrap();
    let fingerprint = String::from_utf8(fingerprint.stdout).unwrap();
    for part in [
        "ssh-ed25519-cert-v01@openssh.com user certificate",
        fingerprint.split(' ').nth(1).unwrap(),
        &format!("Serial: {}", made["serial"]),
        "Principals: \n                alice\n",
        "Critical Options: (none)",
        "permit-port-forwarding\n",
        "permit-pty\n",
    ] {
        assert!(shown.contains(part), "{part:?} is not in {shown}");
    }
    assert!(!shown.contains("agent-forwarding") && !shown.contains("X11"), "{shown}");
}

#[tokio::test]
async fn certificates_are_for_people_who_may_and_for_keys() {
    let server = Server::start().await;
    let response = server.request(Method::POST, "/ssh/certificate").json(&json!({})).send().await;
    assert_eq!(response.unwrap().status(), StatusCode::UNAUTHORIZED);
    let alice = server.personal_token("alice", 3600).await;
    for bad in ["", "ssh-ed25519 AAAA", "ssh-dss AAAA", &format!("{KEY}\n{KEY}")] {
        assert_eq!(certify(&server, &alice, bad).await.0, StatusCode::BAD_REQUEST, "{bad}");
    }
    // It does not outlive the personal token that it was made with.
    let (_, made) = certify(&server, &alice, KEY).await;
    let before: jiff::Timestamp = text(&made, "valid_before").parse().unwrap();
    assert_eq!(before.duration_since(server.now()).as_secs(), 3600);
    // A token that opens nothing makes none.
    let new = json!({ "name": "x", "expires_in": 60, "scope": "openid usage:read" });
    let narrow = server.api(Method::POST, "/tokens", &alice, new).await;
    let narrow: Value = narrow.json().await.unwrap();
    let (status, _) = certify(&server, text(&narrow, "token"), KEY).await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    // Nor does somebody who is disabled.
    server.store.disable_user(&"alice".parse().unwrap(), server.now()).await.unwrap();
    assert_eq!(certify(&server, &alice, KEY).await.0, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn certificates_are_made_at_a_steady_pace() {
    let server = Server::start().await;
    let alice = server.personal_token("alice", 3600).await;
    for _ in 0..20 {
        assert_eq!(certify(&server, &alice, KEY).await.0, StatusCode::CREATED);
    }
    assert_eq!(certify(&server, &alice, KEY).await.0, StatusCode::TOO_MANY_REQUESTS);
    let bob = server.personal_token("bob", 3600).await;
    assert_eq!(certify(&server, &bob, KEY).await.0, StatusCode::CREATED);
}

#[tokio::test]
async fn gateways_learn_the_authority_and_the_people() {
    let server = Server::start().await;
    let feed = async |after: &str| -> Value {
        let request = server.request(Method::GET, &format!("/internal/ssh-keys?after={after}"));
        let response = request.basic_auth(GATE.0, Some(GATE.1)).send().await.unwrap();
        response.json().await.unwrap()
    };
    let first = feed("").await;
    let authority = server.get("/ssh/authority").await.text().await.unwrap();
    assert!(authority.starts_with(first["authorities"][0].as_str().unwrap()));
    let names = |list: &Value| -> Vec<String> {
        let people = list["people"].as_array().unwrap();
        let mut names: Vec<_> = people.iter().map(|p| text(p, "user").to_owned()).collect();
        names.sort();
        names
    };
    assert_eq!(names(&first), ["alice", "bob"]);
    server.store.disable_user(&"bob".parse().unwrap(), server.now()).await.unwrap();
    let second = feed(&first["version"].to_string()).await;
    assert_eq!(names(&second), ["alice"]);
    assert_eq!(second["people"][0]["groups"], json!(["ml"]));
    let carol =
        authserver::NewPerson { name: "carol".parse().unwrap(), email: None, groups: Vec::new() };
    server.store.ensure_user(&carol, None, server.now()).await.unwrap();
    let third = feed(&second["version"].to_string()).await;
    assert_eq!(names(&third), ["alice", "carol"]);
}
