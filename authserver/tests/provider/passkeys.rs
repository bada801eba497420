//! Passkeys: added on the account page, and then enough to sign in.

use reqwest::{Method, Response, StatusCode, header};
use serde_json::Value;

use crate::support::{authenticator::Authenticator, *};

/// What the pages' script does: a challenge.
pub async fn challenge(browser: &mut Browser, server: &Server, path: &str) -> (Value, String) {
    let request = server.request(Method::POST, path).header(header::ORIGIN, ISSUER);
    let response = browser.send(request).await;
    assert_eq!(response.status(), StatusCode::OK);
    let answer: Value = response.json().await.unwrap();
    (answer["options"].clone(), text(&answer, "challenge").to_owned())
}

pub async fn post(
    browser: &mut Browser,
    server: &Server,
    path: &str,
    form: &[(&str, &str)],
) -> Response {
    let request = server.request(Method::POST, path).header(header::ORIGIN, ISSUER);
    browser.send(request.form(form)).await
}

pub async fn signed_in(server: &Server, name: &str) -> Browser {
    let mut browser = Browser::default();
    browser.code_of(server, name).await;
    browser
}

/// Adds a passkey to the account of whoever is signed in.
pub async fn add(browser: &mut Browser, server: &Server, name: &str) -> Authenticator {
    let (options, challenge) = challenge(browser, server, "/account/passkeys/options").await;
    let (authenticator, made) = Authenticator::create(&options);
    let form = [("name", name), ("challenge", &challenge), ("credential", &made)];
    let response = post(browser, server, "/account/passkeys", &form).await;
    assert_eq!(location(&response), "/account");
    authenticator
}

/// Opens the sign-in page; a challenge, and the form's ticket.
pub async fn begin(browser: &mut Browser, server: &Server) -> (Value, String, String) {
    let page = browser.open(server, &authorize_with(&[])).await;
    assert_eq!(page.status(), StatusCode::OK);
    let ticket = ticket(&page.text().await.unwrap());
    let (options, challenge) = challenge(browser, server, "/sign-in/passkey/options").await;
    (options, challenge, ticket)
}

pub async fn sign_in(browser: &mut Browser, server: &Server, key: &mut Authenticator) -> Response {
    let (options, challenge, ticket) = begin(browser, server).await;
    let form = [
        ("ticket", ticket.as_str()),
        ("challenge", &challenge),
        ("credential", &key.get(&options)),
    ];
    post(browser, server, "/sign-in/passkey", &form).await
}

pub async fn page(response: Response) -> String {
    response.text().await.unwrap()
}

/// The id of the only passkey on the page.
fn id_on(page: &str) -> String {
    let (_, rest) = page.split_once("name=\"id\" value=\"").expect("there is a passkey");
    rest.split('"').next().unwrap().to_owned()
}

#[tokio::test]
async fn a_passkey_alone_signs_in() {
    let server = Server::start().await;
    let mut browser = signed_in(&server, "alice").await;
    let mut key = add(&mut browser, &server, "kitchen key").await;
    let account = page(browser.open(&server, "/account").await).await;
    assert!(account.contains("kitchen key") && account.contains("not used yet"), "{account}");
    assert!(
        !page(signed_in(&server, "bob").await.open(&server, "/account").await)
            .await
            .contains("kitchen key")
    );

    let response = sign_in(&mut Browser::default(), &server, &mut key).await;
    let code = query(&location(&response))["code"].clone();
    let (_, tokens) = server.redeem(GATE, &code).await;
    let id_token = claims(text(&tokens, "id_token"));
    assert_eq!(id_token["amr"], serde_json::json!(["pop"]));
    assert_eq!(id_token["acr"], "phr");
    assert_eq!(id_token["preferred_username"], "alice");
    let account = page(browser.open(&server, "/account").await).await;
    assert!(account.contains("last used"), "{account}");
    // And again, with a counter that went on.
    assert_eq!(
        sign_in(&mut Browser::default(), &server, &mut key).await.status(),
        StatusCode::SEE_OTHER
    );
    let log = server.audited("\"signed-in\"").await;
    assert!(log.contains("\"passkey-added\"") && log.contains("\"passkey\""), "{log}");
}

