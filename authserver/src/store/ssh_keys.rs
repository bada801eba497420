//! Registered SSH keys, and the feed of them that gateways follow.

use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;
use sqlx::{AssertSqlSafe, FromRow};
use uuid::Uuid;

use super::{
    Person, Store, StoreError, check_label, list, seconds,
    ssh_people::{self, SshPerson},
    time,
};
use crate::{secret, ssh_key::PublicKey};

/// Keys of one person.
const KEYS_MAX: i64 = 50;

/// How exactly the last use is kept, in seconds.
const EXACT: i64 = 60;

/// How long people are shown a key that has ended, in seconds.
const SHOWN: i64 = 30 * 24 * 3600;

/// When a key ends that an older server registered, in seconds after that.
const YEAR: i64 = 365 * 24 * 3600;

#[derive(Debug, Clone, Serialize)]
pub struct SshKey {
    pub id: String,
    pub name: String,
    pub fingerprint: String,
    pub public_key: String,
    pub created_at: Timestamp,
    /// From then on it signs nobody in.
    pub expires_at: Timestamp,
    /// To the minute or so; what gateways saw they tell once a minute.
    pub used_at: Option<Timestamp>,
    /// Whether somebody has shown that they have its private half.
    pub proven: bool,
    /// Whether it was made with a token, and ends with what that came of.
    pub by_token: bool,
}

/// A key with whose it is, as gateways need it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FeedKey {
    pub fingerprint: String,
    pub public_key: String,
    pub subject: String,
    pub user: String,
    pub email: Option<String>,
    pub groups: Vec<String>,
    /// Seconds since the epoch.
    pub expires_at: i64,
}

/// What gateways know of SSH.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SshFeed {
    pub version: i64,
    /// Of everybody who is not disabled, if they have not ended.
    pub keys: Vec<FeedKey>,
    /// Whose certificates to believe, and about whom.
    pub authorities: Vec<String>,
    pub people: Vec<SshPerson>,
}

/// A key to register, whose possession was shown.
#[derive(Debug)]
pub struct NewSshKey<'a> {
    pub name: &'a str,
    pub key: &'a PublicKey,
    /// The text that was signed, so that it is taken once.
    pub challenge: &'a str,
    /// Seconds since the epoch.
    pub challenge_ends: i64,
    pub lifetime: Duration,
    /// The grant of the token that it is made with, and when what that came of ends.
    pub grant: Option<(&'a str, Timestamp)>,
}

#[derive(FromRow)]
struct Row {
    id: String,
    name: String,
    fingerprint: String,
    public_key: String,
    created_at: i64,
    expires_at: i64,
    used_at: Option<i64>,
    proven_at: Option<i64>,
    grant_id: Option<String>,
}

/// Columns of a [`Row`].
const COLUMNS: &str = "k.id, k.name, k.fingerprint, k.public_key, k.created_at,
    coalesce(l.expires_at, k.created_at + 31536000) AS expires_at, l.used_at, l.proven_at, l.grant_id
    FROM ssh_keys k LEFT JOIN ssh_key_lives l ON l.key_id = k.id";

#[derive(FromRow)]
struct FeedRow {
    fingerprint: String,
    public_key: String,
    subject: String,
    user: String,
    email: Option<String>,
    groups: String,
    expires_at: i64,
}

impl TryFrom<Row> for SshKey {
    type Error = StoreError;
    fn try_from(row: Row) -> Result<Self, StoreError> {
        Ok(Self {
            id: row.id,
            name: row.name,
            fingerprint: row.fingerprint,
            public_key: row.public_key,
            created_at: time(row.created_at)?,
            expires_at: time(row.expires_at)?,
            used_at: row.used_at.map(time).transpose()?,
            proven: row.proven_at.is_some(),
            by_token: row.grant_id.is_some(),
        })
    }
}

const LIVE: &str = "INSERT INTO ssh_key_lives (key_id, expires_at, proven_at, grant_id)
    SELECT $1, $2, $3, id FROM grants WHERE id = $4 AND revoked_at IS NULL";
const LIVE_LOCKED: &str = "INSERT INTO ssh_key_lives (key_id, expires_at, proven_at, grant_id)
    SELECT $1, $2, $3, id FROM grants WHERE id = $4 AND revoked_at IS NULL FOR SHARE";

