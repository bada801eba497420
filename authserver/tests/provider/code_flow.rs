//! The code flow, and what must not come out of it.

use domain::identity::CredentialKind;
use reqwest::{Method, StatusCode, header};
use serde_json::{Value, json};

use crate::support::*;

#[tokio::test]
async fn a_browser_signs_in_and_the_gate_gets_tokens() {
    let server = Server::start().await;
    let mut browser = Browser::default();
    let page = browser.open(&server, &authorize_with(&[])).await;
    assert_eq!(page.status(), StatusCode::OK);
    let policy = page.headers()[header::CONTENT_SECURITY_POLICY].to_str().unwrap().to_owned();
    assert!(policy.contains("form-action 'self' https://lab--alice.localhost:8443;"), "{policy}");
    assert!(policy.contains("frame-ancestors 'none'"), "{policy}");
    assert_eq!(page.headers()[header::CACHE_CONTROL], "no-store");
    assert_eq!(page.headers()[header::REFERRER_POLICY], "same-origin");
    let html = page.text().await.unwrap();
    assert!(html.contains("to open <strong>lab--alice.localhost</strong>"), "{html}");

    let to = location(&browser.submit(&server, &ticket(&html), "Alice ", PASSWORD).await);
    assert!(to.starts_with(&format!("{CALLBACK}?code=")), "{to}");
    let answer = query(&to);
    assert_eq!(answer["state"], "state-1");
    assert_eq!(answer["iss"], ISSUER);

    let (status, tokens) = server.redeem(GATE, &answer["code"]).await;
    assert_eq!(status, StatusCode::OK, "{tokens}");
    assert_eq!(tokens["token_type"], "Bearer");
    assert_eq!(tokens["expires_in"], 600);
    let secret = text(&tokens, "refresh_token").rsplit('.').next().unwrap();
    assert_eq!(secret.len(), 43, "256 bits");
    let verifier = server.verifier().await;
    let identity = verifier.verify(text(&tokens, "access_token"), server.now()).unwrap();
    assert_eq!(identity.user.as_str(), "alice");
    assert_eq!(identity.email.as_deref(), Some("alice@example.com"));
    assert_eq!(identity.groups, ["ml"]);
    assert_eq!(identity.credential.kind, CredentialKind::AccessToken);
    assert!(identity.credential.scopes.contains(&"account".to_owned()));

    let id = claims(text(&tokens, "id_token"));
    assert_eq!(id["aud"], GATE.0);
    assert_eq!(id["nonce"], "nonce-1");
    assert_eq!(id["sub"], json!(identity.subject));
    assert_eq!(id["sid"], json!(identity.credential.session));
    assert_eq!(id["auth_time"], json!(server.now().as_second()));
    let access = server.api(Method::GET, "/userinfo", text(&tokens, "access_token"), Value::Null);
    let info: Value = access.await.json().await.unwrap();
    assert_eq!(info["preferred_username"], "alice");
    assert_eq!(info["groups"], json!(["ml"]));
    // A second host asks nothing.
    let bob = "https://dashboard--alice.localhost:8443/.dormouse/callback";
    let to = browser.sign_in(&server, &authorize_with(&[("redirect_uri", bob)]), "-").await;
    assert!(to.starts_with(bob), "{to}");
}

