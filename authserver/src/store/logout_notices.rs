//! Clients that have to be told that a session is over (OpenID Connect Back-Channel Logout 1.0).
//!
//! Found by looking at sessions that ended lately, so that it does not matter who ended them: the
//! person, an operator's command, another replica, or one that died right after.

use std::time::Duration;

use jiff::Timestamp;
use sqlx::FromRow;

use super::{Store, StoreError, seconds};

/// How long after its end a session is still noticed, in seconds.
const LATELY: i64 = 3600;

/// How long one attempt may take before another one is made, in seconds.
const LEASE: i64 = 60;

/// Waits after each attempt, in seconds. After the last one we give up.
const WAITS: [i64; 5] = [5, 30, 120, 600, 1800];

/// Notices that are sent at once.
const BATCH: i64 = 16;

#[derive(Debug, Clone, FromRow)]
pub struct LogoutNotice {
    pub session_id: String,
    pub client_id: String,
    pub subject: String,
    /// Attempts before this one.
    pub tries: i64,
}

impl Store {
    /// Writes down whom to tell about sessions that ended.
    pub async fn find_logout_notices(&self, now: Timestamp) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO logout_notices (session_id, client_id, subject, created_at, next_at)
             SELECT DISTINCT g.session_id, g.client_id, s.person_id, $1, $1
             FROM sessions s JOIN grants g ON g.session_id = s.id JOIN clients c ON c.id = g.client_id
             WHERE s.ended_at > $2 AND c.profile LIKE '%\"back_channel_logout_uri\":\"%'
               AND NOT EXISTS (SELECT 1 FROM logout_notices n
                               WHERE n.session_id = g.session_id AND n.client_id = g.client_id)
             ON CONFLICT DO NOTHING",
        )
        .bind(now.as_second())
        .bind(now.as_second() - LATELY)
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// The same about sessions that nobody ended: those that were idle for too long, or got too old.
    /// Looks at every session, so it is not for each second.
    pub async fn find_notices_of_faded(
        &self,
        idle: Duration,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO logout_notices (session_id, client_id, subject, created_at, next_at)
             SELECT DISTINCT g.session_id, g.client_id, s.person_id, $1, $1
             FROM sessions s JOIN grants g ON g.session_id = s.id JOIN clients c ON c.id = g.client_id
             WHERE s.ended_at IS NULL AND (s.expires_at > $2 AND s.expires_at <= $1
                OR s.used_at + $3 > $2 AND s.used_at + $3 <= $1)
               AND c.profile LIKE '%\"back_channel_logout_uri\":\"%'
               AND NOT EXISTS (SELECT 1 FROM logout_notices n
                               WHERE n.session_id = g.session_id AND n.client_id = g.client_id)
             ON CONFLICT DO NOTHING",
        )
        .bind(now.as_second())
        .bind(now.as_second() - LATELY)
        .bind(seconds(idle))
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Notices whose time has come. Each is somebody's until its lease is over.
    pub async fn take_logout_notices(
        &self,
        now: Timestamp,
    ) -> Result<Vec<LogoutNotice>, StoreError> {
        let due: Vec<LogoutNotice> = sqlx::query_as(
            "SELECT session_id, client_id, subject, tries FROM logout_notices
             WHERE done_at IS NULL AND next_at <= $1 ORDER BY next_at LIMIT $2",
        )
        .bind(now.as_second())
        .bind(BATCH)
        .fetch_all(&self.pool)
        .await?;
        let mut taken = Vec::with_capacity(due.len());
        for notice in due {
            let done = sqlx::query(
                "UPDATE logout_notices SET tries = tries + 1, next_at = $1
                 WHERE session_id = $2 AND client_id = $3 AND tries = $4 AND done_at IS NULL",
            )
            .bind(now.as_second() + LEASE)
            .bind(&notice.session_id)
            .bind(&notice.client_id)
            .bind(notice.tries)
            .execute(&self.pool)
            .await?;
            if done.rows_affected() == 1 {
                taken.push(notice);
            }
        }
        Ok(taken)
    }

    /// False when this was the last attempt and it failed.
    pub async fn settle_logout_notice(
        &self,
        notice: &LogoutNotice,
        delivered: bool,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let wait = usize::try_from(notice.tries).ok().and_then(|tries| WAITS.get(tries));
        let (next_at, done_at) = match (delivered, wait) {
            (false, Some(wait)) => (now.as_second() + wait, None),
            _ => (now.as_second(), Some(now.as_second())),
        };
        sqlx::query(
            "UPDATE logout_notices SET next_at = $1, done_at = $2
             WHERE session_id = $3 AND client_id = $4",
        )
        .bind(next_at)
        .bind(done_at)
        .bind(&notice.session_id)
        .bind(&notice.client_id)
        .execute(&self.pool)
        .await?;
        Ok(delivered || done_at.is_none())
    }
}
