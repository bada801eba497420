//! Secrets that never leave the server: 256 bits each, the same for all replicas.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use aws_lc_rs::hmac;
use jiff::Timestamp;
use sqlx::{AnyConnection, FromRow};
use tokio::sync::Mutex;
use zeroize::Zeroizing;

use super::{RefreshToken, Store, StoreError, rotation::REMEMBERED, sealed::secret_label};
use crate::{
    secret::{Sealer, random, same},
    ssh_authority::SshAuthority,
};

const SEAL: &str = "seal";
const REFRESH: &str = "refresh";
const SSH_AUTHORITY: &str = "ssh-authority";

/// Before the second until which a key of before is kept.
const REFRESH_UNTIL: &str = "refresh-until-";

/// The keys that derive refresh tokens from their predecessors.
#[derive(Debug)]
pub(super) struct RefreshKeys {
    current: hmac::Key,
    /// Of before a change: whoever repeats an exchange of then gets the answer of then. They are of no
    /// use without a token.
    earlier: Vec<hmac::Key>,
}

impl RefreshKeys {
    pub fn successor(&self, token: &str) -> RefreshToken {
        RefreshToken::successor(&self.current, token)
    }

    /// The successor that the token has already, of which the digest is known. None when another key
    /// made it.
    pub fn successor_again(&self, token: &str, digest: &[u8]) -> Option<RefreshToken> {
        std::iter::once(&self.current)
            .chain(&self.earlier)
            .map(|key| RefreshToken::successor(key, token))
            .find(|successor| same(&successor.digest(), digest))
    }
}

/// The keys as they were read last.
#[derive(Debug, Default)]
pub(super) struct KnownRefreshKeys {
    keys: ArcSwapOption<RefreshKeys>,
    /// One reads at a time, so that what was read first is not kept last.
    reading: Mutex<()>,
}

#[derive(FromRow)]
struct Row {
    name: String,
    secret: Vec<u8>,
}

impl Row {
    /// The end of a key of before.
    fn until(&self) -> Option<i64> {
        self.name.strip_prefix(REFRESH_UNTIL)?.parse().ok()
    }
}

impl Store {
    /// The key of tickets and device cookies.
    pub async fn sealer(&self) -> Result<Sealer, StoreError> {
        Ok(Sealer::new(&self.server_secret(SEAL).await?))
    }

    /// The key that signs certificates. Read for each, so that none is signed with a key of before.
    pub async fn ssh_authority(&self) -> Result<SshAuthority, StoreError> {
        authority(&self.server_secret(SSH_AUTHORITY).await?)
    }

    /// Its public key as of the transaction, once it has been made.
    pub(super) async fn ssh_authority_in(
        &self,
        connection: &mut AnyConnection,
    ) -> Result<Option<String>, StoreError> {
        let seed = self.find_secret(connection, SSH_AUTHORITY).await?;
        seed.map(|seed| Ok(authority(&seed)?.public_key())).transpose()
    }

    pub(super) async fn refresh_keys(&self) -> Result<Arc<RefreshKeys>, StoreError> {
        match self.refresh_keys.keys.load_full() {
            Some(keys) => Ok(keys),
            None => self.read_refresh_keys().await,
        }
    }

    /// Takes over keys that somebody else has replaced.
    pub(crate) async fn check_refresh_keys(&self) -> Result<(), StoreError> {
        self.read_refresh_keys().await.map(|_| ())
    }

    /// As they are now.
    pub(super) async fn read_refresh_keys(&self) -> Result<Arc<RefreshKeys>, StoreError> {
        let _reading = self.refresh_keys.reading.lock().await;
        let key = |secret: &[u8]| hmac::Key::new(hmac::HMAC_SHA256, secret);
        // First: what it is replaced by meanwhile leaves it among those of before.
        let current = key(&self.server_secret(REFRESH).await?);
        let mut connection = self.pool.acquire().await?;
        let mut earlier = Vec::new();
        for row in rows_of_before(&mut connection).await? {
            earlier.push(key(&self.unseal(&secret_label(&row.name), &row.secret)?));
        }
        let keys = Arc::new(RefreshKeys { current, earlier });
        self.refresh_keys.keys.store(Some(keys.clone()));
        Ok(keys)
    }

