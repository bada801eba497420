//! Signing in at other providers, with a real one.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use authserver::ProviderConfig;
use reqwest::{Method, StatusCode, header};
use serde_json::{Value, json};

use crate::support::{upstream::Upstream, *};

/// A server that knows these providers; `local` says whether passwords count too.
pub(super) async fn server(upstreams: &[&Upstream], local: bool, more: Value) -> Server {
    Server::start_changed(|folder, config| {
        let configs = upstreams.iter().enumerate().map(|(n, upstream)| {
            upstream.config(&folder.join(format!("upstream-secret-{n}")), more.clone())
        });
        config.providers = configs.collect::<Vec<ProviderConfig>>();
        config.local_sign_in = local;
    })
    .await
}

pub(super) fn carol() -> Value {
    json!({
        "preferred_username": "Carol", "email": "carol@example.com", "email_verified": true,
        "groups": ["ml", "staff"],
    })
}

/// Opens the path, signs in at the provider, and returns where the browser ends up.
pub(super) async fn sign_in(
    browser: &mut Browser,
    server: &Server,
    upstream: &Upstream,
    path: &str,
    who: &str,
) -> reqwest::Response {
    let to = location(&browser.open(server, path).await);
    assert!(to.starts_with(&upstream.issuer()), "{to}");
    let back = upstream.sign_in(&to, who).await;
    browser.open(server, ours(&back)).await
}

/// The path of one of our addresses.
pub(super) fn ours(address: &str) -> &str {
    address.strip_prefix(ISSUER).unwrap()
}

pub(super) async fn tokens(server: &Server, response: &reqwest::Response) -> Value {
    let to = location(response);
    assert!(to.starts_with(CALLBACK), "{to}");
    let (status, tokens) = server.redeem(GATE, &query(&to)["code"]).await;
    assert_eq!(status, StatusCode::OK, "{tokens}");
    tokens
}

/// What a page says, with its status.
pub(super) async fn page(response: reqwest::Response) -> (StatusCode, String) {
    (response.status(), response.text().await.unwrap().replace('\n', " "))
}

#[tokio::test]
async fn a_person_of_the_only_provider_signs_in_without_a_page_of_ours() {
    let upstream = Upstream::start("corp", 0);
    upstream.set("u-1", carol(), false).await;
    let server = server(&[&upstream], false, json!({ "group_map": { "staff": "people" } })).await;
    let mut browser = Browser::default();
    let response = sign_in(&mut browser, &server, &upstream, &authorize_with(&[]), "u-1").await;
    let tokens = tokens(&server, &response).await;
    let id = claims(text(&tokens, "id_token"));
    assert_eq!(id["preferred_username"], "carol");
    assert_eq!(id["email"], "carol@example.com");
    assert_eq!(id["groups"], json!(["people"]));
    assert_ne!(id["sub"], "u-1");
    assert_eq!(id["nonce"], "nonce-1");
    let audit = server.audited("person-added").await;
    assert!(audit.contains("provider corp"), "{audit}");

    // Now we know the browser: neither they nor we ask anything.
    let response = browser.open(&server, &authorize_with(&[])).await;
    assert!(location(&response).starts_with(CALLBACK));
    // Nobody signs in by password here.
    let response = browser.submit(&server, "x", "alice", PASSWORD).await;
    assert_eq!(response.status(), StatusCode::BAD_REQUEST);

    // Signing out offers to sign out there.
    let html = browser.open(&server, "/sign-out").await.text().await.unwrap();
    let request = server.request(Method::POST, "/sign-out").header(header::ORIGIN, ISSUER);
    let response = browser.send(request.form(&[("ticket", ticket(&html))])).await;
    let (status, html) = page(response).await;
    assert_eq!(status, StatusCode::OK);
    assert!(html.contains("still signed in at corp &#38; Sons"), "{html}");
    let (_, rest) = html.split_once("href=\"http").unwrap();
    let link = format!("http{}", rest.split('"').next().unwrap().replace("&#38;", "&"));
    let (status, html) = page(upstream.get(&mut BTreeMap::new(), &link).await).await;
    assert_eq!(status, StatusCode::OK, "{html}");
    assert!(html.contains("<form"), "the provider takes the hint and asks: {html}");
}

