//! Clients that an operator makes by command, beside those of the settings.

use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};

use authserver::{ClientConfig, GrantType, StoreError};
use axum::{Json, Router, routing::get};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::{net::TcpListener, time::timeout};

use crate::support::*;

const HUB_CALLBACK: &str = "https://hub.example/cb";

fn hub() -> ClientConfig {
    let redirect_uris = vec![HUB_CALLBACK.to_owned()];
    ClientConfig { redirect_uris, ..ClientConfig::named("hub".to_owned()) }
}

/// Signs alice in to the client.
async fn sign_in(server: &Server, secret: &str) -> (StatusCode, Value) {
    let path = authorize_with(&[("client_id", "hub"), ("redirect_uri", HUB_CALLBACK)]);
    let to = Browser::default().sign_in(server, &path, "alice").await;
    let code = query(&to)["code"].clone();
    let form =
        code_form(&code).map(|(n, v)| (n, if n == "redirect_uri" { HUB_CALLBACK } else { v }));
    server.token(("hub", secret), &form).await
}

async fn refresh(server: &Server, secret: &str, tokens: &Value) -> (StatusCode, Value) {
    let token = text(tokens, "refresh_token");
    let form = [("grant_type", "refresh_token"), ("refresh_token", token)];
    server.token(("hub", secret), &form).await
}

#[tokio::test]
async fn an_operators_client_works_at_once_and_outlives_a_restart() {
    let server = Server::start().await;
    let secret = server.store.add_client(&hub(), server.now()).await.unwrap().unwrap();
    let (status, tokens) = sign_in(&server, &secret).await;
    assert_eq!(status, StatusCode::OK, "{tokens}");
    assert_eq!(refresh(&server, "another secret", &tokens).await.0, StatusCode::UNAUTHORIZED);
    // Another server reads the settings, in which it is not.
    let replica = server.replica().await;
    assert_eq!(refresh(&replica, &secret, &tokens).await.0, StatusCode::OK);
}

#[tokio::test]
async fn a_new_secret_replaces_the_old_one() {
    let server = Server::start().await;
    let old = server.store.add_client(&hub(), server.now()).await.unwrap().unwrap();
    let tokens = sign_in(&server, &old).await.1;
    let new = server.store.rotate_client_secret("hub").await.unwrap();
    let (status, tokens) = refresh(&server, &new, &tokens).await;
    assert_eq!(status, StatusCode::OK, "{tokens}");
    let refused = async || refresh(&server, &old, &tokens).await.0 == StatusCode::UNAUTHORIZED;
    until(refused).await;
    assert_eq!(refresh(&server, &new, &tokens).await.0, StatusCode::OK);
}

