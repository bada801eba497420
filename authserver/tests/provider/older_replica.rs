//! A server of the version before goes on beside this one on the same database: its statements, as
//! they were, on the tables of now.

use authserver::{Database, MasterKey, MasterKeys, Store, Under};
use base64::{Engine, engine::general_purpose::STANDARD};
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

/// It reads the secrets at its start, by name and with one master key, and the keys when they change.
#[tokio::test]
async fn an_older_server_reads_keys_that_were_replaced_and_sealed_anew() {
    let folder = tempfile::tempdir().unwrap();
    let database = database(folder.path()).await;
    let key = |byte| MasterKey::from_text(&STANDARD.encode([byte; 32])).unwrap();
    let both = MasterKeys { current: Some(key(2)), others: vec![key(1)] };
    let store = Store::open_with(&database, Some(key(1))).await.unwrap();
    store.key_set(start()).await.unwrap();
    let before = store.ssh_authority().await.unwrap().public_key();
    store.replace_all(start()).await.unwrap();
    let store = Store::open_with(&database, both).await.unwrap();
    store.reseal().await.unwrap();
    let url = match &database {
        Database::File(path) => format!("sqlite://{}", path.display()),
        Database::Postgres(url) => url.to_string(),
    };
    let pool = sqlx::AnyPool::connect(&url).await.unwrap();
    // Its statements, in their order.
    let keys = sqlx::query(
        "SELECT kid, private_key, created_at, active_from FROM token_keys
         ORDER BY active_from, created_at, kid",
    );
    let keys = keys.fetch_all(&pool).await.unwrap();
    assert_eq!(keys.len(), 1);
    let label = format!("token key {}", keys[0].get::<String, _>("kid"));
    assert!(key(2).open(&label, keys[0].get("private_key")).is_some());
    let secrets: Vec<(String, Vec<u8>)> =
        sqlx::query_as("SELECT name, secret FROM server_secrets").fetch_all(&pool).await.unwrap();
    for (name, secret) in &secrets {
        assert!(key(2).open(&format!("secret {name}"), secret).is_some(), "{name}");
    }
    sqlx::query("INSERT INTO server_secrets (name, secret) VALUES ($1, $2) ON CONFLICT DO NOTHING")
        .bind("ssh-authority")
        .bind(vec![0_u8; 32])
        .execute(&pool)
        .await
        .unwrap();
    assert_ne!(store.ssh_authority().await.unwrap().public_key(), before);
    // A key that it makes, and what it left in the clear, is sealed by the next that starts.
    sqlx::query("INSERT INTO server_secrets (name, secret) VALUES ('old', $1)")
        .bind(vec![7_u8; 32])
        .execute(&pool)
        .await
        .unwrap();
    let store = Store::open_with(&database, Some(key(2))).await.unwrap();
    assert!(store.list_secrets().await.unwrap().iter().all(|one| one.under == Under::Current));
}