#[tokio::test]
async fn a_passkey_that_was_removed_is_refused() {
    let server = Server::start().await;
    let mut browser = signed_in(&server, "alice").await;
    let mut key = add(&mut browser, &server, "phone").await;
    let id = id_on(&page(browser.open(&server, "/account").await).await);
    // Not by somebody else, and not by another site.
    let mut bob = signed_in(&server, "bob").await;
    post(&mut bob, &server, "/account/passkeys/remove", &[("id", &id)]).await;
    let foreign = server.request(Method::POST, "/account/passkeys/remove").form(&[("id", &id)]);
    let foreign = browser.send(foreign.header(header::ORIGIN, "https://lab--alice.localhost:8443"));
    assert_eq!(foreign.await.status(), StatusCode::FORBIDDEN);
    let response = sign_in(&mut Browser::default(), &server, &mut key).await;
    assert_eq!(response.status(), StatusCode::SEE_OTHER);

    post(&mut browser, &server, "/account/passkeys/remove", &[("id", &id)]).await;
    let response = sign_in(&mut Browser::default(), &server, &mut key).await;
    assert_eq!(response.status(), StatusCode::FORBIDDEN);
    assert!(page(response).await.contains("does not work here any more"));
    server.audited("\"passkey-removed\"").await;
}

#[tokio::test]
async fn a_passkey_of_somebody_disabled_is_refused() {
    let server = Server::start().await;
    let mut key = add(&mut signed_in(&server, "alice").await, &server, "phone").await;
    let alice = "alice".parse().unwrap();
    server.store.disable_user(&alice, server.now()).await.unwrap();
    let response = sign_in(&mut Browser::default(), &server, &mut key).await;
    assert_eq!(response.status(), StatusCode::FORBIDDEN);
    server.store.enable_user(&alice).await.unwrap();
    let response = sign_in(&mut Browser::default(), &server, &mut key).await;
    assert_eq!(response.status(), StatusCode::SEE_OTHER);
}

#[tokio::test]
async fn operators_see_and_remove_passkeys() {
    let server = Server::start().await;
    let mut browser = signed_in(&server, "alice").await;
    let mut key = add(&mut browser, &server, "phone").await;
    add(&mut browser, &server, "laptop").await;
    let alice = server.store.person(&"alice".parse().unwrap()).await.unwrap().unwrap();
    let listed = server.store.passkeys(&alice.subject).await.unwrap();
    let names: Vec<_> = listed.iter().map(|passkey| passkey.name.as_str()).collect();
    assert_eq!(names, ["laptop", "phone"]);
    let remove = |name: &'static str, id: Option<String>| {
        let store = server.store.clone();
        async move { store.remove_passkeys_of(&name.parse().unwrap(), id.as_deref()).await }
    };
    let id = listed[1].id.clone();
    assert_eq!(remove("bob", Some(id.clone())).await.unwrap(), 0);
    assert_eq!(remove("alice", Some(id)).await.unwrap(), 1);
    let response = sign_in(&mut Browser::default(), &server, &mut key).await;
    assert_eq!(response.status(), StatusCode::FORBIDDEN);
    assert_eq!(remove("alice", None).await.unwrap(), 1);
    assert!(remove("nobody", None).await.is_err());
}

#[tokio::test]
async fn a_challenge_is_good_once_for_a_while_and_for_one_browser() {
    let server = Server::start().await;
    let replica = server.replica().await;
    let mut key = add(&mut signed_in(&server, "alice").await, &server, "phone").await;
    let mut browser = Browser::default();
    let (options, challenge, ticket) = begin(&mut browser, &server).await;
    let credential = key.get(&options);
    let form =
        [("ticket", ticket.as_str()), ("challenge", &challenge), ("credential", &credential)];
    // Another browser, with cookies of its own, and a ticket that is its own.
    let mut other = Browser::default();
    let (_, _, own) = begin(&mut other, &server).await;
    let stolen = [("ticket", own.as_str()), form[1], form[2]];
    let response = post(&mut other, &server, "/sign-in/passkey", &stolen).await;
    assert_eq!(response.status(), StatusCode::FORBIDDEN);
    // The same form, once and again, here and at a replica. A double click blocks nothing.
    let response = post(&mut browser, &server, "/sign-in/passkey", &form).await;
    assert_eq!(response.status(), StatusCode::SEE_OTHER);
    for server in [&server, &replica] {
        let response = post(&mut browser, server, "/sign-in/passkey", &form).await;
        assert_eq!(response.status(), StatusCode::FORBIDDEN);
    }
    // Too late.
    let mut slow = Browser::default();
    let (options, challenge, ticket) = begin(&mut slow, &server).await;
    server.wait(301);
    let form = [
        ("ticket", ticket.as_str()),
        ("challenge", &challenge),
        ("credential", &key.get(&options)),
    ];
    let response = post(&mut slow, &server, "/sign-in/passkey", &form).await;
    assert_eq!(response.status(), StatusCode::FORBIDDEN);
    assert!(page(response).await.contains("took too long"));
    // And nothing of that did harm.
    let response = sign_in(&mut Browser::default(), &replica, &mut key).await;
    assert_eq!(response.status(), StatusCode::SEE_OTHER);
}

