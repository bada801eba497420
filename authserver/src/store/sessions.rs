//! Sessions: one sign-in of one browser.

use std::{net::IpAddr, time::Duration};

use domain::name::UserName;
use jiff::Timestamp;
use serde::Serialize;
use sqlx::{Any, FromRow, Transaction};
use uuid::Uuid;

use super::{Authentication, Person, Store, StoreError, people::PersonRow, seconds, time, to_json};
use crate::secret::{self, Secret};

/// How exactly the last use is known: a write per request would be a write for nothing.
const TOUCH: i64 = 60;

/// A session that is alive, and whose it is.
#[derive(Debug, Clone)]
pub struct Session {
    /// `sid`.
    pub id: String,
    pub person: Person,
    /// How the person proved who they are, and when they last did.
    pub authentication: Authentication,
    /// When the session began; for a device's, the one that approved it.
    pub signed_in_at: Timestamp,
    pub expires_at: Timestamp,
}

impl Session {
    /// How long an access token of this session may live: no longer than the session itself.
    pub fn token_lifetime(&self, longest: Duration, now: Timestamp) -> Duration {
        longest.min(self.expires_at.duration_since(now).unsigned_abs())
    }
}

#[derive(FromRow)]
pub(super) struct SessionRow {
    sid: String,
    method: String,
    auth_time: Option<i64>,
    amr: Option<String>,
    acr: Option<String>,
    session_created_at: i64,
    used_at: i64,
    expires_at: i64,
    ended_at: Option<i64>,
    #[sqlx(flatten)]
    person: PersonRow,
}

impl SessionRow {
    /// True when the last use that was written down is no longer exact enough.
    pub fn is_touch(&self, now: Timestamp) -> bool {
        now.as_second() - self.used_at >= TOUCH
    }

    /// The session, unless it is over or its person is disabled.
    pub fn alive(self, idle: Duration, now: Timestamp) -> Result<Option<Session>, StoreError> {
        let now = now.as_second();
        let person = Person::try_from(self.person)?;
        let alive = self.ended_at.is_none()
            && self.expires_at > now
            && self.used_at.saturating_add(seconds(idle)) > now
            && person.disabled_at.is_none();
        if !alive {
            return Ok(None);
        }
        let authentication = Authentication::read(
            self.method,
            self.session_created_at,
            self.auth_time,
            self.amr.as_deref(),
            self.acr,
        )?;
        Ok(Some(Session {
            id: self.sid,
            person,
            authentication,
            signed_in_at: time(self.session_created_at)?,
            expires_at: time(self.expires_at)?,
        }))
    }
}

/// Where a session begins.
#[derive(Debug, Clone)]
pub struct Whence {
    /// Digest of a cookie that the browser keeps for longer than any session.
    pub browser: Option<String>,
    pub address: IpAddr,
    /// What the browser says that it is (`User-Agent`).
    pub agent: Option<String>,
}

/// A session as it is listed.
#[derive(Debug, Clone, Serialize)]
pub struct SessionEntry {
    /// `sid`.
    pub id: String,
    pub user: UserName,
    pub method: String,
    pub signed_in_at: Timestamp,
    /// When they last proved who they are; none when that is not known.
    pub authenticated_at: Option<Timestamp>,
    /// To the minute.
    pub used_at: Timestamp,
    pub expires_at: Timestamp,
    /// The device flow's client; none for a browser's own session.
    pub device: Option<String>,
    /// Where it began; not known of sessions that an older version began.
    pub address: Option<String>,
    pub agent: Option<String>,
    /// In which it began, or was approved.
    #[serde(skip)]
    pub browser: Option<String>,
}

#[derive(FromRow)]
struct EntryRow {
    id: String,
    name: String,
    method: String,
    auth_time: Option<i64>,
    created_at: i64,
    used_at: i64,
    expires_at: i64,
    client_id: Option<String>,
    address: Option<String>,
    agent: Option<String>,
    browser: Option<String>,
}

impl TryFrom<EntryRow> for SessionEntry {
    type Error = StoreError;
    fn try_from(row: EntryRow) -> Result<Self, StoreError> {
        let proof = Authentication::read(row.method, row.created_at, row.auth_time, None, None)?;
        Ok(Self {
            id: row.id,
            user: row.name.parse().map_err(|_| StoreError::Damaged("a person's name"))?,
            method: proof.method,
            authenticated_at: proof.at,
            signed_in_at: time(row.created_at)?,
            used_at: time(row.used_at)?,
            expires_at: time(row.expires_at)?,
            device: row.client_id,
            address: row.address,
            agent: row.agent,
            browser: row.browser,
        })
    }
}

