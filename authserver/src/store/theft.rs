//! What has to be replaced when somebody has a copy of the database.

use jiff::Timestamp;
use serde::Serialize;
use sqlx::{Any, Transaction};

use super::{Store, StoreError};

/// What was replaced, and what ended by it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Replaced {
    /// The key that signs from now on.
    pub kid: String,
    /// Signing keys that are gone.
    pub keys: u64,
    pub personal_tokens: u64,
    /// Sign-ins that were under way at other providers.
    pub sign_ins: u64,
    /// Devices that waited for somebody to approve them.
    pub devices: u64,
}

impl Store {
    /// After a theft of the signing keys alone: a new one signs from now on, and what any other one
    /// signed is void.
    pub async fn replace_keys(&self, now: Timestamp) -> Result<String, StoreError> {
        let (kid, private_key) = self.new_key().await?;
        let mut tx = self.change_keys().await?;
        self.check_master_key(&mut tx).await?;
        replace_in(&mut tx, &kid, &private_key, now).await?;
        tx.commit().await?;
        Ok(kid)
    }

    /// After a theft of the database: new signing keys, and new secrets in place of all that are in it.
    /// Sessions go on, for no cookie and no refresh token can be had from their digests.
    pub async fn replace_all(&self, now: Timestamp) -> Result<Replaced, StoreError> {
        let (tx, replaced) = self.try_to_replace_all(now).await?;
        tx.commit().await?;
        Ok(replaced)
    }

    /// What that would do.
    pub async fn would_replace(&self, now: Timestamp) -> Result<Replaced, StoreError> {
        let (tx, replaced) = self.try_to_replace_all(now).await?;
        tx.rollback().await?;
        Ok(replaced)
    }

    async fn try_to_replace_all(
        &self,
        now: Timestamp,
    ) -> Result<(Transaction<'static, Any>, Replaced), StoreError> {
        let (kid, private_key) = self.new_key().await?;
        let mut tx = self.change_keys().await?;
        self.check_master_key(&mut tx).await?;
        let (keys, personal_tokens) = replace_in(&mut tx, &kid, &private_key, now).await?;
        self.replace_secrets(&mut tx, now).await?;
        // Gateways are told of the new authority.
        sqlx::query("UPDATE feeds SET version = version + 1 WHERE name = 'ssh-keys'")
            .execute(&mut *tx)
            .await?;
        // Their nonces and verifiers are made with the secret of before.
        let sign_ins = sqlx::query("DELETE FROM upstream_requests").execute(&mut *tx).await?;
        // What people type is short enough to be guessed from its digest.
        let devices =
            sqlx::query("DELETE FROM devices WHERE decision = 'pending'").execute(&mut *tx).await?;
        let replaced = Replaced {
            kid,
            keys,
            personal_tokens,
            sign_ins: sign_ins.rows_affected(),
            devices: devices.rows_affected(),
        };
        Ok((tx, replaced))
    }
}

/// How many keys are gone, and how many tokens with them that people were shown as good.
async fn replace_in(
    tx: &mut Transaction<'static, Any>,
    kid: &str,
    private_key: &[u8],
    now: Timestamp,
) -> Result<(u64, u64), StoreError> {
    let gone = sqlx::query("DELETE FROM token_keys").execute(&mut **tx).await?;
    Store::insert_key(tx, kid, private_key, now, now).await?;
    let void = sqlx::query(
        "UPDATE personal_tokens SET revoked_at = $1 WHERE revoked_at IS NULL AND expires_at > $1",
    )
    .bind(now.as_second())
    .execute(&mut **tx)
    .await?;
    Ok((gone.rows_affected(), void.rows_affected()))
}
