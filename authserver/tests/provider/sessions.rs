//! How long things last, and how they end.

use jiff::SignedDuration;
use reqwest::{Method, StatusCode, header};
use serde_json::Value;

use crate::support::*;

const HOUR: i64 = 3600;

#[tokio::test]
async fn a_session_slides_and_ends_at_its_limit() {
    let server = Server::start().await;
    let code = Browser::default().code(&server).await;
    let (_, tokens) = server.redeem(GATE, &code).await;
    let mut refresh_token = text(&tokens, "refresh_token").to_owned();
    let verifier = server.verifier().await;
    // 16 times 10 hours and 30 minutes are seven days.
    for _ in 0..15 {
        server.wait(10 * HOUR + 1800);
        let (status, tokens) = server.refresh(&refresh_token).await;
        assert_eq!(status, StatusCode::OK, "{tokens}");
        assert_ne!(text(&tokens, "refresh_token"), refresh_token);
        refresh_token = text(&tokens, "refresh_token").to_owned();
        assert!(verifier.verify(text(&tokens, "access_token"), server.now()).is_ok());
    }
    server.wait(10 * HOUR + 1800 - 60);
    let (_, tokens) = server.refresh(&refresh_token).await;
    assert_eq!(tokens["expires_in"], 60, "a token does not outlive its session");
    server.wait(60);
    let refused = server.refresh(text(&tokens, "refresh_token")).await;
    assert_eq!(refused.1["error"], "invalid_grant");
}

#[tokio::test]
async fn a_session_that_nobody_uses_is_over() {
    let server = Server::start().await;
    let mut browser = Browser::default();
    let code = browser.code(&server).await;
    let (_, tokens) = server.redeem(GATE, &code).await;
    server.wait(12 * HOUR);
    let refused = server.refresh(text(&tokens, "refresh_token")).await;
    assert_eq!(refused.1["error"], "invalid_grant");
    assert_eq!(browser.open(&server, &authorize_with(&[])).await.status(), StatusCode::OK);
}

#[tokio::test]
async fn attack_13_a_refresh_token_is_bound_to_its_client() {
    let server = Server::start().await;
    let code = Browser::default().code(&server).await;
    let (_, tokens) = server.redeem(GATE, &code).await;
    let form = [("grant_type", "refresh_token"), ("refresh_token", text(&tokens, "refresh_token"))];
    assert_eq!(server.token(OTHER, &form).await.1["error"], "invalid_grant");
    assert_eq!(
        server.token(GATE, &[form[0], ("refresh_token", "x")]).await.1["error"],
        "invalid_grant"
    );
    let more = [form[0], form[1], ("scope", "openid offline_access")];
    assert_eq!(server.token(GATE, &more).await.1["error"], "invalid_scope");
    assert_eq!(server.token(GATE, &form).await.0, StatusCode::OK);
}

