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

use aws_lc_rs::hmac;
use jiff::Timestamp;
use sqlx::{Any, FromRow, Transaction};
use uuid::Uuid;

use self::rows::{Fields, Rows, to_json, write_rows};
pub(super) use self::statements::OF_OLD_TOKEN;
use self::statements::{END_FAMILIES, MARK, READ, RECORD, SUCCEED, TOUCH, WRITE_ALL};
use super::{
    Dialect, RedeemError, Redeemed, RefreshToken, Store, StoreError, list, refresh_token::Place,
    sessions::SessionRow,
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

impl Store {
    /// Exchanges each token, all in one transaction: what is answered is durable, and nothing is
    /// written for what is refused. The tokens are good for as long as their sessions live.
    pub(super) async fn exchange(
        &self,
        exchanges: &[Exchange],
    ) -> Result<Vec<Result<Redeemed, RedeemError>>, StoreError> {
        if let Some(done) = self.attempt(exchanges).await? {
            return Ok(done);
        }
        let mut alone = Vec::with_capacity(exchanges.len());
        for asked in exchanges {
            let mut done = None;
            for _ in 0..ATTEMPTS {
                done = self.attempt(std::slice::from_ref(asked)).await?;
                if done.is_some() {
                    break;
                }
            }
            alone.extend(done.unwrap_or_else(|| vec![Err(RedeemError::SessionOver)]));
        }
        Ok(alone)
    }

    /// None when somebody else wrote what was read before: another replica exchanged the same token,
    /// or a grant was withdrawn. Nothing is written then.
    async fn attempt(
        &self,
        exchanges: &[Exchange],
    ) -> Result<Option<Vec<Result<Redeemed, RedeemError>>>, StoreError> {
        // Before the transaction: with one connection in hand another one must not be waited for.
        let key = self.refresh_key().await?;
        let digests: Vec<_> = exchanges.iter().map(|asked| hex(&digest(&asked.token))).collect();
        let mut tx = self.write_often().await?;
        let mut verdicts = self.judge(&mut tx, key, exchanges, &digests).await?;
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
            return Ok(None);
        }
        tx.commit().await?;
        let answer = |verdict| match verdict {
            Verdict::Good { redeemed, .. } => Ok(*redeemed),
            Verdict::Refused(error) | Verdict::Reused { error, .. } => Err(error),
        };
        Ok(Some(verdicts.into_iter().map(answer).collect()))
    }

    async fn judge(
        &self,
        tx: &mut Transaction<'static, Any>,
        key: &hmac::Key,
        exchanges: &[Exchange],
        digests: &[String],
    ) -> Result<Vec<Verdict>, StoreError> {
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
                .judge(asked, || RefreshToken::successor(key, &asked.token))
                .unwrap_or_else(|error| Verdict::Refused(error.into()));
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
        Ok(verdicts)
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
