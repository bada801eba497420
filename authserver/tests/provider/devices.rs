//! Devices without a browser (RFC 8628).

use reqwest::{Method, Response, StatusCode, header};
use serde_json::{Value, json};

use crate::support::*;

const GRANT: &str = "urn:ietf:params:oauth:grant-type:device_code";

async fn start(server: &Server) -> Value {
    let (status, answer) =
        server.post("/device/code", &[("client_id", "tv"), ("scope", "openid workload:use")]).await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    answer
}

async fn poll(server: &Server, started: &Value) -> (StatusCode, Value) {
    let code = text(started, "device_code");
    server
        .post("/token", &[("client_id", "tv"), ("grant_type", GRANT), ("device_code", code)])
        .await
}

async fn error(server: &Server, started: &Value) -> String {
    let (status, answer) = poll(server, started).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    text(&answer, "error").to_owned()
}

async fn submit(browser: &mut Browser, server: &Server, form: &[(&str, &str)]) -> Response {
    let request = server.request(Method::POST, "/device").header(header::ORIGIN, ISSUER);
    browser.send(request.form(form)).await
}

/// A browser that is signed in, and the page that asks about the device.
async fn question(server: &Server, started: &Value) -> (Browser, String) {
    let mut browser = Browser::default();
    browser.code(server).await;
    let code = text(started, "user_code");
    let response = submit(&mut browser, server, &[("user_code", code)]).await;
    assert_eq!(response.status(), StatusCode::OK);
    let page = response.text().await.unwrap();
    (browser, page)
}

#[tokio::test]
async fn a_device_is_approved_and_gets_tokens() {
    let server = Server::start().await;
    let started = start(&server).await;
    assert_eq!((&started["expires_in"], &started["interval"]), (&json!(600), &json!(5)));
    assert_eq!(text(&started, "verification_uri"), format!("{ISSUER}/device"));
    assert_eq!(error(&server, &started).await, "authorization_pending");

    // Not signed in yet: sign in first, and the code is still there.
    let mut browser = Browser::default();
    let complete = text(&started, "verification_uri_complete").strip_prefix(ISSUER).unwrap();
    let page = browser.open(&server, complete).await.text().await.unwrap();
    let to = location(&browser.submit(&server, &ticket(&page), "alice", PASSWORD).await);
    assert_eq!(to, complete);
    let page = browser.open(&server, &to).await.text().await.unwrap();
    let code = text(&started, "user_code");
    assert!(page.contains(&format!("value=\"{code}\"")), "{page}");
    let typed = code.to_lowercase().replace('-', " ");
    let page = submit(&mut browser, &server, &[("user_code", &typed)]).await.text().await.unwrap();
    let form = [("ticket", ticket(&page)), ("decision", "approve".to_owned())];
    let form = form.each_ref().map(|(name, value)| (*name, value.as_str()));
    let page = submit(&mut browser, &server, &form).await;
    assert_eq!(page.status(), StatusCode::OK);
    assert!(page.text().await.unwrap().contains("The device is approved"));

    server.wait(5);
    let (status, tokens) = poll(&server, &started).await;
    assert_eq!(status, StatusCode::OK, "{tokens}");
    let identity = server.verifier().await;
    let identity = identity.verify(text(&tokens, "access_token"), server.now()).unwrap();
    assert_eq!(
        (identity.user.as_str(), tokens["scope"].as_str()),
        ("alice", Some("openid workload:use"))
    );
    // Once; and the decision stands.
    assert_eq!(error(&server, &started).await, "invalid_grant");
    assert_eq!(submit(&mut browser, &server, &form).await.status(), StatusCode::GONE);
    // Signing the browser out signs the device out, and says so first.
    let page = browser.open(&server, "/sign-out").await.text().await.unwrap();
    assert!(page.contains("<li>Television</li>"), "{page}");
    let out = server.request(Method::POST, "/sign-out").header(header::ORIGIN, ISSUER);
    browser.send(out.form(&[("ticket", ticket(&page))])).await;
    let form = [
        ("client_id", "tv"),
        ("grant_type", "refresh_token"),
        ("refresh_token", text(&tokens, "refresh_token")),
    ];
    assert_eq!(server.post("/token", &form).await.1["error"], "invalid_grant");
    server.audited("device-approved").await;
}