/// Waits for what every server sees within a second or so.
async fn until(seen: impl AsyncFn() -> bool) {
    let wait = async {
        while !seen().await {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(20), wait).await.unwrap();
}

#[tokio::test]
async fn with_a_client_goes_all_that_it_was_given() {
    let server = Server::start().await;
    let secret = server.store.add_client(&hub(), server.now()).await.unwrap().unwrap();
    let tokens = sign_in(&server, &secret).await.1;
    server.store.remove_client("hub", server.now()).await.unwrap();
    assert_ne!(refresh(&server, &secret, &tokens).await.0, StatusCode::OK);
    let access = text(&tokens, "access_token");
    let response = server.api(Method::GET, "/userinfo", access, Value::Null).await;
    assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
    // The gateways hear of it.
    let feed = server.request(Method::GET, "/internal/revocations");
    let feed = feed.basic_auth(GATE.0, Some(GATE.1)).send().await.unwrap().text().await.unwrap();
    assert!(feed.contains(text(&claims(access), "jti")), "{feed}");
}

#[tokio::test]
async fn what_a_client_is_given_while_it_goes_is_withdrawn_too() {
    let server = Server::start().await;
    let secret = server.store.add_client(&hub(), server.now()).await.unwrap().unwrap();
    sign_in(&server, &secret).await;
    let begin = if on_postgres() { "BEGIN" } else { "BEGIN IMMEDIATE" };
    let mut tx = pool(&server).await.begin_with(begin).await.unwrap();
    for statement in [
        "INSERT INTO grants (id, session_id, client_id, scope, created_at)
         SELECT 'late', session_id, 'hub', scope, created_at FROM grants WHERE client_id = 'hub'",
        "INSERT INTO access_tokens (jti, grant_id, expires_at)
         SELECT 'late token', 'late', max(expires_at) FROM access_tokens",
    ] {
        sqlx::query(statement).execute(&mut *tx).await.unwrap();
    }
    let mut going = pin!(server.store.remove_client("hub", server.now()));
    // It waits for what is being given.
    assert!(timeout(Duration::from_millis(500), &mut going).await.is_err());
    tx.commit().await.unwrap();
    going.await.unwrap();
    let feed = server.request(Method::GET, "/internal/revocations");
    let feed = feed.basic_auth(GATE.0, Some(GATE.1)).send().await.unwrap().text().await.unwrap();
    assert!(feed.contains("late token"), "{feed}");
}

#[tokio::test]
async fn with_a_client_that_leaves_the_settings_goes_all_that_it_was_given() {
    let server = Server::start().await;
    let callback = "https://other.example/cb";
    let path = authorize_with(&[("client_id", OTHER.0), ("redirect_uri", callback)]);
    let mut browser = Browser::default();
    let redeem = async |code: &str| {
        let form =
            code_form(code).map(|(n, v)| (n, if n == "redirect_uri" { callback } else { v }));
        server.token(OTHER, &form).await.1
    };
    let code = query(&browser.sign_in(&server, &path, "alice").await)["code"].clone();
    let tokens = redeem(&code).await;
    let gates = server.redeem(GATE, &browser.code(&server).await).await.1;
    let (lost, stays) = (text(&tokens, "access_token"), text(&gates, "access_token"));

    let later = server.replica_changed(|config| config.clients.retain(|c| c.id != OTHER.0)).await;
    let feed = later.request(Method::GET, "/internal/revocations");
    let feed = feed.basic_auth(GATE.0, Some(GATE.1)).send().await.unwrap().text().await.unwrap();
    assert!(feed.contains(text(&claims(lost), "jti")), "{feed}");
    assert!(!feed.contains(text(&claims(stays), "jti")), "{feed}");
    let status =
        async |token| server.api(Method::GET, "/userinfo", token, Value::Null).await.status();
    assert_eq!(status(lost).await, StatusCode::UNAUTHORIZED);
    assert_eq!(status(stays).await, StatusCode::OK);
    // Nor is a client of the same id, which comes later, given anything for the old tokens.
    let back = server
        .replica_changed(|config| {
            let again = config.clients.iter_mut().find(|client| client.id == OTHER.0);
            again.unwrap().name = Some("The other".to_owned());
        })
        .await;
    let form = [("grant_type", "refresh_token"), ("refresh_token", text(&tokens, "refresh_token"))];
    let (status, error) = back.token(OTHER, &form).await;
    assert_eq!((status, text(&error, "error")), (StatusCode::BAD_REQUEST, "invalid_grant"));
}

const TOOL: &str = "http://127.0.0.1:54321/cb";

/// Tokens for the public `tool`, which has taken a port that is free (RFC 8252, section 7.3).
async fn tool(server: &Server, scope: &str) -> Value {
    let fields = [("client_id", "tool"), ("redirect_uri", TOOL), ("scope", scope)];
    let to = Browser::default().sign_in(server, &authorize_with(&fields), "alice").await;
    assert!(to.starts_with(TOOL), "{to}");
    let form = [
        ("client_id", "tool"),
        ("grant_type", "authorization_code"),
        ("code", &query(&to)["code"]),
        ("redirect_uri", TOOL),
        ("code_verifier", VERIFIER),
    ];
    let (status, tokens) = server.post("/token", &form).await;
    assert_eq!(status, StatusCode::OK, "{tokens}");
    tokens
}

async fn refreshed(server: &Server, tokens: &Value) -> (StatusCode, Value) {
    let form = [
        ("client_id", "tool"),
        ("grant_type", "refresh_token"),
        ("refresh_token", text(tokens, "refresh_token")),
    ];
    server.post("/token", &form).await
}

#[tokio::test]
async fn attack_17_what_is_taken_from_a_client_is_gone_at_the_next_refresh() {
    let server = Server::start().await;
    let tokens = tool(&server, "openid profile email").await;
    assert_eq!(tokens["scope"], "openid profile email");
    let narrowed = async |scopes: &[&str]| {
        let scopes: Vec<String> = scopes.iter().map(|&one| one.to_owned()).collect();
        let change = |config: &mut authserver::Config| {
            config.clients.iter_mut().find(|client| client.id == "tool").unwrap().scopes = scopes;
        };
        server.replica_changed(change).await
    };
    let later = narrowed(&["openid", "groups"]).await;
    let (status, less) = refreshed(&later, &tokens).await;
    assert_eq!((status, &less["scope"]), (StatusCode::OK, &json!("openid")), "{less}");
    assert_eq!(claims(text(&less, "access_token"))["scope"], "openid");
    let (status, error) = refreshed(&narrowed(&["groups"]).await, &less).await;
    assert_eq!((status, text(&error, "error")), (StatusCode::BAD_REQUEST, "invalid_scope"));
}

#[tokio::test]
async fn an_old_replica_that_restarts_during_a_rollout_keeps_the_new_client_and_what_it_gave() {
    let server = Server::start().await;
    let without = |config: &mut authserver::Config| config.clients.retain(|c| c.id != "tool");
    // Everybody without the client, then a replica with it, then one of the old ones starts again.
    let old = server.replica_changed(without).await;
    let new = server
        .replica_changed(|config| {
            let tool = config.clients.iter_mut().find(|client| client.id == "tool");
            tool.unwrap().name = Some("The new tool".to_owned());
        })
        .await;
    let tokens = tool(&new, "openid").await;
    drop(old);
    let again = server.replica_changed(without).await;
    for server in [&new, &again] {
        assert_eq!(refreshed(server, &tokens).await.0, StatusCode::OK);
    }
}

#[tokio::test]
async fn what_cannot_be_is_told() {
    let server = Server::start().await;
    let (store, now) = (&server.store, server.now());
    store.add_client(&hub(), now).await.unwrap();
    let taken = store.add_client(&hub(), now).await.unwrap_err();
    assert!(matches!(taken, StoreError::ClientTaken(id) if id == "hub"));
    let of_settings = store.rotate_client_secret("other").await.unwrap_err();
    assert!(of_settings.to_string().contains("settings' file"), "{of_settings}");
    assert!(store.remove_client("other", now).await.is_err());
    assert!(matches!(store.remove_client("none", now).await, Err(StoreError::NoSuchClient(_))));
    let public = ClientConfig { public: true, ..ClientConfig::named("app".to_owned()) };
    let address = store.add_client(&public, now).await.unwrap_err();
    assert!(address.to_string().contains("redirect URI"), "{address}");
    let redirect_uris = vec!["http://127.0.0.1:1/cb".to_owned()];
    let public = ClientConfig { redirect_uris, ..public };
    assert_eq!(store.add_client(&public, now).await.unwrap(), None, "it keeps no secret");
    assert!(store.rotate_client_secret("app").await.is_err());
    let listed = store.list_clients().await.unwrap();
    let shown = |id: &str| json!(listed.iter().find(|client| client.id == id).unwrap());
    assert_eq!(shown("app")["auth_method"], "none");
    assert_eq!(shown("signed")["auth_method"], "private_key_jwt");
    assert_eq!(
        (&shown("hub")["in_settings"], &shown("other")["in_settings"]),
        (&json!(false), &json!(true))
    );
    assert!(!json!(listed).to_string().contains("secret_digest"));
}

/// A client's own host, which publishes the key of that number.
async fn key_host(number: Arc<AtomicU8>) -> String {
    let answer = move || {
        let number = number.load(Ordering::SeqCst);
        async move { Json(keys::jwks(number)) }
    };
    let router = Router::new().route("/jwks.json", get(answer));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let uri = format!("http://{}/jwks.json", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await });
    uri
}

