//! The sign-in form, against those who should not get through it.

use reqwest::{Method, StatusCode, header};

use crate::support::*;

async fn page(browser: &mut Browser, server: &Server) -> String {
    ticket(&browser.open(server, &authorize_with(&[])).await.text().await.unwrap())
}

#[tokio::test]
async fn a_wrong_password_is_told_in_place() {
    let server = Server::start().await;
    let mut browser = Browser::default();
    let ticket = page(&mut browser, &server).await;
    for (name, password) in [("alice", "wrong"), ("nobody", PASSWORD), ("", ""), ("<b>", "x")] {
        let response = browser.submit(&server, &ticket, name, password).await;
        assert_eq!(response.status(), StatusCode::FORBIDDEN);
        let html = response.text().await.unwrap();
        assert!(html.contains("That name and password do not match."), "{html}");
        assert!(html.contains("lab--alice.localhost") && !html.contains("<b>"));
    }
    assert!(!browser.cookies.contains_key("__Host-dormouse-sso"));
    let to = location(&browser.submit(&server, &ticket, "alice", PASSWORD).await);
    assert!(to.starts_with(CALLBACK));
}

#[tokio::test]
async fn attack_13_a_form_of_another_site_browser_or_time_is_refused() {
    let server = Server::start().await;
    let mut browser = Browser::default();
    let ticket = page(&mut browser, &server).await;
    let form = [("ticket", ticket.as_str()), ("name", "alice"), ("password", PASSWORD)];
    let post = || server.request(Method::POST, "/sign-in").form(&form);
    for origin in ["https://lab--alice.localhost:8443", "null", "https://auth.localhost", ""] {
        let response = browser.send(post().header(header::ORIGIN, origin)).await;
        assert_eq!(response.status(), StatusCode::FORBIDDEN, "{origin}");
    }
    assert_eq!(browser.send(post()).await.status(), StatusCode::FORBIDDEN);

    // The attacker's ticket in the victim's browser.
    let mut victim = Browser::default();
    page(&mut victim, &server).await;
    let response = victim.submit(&server, &ticket, "alice", PASSWORD).await;
    assert_eq!(response.status(), StatusCode::FORBIDDEN);
    let response = Browser::default().submit(&server, &ticket, "alice", PASSWORD).await;
    assert_eq!(response.status(), StatusCode::FORBIDDEN);
    let response = browser.submit(&server, "x.y", "alice", PASSWORD).await;
    assert_eq!(response.status(), StatusCode::BAD_REQUEST);

    server.wait(24 * 3600);
    let response = browser.submit(&server, &ticket, "alice", PASSWORD).await;
    let html = response.text().await.unwrap();
    assert!(html.contains("open for too long"), "{html}");
    // The page that says so is good again.
    let response = browser.submit(&server, &crate::support::ticket(&html), "alice", PASSWORD).await;
    assert_eq!(response.status(), StatusCode::SEE_OTHER);
}

#[tokio::test]
async fn attack_15_ten_tabs_after_lunch_all_land() {
    let server = Server::start().await;
    let mut browser = Browser::default();
    let mut tickets = Vec::new();
    for _ in 0..10 {
        tickets.push(page(&mut browser, &server).await);
    }
    for ticket in tickets {
        let to = location(&browser.submit(&server, &ticket, "alice", PASSWORD).await);
        assert!(to.starts_with(CALLBACK));
    }
}

#[tokio::test]
async fn attack_15_tabs_that_open_at_once_in_a_new_browser_land() {
    let server = Server::start().await;
    // None of the two has the other's cookie yet; the browser keeps the later one.
    let mut browser = Browser::default();
    let first = page(&mut Browser::default(), &server).await;
    let second = page(&mut browser, &server).await;
    let html = browser.submit(&server, &first, "alice", PASSWORD).await.text().await.unwrap();
    assert!(html.contains("earlier visit"), "{html}");
    location(&browser.submit(&server, &second, "alice", PASSWORD).await);
    let to = location(&browser.submit(&server, &first, "alice", "typed wrong").await);
    assert!(to.starts_with(CALLBACK));
}