#[tokio::test]
async fn attack_14_the_page_says_what_is_approved_from_where_and_for_whom() {
    let server = Server::start().await;
    let request = server.request(Method::POST, "/device/code");
    let form = [("client_id", "tv"), ("scope", "openid workload:use")];
    let started: Value =
        from(request, "203.0.113.66").form(&form).send().await.unwrap().json().await.unwrap();
    let (mut browser, page) = question(&server, &started).await;
    for shown in [
        "Television",
        "<strong>alice</strong>",
        "203.0.113.66",
        "08:00:00 UTC",
        "You are at 127.0.0.1, and the device is not",
        "open your workloads",
        text(&started, "user_code"),
        "Did somebody send you this code?",
    ] {
        assert!(page.contains(shown), "{shown} in {page}");
    }
    // Whatever is not a clear yes is a no.
    let ticket = ticket(&page);
    let response = submit(&mut browser, &server, &[("ticket", &ticket), ("decision", "yes")]).await;
    assert!(response.text().await.unwrap().contains("The device is refused"));
    assert_eq!(error(&server, &started).await, "access_denied");
    assert_eq!(error(&server, &started).await, "invalid_grant");
    server.audited("device-denied").await;
}

#[tokio::test]
async fn attack_14_an_approval_cannot_be_made_from_another_site_browser_or_session() {
    let server = Server::start().await;
    let started = start(&server).await;
    let (mut browser, page) = question(&server, &started).await;
    let sealed = ticket(&page);
    let form = [("ticket", sealed.as_str()), ("decision", "approve")];
    let foreign = server.request(Method::POST, "/device").form(&form);
    let foreign = foreign.header(header::ORIGIN, "https://lab--alice.localhost:8443");
    assert_eq!(browser.send(foreign).await.status(), StatusCode::FORBIDDEN);
    // The attacker's page in the victim's browser.
    let mut victim = Browser::default();
    victim.sign_in(&server, &authorize_with(&[]), "bob").await;
    let response = submit(&mut victim, &server, &form).await;
    assert_eq!(response.status(), StatusCode::BAD_REQUEST);
    // A link alone approves nothing, whoever opens it.
    let link = text(&started, "verification_uri_complete").strip_prefix(ISSUER).unwrap();
    let html = victim.open(&server, link).await.text().await.unwrap();
    assert!(!html.contains("name=\"ticket\""), "{html}");
    // Nobody who is not signed in is told anything of a code.
    let code = [("user_code", text(&started, "user_code"))];
    let html = submit(&mut Browser::default(), &server, &code).await.text().await.unwrap();
    assert!(html.contains("<h1>Sign in</h1>") && !html.contains("Television"));
    assert_eq!(error(&server, &started).await, "authorization_pending");
}

#[tokio::test]
async fn attack_14_codes_are_short_lived_and_polling_is_slowed() {
    let server = Server::start().await;
    let started = start(&server).await;
    assert_eq!(error(&server, &started).await, "authorization_pending");
    assert_eq!(error(&server, &started).await, "slow_down");
    server.wait(9);
    assert_eq!(error(&server, &started).await, "slow_down", "the interval grew to 10 s");
    server.wait(15);
    assert_eq!(error(&server, &started).await, "authorization_pending");
    let (mut browser, page) = question(&server, &started).await;
    server.wait(600 - 24);
    assert_eq!(error(&server, &started).await, "expired_token");
    let ticket = ticket(&page);
    let form = [("ticket", ticket.as_str()), ("decision", "approve")];
    assert_eq!(submit(&mut browser, &server, &form).await.status(), StatusCode::GONE);
    let code = [("user_code", text(&started, "user_code"))];
    assert_eq!(submit(&mut browser, &server, &code).await.status(), StatusCode::NOT_FOUND);
    // Another client cannot ask with it.
    let other = start(&server).await;
    let proof = keys::assertion(1, "signed", "1", server.now().as_second());
    let form = [
        ("grant_type", GRANT),
        ("device_code", text(&other, "device_code")),
        ("client_assertion_type", keys::JWT_BEARER),
        ("client_assertion", &proof),
    ];
    assert_eq!(server.post("/token", &form).await.1["error"], "invalid_grant");
}