#[tokio::test]
async fn groups_and_address_follow_at_each_sign_in_and_the_name_does_not() {
    let upstream = Upstream::start("corp", 0);
    upstream.set("u-1", carol(), false).await;
    let server = server(&[&upstream], false, json!({})).await;
    let path = authorize_with(&[]);
    let response = sign_in(&mut Browser::default(), &server, &upstream, &path, "u-1").await;
    let first = claims(text(&tokens(&server, &response).await, "id_token"));
    assert_eq!(first["groups"], json!(["ml", "staff"]));

    let now = json!({
        "preferred_username": "caroline", "email": "c@example.com", "email_verified": true,
        "groups": ["staff"],
    });
    upstream.set("u-1", now, false).await;
    let response = sign_in(&mut Browser::default(), &server, &upstream, &path, "u-1").await;
    let second = claims(text(&tokens(&server, &response).await, "id_token"));
    assert_eq!(second["groups"], json!(["staff"]));
    assert_eq!(second["email"], "c@example.com");
    assert_eq!(second["preferred_username"], "carol");
    assert_eq!(second["sub"], first["sub"]);

    // No word of groups or of an address: that is unknown, and takes nothing away.
    upstream.set("u-1", json!({ "preferred_username": "carol" }), false).await;
    let response = sign_in(&mut Browser::default(), &server, &upstream, &path, "u-1").await;
    let third = claims(text(&tokens(&server, &response).await, "id_token"));
    assert_eq!((&third["groups"], &third["email"]), (&json!(["staff"]), &json!("c@example.com")));

    // All groups gone, by the provider's word.
    let none = json!({ "preferred_username": "carol", "groups": [] });
    upstream.set("u-1", none, false).await;
    let response = sign_in(&mut Browser::default(), &server, &upstream, &path, "u-1").await;
    let fourth = claims(text(&tokens(&server, &response).await, "id_token"));
    assert_eq!(fourth["groups"], json!([]));
}

#[tokio::test]
async fn attack_17_a_missing_groups_claim_withdraws_no_token_and_a_lost_group_does() {
    let upstream = Upstream::start("corp", 0);
    upstream.set("u-1", carol(), false).await;
    let server = server(&[&upstream], false, json!({})).await;
    let path = authorize_with(&[]);
    sign_in(&mut Browser::default(), &server, &upstream, &path, "u-1").await;
    let carols = server.personal_token("carol", 3600).await;
    let is_good = async || {
        let request = server.request(Method::POST, "/introspect").basic_auth(GATE.0, Some(GATE.1));
        let answer = request.form(&[("token", &carols)]).send().await.unwrap();
        answer.json::<Value>().await.unwrap()["active"] == true
    };
    let account = async || {
        let carol = server.store.person(&"carol".parse().unwrap()).await.unwrap().unwrap();
        server.store.ways_to_sign_in(&carol.subject).await.unwrap().providers.remove(0)
    };
    let said_at = account().await.groups_at;
    assert!(said_at.is_some() && account().await.groups_silent_since.is_none());
    server.wait(60);
    for silent in [
        json!({ "preferred_username": "carol" }),
        json!({ "preferred_username": "carol", "groups": 7 }),
    ] {
        upstream.set("u-1", silent, false).await;
        sign_in(&mut Browser::default(), &server, &upstream, &path, "u-1").await;
        assert!(is_good().await, "unknown is not none");
    }
    let known = account().await;
    assert_eq!(known.groups.as_deref(), Some(&["ml".to_owned(), "staff".to_owned()][..]));
    assert_eq!(known.groups_at, said_at, "as old as it is");
    assert_eq!(known.groups_silent_since, Some(server.now()));
    let audit = server.audited("groups-unknown").await;
    assert!(audit.contains("provider corp: the claim with the groups is missing"), "{audit}");

    // A claim that is there and lacks one takes it away.
    let mut fewer = carol();
    fewer["groups"] = json!(["staff"]);
    upstream.set("u-1", fewer, false).await;
    sign_in(&mut Browser::default(), &server, &upstream, &path, "u-1").await;
    assert!(!is_good().await);
    assert_eq!(account().await.groups_silent_since, None);
}

