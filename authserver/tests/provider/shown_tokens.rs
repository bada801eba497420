//! Tokens that are shown to us again: introspection, revocation, exchange, other audiences.

use std::sync::atomic::{AtomicUsize, Ordering};

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use super::clients;
use crate::support::{
    keys::{JWT_BEARER, assertion},
    *,
};

const EXCHANGE: &str = "urn:ietf:params:oauth:grant-type:token-exchange";
const ACCESS_TOKEN: &str = "urn:ietf:params:oauth:token-type:access_token";

async fn ask(
    server: &Server,
    client: (&str, &str),
    path: &str,
    token: &str,
) -> (StatusCode, Value) {
    let request = server.request(Method::POST, path).basic_auth(client.0, Some(client.1));
    let response = request.form(&[("token", token)]).send().await.unwrap();
    (response.status(), response.json().await.unwrap_or_default())
}

pub async fn is_active(server: &Server, token: &str) -> bool {
    let (status, answer) = ask(server, GATE, "/introspect", token).await;
    assert_eq!(status, StatusCode::OK);
    if answer["active"] == json!(false) {
        assert_eq!(answer, json!({ "active": false }), "it says nothing else");
    }
    answer["active"].as_bool().unwrap()
}

#[tokio::test]
async fn rfc_7662_a_token_is_described_to_those_it_is_for() {
    let server = Server::start().await;
    let code = Browser::default().code(&server).await;
    let (_, tokens) = server.redeem(GATE, &code).await;
    let token = text(&tokens, "access_token");
    let (_, answer) = ask(&server, GATE, "/introspect", token).await;
    let expected = claims(token);
    assert_eq!(answer["active"], json!(true));
    assert_eq!(answer["username"], "alice");
    for name in ["iss", "sub", "aud", "client_id", "scope", "jti", "exp", "iat", "nbf", "sid"] {
        assert_eq!(answer[name], expected[name], "{name}");
    }
    // To anybody else it is no token, and strangers are not answered.
    assert_eq!(ask(&server, OTHER, "/introspect", token).await.1, json!({ "active": false }));
    let wrong = ask(&server, (GATE.0, "wrong"), "/introspect", token).await;
    assert_eq!(wrong.0, StatusCode::UNAUTHORIZED);
    let public = server.post("/introspect", &[("client_id", "tool"), ("token", token)]).await;
    assert_eq!(public.0, StatusCode::UNAUTHORIZED);
    let bearer = server.request(Method::POST, "/introspect").bearer_auth(token);
    let bearer = bearer.form(&[("token", token)]).send().await.unwrap();
    assert_eq!(bearer.status(), StatusCode::UNAUTHORIZED);
    let (status, error) = server.post("/introspect", &[("client_id", "tool")]).await;
    assert_ne!(status, StatusCode::OK, "{error}");
    for no_token in ["x", "x.y.z", text(&tokens, "id_token"), text(&tokens, "refresh_token")] {
        assert!(!is_active(&server, no_token).await);
    }
    assert!(is_active(&server, &server.personal_token("alice", 60).await).await);
    server.wait(600);
    assert!(!is_active(&server, token).await);
}

