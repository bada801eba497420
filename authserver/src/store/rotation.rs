//! Refresh tokens that change with each use (RFC 9700, section 2.2.2).
//!
//! The successor of a token is derived from it with a key of the server's own, so whoever presents
//! the same token again is given the same successor: by any replica, and after a crash that lost the
//! first answer. A token is thus exchanged once, however often it is asked for, and nothing that
//! could be presented has to be stored.
//!
//! Several tokens are exchanged in one transaction, by statements over a JSON array of them: what a
//! transaction costs is then paid once for all of them, see [`super::Refreshes`].

mod rows;
mod statements;

use std::{collections::HashSet, time::Duration};

use jiff::Timestamp;
use sqlx::{Any, FromRow, Transaction};
use uuid::Uuid;

use self::rows::{Fields, Rows, to_json, write_rows};
pub(super) use self::statements::OF_OLD_TOKEN;
use self::statements::{END_FAMILIES, MARK, NEXT, READ, RECORD, SUCCEED, TOUCH, WRITE_ALL};
use super::{
    Dialect, RedeemError, Redeemed, RefreshToken, Store, StoreError, list, refresh_token::Place,
    server_secrets::RefreshKeys, sessions::SessionRow,
};
use crate::secret::{digest, hex};

/// How long after its first use a token may come again, in seconds: from another tab, or because
/// the answer was lost. Later it comes from somebody who should not have it.
const REUSE_WINDOW: i64 = 60;

/// How long exchanged tokens are remembered, in seconds: until then their use ends the family.
/// Afterwards they are not known, and refused as such.
pub(super) const REMEMBERED: i64 = 24 * 3600;

/// How often an exchange is tried whose rows somebody else changes meanwhile.
const ATTEMPTS: usize = 3;

/// A refresh token to be exchanged for its successor, and for an access token.
#[derive(Clone)]
pub(crate) struct Exchange {
    pub token: String,
    /// Who presents it.
    pub client_id: String,
    /// How long a session may be idle.
    pub idle: Duration,
    /// The longest life of the access token.
    pub lifetime: Duration,
    pub now: Timestamp,
}

#[derive(FromRow)]
struct Row {
    /// The place in the array.
    n: i64,
    grant_id: String,
    client_id: String,
    scope: String,
    revoked_at: Option<i64>,
    generation: i64,
    rotated_at: Option<i64>,
    /// A JSON array, when the grant has audiences of its own.
    resources: Option<String>,
    #[sqlx(flatten)]
    session: SessionRow,
}

/// What becomes of an exchange, as far as it can be said without writing.
enum Verdict {
    /// `first`: the successor is not written down yet.
    Good {
        redeemed: Box<Redeemed>,
        /// Of the token that was presented.
        place: Place,
        first: bool,
        touch: bool,
    },
    Refused(RedeemError),
    /// The family of this grant has to end.
    Reused {
        grant_id: String,
        error: RedeemError,
    },
}

type Answer = Result<Redeemed, RedeemError>;

/// Nothing is written but by the first.
enum Attempt {
    Done(Vec<Answer>),
    /// Somebody else wrote what was read before: another replica exchanged the same token, or a grant
    /// was withdrawn.
    Overtaken,
    /// A token has a successor that was made with a key that is not known here.
    OtherKey,
}

impl Store {
    /// Exchanges each token, all in one transaction: what is answered is durable, and nothing is
    /// written for what is refused. The tokens are good for as long as their sessions live.
    pub(super) async fn exchange(&self, exchanges: &[Exchange]) -> Result<Vec<Answer>, StoreError> {
        if let Attempt::Done(done) = self.attempt(exchanges).await? {
            return Ok(done);
        }
        let mut alone = Vec::with_capacity(exchanges.len());
        for asked in exchanges {
            alone.push(self.exchange_alone(asked).await?);
        }
        Ok(alone)
    }

    async fn exchange_alone(&self, asked: &Exchange) -> Result<Answer, StoreError> {
        for _ in 0..ATTEMPTS {
            match self.attempt(std::slice::from_ref(asked)).await? {
                Attempt::Done(done) => {
                    return Ok(done.into_iter().next().unwrap_or(Err(RedeemError::Unknown)));
                }
                Attempt::Overtaken => {}
                // The keys were replaced a moment ago, and whoever exchanged it had the others.
                Attempt::OtherKey => _ = self.read_refresh_keys().await?,
            }
        }
        // The family stays: what came of the first exchange is good.
        Ok(Err(RedeemError::SessionOver))
    }

