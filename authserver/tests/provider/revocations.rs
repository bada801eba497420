//! The feed of revocations, and a gateway that follows it.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use authserver::NewPerson;
use domain::{
    identity::Identity,
    revocation::Revoked,
    token::{Expected, TokenError, Verifier},
};
use reqwest::{Method, StatusCode};
use runtime::{
    audit::Audit,
    health::Health,
    jwks,
    revocations::{Feed, Revocations, follow},
    service::Context,
};
use serde_json::{Value, json};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::support::*;

/// A gateway, until it is dropped.
struct Gateway {
    revocations: Revocations,
    verifier: Arc<Verifier>,
    health: Health,
    _shutdown: DropGuard,
}

impl Gateway {
    fn start(base: &str) -> Self {
        let shutdown = CancellationToken::new();
        let ctx = Context {
            registry: prometheus::Registry::new(),
            audit: Audit::to_stdout("test"),
            health: Health::new(),
            shutdown: shutdown.clone(),
        };
        let feed = Feed {
            authserver: base.parse().unwrap(),
            client_id: GATE.0.to_owned(),
            client_secret: GATE.1.to_owned(),
        };
        let http = runtime::http::client(None).unwrap();
        let expected = Expected {
            issuer: ISSUER.to_owned(),
            audience: "dormouse".to_owned(),
            leeway: Duration::from_secs(30),
        };
        let verifier = Arc::new(Verifier::new(expected, 16));
        let url = format!("{base}/.well-known/jwks.json").parse().unwrap();
        let keys = jwks::follow(url, http.clone(), verifier.clone(), &ctx);
        let revocations = follow(feed, http, keys, &ctx).unwrap();
        Self { revocations, verifier, health: ctx.health, _shutdown: shutdown.drop_guard() }
    }

    async fn ready(&self) {
        while !self.health.problems().is_empty() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    async fn hears_of(&self, identity: &Identity) {
        let heard = self.revocations.revoked(identity);
        tokio::time::timeout(Duration::from_secs(20), heard)
            .await
            .expect("the gateway hears of it");
    }
}

async fn identity(server: &Server, token: &str) -> std::sync::Arc<Identity> {
    server.verifier().await.verify(token, server.now()).unwrap()
}

/// A set of keys is fetched every five minutes else, and a thief has no token of a new key.
#[tokio::test]
async fn attack_17_a_gateway_hears_within_seconds_that_keys_were_replaced() {
    let server = Server::start().await;
    let gateway = Gateway::start(&server.base);
    gateway.ready().await;
    let code = Browser::default().code(&server).await;
    let tokens = server.redeem(GATE, &code).await.1;
    let token = text(&tokens, "access_token");
    assert!(gateway.verifier.verify(token, server.now()).is_ok());
    server.store.replace_all(server.now()).await.unwrap();
    let refused = async {
        while gateway.verifier.verify(token, server.now()).is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), refused).await.expect("the gateway asks again");
    let verified = gateway.verifier.verify(token, server.now()).map(|_| ());
    assert_eq!(verified, Err(TokenError::UnknownKey));
}

#[tokio::test]
async fn attack_17_a_group_that_is_lost_ends_the_tokens_that_name_it() {
    let server = Server::start().await;
    let gateway = Gateway::start(&server.base);
    gateway.ready().await;
    let code = Browser::default().code(&server).await;
    let tokens = server.redeem(GATE, &code).await.1;
    let in_groups = async |groups: &[&str]| {
        let groups = groups.iter().map(|&group| group.to_owned()).collect();
        let alice = NewPerson { name: "alice".parse().unwrap(), email: None, groups };
        server.store.ensure_user(&alice, None, server.now()).await.unwrap();
    };
    let session = identity(&server, text(&tokens, "access_token")).await;
    let personal = identity(&server, &server.personal_token("alice", 3600).await).await;
    let bobs = identity(&server, &server.personal_token("bob", 3600).await).await;
    // One group more takes nothing away.
    in_groups(&["ops", "ml"]).await;
    let (status, tokens) = server.refresh(text(&tokens, "refresh_token")).await;
    assert_eq!(status, StatusCode::OK);
    let later = identity(&server, text(&tokens, "access_token")).await;
    assert_eq!(later.groups, ["ops", "ml"]);
    assert!(!gateway.revocations.is_revoked(&session));
    in_groups(&["ml"]).await;
    for lost in [&session, &personal, &later] {
        gateway.hears_of(lost).await;
    }
    assert!(!gateway.revocations.is_revoked(&bobs));
    // They are still signed in.
    let (status, tokens) = server.refresh(text(&tokens, "refresh_token")).await;
    assert_eq!(status, StatusCode::OK, "{tokens}");
    let now = identity(&server, text(&tokens, "access_token")).await;
    assert_eq!(now.groups, ["ml"]);
    assert!(!gateway.revocations.is_revoked(&now));
}

