//! Refresh tokens change with each use (RFC 9700, section 2.2.2).

use futures::future::join_all;
use reqwest::StatusCode;
use serde_json::Value;

use crate::support::*;

async fn signed_in(server: &Server) -> Value {
    let code = Browser::default().code(server).await;
    server.redeem(GATE, &code).await.1
}

#[tokio::test]
async fn each_use_gives_a_new_token_and_the_chain_goes_on() {
    let server = Server::start().await;
    let mut tokens = signed_in(&server).await;
    let mut seen = vec![];
    for _ in 0..5 {
        seen.push(text(&tokens, "refresh_token").to_owned());
        server.wait(300);
        let (status, next) = server.refresh(text(&tokens, "refresh_token")).await;
        assert_eq!(status, StatusCode::OK, "{next}");
        assert!(!seen.contains(&text(&next, "refresh_token").to_owned()));
        tokens = next;
    }
}

#[tokio::test]
async fn a_token_that_comes_again_within_a_minute_has_the_same_successor() {
    let server = Server::start().await;
    let tokens = signed_in(&server).await;
    let first = text(&tokens, "refresh_token");
    let next = server.refresh(first).await.1;
    // Even when its successor has been used meanwhile: one tab was faster than another.
    let after_next = server.refresh(text(&next, "refresh_token")).await.1;
    server.wait(60);
    let again = server.refresh(first).await.1;
    assert_eq!(again["refresh_token"], next["refresh_token"]);
    let again = server.refresh(text(&next, "refresh_token")).await.1;
    assert_eq!(again["refresh_token"], after_next["refresh_token"]);
}

#[tokio::test]
async fn a_token_that_comes_again_later_ends_all_that_came_of_it() {
    let server = Server::start().await;
    let tokens = signed_in(&server).await;
    let other = signed_in(&server).await;
    let stolen = text(&tokens, "refresh_token");
    let next = server.refresh(stolen).await.1;
    server.wait(61);
    let refused = server.refresh(stolen).await;
    assert_eq!(
        (refused.0, &refused.1["error"]),
        (StatusCode::BAD_REQUEST, &"invalid_grant".into())
    );
    for token in [stolen, text(&next, "refresh_token")] {
        assert_eq!(server.refresh(token).await.1["error"], "invalid_grant");
    }
    let token = text(&next, "access_token");
    let response = server.api(reqwest::Method::GET, "/userinfo", token, Value::Null).await;
    assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
    let audit = server.audited("a refresh token was used again").await;
    assert!(!audit.contains(stolen));
    // It was one browser's tokens on one host; the person's others live on.
    assert_eq!(server.refresh(text(&other, "refresh_token")).await.0, StatusCode::OK);
}

#[tokio::test]
async fn a_client_that_it_does_not_belong_to_cannot_use_a_token_up() {
    let server = Server::start().await;
    let tokens = signed_in(&server).await;
    let token = text(&tokens, "refresh_token");
    let form = [("grant_type", "refresh_token"), ("refresh_token", token)];
    assert_eq!(server.token(OTHER, &form).await.1["error"], "invalid_grant");
    server.wait(3600);
    assert_eq!(server.refresh(token).await.0, StatusCode::OK);
}

#[tokio::test]
async fn attack_15_a_hundred_that_refresh_at_once_on_two_servers_get_one_successor() {
    let server = Server::start().await;
    let replica = server.replica().await;
    let mut token = text(&signed_in(&server).await, "refresh_token").to_owned();
    let verifier = server.verifier().await;
    for round in 0..3 {
        server.wait(300);
        let answers = join_all((0..100).map(|number| {
            let server = if number % 2 == 0 { &server } else { &replica };
            server.refresh(&token)
        }))
        .await;
        let successor = text(&answers[0].1, "refresh_token").to_owned();
        assert_ne!(successor, token);
        for (status, tokens) in &answers {
            assert_eq!(*status, StatusCode::OK, "round {round}: {tokens}");
            assert_eq!(text(tokens, "refresh_token"), successor);
            assert!(verifier.verify(text(tokens, "access_token"), server.now()).is_ok());
        }
        token = successor;
    }
    let count = count_refresh_tokens(&server).await;
    assert_eq!(count, 4, "one rotation per round");
}

#[tokio::test]
async fn a_token_that_is_none_is_refused_whatever_is_in_it() {
    let server = Server::start().await;
    let secret = "x".repeat(43);
    for grant in ["\0", "\u{ffff}", "'", "\"", "\\u0000", ""] {
        for number in ["1", "9223372036854775807", "9223372036854775808", "-1", ""] {
            let (status, answer) = server.refresh(&format!("{grant}.{number}.{secret}")).await;
            assert_eq!(status, StatusCode::BAD_REQUEST, "{grant:?} {number}: {answer}");
            assert_eq!(answer["error"], "invalid_grant");
        }
    }
}

async fn count_refresh_tokens(server: &Server) -> i64 {
    let pool = pool(server).await;
    sqlx::query_scalar("SELECT count(*) FROM refresh_tokens").fetch_one(&pool).await.unwrap()
}
