//! A change of the master key: replicas restart one after the other, and everything stays readable.

use std::{
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use authserver::{Authserver, MasterKey, MasterKeys, Resealed, Store, StoreError, Under};
use base64::{Engine, engine::general_purpose::STANDARD};
use rand::Rng;
use runtime::{audit::Audit, health::Health, service::Context};
use tokio_util::sync::CancellationToken;

use crate::support::*;

const FOLDER: &str = "DORMOUSE_TEST_RESEAL";
const HOUR: Duration = Duration::from_secs(3600);

fn keys(current: u8, others: &[u8]) -> MasterKeys {
    let key = |byte: u8| MasterKey::from_text(&STANDARD.encode([byte; 32])).unwrap();
    MasterKeys {
        current: (current > 0).then(|| key(current)),
        others: others.iter().map(|byte| key(*byte)).collect(),
    }
}

async fn open(folder: &Path, current: u8, others: &[u8]) -> Store {
    Store::open_with(&database(folder).await, keys(current, others)).await.unwrap()
}

/// As a server does when it starts, and when keys have changed.
async fn reads(store: &Store) -> Result<String, StoreError> {
    store.ssh_authority().await?;
    store.key_set(start()).await
}

async fn under(store: &Store) -> Vec<Under> {
    let keys = store.list_keys(start()).await.unwrap().into_iter().map(|key| key.under);
    keys.chain(store.list_secrets().await.unwrap().into_iter().map(|one| one.under)).collect()
}

#[tokio::test]
async fn each_step_of_a_change_goes_beside_the_one_before() {
    let folder = tempfile::tempdir().unwrap();
    let old = open(folder.path(), 1, &[]).await;
    let first = reads(&old).await.unwrap();
    // Step 1: the new one opens, too. A server of before runs on.
    let one = open(folder.path(), 1, &[2]).await;
    assert_eq!(reads(&one).await.unwrap(), first);
    // Step 2: the new one seals. What it makes is read by a server of step 1, and the other way round.
    let two = open(folder.path(), 2, &[1]).await;
    assert_eq!(reads(&two).await.unwrap(), first);
    two.rotate_key(Duration::ZERO, start()).await.unwrap();
    one.rotate_key(Duration::ZERO, start()).await.unwrap();
    let both = reads(&two).await.unwrap();
    assert_eq!(reads(&one).await.unwrap(), both);
    assert_eq!(under(&two).await.iter().filter(|one| **one == Under::Current).count(), 1);
    // Too early for the last step, which says what to do.
    let early = open(folder.path(), 2, &[]).await;
    let error = reads(&early).await.unwrap_err().to_string();
    for part in ["sealed with another master key", "other_master_key_files", "key reseal"] {
        assert!(error.contains(part), "{error}");
    }
    assert!(matches!(early.reseal().await, Err(StoreError::WrongMasterKey(_))));
    // Everything anew, and again without effect.
    let done = two.reseal().await.unwrap();
    assert_eq!(done, Resealed { keys: 2, secrets: 1, unchanged: 1 });
    assert_eq!(two.reseal().await.unwrap(), Resealed { unchanged: 4, ..Resealed::default() });
    assert!(under(&two).await.iter().all(|one| *one == Under::Current));
    // Step 3, beside servers of step 2 and even of step 1.
    let three = open(folder.path(), 2, &[]).await;
    for store in [&one, &two, &three] {
        assert_eq!(reads(store).await.unwrap(), both);
    }
    // The old one opens nothing any more, neither in the table nor beside it.
    let thief = open(folder.path(), 1, &[]).await;
    assert!(matches!(reads(&thief).await, Err(StoreError::WrongMasterKey(_))));
    assert!(under(&thief).await.iter().all(|one| *one == Under::Unknown));
}

#[tokio::test]
async fn what_the_old_key_sealed_is_written_over_in_a_file() {
    if on_postgres() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), 1, &[]).await;
    reads(&store).await.unwrap();
    let pool =
        sqlx::AnyPool::connect(&format!("sqlite://{}", folder.path().join("auth.db").display()))
            .await
            .unwrap();
    let sealed: Vec<Vec<u8>> = sqlx::query_scalar(
        "SELECT private_key FROM token_keys UNION ALL SELECT secret FROM server_secrets",
    )
    .fetch_all(&pool)
    .await
    .unwrap();
    pool.close().await;
    store.close().await;
    let found = || {
        let mut bytes = Vec::new();
        for side in ["", "-wal"] {
            let path = folder.path().join(format!("auth.db{side}"));
            bytes.extend(std::fs::read(path).unwrap_or_default());
        }
        // Not its beginning, where a free block begins with its length.
        sealed.iter().filter(|one| bytes.windows(24).any(|part| part == &one[16..40])).count()
    };
    assert_eq!(found(), sealed.len());
    let store = open(folder.path(), 2, &[1]).await;
    store.reseal().await.unwrap();
    assert_eq!(found(), 0);
    store.close().await;
    assert_eq!(found(), 0);
}

