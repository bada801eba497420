//! Browser sessions.

use std::sync::atomic::Ordering::SeqCst;

use reqwest::{Response, header::SET_COOKIE};

use crate::{
    upstream,
    world::{HOST, World},
};

/// As much of a browser as it takes: a jar of host-only cookies.
struct Browser<'w> {
    world: &'w World,
    client: reqwest::Client,
    cookies: Vec<(String, String)>,
}

impl<'w> Browser<'w> {
    fn new(world: &'w World) -> Self {
        Self { world, client: world.client(false), cookies: Vec::new() }
    }

    fn cookie_header(&self) -> String {
        let pairs: Vec<_> =
            self.cookies.iter().map(|(name, value)| format!("{name}={value}")).collect();
        pairs.join("; ")
    }

    fn keep(&mut self, answer: &Response) {
        for value in answer.headers().get_all(SET_COOKIE) {
            let text = value.to_str().unwrap();
            assert!(
                text.contains("; Path=/; ") && text.ends_with("; Secure; HttpOnly; SameSite=Lax"),
                "{text}"
            );
            let (name, value) = text.split(';').next().unwrap().split_once('=').unwrap();
            self.cookies.retain(|(other, _)| other != name);
            if !text.contains("Max-Age=0;") {
                self.cookies.push((name.to_owned(), value.to_owned()));
            }
        }
    }

    async fn open(&mut self, url: &str) -> Response {
        let request = self.client.get(url).header("Accept", "text/html");
        let request = request.header("Sec-Fetch-Mode", "navigate");
        let answer = request.header("Cookie", self.cookie_header()).send().await.unwrap();
        self.keep(&answer);
        answer
    }

    async fn sign_in(&mut self, path: &str) -> Response {
        let sent = self.open(&self.world.url(HOST, path)).await;
        assert_eq!(sent.status(), 302);
        let back = self.world.issuer.approve(location(&sent), "alice");
        self.open(back.as_str()).await
    }

    fn has(&self, name: &str) -> bool {
        self.cookies.iter().any(|(other, _)| other == name)
    }
}