impl Store {
    /// Registers a key whose possession was shown; the person's own is renewed. One that somebody else
    /// registered without showing that they have it is theirs no longer: their subject is returned.
    pub(crate) async fn register_ssh_key(
        &self,
        person: &Person,
        new: &NewSshKey<'_>,
        now: Timestamp,
    ) -> Result<(SshKey, Option<String>), StoreError> {
        check_label(new.name)?;
        let second = now.as_second();
        let mut expires_at = second.saturating_add(seconds(new.lifetime));
        if let Some((_, end)) = new.grant {
            expires_at = expires_at.min(end.as_second());
        }
        let mut tx = self.write().await?;
        self.lock_person(&mut tx, &person.subject).await?;
        let used = sqlx::query(
            "INSERT INTO used_challenges (digest, expires_at) VALUES ($1, $2) ON CONFLICT DO NOTHING",
        )
        .bind(secret::digest(new.challenge))
        .bind(new.challenge_ends)
        .execute(&mut *tx)
        .await?;
        if used.rows_affected() == 0 {
            return Err(StoreError::Invalid("that signature was used before; reload the page"));
        }
        let known: Option<(String, String, Option<i64>)> = sqlx::query_as(
            "SELECT k.id, k.person_id, l.proven_at
             FROM ssh_keys k LEFT JOIN ssh_key_lives l ON l.key_id = k.id WHERE k.fingerprint = $1",
        )
        .bind(new.key.fingerprint())
        .fetch_optional(&mut *tx)
        .await?;
        let mut lost = None;
        if let Some((id, holder, proven)) = known {
            if holder != person.subject {
                if proven.is_some() {
                    return Err(StoreError::KeyTaken);
                }
                lost = Some(holder);
            }
            sqlx::query("DELETE FROM ssh_keys WHERE id = $1").bind(id).execute(&mut *tx).await?;
        }
        let id = Uuid::new_v4().to_string();
        let done = sqlx::query(
            "INSERT INTO ssh_keys (id, person_id, name, fingerprint, public_key, created_at)
             SELECT $1, $2, $3, $4, $5, $6
             WHERE $7 > (SELECT count(*) FROM ssh_keys WHERE person_id = $2)",
        )
        .bind(&id)
        .bind(&person.subject)
        .bind(new.name)
        .bind(new.key.fingerprint())
        .bind(new.key.text())
        .bind(second)
        .bind(KEYS_MAX)
        .execute(&mut *tx)
        .await;
        match done {
            Ok(done) if done.rows_affected() == 0 => return Err(StoreError::TooMany("50 keys")),
            Ok(_) => {}
            Err(sqlx::Error::Database(error)) if error.is_unique_violation() => {
                let taken = error.message().contains("fingerprint");
                return Err(if taken { StoreError::KeyTaken } else { StoreError::NameTaken });
            }
            Err(error) => return Err(error.into()),
        }
        // The grant may have been withdrawn a moment ago: then nothing comes of it any more.
        let grant = new.grant.map(|(grant, _)| grant);
        let statement = match grant {
            Some(_) => self.dialect.pick(LIVE, LIVE_LOCKED),
            None => {
                "INSERT INTO ssh_key_lives (key_id, expires_at, proven_at)
                 SELECT $1, $2, $3 WHERE $4 = ''"
            }
        };
        let lives = sqlx::query(statement)
            .bind(&id)
            .bind(expires_at)
            .bind(second)
            .bind(grant.unwrap_or_default())
            .execute(&mut *tx)
            .await?
            .rows_affected();
        if lives == 0 {
            return Err(StoreError::Invalid("the token was withdrawn"));
        }
        tx.commit().await?;
        let key = SshKey {
            id,
            name: new.name.to_owned(),
            fingerprint: new.key.fingerprint().to_owned(),
            public_key: new.key.text().to_owned(),
            created_at: time(second)?,
            expires_at: time(expires_at)?,
            used_at: None,
            proven: true,
            by_token: grant.is_some(),
        };
        Ok((key, lost))
    }

    /// The person's keys, by name.
    pub async fn ssh_keys(&self, subject: &str) -> Result<Vec<SshKey>, StoreError> {
        let statement = format!("SELECT {COLUMNS} WHERE k.person_id = $1 ORDER BY k.name");
        sqlx::query_as::<_, Row>(AssertSqlSafe(statement))
            .bind(subject)
            .fetch_all(&self.pool)
            .await?
            .into_iter()
            .map(SshKey::try_from)
            .collect()
    }