#[tokio::test]
async fn attack_17_what_is_withdrawn_reaches_a_gateway_at_every_replica() {
    let server = Server::start().await;
    let replica = server.replica().await;
    let gateways = [Gateway::start(&server.base), Gateway::start(&replica.base)];
    for gateway in &gateways {
        gateway.ready().await;
    }
    let mut browser = Browser::default();
    let code = browser.code(&server).await;
    let tokens = server.redeem(GATE, &code).await.1;
    let session = identity(&server, text(&tokens, "access_token")).await;
    let other_code = Browser::default().code(&server).await;
    let other_tokens = server.redeem(GATE, &other_code).await.1;
    let other = identity(&server, text(&other_tokens, "access_token")).await;
    let personal = server.personal_token("alice", 3600).await;
    let listed = identity(&server, &personal).await;
    let stays = identity(&server, &server.personal_token("bob", 3600).await).await;

    // Signing out ends the session's tokens.
    let hint = text(&tokens, "id_token");
    let path = format!("/sign-out?id_token_hint={hint}");
    assert_eq!(browser.open(&server, &path).await.status(), StatusCode::OK);
    for gateway in &gateways {
        gateway.hears_of(&session).await;
        assert!(
            !gateway.revocations.is_revoked(&other) && !gateway.revocations.is_revoked(&listed)
        );
    }
    // A refresh token that comes again late ends what came of it, and not the session.
    replica.refresh(text(&other_tokens, "refresh_token")).await;
    server.wait(61);
    replica.refresh(text(&other_tokens, "refresh_token")).await;
    for gateway in &gateways {
        gateway.hears_of(&other).await;
        let session = Revoked::Session(other.credential.session.as_deref().unwrap());
        assert!(!gateway.revocations.snapshot().contains(session));
    }
    // A token that a person withdraws.
    let path = format!("/tokens/{}", listed.credential.id);
    let third = Browser::default().code(&server).await;
    let third = server.redeem(GATE, &third).await.1;
    let third = text(&third, "access_token");
    assert!(replica.api(Method::DELETE, &path, third, Value::Null).await.status().is_success());
    for gateway in &gateways {
        gateway.hears_of(&listed).await;
    }
    // A person who is disabled loses everything; others nothing.
    let third = identity(&server, third).await;
    let another = identity(&server, &server.personal_token("alice", 3600).await).await;
    server.store.disable_user(&"alice".parse().unwrap(), server.now()).await.unwrap();
    for gateway in &gateways {
        gateway.hears_of(&third).await;
        gateway.hears_of(&another).await;
        assert!(!gateway.revocations.is_revoked(&stays));
    }
    // A gateway that starts now knows all of it from the snapshot.
    let late = Gateway::start(&replica.base);
    late.ready().await;
    for revoked in [&session, &other, &listed, &third, &another] {
        assert!(late.revocations.is_revoked(revoked));
    }
    assert!(!late.revocations.is_revoked(&stays));
}