    /// New secrets in place of all that a thief could use. What names the feed of revocations
    /// (`revocation-epoch`) is told to gateways, and no secret to them.
    pub(super) async fn replace_secrets(
        &self,
        connection: &mut AnyConnection,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        if let Some(before) = self.find_secret(connection, REFRESH).await? {
            let until = now.as_second().saturating_add(REMEMBERED);
            // A second change within a second: one of the two is enough to find, and both are kept.
            let mut name = format!("{REFRESH_UNTIL}{until}");
            while self.find_secret(connection, &name).await?.is_some() {
                name = format!("{REFRESH_UNTIL}0{}", name.trim_start_matches(REFRESH_UNTIL));
            }
            self.put_secret(connection, &name, &before).await?;
        }
        for name in [SEAL, REFRESH, SSH_AUTHORITY] {
            self.put_secret(connection, name, &Zeroizing::new(random().to_vec())).await?;
        }
        Ok(())
    }

    /// Forgets keys of before that nobody asks for any more.
    pub(super) async fn clean_up_secrets(&self, now: i64) -> Result<(), StoreError> {
        let mut connection = self.pool.acquire().await?;
        let rows = rows_of_before(&mut connection).await?;
        for row in rows.iter().filter(|row| row.until().is_some_and(|until| until < now)) {
            sqlx::query("DELETE FROM server_secrets WHERE name = $1")
                .bind(&row.name)
                .execute(&mut *connection)
                .await?;
        }
        Ok(())
    }

    /// The secret of that name, made at the first use. All replicas get the same.
    pub(super) async fn server_secret(&self, name: &str) -> Result<Zeroizing<Vec<u8>>, StoreError> {
        let mut connection = self.pool.acquire().await?;
        if let Some(secret) = self.find_secret(&mut connection, name).await? {
            return Ok(secret);
        }
        sqlx::query(
            "INSERT INTO server_secrets (name, secret) VALUES ($1, $2) ON CONFLICT DO NOTHING",
        )
        .bind(name)
        .bind(self.seal(&secret_label(name), &random())?)
        .execute(&mut *connection)
        .await?;
        let made = self.find_secret(&mut connection, name).await?;
        made.ok_or(StoreError::Damaged("the server's secrets"))
    }

    async fn find_secret(
        &self,
        connection: &mut AnyConnection,
        name: &str,
    ) -> Result<Option<Zeroizing<Vec<u8>>>, StoreError> {
        let secret: Option<Vec<u8>> =
            sqlx::query_scalar("SELECT secret FROM server_secrets WHERE name = $1")
                .bind(name)
                .fetch_optional(connection)
                .await?;
        secret.map(|secret| self.unseal(&secret_label(name), &secret)).transpose()
    }

    async fn put_secret(
        &self,
        connection: &mut AnyConnection,
        name: &str,
        secret: &[u8],
    ) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO server_secrets (name, secret) VALUES ($1, $2)
             ON CONFLICT (name) DO UPDATE SET secret = excluded.secret",
        )
        .bind(name)
        .bind(self.seal(&secret_label(name), secret)?)
        .execute(connection)
        .await?;
        Ok(())
    }
}

fn authority(seed: &[u8]) -> Result<SshAuthority, StoreError> {
    SshAuthority::from_seed(seed).ok_or(StoreError::Damaged("the SSH authority's key"))
}

async fn rows_of_before(connection: &mut AnyConnection) -> Result<Vec<Row>, StoreError> {
    Ok(sqlx::query_as("SELECT name, secret FROM server_secrets WHERE name LIKE 'refresh-until-%'")
        .fetch_all(connection)
        .await?)
}
