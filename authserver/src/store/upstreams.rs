//! People who sign in at other providers.

use jiff::Timestamp;
use uuid::Uuid;

use super::{Person, Session, Store, StoreError, people::PersonRow, to_json};
use crate::{federation::Profile, secret};

/// How long somebody may take at a provider, in seconds.
const REQUEST_LIFETIME: i64 = 1800;

/// A sign-in that is under way at a provider.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpstreamRequest {
    /// What it is for.
    pub goal: String,
    /// Whether the person has to prove who they are even if they are signed in there.
    pub again: bool,
    /// Seconds since the epoch.
    pub asked_at: i64,
}

/// Where a session began.
#[derive(Debug, Clone, Copy)]
pub struct Origin<'a> {
    /// The provider's id in the settings.
    pub provider: &'a str,
    pub issuer: &'a str,
    pub subject: &'a str,
    pub id_token: &'a str,
}

/// Who came from a provider.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Arrival {
    Known(Person),
    /// For the first time.
    New(Person),
    Disabled(Person),
    /// For the first time, and somebody else has the name already.
    NameTaken,
}

impl Store {
    pub async fn begin_upstream(
        &self,
        state: &str,
        browser: &str,
        provider: &str,
        request: &UpstreamRequest,
    ) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO upstream_requests
             (digest, browser, provider, goal, again, created_at, expires_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7)",
        )
        .bind(secret::digest(state))
        .bind(browser)
        .bind(provider)
        .bind(&request.goal)
        .bind(i64::from(request.again))
        .bind(request.asked_at)
        .bind(request.asked_at.saturating_add(REQUEST_LIFETIME))
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// The request of that state, once, to the browser that began it and from the provider that
    /// it was sent to. Anybody else uses nothing up.
    pub async fn take_upstream(
        &self,
        state: &str,
        browser: &str,
        provider: &str,
        now: Timestamp,
    ) -> Result<Option<UpstreamRequest>, StoreError> {
        let row: Option<(String, i64, i64)> = sqlx::query_as(
            "DELETE FROM upstream_requests
             WHERE digest = $1 AND browser = $2 AND provider = $3 AND expires_at > $4
             RETURNING goal, again, created_at",
        )
        .bind(secret::digest(state))
        .bind(browser)
        .bind(provider)
        .bind(now.as_second())
        .fetch_optional(&self.pool)
        .await?;
        Ok(row.map(|(goal, again, asked_at)| UpstreamRequest { goal, again: again != 0, asked_at }))
    }

    /// Finds the person by issuer and subject, and brings e-mail address and groups up to date; or
    /// makes them, if nobody has the name.
    pub async fn arrive(
        &self,
        issuer: &str,
        subject: &str,
        profile: &Profile,
        now: Timestamp,
    ) -> Result<Arrival, StoreError> {
        // Of two first sign-ins at once, one makes the person and the other finds them.
        for _ in 0..2 {
            if let Some(found) = self.find_upstream(issuer, subject, profile, now).await? {
                return Ok(found);
            }
            if let Some(made) = self.make_upstream(issuer, subject, profile, now).await? {
                return Ok(made);
            }
        }
        Ok(Arrival::NameTaken)
    }

    async fn find_upstream(
        &self,
        issuer: &str,
        subject: &str,
        profile: &Profile,
        now: Timestamp,
    ) -> Result<Option<Arrival>, StoreError> {
        let mut tx = self.write().await?;
        let row: Option<PersonRow> = sqlx::query_as(self.dialect.pick(
            "SELECT p.* FROM upstream_identities u JOIN people p ON p.id = u.person_id
             WHERE u.issuer = $1 AND u.subject = $2",
            "SELECT p.* FROM upstream_identities u JOIN people p ON p.id = u.person_id
             WHERE u.issuer = $1 AND u.subject = $2 FOR UPDATE",
        ))
        .bind(issuer)
        .bind(subject)
        .fetch_optional(&mut *tx)
        .await?;
        let Some(row) = row else { return Ok(None) };
        let mut person = Person::try_from(row)?;
        if person.disabled_at.is_some() {
            return Ok(Some(Arrival::Disabled(person)));
        }
        sqlx::query("UPDATE people SET email = $1, groups = $2 WHERE id = $3")
            .bind(&profile.email)
            .bind(to_json(&profile.groups))
            .bind(&person.subject)
            .execute(&mut *tx)
            .await?;
        sqlx::query(
            "UPDATE upstream_identities SET signed_in_at = $1 WHERE issuer = $2 AND subject = $3",
        )
        .bind(now.as_second())
        .bind(issuer)
        .bind(subject)
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        person.email.clone_from(&profile.email);
        person.groups.clone_from(&profile.groups);
        Ok(Some(Arrival::Known(person)))
    }

    /// None when the name is taken, perhaps by the same identity at the same moment.
    async fn make_upstream(
        &self,
        issuer: &str,
        subject: &str,
        profile: &Profile,
        now: Timestamp,
    ) -> Result<Option<Arrival>, StoreError> {
        let id = Uuid::new_v4().to_string();
        let mut tx = self.write().await?;
        let person = sqlx::query(
            "INSERT INTO people (id, name, email, groups, created_at) VALUES ($1, $2, $3, $4, $5)
             ON CONFLICT (name) DO NOTHING",
        )
        .bind(&id)
        .bind(profile.name.as_str())
        .bind(&profile.email)
        .bind(to_json(&profile.groups))
        .bind(now.as_second())
        .execute(&mut *tx)
        .await?;
        if person.rows_affected() == 0 {
            return Ok(None);
        }
        let identity = sqlx::query(
            "INSERT INTO upstream_identities (issuer, subject, person_id, created_at, signed_in_at)
             VALUES ($1, $2, $3, $4, $4) ON CONFLICT (issuer, subject) DO NOTHING",
        )
        .bind(issuer)
        .bind(subject)
        .bind(&id)
        .bind(now.as_second())
        .execute(&mut *tx)
        .await?;
        if identity.rows_affected() == 0 {
            return Ok(None);
        }
        tx.commit().await?;
        Ok(Some(Arrival::New(Person {
            subject: id,
            name: profile.name.clone(),
            email: profile.email.clone(),
            groups: profile.groups.clone(),
            disabled_at: None,
        })))
    }

    /// Remembers at which provider the session began. False when whoever came is no longer tied to
    /// the person: somebody has undone that since they arrived.
    pub async fn keep_upstream(
        &self,
        session: &Session,
        origin: &Origin<'_>,
    ) -> Result<bool, StoreError> {
        let done = sqlx::query(self.dialect.pick(
            "INSERT INTO upstream_sessions (session_id, provider, id_token)
             SELECT $1, $2, $3 FROM upstream_identities
             WHERE issuer = $4 AND subject = $5 AND person_id = $6",
            "INSERT INTO upstream_sessions (session_id, provider, id_token)
             SELECT $1, $2, $3 FROM upstream_identities
             WHERE issuer = $4 AND subject = $5 AND person_id = $6 FOR SHARE",
        ))
        .bind(&session.id)
        .bind(origin.provider)
        .bind(origin.id_token)
        .bind(origin.issuer)
        .bind(origin.subject)
        .bind(&session.person.subject)
        .execute(&self.pool)
        .await?;
        Ok(done.rows_affected() == 1)
    }

    /// The provider's id and its ID token, if the session began at one.
    pub async fn upstream_of(
        &self,
        session_id: &str,
    ) -> Result<Option<(String, String)>, StoreError> {
        Ok(sqlx::query_as("SELECT provider, id_token FROM upstream_sessions WHERE session_id = $1")
            .bind(session_id)
            .fetch_optional(&self.pool)
            .await?)
    }

    pub async fn clean_up_upstreams(&self, now: Timestamp) -> Result<(), StoreError> {
        sqlx::query("DELETE FROM upstream_requests WHERE expires_at < $1")
            .bind(now.as_second())
            .execute(&self.pool)
            .await?;
        Ok(())
    }
}
