//! Where somebody is signed in: listed with when and from where, and ended.

use reqwest::{Method, Response, StatusCode, header};
use serde_json::Value;

use super::passkeys::{page, post, signed_in};
use crate::support::*;

const DEVICE: &str = "urn:ietf:params:oauth:grant-type:device_code";

/// Tokens for the gate, of the browser's session.
async fn tokens(browser: &mut Browser, server: &Server) -> Value {
    let code = browser.code(server).await;
    server.redeem(GATE, &code).await.1
}

async fn sign_out(browser: &mut Browser, server: &Server) -> Response {
    let ticket = ticket(&page(browser.open(server, "/sign-out").await).await);
    let form = [("ticket", &*ticket)];
    let request = server.request(Method::POST, "/sign-out").header(header::ORIGIN, ISSUER);
    browser.send(request.form(&form)).await
}

/// Signs in again, whoever is signed in.
async fn again(browser: &mut Browser, server: &Server, name: &str) {
    let html = page(browser.open(server, &authorize_with(&[("prompt", "login")])).await).await;
    let response = browser.submit(server, &ticket(&html), name, PASSWORD).await;
    assert!(location(&response).starts_with(CALLBACK));
}

/// A device that somebody lets in who is signed in to the browser.
pub async fn device(browser: &mut Browser, server: &Server) -> Value {
    let start = [("client_id", "tv"), ("scope", "openid workload:use")];
    let started = server.post("/device/code", &start).await.1;
    let code = [("user_code", text(&started, "user_code"))];
    let ticket = ticket(&page(post(browser, server, "/device", &code).await).await);
    let decision = [("ticket", ticket.as_str()), ("decision", "approve")];
    assert_eq!(post(browser, server, "/device", &decision).await.status(), StatusCode::OK);
    let ask = [
        ("client_id", "tv"),
        ("grant_type", DEVICE),
        ("device_code", text(&started, "device_code")),
    ];
    let (status, tokens) = server.post("/token", &ask).await;
    assert_eq!(status, StatusCode::OK, "{tokens}");
    tokens
}

pub async fn device_goes_on(server: &Server, tokens: &Value) -> bool {
    let form = [
        ("client_id", "tv"),
        ("grant_type", "refresh_token"),
        ("refresh_token", text(tokens, "refresh_token")),
    ];
    server.post("/token", &form).await.0 == StatusCode::OK
}

async fn goes_on(server: &Server, tokens: &Value) -> bool {
    server.refresh(text(tokens, "refresh_token")).await.0 == StatusCode::OK
}

