//! Everything that is kept, in SQLite: durable before it is answered, and safe to open by an
//! operator's command beside the running server.

mod clients;
mod grants;
mod keys;
mod people;
mod personal_tokens;
mod sessions;
mod ssh_keys;

use std::{
    fs::OpenOptions,
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use jiff::Timestamp;
use sqlx::{
    Sqlite, SqlitePool, Transaction,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};

pub use self::{
    grants::{NewCode, RedeemError, Redeemed},
    people::Person,
    personal_tokens::{NewPersonalToken, PersonalToken},
    sessions::Session,
    ssh_keys::SshKey,
};
use crate::{
    password::{PasswordError, Passwords},
    signing::SigningError,
};

/// How long a writer waits for another one, in this process or beside it.
const BUSY: Duration = Duration::from_secs(5);

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("cannot open the database {path}: {source}")]
    Open { path: PathBuf, source: io::Error },
    #[error("the database {path} was written by another version: {source}")]
    Migrate { path: PathBuf, source: sqlx::migrate::MigrateError },
    #[error("the database failed: {0}")]
    Database(#[from] sqlx::Error),
    #[error("the database holds something unreadable: {0}")]
    Damaged(&'static str),
    #[error("there is no person named {0}")]
    NoSuchPerson(String),
    #[error(transparent)]
    Password(#[from] PasswordError),
    #[error(transparent)]
    Signing(#[from] SigningError),
    #[error("{0}")]
    Invalid(&'static str),
    #[error("this SSH key is registered already")]
    KeyTaken,
    #[error("there is a key of this name already")]
    NameTaken,
    #[error("there are {0} already; remove one first")]
    TooMany(&'static str),
}

/// Cheap to clone.
#[derive(Debug, Clone)]
pub struct Store {
    pool: SqlitePool,
    passwords: Passwords,
}

impl Store {
    /// Opens the database file, makes it when it is missing, brings its tables up to date and makes
    /// the first signing key.
    pub async fn open(path: &Path) -> Result<Self, StoreError> {
        // It holds the signing key. SQLite gives its other files the same mode.
        OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(path)
            .map_err(|source| StoreError::Open { path: path.to_owned(), source })?;
        let options = SqliteConnectOptions::new()
            .filename(path)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(BUSY);
        let pool = SqlitePoolOptions::new()
            .max_connections(8)
            .acquire_timeout(BUSY)
            .connect_with(options)
            .await?;
        sqlx::migrate!("migrations/sqlite")
            .run(&pool)
            .await
            .map_err(|source| StoreError::Migrate { path: path.to_owned(), source })?;
        let store = Self { pool, passwords: Passwords::default() };
        store.ensure_signing_key(Timestamp::now()).await?;
        Ok(store)
    }

    /// Waits until all connections are closed; the log is merged into the file.
    pub async fn close(&self) {
        self.pool.close().await;
    }

    /// A transaction that holds the write lock from its start, so that what it reads stays true.
    async fn write(&self) -> Result<Transaction<'static, Sqlite>, StoreError> {
        Ok(self.pool.begin_with("BEGIN IMMEDIATE").await?)
    }

    /// Deletes what can have no effect any more.
    pub async fn clean_up(&self, now: Timestamp, session_idle: Duration) -> Result<(), StoreError> {
        let now = now.as_second();
        let day_ago = now - 24 * 3600;
        let idle = seconds(session_idle);
        let mut tx = self.write().await?;
        sqlx::query("DELETE FROM access_tokens WHERE expires_at < $1")
            .bind(now - 3600)
            .execute(&mut *tx)
            .await?;
        sqlx::query(
            "DELETE FROM sessions WHERE expires_at < $1 OR used_at + $2 < $1 OR ended_at < $1",
        )
        .bind(day_ago)
        .bind(idle)
        .execute(&mut *tx)
        .await?;
        // Codes that nobody came for, with their grants.
        sqlx::query(
            "DELETE FROM grants WHERE created_at < $1 AND NOT EXISTS
             (SELECT 1 FROM refresh_tokens WHERE refresh_tokens.grant_id = grants.id)",
        )
        .bind(now - 3600)
        .execute(&mut *tx)
        .await?;
        sqlx::query("DELETE FROM personal_tokens WHERE expires_at < $1")
            .bind(now - 30 * 24 * 3600)
            .execute(&mut *tx)
            .await?;
        tx.commit().await?;
        Ok(())
    }
}

/// Seconds for the database; what does not fit is forever.
pub(crate) fn seconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_secs()).unwrap_or(i64::MAX / 4).min(i64::MAX / 4)
}

fn time(seconds: i64) -> Result<Timestamp, StoreError> {
    Timestamp::from_second(seconds).map_err(|_| StoreError::Damaged("a time"))
}

fn list(json: &str) -> Result<Vec<String>, StoreError> {
    serde_json::from_str(json).map_err(|_| StoreError::Damaged("a list"))
}

fn to_json(list: &[String]) -> String {
    serde_json::Value::from(list.to_vec()).to_string()
}

/// A label that a person gives to a token or a key.
fn check_label(label: &str) -> Result<(), StoreError> {
    let fits = (1..=100).contains(&label.chars().count()) && label.trim() == label;
    if fits && !label.chars().any(char::is_control) {
        Ok(())
    } else {
        Err(StoreError::Invalid("a name has 1 to 100 characters, none of them a control character"))
    }
}
