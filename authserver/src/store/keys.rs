//! The server's own keys.

use aws_lc_rs::hmac;
use jiff::Timestamp;

use super::{Store, StoreError};
use crate::{
    secret::{Sealer, random},
    signing::{KeyRing, KeyState, SigningError, SigningKey},
};

impl Store {
    /// Makes the first signing key. Of several servers that start at once, one wins.
    pub(super) async fn ensure_signing_key(&self, now: Timestamp) -> Result<(), StoreError> {
        let active: Option<String> =
            sqlx::query_scalar("SELECT kid FROM signing_keys WHERE state = 'active'")
                .fetch_optional(&self.pool)
                .await?;
        if active.is_some() {
            return Ok(());
        }
        let (kid, private_key) = tokio::task::spawn_blocking(SigningKey::generate)
            .await
            .map_err(|_| SigningError::Generate)??;
        sqlx::query(
            "INSERT INTO signing_keys (kid, state, private_key, created_at)
             SELECT $1, 'active', $2, $3
             WHERE NOT EXISTS (SELECT 1 FROM signing_keys WHERE state = 'active')
             ON CONFLICT DO NOTHING",
        )
        .bind(kid)
        .bind(private_key)
        .bind(now.as_second())
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// All keys that are published, the oldest first.
    pub async fn key_ring(&self) -> Result<KeyRing, StoreError> {
        let rows: Vec<(String, String, Vec<u8>)> = sqlx::query_as(
            "SELECT kid, state, private_key FROM signing_keys ORDER BY created_at, kid",
        )
        .fetch_all(&self.pool)
        .await?;
        let mut keys = Vec::with_capacity(rows.len());
        for (kid, state, private_key) in rows {
            let key = KeyState::parse(&state)
                .and_then(|state| SigningKey::from_pkcs8(state, &private_key))
                .filter(|key| key.kid == kid)
                .ok_or(SigningError::Damaged(kid))?;
            keys.push(key);
        }
        Ok(KeyRing::new(keys)?)
    }

    /// The key of tickets and device cookies.
    pub async fn sealer(&self) -> Result<Sealer, StoreError> {
        Ok(Sealer::new(&self.server_secret("seal").await?))
    }

    /// The key that derives refresh tokens from their predecessors.
    pub(super) async fn load_refresh_key(&self) -> Result<hmac::Key, StoreError> {
        Ok(hmac::Key::new(hmac::HMAC_SHA256, &self.server_secret("refresh").await?))
    }

    /// 256 bits under that name, made at the first start. All replicas get the same.
    async fn server_secret(&self, name: &str) -> Result<Vec<u8>, StoreError> {
        sqlx::query(
            "INSERT INTO server_secrets (name, secret) VALUES ($1, $2) ON CONFLICT DO NOTHING",
        )
        .bind(name)
        .bind(random().to_vec())
        .execute(&self.pool)
        .await?;
        Ok(sqlx::query_scalar("SELECT secret FROM server_secrets WHERE name = $1")
            .bind(name)
            .fetch_one(&self.pool)
            .await?)
    }
}