#[tokio::test]
async fn attack_18_guessing_is_slowed_and_nobody_is_locked_out() {
    let server = Server::start().await;
    // Alice has signed in from her own browser before.
    let mut alice = Browser::default();
    alice.code(&server).await;
    alice.cookies.remove("__Host-dormouse-sso");

    let mut guesser = Browser::default();
    let ticket = page(&mut guesser, &server).await;
    for n in 0..5 {
        let response = guesser.submit(&server, &ticket, "alice", &format!("guess {n}")).await;
        assert_eq!(response.status(), StatusCode::FORBIDDEN);
    }
    let response = guesser.submit(&server, &ticket, "alice", PASSWORD).await;
    assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(response.headers()[header::RETRY_AFTER], "1");
    assert!(response.text().await.unwrap().contains("wait 1 s"));
    // From another address it is the same account.
    let form = [("ticket", ticket.as_str()), ("name", "alice"), ("password", "guess")];
    let request =
        server.request(Method::POST, "/sign-in").form(&form).header(header::ORIGIN, ISSUER);
    let response = guesser.send(from(request, "203.0.113.7")).await;
    assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);

    // Alice is not held up where she is known, and nobody else is.
    let to = alice.sign_in(&server, &authorize_with(&[]), "alice").await;
    assert!(to.starts_with(CALLBACK));
    assert_eq!(
        guesser.submit(&server, &ticket, "bob", PASSWORD).await.status(),
        StatusCode::SEE_OTHER
    );
    // A device that alice is known on is not one for guessing at bob.
    server.wait(1);
    let response = guesser.submit(&server, &ticket, "alice", PASSWORD).await;
    assert_eq!(response.status(), StatusCode::SEE_OTHER);
}

#[tokio::test]
async fn attack_18_a_device_cookie_is_good_for_its_own_name_only() {
    let server = Server::start().await;
    let mut bob = Browser::default();
    bob.sign_in(&server, &authorize_with(&[]), "bob").await;
    bob.cookies.remove("__Host-dormouse-sso");
    let ticket = page(&mut bob, &server).await;
    let mut stranger = Browser::default();
    let strangers = page(&mut stranger, &server).await;
    for _ in 0..5 {
        stranger.submit(&server, &strangers, "alice", "guess").await;
    }
    let response = bob.submit(&server, &ticket, "alice", "guess").await;
    assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
}

#[tokio::test]
async fn attack_16_no_secret_reaches_the_audit_log() {
    let server = Server::start().await;
    let mut browser = Browser::default();
    let code = browser.code(&server).await;
    let (_, tokens) = server.redeem(GATE, &code).await;
    server.refresh(text(&tokens, "refresh_token")).await;
    let mut stranger = Browser::default();
    let ticket = page(&mut stranger, &server).await;
    stranger.submit(&server, &ticket, "alice", "guess").await;
    // Written by a thread of its own: wait for the last event.
    let log = loop {
        let log = server.audit();
        if log.contains("\"refused\"") {
            break log;
        }
        tokio::task::yield_now().await;
    };
    for did in ["signed-in", "authorized", "token-issued"] {
        assert!(log.contains(&format!("\"did\":\"{did}\"")), "{did} in {log}");
    }
    assert!(log.contains("\"from\":\"127.0.0.1\""));
    let secrets = [PASSWORD, "guess", &code, text(&tokens, "refresh_token"), GATE.1];
    for secret in secrets.into_iter().chain(browser.cookies.values().map(String::as_str)) {
        assert!(!log.contains(secret), "{secret} in {log}");
    }
}

#[tokio::test]
async fn attack_24_strangers_do_not_fill_the_log() {
    let server = Server::start().await;
    let mut stranger = Browser::default();
    let ticket = page(&mut stranger, &server).await;
    for _ in 0..40 {
        stranger.submit(&server, &ticket, "alice", "guess").await;
        server.redeem(("dormouse-gate", "wrong"), "code").await;
        server.get(&authorize_with(&[])).await;
    }
    // A later event, so that all earlier ones are written.
    let mut bob = Browser::default();
    bob.sign_in(&server, &authorize_with(&[]), "bob").await;
    let log = loop {
        let log = server.audit();
        if log.contains("\"authorized\"") {
            break log;
        }
        tokio::task::yield_now().await;
    };
    assert_eq!(log.matches("\"refused\"").count(), 5, "{log}");
}

#[tokio::test]
async fn the_start_page_signs_in_too() {
    let server = Server::start().await;
    let mut browser = Browser::default();
    let html = browser.open(&server, "/").await.text().await.unwrap();
    let response = browser.submit(&server, &ticket(&html), "alice", PASSWORD).await;
    assert_eq!(location(&response), "/");
    let html = browser.open(&server, "/").await.text().await.unwrap();
    assert!(html.contains("https://portal.localhost:8443/"), "{html}");
    assert_eq!(
        server.get("/style.css").await.headers()[header::CONTENT_TYPE],
        "text/css; charset=utf-8"
    );
}
