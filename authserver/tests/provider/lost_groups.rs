//! A group that is lost in the moment in which a token is made: no token that is good names it.

use std::{future::Future, pin::pin, time::Duration};

use authserver::{NewServiceAccount, Proof};
use reqwest::{Method, StatusCode};
use serde_json::Value;

use crate::support::*;

const EXCHANGE: &str = "urn:ietf:params:oauth:grant-type:token-exchange";
const ACCESS_TOKEN: &str = "urn:ietf:params:oauth:token-type:access_token";

/// Asks for a token while somebody's groups are being taken away by a transaction that is not
/// finished yet.
async fn while_groups_go<T>(server: &Server, name: &str, ask: impl Future<Output = T>) -> T {
    let pool = pool(server).await;
    let begin = if on_postgres() { "BEGIN" } else { "BEGIN IMMEDIATE" };
    let mut tx = pool.begin_with(begin).await.unwrap();
    let lost = sqlx::query("UPDATE people SET groups = '[]' WHERE name = $1");
    lost.bind(name.to_owned()).execute(&mut *tx).await.unwrap();
    let mut asking = pin!(ask);
    // By now it waits for the transaction, or has its answer. Were it slower than that it would only
    // see less.
    let early = tokio::time::timeout(Duration::from_millis(500), &mut asking).await;
    tx.commit().await.unwrap();
    match early {
        Ok(done) => done,
        Err(_) => asking.await,
    }
}

/// The token may have been refused, or be withdrawn; good with the group it must not be.
async fn names_no_group(server: &Server, how: &str, (status, tokens): (StatusCode, Value)) {
    if status != StatusCode::OK {
        return;
    }
    let token = text(&tokens, "access_token");
    let request = server.request(Method::POST, "/introspect").basic_auth(GATE.0, Some(GATE.1));
    let answer = request.form(&[("token", token)]).send().await.unwrap();
    let answer: Value = answer.json().await.unwrap();
    let groups = claims(token)["groups"].as_array().map_or(0, Vec::len);
    assert!(answer["active"] == false || groups == 0, "by {how}: {answer}");
}

#[tokio::test]
async fn attack_17_a_group_that_is_lost_while_a_token_is_made_is_not_in_it() {
    let again = async |server: &Server| {
        let lost = sqlx::query("UPDATE people SET groups = '[\"ml\"]' WHERE name = 'alice'");
        lost.execute(&pool(server).await).await.unwrap();
    };
    let server = Server::start().await;
    let mut browser = Browser::default();
    let code = browser.code(&server).await;
    let asked = while_groups_go(&server, "alice", server.redeem(GATE, &code)).await;
    assert_eq!(asked.0, StatusCode::OK);
    let refresh = text(&asked.1, "refresh_token").to_owned();
    names_no_group(&server, "code", asked).await;

    again(&server).await;
    let asked = while_groups_go(&server, "alice", server.refresh(&refresh)).await;
    assert_eq!(asked.0, StatusCode::OK);
    let refresh = text(&asked.1, "refresh_token").to_owned();
    names_no_group(&server, "refresh token", asked).await;

    again(&server).await;
    let (_, tokens) = server.refresh(&refresh).await;
    let subject = text(&tokens, "access_token").to_owned();
    assert_eq!(claims(&subject)["groups"][0], "ml");
    let form = [
        ("grant_type", EXCHANGE),
        ("subject_token", &subject),
        ("subject_token_type", ACCESS_TOKEN),
    ];
    let asked = while_groups_go(&server, "alice", server.token(GATE, &form)).await;
    names_no_group(&server, "exchange", asked).await;

    let robot = NewServiceAccount {
        name: "robot".parse().unwrap(),
        groups: &["ml".to_owned()],
        scopes: "workload:use",
        workload: None,
        proof: Proof::Secret,
        lifetime: None,
    };
    let (id, secret) = server.store.add_service_account(robot, server.now()).await.unwrap();
    let robot = (id.as_str(), secret.as_deref().unwrap());
    let form = [("grant_type", "client_credentials")];
    let (_, tokens) = server.token(robot, &form).await;
    assert_eq!(claims(text(&tokens, "access_token"))["groups"][0], "ml");
    let asked = while_groups_go(&server, "robot", server.token(robot, &form)).await;
    assert_eq!(asked.0, StatusCode::OK);
    names_no_group(&server, "client credentials", asked).await;
}
