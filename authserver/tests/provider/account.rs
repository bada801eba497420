//! Personal access tokens and SSH keys.

use std::time::Duration;

use authserver::NewPersonalToken;
use domain::{identity::CredentialKind, token::TokenError};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::{keys::SshKey, *};

const KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGPKSUTyz5fOfbrU3VwNxqTV9lT9KTXMAO8LLlqEKcn4";

/// An access token of somebody who has just signed in.
async fn fresh_token(server: &Server, name: &str) -> String {
    let code = Browser::default().code_of(server, name).await;
    text(&server.redeem(GATE, &code).await.1, "access_token").to_owned()
}

/// Registers a key by the API, as its holder.
async fn register(server: &Server, token: &str, name: &str, key: &SshKey) -> reqwest::Response {
    let asked = server.api(Method::POST, "/ssh/keys/challenge", token, Value::Null).await;
    assert_eq!(asked.status(), StatusCode::OK);
    let asked = body(asked).await;
    let new = json!({
        "name": name, "challenge": asked["challenge"], "signature": key.sign(text(&asked, "text")),
    });
    server.api(Method::POST, "/ssh/keys", token, new).await
}

async fn body(response: reqwest::Response) -> Value {
    response.json().await.unwrap()
}

#[tokio::test]
async fn personal_tokens_are_made_listed_and_withdrawn() {
    let server = Server::start().await;
    let own = server.personal_token("alice", 7200).await;
    let new = json!({ "name": "laptop", "expires_in": 3600 });
    let response = server.api(Method::POST, "/tokens", &own, new).await;
    assert_eq!(response.status(), StatusCode::CREATED);
    let created = body(response).await;
    let token = text(&created, "token");
    let identity = server.verifier().await.verify(token, server.now()).unwrap();
    assert_eq!(identity.user.as_str(), "alice");
    assert_eq!(identity.credential.kind, CredentialKind::PersonalAccessToken);
    assert_eq!(identity.credential.id, text(&created, "id"));

    let listed = body(server.api(Method::GET, "/tokens", &own, Value::Null).await).await;
    assert_eq!(listed["tokens"].as_array().unwrap().len(), 2);
    assert!(!listed.to_string().contains(token));
    let path = format!("/tokens/{}", text(&created, "id"));
    let bob = server.personal_token("bob", 3600).await;
    let response = server.api(Method::DELETE, &path, &bob, Value::Null).await;
    assert_eq!(response.status(), StatusCode::NOT_FOUND);
    let response = server.api(Method::DELETE, &path, &own, Value::Null).await;
    assert_eq!(response.status(), StatusCode::NO_CONTENT);
    let response = server.api(Method::GET, "/userinfo", token, Value::Null).await;
    assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn a_personal_token_makes_none_that_outlives_it_or_can_do_more() {
    let server = Server::start().await;
    let own = server.personal_token("alice", 3600).await;
    let make = |new: Value| server.api(Method::POST, "/tokens", &own, new);
    let longer = json!({ "name": "x", "expires_in": 3601 });
    assert_eq!(make(longer).await.status(), StatusCode::FORBIDDEN);
    let narrow = json!({ "name": "x", "expires_in": 60, "scope": "openid" });
    let narrow = body(make(narrow).await).await;
    let narrow = text(&narrow, "token");
    let response = server.api(Method::GET, "/tokens", narrow, Value::Null).await;
    assert_eq!(response.status(), StatusCode::FORBIDDEN);
    for bad in [
        json!({ "name": "x", "expires_in": 59 }),
        json!({ "name": "x", "expires_in": u64::MAX }),
        json!({ "name": "", "expires_in": 60 }),
        json!({ "name": "a\nb", "expires_in": 60 }),
        json!({ "name": "x", "expires_in": 60, "scope": "openid root" }),
        json!({ "name": "x", "expires_in": 60, "scope": "admin" }),
        json!({ "name": "x", "expires_in": 60, "scope": "" }),
        json!({ "name": "x", "expires": 60 }),
        json!([]),
    ] {
        assert_eq!(make(bad.clone()).await.status(), StatusCode::BAD_REQUEST, "{bad}");
    }
    // A session may: its tokens are short-lived, and it was proven by a password.
    let code = Browser::default().code(&server).await;
    let (_, tokens) = server.redeem(GATE, &code).await;
    let access = text(&tokens, "access_token");
    let month = json!({ "name": "month" });
    let response = server.api(Method::POST, "/tokens", access, month).await;
    assert_eq!(response.status(), StatusCode::CREATED);
}

#[tokio::test]
async fn a_token_of_a_sign_in_that_is_a_while_ago_makes_no_personal_one() {
    let server = Server::start().await;
    let code = Browser::default().code(&server).await;
    let (_, tokens) = server.redeem(GATE, &code).await;
    server.wait(15 * 60);
    let (_, later) = server.refresh(text(&tokens, "refresh_token")).await;
    let access = text(&later, "access_token");
    let response = server.api(Method::POST, "/tokens", access, json!({ "name": "month" })).await;
    assert_eq!(response.status(), StatusCode::FORBIDDEN);
    assert!(response.text().await.unwrap().contains("sign in again"));
    assert_eq!(
        server.api(Method::GET, "/tokens", access, Value::Null).await.status(),
        StatusCode::OK
    );
}

#[tokio::test]
async fn operators_choose_lifetime_and_audience() {
    let server = Server::start().await;
    let verifier = server.verifier().await;
    let issuer = ISSUER.parse().unwrap();
    let alice = "alice".parse().unwrap();
    let foreign = NewPersonalToken::full("foreign", Duration::from_secs(60), "elsewhere");
    let foreign = server.store.issue_personal_token(&issuer, &alice, foreign, server.now()).await;
    let (foreign, _) = foreign.unwrap();
    assert_eq!(verifier.verify(&foreign, server.now()), Err(TokenError::Audience));
    let response = server.api(Method::GET, "/userinfo", &foreign, Value::Null).await;
    assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
    let short = server.personal_token("alice", 1).await;
    assert!(verifier.verify(&short, server.now()).is_ok());
    server.wait(31);
    assert_eq!(verifier.verify(&short, server.now()), Err(TokenError::Expired));
    let nobody = "nobody".parse().unwrap();
    let new = NewPersonalToken::full("x", Duration::from_secs(60), "dormouse");
    assert!(server.store.issue_personal_token(&issuer, &nobody, new, server.now()).await.is_err());
}

#[tokio::test]
async fn attack_6_a_malformed_authorization_header_is_refused() {
    let server = Server::start().await;
    for header in ["Bearer", "Bearer ", "Bearer x", "Basic eDp4", "bearer a.b.c", "x"] {
        let request = server.request(Method::GET, "/userinfo").header("authorization", header);
        assert_eq!(request.send().await.unwrap().status(), StatusCode::UNAUTHORIZED, "{header}");
    }
    let response = server.get("/tokens").await;
    assert_eq!(response.headers()["www-authenticate"], "Bearer realm=\"dormouse\"");
    assert_eq!(response.headers()["content-type"], "application/problem+json");
    // A browser's cookie is nothing here: no site can make a browser change an account.
    let mut browser = Browser::default();
    browser.code(&server).await;
    assert_eq!(browser.open(&server, "/tokens").await.status(), StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn keys_are_registered_and_reach_the_gateways() {
    let server = Server::start().await;
    let (alice, key) = (fresh_token(&server, "alice").await, SshKey::new(7));
    let feed = |after: &str| {
        let request = server.request(Method::GET, &format!("/internal/ssh-keys?after={after}"));
        request.basic_auth(GATE.0, Some(GATE.1)).send()
    };
    let first = body(feed("").await.unwrap()).await;
    assert_eq!(first["keys"], json!([]));
    let version = first["version"].to_string();

    // A reader that is up to date is held until something changes.
    let (held, added) = tokio::join!(feed(&version), register(&server, &alice, "laptop", &key));
    assert_eq!(added.status(), StatusCode::CREATED);
    let second = body(held.unwrap()).await;
    let told = &second["keys"][0];
    assert_eq!((text(told, "user"), text(told, "public_key")), ("alice", &*key.line));
    assert_eq!(told["groups"], json!(["ml"]));
    assert!(text(told, "fingerprint").starts_with("SHA256:"));

    // Again is a renewal; but not for another who has the same key.
    let again = register(&server, &alice, "laptop", &key).await;
    assert_eq!(again.status(), StatusCode::CREATED);
    let bob = fresh_token(&server, "bob").await;
    let taken = register(&server, &bob, "mine", &key).await;
    assert_eq!(taken.status(), StatusCode::CONFLICT);
    let bad = json!({ "name": "x", "challenge": "x", "signature": "y" });
    let bad = server.api(Method::POST, "/ssh/keys", &alice, bad).await;
    assert_eq!(bad.status(), StatusCode::BAD_REQUEST);

    let name: domain::name::UserName = "alice".parse().unwrap();
    server.store.disable_user(&name, server.now()).await.unwrap();
    let third = body(feed("0").await.unwrap()).await;
    assert_eq!(third["keys"], json!([]));
    server.store.enable_user(&name).await.unwrap();
    // The key ended with the token that it was made with.
    let refused = server.api(Method::GET, "/ssh/keys", &alice, Value::Null).await;
    assert_eq!(refused.status(), StatusCode::UNAUTHORIZED);
    let alice = fresh_token(&server, "alice").await;
    let listed = body(server.api(Method::GET, "/ssh/keys", &alice, Value::Null).await).await;
    assert_eq!(listed["keys"], json!([]));
    register(&server, &alice, "laptop", &key).await;
    let which = json!({ "name": "laptop" });
    for status in [StatusCode::NO_CONTENT, StatusCode::NOT_FOUND] {
        let response = server.api(Method::DELETE, "/ssh/keys", &alice, which.clone()).await;
        assert_eq!(response.status(), status);
    }
    let last = body(feed("0").await.unwrap()).await;
    assert_eq!(last["keys"], json!([]));
    assert!(last["version"].as_i64() > second["version"].as_i64());
}

#[tokio::test]
async fn only_the_gate_reads_the_feed() {
    let server = Server::start().await;
    let get = || server.request(Method::GET, "/internal/ssh-keys");
    assert_eq!(get().send().await.unwrap().status(), StatusCode::UNAUTHORIZED);
    let wrong = get().basic_auth(GATE.0, Some("wrong")).send().await.unwrap();
    assert_eq!(wrong.status(), StatusCode::UNAUTHORIZED);
    let other = get().basic_auth(OTHER.0, Some(OTHER.1)).send().await.unwrap();
    assert_eq!(other.status(), StatusCode::FORBIDDEN);
    let token = server.personal_token("alice", 3600).await;
    let person = get().bearer_auth(token).send().await.unwrap();
    assert_eq!(person.status(), StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn the_database_is_private_and_people_stay_who_they_are() {
    use std::os::unix::fs::PermissionsExt;
    let server = Server::start().await;
    let files: &[&str] =
        if on_postgres() { &[] } else { &["auth.db", "auth.db-wal", "auth.db-shm"] };
    for name in files {
        let file = std::fs::metadata(server.folder.path().join(name)).unwrap();
        assert_eq!(file.permissions().mode() & 0o777, 0o600, "{name}");
    }
    let name: domain::name::UserName = "alice".parse().unwrap();
    let before = server.store.person(&name).await.unwrap().unwrap();
    let person = authserver::NewPerson { name, email: None, groups: vec!["x".to_owned()] };
    let after = server.store.ensure_user(&person, Some("another"), start()).await.unwrap();
    assert_eq!(before.subject, after.subject);
    assert_eq!(after.groups, ["x"]);
    let names: Vec<String> =
        server.store.list_users().await.unwrap().iter().map(|p| p.name.to_string()).collect();
    assert_eq!(names, ["alice", "bob"]);
}

#[tokio::test]
async fn a_token_may_be_limited_to_one_workload() {
    let server = Server::start().await;
    let own = server.personal_token("alice", 7200).await;
    let make = |new: Value| server.api(Method::POST, "/tokens", &own, new);
    let created =
        body(make(json!({ "name": "ci", "expires_in": 60, "workload": "alice/echo" })).await).await;
    assert_eq!(created["workload"], "alice/echo");
    let token = text(&created, "token");
    let identity = server.verifier().await.verify(token, server.now()).unwrap();
    assert_eq!(identity.credential.workload.as_deref(), Some("alice/echo"));
    // Whoever finds it comes by no other credential: neither a token, nor a key, nor a certificate.
    assert_eq!(identity.credential.scopes, ["workload:use", "workload:manage"]);
    for (path, new) in [
        ("/tokens", json!({ "name": "x", "expires_in": 60 })),
        ("/ssh/keys", json!({ "name": "x", "public_key": KEY })),
        ("/ssh/certificate", json!({ "public_key": KEY })),
    ] {
        let response = server.api(Method::POST, path, token, new).await;
        assert_eq!(response.status(), StatusCode::FORBIDDEN, "{path}");
    }
    for bad in [
        json!({ "name": "x", "expires_in": 60, "workload": "echo" }),
        json!({ "name": "x", "expires_in": 60, "workload": "" }),
        json!({ "name": "x", "expires_in": 60, "workload": "alice/echo", "scope": "workload:use account" }),
    ] {
        assert_eq!(make(bad.clone()).await.status(), StatusCode::BAD_REQUEST, "{bad}");
    }
}

#[tokio::test]
async fn the_last_use_of_a_token_is_shown() {
    let server = Server::start().await;
    let own = server.personal_token("alice", 7200).await;
    let new = json!({ "name": "laptop", "expires_in": 3600 });
    let created = body(server.api(Method::POST, "/tokens", &own, new).await).await;
    assert_eq!(created["used_at"], Value::Null);
    let (id, token) = (text(&created, "id"), text(&created, "token"));
    let used_at = async || {
        let listed = body(server.api(Method::GET, "/tokens", &own, Value::Null).await).await;
        let tokens = listed["tokens"].as_array().unwrap().clone();
        tokens.into_iter().find(|one| one["id"] == id).unwrap()["used_at"].clone()
    };
    assert_eq!(used_at().await, Value::Null);
    server.api(Method::GET, "/userinfo", token, Value::Null).await;
    let first = server.now();
    assert_eq!(used_at().await, json!(first));
    // A gateway has seen it, and one whose clock is ahead.
    let report = async |client: (&str, &str), at: i64| {
        let uses = json!({ "uses": [{ "id": id, "at": at }, { "id": "unknown", "at": at }] });
        let request = server.request(Method::POST, "/internal/token-uses");
        request.basic_auth(client.0, Some(client.1)).json(&uses).send().await.unwrap().status()
    };
    server.wait(600);
    let second = first.as_second() + 300;
    assert_eq!(report(OTHER, second).await, StatusCode::FORBIDDEN);
    assert_eq!(report(GATE, second).await, StatusCode::NO_CONTENT);
    assert_eq!(used_at().await, json!(jiff::Timestamp::from_second(second).unwrap()));
    report(GATE, first.as_second()).await;
    report(GATE, i64::MAX).await;
    assert_eq!(used_at().await, json!(server.now()));
}