#[tokio::test]
async fn rfc_7009_each_kind_of_token_is_withdrawn() {
    let server = Server::start().await;
    let mut browser = Browser::default();
    let (first, second) = (browser.code(&server).await, browser.code(&server).await);
    let (_, first) = server.redeem(GATE, &first).await;
    let (_, second) = server.redeem(GATE, &second).await;
    let revoke = async |client, token: &str| ask(&server, client, "/revoke", token).await;

    let (access, refresh) = (text(&first, "access_token"), text(&first, "refresh_token"));
    for foreign in [access, refresh] {
        let (status, error) = revoke(OTHER, foreign).await;
        assert_eq!((status, text(&error, "error")), (StatusCode::BAD_REQUEST, "invalid_grant"));
    }
    assert_eq!(revoke((GATE.0, "wrong"), access).await.0, StatusCode::UNAUTHORIZED);
    assert!(is_active(&server, access).await);
    // An access token alone.
    assert_eq!(revoke(GATE, access).await.0, StatusCode::OK);
    assert!(!is_active(&server, access).await);
    let response = server.api(Method::GET, "/userinfo", access, Value::Null).await;
    assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
    let (status, renewed) = server.refresh(refresh).await;
    assert_eq!(status, StatusCode::OK);
    // A refresh token, and with it what it gave; the session's other grants go on.
    assert_eq!(revoke(GATE, text(&renewed, "refresh_token")).await.0, StatusCode::OK);
    assert!(!is_active(&server, text(&renewed, "access_token")).await);
    let refused = server.refresh(text(&renewed, "refresh_token")).await;
    assert_eq!(refused.1["error"], "invalid_grant");
    assert!(is_active(&server, text(&second, "access_token")).await);
    // A personal token, by whoever found it.
    let personal = server.personal_token("alice", 600).await;
    assert_eq!(revoke(OTHER, &personal).await.0, StatusCode::OK);
    assert!(!is_active(&server, &personal).await);
    // Nothing to withdraw is no error; no token at all is.
    for nothing in ["x", &personal, access] {
        assert_eq!(revoke(GATE, nothing).await.0, StatusCode::OK, "{nothing}");
    }
    assert_eq!(revoke(GATE, "").await.0, StatusCode::BAD_REQUEST);
    server.audited("token-revoked").await;
}

/// Tokens of the client that may ask for other audiences.
async fn signed(
    server: &Server,
    changes: &[(&str, &str)],
    more: &[(&str, &str)],
) -> (StatusCode, Value) {
    let code = clients::code(server, changes).await;
    let proof = assertion(1, "signed", &code, server.now().as_second());
    clients::redeem(server, &code, &proof, more).await
}

#[tokio::test]
async fn rfc_8693_a_token_is_exchanged_for_less_and_never_for_more() {
    let server = Server::start().await;
    let scope = ("scope", "openid workload:use");
    let (status, tokens) = signed(&server, &[scope], &[]).await;
    assert_eq!(status, StatusCode::OK, "{tokens}");
    let own = text(&tokens, "access_token").to_owned();
    let count = AtomicUsize::new(0);
    let exchange = async |subject: &str, more: &[(&str, &str)]| {
        let jti = count.fetch_add(1, Ordering::Relaxed).to_string();
        let proof = assertion(1, "signed", &jti, server.now().as_second());
        let mut form = vec![
            ("grant_type", EXCHANGE),
            ("subject_token", subject),
            ("subject_token_type", ACCESS_TOKEN),
            ("client_assertion_type", JWT_BEARER),
            ("client_assertion", &proof),
        ];
        form.retain(|(name, _)| !more.iter().any(|(other, _)| other == name));
        form.extend(more);
        server.post("/token", &form).await
    };
    server.wait(100);
    let narrow = [("scope", "workload:use"), ("resource", "https://api.example")];
    let (status, answer) = exchange(&own, &narrow).await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    assert_eq!(answer["issued_token_type"], ACCESS_TOKEN);
    assert!(answer.get("refresh_token").is_none());
    let token = text(&answer, "access_token").to_owned();
    let (new, old) = (claims(&token), claims(&own));
    assert_eq!(new["aud"], "https://api.example");
    assert_eq!(new["scope"], "workload:use");
    assert_eq!(new["exp"], old["exp"], "it does not live longer");
    for same in ["sub", "sid", "client_id", "preferred_username"] {
        assert_eq!(new[same], old[same]);
    }
    // It is not good for the gateways any more.
    assert!(server.verifier().await.verify(&token, server.now()).is_err());

    for (more, error) in [
        (("scope", "workload:manage"), "invalid_scope"),
        (("scope", "openid account"), "invalid_scope"),
        (("audience", "https://evil.example"), "invalid_target"),
        (("actor_token", "x"), "invalid_request"),
        (("subject_token_type", "urn:ietf:params:oauth:token-type:id_token"), "invalid_request"),
        (
            ("requested_token_type", "urn:ietf:params:oauth:token-type:refresh_token"),
            "invalid_request",
        ),
    ] {
        assert_eq!(exchange(&own, &[more]).await.1["error"], error, "{more:?}");
    }
    // Not somebody else's, even if it was shown to us; not without the right.
    let code = Browser::default().code(&server).await;
    let gates = server.redeem(GATE, &code).await.1;
    let personal = server.personal_token("alice", 60).await;
    for foreign in [text(&gates, "access_token"), text(&tokens, "id_token"), &personal, "x"] {
        assert_eq!(exchange(foreign, &[]).await.1["error"], "invalid_request");
    }
    let form =
        [("grant_type", EXCHANGE), ("subject_token", &own), ("subject_token_type", ACCESS_TOKEN)];
    assert_eq!(server.token(OTHER, &form).await.1["error"], "unauthorized_client");
    // It dies with what it came from.
    let proof = assertion(1, "signed", "revoke", server.now().as_second());
    let form = [
        ("token", text(&tokens, "refresh_token")),
        ("client_assertion_type", JWT_BEARER),
        ("client_assertion", &proof),
    ];
    assert_eq!(server.post("/revoke", &form).await.0, StatusCode::OK);
    assert_eq!(exchange(&token, &[]).await.1["error"], "invalid_request");
}

