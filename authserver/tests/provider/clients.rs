//! How clients prove who they are.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::{
    keys::{JWT_BEARER, assertion, sign},
    *,
};

const SIGNED_CALLBACK: &str = "https://signed.example/cb";

/// A code for the client that authenticates by a key.
pub async fn code(server: &Server, changes: &[(&str, &str)]) -> String {
    let mut all = vec![("client_id", "signed"), ("redirect_uri", SIGNED_CALLBACK)];
    all.extend(changes);
    let to = Browser::default().sign_in(server, &authorize_with(&all), "alice").await;
    query(&to)["code"].clone()
}

pub async fn redeem(
    server: &Server,
    code: &str,
    assertion: &str,
    more: &[(&str, &str)],
) -> (StatusCode, Value) {
    let mut form = vec![
        ("grant_type", "authorization_code"),
        ("code", code),
        ("redirect_uri", SIGNED_CALLBACK),
        ("code_verifier", VERIFIER),
        ("client_assertion_type", JWT_BEARER),
        ("client_assertion", assertion),
    ];
    form.extend(more);
    server.post("/token", &form).await
}

#[tokio::test]
async fn a_client_signs_in_people_with_a_key_of_its_own() {
    let server = Server::start().await;
    let code = code(&server, &[]).await;
    let proof = assertion(1, "signed", "1", server.now().as_second());
    let (status, tokens) = redeem(&server, &code, &proof, &[("client_id", "signed")]).await;
    assert_eq!(status, StatusCode::OK, "{tokens}");
    assert_eq!(claims(text(&tokens, "access_token"))["client_id"], "signed");
}

#[tokio::test]
async fn attack_12_an_assertion_is_used_once_and_signed_by_its_client() {
    let server = Server::start().await;
    let now = server.now().as_second();
    let refused = async |proof: &str, why: &str| {
        let (status, error) = redeem(&server, "x", proof, &[]).await;
        assert_eq!((status, text(&error, "error")), (StatusCode::UNAUTHORIZED, "invalid_client"));
        assert!(text(&error, "error_description").contains(why), "{error} {why}");
    };
    refused(&assertion(2, "signed", "1", now), "signature").await;
    refused(&assertion(1, "signed", "1", now - 120), "expired").await;
    refused(&assertion(1, "signed", "1", now + 3600), "within").await;
    refused(&assertion(1, "other", "1", now), "not known").await;
    refused(&assertion(1, "nobody", "1", now), "not known").await;
    refused("x.y.z", "not known").await;
    let none = sign(
        1,
        &json!({ "alg": "none" }),
        &json!({
            "iss": "signed", "sub": "signed", "aud": ISSUER, "exp": now + 60, "jti": "n",
        }),
    );
    refused(&none, "header").await;
    let once = assertion(1, "signed", "2", now);
    assert_eq!(redeem(&server, "x", &once, &[]).await.1["error"], "invalid_grant");
    refused(&once, "used before").await;
    // Remembered by the database, so by every replica and after a restart.
    let Server { folder, .. } = server;
    let server = Server::start_in(folder).await;
    let (status, _) = redeem(&server, "x", &once, &[]).await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn a_client_with_a_key_has_no_other_way() {
    let server = Server::start().await;
    for form in
        [vec![("client_id", "signed")], vec![("client_id", "signed"), ("client_secret", "x")]]
    {
        let mut form = form;
        form.extend([("grant_type", "refresh_token"), ("refresh_token", "x")]);
        assert_eq!(server.post("/token", &form).await.0, StatusCode::UNAUTHORIZED);
    }
    let basic = server.request(Method::POST, "/token").basic_auth("signed", Some(""));
    let form = [("grant_type", "refresh_token"), ("refresh_token", "x")];
    assert_eq!(basic.form(&form).send().await.unwrap().status(), StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn a_client_uses_the_grant_types_it_has() {
    let server = Server::start().await;
    let form =
        [("grant_type", "urn:ietf:params:oauth:grant-type:device_code"), ("device_code", "x")];
    assert_eq!(server.token(OTHER, &form).await.1["error"], "unauthorized_client");
    let form = [("grant_type", "client_credentials")];
    assert_eq!(server.token(OTHER, &form).await.1["error"], "unauthorized_client");
    for unknown in ["password", "implicit", "urn:x"] {
        let (status, error) = server.token(OTHER, &[("grant_type", unknown)]).await;
        assert_eq!(status, StatusCode::BAD_REQUEST);
        assert_eq!(error["error"], "unsupported_grant_type", "{unknown}");
    }
}

#[tokio::test]
async fn attack_16_no_secret_of_a_client_is_in_the_database_or_the_audit_log() {
    let server = Server::start().await;
    let code = Browser::default().code(&server).await;
    let (_, tokens) = server.redeem(GATE, &code).await;
    let stored = if on_postgres() {
        String::new()
    } else {
        ["auth.db", "auth.db-wal"]
            .map(|name| std::fs::read(server.folder.path().join(name)).unwrap_or_default())
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .concat()
    };
    let audit = server.audited("token-issued").await;
    for secret in [
        GATE.1,
        OTHER.1,
        PASSWORD,
        &code,
        text(&tokens, "refresh_token"),
        text(&tokens, "access_token"),
    ] {
        assert!(!stored.contains(secret) && !audit.contains(secret));
    }
}
