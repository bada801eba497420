//! After a theft of the database everything that was in it is replaced, while servers run.

use std::time::Duration;

use authserver::Under;
use domain::token::TokenError;
use reqwest::{Method, StatusCode, header};
use serde_json::{Value, json};

use super::{passkeys::page, signed_in::device};
use crate::support::*;

const KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGPKSUTyz5fOfbrU3VwNxqTV9lT9KTXMAO8LLlqEKcn4";

async fn published(server: &Server) -> String {
    server.get("/.well-known/jwks.json").await.text().await.unwrap()
}

async fn replace_all(server: &Server, replica: &Server) -> authserver::Replaced {
    let before = published(server).await;
    let replaced = server.store.replace_all(server.now()).await.unwrap();
    for server in [server, replica] {
        while published(server).await == before {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    replaced
}

async fn feed(server: &Server) -> Value {
    let request = server.request(Method::GET, "/internal/ssh-keys");
    request.basic_auth(GATE.0, Some(GATE.1)).send().await.unwrap().json().await.unwrap()
}

#[tokio::test]
async fn attack_12_what_a_copy_of_the_database_gave_is_void_and_people_stay_signed_in() {
    let server = Server::start().await;
    let replica = server.replica().await;
    let mut browser = Browser::default();
    let code = browser.code(&server).await;
    let tokens = server.redeem(GATE, &code).await.1;
    let tv = device(&mut browser, &server).await;
    let personal = server.personal_token("alice", 3600).await;
    let wish = json!({ "public_key": KEY });
    let made = server.api(Method::POST, "/ssh/certificate", &personal, wish).await;
    assert_eq!(made.status(), StatusCode::CREATED);
    let before = feed(&server).await;
    let waits = [("client_id", "tv"), ("scope", "openid")];
    let waits = server.post("/device/code", &waits).await.1;

    let replaced = replace_all(&server, &replica).await;
    assert_eq!((replaced.keys, replaced.personal_tokens, replaced.devices), (1, 1, 1));
    for server in [&server, &replica] {
        for token in [text(&tokens, "access_token"), &personal] {
            let response = server.api(Method::GET, "/userinfo", token, Value::Null).await;
            assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
            let verified = server.verifier().await.verify(token, server.now()).map(|_| ());
            assert_eq!(verified, Err(TokenError::UnknownKey));
        }
        // Gateways hear of another authority, with a version that they do not know.
        let after = feed(server).await;
        assert_ne!(after["authorities"], before["authorities"]);
        assert_ne!(after["version"], before["version"]);
        let authority = server.get("/ssh/authority").await.text().await.unwrap();
        assert!(authority.starts_with(after["authorities"][0].as_str().unwrap()));
    }
    assert_eq!(feed(&server).await["authorities"], feed(&replica).await["authorities"]);
    // The browser and the device go on, on either server, and nobody is asked anything.
    let next = replica.refresh(text(&tokens, "refresh_token")).await;
    assert_eq!(next.0, StatusCode::OK, "{}", next.1);
    let access = text(&next.1, "access_token");
    let response = server.api(Method::GET, "/userinfo", access, Value::Null).await;
    assert_eq!(response.status(), StatusCode::OK);
    let third = server.refresh(text(&next.1, "refresh_token")).await;
    assert_eq!(third.0, StatusCode::OK, "{}", third.1);
    assert!(super::signed_in::device_goes_on(&server, &tv).await);
    let to = location(&browser.open(&replica, &authorize_with(&[])).await);
    assert!(query(&to).contains_key("code"), "{to}");
    // A device whose code nobody had entered begins again.
    let ask = [
        ("client_id", "tv"),
        ("grant_type", "urn:ietf:params:oauth:grant-type:device_code"),
        ("device_code", text(&waits, "device_code")),
    ];
    let (status, told) = server.post("/token", &ask).await;
    assert_eq!((status, text(&told, "error")), (StatusCode::BAD_REQUEST, "invalid_grant"));
    // People see which tokens they have to make anew.
    let access = text(&third.1, "access_token");
    let subject = claims(access)["sub"].as_str().unwrap().to_owned();
    let listed = server.store.personal_tokens(&subject).await.unwrap();
    assert!(listed.len() == 1 && listed[0].revoked);
    let secrets = server.store.list_secrets().await.unwrap();
    assert!(secrets.iter().all(|secret| secret.under == Under::Nothing));
    assert!(secrets.iter().any(|secret| secret.secret.starts_with("refresh-until-")));
}

#[tokio::test]
async fn a_form_of_before_is_answered_with_the_way_to_begin_again() {
    let server = Server::start().await;
    let replica = server.replica().await;
    let mut signed_in = Browser::default();
    signed_in.code(&server).await;
    let mut stranger = Browser::default();
    let sign_in = page(stranger.open(&server, &authorize_with(&[])).await).await;
    let sign_out = page(signed_in.open(&server, "/sign-out").await).await;
    let partner = authorize_with(&[
        ("client_id", "partner"),
        ("redirect_uri", "https://partner.example/cb"),
        ("scope", "openid"),
    ]);
    let consent = page(signed_in.open(&server, &partner).await).await;
    let pool = pool(&server).await;
    sqlx::query(
        "INSERT INTO upstream_requests (digest, browser, provider, goal, again, created_at, expires_at)
         VALUES ($1, 'b', 'p', '{}', 0, 1, $2)",
    )
    .bind(vec![1_u8])
    .bind(server.now().as_second() + 600)
    .execute(&pool)
    .await
    .unwrap();
    let replaced = replace_all(&server, &replica).await;
    assert_eq!(replaced.sign_ins, 1);
    let refused = stranger.submit(&replica, &ticket(&sign_in), "alice", PASSWORD).await;
    assert_eq!(refused.status(), StatusCode::BAD_REQUEST);
    let told = refused.text().await.unwrap();
    assert!(told.contains("Go back and reload the page"), "{told}");
    for (path, form, what) in [
        ("/sign-out", &sign_out, "Go back and reload the page"),
        ("/consent", &consent, "start again"),
    ] {
        let ticket = ticket(form);
        let form = [("ticket", ticket.as_str()), ("decision", "allow")];
        let request = server.request(Method::POST, path).header(header::ORIGIN, ISSUER);
        let refused = signed_in.send(request.form(&form)).await;
        assert_eq!(refused.status(), StatusCode::BAD_REQUEST, "{path}");
        let told = refused.text().await.unwrap();
        assert!(told.contains(what), "{path}: {told}");
    }
    // As it says: the page anew, and in.
    let form = page(stranger.open(&replica, &authorize_with(&[])).await).await;
    let to = location(&stranger.submit(&server, &ticket(&form), "alice", PASSWORD).await);
    assert!(query(&to).contains_key("code"), "{to}");
}

#[tokio::test]
async fn who_refreshes_at_that_moment_gets_one_successor_that_goes_on() {
    let server = Server::start().await;
    let replica = server.replica().await;
    let mut chains = Vec::new();
    for _ in 0..6 {
        let code = Browser::default().code(&server).await;
        let tokens = server.redeem(GATE, &code).await.1;
        chains.push(text(&tokens, "refresh_token").to_owned());
    }
    let before = published(&server).await;
    let changed = async { server.store.replace_all(server.now()).await.unwrap() };
    let refreshed = futures::future::join_all(chains.iter().enumerate().map(|(n, token)| {
        let servers = if n % 2 == 0 { [&server, &replica] } else { [&replica, &server] };
        async move {
            let (one, two) = tokio::join!(servers[0].refresh(token), servers[1].refresh(token));
            [one, two]
        }
    }));
    let (refreshed, _) = tokio::join!(refreshed, changed);
    while published(&server).await == before || published(&replica).await == before {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for (token, answers) in chains.iter().zip(&refreshed) {
        let again = replica.refresh(token).await;
        let next = text(&again.1, "refresh_token");
        for (status, tokens) in answers.iter().chain([&again]) {
            assert_eq!(*status, StatusCode::OK, "{tokens}");
            assert_eq!(text(tokens, "refresh_token"), next);
        }
        assert_eq!(server.refresh(next).await.0, StatusCode::OK);
    }
    assert!(!server.audit().contains("used again"));
}

#[tokio::test]
async fn what_would_be_replaced_is_told_and_stays() {
    let server = Server::start().await;
    let before = (published(&server).await, feed(&server).await);
    let token = server.personal_token("alice", 3600).await;
    let told = server.store.would_replace(server.now()).await.unwrap();
    assert_eq!((told.keys, told.personal_tokens), (1, 1));
    assert_eq!((published(&server).await, feed(&server).await), before);
    let response = server.api(Method::GET, "/userinfo", &token, Value::Null).await;
    assert_eq!(response.status(), StatusCode::OK);
}
