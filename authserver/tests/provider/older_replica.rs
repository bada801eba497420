//! A server of the version before goes on beside this one on the same database: its statements, as
//! they were, on the tables of now.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use sqlx::Row;

use super::passkeys::{page, signed_in};
use crate::support::{keys::SshKey, *};

const FEED: &str =
    "SELECT k.fingerprint, k.public_key, p.id AS subject, p.name AS user, p.email, p.groups
    FROM ssh_keys k JOIN people p ON p.id = k.person_id
    WHERE p.disabled_at IS NULL ORDER BY k.fingerprint";

#[tokio::test]
async fn what_an_older_server_writes_is_understood_and_what_it_reads_is_as_it_was() {
    let server = Server::start().await;
    let pool = pool(&server).await;
    let now = server.now().as_second();
    let key = SshKey::new(7);
    let bob = server.store.person(&"bob".parse().unwrap()).await.unwrap().unwrap().subject;
    // It registers a key, which nobody has proven to have, and begins a session.
    sqlx::query(
        "INSERT INTO ssh_keys (id, person_id, name, fingerprint, public_key, created_at)
         SELECT $1, $2, $3, $4, $5, $6
         WHERE $7 > (SELECT count(*) FROM ssh_keys WHERE person_id = $2)",
    )
    .bind("old-key")
    .bind(&bob)
    .bind("colleague")
    .bind(key.fingerprint())
    .bind(&key.line)
    .bind(now)
    .bind(50_i64)
    .execute(&pool)
    .await
    .unwrap();
    sqlx::query(
        "INSERT INTO sessions
         (id, secret_digest, person_id, method, created_at, used_at, expires_at)
         SELECT $1, $2, id, $4, $5, $5, $6 FROM people WHERE id = $3 AND disabled_at IS NULL",
    )
    .bind("old-session")
    .bind(vec![1_u8])
    .bind(&bob)
    .bind("pwd")
    .bind(now)
    .bind(now + 3600)
    .execute(&pool)
    .await
    .unwrap();
    let listed = server.store.ssh_keys(&bob).await.unwrap();
    assert_eq!(listed[0].expires_at.as_second(), now + 365 * 86_400);
    assert!(!listed[0].proven);
    let html = page(signed_in(&server, "bob").await.open(&server, "/account").await).await;
    assert!(html.contains("added before keys had to be proven"), "{html}");
    assert!(html.contains("A browser</strong>"), "its session is listed: {html}");
    // Its gateways tell of uses.
    let uses = json!({ "uses": [{ "id": key.fingerprint(), "at": now }] });
    let told = server.request(Method::POST, "/internal/token-uses").json(&uses);
    let told = told.basic_auth(GATE.0, Some(GATE.1)).send().await.unwrap();
    assert_eq!(told.status(), StatusCode::NO_CONTENT);
    assert!(server.store.ssh_keys(&bob).await.unwrap()[0].used_at.is_some());

    // Who shows that the key is theirs has it from now on.
    let code = Browser::default().code(&server).await;
    let access = server.redeem(GATE, &code).await.1;
    let access = text(&access, "access_token");
    let asked = server.api(Method::POST, "/ssh/keys/challenge", access, Value::Null).await;
    let asked: Value = asked.json().await.unwrap();
    let new = json!({
        "name": "own", "challenge": asked["challenge"], "signature": key.sign(text(&asked, "text")),
    });
    let added = server.api(Method::POST, "/ssh/keys", access, new).await;
    assert_eq!(added.status(), StatusCode::CREATED);
    assert!(server.store.ssh_keys(&bob).await.unwrap().is_empty());

    // What the older one reads: no column more, in the order of before.
    let row = sqlx::query("SELECT * FROM ssh_keys").fetch_one(&pool).await.unwrap();
    assert_eq!(row.len(), 6);
    let row = sqlx::query(FEED).fetch_one(&pool).await.unwrap();
    assert_eq!(row.get::<String, _>("user"), "alice");
    let clients = sqlx::query("SELECT * FROM clients").fetch_one(&pool).await.unwrap();
    assert_eq!(clients.len(), 9);
    // It ends a session: what was made with its token ends with it.
    let sid = claims(access)["sid"].as_str().unwrap().to_owned();
    sqlx::query("UPDATE sessions SET ended_at = coalesce(ended_at, $1) WHERE id = $2")
        .bind(now)
        .bind(&sid)
        .execute(&pool)
        .await
        .unwrap();
    assert!(sqlx::query(FEED).fetch_all(&pool).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_key_ends_with_the_application_and_the_session_that_made_it() {
    let server = Server::start().await;
    let pool = pool(&server).await;
    let alice = server.store.person(&"alice".parse().unwrap()).await.unwrap().unwrap().subject;
    // By the grant, by a session that is deleted long after it was over.
    for (n, end) in
        ["UPDATE grants SET revoked_at = created_at", "DELETE FROM sessions", "DELETE FROM grants"]
            .into_iter()
            .enumerate()
    {
        let key = SshKey::new(10 + u8::try_from(n).unwrap());
        let code = Browser::default().code(&server).await;
        let access = server.redeem(GATE, &code).await.1;
        let access = text(&access, "access_token");
        let asked = server.api(Method::POST, "/ssh/keys/challenge", access, Value::Null).await;
        let asked: Value = asked.json().await.unwrap();
        let signature = key.sign(text(&asked, "text"));
        let new = json!({ "name": "cli", "challenge": asked["challenge"], "signature": signature });
        let added = server.api(Method::POST, "/ssh/keys", access, new).await;
        assert_eq!(added.status(), StatusCode::CREATED);
        let keys = server.store.ssh_keys(&alice).await.unwrap();
        assert!(
            keys[0].by_token
                && keys[0].expires_at.as_second() <= server.now().as_second() + 7 * 86_400
        );
        sqlx::query(end).execute(&pool).await.unwrap();
        assert!(server.store.ssh_keys(&alice).await.unwrap().is_empty(), "{end}");
    }
}
