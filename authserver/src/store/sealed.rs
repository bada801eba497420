//! What is sealed with the master key: the private signing keys, and the server's secrets.

use serde::Serialize;
use sqlx::{AnyConnection, Connection as _, Executor as _, FromRow};
use zeroize::Zeroizing;

use super::{Dialect, Store, StoreError};
use crate::{
    master_key::{Under, is_sealed},
    signing::SigningError,
};

/// What the sealed form of a signing key is bound to.
pub(super) fn key_label(kid: &str) -> String {
    format!("token key {kid}")
}

/// The same for a secret.
pub(super) fn secret_label(name: &str) -> String {
    format!("secret {name}")
}

#[derive(Debug, Clone, Copy)]
enum Table {
    Keys,
    Secrets,
}

impl Table {
    const ALL: [Self; 2] = [Self::Keys, Self::Secrets];

    fn label(self, name: &str) -> String {
        match self {
            Self::Keys => key_label(name),
            Self::Secrets => secret_label(name),
        }
    }

    async fn rows(self, connection: &mut AnyConnection) -> Result<Vec<Row>, StoreError> {
        let read = match self {
            Self::Keys => "SELECT kid AS name, private_key AS kept FROM token_keys ORDER BY kid",
            Self::Secrets => "SELECT name, secret AS kept FROM server_secrets ORDER BY name",
        };
        Ok(sqlx::query_as(read).fetch_all(connection).await?)
    }

    fn write(self) -> &'static str {
        match self {
            Self::Keys => "UPDATE token_keys SET private_key = $1 WHERE kid = $2",
            Self::Secrets => "UPDATE server_secrets SET secret = $1 WHERE name = $2",
        }
    }
}

#[derive(FromRow)]
struct Row {
    name: String,
    kept: Vec<u8>,
}

/// How many were sealed anew.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Resealed {
    pub keys: u64,
    pub secrets: u64,
    /// Those that were under the current master key before.
    pub unchanged: u64,
}

/// A secret of the server's own as it is listed.
#[derive(Debug, Clone, Serialize)]
pub struct SecretEntry {
    pub secret: String,
    pub sealed: bool,
    pub under: Under,
}

impl Store {
    pub(super) fn seal(&self, label: &str, plain: &[u8]) -> Result<Vec<u8>, StoreError> {
        self.master_keys.seal(label, plain).ok_or(SigningError::Generate.into())
    }

    pub(super) fn unseal(
        &self,
        label: &str,
        kept: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, StoreError> {
        match self.master_keys.open(label, kept) {
            Some((_, plain)) => Ok(plain),
            None if self.master_keys.is_empty() => Err(StoreError::NoMasterKey),
            None => Err(StoreError::WrongMasterKey(label.to_owned())),
        }
    }

    pub async fn list_secrets(&self) -> Result<Vec<SecretEntry>, StoreError> {
        let mut connection = self.pool.acquire().await?;
        let rows = Table::Secrets.rows(&mut connection).await?;
        let entry = |Row { name, kept }: Row| SecretEntry {
            sealed: is_sealed(&kept),
            under: self.master_keys.under(&secret_label(&name), &kept),
            secret: name,
        };
        Ok(rows.into_iter().map(entry).collect())
    }

    /// Refuses where something is sealed that the keys at hand do not open, or would not be sealed
    /// again: what is written then could be read by no server, or by everybody.
    pub(super) async fn check_master_key(
        &self,
        connection: &mut AnyConnection,
    ) -> Result<(), StoreError> {
        for table in Table::ALL {
            for Row { name, kept } in table.rows(connection).await? {
                self.unseal(&table.label(&name), &kept)?;
                if is_sealed(&kept) && self.master_keys.current.is_none() {
                    return Err(StoreError::NoMasterKey);
                }
            }
        }
        Ok(())
    }

    /// Seals everything under the current master key, all of it or nothing.
    pub async fn reseal(&self) -> Result<Resealed, StoreError> {
        if self.master_keys.current.is_none() {
            return Err(StoreError::Invalid(
                "there is no master key to seal with; name it with master_key_file, or --master-key-file",
            ));
        }
        self.reseal_all(false).await
    }

    /// Seals what was kept in the clear before there was a master key.
    pub(super) async fn seal_all(&self) -> Result<(), StoreError> {
        if self.master_keys.current.is_none() {
            return Ok(());
        }
        let mut connection = self.pool.acquire().await?;
        let mut clear = false;
        for table in Table::ALL {
            let rows = table.rows(&mut connection).await?;
            clear |= rows.iter().any(|row| !is_sealed(&row.kept));
        }
        drop(connection);
        if clear {
            self.reseal_all(true).await?;
        }
        Ok(())
    }

    async fn reseal_all(&self, clear_only: bool) -> Result<Resealed, StoreError> {
        let mut connection = self.pool.acquire().await?;
        let sqlite = self.dialect == Dialect::Sqlite;
        if sqlite {
            // Writes over what it frees; copies in unused space of other pages go with a VACUUM alone.
            connection.execute("PRAGMA secure_delete = ON").await?;
        }
        let begin = self.dialect.pick("BEGIN IMMEDIATE", "BEGIN");
        let mut tx = connection.begin_with(begin).await?;
        // First, for it is the lock of whoever changes keys.
        sqlx::query("UPDATE feeds SET version = version WHERE name = 'token-keys'")
            .execute(&mut *tx)
            .await?;
        let mut done = Resealed::default();
        for table in Table::ALL {
            for Row { name, kept } in table.rows(&mut tx).await? {
                let label = table.label(&name);
                if self.master_keys.under(&label, &kept) == Under::Current
                    || (clear_only && is_sealed(&kept))
                {
                    done.unchanged += 1;
                    continue;
                }
                let plain = self.unseal(&label, &kept)?;
                sqlx::query(table.write())
                    .bind(self.seal(&label, &plain)?)
                    .bind(name)
                    .execute(&mut *tx)
                    .await?;
                match table {
                    Table::Keys => done.keys += 1,
                    Table::Secrets => done.secrets += 1,
                }
            }
        }
        tx.commit().await?;
        if sqlite {
            // It is done. As far as nobody reads at this moment; else the journal is written over soon.
            let _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").await;
            let _ = connection.execute("PRAGMA secure_delete = OFF").await;
        }
        Ok(done)
    }
}