#[tokio::test]
async fn a_disabled_person_is_out() {
    let server = Server::start().await;
    let mut browser = Browser::default();
    let code = browser.code(&server).await;
    let (_, tokens) = server.redeem(GATE, &code).await;
    let personal = server.personal_token("alice", 3600).await;
    let alice = "alice".parse().unwrap();
    server.store.disable_user(&alice, server.now()).await.unwrap();
    let refused = server.refresh(text(&tokens, "refresh_token")).await;
    assert_eq!(refused.1["error"], "invalid_grant");
    for token in [text(&tokens, "access_token"), &personal] {
        let response = server.api(Method::GET, "/userinfo", token, Value::Null).await;
        assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
    }
    let page = browser.open(&server, &authorize_with(&[])).await.text().await.unwrap();
    let response = browser.submit(&server, &ticket(&page), "alice", PASSWORD).await;
    assert_eq!(response.status(), StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn asking_for_a_new_sign_in_gets_one() {
    let server = Server::start().await;
    let mut browser = Browser::default();
    browser.code(&server).await;
    server.wait(100);
    for (changes, status) in [
        (("prompt", "login"), StatusCode::OK),
        (("max_age", "99"), StatusCode::OK),
        (("max_age", "100"), StatusCode::SEE_OTHER),
        (("prompt", "none"), StatusCode::SEE_OTHER),
    ] {
        let response = browser.open(&server, &authorize_with(&[changes])).await;
        assert_eq!(response.status(), status, "{changes:?}");
    }
}

#[tokio::test]
async fn signing_out_asks_unless_the_client_proves_that_it_is_meant() {
    let server = Server::start().await;
    let mut browser = Browser::default();
    let code = browser.code(&server).await;
    let (_, tokens) = server.redeem(GATE, &code).await;
    let hint = text(&tokens, "id_token");
    let back = "https://lab--alice.localhost:8443/";

    // Another browser's token, a damaged one, none: a question, and the session goes on.
    let other = Browser::default().code(&server).await;
    let foreign = server.redeem(GATE, &other).await.1;
    for hint in [text(&foreign, "id_token"), "x.y.z", ""] {
        let response = browser.open(&server, &format!("/sign-out?id_token_hint={hint}")).await;
        assert_eq!(response.status(), StatusCode::OK);
        assert!(response.text().await.unwrap().contains("Sign out?"));
    }
    assert_eq!(server.refresh(text(&tokens, "refresh_token")).await.0, StatusCode::OK);

    let path = format!("/sign-out?id_token_hint={hint}&state=s&post_logout_redirect_uri={back}");
    let response = browser.open(&server, &path).await;
    assert_eq!(location(&response), format!("{back}?state=s"));
    assert!(!browser.cookies.contains_key("__Host-dormouse-sso"));
    let refused = server.refresh(text(&tokens, "refresh_token")).await;
    assert_eq!(refused.1["error"], "invalid_grant");
}

#[tokio::test]
async fn signing_out_by_hand() {
    let server = Server::start().await;
    let mut browser = Browser::default();
    browser.code(&server).await;
    let page = browser.open(&server, "/sign-out").await.text().await.unwrap();
    let ticket = ticket(&page);
    let form = [("ticket", ticket.as_str())];
    let foreign = server.request(Method::POST, "/sign-out").form(&form);
    let foreign = foreign.header(header::ORIGIN, "https://lab--alice.localhost:8443");
    assert_eq!(browser.send(foreign).await.status(), StatusCode::FORBIDDEN);
    assert_eq!(browser.open(&server, &authorize_with(&[])).await.status(), StatusCode::SEE_OTHER);
    let own = server.request(Method::POST, "/sign-out").form(&form).header(header::ORIGIN, ISSUER);
    assert!(browser.send(own).await.text().await.unwrap().contains("You are signed out"));
    assert_eq!(browser.open(&server, &authorize_with(&[])).await.status(), StatusCode::OK);
}

#[tokio::test]
async fn attack_10_nobody_is_sent_elsewhere_after_signing_out() {
    let server = Server::start().await;
    for client in ["dormouse-gate", "other", "nobody", ""] {
        for uri in
            ["https://evil.example/", "//evil.example", "https://other.example/bye/", "/\\evil"]
        {
            let path = format!("/sign-out?client_id={client}&post_logout_redirect_uri={uri}");
            let response = server.get(&path).await;
            assert_eq!(response.status(), StatusCode::OK, "{client} {uri}");
        }
    }
    let path = "/sign-out?client_id=other&post_logout_redirect_uri=https://other.example/bye";
    assert_eq!(location(&server.get(path).await), "https://other.example/bye");
}

#[tokio::test]
async fn people_keys_and_sessions_survive_a_restart() {
    let server = Server::start().await;
    let mut browser = Browser::default();
    let code = browser.code(&server).await;
    let (_, tokens) = server.redeem(GATE, &code).await;
    let old = server.personal_token("alice", 3600).await;
    let Server { folder, .. } = server;
    let server = Server::start_in(folder).await;
    assert!(server.verifier().await.verify(&old, server.now()).is_ok());
    assert_eq!(server.refresh(text(&tokens, "refresh_token")).await.0, StatusCode::OK);
    assert_eq!(browser.open(&server, &authorize_with(&[])).await.status(), StatusCode::SEE_OTHER);
}

#[tokio::test]
async fn what_is_over_is_deleted_and_what_lives_stays() {
    let server = Server::start().await;
    let code = Browser::default().code(&server).await;
    let (_, tokens) = server.redeem(GATE, &code).await;
    let idle = std::time::Duration::from_secs(12 * 3600);
    let later = server.now() + SignedDuration::from_hours(11);
    server.store.clean_up(later, idle).await.unwrap();
    server.wait(11 * HOUR);
    assert_eq!(server.refresh(text(&tokens, "refresh_token")).await.0, StatusCode::OK);
    let later = server.now() + SignedDuration::from_hours(24 * 9);
    server.store.clean_up(later, idle).await.unwrap();
    let refused = server.refresh(text(&tokens, "refresh_token")).await;
    assert!(text(&refused.1, "error_description").contains("not known"), "{refused:?}");
}