    /// By id, name or fingerprint. False when the person has no such key.
    pub async fn remove_ssh_key(&self, subject: &str, which: &str) -> Result<bool, StoreError> {
        let done = sqlx::query(
            "DELETE FROM ssh_keys WHERE person_id = $1 AND (id = $2 OR name = $2 OR fingerprint = $2)",
        )
        .bind(subject)
        .bind(which)
        .execute(&self.pool)
        .await?;
        Ok(done.rows_affected() > 0)
    }

    /// Notes when keys were used last, each by its fingerprint and the second, as
    /// [`Store::note_token_uses`] does for tokens.
    pub async fn note_key_uses(
        &self,
        uses: &[(String, i64)],
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let mut tx = self.write().await?;
        for (fingerprint, at) in uses {
            let at = (*at).clamp(0, now.as_second());
            // One that an older server registered has no row yet.
            sqlx::query(
                "INSERT INTO ssh_key_lives (key_id, expires_at, used_at)
                 SELECT id, created_at + $1, $2 FROM ssh_keys WHERE fingerprint = $3
                 ON CONFLICT (key_id) DO UPDATE SET used_at = excluded.used_at
                 WHERE ssh_key_lives.used_at IS NULL OR ssh_key_lives.used_at <= $4",
            )
            .bind(YEAR)
            .bind(at)
            .bind(fingerprint)
            .bind(at - EXACT)
            .execute(&mut *tx)
            .await?;
        }
        tx.commit().await?;
        Ok(())
    }

    /// Tells gateways that do not look at a key's end themselves of those that ended within the last
    /// `every` seconds, and forgets those that ended long ago.
    pub(super) async fn clean_up_ssh_keys(&self, every: i64, now: i64) -> Result<(), StoreError> {
        sqlx::query(
            "UPDATE feeds SET version = version + 1 WHERE name = 'ssh-keys' AND EXISTS
             (SELECT 1 FROM ssh_key_lives WHERE expires_at <= $1 AND expires_at > $2)",
        )
        .bind(now)
        .bind(now - every)
        .execute(&self.pool)
        .await?;
        sqlx::query(
            "DELETE FROM ssh_keys WHERE id IN
             (SELECT key_id FROM ssh_key_lives WHERE expires_at < $1)",
        )
        .bind(now - SHOWN)
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    pub async fn ssh_feed_version(&self) -> Result<i64, StoreError> {
        Ok(sqlx::query_scalar("SELECT version FROM feeds WHERE name = 'ssh-keys'")
            .fetch_one(&self.pool)
            .await?)
    }

    /// All of it as of one moment.
    pub async fn ssh_feed(&self, now: Timestamp) -> Result<SshFeed, StoreError> {
        let mut tx = self.snapshot().await?;
        let version = sqlx::query_scalar("SELECT version FROM feeds WHERE name = 'ssh-keys'")
            .fetch_one(&mut *tx)
            .await?;
        let rows: Vec<FeedRow> = sqlx::query_as(
            "SELECT k.fingerprint, k.public_key, p.id AS subject, p.name AS user, p.email, p.groups,
                    coalesce(l.expires_at, k.created_at + 31536000) AS expires_at
             FROM ssh_keys k JOIN people p ON p.id = k.person_id
             LEFT JOIN ssh_key_lives l ON l.key_id = k.id
             WHERE p.disabled_at IS NULL AND coalesce(l.expires_at, k.created_at + 31536000) > $1
             ORDER BY k.fingerprint",
        )
        .bind(now.as_second())
        .fetch_all(&mut *tx)
        .await?;
        let people = ssh_people::all(&mut tx).await?;
        // From the database and not from memory: gateways ask again when there is a newer version, and
        // would keep an authority of before until then.
        let authorities = self.ssh_authority_in(&mut tx).await?.into_iter().collect();
        tx.commit().await?;
        let keys = rows.into_iter().map(|row| {
            let FeedRow { fingerprint, public_key, subject, user, email, groups, expires_at } = row;
            let groups = list(&groups)?;
            Ok(FeedKey { fingerprint, public_key, subject, user, email, groups, expires_at })
        });
        let keys = keys.collect::<Result<_, StoreError>>()?;
        Ok(SshFeed { version, keys, authorities, people })
    }
}