#[tokio::test]
async fn rfc_8707_a_token_is_for_the_resources_that_were_asked_for() {
    let server = Server::start().await;
    let resource = ("resource", "https://api.example");
    let (_, tokens) = signed(&server, &[resource], &[]).await;
    assert_eq!(claims(text(&tokens, "access_token"))["aud"], "https://api.example");
    let (_, error) = signed(&server, &[resource], &[("resource", "https://logs.example")]).await;
    assert_eq!(error["error"], "invalid_target");
    let (_, usual) = signed(&server, &[], &[]).await;
    assert_eq!(claims(text(&usual, "access_token"))["aud"], "dormouse");
    let (_, error) = signed(&server, &[], &[resource]).await;
    assert_eq!(error["error"], "invalid_target");
    // The refresh token keeps the audience.
    let proof = assertion(1, "signed", "refresh", server.now().as_second());
    let form = [
        ("grant_type", "refresh_token"),
        ("refresh_token", text(&tokens, "refresh_token")),
        ("client_assertion_type", JWT_BEARER),
        ("client_assertion", &proof),
    ];
    let (_, renewed) = server.post("/token", &form).await;
    assert_eq!(claims(text(&renewed, "access_token"))["aud"], "https://api.example");
    for (client, callback, resource) in [
        ("signed", "https://signed.example/cb", "https://evil.example"),
        ("other", "https://other.example/cb", "https://api.example"),
    ] {
        let path = authorize_with(&[
            ("client_id", client),
            ("redirect_uri", callback),
            ("resource", resource),
        ]);
        let to = location(&server.get(&path).await);
        assert_eq!(query(&to)["error"], "invalid_target", "{client}");
    }
    let several = format!(
        "{}&resource=https%3A%2F%2Flogs.example",
        authorize_with(&[
            ("client_id", "signed"),
            ("redirect_uri", "https://signed.example/cb"),
            resource,
        ])
    );
    let to = Browser::default().sign_in(&server, &several, "alice").await;
    let code = query(&to)["code"].clone();
    let proof = assertion(1, "signed", "several", server.now().as_second());
    let (_, tokens) = clients::redeem(&server, &code, &proof, &[]).await;
    let aud = &claims(text(&tokens, "access_token"))["aud"];
    assert_eq!(aud, &json!(["https://api.example", "https://logs.example"]));
}
