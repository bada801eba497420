//! Signing keys: published before use and after, sealed in the database, the same on all replicas.

use std::{collections::BTreeSet, time::Duration};

use authserver::{MasterKey, Store, StoreError};
use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use domain::token::{KeySet, TokenError};
use serde_json::Value;

use crate::support::*;

const DAY: i64 = 24 * 3600;

async fn published(server: &Server) -> BTreeSet<String> {
    let keys: Value = server.get("/.well-known/jwks.json").await.json().await.unwrap();
    keys["keys"].as_array().unwrap().iter().map(|key| text(key, "kid").to_owned()).collect()
}

fn kid(token: &str) -> String {
    let header = URL_SAFE_NO_PAD.decode(token.split('.').next().unwrap()).unwrap();
    let header: Value = serde_json::from_slice(&header).unwrap();
    text(&header, "kid").to_owned()
}

/// The `kid` that a server signs with now.
async fn signs_with(server: &Server) -> String {
    let code = Browser::default().code(server).await;
    let tokens = server.redeem(GATE, &code).await.1;
    kid(text(&tokens, "access_token"))
}

async fn until_published(server: &Server, count: usize) -> BTreeSet<String> {
    loop {
        let keys = published(server).await;
        if keys.len() == count {
            return keys;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn replicas_that_start_together_have_one_key_and_agree_when_it_changes() {
    let server = Server::start().await;
    let replica = server.replica().await;
    let old = published(&server).await;
    assert_eq!((old.len(), &published(&replica).await), (1, &old));

    server.store.rotate_key(Duration::from_secs(3600), server.now()).await.unwrap();
    let both = until_published(&server, 2).await;
    assert_eq!(until_published(&replica, 2).await, both);
    let old = old.first().unwrap();
    let new = both.iter().find(|kid| *kid != old).unwrap();
    let again = server.store.rotate_key(Duration::from_secs(3600), server.now()).await;
    assert!(matches!(again, Err(StoreError::Invalid(_))), "one that waits is enough");

    // A gateway that fetched the keys in that hour verifies what is signed after it.
    let verifier = server.verifier().await;
    server.wait(3599);
    assert_eq!((&signs_with(&server).await, &signs_with(&replica).await), (old, old));
    let by_old = server.personal_token("alice", 900).await;
    server.wait(1);
    assert_eq!((&signs_with(&server).await, &signs_with(&replica).await), (new, new));
    let code = Browser::default().code(&replica).await;
    let tokens = server.redeem(GATE, &code).await.1;
    for token in [text(&tokens, "access_token"), &by_old] {
        assert!(verifier.verify(token, server.now()).is_ok());
    }
    let states: Vec<_> = server
        .store
        .list_keys(server.now())
        .await
        .unwrap()
        .into_iter()
        .map(|key| (key.kid, key.state))
        .collect();
    assert_eq!(states, [(old.clone(), "retired"), (new.clone(), "active")]);
}

#[tokio::test]
async fn keys_come_and_go_by_the_calendar() {
    let server = Server::start().await;
    let plan = authserver::KeyPlan {
        lifetime: Duration::from_secs(30 * 86400),
        notice: Duration::from_secs(3600),
        longest_token: Duration::from_secs(600),
    };
    let keys = async || {
        server.store.tend_keys(plan, server.now()).await.unwrap();
        server.store.list_keys(server.now()).await.unwrap()
    };
    let states = |keys: &[authserver::KeyEntry]| -> Vec<&'static str> {
        keys.iter().map(|key| key.state).collect()
    };
    assert_eq!(states(&keys().await), ["active"]);
    server.wait(30 * DAY - 3601);
    assert_eq!(states(&keys().await), ["active"]);
    server.wait(1);
    // Two replicas notice at once.
    let (one, two) = tokio::join!(keys(), keys());
    assert_eq!((states(&one), states(&two)), (vec!["active", "next"], vec!["active", "next"]));
    server.wait(3600);
    assert_eq!(states(&keys().await), ["retired", "active"]);
    // The old one stays until the last that it signed has expired, and a day more.
    server.wait(600);
    let kept = server.personal_token("alice", 86400 * 40).await;
    server.wait(DAY + 1);
    assert_eq!(states(&keys().await), ["active"]);
    // A personal token keeps its key for as long as it lives.
    server.wait(30 * DAY);
    keys().await;
    server.wait(3600);
    assert_eq!(states(&keys().await), ["retired", "active"]);
    let verifies = async || {
        let verifier = server.verifier().await;
        let ring = server.store.key_set(server.now()).await.unwrap();
        verifier.set_keys(KeySet::from_json(ring.as_bytes()).unwrap());
        verifier.verify(&kept, server.now()).map(|_| ())
    };
    server.wait(8 * DAY - 1);
    assert_eq!(keys().await.len(), 2);
    assert_eq!(verifies().await, Ok(()));
    server.wait(4 * DAY);
    assert_eq!(states(&keys().await), ["active"]);
    assert_eq!(verifies().await, Err(TokenError::UnknownKey));
}

#[tokio::test]
async fn after_a_theft_all_that_other_keys_signed_is_void() {
    let server = Server::start().await;
    let old = published(&server).await;
    let token = server.personal_token("alice", 3600).await;
    server.store.replace_keys(server.now()).await.unwrap();
    loop {
        let keys = published(&server).await;
        assert_eq!(keys.len(), 1);
        if keys != old {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let verified = server.verifier().await.verify(&token, server.now());
    assert_eq!(verified.map(|_| ()), Err(TokenError::UnknownKey));
    assert_ne!(&signs_with(&server).await, old.first().unwrap());
}

#[tokio::test]
async fn keys_are_sealed_once_there_is_a_master_key() {
    let folder = tempfile::tempdir().unwrap();
    let database = database(folder.path()).await;
    let key = |byte| MasterKey::from_text(&STANDARD.encode([byte; 32])).unwrap();
    // Begun without one: the same keys afterwards, and sealed.
    let plain = Store::open(&database).await.unwrap();
    let before = plain.key_set(start()).await.unwrap();
    assert!(!plain.list_keys(start()).await.unwrap()[0].sealed);
    let sealed = Store::open_with(&database, Some(key(1))).await.unwrap();
    assert_eq!(sealed.key_set(start()).await.unwrap(), before);
    assert!(sealed.list_keys(start()).await.unwrap()[0].sealed);
    sealed.rotate_key(Duration::ZERO, start()).await.unwrap();
    // Not even listing people needs it; signing does.
    let without = Store::open(&database).await.unwrap();
    assert!(without.list_users().await.unwrap().is_empty());
    assert!(without.list_keys(start()).await.unwrap().iter().all(|key| key.sealed));
    let refused = without.key_set(start()).await;
    assert!(matches!(refused, Err(StoreError::NoMasterKey)));
    let wrong = Store::open_with(&database, Some(key(2))).await.unwrap();
    assert!(matches!(wrong.key_set(start()).await, Err(StoreError::WrongMasterKey(_))));
    // Nothing of a private key is left in a file.
    if !on_postgres() {
        for store in [plain, sealed, without, wrong] {
            store.close().await;
        }
        let bytes = std::fs::read(folder.path().join("auth.db")).unwrap();
        // The object identifier of RSA, as each PKCS #8 key has it.
        let oid = [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01];
        assert!(!bytes.windows(oid.len()).any(|window| window == oid));
    }
}
