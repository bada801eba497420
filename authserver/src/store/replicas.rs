//! Replicas whose settings differ, as they do while new settings are rolled out: the newest ones say
//! which clients there are.

use jiff::Timestamp;
use sqlx::{Any, Transaction};

use super::{Dialect, Store, StoreError, hex_digest};
use crate::client::Client;

/// How long a server with newer settings may be silent before one that starts with older ones counts
/// as a return to those, in seconds.
const GONE: i64 = 10 * 60;

/// The same for one that runs already: what was given to a client of the newer settings would be
/// withdrawn, so a server that crashes for an hour must not be enough.
const LONG_GONE: i64 = 24 * 3600;

/// Settings that are remembered although no server has them any more.
const REMEMBERED: i64 = 100;

/// What became of a server's own settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// The clients are what these settings say.
    Current,
    /// Another server runs with newer ones.
    Older,
}

impl Store {
    /// Tells the others that a server with these settings runs, and makes the clients what they say,
    /// unless another one has newer settings. `replica` is of this run of this server; `starts` is
    /// true for the first call of a run.
    pub(crate) async fn take_part(
        &self,
        replica: &str,
        clients: &[Client],
        starts: bool,
        now: Timestamp,
    ) -> Result<Standing, StoreError> {
        let digest = digest_of(clients);
        let second = now.as_second();
        let mut tx = self.write().await?;
        if self.dialect == Dialect::Postgres {
            // One after the other: each sees what the one before made of it.
            sqlx::query("SELECT version FROM feeds WHERE name = 'needs-migration' FOR UPDATE")
                .fetch_optional(&mut *tx)
                .await?;
        }
        let patience = if starts { GONE } else { LONG_GONE };
        let others: Option<i64> = sqlx::query_scalar(
            "SELECT max(c.generation) FROM settings_replicas r
             JOIN client_settings c ON c.digest = r.digest WHERE r.seen_at > $1",
        )
        .bind(second - patience)
        .fetch_one(&mut *tx)
        .await?;
        let newest: Option<i64> = sqlx::query_scalar("SELECT max(generation) FROM client_settings")
            .fetch_one(&mut *tx)
            .await?;
        let own: Option<i64> =
            sqlx::query_scalar("SELECT generation FROM client_settings WHERE digest = $1")
                .bind(&digest)
                .fetch_optional(&mut *tx)
                .await?;
        let standing = judge(own, others);
        if standing == Standing::Current && (starts || own < newest) {
            let generation = match own {
                Some(own) if Some(own) == newest => own,
                _ => newest.unwrap_or_default() + 1,
            };
            self.write_clients(&mut tx, clients, now).await?;
            sqlx::query(
                "INSERT INTO client_settings (digest, generation) VALUES ($1, $2)
                 ON CONFLICT (digest) DO UPDATE SET generation = excluded.generation",
            )
            .bind(&digest)
            .bind(generation)
            .execute(&mut *tx)
            .await?;
        }
        sqlx::query(
            "INSERT INTO settings_replicas (id, digest, seen_at) VALUES ($1, $2, $3)
             ON CONFLICT (id) DO UPDATE SET seen_at = excluded.seen_at",
        )
        .bind(replica)
        .bind(&digest)
        .bind(second)
        .execute(&mut *tx)
        .await?;
        forget(&mut tx, second).await?;
        tx.commit().await?;
        Ok(standing)
    }
}

/// `own` is the generation of these settings, if they were ever in use; `others` the newest of those
/// that another server has. Settings that nobody has had are the newest there are.
fn judge(own: Option<i64>, others: Option<i64>) -> Standing {
    match (own, others) {
        (Some(own), Some(others)) if others > own => Standing::Older,
        _ => Standing::Current,
    }
}