fn location(answer: &Response) -> &str {
    answer.headers()["location"].to_str().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_navigation_signs_in_and_lands_where_it_wanted_to_go() {
    let world = World::start().await;
    world.running(upstream::mirror().await);
    let mut browser = Browser::new(&world);
    let landed = browser.sign_in("/lab/tree?x=1").await;
    assert_eq!(landed.status(), 302);
    assert_eq!(location(&landed), "/lab/tree?x=1");
    assert!(browser.has("__Host-dormouse") && browser.has("__Host-dormouse-refresh"));
    assert!(browser.has("__Host-dormouse-login"), "kept for sign-ins in other tabs");
    assert_eq!(browser.cookies.len(), 3);
    let page = browser.open(&world.url(HOST, "/lab/tree?x=1")).await;
    assert_eq!(page.status(), 200);
    let who = browser.open(&world.url(HOST, "/.dormouse/whoami")).await;
    let who: serde_json::Value = who.json().await.unwrap();
    assert_eq!(
        (who["user"].as_str(), who["workload"].as_str()),
        (Some("alice"), Some("App alice/echo"))
    );
    assert!(world.audit().contains("signed-in"));
    assert!(!world.audit().contains("eyJ"), "no token in the audit log");
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_15_many_tabs_after_lunch_all_land() {
    let world = World::start().await;
    world.running(upstream::mirror().await);
    let mut browser = Browser::new(&world);
    let mut requests = Vec::new();
    for tab in 0..40 {
        let sent = browser.open(&world.url(HOST, &format!("/tab/{tab}"))).await;
        requests.push(location(&sent).to_owned());
    }
    assert_eq!(browser.cookies.len(), 1, "tabs without number cost no cookies");
    for (tab, request) in requests.iter().enumerate() {
        let back = world.issuer.approve(request, "alice");
        let landed = browser.open(back.as_str()).await;
        assert_eq!((landed.status().as_u16(), location(&landed)), (302, &*format!("/tab/{tab}")));
    }
    assert_eq!(browser.cookies.len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_link_is_kept_and_one_that_is_too_long_says_what_to_do() {
    let world = World::start().await;
    world.running(upstream::mirror().await);
    let mut browser = Browser::new(&world);
    let long = format!("/git-pull?repo=https://example.org/r&urlpath={}", "x".repeat(8000));
    let sent = browser.open(&world.url(HOST, &format!("{long}{}", "x".repeat(1000)))).await;
    assert_eq!(sent.status(), 401);
    assert_eq!(sent.headers()["content-type"], "text/html; charset=utf-8");
    let html = sent.text().await.unwrap();
    assert!(html.contains("too long") && html.contains("target=\"_blank\""), "{html}");
    assert_eq!(location(&browser.sign_in(&long).await), long);
}

/// A bookmark of the sign-in page in a browser that never was here, or a page that waited for days.
#[tokio::test(flavor = "multi_thread")]
async fn a_sign_in_that_the_browser_does_not_know_leads_to_one_that_it_knows() {
    let world = World::start().await;
    world.running(upstream::mirror().await);
    let sent = Browser::new(&world).open(&world.url(HOST, "/deep?x=1")).await;
    let bookmark = location(&sent).to_owned();
    let mut browser = Browser::new(&world);
    let again = browser.open(world.issuer.approve(&bookmark, "alice").as_str()).await;
    assert_eq!(again.status(), 302);
    assert!(!browser.has("__Host-dormouse"), "another browser's sign-in signs nobody in");
    let back = world.issuer.approve(location(&again), "alice");
    assert_eq!(location(&browser.open(back.as_str()).await), "/deep?x=1");
    assert!(browser.has("__Host-dormouse"));
    // The same with a state that nobody can read any more.
    let mut browser = Browser::new(&world);
    let forgotten = world.issuer.approve(&bookmark, "alice").to_string();
    let forgotten = forgotten.replace("state=1.", "state=1.x");
    let again = browser.open(&forgotten).await;
    let back = world.issuer.approve(location(&again), "alice");
    assert_eq!(location(&browser.open(back.as_str()).await), "/");
    // Without cookies it is no circle: the second one says so, and knows the way.
    let mut browser = Browser::new(&world);
    let again = browser.open(world.issuer.approve(&bookmark, "alice").as_str()).await;
    browser.cookies.clear();
    let ended = browser.open(world.issuer.approve(location(&again), "alice").as_str()).await;
    assert_eq!(ended.status(), 400);
    let html = ended.text().await.unwrap();
    assert!(html.contains("cookies are blocked") && html.contains("href=\"/deep?x=1\""), "{html}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_form_without_a_session_says_what_to_do_and_where_to_sign_in() {
    let world = World::start().await;
    world.running(upstream::mirror().await);
    for http_1_only in [true, false] {
        let form = || {
            let form = world.client(http_1_only).post(world.url(HOST, "/save")).body("a=b");
            form.header("Sec-Fetch-Mode", "navigate").header("Accept", "text/html")
        };
        let page = world.url(HOST, "/edit?page=1");
        for (referer, link) in [(page.as_str(), "/edit?page=1"), ("https://evil.test/x", "/")] {
            let answer = form().header("Referer", referer).send().await.unwrap();
            assert_eq!(answer.status(), 401);
            assert!(answer.headers().contains_key("www-authenticate"));
            assert_eq!(answer.headers()["content-type"], "text/html; charset=utf-8");
            let html = answer.text().await.unwrap();
            let link = format!("href=\"{link}\" target=\"_blank\" rel=\"noopener\"");
            assert!(html.contains("send it again") && html.contains(&link), "{html}");
        }
        let over = format!("__Host-dormouse={}", world.issuer.access_token("alice", -120));
        let answer = form().header("Cookie", over).send().await.unwrap();
        assert!(answer.text().await.unwrap().contains("send it again"));
        // What a person is refused is a page, too.
        let answer = form().header("Authorization", world.bearer("bob")).send().await.unwrap();
        assert_eq!(answer.status(), 404);
        assert!(answer.text().await.unwrap().starts_with("<!doctype html>"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_15_a_hundred_requests_with_one_expiring_session_renew_once() {
    let world = World::start().await;
    world.running(upstream::mirror().await);
    for (seconds, refreshes) in [(-120, 1), (100, 2)] {
        let refresh = world.issuer.session("alice");
        let access = world.issuer.access_token("alice", seconds);
        let cookie = format!("__Host-dormouse={access}; __Host-dormouse-refresh={refresh}");
        let client = world.client(false);
        let sent = (0..100).map(|_| {
            let request = client.get(world.url(HOST, "/")).header("Cookie", cookie.clone());
            tokio::spawn(request.send())
        });
        for sent in sent.collect::<Vec<_>>() {
            assert_eq!(sent.await.unwrap().unwrap().status(), 200);
        }
        // What follows gets the new token, at the latest when the renewal beside has ended.
        let renewed = loop {
            let request = client.get(world.url(HOST, "/")).header("Cookie", cookie.clone());
            let answer = request.send().await.unwrap();
            if let Some(cookie) = answer.headers().get(SET_COOKIE) {
                break cookie.to_str().unwrap().to_owned();
            }
        };
        assert!(renewed.starts_with("__Host-dormouse=ey") && !renewed.contains(&access));
        assert_eq!(world.issuer.refreshes.load(SeqCst), refreshes);
    }
}

/// The issuer of these tests takes each refresh token once, so a second use would be seen.
#[tokio::test(flavor = "multi_thread")]
async fn a_changed_refresh_token_reaches_the_browser() {
    let world = World::start().await;
    world.running(upstream::mirror().await);
    let client = world.client(false);
    let mut refresh = format!("__Host-dormouse-refresh={}", world.issuer.session("alice"));
    let mut seen = vec![refresh.clone()];
    for _ in 0..3 {
        let access = world.issuer.access_token("alice", 100);
        let cookies = format!("__Host-dormouse={access}; {refresh}");
        // At the latest when the renewal beside a request has ended.
        refresh = loop {
            let request = client.get(world.url(HOST, "/")).header("Cookie", cookies.clone());
            let answer = request.send().await.unwrap();
            assert_eq!(answer.status(), 200);
            let set: Vec<String> = answer
                .headers()
                .get_all(SET_COOKIE)
                .iter()
                .map(|cookie| cookie.to_str().unwrap().split(';').next().unwrap().to_owned())
                .collect();
            if let [access, refresh] = set.as_slice() {
                assert!(access.starts_with("__Host-dormouse=ey"));
                break refresh.clone();
            }
        };
        assert!(refresh.starts_with("__Host-dormouse-refresh=") && !seen.contains(&refresh));
        seen.push(refresh.clone());
    }
    assert_eq!(world.issuer.refreshes.load(SeqCst), 3);
    assert_eq!(world.issuer.refused.load(SeqCst), 0, "no token was used twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ended_session_signs_in_again_and_a_script_is_told_so() {
    let world = World::start().await;
    world.running(upstream::mirror().await);
    let access = world.issuer.access_token("alice", -120);
    let mut browser = Browser::new(&world);
    browser.cookies = vec![
        ("__Host-dormouse".to_owned(), access.clone()),
        ("__Host-dormouse-refresh".to_owned(), "ended".to_owned()),
    ];
    let sent = browser.open(&world.url(HOST, "/lab")).await;
    assert!(location(&sent).starts_with(&format!("{}/authorize?", world.issuer.url)));
    let script = browser.client.get(world.url(HOST, "/api")).header("Sec-Fetch-Mode", "cors");
    let script = script.header("Cookie", browser.cookie_header()).send().await.unwrap();
    assert_eq!(script.status(), 401);
    // A token that was never ours makes nobody ask the issuer.
    let before = world.issuer.refreshes.load(SeqCst);
    let forged = format!("__Host-dormouse={}x; __Host-dormouse-refresh=r", access);
    let request = browser.client.get(world.url(HOST, "/")).header("Cookie", forged);
    assert_eq!(request.send().await.unwrap().status(), 401);
    assert_eq!(world.issuer.refreshes.load(SeqCst), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_13_state_nonce_and_issuer_are_checked() {
    let world = World::start().await;
    world.running(upstream::mirror().await);
    let mut browser = Browser::new(&world);
    let start = async |browser: &mut Browser<'_>| {
        let sent = browser.open(&world.url(HOST, "/")).await;
        world.issuer.approve(location(&sent), "alice").to_string()
    };
    let refused = async |browser: &mut Browser<'_>, url: String| {
        let landed = browser.open(&url).await;
        assert_eq!(landed.status(), 400, "{url}");
        assert!(!browser.has("__Host-dormouse"), "{url}");
    };
    // What is not this browser's signs nobody in: a sign-in of its own begins.
    let begins_anew = async |browser: &mut Browser<'_>, url: String| {
        let landed = browser.open(&url).await;
        assert_eq!(landed.status(), 302, "{url}");
        assert!(location(&landed).starts_with(&format!("{}/authorize?", world.issuer.url)));
        assert!(!browser.has("__Host-dormouse"), "{url}");
    };
    let back = start(&mut browser).await;
    let issuer = form_encoded(&world.issuer.url);
    refused(&mut browser, back.replace(&issuer, "https%3A%2F%2Fevil")).await;
    let back = start(&mut browser).await;
    refused(&mut browser, back.split("&iss").next().unwrap().to_owned()).await;
    let back = start(&mut browser).await;
    begins_anew(&mut browser, back.replace("state=1.", "state=1.x")).await;
    let back = start(&mut browser).await;
    refused(&mut browser, format!("{back}&code=other")).await;
    let back = start(&mut browser).await;
    *world.issuer.wrong_nonce.lock().unwrap() = Some("another".to_owned());
    refused(&mut browser, back).await;
    // Another browser's sign-in (login CSRF).
    let mut other = Browser::new(&world);
    let back = start(&mut other).await;
    browser.cookies.clear();
    begins_anew(&mut browser, back.clone()).await;
    // Its own browser lands, and only once.
    assert_eq!(other.open(&back).await.status(), 302);
    let mut replay = Browser::new(&world);
    begins_anew(&mut replay, back.clone()).await;
    // A code that was used is not redeemed twice for a browser that is signed in, and starts anew in
    // one that is not any more.
    other.cookies.retain(|(name, _)| name == "__Host-dormouse-login");
    begins_anew(&mut other, back.clone()).await;
    other.sign_in("/").await;
    let again = other.open(&back).await;
    assert_eq!((again.status().as_u16(), location(&again)), (302, "/"));
}

fn form_encoded(text: &str) -> String {
    url::form_urlencoded::byte_serialize(text.as_bytes()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_10_open_redirects_end_at_home() {
    let world = World::start().await;
    world.running(upstream::mirror().await);
    let mut raw = world.raw().await;
    for target in ["//evil.test/x", "/\\evil.test", "///evil.test"] {
        raw.send(&format!(
            "GET {target} HTTP/1.1\r\nHost: {HOST}:{}\r\nAccept: text/html\r\n\r\n",
            world.address.port()
        ))
        .await;
        let (head, _) = raw.answer().await;
        assert!(head.starts_with("HTTP/1.1 302 "), "{head}");
        let header = |name: &str| {
            let line = head.lines().find(|line| line.to_ascii_lowercase().starts_with(name));
            line.unwrap().split_once(": ").unwrap().1.to_owned()
        };
        let cookie = header("set-cookie").split(';').next().unwrap().to_owned();
        let back = world.issuer.approve(&header("location"), "alice");
        let request = world.client(true).get(back).header("Cookie", cookie);
        let landed = request.send().await.unwrap();
        assert_eq!((landed.status().as_u16(), location(&landed)), (302, "/"), "{target}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn signing_out_is_asked_for_once_and_cannot_be_done_to_others() {
    let world = World::start().await;
    world.running(upstream::mirror().await);
    let mut browser = Browser::new(&world);
    browser.sign_in("/").await;
    let out = browser.open(&world.url(HOST, "/.dormouse/sign-out")).await;
    assert_eq!(out.status(), 303);
    assert!(browser.has("__Host-dormouse"), "asking is not doing");
    let asked = reqwest::Url::parse(location(&out)).unwrap();
    assert_eq!(asked.path(), "/end-session");
    let query =
        |name: &str| asked.query_pairs().find(|(found, _)| found == name).unwrap().1.into_owned();
    assert_eq!(query("client_id"), "dormouse-gate");
    let back = query("post_logout_redirect_uri");
    assert_eq!(back, world.url(HOST, "/.dormouse/signed-out"));
    let state = query("state");
    // Nobody else ends it: not without the state, with another one, or in another browser.
    for bad in [back.clone(), format!("{back}?state="), format!("{back}?state={state}x")] {
        assert_eq!(location(&browser.open(&bad).await), "/", "{bad}");
        assert!(browser.has("__Host-dormouse"));
    }
    let mut victim = Browser::new(&world);
    victim.sign_in("/").await;
    assert_eq!(location(&victim.open(&format!("{back}?state={state}")).await), "/");
    assert!(victim.has("__Host-dormouse"));
    let done = browser.open(&format!("{back}?state={state}")).await;
    assert_eq!(done.status(), 200);
    for gone in ["__Host-dormouse", "__Host-dormouse-refresh", "__Host-dormouse-sign-out"] {
        assert!(!browser.has(gone), "{:?}", browser.cookies);
    }
    assert!(done.text().await.unwrap().contains("You are signed out"));
}
