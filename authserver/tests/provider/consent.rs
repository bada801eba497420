//! Third parties' clients are let in by people, and requests say how to ask.

use reqwest::{Method, Response, StatusCode, header};

use crate::support::*;

const PARTNER: [(&str, &str); 2] =
    [("client_id", "partner"), ("redirect_uri", "https://partner.example/cb")];

fn request(more: &[(&str, &str)]) -> String {
    authorize_with(&[&PARTNER, more].concat())
}

async fn answer(browser: &mut Browser, server: &Server, ticket: &str, decision: &str) -> Response {
    let post = server.request(Method::POST, "/consent").header(header::ORIGIN, ISSUER);
    browser.send(post.form(&[("ticket", ticket), ("decision", decision)])).await
}

#[tokio::test]
async fn a_third_party_is_let_in_once() {
    let server = Server::start().await;
    let mut browser = Browser::default();
    let page = browser.open(&server, &request(&[])).await.text().await.unwrap();
    // Signing in is one question, and letting the client in another.
    let response = browser.submit(&server, &ticket(&page), "alice", PASSWORD).await;
    assert_eq!(response.status(), StatusCode::OK);
    let policy = response.headers()[header::CONTENT_SECURITY_POLICY].to_str().unwrap().to_owned();
    assert!(policy.contains("form-action 'self' https://partner.example;"), "{policy}");
    let page = response.text().await.unwrap();
    for shown in
        ["Partner &#38; Co", "<strong>alice</strong>", "partner.example", "see your e-mail"]
    {
        assert!(page.contains(shown), "{shown} in {page}");
    }
    let to = location(&answer(&mut browser, &server, &ticket(&page), "allow").await);
    assert!(to.starts_with("https://partner.example/cb?code="), "{to}");
    assert_eq!(query(&to)["state"], "state-1");
    // Remembered; less is covered, more is asked about, and so is what wants to be asked about.
    for (more, status) in [
        ([("scope", "openid profile email groups")], StatusCode::SEE_OTHER),
        ([("scope", "openid")], StatusCode::SEE_OTHER),
        ([("prompt", "none")], StatusCode::SEE_OTHER),
        ([("prompt", "consent")], StatusCode::OK),
    ] {
        assert_eq!(browser.open(&server, &request(&more)).await.status(), status, "{more:?}");
    }
    // By this person alone.
    let mut bob = Browser::default();
    bob.code_of(&server, "bob").await;
    assert_eq!(bob.open(&server, &request(&[])).await.status(), StatusCode::OK);
    let to = location(&bob.open(&server, &request(&[("prompt", "none")])).await);
    assert_eq!(query(&to)["error"], "consent_required");
    // Our own clients are not asked about.
    let own = authorize_with(&[("prompt", "consent")]);
    assert_eq!(browser.open(&server, &own).await.status(), StatusCode::SEE_OTHER);
}

#[tokio::test]
async fn a_third_party_may_be_refused_and_nobody_answers_for_somebody_else() {
    let server = Server::start().await;
    let mut browser = Browser::default();
    browser.code(&server).await;
    let page = browser.open(&server, &request(&[])).await.text().await.unwrap();
    let sealed = ticket(&page);
    let foreign = server.request(Method::POST, "/consent").header(header::ORIGIN, "null");
    let foreign = foreign.form(&[("ticket", sealed.as_str()), ("decision", "allow")]);
    assert_eq!(browser.send(foreign).await.status(), StatusCode::FORBIDDEN);
    let mut bob = Browser::default();
    bob.code_of(&server, "bob").await;
    let response = answer(&mut bob, &server, &sealed, "allow").await;
    assert_eq!(response.status(), StatusCode::BAD_REQUEST);
    let response = answer(&mut Browser::default(), &server, &sealed, "allow").await;
    assert_eq!(response.status(), StatusCode::BAD_REQUEST);
    let to = location(&answer(&mut browser, &server, &sealed, "").await);
    let back = query(&to);
    assert_eq!((back["error"].as_str(), back["iss"].as_str()), ("access_denied", ISSUER));
    assert_eq!(
        browser.open(&server, &request(&[])).await.status(),
        StatusCode::OK,
        "not remembered"
    );
    // Too late is no yes: it is asked again.
    server.wait(600);
    let response = answer(&mut browser, &server, &sealed, "allow").await;
    assert_eq!(response.status(), StatusCode::OK);
    assert!(response.text().await.unwrap().contains("Let Partner &#38; Co in?"));
}

#[tokio::test]
async fn a_request_may_say_who_is_expected() {
    let server = Server::start().await;
    let mut browser = Browser::default();
    let page = browser.open(&server, &authorize_with(&[("login_hint", "bob\"<b>")])).await;
    let page = page.text().await.unwrap();
    assert!(page.contains("value=\"bob&#34;&#60;b&#62;\""), "{page}");
    let code = browser.code(&server).await;
    let (_, tokens) = server.redeem(GATE, &code).await;
    let hint = text(&tokens, "id_token");
    let silent = [("id_token_hint", hint), ("prompt", "none")];
    let to = location(&browser.open(&server, &authorize_with(&silent)).await);
    assert!(query(&to).contains_key("code"));
    // Somebody else is signed in: asked to sign in, and still not taken for the one expected.
    let mut bob = Browser::default();
    bob.code_of(&server, "bob").await;
    let to = location(&bob.open(&server, &authorize_with(&silent)).await);
    assert_eq!(query(&to)["error"], "login_required");
    let to = bob.sign_in(&server, &authorize_with(&[("id_token_hint", hint)]), "bob").await;
    assert_eq!(query(&to)["error"], "login_required");
    let to = location(&bob.open(&server, &authorize_with(&[("id_token_hint", "x.y.z")])).await);
    assert_eq!(query(&to)["error"], "invalid_request");
}

#[tokio::test]
async fn an_id_token_says_when_and_how_somebody_signed_in() {
    let server = Server::start().await;
    let mut browser = Browser::default();
    browser.code(&server).await;
    let began = server.now().as_second();
    server.wait(100);
    let code = browser.code(&server).await;
    let (_, tokens) = server.redeem(GATE, &code).await;
    let id = claims(text(&tokens, "id_token"));
    assert_eq!(id["auth_time"], began);
    assert_eq!(
        (id["amr"][0].as_str(), id["acr"].as_str()),
        (Some("pwd"), Some("urn:dormouse:acr:single-factor"))
    );
    // `max_age=0` is a new sign-in, and cannot be had in silence.
    let path = authorize_with(&[("max_age", "0")]);
    let to = browser.sign_in(&server, &path, "alice").await;
    let (_, tokens) = server.redeem(GATE, &query(&to)["code"]).await;
    assert_eq!(claims(text(&tokens, "id_token"))["auth_time"], server.now().as_second());
    let path = authorize_with(&[("max_age", "0"), ("prompt", "none")]);
    let to = location(&browser.open(&server, &path).await);
    assert_eq!(query(&to)["error"], "login_required");
}