    async fn attempt(&self, exchanges: &[Exchange]) -> Result<Attempt, StoreError> {
        // Before the transaction: with one connection in hand another one must not be waited for.
        let keys = self.refresh_keys().await?;
        let digests: Vec<_> = exchanges.iter().map(|asked| hex(&digest(&asked.token))).collect();
        let mut tx = self.write_often().await?;
        let Some(mut verdicts) = self.judge(&mut tx, &keys, exchanges, &digests).await? else {
            return Ok(Attempt::OtherKey);
        };
        name_access_tokens(&mut verdicts);
        let rows = Rows::of(&verdicts, exchanges);
        let complete = match self.dialect {
            Dialect::Sqlite => {
                let all = sqlx::query(WRITE_ALL.as_str());
                let all =
                    [&rows.touched, &rows.ended, &rows.rotated, &rows.recorded]
                        .into_iter()
                        .try_fold(all, |all, rows| Ok::<_, StoreError>(all.bind(to_json(rows)?)))?;
                all.execute(&mut *tx).await?;
                // Nobody else has written since the transaction began.
                true
            }
            Dialect::Postgres => {
                // Sessions, grants, tokens: who ends a session locks them in this order, too.
                write_rows(&mut tx, &rows.touched, TOUCH).await?;
                write_rows(&mut tx, &rows.ended, END_FAMILIES).await?;
                let succeeded = write_rows(&mut tx, &rows.rotated, SUCCEED).await?;
                write_rows(&mut tx, &rows.rotated, MARK).await?;
                let recorded = write_rows(&mut tx, &rows.recorded, RECORD).await?;
                (succeeded, recorded) == (rows.rotated.len() as u64, rows.recorded.len() as u64)
            }
        };
        if !complete {
            return Ok(Attempt::Overtaken);
        }
        tx.commit().await?;
        let answer = |verdict| match verdict {
            Verdict::Good { redeemed, .. } => Ok(*redeemed),
            Verdict::Refused(error) | Verdict::Reused { error, .. } => Err(error),
        };
        Ok(Attempt::Done(verdicts.into_iter().map(answer).collect()))
    }

    /// None when a token has a successor already that none of the keys made.
    async fn judge(
        &self,
        tx: &mut Transaction<'static, Any>,
        keys: &RefreshKeys,
        exchanges: &[Exchange],
        digests: &[String],
    ) -> Result<Option<Vec<Verdict>>, StoreError> {
        let mut places = Vec::with_capacity(exchanges.len());
        for asked in exchanges {
            places.push(match Place::of_token(&asked.token) {
                Some(place) => Some(place),
                None => {
                    let query = sqlx::query_as(OF_OLD_TOKEN).bind(digest(&asked.token));
                    let found: Option<(String, i64)> = query.fetch_optional(&mut **tx).await?;
                    found.map(|(grant_id, generation)| Place { grant_id, generation })
                }
            });
        }
        let tokens = places.iter().zip(digests).enumerate().filter_map(|(n, (place, token))| {
            Some(Fields { n: Some(n), token: Some(token), ..Fields::at(place.as_ref()?) })
        });
        let tokens: Vec<_> = tokens.collect();
        let rows: Vec<Row> = sqlx::query_as(READ.pick(self.dialect))
            .bind(to_json(&tokens)?)
            .fetch_all(&mut **tx)
            .await?;
        let unknown = || Verdict::Refused(RedeemError::Unknown);
        let mut verdicts: Vec<Verdict> = exchanges.iter().map(|_| unknown()).collect();
        for row in rows {
            let place = usize::try_from(row.n).unwrap_or(usize::MAX);
            let (Some(verdict), Some(asked)) = (verdicts.get_mut(place), exchanges.get(place))
            else {
                return Err(StoreError::Damaged("the answer to a query"));
            };
            // What is damaged is so for the one who asked.
            *verdict = row
                .judge(asked, || keys.successor(&asked.token))
                .unwrap_or_else(|error| Verdict::Refused(error.into()));
            if let Verdict::Good { redeemed, place, first: false, .. } = verdict {
                let next = place.next();
                let known: Option<Vec<u8>> = sqlx::query_scalar(NEXT)
                    .bind(next.grant_id)
                    .bind(next.generation)
                    .fetch_optional(&mut **tx)
                    .await?;
                if let Some(known) = known {
                    let again = keys.successor_again(&asked.token, &known);
                    let Some(again) = again else { return Ok(None) };
                    redeemed.refresh_token = Some(again);
                }
            }
        }
        // A family that ends here gives nothing more, not even in the same moment.
        let ended: HashSet<String> = verdicts
            .iter()
            .filter_map(|verdict| match verdict {
                Verdict::Reused { grant_id, .. } => Some(grant_id.clone()),
                _ => None,
            })
            .collect();
        for verdict in &mut verdicts {
            if let Verdict::Good { redeemed, .. } = verdict
                && ended.contains(&redeemed.grant_id)
            {
                *verdict = Verdict::Refused(RedeemError::SessionOver);
            }
        }
        Ok(Some(verdicts))
    }
}