impl Store {
    /// Sessions that have not ended, of one person or of all, the last used first; at most `limit`.
    /// Whether one has been idle for too long is the server's to say.
    pub async fn list_sessions(
        &self,
        user: Option<&UserName>,
        limit: i64,
        now: Timestamp,
    ) -> Result<Vec<SessionEntry>, StoreError> {
        sqlx::query_as::<_, EntryRow>(
            "SELECT s.id, p.name, s.method, s.auth_time, s.created_at, s.used_at, s.expires_at, s.client_id,
                    s.address, s.agent, s.browser
             FROM sessions s JOIN people p ON p.id = s.person_id
             WHERE s.ended_at IS NULL AND s.expires_at > $1 AND ($2 = '' OR p.name = $2)
             ORDER BY s.used_at DESC, s.id LIMIT $3",
        )
        .bind(now.as_second())
        .bind(user.map_or("", UserName::as_str))
        .bind(limit)
        .fetch_all(&self.pool)
        .await?
        .into_iter()
        .map(SessionEntry::try_from)
        .collect()
    }

    /// Whose session that is, unless it has ended.
    pub async fn session_holder(&self, id: &str) -> Result<Option<UserName>, StoreError> {
        let name: Option<String> = sqlx::query_scalar(
            "SELECT p.name FROM sessions s JOIN people p ON p.id = s.person_id
             WHERE s.id = $1 AND s.ended_at IS NULL",
        )
        .bind(id)
        .fetch_optional(&self.pool)
        .await?;
        let parsed = name.map(|name| name.parse());
        parsed.transpose().map_err(|_| StoreError::Damaged("a person's name"))
    }

    /// Ends all sessions of a person, and withdraws what was issued in them. Returns how many.
    pub async fn end_sessions_of(
        &self,
        user: &UserName,
        now: Timestamp,
    ) -> Result<u64, StoreError> {
        if self.person(user).await?.is_none() {
            return Err(StoreError::NoSuchPerson(user.to_string()));
        }
        let done = sqlx::query(
            "UPDATE sessions SET ended_at = $1 WHERE ended_at IS NULL AND expires_at > $1
             AND person_id = (SELECT id FROM people WHERE name = $2)",
        )
        .bind(now.as_second())
        .bind(user.as_str())
        .execute(&self.pool)
        .await?;
        Ok(done.rows_affected())
    }

    pub async fn begin_session(
        &self,
        person: Person,
        authentication: &Authentication,
        max: Duration,
        now: Timestamp,
    ) -> Result<(Session, Secret), StoreError> {
        let (id, secret) = (Uuid::new_v4().to_string(), Secret::generate());
        let expires_at = now.as_second().saturating_add(seconds(max));
        // Whoever disables the person at this moment does so before us, or ends this session too.
        let done = sqlx::query(self.dialect.pick(
            "INSERT INTO sessions
             (id, secret_digest, person_id, method, created_at, used_at, expires_at, auth_time, amr, acr)
             SELECT $1, $2, id, $4, $5, $5, $6, $7, $8, $9 FROM people WHERE id = $3 AND disabled_at IS NULL",
            "INSERT INTO sessions
             (id, secret_digest, person_id, method, created_at, used_at, expires_at, auth_time, amr, acr)
             SELECT $1, $2, id, $4, $5, $5, $6, $7, $8, $9 FROM people WHERE id = $3 AND disabled_at IS NULL
             FOR SHARE",
        ))
        .bind(&id)
        .bind(secret.digest())
        .bind(&person.subject)
        .bind(&authentication.method)
        .bind(now.as_second())
        .bind(expires_at)
        .bind(authentication.at.map(Timestamp::as_second))
        .bind(to_json(&authentication.amr))
        .bind(&authentication.acr)
        .execute(&self.pool)
        .await?;
        if done.rows_affected() == 0 {
            return Err(StoreError::NoSuchPerson(person.name.to_string()));
        }
        let expires_at = time(expires_at)?;
        let authentication = authentication.clone();
        Ok((Session { id, person, authentication, signed_in_at: now, expires_at }, secret))
    }

    /// The session of a browser's cookie, if it is alive. Counts as a use.
    pub async fn session(
        &self,
        cookie: &str,
        idle: Duration,
        now: Timestamp,
    ) -> Result<Option<Session>, StoreError> {
        let id: Option<String> =
            sqlx::query_scalar("SELECT id FROM sessions WHERE secret_digest = $1")
                .bind(secret::digest(cookie))
                .fetch_optional(&self.pool)
                .await?;
        match id {
            Some(id) => self.session_by_id(&id, idle, now).await,
            None => Ok(None),
        }
    }

