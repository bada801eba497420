//! Withdrawing single tokens (RFC 7009).

use jiff::Timestamp;

use super::{Store, StoreError, refresh_token::Place, rotation::OF_OLD_TOKEN};
use crate::secret::digest;

impl Store {
    /// Withdraws an access token of a person or of a service account.
    pub async fn revoke_access_token(&self, jti: &str, now: Timestamp) -> Result<(), StoreError> {
        if let Some(place) = Place::of_jti(jti) {
            sqlx::query(
                "UPDATE refresh_tokens SET access_revoked_at = coalesce(access_revoked_at, $1)
                 WHERE grant_id = $2 AND generation = $3 AND access_expires_at IS NOT NULL",
            )
            .bind(now.as_second())
            .bind(place.grant_id)
            .bind(place.generation)
            .execute(&self.pool)
            .await?;
            return Ok(());
        }
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
        let query = match Place::of_jti(jti) {
            Some(place) => sqlx::query_scalar(
                "SELECT grant_id FROM refresh_tokens
                 WHERE grant_id = $1 AND generation = $2
                 AND access_expires_at IS NOT NULL AND access_revoked_at IS NULL",
            )
            .bind(place.grant_id)
            .bind(place.generation),
            None => sqlx::query_scalar(
                "SELECT grant_id FROM access_tokens WHERE jti = $1 AND revoked_at IS NULL",
            )
            .bind(jti.to_owned()),
        };
        Ok(query.fetch_optional(&self.pool).await?)
    }

    /// The grant of a refresh token that is known.
    async fn refresh_token_grant(&self, token: &str) -> Result<Option<String>, StoreError> {
        let Some(place) = Place::of_token(token) else {
            let query = sqlx::query_as(OF_OLD_TOKEN).bind(digest(token));
            let found: Option<(String, i64)> = query.fetch_optional(&self.pool).await?;
            return Ok(found.map(|(grant, _)| grant));
        };
        Ok(sqlx::query_scalar(
            "SELECT grant_id FROM refresh_tokens
             WHERE grant_id = $1 AND generation = $2 AND digest = $3",
        )
        .bind(place.grant_id)
        .bind(place.generation)
        .bind(digest(token))
        .fetch_optional(&self.pool)
        .await?)
    }

    /// The client that a refresh token was given to.
    pub async fn refresh_token_client(&self, token: &str) -> Result<Option<String>, StoreError> {
        let Some(grant) = self.refresh_token_grant(token).await? else { return Ok(None) };
        Ok(sqlx::query_scalar("SELECT client_id FROM grants WHERE id = $1")
            .bind(grant)
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
        let Some(grant) = self.refresh_token_grant(token).await? else { return Ok(()) };
        sqlx::query("UPDATE grants SET revoked_at = coalesce(revoked_at, $1) WHERE id = $2")
            .bind(now.as_second())
            .bind(grant)
            .execute(&self.pool)
            .await?;
        Ok(())
    }
}
