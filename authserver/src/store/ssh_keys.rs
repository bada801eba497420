//! Registered SSH keys, and the feed of them that gateways follow.

use domain::name::UserName;
use jiff::Timestamp;
use serde::Serialize;
use sqlx::FromRow;
use uuid::Uuid;

use super::{
    Person, Store, StoreError, check_label, list,
    ssh_people::{self, SshPerson},
    time,
};
use crate::ssh_key::PublicKey;

/// Keys of one person.
const KEYS_MAX: i64 = 50;

#[derive(Debug, Clone, Serialize)]
pub struct SshKey {
    pub id: String,
    pub name: String,
    pub fingerprint: String,
    pub public_key: String,
    pub created_at: Timestamp,
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
}

#[derive(FromRow)]
struct Row {
    id: String,
    name: String,
    fingerprint: String,
    public_key: String,
    created_at: i64,
}

#[derive(FromRow)]
struct FeedRow {
    fingerprint: String,
    public_key: String,
    subject: String,
    user: String,
    email: Option<String>,
    groups: String,
}

impl TryFrom<Row> for SshKey {
    type Error = StoreError;
    fn try_from(row: Row) -> Result<Self, StoreError> {
        let Row { id, name, fingerprint, public_key, created_at } = row;
        Ok(Self { id, name, fingerprint, public_key, created_at: time(created_at)? })
    }
}

impl Store {
    /// Registers a key for the person of that name. Registering it again changes nothing.
    pub async fn add_ssh_key(
        &self,
        user: &UserName,
        name: &str,
        public_key: &str,
        now: Timestamp,
    ) -> Result<SshKey, StoreError> {
        let person = self.person(user).await?;
        let person = person.ok_or_else(|| StoreError::NoSuchPerson(user.to_string()))?;
        let key = PublicKey::parse(public_key).map_err(|error| StoreError::Invalid(error.0))?;
        let known = self.ssh_keys(&person.subject).await?;
        if let Some(known) = known.into_iter().find(|known| known.fingerprint == key.fingerprint())
        {
            return Ok(known);
        }
        self.register_ssh_key(&person, name, &key, now).await
    }

    pub(crate) async fn register_ssh_key(
        &self,
        person: &Person,
        name: &str,
        key: &PublicKey,
        now: Timestamp,
    ) -> Result<SshKey, StoreError> {
        check_label(name)?;
        let id = Uuid::new_v4().to_string();
        let mut tx = self.write().await?;
        self.lock_person(&mut tx, &person.subject).await?;
        let done = sqlx::query(
            "INSERT INTO ssh_keys (id, person_id, name, fingerprint, public_key, created_at)
             SELECT $1, $2, $3, $4, $5, $6
             WHERE $7 > (SELECT count(*) FROM ssh_keys WHERE person_id = $2)",
        )
        .bind(&id)
        .bind(&person.subject)
        .bind(name)
        .bind(key.fingerprint())
        .bind(key.text())
        .bind(now.as_second())
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
        tx.commit().await?;
        Ok(SshKey {
            id,
            name: name.to_owned(),
            fingerprint: key.fingerprint().to_owned(),
            public_key: key.text().to_owned(),
            created_at: time(now.as_second())?,
        })
    }

    /// The person's keys, by name.
    pub async fn ssh_keys(&self, subject: &str) -> Result<Vec<SshKey>, StoreError> {
        sqlx::query_as::<_, Row>("SELECT * FROM ssh_keys WHERE person_id = $1 ORDER BY name")
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

    pub async fn ssh_feed_version(&self) -> Result<i64, StoreError> {
        Ok(sqlx::query_scalar("SELECT version FROM feeds WHERE name = 'ssh-keys'")
            .fetch_one(&self.pool)
            .await?)
    }

    /// The keys of everybody who is not disabled, the people whom certificates may name, and the
    /// version that they are.
    pub async fn ssh_feed(&self) -> Result<(i64, Vec<FeedKey>, Vec<SshPerson>), StoreError> {
        let mut tx = self.snapshot().await?;
        let version = sqlx::query_scalar("SELECT version FROM feeds WHERE name = 'ssh-keys'")
            .fetch_one(&mut *tx)
            .await?;
        let rows: Vec<FeedRow> = sqlx::query_as(
            "SELECT k.fingerprint, k.public_key, p.id AS subject, p.name AS user, p.email, p.groups
             FROM ssh_keys k JOIN people p ON p.id = k.person_id
             WHERE p.disabled_at IS NULL ORDER BY k.fingerprint",
        )
        .fetch_all(&mut *tx)
        .await?;
        let people = ssh_people::all(&mut tx).await?;
        tx.commit().await?;
        let keys = rows.into_iter().map(|row| {
            let FeedRow { fingerprint, public_key, subject, user, email, groups } = row;
            Ok(FeedKey { fingerprint, public_key, subject, user, email, groups: list(&groups)? })
        });
        Ok((version, keys.collect::<Result<_, StoreError>>()?, people))
    }
}