    /// The session if it is alive. Counts as a use.
    pub(super) async fn session_by_id(
        &self,
        id: &str,
        idle: Duration,
        now: Timestamp,
    ) -> Result<Option<Session>, StoreError> {
        let row: Option<SessionRow> = sqlx::query_as(
            "SELECT s.id AS sid, s.method, s.auth_time, s.amr, s.acr,
                    s.created_at AS session_created_at, s.used_at, s.expires_at, s.ended_at,
                    p.id, p.name, p.email, p.groups, p.disabled_at
             FROM sessions s JOIN people p ON p.id = s.person_id WHERE s.id = $1",
        )
        .bind(id)
        .fetch_optional(&self.pool)
        .await?;
        let Some(row) = row else { return Ok(None) };
        let touch = row.is_touch(now);
        let session = row.alive(idle, now)?;
        if touch && session.is_some() {
            sqlx::query("UPDATE sessions SET used_at = $1 WHERE id = $2 AND used_at < $1")
                .bind(now.as_second())
                .bind(id)
                .execute(&self.pool)
                .await?;
        }
        Ok(session)
    }

    /// Notes where the session begins: people are shown it, and signing out ends all that began in the
    /// same browser.
    pub async fn place_session(&self, id: &str, whence: &Whence) -> Result<(), StoreError> {
        sqlx::query("UPDATE sessions SET browser = $1, address = $2, agent = $3 WHERE id = $4")
            .bind(&whence.browser)
            .bind(whence.address.to_string())
            .bind(&whence.agent)
            .bind(id)
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// Ends the session and withdraws what was issued in it.
    pub async fn end_session(&self, id: &str, now: Timestamp) -> Result<(), StoreError> {
        let mut tx = self.write().await?;
        end(&mut tx, id, now).await?;
        tx.commit().await?;
        Ok(())
    }

    /// The same, for all sessions that began or were approved in the browser of that one.
    pub async fn end_browser(&self, id: &str, now: Timestamp) -> Result<(), StoreError> {
        let mut tx = self.write().await?;
        // First, and by itself: a device that is being let in holds this row until it is done, and
        // what it began is seen after that.
        end(&mut tx, id, now).await?;
        for statement in [
            "UPDATE sessions SET ended_at = $1 WHERE ended_at IS NULL
             AND browser = (SELECT browser FROM sessions WHERE id = $2)",
            "UPDATE grants SET revoked_at = $1 WHERE revoked_at IS NULL AND session_id IN
             (SELECT id FROM sessions WHERE browser = (SELECT browser FROM sessions WHERE id = $2))",
        ] {
            sqlx::query(statement).bind(now.as_second()).bind(id).execute(&mut *tx).await?;
        }
        tx.commit().await?;
        Ok(())
    }

    /// The same for a session of that person: false when they have none of that id.
    pub async fn end_own_session(
        &self,
        subject: &str,
        id: &str,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let mut tx = self.write().await?;
        let done = sqlx::query(
            "UPDATE sessions SET ended_at = $1 WHERE id = $2 AND person_id = $3 AND ended_at IS NULL",
        )
        .bind(now.as_second())
        .bind(id)
        .bind(subject)
        .execute(&mut *tx)
        .await?;
        if done.rows_affected() == 0 {
            return Ok(false);
        }
        end(&mut tx, id, now).await?;
        tx.commit().await?;
        Ok(true)
    }

    /// Ends all sessions of the person but that one.
    pub async fn end_other_sessions(
        &self,
        subject: &str,
        id: &str,
        now: Timestamp,
    ) -> Result<u64, StoreError> {
        let mut tx = self.write().await?;
        let run = async |tx: &mut Transaction<'static, Any>, statement: &'static str| {
            let query = sqlx::query(statement).bind(now.as_second()).bind(subject).bind(id);
            Ok::<_, StoreError>(query.execute(&mut **tx).await?.rows_affected())
        };
        let ended = run(
            &mut tx,
            "UPDATE sessions SET ended_at = $1
             WHERE ended_at IS NULL AND person_id = $2 AND id <> $3",
        )
        .await?;
        run(
            &mut tx,
            "UPDATE grants SET revoked_at = $1 WHERE revoked_at IS NULL AND session_id IN
             (SELECT id FROM sessions WHERE person_id = $2 AND id <> $3)",
        )
        .await?;
        tx.commit().await?;
        Ok(ended)
    }
}

pub(super) async fn end(
    tx: &mut Transaction<'static, Any>,
    id: &str,
    now: Timestamp,
) -> Result<(), StoreError> {
    for statement in [
        "UPDATE sessions SET ended_at = coalesce(ended_at, $1) WHERE id = $2",
        "UPDATE grants SET revoked_at = coalesce(revoked_at, $1) WHERE session_id = $2",
    ] {
        sqlx::query(statement).bind(now.as_second()).bind(id).execute(&mut **tx).await?;
    }
    Ok(())
}