async fn forget(tx: &mut Transaction<'static, Any>, second: i64) -> Result<(), StoreError> {
    sqlx::query("DELETE FROM settings_replicas WHERE seen_at < $1")
        .bind(second - LONG_GONE)
        .execute(&mut **tx)
        .await?;
    sqlx::query(
        "DELETE FROM client_settings
         WHERE generation < (SELECT max(generation) FROM client_settings) - $1
         AND digest NOT IN (SELECT digest FROM settings_replicas)",
    )
    .bind(REMEMBERED)
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// Of all that the settings say of clients, in whatever order they name them.
fn digest_of(clients: &[Client]) -> String {
    let mut lines: Vec<String> = clients
        .iter()
        .map(|client| {
            let Client {
                id,
                kind,
                secret_digest,
                redirect_uris,
                post_logout_uris,
                scopes,
                profile,
            } = client;
            serde_json::json!([
                id,
                kind.as_str(),
                secret_digest,
                redirect_uris,
                post_logout_uris,
                scopes,
                profile
            ])
            .to_string()
        })
        .collect();
    lines.sort_unstable();
    hex_digest(&lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::client::{ClientKind, Profile};

    const MINUTE: i64 = 60;

    fn client(id: &str) -> Client {
        Client {
            id: id.to_owned(),
            kind: ClientKind::Public,
            secret_digest: None,
            redirect_uris: vec!["https://app.example/cb".to_owned()],
            post_logout_uris: Vec::new(),
            scopes: vec!["openid".to_owned()],
            profile: Profile::default(),
        }
    }

    async fn store() -> (tempfile::TempDir, Store) {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("auth.db").into()).await.unwrap();
        (folder, store)
    }

    async fn names(store: &Store) -> Vec<String> {
        store.list_clients().await.unwrap().into_iter().map(|client| client.id).collect()
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    #[tokio::test]
    async fn an_old_replica_that_restarts_during_a_rollout_leaves_the_new_client() {
        let (_folder, store) = store().await;
        let (old, new) = ([client("a")], [client("a"), client("b")]);
        let take = async |replica: &str, clients: &[Client], starts, second| {
            store.take_part(replica, clients, starts, at(second)).await.unwrap()
        };
        assert_eq!(take("one", &old, true, 0).await, Standing::Current);
        assert_eq!(take("two", &new, true, 5).await, Standing::Current);
        assert_eq!(names(&store).await, ["a", "b"]);
        // It restarts, and another one of before goes on.
        assert_eq!(take("three", &old, true, 6).await, Standing::Older);
        assert_eq!(take("one", &old, false, 60).await, Standing::Older);
        assert_eq!(names(&store).await, ["a", "b"]);
        // The new one crashes for an hour: nothing that runs takes its client away.
        assert_eq!(take("one", &old, false, 3600).await, Standing::Older);
        assert_eq!(names(&store).await, ["a", "b"]);
        // Settings that nobody has had before hold at once.
        assert_eq!(take("four", &[client("c")], true, 3601).await, Standing::Current);
        assert_eq!(names(&store).await, ["c"]);
    }

    #[tokio::test]
    async fn a_return_to_older_settings_holds_once_the_newer_ones_are_gone() {
        let (_folder, store) = store().await;
        let (old, new) = ([client("a")], [client("a"), client("b")]);
        let take = async |replica: &str, clients: &[Client], starts, second| {
            store.take_part(replica, clients, starts, at(second)).await.unwrap()
        };
        take("one", &old, true, 0).await;
        take("two", &new, true, 1).await;
        assert_eq!(take("three", &old, true, 9 * MINUTE).await, Standing::Older);
        assert_eq!(take("four", &old, true, 11 * MINUTE).await, Standing::Current);
        assert_eq!(names(&store).await, ["a"]);
        // One that runs waits for a day.
        take("five", &new, true, 12 * MINUTE).await;
        assert_eq!(names(&store).await, ["a"], "it is the older one now");
        let changed = [client("a"), client("d")];
        assert_eq!(take("six", &changed, true, 13 * MINUTE).await, Standing::Current);
        assert_eq!(take("four", &old, false, 14 * MINUTE).await, Standing::Older);
        assert_eq!(take("four", &old, false, 24 * 3600 + 14 * MINUTE).await, Standing::Current);
        assert_eq!(names(&store).await, ["a"]);
    }

    #[test]
    fn the_order_of_clients_is_no_change_and_everything_else_is() {
        let (a, b) = (client("a"), client("b"));
        assert_eq!(digest_of(&[a.clone(), b.clone()]), digest_of(&[b.clone(), a.clone()]));
        let mut other = a.clone();
        other.scopes.push("email".to_owned());
        assert_ne!(digest_of(&[a]), digest_of(&[other]));
    }

    proptest! {
        #[test]
        fn only_newer_settings_that_somebody_has_outdo_known_ones(own: Option<i64>, others: Option<i64>) {
            let older = own.is_some_and(|own| others.is_some_and(|others| others > own));
            prop_assert_eq!(judge(own, others) == Standing::Older, older);
        }
    }
}
