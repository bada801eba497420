//! When people of a provider last proved who they are: what it says, what is unknown, and the way out.

use reqwest::{Method, Response, StatusCode, header};
use serde_json::{Value, json};

use super::{
    federation::{carol, ours, page, server, sign_in, tokens},
    passkeys::{add, challenge, post, signed_in},
};
use crate::support::{authenticator::Authenticator, upstream::Upstream, *};

const TOKENS: &str = "/account/tokens";
const CONFIRM: &str = "/account/confirm";
const BY_PASSWORD: &str = "/account/confirm/password";
const SECOND: &str = "second horse battery";

async fn make_token(browser: &mut Browser, server: &Server) -> StatusCode {
    let form = [("name", "x"), ("expires_in", "86400"), ("scope", "workload:use")];
    post(browser, server, TOKENS, &form).await.status()
}

/// Opens the path, which leads to the provider with an order to ask; comes back from there.
async fn asked(
    browser: &mut Browser,
    server: &Server,
    upstream: &Upstream,
    path: &str,
) -> Response {
    let to = location(&browser.open(server, path).await);
    assert!(to.starts_with(&upstream.issuer()), "{to}");
    let asked = query(&to);
    assert_eq!((asked["prompt"].as_str(), asked["max_age"].as_str()), ("login", "0"));
    let back = upstream.sign_in(&to, "u-1").await;
    browser.open(server, ours(&back)).await
}

async fn id_token(browser: &mut Browser, server: &Server, changes: &[(&str, &str)]) -> Value {
    let response = browser.open(server, &authorize_with(changes)).await;
    claims(text(&tokens(server, &response).await, "id_token"))
}

/// Carol, of a provider that never says when it asked her who she is.
async fn silent(local: bool, more: Value) -> (Upstream, Server, Browser) {
    let upstream = Upstream::start("corp", 0);
    upstream.set_saying("u-1", carol(), json!({ "auth_time": null })).await;
    let server = server(&[&upstream], local, more).await;
    let mut browser = Browser::default();
    let home = sign_in(&mut browser, &server, &upstream, "/sign-in/with/corp", "u-1").await;
    assert_eq!(location(&home), "/");
    (upstream, server, browser)
}

async fn give_second_password(server: &Server) {
    server.store.set_second_password(&"carol".parse().unwrap(), Some(SECOND)).await.unwrap();
}

/// Asked by the silent provider, and then by us: the ticket of our page.
async fn question(
    browser: &mut Browser,
    server: &Server,
    upstream: &Upstream,
    path: &str,
) -> String {
    let (status, html) = page(asked(browser, server, upstream, path).await).await;
    assert_eq!(status, StatusCode::OK, "{html}");
    assert!(html.contains("does not say when it last asked who you are"), "{html}");
    ticket(&html)
}

async fn answer(browser: &mut Browser, server: &Server, ticket: &str, password: &str) -> Response {
    post(browser, server, BY_PASSWORD, &[("ticket", ticket), ("password", password)]).await
}

async fn answer_with_key(
    browser: &mut Browser,
    server: &Server,
    ticket: &str,
    key: &mut Authenticator,
) -> Response {
    let (options, challenge) = challenge(browser, server, "/account/confirm/passkey/options").await;
    let answer = key.get(&options);
    let form = [("ticket", ticket), ("challenge", &*challenge), ("credential", &*answer)];
    post(browser, server, "/account/confirm/passkey", &form).await
}

