//! Passkeys whose counter tells of a copy, and those that count nothing.

use reqwest::StatusCode;

use super::passkeys::{add, begin, challenge, page, post, sign_in, signed_in};
use crate::support::{authenticator::Authenticator, *};

#[tokio::test]
async fn a_copied_passkey_is_blocked() {
    let server = Server::start().await;
    let mut browser = signed_in(&server, "alice").await;
    let mut key = add(&mut browser, &server, "phone").await;
    key.counter = 10;
    let response = sign_in(&mut Browser::default(), &server, &mut key).await;
    assert_eq!(response.status(), StatusCode::SEE_OTHER);
    // The copy still counts from where it was copied.
    key.counter = 5;
    let response = sign_in(&mut Browser::default(), &server, &mut key).await;
    assert_eq!(response.status(), StatusCode::FORBIDDEN);
    server.audited("counter went back").await;
    // From now on neither of the two gets in, and the owner is told.
    key.counter = 20;
    let response = sign_in(&mut Browser::default(), &server, &mut key).await;
    assert_eq!(response.status(), StatusCode::FORBIDDEN);
    let account = page(browser.open(&server, "/account").await).await;
    assert!(account.contains("a copy of it may be in use"), "{account}");
}

/// Adds a passkey whose counter stays 0, as those do that are copied between somebody's devices.
async fn add_uncounted(server: &Server) -> Authenticator {
    let mut browser = signed_in(server, "alice").await;
    let (options, challenge) = challenge(&mut browser, server, "/account/passkeys/options").await;
    let (mut key, _) = Authenticator::create(&options);
    key.counts = false;
    key.counter = 0;
    let made = key.remake(&options);
    let form = [("name", "synced"), ("challenge", challenge.as_str()), ("credential", &made)];
    let response = post(&mut browser, server, "/account/passkeys", &form).await;
    assert_eq!(location(&response), "/account");
    key
}

#[tokio::test]
async fn an_authenticator_that_counts_nothing_is_fine() {
    let server = Server::start().await;
    let mut key = add_uncounted(&server).await;
    for _ in 0..2 {
        let response = sign_in(&mut Browser::default(), &server, &mut key).await;
        assert_eq!(response.status(), StatusCode::SEE_OTHER);
    }
}

#[tokio::test]
async fn an_assertion_counts_once_where_no_counter_tells() {
    let server = Server::start().await;
    let replica = server.replica().await;
    let mut key = add_uncounted(&server).await;
    let mut browser = Browser::default();
    let (options, challenge, ticket) = begin(&mut browser, &server).await;
    let assertion = key.get(&options);
    let form = [("ticket", ticket.as_str()), ("challenge", &challenge), ("credential", &assertion)];
    let send = async |server: &Server| {
        // With the cookies of before the sign-in, as somebody has them who overheard it.
        let mut browser = Browser { cookies: browser.cookies.clone() };
        let response = post(&mut browser, server, "/sign-in/passkey", &form).await;
        (response.status(), browser.cookies.contains_key("__Host-dormouse-sso"))
    };
    // At once, at two replicas: one of them lets it in.
    let (one, other) = tokio::join!(send(&server), send(&replica));
    let (yes, no) = ((StatusCode::SEE_OTHER, true), (StatusCode::FORBIDDEN, false));
    assert!((one, other) == (yes, no) || (one, other) == (no, yes), "{one:?} {other:?}");
    for server in [&server, &replica] {
        assert_eq!(send(server).await, no);
    }
    // Nor does it answer another challenge, whatever form it is sent in.
    let (_, next, ticket) = begin(&mut browser, &server).await;
    let form = [("ticket", ticket.as_str()), ("challenge", &next), ("credential", &assertion)];
    let response = post(&mut browser, &server, "/sign-in/passkey", &form).await;
    assert_eq!(response.status(), StatusCode::FORBIDDEN);
    // The key itself goes on working.
    let response = sign_in(&mut Browser::default(), &server, &mut key).await;
    assert_eq!(response.status(), StatusCode::SEE_OTHER);
}
