//! People, and what an operator does with them.

use domain::name::UserName;
use jiff::Timestamp;
use sqlx::{Any, FromRow, Transaction};
use uuid::Uuid;

use super::{Store, StoreError, list, time, to_json, upstreams::keep_operators_groups};
use crate::config::NewPerson;

/// Somebody who may sign in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Person {
    /// `sub`: stable, and never used for anybody else.
    pub subject: String,
    pub name: UserName,
    pub email: Option<String>,
    pub groups: Vec<String>,
    pub disabled_at: Option<Timestamp>,
}

#[derive(FromRow)]
pub(super) struct PersonRow {
    id: String,
    name: String,
    email: Option<String>,
    groups: String,
    disabled_at: Option<i64>,
}

impl TryFrom<PersonRow> for Person {
    type Error = StoreError;
    fn try_from(row: PersonRow) -> Result<Self, StoreError> {
        Ok(Self {
            subject: row.id,
            name: row.name.parse().map_err(|_| StoreError::Damaged("a person's name"))?,
            email: row.email,
            groups: list(&row.groups)?,
            disabled_at: row.disabled_at.map(time).transpose()?,
        })
    }
}

impl Store {
    /// Makes the person, or brings e-mail address, groups and password up to date. Without a
    /// password a new person cannot sign in by one, and an existing one keeps theirs.
    pub async fn ensure_user(
        &self,
        person: &NewPerson,
        password: Option<&str>,
        now: Timestamp,
    ) -> Result<Person, StoreError> {
        check_email(person)?;
        let mut tx = self.write().await?;
        let saved: String = sqlx::query_scalar(
            "INSERT INTO people (id, name, email, groups, created_at) VALUES ($1, $2, $3, $4, $5)
             ON CONFLICT (name) DO UPDATE SET email = excluded.email, groups = excluded.groups
             RETURNING id",
        )
        .bind(Uuid::new_v4().to_string())
        .bind(person.name.as_str())
        .bind(&person.email)
        .bind(to_json(&person.groups))
        .bind(now.as_second())
        .fetch_one(&mut *tx)
        .await?;
        keep_operators_groups(&mut tx, &saved, &person.groups).await?;
        tx.commit().await?;
        if let Some(password) = password {
            let stored = self.password_hash(&person.name).await?;
            if stored.is_none() || !self.passwords.check(password, stored).await? {
                self.set_password(&person.name, password).await?;
            }
        }
        self.person(&person.name)
            .await?
            .ok_or_else(|| StoreError::NoSuchPerson(person.name.to_string()))
    }

    /// Makes the person, or brings e-mail address, groups and password up to date: all of it or
    /// nothing. True when they are new.
    pub async fn save_user(
        &self,
        person: &NewPerson,
        password: &str,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        check_email(person)?;
        let hash = self.passwords.hash(password).await?;
        let id = Uuid::new_v4().to_string();
        let mut tx = self.write().await?;
        let saved: String = sqlx::query_scalar(
            "INSERT INTO people (id, name, email, groups, created_at, password_hash)
             VALUES ($1, $2, $3, $4, $5, $6)
             ON CONFLICT (name) DO UPDATE SET email = excluded.email, groups = excluded.groups,
                password_hash = excluded.password_hash
             RETURNING id",
        )
        .bind(&id)
        .bind(person.name.as_str())
        .bind(&person.email)
        .bind(to_json(&person.groups))
        .bind(now.as_second())
        .bind(hash)
        .fetch_one(&mut *tx)
        .await?;
        keep_operators_groups(&mut tx, &saved, &person.groups).await?;
        tx.commit().await?;
        Ok(saved == id)
    }

    /// Replaces the password. Sessions stay; end them by disabling the person.
    pub async fn set_password(&self, name: &UserName, password: &str) -> Result<(), StoreError> {
        let hash = self.passwords.hash(password).await?;
        let done = sqlx::query("UPDATE people SET password_hash = $1 WHERE name = $2")
            .bind(hash)
            .bind(name.as_str())
            .execute(&self.pool)
            .await?;
        found(done.rows_affected(), name)
    }

    /// All people, by name.
    pub async fn list_users(&self) -> Result<Vec<Person>, StoreError> {
        sqlx::query_as::<_, PersonRow>(
            "SELECT id, name, email, groups, disabled_at FROM people ORDER BY name",
        )
        .fetch_all(&self.pool)
        .await?
        .into_iter()
        .map(Person::try_from)
        .collect()
    }