#[tokio::test]
async fn a_first_master_key_comes_in_two_steps_too() {
    let folder = tempfile::tempdir().unwrap();
    let clear = open(folder.path(), 0, &[]).await;
    let first = reads(&clear).await.unwrap();
    let opens = open(folder.path(), 0, &[1]).await;
    assert_eq!(reads(&opens).await.unwrap(), first);
    assert!(under(&opens).await.iter().all(|one| *one == Under::Nothing), "it seals nothing");
    let error = opens.reseal().await.unwrap_err().to_string();
    assert!(error.contains("no master key to seal with"), "{error}");
    let seals = open(folder.path(), 1, &[]).await;
    assert!(under(&seals).await.iter().all(|one| *one == Under::Current));
    assert_eq!(reads(&opens).await.unwrap(), first);
    assert!(matches!(reads(&clear).await, Err(StoreError::NoMasterKey)));
    // Nothing goes back into the clear.
    for store in [&opens, &clear] {
        assert!(matches!(store.replace_all(start()).await, Err(StoreError::NoMasterKey)));
        assert!(matches!(store.rotate_key(HOUR, start()).await, Err(StoreError::NoMasterKey)));
    }
    assert_eq!(reads(&seals).await.unwrap(), first);
}

#[tokio::test]
async fn a_wrong_key_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), 1, &[]).await;
    let before = reads(&store).await.unwrap();
    let authority = store.ssh_authority().await.unwrap().public_key();
    let wrong = open(folder.path(), 3, &[2]).await;
    let wrongs = |done: Result<(), StoreError>| matches!(done, Err(StoreError::WrongMasterKey(_)));
    assert!(wrongs(wrong.reseal().await.map(|_| ())));
    assert!(wrongs(wrong.replace_all(start()).await.map(|_| ())));
    assert!(wrongs(wrong.would_replace(start()).await.map(|_| ())));
    assert!(wrongs(wrong.replace_keys(start()).await.map(|_| ())));
    assert!(wrongs(wrong.rotate_key(HOUR, start()).await.map(|_| ())));
    assert_eq!(reads(&store).await.unwrap(), before);
    assert_eq!(store.ssh_authority().await.unwrap().public_key(), authority);
    // A server does not start with it, and says which setting it misses.
    let mut config = config(folder.path()).await;
    let file = folder.path().join("wrong-key");
    std::fs::write(&file, STANDARD.encode([3; 32])).unwrap();
    config.master_key_file = Some(file);
    let context = Context {
        registry: prometheus::Registry::new(),
        audit: Audit::to_file("authserver", &folder.path().join("audit.jsonl")).unwrap(),
        health: Health::new(),
        shutdown: CancellationToken::new(),
    };
    let refused = Authserver::open(&config, context, Arc::new(start)).await.err().unwrap();
    let refused = refused.to_string();
    assert!(refused.contains("other_master_key_files"), "{refused}");
}

/// Does nothing in an ordinary run; else seals to and fro until it is killed.
#[tokio::test]
async fn the_command_to_be_killed() {
    let Ok(folder) = std::env::var(FOLDER) else { return };
    println!("begins");
    loop {
        for (current, other) in [(2, 1), (1, 2)] {
            let store = open(Path::new(&folder), current, &[other]).await;
            store.reseal().await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_command_that_is_killed_leaves_all_of_it_or_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), 1, &[]).await;
    let before = reads(&store).await.unwrap();
    store.rotate_key(HOUR, start()).await.unwrap();
    for round in 0..8 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "provider::master_key::the_command_to_be_killed", "--nocapture"])
            .env(FOLDER, folder.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let delay = Duration::from_micros(rand::rng().random_range(100_000..400_000));
        tokio::time::sleep(delay).await;
        child.kill().unwrap();
        child.wait().unwrap();
        let both = open(folder.path(), 1, &[2]).await;
        assert!(reads(&both).await.unwrap().len() > before.len());
        let under = under(&both).await;
        let first = under[0];
        assert!(under.iter().all(|one| *one == first), "round {round}: {under:?}");
        // It may be repeated, and goes on from there.
        let anew = open(folder.path(), 2, &[1]).await;
        anew.reseal().await.unwrap();
        assert!(reads(&open(folder.path(), 2, &[]).await).await.is_ok());
    }
}
