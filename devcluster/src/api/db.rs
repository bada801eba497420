//! The durable side of the store: one SQLite file, one connection.

use std::path::Path;
use std::str::FromStr as _;

use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqliteLockingMode, SqlitePool, SqlitePoolOptions,
    SqliteSynchronous,
};

/// One stored object as it is loaded at start.
pub struct Row {
    pub store_key: String,
    pub namespace: String,
    pub name: String,
    pub body: Vec<u8>,
}

pub struct Db {
    pool: SqlitePool,
}

impl Db {
    /// Opens or creates the file. The lock is exclusive: a second process on the same
    /// data directory is refused instead of corrupting what the first one holds in memory.
    pub async fn open(path: &Path) -> Result<Self, sqlx::Error> {
        use std::os::unix::fs::OpenOptionsExt as _;
        // Made for this user alone; SQLite gives its other files the same mode.
        std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(path)
            .map_err(sqlx::Error::Io)?;
        let options = SqliteConnectOptions::from_str("sqlite://")?
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .locking_mode(SqliteLockingMode::Exclusive)
            .busy_timeout(std::time::Duration::from_secs(2));
        let pool = SqlitePoolOptions::new()
            .max_connections(1)
            .min_connections(1)
            .idle_timeout(None)
            .max_lifetime(None)
            .connect_with(options)
            .await?;
        sqlx::raw_sql(
            "CREATE TABLE IF NOT EXISTS objects (
                store_key TEXT NOT NULL,
                namespace TEXT NOT NULL,
                name TEXT NOT NULL,
                revision INTEGER NOT NULL,
                body BLOB NOT NULL,
                PRIMARY KEY (store_key, namespace, name)
            ) WITHOUT ROWID;
            CREATE TABLE IF NOT EXISTS revision (
                id INTEGER PRIMARY KEY CHECK (id = 1),
                last INTEGER NOT NULL
            );
            INSERT OR IGNORE INTO revision (id, last) VALUES (1, 1);",
        )
        .execute(&pool)
        .await?;
        Ok(Self { pool })
    }

    /// All objects and the last revision given out.
    pub async fn load(&self) -> Result<(Vec<Row>, u64), sqlx::Error> {
        let rows: Vec<(String, String, String, i64, Vec<u8>)> =
            sqlx::query_as("SELECT store_key, namespace, name, revision, body FROM objects")
                .fetch_all(&self.pool)
                .await?;
        let (last,): (i64,) =
            sqlx::query_as("SELECT last FROM revision").fetch_one(&self.pool).await?;
        let last = rows.iter().map(|row| row.3).fold(last, i64::max);
        let rows = rows
            .into_iter()
            .map(|(store_key, namespace, name, _, body)| Row { store_key, namespace, name, body })
            .collect();
        Ok((rows, u64::try_from(last).unwrap_or(1)))
    }

    pub async fn put(
        &self,
        store_key: &str,
        namespace: &str,
        name: &str,
        revision: u64,
        body: Vec<u8>,
    ) -> Result<(), sqlx::Error> {
        sqlx::query(
            "INSERT INTO objects (store_key, namespace, name, revision, body) VALUES (?, ?, ?, ?, ?)
             ON CONFLICT DO UPDATE SET revision = excluded.revision, body = excluded.body",
        )
        .bind(store_key)
        .bind(namespace)
        .bind(name)
        .bind(i64::try_from(revision).unwrap_or(i64::MAX))
        .bind(body)
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Removes an object and remembers the revision of its end, which no row carries.
    pub async fn delete(
        &self,
        store_key: &str,
        namespace: &str,
        name: &str,
        revision: u64,
    ) -> Result<(), sqlx::Error> {
        let mut transaction = self.pool.begin().await?;
        sqlx::query("DELETE FROM objects WHERE store_key = ? AND namespace = ? AND name = ?")
            .bind(store_key)
            .bind(namespace)
            .bind(name)
            .execute(&mut *transaction)
            .await?;
        sqlx::query("UPDATE revision SET last = ? WHERE id = 1")
            .bind(i64::try_from(revision).unwrap_or(i64::MAX))
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await
    }

    pub async fn close(&self) {
        self.pool.close().await;
    }
}