    /// Ends the person's sessions and tokens for good, and keeps them from signing in. Their keys
    /// leave the feed, until the person is enabled again.
    pub async fn disable_user(&self, name: &UserName, now: Timestamp) -> Result<(), StoreError> {
        let now = now.as_second();
        let mut tx = self.write().await?;
        let done = sqlx::query(
            "UPDATE people SET disabled_at = coalesce(disabled_at, $1) WHERE name = $2",
        )
        .bind(now)
        .bind(name.as_str())
        .execute(&mut *tx)
        .await?;
        for statement in [
            "UPDATE sessions SET ended_at = coalesce(ended_at, $1) WHERE ended_at IS NULL
             AND person_id = (SELECT id FROM people WHERE name = $2)",
            "UPDATE personal_tokens SET revoked_at = $1 WHERE revoked_at IS NULL
             AND person_id = (SELECT id FROM people WHERE name = $2)",
            "UPDATE service_tokens SET revoked_at = $1 WHERE revoked_at IS NULL
             AND client_id IN (SELECT a.client_id FROM service_accounts a
                JOIN people p ON p.id = a.person_id WHERE p.name = $2)",
        ] {
            sqlx::query(statement).bind(now).bind(name.as_str()).execute(&mut *tx).await?;
        }
        tx.commit().await?;
        found(done.rows_affected(), name)
    }

    pub async fn enable_user(&self, name: &UserName) -> Result<(), StoreError> {
        let done = sqlx::query("UPDATE people SET disabled_at = NULL WHERE name = $1")
            .bind(name.as_str())
            .execute(&self.pool)
            .await?;
        found(done.rows_affected(), name)
    }

    pub async fn person(&self, name: &UserName) -> Result<Option<Person>, StoreError> {
        sqlx::query_as::<_, PersonRow>(
            "SELECT id, name, email, groups, disabled_at FROM people WHERE name = $1",
        )
        .bind(name.as_str())
        .fetch_optional(&self.pool)
        .await?
        .map(Person::try_from)
        .transpose()
    }

    pub(super) async fn person_by_subject(
        &self,
        subject: &str,
    ) -> Result<Option<Person>, StoreError> {
        sqlx::query_as::<_, PersonRow>(
            "SELECT id, name, email, groups, disabled_at FROM people WHERE id = $1",
        )
        .bind(subject)
        .fetch_optional(&self.pool)
        .await?
        .map(Person::try_from)
        .transpose()
    }

    /// The same, as it is within a transaction.
    pub(super) async fn person_in(
        &self,
        tx: &mut Transaction<'static, Any>,
        subject: &str,
    ) -> Result<Option<Person>, StoreError> {
        sqlx::query_as::<_, PersonRow>(
            "SELECT id, name, email, groups, disabled_at FROM people WHERE id = $1",
        )
        .bind(subject)
        .fetch_optional(&mut **tx)
        .await?
        .map(Person::try_from)
        .transpose()
    }

    /// The person, if the name and the password are theirs and they are not disabled. Takes as long
    /// for a name that nobody has.
    pub async fn check_password(
        &self,
        name: Option<&UserName>,
        password: &str,
    ) -> Result<Option<Person>, StoreError> {
        let (person, stored) = match name {
            Some(name) => (self.person(name).await?, self.password_hash(name).await?),
            None => (None, None),
        };
        let matches = self.passwords.check(password, stored).await?;
        Ok(person.filter(|person| matches && person.disabled_at.is_none()))
    }

    async fn password_hash(&self, name: &UserName) -> Result<Option<String>, StoreError> {
        let hash: Option<Option<String>> =
            sqlx::query_scalar("SELECT password_hash FROM people WHERE name = $1")
                .bind(name.as_str())
                .fetch_optional(&self.pool)
                .await?;
        Ok(hash.flatten())
    }
}

pub(super) fn found(rows: u64, name: &UserName) -> Result<(), StoreError> {
    if rows == 0 { Err(StoreError::NoSuchPerson(name.to_string())) } else { Ok(()) }
}

fn check_email(person: &NewPerson) -> Result<(), StoreError> {
    match &person.email {
        Some(email) if !is_email(email) => {
            Err(StoreError::Invalid("that is not an e-mail address"))
        }
        _ => Ok(()),
    }
}

/// Only what would break a header or a log is refused; whether mail arrives is not ours to know.
fn is_email(text: &str) -> bool {
    text.len() <= 254
        && text.split_once('@').is_some_and(|(local, host)| !local.is_empty() && !host.is_empty())
        && text.bytes().all(|b| b.is_ascii_graphic())
}
