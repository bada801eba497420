//! Service accounts: programs that act for themselves, and the tokens they hold.

use std::time::Duration;

use domain::name::UserName;
use jiff::Timestamp;
use serde::Serialize;
use sqlx::FromRow;
use uuid::Uuid;

use super::{Person, Store, StoreError, people::PersonRow, seconds, time};
use crate::{
    jws::JwkSet,
    scope,
    secret::{self, Secret},
};

/// A program that gets tokens of its own, by client credentials (RFC 6749, section 4.4).
#[derive(Debug, Clone)]
pub struct ServiceAccount {
    /// `client_id`.
    pub client_id: String,
    /// How policies name it; `sub` is its subject.
    pub person: Person,
    /// Separated by spaces.
    pub scopes: String,
    /// The only workload that its tokens reach, as `project/name`.
    pub workload: Option<String>,
    /// SHA-256 of the secret.
    secret_digest: Option<Vec<u8>>,
    /// Public keys of its assertions.
    pub keys: Option<JwkSet>,
    pub expires_at: Option<Timestamp>,
}

impl ServiceAccount {
    pub fn has_secret(&self, presented: &str) -> bool {
        self.secret_digest
            .as_deref()
            .is_some_and(|digest| secret::same(digest, &secret::digest(presented)))
    }
}

/// How it proves who it is.
#[derive(Debug, Clone, Copy)]
pub enum Proof<'a> {
    /// A secret that is made now and shown once.
    Secret,
    /// The text of a JSON Web Key Set with its public keys.
    Keys(&'a str),
}

#[derive(Debug, Clone)]
pub struct NewServiceAccount<'a> {
    pub name: UserName,
    pub groups: &'a [String],
    /// Of `workload:use`, `workload:manage`, `usage:read` and `admin`, separated by spaces.
    pub scopes: &'a str,
    pub workload: Option<&'a str>,
    pub proof: Proof<'a>,
    pub lifetime: Option<Duration>,
}

/// As it is listed, and never with a secret.
#[derive(Debug, Clone, Serialize)]
pub struct ServiceAccountEntry {
    pub client_id: String,
    pub name: String,
    pub scopes: String,
    pub workload: Option<String>,
    pub created_at: Timestamp,
    pub expires_at: Option<Timestamp>,
    /// The last token that it was given.
    pub used_at: Option<Timestamp>,
    pub revoked: bool,
}

#[derive(FromRow)]
struct Row {
    client_id: String,
    person_id: String,
    scopes: String,
    workload: Option<String>,
    secret_digest: Option<Vec<u8>>,
    keys: Option<String>,
    expires_at: Option<i64>,
}

#[derive(FromRow)]
struct EntryRow {
    client_id: String,
    name: String,
    scopes: String,
    workload: Option<String>,
    created_at: i64,
    expires_at: Option<i64>,
    used_at: Option<i64>,
    revoked_at: Option<i64>,
}

impl TryFrom<EntryRow> for ServiceAccountEntry {
    type Error = StoreError;
    fn try_from(row: EntryRow) -> Result<Self, StoreError> {
        Ok(Self {
            client_id: row.client_id,
            name: row.name,
            scopes: row.scopes,
            workload: row.workload,
            created_at: time(row.created_at)?,
            expires_at: row.expires_at.map(time).transpose()?,
            used_at: row.used_at.map(time).transpose()?,
            revoked: row.revoked_at.is_some(),
        })
    }
}