#[tokio::test]
async fn attack_14_guesses_and_floods_are_limited() {
    let server = Server::start().await;
    let mut browser = Browser::default();
    browser.code(&server).await;
    let mut statuses = Vec::new();
    for _ in 0..12 {
        let response = submit(&mut browser, &server, &[("user_code", "BBBB-BBBB")]).await;
        statuses.push(response.status());
    }
    assert_eq!(statuses[..10], [StatusCode::NOT_FOUND; 10]);
    assert_eq!(statuses[10..], [StatusCode::TOO_MANY_REQUESTS; 2]);
    // Another address does not help the same person, and another person is not held up.
    let request = server.request(Method::POST, "/device").header(header::ORIGIN, ISSUER);
    let request = from(request, "198.51.100.9").form(&[("user_code", "BBBB-BBBB")]);
    assert_eq!(browser.send(request).await.status(), StatusCode::TOO_MANY_REQUESTS);
    let mut bob = Browser::default();
    bob.sign_in(&server, &authorize_with(&[]), "bob").await;
    let request = server.request(Method::POST, "/device").header(header::ORIGIN, ISSUER);
    let request = from(request, "198.51.100.10").form(&[("user_code", "BBBB-BBBB")]);
    assert_eq!(bob.send(request).await.status(), StatusCode::NOT_FOUND);
    // Devices, too.
    let mut started = 0;
    for _ in 0..20 {
        let request = server.request(Method::POST, "/device/code");
        let request = from(request, "203.0.113.1").form(&[("client_id", "tv")]);
        let response = request.send().await.unwrap();
        started += u32::from(response.status() == StatusCode::OK);
    }
    assert_eq!(started, 10);
    let (status, error) = server.post("/device/code", &[("client_id", "tool")]).await;
    assert_eq!((status, text(&error, "error")), (StatusCode::BAD_REQUEST, "unauthorized_client"));
}

#[tokio::test]
async fn attack_14_only_a_fresh_sign_in_approves_a_device() {
    let server = Server::start().await;
    let mut browser = Browser::default();
    browser.code(&server).await;
    server.wait(14 * 60);
    let started = start(&server).await;
    let code = text(&started, "user_code");
    let page = submit(&mut browser, &server, &[("user_code", code)]).await.text().await.unwrap();
    let sealed = ticket(&page);
    server.wait(60);
    // The page was open while the sign-in got old, or the code is typed then.
    let approve = [("ticket", sealed.as_str()), ("decision", "approve")];
    let confirm = format!("/account/confirm?user_code={code}");
    for form in [&approve[..], &[("user_code", code)]] {
        let response = submit(&mut browser, &server, form).await;
        assert_eq!(response.status(), StatusCode::FORBIDDEN);
        let page = response.text().await.unwrap();
        assert!(page.contains(&confirm) && !page.contains("Television"), "{page}");
    }
    assert_eq!(error(&server, &started).await, "authorization_pending");
    // Whoever signs in again finds the code.
    let page = browser.open(&server, &confirm).await.text().await.unwrap();
    let to = location(&browser.submit(&server, &ticket(&page), "alice", PASSWORD).await);
    assert_eq!(to, format!("/device?user_code={code}"));
    let page = submit(&mut browser, &server, &[("user_code", code)]).await.text().await.unwrap();
    let sealed = ticket(&page);
    submit(&mut browser, &server, &[("ticket", &sealed), ("decision", "approve")]).await;
    server.wait(5);
    assert_eq!(poll(&server, &started).await.0, StatusCode::OK);
    // To refuse one takes nothing.
    server.wait(9 * 60);
    let started = start(&server).await;
    let code = [("user_code", text(&started, "user_code"))];
    let page = submit(&mut browser, &server, &code).await.text().await.unwrap();
    let sealed = ticket(&page);
    server.wait(6 * 60);
    submit(&mut browser, &server, &[("ticket", &sealed), ("decision", "deny")]).await;
    assert_eq!(error(&server, &started).await, "access_denied");
}

#[tokio::test]
async fn a_device_whose_person_is_gone_gets_nothing() {
    let server = Server::start().await;
    let started = start(&server).await;
    let (mut browser, page) = question(&server, &started).await;
    let ticket = ticket(&page);
    submit(&mut browser, &server, &[("ticket", &ticket), ("decision", "approve")]).await;
    server.store.disable_user(&"alice".parse().unwrap(), server.now()).await.unwrap();
    assert_eq!(error(&server, &started).await, "invalid_grant");
}
