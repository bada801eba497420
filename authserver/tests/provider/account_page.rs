//! Access tokens and SSH keys on the account page, without scripts.

use reqwest::{Method, Response, StatusCode, header};
use serde_json::{Value, json};

use super::{
    passkeys::{page, post, signed_in},
    shown_tokens::is_active,
};
use crate::support::*;

const KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGPKSUTyz5fOfbrU3VwNxqTV9lT9KTXMAO8LLlqEKcn4";

const TOKENS: &str = "/account/tokens";
const KEYS: &str = "/account/ssh-keys";

const USUAL: [(&str, &str); 4] =
    [("name", "laptop"), ("expires_in", "86400"), ("workload", ""), ("scope", "workload:use")];

/// The token on the page that shows it.
fn shown(page: &str) -> &str {
    let (_, rest) = page.split_once("<textarea id=\"token\"").expect("the page shows a token");
    rest.split(['>', '<']).nth(1).unwrap()
}

/// The first id on the page: of a token or a key, for people without passkeys.
fn id(page: &str) -> String {
    let (_, rest) = page.split_once("name=\"id\" value=\"").expect("there is something to remove");
    rest.split('"').next().unwrap().to_owned()
}

async fn account(browser: &mut Browser, server: &Server) -> String {
    page(browser.open(server, "/account").await).await
}

/// The same form as another site would send it.
async fn foreign(
    browser: &mut Browser,
    server: &Server,
    path: &str,
    form: &[(&str, &str)],
) -> Response {
    let request = server.request(Method::POST, path).form(form);
    browser.send(request.header(header::ORIGIN, "https://lab--alice.localhost:8443")).await
}

#[tokio::test]
async fn a_token_is_made_shown_once_and_works() {
    let server = Server::start().await;
    let mut browser = signed_in(&server, "alice").await;
    let form = [
        ("name", " train <1> "),
        ("expires_in", "604800"),
        ("workload", ""),
        ("scope", "workload:use"),
        ("scope", "usage:read"),
    ];
    let response = post(&mut browser, &server, TOKENS, &form).await;
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.headers()["cache-control"], "no-store");
    let policy = response.headers()["content-security-policy"].to_str().unwrap();
    assert!(!policy.contains("script-src"), "{policy}");
    let told = format!("{:?}", response.headers());
    let made = page(response).await;
    let token = shown(&made).to_owned();
    assert!(made.contains("NAME--PROJECT.localhost:8443/"), "{made}");
    let identity = server.verifier().await.verify(&token, server.now()).unwrap();
    assert_eq!(identity.user.as_str(), "alice");
    assert_eq!(identity.credential.scopes, ["workload:use", "usage:read"]);
    assert_eq!(identity.credential.expires_at.as_second(), server.now().as_second() + 604_800);
    // It is in no header, in no list and not in the log, which tells of it by its id.
    assert!(!told.contains(&token));
    let listed = account(&mut browser, &server).await;
    assert!(listed.contains("May use workloads, read usage") && listed.contains("not used yet"));
    assert!(!listed.contains("<1>") && !listed.contains(&token), "{listed}");
    let log = server.audited("\"token-issued\"").await;
    assert!(log.contains(&identity.credential.id) && !log.contains(&token), "{log}");

    assert!(is_active(&server, &token).await);
    assert!(account(&mut browser, &server).await.contains("last used"));
    // It makes no others and has no say about keys.
    for path in ["/tokens", "/ssh/keys"] {
        let response = server.api(Method::GET, path, &token, Value::Null).await;
        assert_eq!(response.status(), StatusCode::FORBIDDEN, "{path}");
    }
    // The address of the form leads to the page.
    assert_eq!(location(&browser.open(&server, TOKENS).await), "/account");

    // Nobody else withdraws it, and no other site makes a browser do so.
    let id = id(&listed);
    assert_eq!(id, identity.credential.id);
    let withdraw = "/account/tokens/withdraw";
    post(&mut signed_in(&server, "bob").await, &server, withdraw, &[("id", &id)]).await;
    let refused = foreign(&mut browser, &server, withdraw, &[("id", &id)]).await;
    assert_eq!(refused.status(), StatusCode::FORBIDDEN);
    assert!(is_active(&server, &token).await);
    for _ in 0..2 {
        let response = post(&mut browser, &server, withdraw, &[("id", &id)]).await;
        assert_eq!(location(&response), "/account");
    }
    assert!(!is_active(&server, &token).await);
    let response = server.api(Method::GET, "/tokens", &token, Value::Null).await;
    assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
    assert!(!account(&mut browser, &server).await.contains(&id));
    server.audited("\"token-revoked\"").await;
}