#[tokio::test]
async fn groups_that_let_nobody_be_known_let_only_those_in_who_were() {
    let upstream = Upstream::start("corp", 0);
    upstream.set("u-1", carol(), false).await;
    let server = server(&[&upstream], false, json!({ "allowed_groups": ["staff"] })).await;
    let path = authorize_with(&[]);
    sign_in(&mut Browser::default(), &server, &upstream, &path, "u-1").await;
    upstream.set("u-1", json!({ "preferred_username": "carol" }), false).await;
    upstream.set("u-2", json!({ "preferred_username": "dave" }), false).await;
    let known = sign_in(&mut Browser::default(), &server, &upstream, &path, "u-1").await;
    assert!(location(&known).starts_with(CALLBACK));
    let new = sign_in(&mut Browser::default(), &server, &upstream, &path, "u-2").await;
    let (status, html) = page(new).await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    assert!(html.contains("did not say which groups you are in"), "{html}");
}

#[tokio::test]
async fn disabled_people_are_refused() {
    let upstream = Upstream::start("corp", 0);
    upstream.set("u-1", carol(), false).await;
    let server = server(&[&upstream], false, json!({})).await;
    let path = authorize_with(&[]);
    let mut browser = Browser::default();
    sign_in(&mut browser, &server, &upstream, &path, "u-1").await;

    server.store.disable_user(&"carol".parse().unwrap(), server.now()).await.unwrap();
    let response = sign_in(&mut browser, &server, &upstream, &path, "u-1").await;
    let (status, html) = page(response).await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    assert!(html.contains("Your account is disabled"), "{html}");
    assert!(
        !browser.cookies.contains_key("__Host-dormouse-sso") || {
            location(&browser.open(&server, &path).await).starts_with(&upstream.issuer())
        }
    );

    // Disabled there: the provider says no.
    server.store.enable_user(&"carol".parse().unwrap()).await.unwrap();
    upstream.set("u-1", carol(), true).await;
    let response = sign_in(&mut Browser::default(), &server, &upstream, &path, "u-1").await;
    let (status, html) = page(response).await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    assert!(html.contains("did not let you in"), "{html}");
    assert!(!html.contains("this account is disabled"), "others' words are not shown");
}

