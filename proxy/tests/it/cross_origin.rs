//! Pages of other origins, whose requests come with a browser's session because all hosts are one
//! site.

use domain::{
    route::{RouteSpec, State},
    traffic::Traffic,
};

use crate::{
    upstream,
    world::{HOST, World, spec},
};

async fn send(world: &World, method: &str, path: &str, fields: &[(&str, &str)]) -> u16 {
    let mut seen = Vec::new();
    for http_1_only in [true, false] {
        let method = reqwest::Method::from_bytes(method.as_bytes()).unwrap();
        let mut request = world.client(http_1_only).request(method, world.url(HOST, path));
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        seen.push(request.send().await.unwrap().status().as_u16());
    }
    assert_eq!(seen[0], seen[1], "both protocols say the same of {method} {path} {fields:?}");
    seen[0]
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_9_a_neighbours_page_changes_nothing_with_ones_session() {
    let mut world = World::start().await;
    let session = format!("__Host-dormouse={}", world.issuer.access_token("alice", 600));
    let cookie = ("Cookie", session.as_str());
    let own = format!("https://{HOST}:{}", world.address.port());
    let front = format!("https://front--alice.example.test:{}", world.address.port());
    let neighbour = format!("https://mallory--bob.example.test:{}", world.address.port());
    let mirror = upstream::mirror().await;
    let traffic = Traffic { allowed_origins: vec![front.clone()], ..Traffic::default() };
    let route = RouteSpec { traffic, ..spec(State::Running, &[mirror]) };
    world.set([route.clone()]);
    let (same_site, own_site) =
        (("Sec-Fetch-Site", "same-site"), ("Sec-Fetch-Site", "same-origin"));
    for method in ["POST", "PUT", "PATCH", "DELETE", "PROPFIND"] {
        for foreign in [
            &[("Origin", neighbour.as_str()), same_site][..],
            &[("Origin", "https://evil.test"), ("Sec-Fetch-Site", "cross-site")],
            &[("Origin", "null"), ("Sec-Fetch-Site", "cross-site")],
            &[same_site],
            &[("Sec-Fetch-Mode", "navigate"), same_site],
            &[],
        ] {
            let fields = [&[cookie], foreign].concat();
            assert_eq!(send(&world, method, "/transfer", &fields).await, 403, "{fields:?}");
        }
        for good in
            [&[("Origin", own.as_str())][..], &[own_site], &[("Origin", front.as_str()), same_site]]
        {
            let fields = [&[cookie], good].concat();
            assert_eq!(send(&world, method, "/transfer", &fields).await, 200, "{fields:?}");
        }
        // A token is not sent by itself.
        let bearer = world.bearer("alice");
        let fields = [("Authorization", bearer.as_str()), ("Origin", &neighbour), same_site];
        assert_eq!(send(&world, method, "/transfer", &fields).await, 200);
        // Whose is it? Nobody is told.
        let others = format!("__Host-dormouse={}", world.issuer.access_token("bob", 600));
        let fields = [("Cookie", others.as_str()), ("Origin", &neighbour), same_site];
        assert_eq!(send(&world, method, "/transfer", &fields).await, 404);
    }
    // Links go on working, and so do pictures.
    for fields in [&[("Sec-Fetch-Mode", "navigate")][..], &[("Sec-Fetch-Mode", "no-cors")]] {
        let fields = [&[cookie, same_site], fields].concat();
        assert_eq!(send(&world, "GET", "/", &fields).await, 200);
    }
    // What is ours allows nobody, whatever the workload allows.
    world.set([RouteSpec { state: State::Sleeping, endpoints: Vec::new(), ..route }]);
    for foreign in [&[("Origin", front.as_str()), same_site][..], &[same_site], &[]] {
        let fields = [&[cookie], foreign].concat();
        assert_eq!(send(&world, "GET", "/.dormouse/wake", &fields).await, 403, "{foreign:?}");
    }
    let hidden = [cookie, same_site, ("Sec-Fetch-Mode", "no-cors")];
    assert_eq!(send(&world, "GET", "/.dormouse/sign-out", &hidden).await, 403);
    assert!(world.wakes.try_recv().is_err(), "nothing was woken");
    assert_eq!(send(&world, "GET", "/.dormouse/wake", &[cookie, own_site]).await, 200);
    world.wakes.recv().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_24_a_preflight_wakes_nothing_and_says_nothing_of_what_exists() {
    let mut world = World::start().await;
    let front = "https://front.example";
    let traffic = Traffic { allowed_origins: vec![front.to_owned()], ..Traffic::default() };
    world.set([RouteSpec { traffic, ..spec(State::Sleeping, &[]) }]);
    let ask = async |world: &World, host: &str, origin: &str, fields: &[(&str, &str)]| {
        let client = world.client(false);
        let mut request = client.request(reqwest::Method::OPTIONS, world.url(host, "/v1/chat"));
        request = request
            .header("Origin", origin)
            .header("Access-Control-Request-Method", "POST")
            .header("Access-Control-Request-Headers", "authorization,content-type");
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        let answer = request.send().await.unwrap();
        let mut headers = answer.headers().clone();
        headers.remove("date");
        (answer.status().as_u16(), headers)
    };
    let exists = ask(&world, HOST, "https://other.example", &[]).await;
    assert_eq!(exists.0, 200);
    assert_eq!(exists.1["access-control-allow-origin"], "*");
    assert_eq!(exists.1["access-control-allow-methods"], "POST");
    assert_eq!(exists.1["access-control-allow-headers"], "authorization,content-type");
    assert!(!exists.1.contains_key("access-control-allow-credentials"));
    assert_eq!(
        exists,
        ask(&world, "nothing--alice.example.test", "https://other.example", &[]).await
    );
    let named = ask(&world, HOST, front, &[]).await;
    assert_eq!(named.1["access-control-allow-origin"], front);
    assert_eq!(named.1["access-control-allow-credentials"], "true");
    assert!(world.wakes.try_recv().is_err(), "nothing was woken");
    // Whoever brings a credential is asked for it as for anything else.
    assert_eq!(ask(&world, HOST, front, &[("Authorization", "Bearer nonsense")]).await.0, 401);
    world.running(upstream::mirror().await);
    let bearer = world.bearer("alice");
    assert_eq!(ask(&world, HOST, front, &[("Authorization", &bearer)]).await.0, 200);
}