impl Store {
    /// Makes one and returns its `client_id`, and its secret if it has one: nobody sees it again.
    pub async fn add_service_account(
        &self,
        new: NewServiceAccount<'_>,
        now: Timestamp,
    ) -> Result<(String, Option<String>), StoreError> {
        let scopes = scope::allowed(new.scopes, |one| scope::WORK.contains(&one));
        if scopes.is_empty() || scopes.len() != new.scopes.split_ascii_whitespace().count() {
            return Err(StoreError::Invalid(
                "scopes of a service account are workload:use, workload:manage, usage:read and \
                 admin",
            ));
        }
        if new.workload.is_some_and(|workload| !is_workload(workload)) {
            return Err(StoreError::Invalid("a workload is named `project/name`"));
        }
        let (secret, keys) = match new.proof {
            Proof::Secret => (Some(Secret::generate()), None),
            Proof::Keys(keys) => {
                JwkSet::from_json(keys).map_err(|_| {
                    StoreError::Invalid(
                        "the key set holds no usable public key (RSA, P-256 or Ed25519)",
                    )
                })?;
                (None, Some(keys))
            }
        };
        let client_id = format!("sa-{}", Uuid::new_v4().simple());
        let subject = Uuid::new_v4().to_string();
        let mut tx = self.write().await?;
        let done = sqlx::query(
            "INSERT INTO people (id, name, groups, created_at) VALUES ($1, $2, $3, $4)
             ON CONFLICT (name) DO NOTHING",
        )
        .bind(&subject)
        .bind(new.name.as_str())
        .bind(super::to_json(new.groups))
        .bind(now.as_second())
        .execute(&mut *tx)
        .await?;
        if done.rows_affected() == 0 {
            return Err(StoreError::Invalid("a person or service account has this name already"));
        }
        let expires_at =
            new.lifetime.map(|lifetime| now.as_second().saturating_add(seconds(lifetime)));
        sqlx::query(
            "INSERT INTO service_accounts
             (client_id, person_id, scopes, workload, secret_digest, keys, created_at, expires_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
        )
        .bind(&client_id)
        .bind(&subject)
        .bind(scopes.join(" "))
        .bind(new.workload)
        .bind(secret.as_ref().map(Secret::digest))
        .bind(keys)
        .bind(now.as_second())
        .bind(expires_at)
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok((client_id, secret.map(|secret| secret.as_str().to_owned())))
    }

    /// All of them, by name.
    pub async fn service_accounts(&self) -> Result<Vec<ServiceAccountEntry>, StoreError> {
        sqlx::query_as::<_, EntryRow>(
            "SELECT a.client_id, p.name, a.scopes, a.workload, a.created_at, a.expires_at,
                    a.used_at, a.revoked_at
             FROM service_accounts a JOIN people p ON p.id = a.person_id ORDER BY p.name",
        )
        .fetch_all(&self.pool)
        .await?
        .into_iter()
        .map(ServiceAccountEntry::try_from)
        .collect()
    }

    /// Ends it and the tokens it holds. False when there is none of that name.
    pub async fn revoke_service_account(
        &self,
        name: &UserName,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let mut tx = self.write().await?;
        let done = sqlx::query(
            "UPDATE service_accounts SET revoked_at = coalesce(revoked_at, $1)
             WHERE person_id = (SELECT id FROM people WHERE name = $2)",
        )
        .bind(now.as_second())
        .bind(name.as_str())
        .execute(&mut *tx)
        .await?;
        sqlx::query(
            "UPDATE service_tokens SET revoked_at = coalesce(revoked_at, $1) WHERE client_id IN
             (SELECT a.client_id FROM service_accounts a JOIN people p ON p.id = a.person_id
              WHERE p.name = $2)",
        )
        .bind(now.as_second())
        .bind(name.as_str())
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(done.rows_affected() == 1)
    }

    /// The account, unless it was withdrawn, has expired, or is disabled as people are.
    pub async fn service_account(
        &self,
        client_id: &str,
        now: Timestamp,
    ) -> Result<Option<ServiceAccount>, StoreError> {
        let row: Option<Row> = sqlx::query_as(
            "SELECT client_id, person_id, scopes, workload, secret_digest, keys, expires_at
             FROM service_accounts
             WHERE client_id = $1 AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > $2)",
        )
        .bind(client_id)
        .bind(now.as_second())
        .fetch_optional(&self.pool)
        .await?;
        let Some(row) = row else { return Ok(None) };
        let person = self.person_by_subject(&row.person_id).await?;
        let Some(person) = person.filter(|person| person.disabled_at.is_none()) else {
            return Ok(None);
        };
        let keys = row.keys.map(|keys| JwkSet::from_json(&keys)).transpose();
        Ok(Some(ServiceAccount {
            client_id: row.client_id,
            person,
            scopes: row.scopes,
            workload: row.workload,
            secret_digest: row.secret_digest,
            keys: keys.map_err(|_| StoreError::Damaged("a service account's keys"))?,
            expires_at: row.expires_at.map(time).transpose()?,
        }))
    }

    /// Writes a token down before it is handed out, and says whose it is as they are at that moment.
    /// None when the account was withdrawn or disabled meanwhile.
    pub async fn record_service_token(
        &self,
        jti: &str,
        client_id: &str,
        lifetime: Duration,
        now: Timestamp,
    ) -> Result<Option<Person>, StoreError> {
        let mut tx = self.write().await?;
        let row: Option<PersonRow> = sqlx::query_as(self.dialect.pick(
            "SELECT p.id, p.name, p.email, p.groups, p.disabled_at FROM service_accounts a JOIN people p ON p.id = a.person_id
             WHERE a.client_id = $1 AND p.disabled_at IS NULL",
            // Whoever changes the account's groups at this moment does so before us, or sees our
            // token.
            "SELECT p.id, p.name, p.email, p.groups, p.disabled_at FROM service_accounts a JOIN people p ON p.id = a.person_id
             WHERE a.client_id = $1 AND p.disabled_at IS NULL FOR SHARE OF p",
        ))
        .bind(client_id)
        .fetch_optional(&mut *tx)
        .await?;
        let Some(row) = row else { return Ok(None) };
        let done = sqlx::query(
            "UPDATE service_accounts SET used_at = $1 WHERE client_id = $2 AND revoked_at IS NULL",
        )
        .bind(now.as_second())
        .bind(client_id)
        .execute(&mut *tx)
        .await?;
        if done.rows_affected() == 0 {
            return Ok(None);
        }
        sqlx::query("INSERT INTO service_tokens (jti, client_id, expires_at) VALUES ($1, $2, $3)")
            .bind(jti)
            .bind(client_id)
            .bind(now.as_second().saturating_add(seconds(lifetime)))
            .execute(&mut *tx)
            .await?;
        tx.commit().await?;
        row.try_into().map(Some)
    }

    /// Whose token it is, if neither it nor its account is withdrawn.
    pub async fn service_token_holder(
        &self,
        jti: &str,
        now: Timestamp,
    ) -> Result<Option<ServiceAccount>, StoreError> {
        let client_id: Option<String> = sqlx::query_scalar(
            "SELECT client_id FROM service_tokens WHERE jti = $1 AND revoked_at IS NULL",
        )
        .bind(jti)
        .fetch_optional(&self.pool)
        .await?;
        match client_id {
            Some(client_id) => self.service_account(&client_id, now).await,
            None => Ok(None),
        }
    }
}

/// `project/name`, both of them DNS labels.
pub(super) fn is_workload(text: &str) -> bool {
    let is_label = |part: &str| {
        (1..=63).contains(&part.len())
            && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !part.starts_with('-')
            && !part.ends_with('-')
    };
    text.split_once('/').is_some_and(|(project, name)| is_label(project) && is_label(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workloads_are_named_with_their_project() {
        assert!(is_workload("alice/lab"));
        for bad in ["", "lab", "/lab", "alice/", "a/b/c", "Alice/lab", "a/-b", "a/b ", "../x"] {
            assert!(!is_workload(bad), "{bad}");
        }
    }
}