#[tokio::test]
async fn attack_17_what_a_refresh_gave_is_withdrawn_alone_with_its_family_or_its_session() {
    let server = Server::start().await;
    let gateway = Gateway::start(&server.base);
    gateway.ready().await;
    let refreshed = async || {
        let code = Browser::default().code(&server).await;
        let refresh = text(&server.redeem(GATE, &code).await.1, "refresh_token").to_owned();
        // The first one is written down with its successor, the other by itself.
        let first = server.refresh(&refresh).await.1;
        let again = server.refresh(&refresh).await.1;
        assert_eq!(first["refresh_token"], again["refresh_token"]);
        assert_ne!(first["access_token"], again["access_token"]);
        (first, again)
    };
    let active = async |tokens: &Value| {
        let form = [("token", text(tokens, "access_token"))];
        let asked = server.request(Method::POST, "/introspect").basic_auth(GATE.0, Some(GATE.1));
        let answer: Value = asked.form(&form).send().await.unwrap().json().await.unwrap();
        answer["active"] == true
    };
    let revoke = async |token: &str| {
        let asked = server.request(Method::POST, "/revoke").basic_auth(GATE.0, Some(GATE.1));
        let answer = asked.form(&[("token", token)]).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
    };
    let is = async |tokens: &Value| identity(&server, text(tokens, "access_token")).await;

    // Alone: what else there is of the family stays, and the family goes on.
    let (first, again) = refreshed().await;
    assert!(active(&first).await && active(&again).await);
    revoke(text(&first, "access_token")).await;
    gateway.hears_of(&*is(&first).await).await;
    assert!(!active(&first).await && active(&again).await);
    assert!(!gateway.revocations.is_revoked(&*is(&again).await));
    let next = server.refresh(text(&first, "refresh_token")).await;
    assert_eq!(next.0, StatusCode::OK, "{}", next.1);

    // By the refresh token: all of them.
    revoke(text(&next.1, "refresh_token")).await;
    for lost in [&again, &next.1] {
        gateway.hears_of(&*is(lost).await).await;
        assert!(!active(lost).await);
    }

    // With the session, which is told of in their place, for a day longer than the last of them.
    let (first, again) = refreshed().await;
    let identity = is(&first).await;
    let session = identity.credential.session.as_deref().unwrap();
    server.store.end_session(session, server.now()).await.unwrap();
    gateway.hears_of(&identity).await;
    assert!(!active(&first).await && !active(&again).await);
    let until = "SELECT expires_at FROM revocations WHERE kind = 'session' AND id = $1";
    let until: i64 =
        sqlx::query_scalar(until).bind(session).fetch_one(&pool(&server).await).await.unwrap();
    assert_eq!(until, claims(text(&first, "access_token"))["exp"].as_i64().unwrap() + 86400);
    let told: i64 = sqlx::query_scalar("SELECT count(*) FROM revocations WHERE id LIKE $1")
        .bind(text(&claims(text(&first, "access_token")), "jti"))
        .fetch_one(&pool(&server).await)
        .await
        .unwrap();
    assert_eq!(told, 0);
}

#[tokio::test]
async fn a_gateway_catches_up_after_its_server_was_away_and_never_opens_again() {
    let server = Server::start().await;
    let gateway = Gateway::start(&server.base);
    gateway.ready().await;
    let first = identity(&server, &server.personal_token("alice", 3600).await).await;
    let second = identity(&server, &server.personal_token("alice", 3600).await).await;
    server
        .store
        .revoke_personal_token(&first.subject, &first.credential.id, server.now())
        .await
        .unwrap();
    gateway.hears_of(&first).await;
    let address = server.base.strip_prefix("http://").unwrap().to_owned();
    let (folder, store) = server.stop().await;
    // The feed is away, and what was closed stays closed.
    assert!(gateway.revocations.is_revoked(&first));
    store.revoke_personal_token(&second.subject, &second.credential.id, start()).await.unwrap();
    let server = Server::start_at(folder, &address).await;
    gateway.hears_of(&second).await;
    assert!(gateway.revocations.is_revoked(&first));
    drop(server);
}

#[tokio::test]
async fn only_gateways_read_the_feed_and_a_foreign_cursor_is_reset() {
    let server = Server::start().await;
    for path in ["/internal/revocations", "/internal/revocations/events?after=x.1"] {
        assert_eq!(server.get(path).await.status(), StatusCode::UNAUTHORIZED);
        let other = server.request(Method::GET, path).basic_auth(OTHER.0, Some(OTHER.1));
        assert_eq!(other.send().await.unwrap().status(), StatusCode::FORBIDDEN);
    }
    let ask = async |path: &str| {
        let request = server.request(Method::GET, path).basic_auth(GATE.0, Some(GATE.1));
        request.send().await.unwrap()
    };
    let snapshot: Value = ask("/internal/revocations").await.json().await.unwrap();
    assert_eq!(snapshot["revocations"], json!([]));
    let cursor = text(&snapshot, "cursor");
    let epoch = cursor.split_once('.').unwrap().0;
    for bad in ["", "1", "x.0", &format!("{epoch}.999"), &format!("{epoch}."), &format!("{epoch}0")]
    {
        let path = format!("/internal/revocations/events?after={bad}");
        let response = ask(&path).await;
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        assert!(response.text().await.unwrap().contains("event: reset"), "{bad}");
    }
    // A good one is greeted at once.
    let mut good = ask(&format!("/internal/revocations/events?after={cursor}")).await;
    let first = good.chunk().await.unwrap().unwrap();
    let first = std::str::from_utf8(&first).unwrap();
    assert!(first.contains("event: heartbeat") && first.contains(cursor), "{first}");
}

