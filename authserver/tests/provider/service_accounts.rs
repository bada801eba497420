//! Programs that act for themselves (RFC 6749, section 4.4).

use std::time::Duration;

use authserver::{NewServiceAccount, Proof};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::{keys, keys::JWT_BEARER, *};

const FORM: (&str, &str) = ("grant_type", "client_credentials");

fn account<'a>(name: &str, proof: Proof<'a>) -> NewServiceAccount<'a> {
    NewServiceAccount {
        name: name.parse().unwrap(),
        groups: &[],
        scopes: "workload:use usage:read",
        workload: Some("alice/lab"),
        proof,
        lifetime: Some(Duration::from_secs(3600)),
    }
}

#[tokio::test]
async fn a_service_account_gets_tokens_of_its_own() {
    let server = Server::start().await;
    let new = account("robot", Proof::Secret);
    let (id, secret) = server.store.add_service_account(new, server.now()).await.unwrap();
    let robot = (id.as_str(), secret.as_deref().unwrap());
    let (status, tokens) = server.token(robot, &[FORM]).await;
    assert_eq!(status, StatusCode::OK, "{tokens}");
    assert!(tokens.get("refresh_token").is_none() && tokens.get("id_token").is_none());
    assert_eq!(tokens["scope"], "workload:use usage:read");
    let identity = server.verifier().await;
    let identity = identity.verify(text(&tokens, "access_token"), server.now()).unwrap();
    assert_eq!(identity.user.as_str(), "robot");
    assert_eq!(identity.credential.workload.as_deref(), Some("alice/lab"));
    assert_eq!(identity.credential.scopes, ["workload:use", "usage:read"]);

    let narrow = server.token(robot, &[FORM, ("scope", "usage:read")]).await.1;
    assert_eq!(narrow["scope"], "usage:read");
    for more in ["admin", "usage:read account", "nothing"] {
        assert_eq!(server.token(robot, &[FORM, ("scope", more)]).await.1["error"], "invalid_scope");
    }
    let elsewhere = [FORM, ("resource", "https://api.example")];
    assert_eq!(server.token(robot, &elsewhere).await.1["error"], "invalid_target");
    assert_eq!(server.token((robot.0, "wrong"), &[FORM]).await.0, StatusCode::UNAUTHORIZED);
    let code = [("grant_type", "authorization_code"), ("code", "x")];
    assert_eq!(server.token(robot, &code).await.1["error"], "unauthorized_client");
    // It has no account to manage, and nobody signs in as it.
    let token = text(&tokens, "access_token");
    let response = server.api(Method::GET, "/tokens", token, Value::Null).await;
    assert_eq!(response.status(), StatusCode::FORBIDDEN);
    let mut browser = Browser::default();
    let page = browser.open(&server, &authorize_with(&[])).await.text().await.unwrap();
    let response = browser.submit(&server, &ticket(&page), "robot", "").await;
    assert_eq!(response.status(), StatusCode::FORBIDDEN);

    let listed = server.store.service_accounts().await.unwrap();
    assert_eq!(listed[0].used_at, Some(server.now()));
    assert!(!json!(listed).to_string().contains(robot.1));
}

#[tokio::test]
async fn a_service_account_may_have_a_key() {
    let server = Server::start().await;
    let jwks = keys::jwks(3).to_string();
    let new = account("robot", Proof::Keys(&jwks));
    let (id, secret) = server.store.add_service_account(new, server.now()).await.unwrap();
    assert!(secret.is_none());
    let ask = async |seed, jti| {
        let proof = keys::assertion(seed, &id, jti, server.now().as_second());
        let form = [FORM, ("client_assertion_type", JWT_BEARER), ("client_assertion", &proof)];
        server.post("/token", &form).await.0
    };
    assert_eq!(ask(3, "1").await, StatusCode::OK);
    assert_eq!(ask(3, "1").await, StatusCode::UNAUTHORIZED);
    assert_eq!(ask(4, "2").await, StatusCode::UNAUTHORIZED);
    assert_eq!(ask(3, "2").await, StatusCode::OK);
}

#[tokio::test]
async fn attack_17_a_service_account_ends_with_its_tokens() {
    let server = Server::start().await;
    let new = account("robot", Proof::Secret);
    let (id, secret) = server.store.add_service_account(new, server.now()).await.unwrap();
    let robot = (id.as_str(), secret.as_deref().unwrap());
    let (_, tokens) = server.token(robot, &[FORM]).await;
    let active = async || {
        let form = [("token", text(&tokens, "access_token"))];
        let ask = server.request(Method::POST, "/introspect").basic_auth(GATE.0, Some(GATE.1));
        let answer: Value = ask.form(&form).send().await.unwrap().json().await.unwrap();
        answer["active"].as_bool().unwrap()
    };
    assert!(active().await);
    let name = "robot".parse().unwrap();
    assert!(server.store.revoke_service_account(&name, server.now()).await.unwrap());
    assert!(!active().await);
    assert_eq!(server.token(robot, &[FORM]).await.0, StatusCode::UNAUTHORIZED);

    // One that expires does not leave tokens behind that outlive it.
    let new = account("short", Proof::Secret);
    let (id, secret) = server.store.add_service_account(new, server.now()).await.unwrap();
    server.wait(3600 - 60);
    let short = (id.as_str(), secret.as_deref().unwrap());
    assert_eq!(server.token(short, &[FORM]).await.1["expires_in"], 60);
    server.wait(60);
    assert_eq!(server.token(short, &[FORM]).await.0, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn nobody_shares_a_name_with_a_service_account() {
    let server = Server::start().await;
    let new = account("alice", Proof::Secret);
    assert!(server.store.add_service_account(new, server.now()).await.is_err());
    for (scopes, workload) in
        [("account", None), ("", None), ("openid usage:read", None), ("admin", Some("lab"))]
    {
        let new = NewServiceAccount { scopes, workload, ..account("x", Proof::Secret) };
        assert!(server.store.add_service_account(new, server.now()).await.is_err(), "{scopes}");
    }
    let new = account("x", Proof::Keys("{}"));
    assert!(server.store.add_service_account(new, server.now()).await.is_err());
    assert!(server.store.service_accounts().await.unwrap().is_empty());
}