#[tokio::test]
async fn a_proof_of_yesterday_at_the_provider_is_none_of_now() {
    let upstream = Upstream::start("corp", 0);
    let server = server(&[&upstream], false, json!({})).await;
    let yesterday = server.now().as_second() - 86_400;
    let says = json!({ "auth_time": yesterday, "amr": ["mfa", "otp"], "acr": "urn:example:gold" });
    upstream.set_saying("u-1", carol(), says.clone()).await;
    let mut browser = Browser::default();
    let first = sign_in(&mut browser, &server, &upstream, &authorize_with(&[]), "u-1").await;
    let id = claims(text(&tokens(&server, &first).await, "id_token"));
    for name in ["auth_time", "amr", "acr"] {
        assert_eq!(id[name], says[name], "{name}");
    }

    let five_minutes = authorize_with(&[("max_age", "300")]);
    let silently = authorize_with(&[("max_age", "300"), ("prompt", "none")]);
    let silently = location(&browser.open(&server, &silently).await);
    assert_eq!(query(&silently)["error"], "login_required");
    // Asked, it says the same: there is no code, and nothing leads back to it by itself.
    let again = asked(&mut browser, &server, &upstream, &five_minutes).await;
    assert!(!again.headers().contains_key(header::LOCATION));
    let (status, html) = page(again).await;
    assert_eq!(status, StatusCode::FORBIDDEN, "{html}");
    assert!(html.contains("did not ask who you are; it last did at"), "{html}");
    assert!(html.contains("Ask an administrator") && !html.contains("<form"), "{html}");
    assert_eq!(make_token(&mut browser, &server).await, StatusCode::FORBIDDEN);
    let (_, html) = page(asked(&mut browser, &server, &upstream, CONFIRM).await).await;
    assert!(html.contains("did not ask who you are"), "{html}");
    let (_, html) = page(browser.open(&server, "/account").await).await;
    assert!(html.contains("/account/confirm") && !html.contains("New token"), "{html}");
    // It is young enough for who asks for less.
    assert_eq!(
        id_token(&mut browser, &server, &[("max_age", "172800")]).await["auth_time"],
        yesterday
    );

    // Now it asks.
    upstream.set("u-1", carol(), false).await;
    let response = asked(&mut browser, &server, &upstream, &five_minutes).await;
    let id = claims(text(&tokens(&server, &response).await, "id_token"));
    assert!(id["auth_time"].as_i64().unwrap() > yesterday + 86_000, "{id}");
    assert_eq!(make_token(&mut browser, &server).await, StatusCode::OK);
    // A time that lies ahead is none.
    let ahead = json!({ "auth_time": server.now().as_second() + 3600 });
    upstream.set_saying("u-1", carol(), ahead).await;
    let mut other = Browser::default();
    sign_in(&mut other, &server, &upstream, &authorize_with(&[]), "u-1").await;
    assert_eq!(id_token(&mut other, &server, &[]).await["auth_time"], Value::Null);
    assert_eq!(make_token(&mut other, &server).await, StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn what_a_provider_does_not_say_is_unknown_until_a_second_proof() {
    let (upstream, server, mut browser) = silent(false, json!({})).await;
    let scope = ("scope", "openid workload:use account");
    let response = browser.open(&server, &authorize_with(&[scope])).await;
    let issued = tokens(&server, &response).await;
    let id = claims(text(&issued, "id_token"));
    for name in ["auth_time", "amr", "acr"] {
        assert_eq!(id.get(name), None, "{name}");
    }
    // Nothing that outlives the session is had: no token, no key, no first passkey.
    let (_, html) = page(browser.open(&server, "/account").await).await;
    assert!(html.contains("When it was last shown who it is: unknown"), "{html}");
    assert!(!html.contains("New token") && !html.contains("passkeys.js"), "{html}");
    assert_eq!(make_token(&mut browser, &server).await, StatusCode::FORBIDDEN);
    let request = server.request(Method::POST, "/account/passkeys/options");
    let options = browser.send(request.header(header::ORIGIN, ISSUER)).await;
    assert_eq!(options.status(), StatusCode::FORBIDDEN);
    let access = text(&issued, "access_token");
    for path in ["/tokens", "/ssh/keys/challenge"] {
        let refused = server.api(Method::POST, path, access, json!({ "name": "x" })).await;
        assert_eq!(refused.status(), StatusCode::FORBIDDEN, "{path}");
        assert!(page(refused).await.1.contains("or not known"), "{path}");
    }
    // Who has no second proof is told what to do, and led nowhere.
    let (status, html) = page(asked(&mut browser, &server, &upstream, CONFIRM).await).await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    assert!(html.contains("trust_prompt_login") && !html.contains("<form"), "{html}");

    give_second_password(&server).await;
    let ticket = question(&mut browser, &server, &upstream, CONFIRM).await;
    let (status, html) = page(answer(&mut browser, &server, &ticket, PASSWORD).await).await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    assert!(html.contains("That password is not yours"), "{html}");
    assert_eq!(make_token(&mut browser, &server).await, StatusCode::FORBIDDEN);
    let done = answer(&mut browser, &server, &ticket, SECOND).await;
    assert_eq!(location(&done), "/account");
    assert_eq!(make_token(&mut browser, &server).await, StatusCode::OK);
    server.audited("\"confirmed\"").await;

    let mut key = add(&mut browser, &server, "phone").await;
    let (_, html) = page(browser.open(&server, "/account").await).await;
    assert!(html.contains("It does not sign you in."), "{html}");
    server.wait(15 * 60);
    assert_eq!(make_token(&mut browser, &server).await, StatusCode::FORBIDDEN);
    let ticket = question(&mut browser, &server, &upstream, CONFIRM).await;
    let done = answer_with_key(&mut browser, &server, &ticket, &mut key).await;
    assert_eq!(location(&done), "/account");
    assert_eq!(make_token(&mut browser, &server).await, StatusCode::OK);
    let id = id_token(&mut browser, &server, &[("max_age", "300")]).await;
    assert_eq!(id["auth_time"], server.now().as_second());
    assert_eq!((&id["amr"], id.get("acr")), (&json!(["pop"]), None));
}

#[tokio::test]
async fn a_second_proof_signs_nobody_in_and_counts_only_with_the_providers_word() {
    let (upstream, server, mut browser) = silent(true, json!({})).await;
    give_second_password(&server).await;
    let to = "/sign-in/with/corp";
    let ticket = question(&mut browser, &server, &upstream, CONFIRM).await;
    // The question is for one session in one browser.
    let mut alice = signed_in(&server, "alice").await;
    let foreign = answer(&mut alice, &server, &ticket, SECOND).await;
    assert_eq!(foreign.status(), StatusCode::BAD_REQUEST);
    let mut alices = add(&mut alice, &server, "alice's").await;
    let refused = answer_with_key(&mut browser, &server, &ticket, &mut alices).await;
    assert_eq!(refused.status(), StatusCode::FORBIDDEN, "somebody else's passkey");
    answer(&mut browser, &server, &ticket, SECOND).await;
    let mut key = add(&mut browser, &server, "phone").await;

    // By themselves they are worth nothing.
    let mut stranger = Browser::default();
    let html = stranger.open(&server, &authorize_with(&[])).await.text().await.unwrap();
    let form = crate::support::ticket(&html);
    let refused = stranger.submit(&server, &form, "carol", SECOND).await;
    assert_eq!(refused.status(), StatusCode::FORBIDDEN);
    let refused = super::passkeys::sign_in(&mut stranger, &server, &mut key).await;
    assert_eq!(refused.status(), StatusCode::FORBIDDEN);
    assert!(!stranger.cookies.contains_key("__Host-dormouse-sso"));
    // Whoever signs in here does so still.
    let good = super::passkeys::sign_in(&mut stranger, &server, &mut alices).await;
    assert_eq!(good.status(), StatusCode::SEE_OTHER);

    // The question of before is void after another sign-in, and after ten minutes.
    sign_in(&mut browser, &server, &upstream, to, "u-1").await;
    let stale = answer(&mut browser, &server, &ticket, SECOND).await;
    assert_eq!(stale.status(), StatusCode::BAD_REQUEST);
    let ticket = question(&mut browser, &server, &upstream, CONFIRM).await;
    server.wait(600);
    let stale = answer(&mut browser, &server, &ticket, SECOND).await;
    assert_eq!(stale.status(), StatusCode::BAD_REQUEST);
    // Who is disabled there is not asked here.
    upstream.set("u-1", carol(), true).await;
    let (status, html) = page(asked(&mut browser, &server, &upstream, CONFIRM).await).await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    assert!(html.contains("did not let you in") && !html.contains("<form"), "{html}");
}

#[tokio::test]
async fn guessing_a_second_password_is_slowed() {
    let (upstream, server, mut browser) = silent(false, json!({})).await;
    give_second_password(&server).await;
    let ticket = question(&mut browser, &server, &upstream, CONFIRM).await;
    let mut tried = 0;
    let slow = loop {
        let response = answer(&mut browser, &server, &ticket, "wrong").await;
        if response.status() != StatusCode::FORBIDDEN {
            break response;
        }
        tried += 1;
    };
    assert_eq!(slow.status(), StatusCode::TOO_MANY_REQUESTS);
    assert!(slow.headers().contains_key(header::RETRY_AFTER));
    assert!(tried < 50, "{tried}");
}

#[tokio::test]
async fn a_client_that_wants_a_recent_proof_gets_its_code_after_the_second_one() {
    let (upstream, server, mut browser) = silent(false, json!({})).await;
    give_second_password(&server).await;
    for changes in [("max_age", "300"), ("prompt", "login")] {
        let path = authorize_with(&[changes]);
        let ticket = question(&mut browser, &server, &upstream, &path).await;
        let response = answer(&mut browser, &server, &ticket, SECOND).await;
        let id = claims(text(&tokens(&server, &response).await, "id_token"));
        assert_eq!(id["auth_time"], server.now().as_second(), "{changes:?}");
        assert_eq!((&id["amr"], &id["nonce"]), (&json!(["pwd"]), &json!("nonce-1")));
    }
}

#[tokio::test]
async fn prompt_login_alone_counts_where_an_operator_trusts_it() {
    let (upstream, server, mut browser) =
        silent(false, json!({ "trust_prompt_login": true })).await;
    assert_eq!(make_token(&mut browser, &server).await, StatusCode::FORBIDDEN);
    let done = asked(&mut browser, &server, &upstream, CONFIRM).await;
    assert_eq!(location(&done), "/account");
    assert_eq!(make_token(&mut browser, &server).await, StatusCode::OK);
    // What the provider says counts more.
    let yesterday = server.now().as_second() - 86_400;
    upstream.set_saying("u-1", carol(), json!({ "auth_time": yesterday })).await;
    let (status, _) = page(asked(&mut browser, &server, &upstream, CONFIRM).await).await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    assert_eq!(make_token(&mut browser, &server).await, StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn a_device_is_approved_after_a_second_proof_and_has_it() {
    let (upstream, server, mut browser) = silent(false, json!({})).await;
    give_second_password(&server).await;
    let asks = [("client_id", "tv"), ("scope", "openid workload:use")];
    let started = server.post("/device/code", &asks).await.1;
    let code = text(&started, "user_code");
    let (status, html) =
        page(post(&mut browser, &server, "/device", &[("user_code", code)]).await).await;
    assert_eq!(status, StatusCode::FORBIDDEN, "{html}");
    let confirm = format!("/account/confirm?user_code={code}");
    assert!(html.contains(&confirm) && !html.contains("Television"), "{html}");
    let sealed = question(&mut browser, &server, &upstream, &confirm).await;
    let back = location(&answer(&mut browser, &server, &sealed, SECOND).await);
    assert_eq!(back, format!("/device?user_code={code}"));
    let html = page(post(&mut browser, &server, "/device", &[("user_code", code)]).await).await.1;
    let form = [("ticket", ticket(&html)), ("decision", "approve".to_owned())];
    let form = form.each_ref().map(|(name, value)| (*name, value.as_str()));
    assert_eq!(post(&mut browser, &server, "/device", &form).await.status(), StatusCode::OK);
    let form = [
        ("client_id", "tv"),
        ("grant_type", "urn:ietf:params:oauth:grant-type:device_code"),
        ("device_code", text(&started, "device_code")),
    ];
    let issued = server.post("/token", &form).await.1;
    let id = claims(text(&issued, "id_token"));
    assert_eq!(id["auth_time"], server.now().as_second());
    assert_eq!(id["amr"], json!(["pwd"]));
}

#[tokio::test]
async fn sessions_that_an_older_server_began_are_known_if_they_began_here() {
    let (upstream, server, mut browser) = silent(true, json!({})).await;
    let mut alice = signed_in(&server, "alice").await;
    let began = server.now().as_second();
    let pool = pool(&server).await;
    let as_before = "UPDATE sessions SET auth_time = NULL, amr = NULL, acr = NULL";
    sqlx::query(as_before).execute(&pool).await.unwrap();
    server.wait(60);
    let id = id_token(&mut alice, &server, &[]).await;
    assert_eq!((&id["auth_time"], &id["amr"]), (&json!(began), &json!(["pwd"])));
    assert_eq!(id["acr"], "urn:dormouse:acr:single-factor");
    assert_eq!(make_token(&mut alice, &server).await, StatusCode::OK);
    let id = id_token(&mut browser, &server, &[]).await;
    assert_eq!((id.get("auth_time"), id.get("amr"), id.get("acr")), (None, None, None));
    assert_eq!(make_token(&mut browser, &server).await, StatusCode::FORBIDDEN);
    let of = async |name: &str| {
        let name = name.parse().unwrap();
        server.store.list_sessions(Some(&name), 9, server.now()).await.unwrap().remove(0)
    };
    assert_eq!(of("alice").await.authenticated_at.map(|at| at.as_second()), Some(began));
    assert_eq!(of("carol").await.authenticated_at, None);
    drop(upstream);
}