#[tokio::test]
async fn a_client_changes_its_keys_at_its_own_address() {
    let number = Arc::new(AtomicU8::new(1));
    let uri = key_host(number.clone()).await;
    let server = Server::start_changed(|_, config| config.private_key_sets = true).await;
    let grant_types = vec![GrantType::AuthorizationCode, GrantType::DeviceCode];
    let own = ClientConfig { jwks_uri: Some(uri), grant_types, ..hub() };
    assert_eq!(server.store.add_client(&own, server.now()).await.unwrap(), None);
    // What is asked for does not matter: it is the assertion that is looked at.
    let ask = async |key: u8, jti: &str| {
        let proof = keys::assertion(key, "hub", jti, server.now().as_second());
        let form = [
            ("grant_type", "urn:ietf:params:oauth:grant-type:device_code"),
            ("device_code", "x"),
            ("client_assertion_type", keys::JWT_BEARER),
            ("client_assertion", proof.as_str()),
        ];
        let (_, answer) = server.post("/token", &form).await;
        text(&answer, "error").to_owned()
    };
    assert_eq!(ask(1, "1").await, "invalid_grant");
    assert_eq!(ask(2, "2").await, "invalid_client");
    number.store(2, Ordering::SeqCst);
    // Not for each stranger's word; but soon.
    assert_eq!(ask(2, "3").await, "invalid_client");
    server.wait(30);
    assert_eq!(ask(2, "4").await, "invalid_grant");
    assert_eq!(ask(1, "5").await, "invalid_client");
}
