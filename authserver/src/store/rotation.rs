//! Refresh tokens that change with each use (RFC 9700, section 2.2.2).
//!
//! The successor of a token is derived from it with a key of the server's own, so whoever presents
//! the same token again is given the same successor: by any replica, and after a crash that lost the
//! first answer. A token is thus exchanged once, however often it is asked for, and nothing that
//! could be presented has to be stored.

use std::time::Duration;

use jiff::Timestamp;
use sqlx::FromRow;

use super::{RedeemError, Redeemed, Store, StoreError};
use crate::secret::{Secret, digest};

/// How long after its first use a token may come again, in seconds: from another tab, or because
/// the answer was lost. Later it comes from somebody who should not have it.
const REUSE_WINDOW: i64 = 60;

/// How long exchanged tokens are remembered, in seconds: until then their use ends the family.
/// Afterwards they are not known, and refused as such.
pub(super) const REMEMBERED: i64 = 24 * 3600;

#[derive(FromRow)]
struct Row {
    grant_id: String,
    session_id: String,
    client_id: String,
    scope: String,
    revoked_at: Option<i64>,
    rotated_at: Option<i64>,
}

impl Store {
    /// Exchanges a refresh token for its successor. It is good for as long as its session lives.
    pub async fn redeem_refresh_token(
        &self,
        token: &str,
        client_id: &str,
        idle: Duration,
        now: Timestamp,
    ) -> Result<Redeemed, RedeemError> {
        let row = self.refresh_token(token).await?.ok_or(RedeemError::Unknown)?;
        if row.client_id != client_id {
            return Err(RedeemError::ForeignClient);
        }
        if row.revoked_at.is_some() {
            return Err(RedeemError::SessionOver);
        }
        let late = |rotated_at: Option<i64>| {
            // Replicas' clocks differ: a use that lies ahead is as good as now.
            rotated_at.is_some_and(|at| now.as_second().saturating_sub(at) > REUSE_WINDOW)
        };
        if late(row.rotated_at) {
            self.revoke_family(&row, now).await?;
            let session = self.session_by_id(&row.session_id, idle, now).await?;
            return Err(RedeemError::Reused(session.map(|session| session.person.name)));
        }
        let session = self.session_by_id(&row.session_id, idle, now).await?;
        let session = session.ok_or(RedeemError::SessionOver)?;
        let successor = Secret::derived(self.refresh_key().await?, token);
        if row.rotated_at.is_none() {
            self.rotate(token, &row.grant_id, &successor, now).await?;
        }
        let Row { grant_id, scope, .. } = row;
        Ok(Redeemed { grant_id, session, scope, nonce: None, refresh_token: Some(successor) })
    }

    async fn refresh_token(&self, token: &str) -> Result<Option<Row>, StoreError> {
        Ok(sqlx::query_as(
            "SELECT r.grant_id, g.session_id, g.client_id, g.scope, g.revoked_at, r.rotated_at
             FROM refresh_tokens r JOIN grants g ON g.id = r.grant_id WHERE r.digest = $1",
        )
        .bind(digest(token))
        .fetch_optional(&self.pool)
        .await?)
    }

    /// Of several that do this at once one writes; the others wait for it, and find it done.
    async fn rotate(
        &self,
        token: &str,
        grant_id: &str,
        successor: &Secret,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let mut tx = self.write().await?;
        let first = sqlx::query(
            "UPDATE refresh_tokens SET rotated_at = $1 WHERE digest = $2 AND rotated_at IS NULL",
        )
        .bind(now.as_second())
        .bind(digest(token))
        .execute(&mut *tx)
        .await?
        .rows_affected()
            == 1;
        if first {
            sqlx::query(
                "INSERT INTO refresh_tokens (digest, grant_id, created_at) VALUES ($1, $2, $3)
                 ON CONFLICT DO NOTHING",
            )
            .bind(successor.digest())
            .bind(grant_id)
            .bind(now.as_second())
            .execute(&mut *tx)
            .await?;
        }
        tx.commit().await?;
        Ok(())
    }

    async fn revoke_family(&self, row: &Row, now: Timestamp) -> Result<(), StoreError> {
        let mut tx = self.write().await?;
        for statement in [
            "UPDATE grants SET revoked_at = coalesce(revoked_at, $1) WHERE id = $2",
            "UPDATE access_tokens SET revoked_at = coalesce(revoked_at, $1) WHERE grant_id = $2",
        ] {
            sqlx::query(statement)
                .bind(now.as_second())
                .bind(&row.grant_id)
                .execute(&mut *tx)
                .await?;
        }
        tx.commit().await?;
        Ok(())
    }
}
