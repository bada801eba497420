//! Pushed authorization requests (RFC 9126).

use reqwest::{Method, StatusCode};
use serde_json::Value;

use crate::support::*;

const CALLBACK_OF_BANK: &str = "https://bank.example/cb";

async fn push(server: &Server, client: (&str, &str), form: &[(&str, &str)]) -> (StatusCode, Value) {
    let request = server.request(Method::POST, "/par").basic_auth(client.0, Some(client.1));
    let response = request.form(form).send().await.unwrap();
    (response.status(), response.json().await.unwrap())
}

fn form(challenge: &str) -> Vec<(&str, &str)> {
    vec![
        ("response_type", "code"),
        ("redirect_uri", CALLBACK_OF_BANK),
        ("scope", "openid"),
        ("state", "state-1"),
        ("code_challenge", challenge),
        ("code_challenge_method", "S256"),
    ]
}

const BANK: (&str, &str) = ("bank", OTHER.1);

#[tokio::test]
async fn rfc_9126_a_pushed_request_is_used_in_place_of_its_parameters() {
    let server = Server::start().await;
    let challenge = challenge();
    let (status, answer) = push(&server, BANK, &form(&challenge)).await;
    assert_eq!(status, StatusCode::CREATED, "{answer}");
    assert_eq!(answer["expires_in"], 90);
    let reference = text(&answer, "request_uri");
    // What stands beside it in the browser's request is not looked at.
    let path = format!("/authorize?client_id=bank&request_uri={reference}&redirect_uri=x&scope=y");
    let mut browser = Browser::default();
    let to = browser.sign_in(&server, &path, "alice").await;
    assert!(to.starts_with(CALLBACK_OF_BANK), "{to}");
    assert_eq!(query(&to)["state"], "state-1");
    let code = query(&to)["code"].clone();
    let redeem =
        code_form(&code).map(|(n, v)| (n, if n == "redirect_uri" { CALLBACK_OF_BANK } else { v }));
    assert_eq!(server.token(BANK, &redeem).await.0, StatusCode::OK);

    // Another client's, a made-up one, one that has expired: a page, and nobody is sent anywhere.
    server.wait(89);
    for path in [
        format!("/authorize?client_id=other&request_uri={reference}"),
        "/authorize?client_id=bank&request_uri=urn:ietf:params:oauth:request_uri:x".to_owned(),
        format!("/authorize?request_uri={reference}"),
    ] {
        assert_eq!(browser.open(&server, &path).await.status(), StatusCode::BAD_REQUEST, "{path}");
    }
    assert_eq!(browser.open(&server, &path).await.status(), StatusCode::SEE_OTHER, "a reload");
    server.wait(1);
    assert_eq!(browser.open(&server, &path).await.status(), StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn rfc_9126_a_request_is_judged_when_it_is_pushed() {
    let server = Server::start().await;
    let challenge = challenge();
    for ((name, value), error) in [
        (("redirect_uri", "https://evil.example/cb"), "invalid_request"),
        (("response_type", "token"), "unsupported_response_type"),
        (("code_challenge_method", "plain"), "invalid_request"),
        (("resource", "https://api.example"), "invalid_target"),
        (("request_uri", "urn:ietf:params:oauth:request_uri:x"), "invalid_request"),
        (("client_id", "other"), "invalid_request"),
        (("max_age", "x"), "invalid_request"),
    ] {
        let mut form = form(&challenge);
        form.retain(|(other, _)| *other != name);
        form.push((name, value));
        let (status, answer) = push(&server, BANK, &form).await;
        assert_eq!((status, text(&answer, "error")), (StatusCode::BAD_REQUEST, error), "{name}");
    }
    let (status, _) = push(&server, (BANK.0, "wrong"), &form(&challenge)).await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);
    // A client may push without having to.
    let mut own = form(&challenge);
    own.retain(|(name, _)| *name != "redirect_uri");
    own.push(("redirect_uri", "https://other.example/cb"));
    assert_eq!(push(&server, OTHER, &own).await.0, StatusCode::CREATED);
}

#[tokio::test]
async fn attack_24_strangers_cannot_fill_the_database_with_pushed_requests() {
    let server = Server::start().await;
    let challenge = challenge();
    let mut own = form(&challenge);
    own.retain(|(name, _)| *name != "redirect_uri");
    own.extend([("redirect_uri", "http://127.0.0.1:7777/cb"), ("client_id", "tool")]);
    let mut kept = 0;
    for _ in 0..70 {
        let (status, _) = server.post("/par", &own).await;
        kept += u32::from(status == StatusCode::CREATED);
    }
    assert_eq!(kept, 60);
}

#[tokio::test]
async fn rfc_9126_a_client_that_has_to_push_cannot_do_without() {
    let server = Server::start().await;
    let path = authorize_with(&[("client_id", "bank"), ("redirect_uri", CALLBACK_OF_BANK)]);
    let to = location(&server.get(&path).await);
    assert_eq!(query(&to)["error"], "invalid_request");
}