/// Who exchanges a token first gets an access token that is written down with the successor; whoever
/// repeats it, be it in the same moment, one of their own.
fn name_access_tokens(verdicts: &mut [Verdict]) {
    let mut seen = HashSet::new();
    for verdict in verdicts {
        let Verdict::Good { redeemed, place, first, .. } = verdict else { continue };
        *first &= seen.insert(&*place);
        // Others in the order of time, so that an index grows at its end.
        let jti = if *first { place.next().jti() } else { Uuid::now_v7().to_string() };
        redeemed.recorded = Some(jti);
    }
}

impl Row {
    fn judge(
        self,
        asked: &Exchange,
        successor: impl FnOnce() -> RefreshToken,
    ) -> Result<Verdict, StoreError> {
        if self.client_id != asked.client_id {
            return Ok(Verdict::Refused(RedeemError::ForeignClient));
        }
        if self.revoked_at.is_some() {
            return Ok(Verdict::Refused(RedeemError::SessionOver));
        }
        let touch = self.session.is_touch(asked.now);
        let session = self.session.alive(asked.idle, asked.now)?;
        // Replicas' clocks differ: a use that lies ahead is as good as now.
        let age = |at| asked.now.as_second().saturating_sub(at);
        if self.rotated_at.is_some_and(|at| age(at) > REUSE_WINDOW) {
            let error = RedeemError::Reused(session.map(|session| session.person.name));
            return Ok(Verdict::Reused { grant_id: self.grant_id, error });
        }
        let Some(session) = session else {
            return Ok(Verdict::Refused(RedeemError::SessionOver));
        };
        let place = Place { grant_id: self.grant_id.clone(), generation: self.generation };
        let redeemed = Redeemed {
            grant_id: self.grant_id,
            session,
            scope: self.scope,
            nonce: None,
            refresh_token: Some(successor()),
            resources: self.resources.as_deref().map_or(Ok(Vec::new()), list)?,
            recorded: None,
        };
        let first = self.rotated_at.is_none();
        Ok(Verdict::Good { redeemed: Box::new(redeemed), place, first, touch })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_000_000;

    /// A family of tokens of its own for each name, whose first token is the name.
    async fn families(names: &[&str]) -> (tempfile::TempDir, Store) {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("auth.db").into()).await.unwrap();
        let run = async |sql: &'static str, name: &str| {
            let secret = digest(name);
            let query = sqlx::query(sql).bind(name.to_owned()).bind(secret).bind(NOW);
            query.execute(&store.pool).await.unwrap();
        };
        run(
            "INSERT INTO clients (id, kind, created_at, secret_digest) VALUES ($1, 'gate', $3, $2)",
            "gate",
        )
        .await;
        for name in names {
            run(
                "INSERT INTO people (id, name, created_at) SELECT $1, $1, $3 WHERE $2 IS NOT NULL",
                name,
            )
            .await;
            run(
                "INSERT INTO sessions (id, secret_digest, person_id, method, created_at, used_at, expires_at)
                 VALUES ($1, $2, $1, 'pwd', $3, $3, $3 + 1000000)",
                name,
            )
            .await;
            run(
                "INSERT INTO grants (id, session_id, client_id, scope, created_at)
                 SELECT $1, $1, 'gate', 'openid', $3 WHERE $2 IS NOT NULL",
                name,
            )
            .await;
            run(
                "INSERT INTO refresh_tokens (grant_id, generation, digest, created_at)
                 VALUES ($1, 1, $2, $3)",
                name,
            )
            .await;
        }
        (folder, store)
    }

    fn at(token: &str, after: i64) -> Exchange {
        Exchange {
            token: token.to_owned(),
            client_id: "gate".to_owned(),
            idle: Duration::from_secs(100_000),
            lifetime: Duration::from_secs(600),
            now: Timestamp::from_second(NOW + after).unwrap(),
        }
    }

    async fn successor(store: &Store, token: &str) -> String {
        let done = store.exchange(&[at(token, 0)]).await.unwrap().remove(0).unwrap();
        done.refresh_token.unwrap().as_str().to_owned()
    }

    #[tokio::test]
    async fn who_repeats_an_old_token_takes_nobody_else_down() {
        let (_folder, store) = families(&["thief", "bea", "carl"]).await;
        let next = successor(&store, "thief").await;
        let batch = [at("bea", 61), at("thief", 61), at(&next, 61), at("carl", 61)];
        let done = store.exchange(&batch).await.unwrap();
        assert!(done[0].is_ok() && done[3].is_ok(), "{done:?}");
        assert!(matches!(done[1], Err(RedeemError::Reused(_))), "{done:?}");
        assert!(matches!(done[2], Err(RedeemError::SessionOver)), "{done:?}");
        // It stays so: the family has ended, and the others have what they were given.
        let next = done[0].as_ref().unwrap().refresh_token.as_ref().unwrap().as_str();
        let later = store.exchange(&[at("thief", 62), at(next, 62)]).await.unwrap();
        assert!(matches!(later[0], Err(RedeemError::SessionOver)), "{later:?}");
        assert!(later[1].is_ok(), "{later:?}");
    }

    #[tokio::test]
    async fn who_asks_twice_at_once_gets_one_successor_and_two_access_tokens() {
        let (_folder, store) = families(&["bea"]).await;
        let done = store.exchange(&[at("bea", 0), at("bea", 0)]).await.unwrap();
        let [Ok(one), Ok(two)] = &done[..] else { panic!("{done:?}") };
        let next = |redeemed: &Redeemed| redeemed.refresh_token.as_ref().unwrap().digest();
        assert_eq!(next(one), next(two));
        let (one, two) = (one.recorded.as_deref().unwrap(), two.recorded.as_deref().unwrap());
        assert_ne!(one, two);
        // Both are known, until they are withdrawn, each alone.
        let grant = async |jti| store.access_token_grant(jti).await.unwrap();
        let now = Timestamp::from_second(NOW).unwrap();
        for jti in [one, two] {
            assert_eq!(grant(jti).await.as_deref(), Some("bea"));
            store.revoke_access_token(jti, now).await.unwrap();
            assert_eq!(grant(jti).await, None);
        }
    }

    /// Another replica.
    async fn beside(folder: &tempfile::TempDir) -> Store {
        let store = Store::open(&folder.path().join("auth.db").into()).await.unwrap();
        store.refresh_keys().await.unwrap();
        store
    }

    #[tokio::test]
    async fn a_repeated_exchange_has_one_successor_whatever_becomes_of_the_keys() {
        let (folder, one) = families(&["before", "by-old", "by-new", "twice"]).await;
        let two = beside(&folder).await;
        let now = Timestamp::from_second(NOW).unwrap();
        // `one` takes over the new keys, `two` has not looked yet.
        let before = successor(&one, "before").await;
        one.replace_all(now).await.unwrap();
        one.check_refresh_keys().await.unwrap();
        for store in [&one, &two] {
            assert_eq!(successor(store, "before").await, before);
        }
        let by_old = successor(&two, "by-old").await;
        assert_eq!(successor(&one, "by-old").await, by_old);
        let by_new = successor(&one, "by-new").await;
        assert_eq!(successor(&two, "by-new").await, by_new);
        // A second theft within the minute.
        let twice = successor(&beside(&folder).await, "twice").await;
        one.replace_all(now).await.unwrap();
        one.replace_all(now).await.unwrap();
        for store in [&one, &two, &beside(&folder).await] {
            assert_eq!(successor(store, "twice").await, twice);
            assert_eq!(successor(store, "before").await, before);
        }
        // All of them go on.
        for token in [before, by_old, by_new, twice] {
            let third = successor(&one, &token).await;
            assert_eq!(successor(&two, &token).await, third);
        }
    }

    #[tokio::test]
    async fn keys_of_before_are_forgotten_when_nobody_can_ask_for_them() {
        let (folder, store) = families(&["bea"]).await;
        let next = successor(&store, "bea").await;
        let names = async || -> Vec<String> {
            store.list_secrets().await.unwrap().into_iter().map(|entry| entry.secret).collect()
        };
        let now = Timestamp::from_second(NOW).unwrap();
        store.replace_all(now).await.unwrap();
        let until = format!("refresh-until-{}", NOW + REMEMBERED);
        let kept = ["refresh", &until, "seal", "ssh-authority"];
        assert_eq!(names().await, kept);
        store.clean_up_secrets(NOW + REMEMBERED).await.unwrap();
        assert_eq!(names().await, kept);
        store.clean_up_secrets(NOW + REMEMBERED + 1).await.unwrap();
        assert_eq!(names().await, ["refresh", "seal", "ssh-authority"]);
        // Whoever has no key that made a successor ends no family by it.
        let fresh = beside(&folder).await;
        let done = fresh.exchange(&[at("bea", 1)]).await.unwrap().remove(0);
        assert!(matches!(done, Err(RedeemError::SessionOver)), "{done:?}");
        assert_ne!(successor(&fresh, &next).await, next);
    }

    #[tokio::test]
    async fn what_is_damaged_is_so_for_one_alone() {
        let (_folder, store) = families(&["bea", "carl"]).await;
        sqlx::query("UPDATE people SET groups = 'x' WHERE id = 'bea'")
            .execute(&store.pool)
            .await
            .unwrap();
        let done = store.exchange(&[at("bea", 1), at("carl", 1)]).await.unwrap();
        assert!(matches!(done[0], Err(RedeemError::Store(_))), "{done:?}");
        assert!(done[1].is_ok(), "{done:?}");
    }
}
