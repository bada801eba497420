//! Withdrawing single tokens (RFC 7009).

use jiff::Timestamp;

use super::{Store, StoreError};
use crate::secret::digest;

impl Store {
    /// Withdraws an access token of a person or of a service account.
    pub async fn revoke_access_token(&self, jti: &str, now: Timestamp) -> Result<(), StoreError> {
        for statement in [
            "UPDATE access_tokens SET revoked_at = coalesce(revoked_at, $1) WHERE jti = $2",
            "UPDATE service_tokens SET revoked_at = coalesce(revoked_at, $1) WHERE jti = $2",
        ] {
            sqlx::query(statement).bind(now.as_second()).bind(jti).execute(&self.pool).await?;
        }
        Ok(())
    }

    /// The grant of an access token that is not withdrawn.
    pub async fn access_token_grant(&self, jti: &str) -> Result<Option<String>, StoreError> {
        Ok(sqlx::query_scalar(
            "SELECT grant_id FROM access_tokens WHERE jti = $1 AND revoked_at IS NULL",
        )
        .bind(jti)
        .fetch_optional(&self.pool)
        .await?)
    }

    /// The client that a refresh token was given to.
    pub async fn refresh_token_client(&self, token: &str) -> Result<Option<String>, StoreError> {
        Ok(sqlx::query_scalar(
            "SELECT g.client_id FROM refresh_tokens r JOIN grants g ON g.id = r.grant_id
             WHERE r.digest = $1",
        )
        .bind(digest(token))
        .fetch_optional(&self.pool)
        .await?)
    }

    /// Withdraws a refresh token's grant, and the access tokens that came of it (RFC 7009,
    /// section 2.1).
    pub async fn revoke_refresh_token(
        &self,
        token: &str,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let mut tx = self.write().await?;
        for statement in [
            "UPDATE grants SET revoked_at = coalesce(revoked_at, $1)
             WHERE id = (SELECT grant_id FROM refresh_tokens WHERE digest = $2)",
            "UPDATE access_tokens SET revoked_at = coalesce(revoked_at, $1)
             WHERE grant_id = (SELECT grant_id FROM refresh_tokens WHERE digest = $2)",
        ] {
            sqlx::query(statement)
                .bind(now.as_second())
                .bind(digest(token))
                .execute(&mut *tx)
                .await?;
        }
        tx.commit().await?;
        Ok(())
    }
}