#[tokio::test]
async fn while_the_provider_is_down_there_is_a_clear_page_and_sessions_live_on() {
    let upstream = Upstream::start("corp", 0);
    let port = upstream.port;
    upstream.set("u-1", carol(), false).await;
    let server = server(&[&upstream], false, json!({})).await;
    let path = authorize_with(&[]);
    let mut browser = Browser::default();
    let response = sign_in(&mut browser, &server, &upstream, &path, "u-1").await;
    let refresh = text(&tokens(&server, &response).await, "refresh_token").to_owned();
    // It goes down while somebody types their password there.
    let mut late = Browser::default();
    let to = location(&late.open(&server, &path).await);
    let back = upstream.sign_in(&to, "u-1").await;
    drop(upstream);
    let (status, html) = page(late.open(&server, ours(&back)).await).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(html.contains("does not answer. Whoever is signed in stays so"), "{html}");
    assert!(html.contains("href=\"/authorize?") && html.contains("Try again"), "{html}");
    // Who is signed in stays so.
    assert!(location(&browser.open(&server, &path).await).starts_with(CALLBACK));
    assert_eq!(server.refresh(&refresh).await.0, StatusCode::OK);

    // A server that never reached it says so too, and recovers by itself.
    let fresh = Server::start_changed(|folder, config| {
        let known = json!({
            "id": "corp", "name": "Corp", "issuer": format!("http://127.0.0.1:{port}"),
            "client_id": "dormouse", "client_secret_file": folder.join("secret"),
        });
        std::fs::write(folder.join("secret"), crate::support::upstream::SECRET).unwrap();
        config.providers = vec![serde_json::from_value(known).unwrap()];
        config.local_sign_in = false;
    })
    .await;
    let (status, html) = page(late.open(&fresh, &path).await).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{html}");
    let upstream = Upstream::start("corp", port);
    upstream.set("u-1", carol(), false).await;
    let begun = Instant::now();
    while late.open(&fresh, &path).await.status() != StatusCode::SEE_OTHER {
        assert!(begun.elapsed() < Duration::from_secs(30), "it does not recover");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // The old server knows other keys than those that sign now, and asks for them.
    let response = sign_in(&mut Browser::default(), &server, &upstream, &path, "u-1").await;
    tokens(&server, &response).await;
}

#[tokio::test]
async fn signing_out_ends_the_session_here_while_the_provider_is_down() {
    let upstream = Upstream::start("corp", 0);
    upstream.set("u-1", carol(), false).await;
    let server = server(&[&upstream], false, json!({})).await;
    let path = authorize_with(&[]);
    let mut browsers = [Browser::default(), Browser::default()];
    let mut refresh = Vec::new();
    for browser in &mut browsers {
        let response = sign_in(browser, &server, &upstream, &path, "u-1").await;
        refresh.push(text(&tokens(&server, &response).await, "refresh_token").to_owned());
    }
    drop(upstream);
    // One that knows where sessions end there, and one that never reached it.
    let fresh = server.replica().await;
    for ((at, offers), (browser, refresh)) in
        [(&server, true), (&fresh, false)].into_iter().zip(browsers.iter_mut().zip(&refresh))
    {
        assert!(location(&browser.open(at, &path).await).starts_with(CALLBACK));
        let cookies = browser.cookies.clone();
        let html = browser.open(at, "/sign-out").await.text().await.unwrap();
        let request = at.request(Method::POST, "/sign-out").header(header::ORIGIN, ISSUER);
        let response = browser.send(request.form(&[("ticket", ticket(&html))])).await;
        let (status, html) = page(response).await;
        assert_eq!(status, StatusCode::OK);
        assert!(html.contains("You are signed out"), "{html}");
        assert_eq!(html.contains("still signed in at corp &#38; Sons"), offers, "{html}");
        // Whatever the browser does with the page: what it had is worth nothing.
        browser.cookies = cookies;
        let again = browser.open(at, &authorize_with(&[("prompt", "none")])).await;
        assert_eq!(query(&location(&again))["error"], "login_required");
        assert_eq!(at.refresh(refresh).await.0, StatusCode::BAD_REQUEST);
    }
}

#[tokio::test]
async fn an_account_is_not_taken_over_by_its_name_or_address() {
    let upstream = Upstream::start("corp", 0);
    let alice = json!({
        "preferred_username": "alice", "email": "alice@example.com", "email_verified": true,
        "groups": ["admins"],
    });
    upstream.set("u-2", alice, false).await;
    let server = server(&[&upstream], false, json!({})).await;
    let path = authorize_with(&[]);
    let response = sign_in(&mut Browser::default(), &server, &upstream, &path, "u-2").await;
    let (status, html) = page(response).await;
    assert_eq!(status, StatusCode::CONFLICT);
    assert!(html.contains("the name alice belongs to another account here"), "{html}");
    let name = "alice".parse().unwrap();
    let before = server.store.person(&name).await.unwrap().unwrap();
    assert_eq!(before.groups, ["ml"], "nothing of theirs has changed");

    // An administrator may link the two.
    let (issuer, now) = (upstream.issuer(), server.now());
    server.store.link_upstream(&name, &issuer, "u-2", now).await.unwrap();
    let bob = "bob".parse().unwrap();
    let taken = server.store.link_upstream(&bob, &issuer, "u-2", now).await.unwrap_err();
    let told = "the subject u-2 of this provider is alice already, and cannot be somebody else";
    assert_eq!(taken.to_string(), told);
    // Linked twice is linked; what cannot be an issuer or a subject is told.
    server.store.link_upstream(&name, &issuer, "u-2", now).await.unwrap();
    for (issuer, subject) in [("corp", "u-3"), ("http://id.example.com", "u-3"), (&*issuer, " ")] {
        assert!(server.store.link_upstream(&bob, issuer, subject, now).await.is_err(), "{issuer}");
    }
    let response = sign_in(&mut Browser::default(), &server, &upstream, &path, "u-2").await;
    let id = claims(text(&tokens(&server, &response).await, "id_token"));
    assert_eq!((&id["sub"], &id["groups"]), (&json!(before.subject), &json!(["admins", "ml"])));
    // Nor does the provider take away what an operator gave.
}

#[tokio::test]
async fn several_ways_to_sign_in_are_offered_on_one_page() {
    let (corp, lab) = (Upstream::start("corp", 0), Upstream::start("lab", 0));
    lab.set("u-1", carol(), false).await;
    let server = server(&[&corp, &lab], true, json!({})).await;
    let mut browser = Browser::default();
    let html = browser.open(&server, &authorize_with(&[])).await.text().await.unwrap();
    assert!(html.contains("Sign in with corp &#38; Sons"), "{html}");
    assert!(html.contains("name=\"password\""), "{html}");
    let link = |id: &str| {
        let (_, rest) = html.split_once(&format!("href=\"/sign-in/with/{id}?")).unwrap();
        format!("/sign-in/with/{id}?{}", rest.split('"').next().unwrap())
    };
    let response = sign_in(&mut browser, &server, &lab, &link("lab"), "u-1").await;
    tokens(&server, &response).await;
    // The link is this browser's own.
    let response = Browser::default().open(&server, &link("corp")).await;
    assert_eq!(response.status(), StatusCode::FORBIDDEN);
    // Passwords go on working beside it.
    let to = Browser::default().sign_in(&server, &authorize_with(&[]), "alice").await;
    assert!(to.starts_with(CALLBACK));
    let missing = server.get("/sign-in/with/nobody").await;
    assert_eq!(missing.status(), StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn attack_13_mix_up_of_issuers() {
    let (corp, evil) = (Upstream::start("corp", 0), Upstream::start("evil", 0));
    corp.set("u-1", carol(), false).await;
    let server = server(&[&corp, &evil], false, json!({})).await;
    let mut browser = Browser::default();
    let begin = |id: &str| format!("/sign-in/with/{id}");

    // The person chose `evil`, whose answer carries a code of `corp`.
    let to = location(&browser.open(&server, &begin("evil")).await);
    let evil_state = query(&to)["state"].clone();
    let to = location(&browser.open(&server, &begin("corp")).await);
    let answer = query(&corp.sign_in(&to, "u-1").await);
    for (iss, expected) in
        [(Some(corp.issuer()), StatusCode::FORBIDDEN), (None, StatusCode::FORBIDDEN)]
    {
        let to = location(&browser.open(&server, &begin("evil")).await);
        let fields = [
            ("code", Some(answer["code"].as_str())),
            ("state", Some(query(&to)["state"].as_str())),
            ("iss", iss.as_deref()),
        ]
        .map(|(name, value)| value.map(|value| (name, value.to_owned())));
        let text = url::form_urlencoded::Serializer::new(String::new())
            .extend_pairs(fields.into_iter().flatten())
            .finish();
        let response = browser.open(&server, &format!("/sign-in/from/evil?{text}")).await;
        assert_eq!(response.status(), expected);
        // Nor at the other's address, whose state it is not.
        let text = text.replace(&query(&to)["state"], &evil_state);
        let response = browser.open(&server, &format!("/sign-in/from/corp?{text}")).await;
        assert_eq!(response.status(), expected);
    }
    assert!(!browser.cookies.contains_key("__Host-dormouse-sso"));
    // The right answer at the right place still counts: nobody used up its code.
    let query = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(&answer).finish();
    let response = browser.open(&server, &format!("/sign-in/from/corp?{query}")).await;
    assert_eq!(location(&response), "/");
    assert!(browser.cookies.contains_key("__Host-dormouse-sso"));
}

#[tokio::test]
async fn attack_13_state_nonce_and_code_of_an_upstream_sign_in_count_once_in_one_browser() {
    let upstream = Upstream::start("corp", 0);
    upstream.set("u-1", carol(), false).await;
    upstream.set("u-9", json!({ "preferred_username": "mallory" }), false).await;
    let server = server(&[&upstream], false, json!({})).await;
    let path = authorize_with(&[]);

    // Somebody else's browser: nobody is signed in as another person by a link.
    let mut mallory = Browser::default();
    let to = location(&mallory.open(&server, &path).await);
    let back = upstream.sign_in(&to, "u-9").await;
    let mut victim = Browser::default();
    let response = victim.open(&server, ours(&back)).await;
    assert_eq!(response.status(), StatusCode::FORBIDDEN);
    let to = location(&victim.open(&server, &path).await);
    let response = victim.open(&server, ours(&back)).await;
    assert_eq!(response.status(), StatusCode::FORBIDDEN, "nor with a sign-in of their own begun");

    // A code that was issued for another sign-in, with this one's state: PKCE and nonce differ.
    let swapped = back.replace(&query(&back)["state"], &query(&to)["state"]);
    let response = victim.open(&server, ours(&swapped)).await;
    assert_eq!(response.status(), StatusCode::FORBIDDEN);
    assert!(!victim.cookies.contains_key("__Host-dormouse-sso"));

    // Each answer counts once.
    let to = location(&victim.open(&server, &path).await);
    let back = upstream.sign_in(&to, "u-1").await;
    assert!(location(&victim.open(&server, ours(&back)).await).starts_with(CALLBACK));
    victim.cookies.remove("__Host-dormouse-sso");
    let response = victim.open(&server, ours(&back)).await;
    assert_eq!(response.status(), StatusCode::FORBIDDEN);

    // And not for ever.
    let to = location(&victim.open(&server, &path).await);
    let back = upstream.sign_in(&to, "u-1").await;
    server.wait(1800);
    let response = victim.open(&server, ours(&back)).await;
    assert_eq!(response.status(), StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn who_has_to_prove_it_again_is_asked_again_by_the_provider() {
    let upstream = Upstream::start("corp", 0);
    upstream.set("u-1", carol(), false).await;
    let server = server(&[&upstream], false, json!({})).await;
    let (mut browser, mut there) = (Browser::default(), BTreeMap::new());
    let to = location(&browser.open(&server, &authorize_with(&[])).await);
    let back = upstream.sign_in_with(&mut there, &to, "u-1").await;
    assert!(location(&browser.open(&server, ours(&back)).await).starts_with(CALLBACK));

    let path = authorize_with(&[("prompt", "login")]);
    let to = location(&browser.open(&server, &path).await);
    let asked = query(&to);
    assert_eq!((asked["prompt"].as_str(), asked["max_age"].as_str()), ("login", "0"));
    assert_eq!(asked["code_challenge_method"], "S256");
    // A person who keeps the provider from asking again does not get further.
    let plain = to.replace("prompt=login", "x=y").replace("max_age=0", "x=z");
    let back = upstream.sign_in_with(&mut there, &plain, "u-1").await;
    let (status, html) = page(browser.open(&server, ours(&back)).await).await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    assert!(html.contains("does not say when it last asked who you are"), "{html}");
    let to = location(&browser.open(&server, &path).await);
    let back = upstream.sign_in_with(&mut there, &to, "u-1").await;
    assert!(location(&browser.open(&server, ours(&back)).await).starts_with(CALLBACK));
}

#[tokio::test]
async fn starting_many_sign_ins_is_slowed_down() {
    let upstream = Upstream::start("corp", 0);
    let server = server(&[&upstream], false, json!({})).await;
    let go = |address: &'static str| {
        let request = server.request(Method::GET, "/sign-in/with/corp");
        from(request, address).send()
    };
    for _ in 0..60 {
        assert_eq!(go("198.51.100.7").await.unwrap().status(), StatusCode::SEE_OTHER);
    }
    let refused = go("198.51.100.7").await.unwrap();
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
    assert!(refused.headers().contains_key(header::RETRY_AFTER));
    assert_eq!(go("198.51.100.8").await.unwrap().status(), StatusCode::SEE_OTHER);
}