#[tokio::test]
async fn discovery_names_what_there_is() {
    let server = Server::start().await;
    let openid: Value = server.get("/.well-known/openid-configuration").await.json().await.unwrap();
    let oauth: Value =
        server.get("/.well-known/oauth-authorization-server").await.json().await.unwrap();
    assert_eq!(openid, oauth);
    assert_eq!(openid["issuer"], ISSUER);
    for name in ["authorization_endpoint", "userinfo_endpoint", "jwks_uri", "end_session_endpoint"]
    {
        let path = text(&openid, name).strip_prefix(ISSUER).unwrap();
        assert_ne!(server.get(path).await.status(), StatusCode::NOT_FOUND, "{name}");
    }
    assert_eq!(server.get("/nothing").await.status(), StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn attack_12_an_id_token_is_no_access_token() {
    let server = Server::start().await;
    let code = Browser::default().code(&server).await;
    let (_, tokens) = server.redeem(GATE, &code).await;
    let id_token = text(&tokens, "id_token");
    assert!(server.verifier().await.verify(id_token, server.now()).is_err());
    let response = server.api(Method::GET, "/userinfo", id_token, Value::Null).await;
    assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn attack_13_a_replayed_code_withdraws_what_it_gave() {
    let server = Server::start().await;
    let code = Browser::default().code(&server).await;
    let (_, tokens) = server.redeem(GATE, &code).await;
    let (status, error) = server.redeem(GATE, &code).await;
    assert_eq!((status, &error["error"]), (StatusCode::BAD_REQUEST, &json!("invalid_grant")));
    let (status, error) = server.refresh(text(&tokens, "refresh_token")).await;
    assert_eq!((status, &error["error"]), (StatusCode::BAD_REQUEST, &json!("invalid_grant")));
    let access = text(&tokens, "access_token");
    let response = server.api(Method::GET, "/userinfo", access, Value::Null).await;
    assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn attack_13_of_two_uses_at_once_one_wins_at_most() {
    let server = Server::start().await;
    let code = Browser::default().code(&server).await;
    let (one, two) = tokio::join!(server.redeem(GATE, &code), server.redeem(GATE, &code));
    let won = [one, two].into_iter().filter(|(status, _)| *status == StatusCode::OK).count();
    assert!(won <= 1);
}

#[tokio::test]
async fn attack_13_a_code_is_bound_to_its_client() {
    let server = Server::start().await;
    let code = Browser::default().code(&server).await;
    let (status, error) = server.redeem(OTHER, &code).await;
    assert_eq!((status, &error["error"]), (StatusCode::BAD_REQUEST, &json!("invalid_grant")));
    // And a stranger has not used it up.
    assert_eq!(server.redeem(GATE, &code).await.0, StatusCode::OK);
}

#[tokio::test]
async fn attack_13_a_code_lives_for_a_minute() {
    let server = Server::start().await;
    let mut browser = Browser::default();
    let (young, old) = (browser.code(&server).await, browser.code(&server).await);
    server.wait(59);
    assert_eq!(server.redeem(GATE, &young).await.0, StatusCode::OK);
    server.wait(1);
    assert_eq!(server.redeem(GATE, &old).await.1["error"], "invalid_grant");
}

#[tokio::test]
async fn attack_13_a_code_is_bound_to_its_redirect_uri_and_verifier() {
    let server = Server::start().await;
    let mut browser = Browser::default();
    for (name, wrong) in [
        ("redirect_uri", "https://dashboard--alice.localhost:8443/.dormouse/callback"),
        ("code_verifier", "aBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"),
    ] {
        let code = browser.code(&server).await;
        let form = code_form(&code).map(|(n, v)| (n, if n == name { wrong } else { v }));
        let (status, error) = server.token(GATE, &form).await;
        assert_eq!((status, &error["error"]), (StatusCode::BAD_REQUEST, &json!("invalid_grant")));
        // There is no second guess.
        assert_eq!(server.redeem(GATE, &code).await.1["error"], "invalid_grant", "{name}");
    }
    let code = browser.code(&server).await;
    let without: Vec<_> =
        code_form(&code).into_iter().filter(|(name, _)| *name != "code_verifier").collect();
    assert_eq!(server.token(GATE, &without).await.1["error"], "invalid_request");
}

#[tokio::test]
async fn attack_13_pkce_cannot_be_left_out_or_weakened() {
    let server = Server::start().await;
    for changes in [
        [("code_challenge", ""), ("code_challenge_method", "")],
        [("code_challenge", ""), ("code_challenge_method", "S256")],
        [("code_challenge", VERIFIER), ("code_challenge_method", "plain")],
        [("code_challenge", VERIFIER), ("code_challenge_method", "")],
        [("code_challenge", "short"), ("code_challenge_method", "S256")],
    ] {
        let to = location(&server.get(&authorize_with(&changes)).await);
        let answer = query(&to);
        assert_eq!(answer["error"], "invalid_request", "{changes:?}");
        assert_eq!((answer["state"].as_str(), answer["iss"].as_str()), ("state-1", ISSUER));
        assert!(!answer.contains_key("code"));
    }
}

#[tokio::test]
async fn attack_13_nobody_is_sent_to_an_address_that_is_not_the_clients() {
    let server = Server::start().await;
    let mut browser = Browser::default();
    browser.code(&server).await;
    for bad in [
        "https://evil.example/.dormouse/callback",
        "https://a.b.localhost:8443/.dormouse/callback",
        "https://lab--alice.localhost:8443/.dormouse/callback/x",
        "https://lab--alice.localhost:8443/.dormouse/callback#x",
        "https://user@lab--alice.localhost:8443/.dormouse/callback",
        "https://lab--alice.localhost/.dormouse/callback",
        "http://lab--alice.localhost:8443/.dormouse/callback",
        "https://LAB--alice.localhost:8443/.dormouse/callback",
        "https://lab--alice.localhost.:8443/.dormouse/callback",
        "https://[::1]:8443/.dormouse/callback",
        "https://auth.localhost:8443/.dormouse/callback",
        "//lab--alice.localhost:8443/.dormouse/callback",
        "https://other.example/cb",
        "javascript:alert(1)",
        "",
    ] {
        let response = browser.open(&server, &authorize_with(&[("redirect_uri", bad)])).await;
        assert_eq!(response.status(), StatusCode::BAD_REQUEST, "{bad}");
        assert!(!response.headers().contains_key(header::LOCATION), "{bad}");
    }
    // Not even with an error.
    let path = authorize_with(&[("redirect_uri", "https://evil.example/"), ("response_type", "x")]);
    assert_eq!(browser.open(&server, &path).await.status(), StatusCode::BAD_REQUEST);
    let path = authorize_with(&[("client_id", "nobody")]);
    assert_eq!(browser.open(&server, &path).await.status(), StatusCode::BAD_REQUEST);
    let twice = format!("{}&redirect_uri=https%3A%2F%2Fevil.example%2F", authorize_with(&[]));
    assert_eq!(browser.open(&server, &twice).await.status(), StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn requests_that_cannot_be_granted_go_back_with_the_reason() {
    let server = Server::start().await;
    for (changes, error) in [
        (("response_type", "token"), "unsupported_response_type"),
        (("response_type", ""), "invalid_request"),
        (("response_mode", "fragment"), "invalid_request"),
        (("request", "x"), "request_not_supported"),
        (("request_uri", "https://evil.example/r"), "request_uri_not_supported"),
        (("max_age", "soon"), "invalid_request"),
        (("prompt", "none"), "login_required"),
        (("prompt", "none login"), "invalid_request"),
    ] {
        let to = location(&server.get(&authorize_with(&[changes])).await);
        assert_eq!(query(&to)["error"], error, "{changes:?}");
    }
    let doubled = format!("{}&state=state-2", authorize_with(&[]));
    let to = location(&server.get(&doubled).await);
    assert_eq!(query(&to)["error"], "invalid_request");
}

#[tokio::test]
async fn clients_prove_who_they_are_in_one_way() {
    let server = Server::start().await;
    let code = Browser::default().code(&server).await;
    for wrong in [(GATE.0, OTHER.1), (GATE.0, ""), ("nobody", GATE.1), ("tool", "x")] {
        let (status, error) = server.redeem(wrong, &code).await;
        assert_eq!(status, StatusCode::UNAUTHORIZED, "{wrong:?}");
        assert_eq!(error["error"], "invalid_client");
    }
    let mut form = code_form(&code).to_vec();
    let post = |form: &[(&str, &str)]| server.request(Method::POST, "/token").form(form).send();
    assert_eq!(post(&form).await.unwrap().status(), StatusCode::UNAUTHORIZED);
    form.push(("client_id", GATE.0));
    assert_eq!(post(&form).await.unwrap().status(), StatusCode::UNAUTHORIZED);
    form.push(("client_secret", GATE.1));
    let (status, error) = server.token(GATE, &form).await;
    assert_eq!((status, &error["error"]), (StatusCode::BAD_REQUEST, &json!("invalid_request")));
    assert_eq!(post(&form).await.unwrap().status(), StatusCode::OK);
    let json = server.request(Method::POST, "/token").json(&json!({})).send().await.unwrap();
    assert_eq!(json.status(), StatusCode::BAD_REQUEST);
    assert_eq!(
        server.token(GATE, &[("grant_type", "password")]).await.1["error"],
        "unsupported_grant_type"
    );
}

#[tokio::test]
async fn a_public_client_has_pkce_alone() {
    let server = Server::start().await;
    let callback = "http://127.0.0.1:7777/cb";
    let changes = [("client_id", "tool"), ("redirect_uri", callback), ("scope", "openid account")];
    let to = Browser::default().sign_in(&server, &authorize_with(&changes), "alice").await;
    assert!(to.starts_with(callback), "{to}");
    let code = &query(&to)["code"];
    let mut form =
        code_form(code).map(|(n, v)| (n, if n == "redirect_uri" { callback } else { v })).to_vec();
    form.push(("client_id", "tool"));
    let response = server.request(Method::POST, "/token").form(&form).send().await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    let tokens: Value = response.json().await.unwrap();
    // It may not manage the account: the settings do not let it.
    assert_eq!(tokens["scope"], "openid");
    let token = text(&tokens, "access_token");
    let response = server.api(Method::GET, "/tokens", token, Value::Null).await;
    assert_eq!(response.status(), StatusCode::FORBIDDEN);
}