#[tokio::test]
async fn a_token_for_one_workload_says_where_that_is() {
    let server = Server::start().await;
    let mut browser = signed_in(&server, "alice").await;
    let mut form = USUAL;
    form[2].1 = "alice/echo";
    let made = page(post(&mut browser, &server, TOKENS, &form).await).await;
    assert!(made.contains("https://echo--alice.localhost:8443/"), "{made}");
    let identity = server.verifier().await.verify(shown(&made), server.now()).unwrap();
    assert_eq!(identity.credential.workload.as_deref(), Some("alice/echo"));
    assert!(account(&mut browser, &server).await.contains("only alice/echo"));
    // It leaves the list with its time.
    server.wait(86_400);
    assert!(!account(&mut browser, &server).await.contains("only alice/echo"));
}

#[tokio::test]
async fn a_token_that_cannot_be_is_an_error_that_keeps_what_was_typed() {
    let server = Server::start().await;
    let mut browser = signed_in(&server, "alice").await;
    let with = |name: &str, value: &'static str| {
        let mut form = USUAL;
        let field = form.iter_mut().find(|field| field.0 == name).unwrap();
        field.1 = value;
        form
    };
    for (form, told) in [
        (with("name", ""), "A name has 1 to 100 characters"),
        (with("workload", "Echo & Co"), "A workload is named"),
        (with("scope", ""), "Choose what the token may do."),
        (with("scope", "account"), "A token may have these scopes"),
        (with("expires_in", "59"), "must be between"),
        (with("expires_in", "99999999999"), "must be between"),
    ] {
        let response = post(&mut browser, &server, TOKENS, &form).await;
        assert_eq!(response.status(), StatusCode::BAD_REQUEST, "{form:?}");
        let again = page(response).await;
        assert!(again.contains(told), "{told}: {again}");
        assert!(again.contains(&format!("value=\"{}\"", form[0].1)), "{again}");
        assert!(again.contains("<details open>"), "{again}");
    }
    let usage = [("name", "x"), ("workload", "a/b"), ("scope", "usage:read")];
    let again = page(post(&mut browser, &server, TOKENS, &usage).await).await;
    assert!(again.contains("limited to a workload") && again.contains("value=\"a/b\""), "{again}");
    assert!(again.contains("value=\"usage:read\" checked"), "{again}");
    assert!(!again.contains("value=\"workload:use\" checked"), "{again}");

    let refused = foreign(&mut browser, &server, TOKENS, &USUAL).await;
    assert_eq!(refused.status(), StatusCode::FORBIDDEN);
    let stranger = post(&mut Browser::default(), &server, TOKENS, &USUAL).await;
    assert_eq!(location(&stranger), "/account");
    assert!(!account(&mut browser, &server).await.contains("name=\"id\""), "none was made");
}

#[tokio::test]
async fn lives_to_choose_from_are_those_that_are_allowed() {
    let server = Server::start().await;
    let replica = server
        .replica_changed(|config| {
            config.personal_token_max = std::time::Duration::from_secs(7 * 86_400);
        })
        .await;
    let mut browser = signed_in(&replica, "alice").await;
    let account = account(&mut browser, &replica).await;
    assert!(account.contains("<option value=\"604800\" selected>7 days"), "{account}");
    assert!(!account.contains("30 days"), "{account}");
}