#[tokio::test]
async fn what_a_passkey_must_not_be() {
    let server = Server::start().await;
    let mut browser = signed_in(&server, "alice").await;
    let mut key = add(&mut browser, &server, "phone").await;
    let refused = async |key: &mut Authenticator| {
        let response = sign_in(&mut Browser::default(), &server, key).await;
        assert_eq!(response.status(), StatusCode::FORBIDDEN);
        // Out of the way of who tries too often.
        server.wait(61);
    };
    // Of another site that looks like ours.
    key.origin = "https://auth.localhost.evil:8443";
    refused(&mut key).await;
    key.origin = "https://lab--alice.localhost:8443";
    refused(&mut key).await;
    key.origin = ISSUER;
    // Used by somebody whom it did not verify.
    key.verifies = false;
    refused(&mut key).await;
    key.verifies = true;
    // Said to be bob's.
    let own = key.handle.clone();
    let bob = server.store.person(&"bob".parse().unwrap()).await.unwrap().unwrap();
    key.handle = uuid::Uuid::parse_str(&bob.subject).unwrap().as_bytes().to_vec();
    refused(&mut key).await;
    key.handle = own.clone();
    // Another key by the same name.
    let (options, _) = challenge(&mut browser, &server, "/account/passkeys/options").await;
    let (mut stranger, _) = Authenticator::create(&options);
    refused(&mut stranger).await;
    stranger.id = key.id;
    stranger.counter = 100;
    refused(&mut stranger).await;
    let response = sign_in(&mut Browser::default(), &server, &mut key).await;
    assert_eq!(response.status(), StatusCode::SEE_OTHER);
    // What is no passkey at all.
    let mut browser = Browser::default();
    let (_, challenge, ticket) = begin(&mut browser, &server).await;
    for bad in ["", "{}", "null", "[[[[", &"x".repeat(20_000)] {
        let form = [("ticket", ticket.as_str()), ("challenge", &challenge), ("credential", bad)];
        let response = post(&mut browser, &server, "/sign-in/passkey", &form).await;
        assert_eq!(response.status(), StatusCode::FORBIDDEN);
    }
}

#[tokio::test]
async fn only_a_fresh_sign_in_adds_or_removes() {
    let server = Server::start().await;
    let mut browser = signed_in(&server, "alice").await;
    let mut key = add(&mut browser, &server, "phone").await;
    let id = id_on(&page(browser.open(&server, "/account").await).await);
    let (options, stale) = challenge(&mut browser, &server, "/account/passkeys/options").await;
    server.wait(15 * 60);
    let request = server.request(Method::POST, "/account/passkeys/options");
    let response = browser.send(request.header(header::ORIGIN, ISSUER)).await;
    assert_eq!(response.status(), StatusCode::FORBIDDEN);
    post(&mut browser, &server, "/account/passkeys/remove", &[("id", &id)]).await;
    let (_, made) = Authenticator::create(&options);
    let form = [("name", "late"), ("challenge", stale.as_str()), ("credential", &made)];
    let response = post(&mut browser, &server, "/account/passkeys", &form).await;
    assert_eq!(response.status(), StatusCode::FORBIDDEN);
    let account = page(browser.open(&server, "/account").await).await;
    assert!(account.contains("phone") && account.contains("/account/confirm"), "{account}");
    assert!(!account.contains("passkeys.js"));

    // Signing in again, by the passkey at that, is enough.
    let again = browser.open(&server, "/account/confirm").await;
    let form = ticket(&page(again).await);
    let (options, challenge) = challenge(&mut browser, &server, "/sign-in/passkey/options").await;
    let form =
        [("ticket", form.as_str()), ("challenge", &challenge), ("credential", &key.get(&options))];
    let response = post(&mut browser, &server, "/sign-in/passkey", &form).await;
    assert_eq!(location(&response), "/account");
    post(&mut browser, &server, "/account/passkeys/remove", &[("id", &id)]).await;
    assert!(!page(browser.open(&server, "/account").await).await.contains("phone"));
}