#[tokio::test]
async fn what_has_expired_leaves_the_feed() {
    let server = Server::start().await;
    let token = identity(&server, &server.personal_token("alice", 3600).await).await;
    server
        .store
        .revoke_personal_token(&token.subject, &token.credential.id, server.now())
        .await
        .unwrap();
    let count = async || {
        let request = server.request(Method::GET, "/internal/revocations");
        let request = request.basic_auth(GATE.0, Some(GATE.1));
        let snapshot: Value = request.send().await.unwrap().json().await.unwrap();
        snapshot["revocations"].as_array().unwrap().len()
    };
    assert_eq!(count().await, 1);
    server.wait(3600 + 24 * 3600 - 1);
    assert_eq!(count().await, 1);
    server.wait(1);
    assert_eq!(count().await, 0);
}

/// Prints how long revocations take from the answer of one replica to a gateway that follows the
/// other, with 100,000 live sessions, and what 100,000 revocations take of a gateway's memory.
#[tokio::test]
#[ignore = "measures: cargo test -p dormouse-authserver -- --ignored --nocapture measure"]
async fn measure_a_hundred_thousand_sessions() {
    const SESSIONS: usize = 100_000;
    const REVOKED: usize = 500;
    let server = Server::start().await;
    let replica = server.replica().await;
    let pool = pool(&server).await;
    let digest = if on_postgres() { "i::text::bytea" } else { "CAST(i AS BLOB)" };
    let insert = format!(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {SESSIONS})
         INSERT INTO sessions
         (id, secret_digest, person_id, method, created_at, used_at, expires_at)
         SELECT 'session-' || i, {digest}, (SELECT id FROM people WHERE name = 'alice'), 'pwd',
                {now}, {now}, {now} + 604800 FROM n",
        now = server.now().as_second()
    );
    sqlx::query(sqlx::AssertSqlSafe(insert)).execute(&pool).await.unwrap();
    let gateway = Gateway::start(&replica.base);
    gateway.ready().await;
    let mut delays = Vec::new();
    let mut changes = gateway.revocations.changes();
    for number in 1..=REVOKED {
        let id = format!("session-{number}");
        server.store.end_session(&id, server.now()).await.unwrap();
        let done = Instant::now();
        while !gateway.revocations.snapshot().contains(Revoked::Session(&id)) {
            changes.changed().await.unwrap();
        }
        delays.push(done.elapsed());
    }
    delays.sort_unstable();
    let at = |share: usize| delays[(delays.len() - 1) * share / 100];
    println!("delay of {REVOKED}: median {:?}, p99 {:?}, longest {:?}", at(50), at(99), at(100));
    assert!(at(99) < Duration::from_secs(1));

    let begun = Instant::now();
    sqlx::query("UPDATE sessions SET ended_at = $1 WHERE ended_at IS NULL")
        .bind(server.now().as_second())
        .execute(&pool)
        .await
        .unwrap();
    println!("ending all sessions in the database: {:?}", begun.elapsed());
    let last = Revoked::Session("session-100000");
    while gateway.revocations.snapshot().len() < SESSIONS {
        changes.changed().await.unwrap();
    }
    println!("the following gateway knows all after {:?}", begun.elapsed());
    let begun = Instant::now();
    let late = Gateway::start(&replica.base);
    late.ready().await;
    let snapshot = late.revocations.snapshot();
    assert!(snapshot.contains(last) && snapshot.len() == SESSIONS);
    println!(
        "a snapshot of {} takes {:?}, and {} bytes of memory",
        snapshot.len(),
        begun.elapsed(),
        snapshot.table_bytes()
    );
}
