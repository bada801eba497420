//! Access tokens and SSH keys on the account page, without scripts.

use reqwest::{Method, Response, StatusCode, header};
use serde_json::{Value, json};

use super::{
    passkeys::{page, post, signed_in},
    shown_tokens::is_active,
};
use crate::support::{keys::SshKey, *};

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

/// The text that the page asks to sign, and the sealed field that goes with it.
fn to_sign(page: &str) -> (String, String) {
    let (_, rest) = page.split_once("<code>echo ").expect("the page has a command");
    let text = rest.split_once(" | ssh-keygen -Y sign -n dormouse-ssh-key -f ").unwrap().0;
    let (_, rest) = page.split_once("name=\"challenge\" value=\"").unwrap();
    (text.to_owned(), rest.split('"').next().unwrap().to_owned())
}

/// Adds a key as its holder does, by what the page says.
async fn add_key(browser: &mut Browser, server: &Server, name: &str, key: &SshKey) -> Response {
    let (text, challenge) = to_sign(&account(browser, server).await);
    let signature = key.sign(&text);
    let form = [("name", name), ("challenge", &challenge), ("signature", &signature)];
    post(browser, server, KEYS, &form).await
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
    assert_eq!(stranger.status(), StatusCode::FORBIDDEN);
    assert!(page(stranger).await.contains("You are not signed in any more"));
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
    add_key(&mut browser, &server, "laptop", &SshKey::new(7)).await;
    let key = [("name", "laptop")];
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
    let key = SshKey::new(7);
    let feed = async || {
        let request = server.request(Method::GET, "/internal/ssh-keys");
        let response = request.basic_auth(GATE.0, Some(GATE.1)).send().await.unwrap();
        response.json::<Value>().await.unwrap()["keys"].clone()
    };
    let added = add_key(&mut browser, &server, "laptop", &key).await;
    assert_eq!(location(&added), "/account");
    let listed = account(&mut browser, &server).await;
    assert!(listed.contains("laptop") && listed.contains("SHA256:"), "{listed}");
    let keys = feed().await;
    assert_eq!((text(&keys[0], "user"), text(&keys[0], "public_key")), ("alice", &*key.line));
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
async fn attack_19_a_key_is_added_by_nobody_but_its_holder() {
    let server = Server::start().await;
    let (mut alice, mut bob) = (signed_in(&server, "alice").await, signed_in(&server, "bob").await);
    let (own, other) = (SshKey::new(7), SshKey::new(8));
    let refused = async |browser: &mut Browser, form: &[(&str, &str)], told: &str| {
        let response = post(browser, &server, KEYS, form).await;
        assert_eq!(response.status(), StatusCode::BAD_REQUEST, "{told}");
        let again = page(response).await;
        assert!(again.contains(told) && again.contains("<details open>"), "{told}: {again}");
        again
    };
    let (text, challenge) = to_sign(&account(&mut alice, &server).await);
    assert!(text.starts_with("alice@auth.localhost:8443/"), "{text}");
    // The public key of a colleague; a private one, which is not sent back.
    let form = |signature| [("name", "pc"), ("challenge", &*challenge), ("signature", signature)];
    refused(&mut alice, &form(&other.line), "Run the command").await;
    let private = "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXk\n";
    let again = refused(&mut alice, &form(private), "That is a private key").await;
    assert!(!again.contains("b3BlbnNzaC1rZXk") && again.contains("value=\"pc\""), "{again}");
    // A signature that bob made for himself, with his own challenge or with hers.
    let (bobs, bobs_challenge) = to_sign(&account(&mut bob, &server).await);
    let signature = own.sign(&bobs);
    refused(&mut alice, &form(&signature), "not over the text").await;
    let stolen = [("name", "pc"), ("challenge", &*bobs_challenge), ("signature", &*signature)];
    refused(&mut alice, &stolen, "too old").await;
    // In time, and once.
    let signature = own.sign(&text);
    let form = form(&signature);
    let across = foreign(&mut alice, &server, KEYS, &form).await;
    assert_eq!(across.status(), StatusCode::FORBIDDEN);
    assert_eq!(location(&post(&mut alice, &server, KEYS, &form).await), "/account");
    refused(&mut alice, &form, "used before").await;
    let (text, challenge) = to_sign(&account(&mut alice, &server).await);
    let late = [("name", "x"), ("challenge", &*challenge), ("signature", &own.sign(&text))];
    server.wait(3600);
    let mut again = signed_in(&server, "alice").await;
    refused(&mut again, &late, "too old").await;
    // Who shares a key with somebody cannot have both.
    let taken = add_key(&mut signed_in(&server, "bob").await, &server, "mine", &own).await;
    assert_eq!(taken.status(), StatusCode::CONFLICT);
}

#[tokio::test]
async fn attack_19_a_personal_token_registers_no_key_and_a_key_ends() {
    let server = Server::start().await;
    let leaked = server.personal_token("alice", 3600).await;
    for path in ["/ssh/keys/challenge", "/ssh/keys"] {
        let new = json!({ "name": "x", "challenge": "x", "signature": "x" });
        let response = server.api(Method::POST, path, &leaked, new).await;
        assert_eq!(response.status(), StatusCode::FORBIDDEN, "{path}");
        assert!(page(response).await.contains("account page"));
    }
    // Nor does a token of a sign-in that is long ago.
    let mut browser = Browser::default();
    let code = browser.code(&server).await;
    let tokens = server.redeem(GATE, &code).await.1;
    server.wait(15 * 60);
    let access = server.refresh(text(&tokens, "refresh_token")).await.1;
    let late = text(&access, "access_token");
    let late = server.api(Method::POST, "/ssh/keys/challenge", late, Value::Null).await;
    assert_eq!(late.status(), StatusCode::FORBIDDEN);

    let feed = async || {
        let request = server.request(Method::GET, "/internal/ssh-keys");
        let response = request.basic_auth(GATE.0, Some(GATE.1)).send().await.unwrap();
        response.json::<Value>().await.unwrap()["keys"].clone()
    };
    let end = server.now().as_second() + 365 * 86_400;
    add_key(&mut signed_in(&server, "alice").await, &server, "laptop", &SshKey::new(7)).await;
    assert_eq!(feed().await[0]["expires_at"], end);
    // Its last use is told by a gateway.
    let at = server.now().as_second();
    let uses = json!({ "uses": [{ "id": feed().await[0]["fingerprint"], "at": at }] });
    let told = server.request(Method::POST, "/internal/token-uses").json(&uses);
    let told = told.basic_auth(GATE.0, Some(GATE.1)).send().await.unwrap();
    assert_eq!(told.status(), StatusCode::NO_CONTENT);
    let listed = account(&mut signed_in(&server, "alice").await, &server).await;
    assert!(
        listed.contains("Ends <time>2028-01-15") && listed.contains("last used <time>2027-01-15"),
        "{listed}"
    );
    server.wait(340 * 86_400);
    let listed = account(&mut signed_in(&server, "alice").await, &server).await;
    assert!(listed.contains("It ends soon"), "{listed}");
    server.wait(25 * 86_400);
    assert_eq!(feed().await, json!([]));
    let listed = account(&mut signed_in(&server, "alice").await, &server).await;
    assert!(listed.contains("It has ended"), "{listed}");
    let before = server.store.ssh_feed_version().await.unwrap();
    let idle = std::time::Duration::from_secs(12 * 3600);
    server.store.clean_up(server.now(), idle).await.unwrap();
    assert!(server.store.ssh_feed_version().await.unwrap() > before, "older gateways are told");
    server.wait(31 * 86_400);
    server.store.clean_up(server.now(), idle).await.unwrap();
    let listed = account(&mut signed_in(&server, "alice").await, &server).await;
    assert!(!listed.contains("SHA256:"), "{listed}");
}