#[tokio::test]
async fn a_challenge_adds_one_passkey_in_one_session() {
    let server = Server::start().await;
    let mut alice = signed_in(&server, "alice").await;
    let (options, challenge) = challenge(&mut alice, &server, "/account/passkeys/options").await;
    let (_, made) = Authenticator::create(&options);
    let form = [("name", "one"), ("challenge", challenge.as_str()), ("credential", &made)];
    // Somebody else signs in to the same browser before the form is sent.
    let mut bob = Browser::default();
    let (name, value) = alice.cookies.get_key_value("__Host-dormouse-form").unwrap();
    bob.cookies.insert(name.clone(), value.clone());
    bob.code_of(&server, "bob").await;
    let response = post(&mut bob, &server, "/account/passkeys", &form).await;
    assert_eq!(response.status(), StatusCode::FORBIDDEN);
    let response = post(&mut alice, &server, "/account/passkeys", &form).await;
    assert_eq!(location(&response), "/account");
    let response = post(&mut alice, &server, "/account/passkeys", &form).await;
    assert_eq!(response.status(), StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn names_are_told_apart_and_passkeys_are_counted() {
    let server = Server::start().await;
    let mut browser = signed_in(&server, "alice").await;
    for n in 0..20 {
        add(&mut browser, &server, &format!("key {n}")).await;
    }
    for name in ["key 21", "key 1", "", "a\nb"] {
        let (options, challenge) =
            challenge(&mut browser, &server, "/account/passkeys/options").await;
        assert_eq!(options["excludeCredentials"].as_array().unwrap().len(), 20);
        let (_, made) = Authenticator::create(&options);
        let form = [("name", name), ("challenge", &challenge), ("credential", &made)];
        let response = post(&mut browser, &server, "/account/passkeys", &form).await;
        assert_eq!(response.status(), StatusCode::CONFLICT, "{name:?}");
        assert!(page(response).await.contains("role=\"alert\""));
    }
}

#[tokio::test]
async fn attack_18_passkeys_that_are_made_up_are_slowed_down() {
    let server = Server::start().await;
    let mut owner = signed_in(&server, "alice").await;
    let mut key = add(&mut owner, &server, "phone").await;
    let (options, _) = challenge(&mut owner, &server, "/account/passkeys/options").await;
    let mut tried = 0;
    loop {
        let (mut stranger, _) = Authenticator::create(&options);
        let response = sign_in(&mut Browser::default(), &server, &mut stranger).await;
        match response.status() {
            StatusCode::FORBIDDEN => tried += 1,
            status => {
                assert_eq!(status, StatusCode::TOO_MANY_REQUESTS);
                assert!(response.headers().contains_key(header::RETRY_AFTER));
                break;
            }
        }
    }
    assert_eq!(tried, 20);
    // Where she has signed in before, alice gets in all the same, from the same address.
    owner.cookies.remove("__Host-dormouse-sso");
    let response = sign_in(&mut owner, &server, &mut key).await;
    assert_eq!(response.status(), StatusCode::SEE_OTHER);
}

#[tokio::test]
async fn people_of_another_provider_have_no_passkeys_here() {
    let server = Server::start().await;
    let mut browser = signed_in(&server, "alice").await;
    let pool = pool(&server).await;
    sqlx::query("UPDATE people SET password_hash = NULL").execute(&pool).await.unwrap();
    let account = page(browser.open(&server, "/account").await).await;
    assert!(!account.contains("passkeys.js"), "{account}");
    let request = server.request(Method::POST, "/account/passkeys/options");
    let response = browser.send(request.header(header::ORIGIN, ISSUER)).await;
    assert_eq!(response.status(), StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn only_pages_with_passkeys_run_a_script_and_only_ours() {
    let server = Server::start().await;
    let mut browser = Browser::default();
    let policy = |response: &Response| {
        response.headers()["content-security-policy"].to_str().unwrap().to_owned()
    };
    let sign_in = browser.open(&server, &authorize_with(&[])).await;
    assert!(policy(&sign_in).contains("script-src 'self'; connect-src 'self';"));
    assert!(page(sign_in).await.contains("autocomplete=\"username webauthn\""));
    browser.code(&server).await;
    let account = browser.open(&server, "/account").await;
    assert!(policy(&account).contains("script-src 'self'; connect-src 'self';"));
    for path in ["/", "/device", "/sign-out", "/nowhere"] {
        let request = server.request(Method::GET, path).header(header::ACCEPT, "text/html");
        let response = browser.send(request).await;
        assert!(!policy(&response).contains("script-src"), "{path}");
    }
    let script = server.get("/passkeys.js").await;
    assert_eq!(script.headers()["content-type"], "text/javascript; charset=utf-8");
    assert_eq!(script.headers()["x-content-type-options"], "nosniff");
}