#[tokio::test]
async fn only_a_fresh_sign_in_changes_tokens_and_keys() {
    let server = Server::start().await;
    let mut browser = signed_in(&server, "alice").await;
    let key = [("name", "laptop"), ("public_key", KEY)];
    post(&mut browser, &server, KEYS, &key).await;
    let id = id(&account(&mut browser, &server).await);
    server.wait(15 * 60);
    for (path, form) in [
        (TOKENS, &USUAL[..]),
        ("/account/tokens/withdraw", &[("id", &id)]),
        (KEYS, &key),
        ("/account/ssh-keys/remove", &[("id", &id)]),
    ] {
        let response = post(&mut browser, &server, path, form).await;
        assert_eq!(response.status(), StatusCode::FORBIDDEN, "{path}");
        let again = page(response).await;
        assert!(again.contains("Sign in again, then") && again.contains("/account/confirm"));
        assert!(!again.contains("<form"), "{again}");
    }
    assert!(account(&mut browser, &server).await.contains("SHA256:"));
}

#[tokio::test]
async fn a_key_is_added_reaches_the_gateways_and_is_removed() {
    let server = Server::start().await;
    let mut browser = signed_in(&server, "alice").await;
    let feed = async || {
        let request = server.request(Method::GET, "/internal/ssh-keys");
        let response = request.basic_auth(GATE.0, Some(GATE.1)).send().await.unwrap();
        response.json::<Value>().await.unwrap()["keys"].clone()
    };
    // Named by its comment.
    let line = format!("{KEY} alice@laptop\r\n");
    let added = post(&mut browser, &server, KEYS, &[("name", ""), ("public_key", &line)]).await;
    assert_eq!(location(&added), "/account");
    let listed = account(&mut browser, &server).await;
    assert!(listed.contains("alice@laptop") && listed.contains("SHA256:"), "{listed}");
    let keys = feed().await;
    assert_eq!((text(&keys[0], "user"), text(&keys[0], "public_key")), ("alice", KEY));
    server.audited("\"key-added\"").await;

    let remove = "/account/ssh-keys/remove";
    let id = id(&listed);
    post(&mut signed_in(&server, "bob").await, &server, remove, &[("id", &id)]).await;
    let refused = foreign(&mut browser, &server, remove, &[("id", &id)]).await;
    assert_eq!(refused.status(), StatusCode::FORBIDDEN);
    assert_ne!(feed().await, json!([]));
    for _ in 0..2 {
        let response = post(&mut browser, &server, remove, &[("id", &id)]).await;
        assert_eq!(location(&response), "/account");
    }
    assert_eq!(feed().await, json!([]));
    server.audited("\"key-removed\"").await;
}

#[tokio::test]
async fn a_bad_key_is_an_error_that_keeps_what_was_typed() {
    let server = Server::start().await;
    let mut browser = signed_in(&server, "alice").await;
    let private = "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXk\n";
    let long = format!("{KEY} {}", "x".repeat(101));
    for (name, line, status, told, kept) in [
        ("old <pc>", "ssh-ed25519 AAAA", 400, "That public key is damaged", "ssh-ed25519 AAAA<"),
        ("pc", "", 400, "Paste a public key", "name=\"public_key\""),
        ("pc", private, 400, "That is a private key", "value=\"pc\""),
        ("", KEY, 400, "A name has 1 to 100 characters", KEY),
        ("", &long, 400, "A name has 1 to 100 characters", KEY),
    ] {
        let form = [("name", name), ("public_key", line)];
        let response = post(&mut browser, &server, KEYS, &form).await;
        assert_eq!(response.status().as_u16(), status, "{line}");
        let again = page(response).await;
        assert!(again.contains(told) && again.contains(kept), "{told}: {again}");
        assert!(!again.contains("b3BlbnNzaC1rZXk") && !again.contains("<pc>"), "{again}");
        assert!(again.contains("<details open>"), "{again}");
    }
    let form = [("name", "pc"), ("public_key", KEY)];
    let refused = foreign(&mut browser, &server, KEYS, &form).await;
    assert_eq!(refused.status(), StatusCode::FORBIDDEN);
    post(&mut browser, &server, KEYS, &form).await;
    // Not twice, and not as somebody else's.
    for name in ["alice", "bob"] {
        let mut browser = signed_in(&server, name).await;
        let response = post(&mut browser, &server, KEYS, &form).await;
        assert_eq!(response.status(), StatusCode::CONFLICT);
        assert!(page(response).await.contains("already."));
    }
}
