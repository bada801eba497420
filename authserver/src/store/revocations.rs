//! The feed of what was withdrawn before it expired. Rows are written by the database's triggers.

use jiff::Timestamp;
use serde::Serialize;
use sqlx::{FromRow, postgres::PgListener};
use tokio::sync::watch;

use super::{Store, StoreError};
use crate::secret::hex;

/// The newest row is never deleted, so this never goes back.
const VERSION: &str = "SELECT coalesce(max(version), 0) FROM revocations";

/// What is notified in PostgreSQL.
const CHANNEL: &str = "dormouse_revocations";

/// One thing that is withdrawn.
#[derive(Debug, Clone, PartialEq, Eq, FromRow, Serialize)]
pub struct Revocation {
    #[serde(skip)]
    pub version: i64,
    /// `session` or `token`.
    pub kind: String,
    /// `sid` or `jti`.
    pub id: String,
    /// Seconds since the epoch: from then on it need not be remembered.
    pub expires_at: i64,
}

impl Store {
    /// Names this database's feed: versions of another one mean nothing here.
    pub async fn revocation_epoch(&self) -> Result<String, StoreError> {
        let secret = self.server_secret("revocation-epoch").await?;
        Ok(hex(secret.get(..8).unwrap_or_default()))
    }

    pub async fn revocation_version(&self) -> Result<i64, StoreError> {
        Ok(sqlx::query_scalar(VERSION).fetch_one(&self.pool).await?)
    }

    /// All that matters still, and the version that it is.
    pub async fn revocations(&self, now: Timestamp) -> Result<(i64, Vec<Revocation>), StoreError> {
        let mut tx = self.snapshot().await?;
        let version = sqlx::query_scalar(VERSION).fetch_one(&mut *tx).await?;
        let rows = sqlx::query_as(
            "SELECT version, kind, id, expires_at FROM revocations WHERE expires_at > $1",
        )
        .bind(now.as_second())
        .fetch_all(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok((version, rows))
    }

    /// What came after that version, in order, at most `limit`.
    pub async fn revocations_after(
        &self,
        version: i64,
        limit: i64,
    ) -> Result<Vec<Revocation>, StoreError> {
        Ok(sqlx::query_as(
            "SELECT version, kind, id, expires_at FROM revocations
             WHERE version > $1 ORDER BY version LIMIT $2",
        )
        .bind(version)
        .bind(limit)
        .fetch_all(&self.pool)
        .await?)
    }

    /// Sets the watch as PostgreSQL tells of new versions, until the connection breaks. Does not
    /// return for SQLite, which tells nobody.
    pub async fn listen_for_revocations(
        &self,
        versions: &watch::Sender<i64>,
    ) -> Result<(), StoreError> {
        let Some(url) = &self.listen_to else { return std::future::pending().await };
        let mut listener = PgListener::connect(url.as_str()).await?;
        listener.listen(CHANNEL).await?;
        // What happened before we listened.
        advance(versions, self.revocation_version().await?);
        loop {
            // Also `None`, after a lost connection: something may have been missed.
            listener.try_recv().await?;
            advance(versions, self.revocation_version().await?);
        }
    }
}

/// Never goes back: reads come from different connections.
pub(crate) fn advance(versions: &watch::Sender<i64>, version: i64) {
    versions.send_if_modified(|known| {
        let newer = version > *known;
        *known = version.max(*known);
        newer
    });
}