/// The ids in the forms for that path.
fn ids(page: &str, path: &str) -> Vec<String> {
    let mark = format!("action=\"{path}\">\n<input type=\"hidden\" name=\"id\" value=\"");
    page.split(&mark).skip(1).map(|rest| rest.split('"').next().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn attack_17_signing_out_ends_all_that_this_browser_began() {
    let server = Server::start().await;
    let (mut browser, mut elsewhere) = (Browser::default(), Browser::default());
    let first = tokens(&mut browser, &server).await;
    let let_in = device(&mut browser, &server).await;
    let other = tokens(&mut elsewhere, &server).await;
    // Somebody proves again that it is them: what was open goes on.
    server.wait(100);
    again(&mut browser, &server, "alice").await;
    let second = tokens(&mut browser, &server).await;
    assert_ne!(
        claims(text(&first, "access_token"))["sid"],
        claims(text(&second, "access_token"))["sid"]
    );
    assert!(goes_on(&server, &first).await && device_goes_on(&server, &let_in).await);
    // And somebody else signs in over them.
    again(&mut browser, &server, "bob").await;
    assert!(goes_on(&server, &first).await);

    sign_out(&mut browser, &server).await;
    assert!(!goes_on(&server, &first).await, "the replaced session");
    assert!(!goes_on(&server, &second).await, "the one that replaced it");
    assert!(!device_goes_on(&server, &let_in).await, "the device");
    assert!(goes_on(&server, &other).await, "another browser");
    // The gateways are told of each.
    let told = server.request(Method::GET, "/internal/revocations");
    let told = told.basic_auth(GATE.0, Some(GATE.1)).send().await.unwrap().text().await.unwrap();
    for tokens in [&first, &second, &let_in] {
        let sid = claims(text(tokens, "access_token"))["sid"].as_str().unwrap().to_owned();
        assert!(told.contains(&sid), "{sid} in {told}");
    }
}

#[tokio::test]
async fn sessions_devices_and_applications_are_listed_and_each_is_ended() {
    let server = Server::start().await;
    let mut browser = signed_in(&server, "alice").await;
    let mut laptop = Browser::default();
    let html = page(laptop.open(&server, &authorize_with(&[])).await).await;
    let agent = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0";
    let form = [("ticket", &*ticket(&html)), ("name", "alice"), ("password", PASSWORD)];
    let request = server.request(Method::POST, "/sign-in").header(header::ORIGIN, ISSUER);
    let request = from(request.header(header::USER_AGENT, agent), "203.0.113.9");
    laptop.send(request.form(&form)).await;
    let at_laptop = tokens(&mut laptop, &server).await;
    let tv = device(&mut laptop, &server).await;
    // An application with a consent, and tokens.
    let partner = [("client_id", "partner"), ("redirect_uri", "https://partner.example/cb")];
    let html = page(browser.open(&server, &authorize_with(&partner)).await).await;
    let agreed = [("ticket", &*ticket(&html)), ("decision", "allow")];
    let to = location(&post(&mut browser, &server, "/consent", &agreed).await);
    let code = &query(&to)["code"];
    let redeem = [
        ("grant_type", "authorization_code"),
        ("code", code),
        ("redirect_uri", partner[1].1),
        ("code_verifier", VERIFIER),
    ];
    let (status, partners) = server.token(("partner", OTHER.1), &redeem).await;
    assert_eq!(status, StatusCode::OK, "{partners}");

    // Long after the sign-in, too: ending something lets nobody in.
    server.wait(3600);
    let listed = page(browser.open(&server, "/account").await).await;
    for shown in [
        "(this browser)",
        "<strong>Firefox on Linux</strong>",
        "From 203.0.113.9, since <time>2027-01-15 08:00 UTC</time>, with a password",
        "<strong>Television</strong> (a device that you approved)",
        "<strong>Partner &#38; Co</strong>",
        "Allowed <time>2027-01-15 08:00 UTC</time> from 127.0.0.1",
    ] {
        assert!(listed.contains(shown), "{shown} in {listed}");
    }
    assert!(
        !listed.contains("action=\"/account/ssh-keys"),
        "no more than that without a new sign-in"
    );
    let sessions = ids(&listed, "/account/sessions/end");
    assert_eq!(sessions.len(), 2, "{listed}");
    // Not across sites, and not by somebody else.
    for id in &sessions {
        let form = [("id", id.as_str())];
        let foreign = server.request(Method::POST, "/account/sessions/end").form(&form);
        let foreign = foreign.header(header::ORIGIN, "https://lab--alice.localhost:8443");
        assert_eq!(browser.send(foreign).await.status(), StatusCode::FORBIDDEN);
        post(&mut signed_in(&server, "bob").await, &server, "/account/sessions/end", &form).await;
    }
    assert!(goes_on(&server, &at_laptop).await && device_goes_on(&server, &tv).await);
    for id in &sessions {
        let form = [("id", id.as_str())];
        let to = location(&post(&mut browser, &server, "/account/sessions/end", &form).await);
        assert_eq!(to, "/account");
    }
    assert!(!goes_on(&server, &at_laptop).await && !device_goes_on(&server, &tv).await);
    server.audited("\"session-ended\"").await;

    let withdraw = "/account/applications/withdraw";
    assert_eq!(ids(&listed, withdraw), ["partner", "tv"]);
    post(&mut browser, &server, withdraw, &[("id", "partner")]).await;
    let again =
        [("grant_type", "refresh_token"), ("refresh_token", text(&partners, "refresh_token"))];
    assert_eq!(server.token(("partner", OTHER.1), &again).await.1["error"], "invalid_grant");
    let asked = browser.open(&server, &authorize_with(&partner)).await;
    assert_eq!(asked.status(), StatusCode::OK, "the consent is forgotten, too");
    server.audited("\"application-withdrawn\"").await;

    let mut phone = signed_in(&server, "alice").await;
    let at_phone = tokens(&mut phone, &server).await;
    post(&mut browser, &server, "/account/sessions/end-others", &[]).await;
    assert!(!goes_on(&server, &at_phone).await);
    assert!(page(browser.open(&server, "/account").await).await.contains("(this browser)"));
}

#[tokio::test]
async fn a_form_that_comes_after_the_end_of_the_session_says_what_to_do() {
    let server = Server::start().await;
    let mut browser = signed_in(&server, "alice").await;
    let partner = [("client_id", "partner"), ("redirect_uri", "https://partner.example/cb")];
    let question = page(browser.open(&server, &authorize_with(&partner)).await).await;
    let start = [("client_id", "tv"), ("scope", "openid")];
    let started = server.post("/device/code", &start).await.1;
    let code = text(&started, "user_code");
    let about = page(post(&mut browser, &server, "/device", &[("user_code", code)]).await).await;
    server.store.end_sessions_of(&"alice".parse().unwrap(), server.now()).await.unwrap();

    let lost = [("name", "x"), ("expires_in", "86400"), ("scope", "workload:use")];
    let html = page(post(&mut browser, &server, "/account/tokens", &lost).await).await;
    assert!(html.contains("You are not signed in any more. Sign in, then repeat that."), "{html}");
    // A device's code is there again, and so is the question of an application.
    let decision = [("ticket", &*ticket(&about)), ("decision", "approve")];
    let html = page(post(&mut browser, &server, "/device", &decision).await).await;
    let to = location(&browser.submit(&server, &ticket(&html), "alice", PASSWORD).await);
    assert!(to.ends_with(&format!("user_code={code}")), "{to}");
    let agreed = [("ticket", &*ticket(&question)), ("decision", "allow")];
    let html = page(post(&mut browser, &server, "/consent", &agreed).await).await;
    assert!(html.contains("Let Partner &#38; Co in?"), "{html}");
}

#[tokio::test]
async fn every_address_that_a_browser_can_show_can_be_opened_again() {
    let server = Server::start().await;
    for path in [
        "/sign-in",
        "/sign-in/passkey",
        "/consent",
        "/account/passkeys",
        "/account/passkeys/remove",
        "/account/tokens",
        "/account/tokens/withdraw",
        "/account/ssh-keys",
        "/account/ssh-keys/remove",
        "/account/sessions/end",
        "/account/sessions/end-others",
        "/account/applications/withdraw",
    ] {
        let to = location(&server.get(path).await);
        assert!(["/", "/account"].contains(&&*to), "{path} {to}");
    }
    let html = page(server.get("/authorize?client_id=nobody").await).await;
    assert!(html.contains("href=\"/\""), "a way on: {html}");
}

#[tokio::test]
async fn what_follows_the_hash_and_long_links_survive_the_sign_in_form() {
    let server = Server::start().await;
    let mut browser = Browser::default();
    let state = format!("id.{}", "x".repeat(12_000));
    let path = authorize_with(&[("state", &state)]);
    let response = browser.open(&server, &path).await;
    let policy = response.headers()["content-security-policy"].to_str().unwrap().to_owned();
    assert!(policy.contains("script-src 'self'") && !policy.contains("unsafe-inline"), "{policy}");
    let html = page(response).await;
    assert!(html.contains("src=\"/sign-in.js\"") && html.contains("name=\"fragment\""), "{html}");
    let form = |ticket: String, password: &str, fragment: &str| {
        let form = [
            ("ticket", &*ticket),
            ("name", "alice"),
            ("password", password),
            ("fragment", fragment),
        ];
        server.request(Method::POST, "/sign-in").header(header::ORIGIN, ISSUER).form(&form)
    };
    // Mistyped once: the script has nothing to say on the second page. And a whole day later.
    let wrong = browser.send(form(ticket(&html), "wrong password", "#/experiments/7")).await;
    let html = page(wrong).await;
    server.wait(24 * 3600 - 1);
    let to = location(&browser.send(form(ticket(&html), PASSWORD, "")).await);
    let (to, fragment) = to.split_once('#').unwrap();
    assert_eq!((fragment, query(to)["state"].as_str()), ("/experiments/7", state.as_str()));
    // Other applications' addresses stay as they are.
    let other =
        [("client_id", "other"), ("redirect_uri", "https://other.example/cb"), ("prompt", "login")];
    let html = page(browser.open(&server, &authorize_with(&other)).await).await;
    let to = location(&browser.send(form(ticket(&html), PASSWORD, "#x")).await);
    assert!(!to.contains('#'), "{to}");
}
