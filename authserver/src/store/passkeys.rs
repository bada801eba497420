//! Passkeys, and the challenges that were answered.

use domain::name::UserName;
use jiff::Timestamp;
use serde::Serialize;
use sqlx::{Any, FromRow, Transaction};
use uuid::Uuid;
use webauthn_rs::prelude::CredentialID;

use super::{Person, Store, StoreError, check_label, people::PersonRow, time};
use crate::{
    passkey::{CHALLENGE_LIFETIME, Credential, Used},
    secret,
};

/// Passkeys of one person.
const PASSKEYS_MAX: i64 = 20;

/// A passkey as it is listed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Passkey {
    pub id: String,
    pub name: String,
    pub created_at: Timestamp,
    pub used_at: Option<Timestamp>,
    /// Its signature counter went back, so a copy may be in use. Nobody signs in with it any more.
    pub blocked_at: Option<Timestamp>,
}

/// A passkey that somebody wants to sign in with.
pub(crate) struct FoundPasskey {
    pub id: String,
    pub person: Person,
    pub credential: Credential,
}

#[derive(FromRow)]
struct Row {
    id: String,
    name: String,
    created_at: i64,
    used_at: Option<i64>,
    blocked_at: Option<i64>,
}

#[derive(FromRow)]
struct FoundRow {
    passkey_id: String,
    credential: String,
    #[sqlx(flatten)]
    person: PersonRow,
}

impl TryFrom<Row> for Passkey {
    type Error = StoreError;
    fn try_from(row: Row) -> Result<Self, StoreError> {
        Ok(Self {
            id: row.id,
            name: row.name,
            created_at: time(row.created_at)?,
            used_at: row.used_at.map(time).transpose()?,
            blocked_at: row.blocked_at.map(time).transpose()?,
        })
    }
}

impl Store {
    /// Whether the person signs in here by password, and so may by passkey. Who comes from another
    /// provider may not: being disabled there has to be enough.
    pub(crate) async fn signs_in_here(&self, subject: &str) -> Result<bool, StoreError> {
        let found: Option<String> =
            sqlx::query_scalar("SELECT id FROM people WHERE id = $1 AND password_hash IS NOT NULL")
                .bind(subject)
                .fetch_optional(&self.pool)
                .await?;
        Ok(found.is_some())
    }

    /// The person's passkeys, the oldest first.
    pub async fn passkeys(&self, subject: &str) -> Result<Vec<Passkey>, StoreError> {
        sqlx::query_as::<_, Row>(
            "SELECT id, name, created_at, used_at, blocked_at FROM passkeys
             WHERE person_id = $1 ORDER BY created_at, name",
        )
        .bind(subject)
        .fetch_all(&self.pool)
        .await?
        .into_iter()
        .map(Passkey::try_from)
        .collect()
    }

    /// Whether the person has one that is not blocked.
    pub(crate) async fn has_passkey(&self, subject: &str) -> Result<bool, StoreError> {
        let found: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM passkeys WHERE person_id = $1 AND blocked_at IS NULL",
        )
        .bind(subject)
        .fetch_one(&self.pool)
        .await?;
        Ok(found > 0)
    }

    pub(crate) async fn passkey_ids(&self, subject: &str) -> Result<Vec<CredentialID>, StoreError> {
        let ids = sqlx::query_scalar("SELECT credential_id FROM passkeys WHERE person_id = $1");
        Ok(ids.bind(subject).fetch_all(&self.pool).await?)
    }

    /// Adds a passkey, once per challenge: None when the challenge was answered before.
    pub(crate) async fn add_passkey(
        &self,
        person: &Person,
        name: &str,
        credential: &Credential,
        challenge: &str,
        now: Timestamp,
    ) -> Result<Option<Passkey>, StoreError> {
        check_label(name)?;
        let id = Uuid::new_v4().to_string();
        let mut tx = self.write().await?;
        if !use_up(&mut tx, challenge, now).await? {
            return Ok(None);
        }
        self.lock_person(&mut tx, &person.subject).await?;
        let done = sqlx::query(
            "INSERT INTO passkeys
             (id, person_id, name, credential_id, credential, counter, created_at)
             SELECT $1, $2, $3, $4, $5, 0, $6
             WHERE $7 > (SELECT count(*) FROM passkeys WHERE person_id = $2)",
        )
        .bind(&id)
        .bind(&person.subject)
        .bind(name)
        .bind(credential.cred_id().to_vec())
        .bind(to_text(credential)?)
        .bind(now.as_second())
        .bind(PASSKEYS_MAX)
        .execute(&mut *tx)
        .await;
        match done {
            Ok(done) if done.rows_affected() == 0 => {
                return Err(StoreError::TooMany("20 passkeys"));
            }
            Ok(_) => {}
            Err(sqlx::Error::Database(error)) if error.is_unique_violation() => {
                let taken = error.message().contains("credential_id");
                return Err(if taken { StoreError::PasskeyTaken } else { StoreError::NameTaken });
            }
            Err(error) => return Err(error.into()),
        }
        tx.commit().await?;
        let created_at = time(now.as_second())?;
        let name = name.to_owned();
        Ok(Some(Passkey { id, name, created_at, used_at: None, blocked_at: None }))
    }

    /// The passkey of that credential and owner, unless it is blocked or its owner is disabled.
    pub(crate) async fn find_passkey(
        &self,
        subject: Uuid,
        credential_id: &[u8],
    ) -> Result<Option<FoundPasskey>, StoreError> {
        let row: Option<FoundRow> = sqlx::query_as(
            "SELECT k.id AS passkey_id, k.credential, p.id, p.name, p.email, p.groups,
                p.disabled_at
             FROM passkeys k JOIN people p ON p.id = k.person_id
             WHERE k.credential_id = $1 AND k.person_id = $2 AND k.blocked_at IS NULL
               AND p.disabled_at IS NULL",
        )
        .bind(credential_id)
        .bind(subject.to_string())
        .fetch_optional(&self.pool)
        .await?;
        let Some(row) = row else { return Ok(None) };
        let credential =
            serde_json::from_str(&row.credential).map_err(|_| StoreError::Damaged("a passkey"))?;
        Ok(Some(FoundPasskey { id: row.passkey_id, person: row.person.try_into()?, credential }))
    }

    /// Writes down a sign-in. False, and nothing is written, when the challenge was answered before,
    /// or the passkey was meanwhile removed, blocked, or used with a counter as high.
    pub(crate) async fn passkey_used(
        &self,
        id: &str,
        used: &Used,
        challenge: &str,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let mut tx = self.write().await?;
        if !use_up(&mut tx, challenge, now).await? {
            return Ok(false);
        }
        let done = sqlx::query(
            "UPDATE passkeys SET credential = $1, counter = $2, used_at = $3
             WHERE id = $4 AND blocked_at IS NULL AND (counter < $2 OR (counter = 0 AND $2 = 0))",
        )
        .bind(to_text(&used.credential)?)
        .bind(used.counter)
        .bind(now.as_second())
        .bind(id)
        .execute(&mut *tx)
        .await?;
        if done.rows_affected() == 0 {
            return Ok(false);
        }
        tx.commit().await?;
        Ok(true)
    }

    /// Lets nobody sign in with it any more, because of the answer to that challenge. Not when it
    /// was answered before: the same form sent twice is no copy of a key.
    pub(crate) async fn block_passkey(
        &self,
        id: &str,
        challenge: &str,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let mut tx = self.write().await?;
        if !use_up(&mut tx, challenge, now).await? {
            return Ok(false);
        }
        sqlx::query("UPDATE passkeys SET blocked_at = coalesce(blocked_at, $1) WHERE id = $2")
            .bind(now.as_second())
            .bind(id)
            .execute(&mut *tx)
            .await?;
        tx.commit().await?;
        Ok(true)
    }

    /// Removes the person's passkey of that id, and says what it was called.
    pub async fn remove_passkey(
        &self,
        subject: &str,
        id: &str,
    ) -> Result<Option<String>, StoreError> {
        Ok(sqlx::query_scalar(
            "DELETE FROM passkeys WHERE id = $1 AND person_id = $2 RETURNING name",
        )
        .bind(id)
        .bind(subject)
        .fetch_optional(&self.pool)
        .await?)
    }

    /// Removes all passkeys of a person, or the one of that id, and says how many.
    pub async fn remove_passkeys_of(
        &self,
        user: &UserName,
        id: Option<&str>,
    ) -> Result<u64, StoreError> {
        let person = self.person(user).await?;
        let person = person.ok_or_else(|| StoreError::NoSuchPerson(user.to_string()))?;
        let done =
            sqlx::query("DELETE FROM passkeys WHERE person_id = $1 AND ($2 = '' OR id = $2)")
                .bind(&person.subject)
                .bind(id.unwrap_or_default())
                .execute(&self.pool)
                .await?;
        Ok(done.rows_affected())
    }
}

/// False when it was used up before.
async fn use_up(
    tx: &mut Transaction<'static, Any>,
    challenge: &str,
    now: Timestamp,
) -> Result<bool, StoreError> {
    let lifetime = super::seconds(CHALLENGE_LIFETIME);
    let done = sqlx::query(
        "INSERT INTO used_challenges (digest, expires_at) VALUES ($1, $2) ON CONFLICT DO NOTHING",
    )
    .bind(secret::digest(challenge))
    .bind(now.as_second().saturating_add(lifetime))
    .execute(&mut **tx)
    .await?;
    Ok(done.rows_affected() == 1)
}

fn to_text(credential: &Credential) -> Result<String, StoreError> {
    serde_json::to_string(credential).map_err(|_| StoreError::Damaged("a passkey"))
}
