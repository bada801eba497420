//! Opening a database: connections, migrations, and what the two kinds of database do differently.

use std::{
    fs::OpenOptions, os::unix::fs::OpenOptionsExt, path::Path, sync::LazyLock, time::Duration,
};

use sqlx::{
    Any, AnyPool, AssertSqlSafe, Connection, Executor, PgConnection, SqliteConnection, Transaction,
    any::{AnyConnectOptions, AnyPoolOptions},
    migrate::{MigrateError, Migrator},
    postgres::PgConnectOptions,
    sqlite::{SqliteConnectOptions, SqliteJournalMode},
};
use url::Url;

use super::{Store, StoreError};
use crate::database::Database;

/// How long to wait for a connection, or for another writer's lock.
const BUSY: Duration = Duration::from_secs(5);

/// Connections to a file.
const READERS: u32 = 8;

/// What a connection keeps of the file in memory, at most, in KiB. Each refresh writes to places all
/// over some indexes, so the one that does keeps more of them.
const READER_CACHE: u32 = 8_000;
const WRITER_CACHE: u32 = 32_000;

static SQLITE: LazyLock<Migrator> = LazyLock::new(|| beside(sqlx::migrate!("migrations/sqlite")));
static POSTGRES: LazyLock<Migrator> =
    LazyLock::new(|| beside(sqlx::migrate!("migrations/postgres")));

/// Migrations that only a newer version knows are no reason not to start: during an upgrade servers of
/// two versions use one database, and the older one may have to start again. What the older one
/// could not work with says so in the row `needs-migration` of `feeds`.
fn beside(mut migrator: Migrator) -> Migrator {
    migrator.set_ignore_missing(true);
    migrator
}

/// The SQL that is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dialect {
    Sqlite,
    Postgres,
}

impl Dialect {
    /// The statement for this database, where one cannot be written for both.
    pub fn pick(self, sqlite: &'static str, postgres: &'static str) -> &'static str {
        match self {
            Self::Sqlite => sqlite,
            Self::Postgres => postgres,
        }
    }
}

pub(super) async fn pool(database: &Database) -> Result<(AnyPool, Dialect), StoreError> {
    sqlx::any::install_default_drivers();
    let opened = match database {
        Database::File(path) => sqlite(path).await,
        Database::Postgres(url) => postgres(url).await,
    };
    opened.map_err(|problem| problem.of(database))
}

enum Problem {
    File(std::io::Error),
    Connect(sqlx::Error),
    Migrate(MigrateError),
    /// The tables need a server that knows the first migration; this one knows the second at most.
    TooNew(i64, i64),
}

impl Problem {
    fn of(self, database: &Database) -> StoreError {
        let database = Box::new(database.clone());
        match self {
            Self::File(source) => StoreError::Open { database, source },
            Self::Connect(source) if is_folder(&source) => StoreError::Folder { database, source },
            Self::Connect(source) => StoreError::Connect { database, source },
            Self::Migrate(source @ MigrateError::VersionMismatch(_)) => {
                StoreError::Migrate { database, source }
            }
            Self::Migrate(source) => StoreError::Upgrade { database, source },
            Self::TooNew(needed, known) => StoreError::TooNew { database, needed, known },
        }
    }
}

/// Fails where a newer version has changed the tables in a way that this one cannot work with.
fn check_known(needed: Option<i64>, migrator: &Migrator) -> Result<(), Problem> {
    let known = migrator.iter().map(|migration| migration.version).max().unwrap_or_default();
    match needed {
        Some(needed) if needed > known => Err(Problem::TooNew(needed, known)),
        _ => Ok(()),
    }
}

/// SQLite tells of a folder in which it cannot make its files as of a file that it cannot open, or
/// cannot write to (its primary result codes 14 and 8).
fn is_folder(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code());
    let code = code.and_then(|code| code.parse::<u32>().ok());
    code.is_some_and(|code| matches!(code & 0xff, 8 | 14))
}

/// The newest migration that a server has to know to work with the tables.
const NEEDED: &str = "SELECT version FROM feeds WHERE name = 'needs-migration'";

impl From<sqlx::Error> for Problem {
    fn from(error: sqlx::Error) -> Self {
        Self::Connect(error)
    }
}

/// SQLite puts what it sorts and what it may have to undo into temporary files, unless it is told to
/// keep that in memory; where the only place to write to is the database's folder, it has none.
fn sqlite_options(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .journal_mode(SqliteJournalMode::Wal)
        .busy_timeout(BUSY)
        .pragma("temp_store", "MEMORY")
}

async fn sqlite(path: &Path) -> Result<(AnyPool, Dialect), Problem> {
    // It holds the signing key. SQLite gives its other files the same mode.
    OpenOptions::new().create(true).append(true).mode(0o600).open(path).map_err(Problem::File)?;
    let mut connection = SqliteConnection::connect_with(&sqlite_options(path)).await?;
    // Not with `run`, whose future is not `Send` for a borrowed connection: this is what it calls.
    // Whoever else opens it at this moment waits here, and then finds nothing left to do.
    let mut tx = connection.begin_with("BEGIN IMMEDIATE").await?;
    SQLITE.run_direct(None, &mut *tx, false).await.map_err(Problem::Migrate)?;
    let needed = sqlx::query_scalar(NEEDED).fetch_optional(&mut *tx).await?;
    check_known(needed, &SQLITE)?;
    tx.commit().await?;
    connection.close().await?;

    Ok((connections(path, READERS, READER_CACHE).await?, Dialect::Sqlite))
}

/// A connection for one that writes all the time: what it has read stays in its memory as long as
/// nobody else writes, while connections that take turns read everything anew.
pub(super) async fn writer(database: &Database) -> Result<Option<AnyPool>, StoreError> {
    let Database::File(path) = database else { return Ok(None) };
    let opened =
        connections(path, 1, WRITER_CACHE).await.map_err(|problem| problem.of(database))?;
    Ok(Some(opened))
}

/// `cache`: what each may keep of the file, in KiB.
async fn connections(path: &Path, most: u32, cache: u32) -> Result<AnyPool, Problem> {
    let url = file_url(path).map_err(Problem::File)?;
    let pool = AnyPoolOptions::new()
        .max_connections(most)
        .acquire_timeout(BUSY)
        // There is no network that it could have been lost to.
        .test_before_acquire(false)
        .after_connect(move |connection, _| {
            Box::pin(async move {
                // The journal's mode is kept in the file; these are each connection's own. A longer
                // journal is merged more rarely, and holds the pages that change often once.
                connection
                    .execute(AssertSqlSafe(format!(
                        "PRAGMA busy_timeout = 5000; PRAGMA foreign_keys = ON;
                             PRAGMA synchronous = FULL; PRAGMA wal_autocheckpoint = 4000;
                             PRAGMA cache_size = -{cache}; PRAGMA temp_store = MEMORY"
                    )))
                    .await?;
                Ok(())
            })
        })
        .connect_with(url.parse::<AnyConnectOptions>()?)
        .await?;
    Ok(pool)
}

async fn postgres(url: &Url) -> Result<(AnyPool, Dialect), Problem> {
    let options: PgConnectOptions = url.as_str().parse()?;
    let mut connection = PgConnection::connect_with(&options).await?;
    // Takes an advisory lock, so that replicas that start together do this one after the other.
    POSTGRES.run_direct(None, &mut connection, false).await.map_err(Problem::Migrate)?;
    check_known(sqlx::query_scalar(NEEDED).fetch_optional(&mut connection).await?, &POSTGRES)?;
    connection.close().await?;
    let pool = AnyPoolOptions::new()
        .max_connections(16)
        .acquire_timeout(BUSY)
        .after_connect(|connection, _| {
            Box::pin(async move {
                // A replica that stops in the middle must not hold its locks for long, and what
                // was answered must survive the server.
                connection
                    .execute(
                        "SET lock_timeout = '5s'; SET statement_timeout = '15s';
                         SET idle_in_transaction_session_timeout = '15s';
                         SET synchronous_commit = 'on'",
                    )
                    .await?;
                Ok(())
            })
        })
        .connect_with(url.as_str().parse::<AnyConnectOptions>()?)
        .await?;
    Ok((pool, Dialect::Postgres))
}

/// `sqlite://` and the absolute path, with everything escaped that could be read as something else.
fn file_url(path: &Path) -> std::io::Result<String> {
    use std::{fmt::Write, os::unix::ffi::OsStrExt};
    let mut url = "sqlite://".to_owned();
    for byte in std::path::absolute(path)?.as_os_str().as_bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'-' | b'_' => url.push(*byte as char),
            other => {
                let _ = write!(url, "%{other:02X}");
            }
        }
    }
    Ok(url)
}

impl Store {
    /// A transaction that writes. In SQLite it holds the one write lock from its start, so that
    /// what it reads stays true; in PostgreSQL rows have to be locked, with `FOR UPDATE`.
    pub(crate) async fn write(&self) -> Result<Transaction<'static, Any>, StoreError> {
        Ok(self.pool.begin_with(self.dialect.pick("BEGIN IMMEDIATE", "BEGIN")).await?)
    }

    /// The same on the connection that is kept for many writes.
    pub(super) async fn write_often(&self) -> Result<Transaction<'static, Any>, StoreError> {
        let open = async || match writer(&self.database).await? {
            Some(writer) => Ok::<_, StoreError>(writer),
            None => Ok(self.pool.clone()),
        };
        let writer: &AnyPool = self.writer.get_or_try_init(open).await?;
        Ok(writer.begin_with(self.dialect.pick("BEGIN IMMEDIATE", "BEGIN")).await?)
    }

    /// A transaction whose reads are all of one moment.
    pub(super) async fn snapshot(&self) -> Result<Transaction<'static, Any>, StoreError> {
        let begin = self.dialect.pick("BEGIN", "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY");
        Ok(self.pool.begin_with(begin).await?)
    }

    /// Makes writers who count what a person has wait for each other.
    pub(super) async fn lock_person(
        &self,
        tx: &mut Transaction<'static, Any>,
        subject: &str,
    ) -> Result<(), StoreError> {
        if self.dialect == Dialect::Postgres {
            sqlx::query("SELECT id FROM people WHERE id = $1 FOR UPDATE")
                .bind(subject)
                .fetch_optional(&mut **tx)
                .await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn any_path_is_opened_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["plain.db", "with space?mode=memory#x.db", "100%20.db", "über:memory:.db"] {
            let path = folder.path().join(name);
            Store::open(&path.clone().into()).await.unwrap().close().await;
            assert!(std::fs::metadata(&path).unwrap().len() > 0, "{name}");
        }
        let count = std::fs::read_dir(folder.path()).unwrap().count();
        assert_eq!(count, 4, "nothing else was made");
    }

    #[tokio::test]
    async fn ten_that_open_a_new_database_at_once_all_do() {
        let folder = tempfile::tempdir().unwrap();
        let path: std::path::PathBuf = folder.path().join("auth.db");
        let tasks: Vec<_> = (0..10)
            .map(|_| {
                let path = path.clone();
                tokio::spawn(async move { Store::open(&path.into()).await })
            })
            .collect();
        for task in tasks {
            task.await.unwrap().unwrap();
        }
    }

    /// Where only the database's folder can be written to, SQLite has no place for temporary files.
    #[tokio::test]
    async fn every_connection_keeps_temporary_tables_in_memory_from_its_start() {
        const MEMORY: i64 = 2;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("auth.db");
        let options = sqlite_options(&path).create_if_missing(true);
        let mut connection = SqliteConnection::connect_with(&options).await.unwrap();
        let migrating: i64 =
            sqlx::query_scalar("PRAGMA temp_store").fetch_one(&mut connection).await.unwrap();
        connection.close().await.unwrap();
        let (pool, _) =
            pool(&path.clone().into()).await.map_err(|error| error.to_string()).unwrap();
        let serving: i64 = sqlx::query_scalar("PRAGMA temp_store").fetch_one(&pool).await.unwrap();
        assert_eq!((migrating, serving), (MEMORY, MEMORY));
    }

    /// Each cause has words of its own, and none blames the version for a full disk.
    #[tokio::test]
    async fn errors_of_opening_name_their_cause() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("auth.db");
        let missing = folder.path().join("none").join("auth.db");
        let error = Store::open(&missing.into()).await.unwrap_err().to_string();
        assert!(
            error.starts_with("cannot open the database") && error.contains("No such file"),
            "{error}"
        );
        std::fs::write(&path, "no database, and longer than the header of one that SQLite wrote: ....................................").unwrap();
        let error = Store::open(&path.clone().into()).await.unwrap_err().to_string();
        assert!(error.contains("not a database") && !error.contains("another version"), "{error}");
        std::fs::remove_file(&path).unwrap();

        let store = Store::open(&path.clone().into()).await.unwrap();
        // A newer version has been here: no reason not to start, unless it says so.
        sqlx::query(
            "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
             VALUES (9999, 'later', TRUE, x'00', 1)",
        )
        .execute(&store.pool)
        .await
        .unwrap();
        Store::open(&path.clone().into()).await.unwrap().close().await;
        let raise = "UPDATE feeds SET version = 9999 WHERE name = 'needs-migration'";
        sqlx::query(raise).execute(&store.pool).await.unwrap();
        let error = Store::open(&path.clone().into()).await.unwrap_err().to_string();
        assert!(error.contains("needs a newer version") && error.contains("9999"), "{error}");
        let lower = "UPDATE feeds SET version = 61 WHERE name = 'needs-migration'";
        sqlx::query(lower).execute(&store.pool).await.unwrap();
        sqlx::query("UPDATE _sqlx_migrations SET checksum = x'00' WHERE version = 61")
            .execute(&store.pool)
            .await
            .unwrap();
        let error = Store::open(&path.into()).await.unwrap_err().to_string();
        assert!(error.contains("was written by another version"), "{error}");
    }

    /// A server that is upgraded keeps what its predecessor wrote.
    #[tokio::test]
    async fn tokens_outlive_a_change_of_their_table() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("authserver.db");
        let options = SqliteConnectOptions::new().filename(&path).create_if_missing(true);
        let mut connection = SqliteConnection::connect_with(&options).await.unwrap();
        let before = SQLITE.iter().filter(|migration| migration.version < 60).cloned();
        let before = Migrator::with_migrations(before.collect());
        before.run_direct(None, &mut connection, false).await.unwrap();
        connection
            .execute(
                "INSERT INTO people (id, name, created_at) VALUES ('p', 'alice', 1);
                 INSERT INTO clients (id, kind) VALUES ('c', 'public');
                 INSERT INTO sessions (id, secret_digest, person_id, method, created_at, used_at, expires_at)
                 VALUES ('s', x'00', 'p', 'pwd', 1, 1, 9);
                 INSERT INTO grants (id, session_id, client_id, scope, created_at)
                 VALUES ('g', 's', 'c', 'openid', 1);
                 INSERT INTO access_tokens (jti, grant_id, expires_at, revoked_at)
                 VALUES ('a', 'g', 8, NULL), ('b', 'g', 9, 3);
                 INSERT INTO refresh_tokens (digest, grant_id, created_at, rotated_at)
                 VALUES (x'01', 'g', 2, NULL), (x'02', 'g', 1, 2)",
            )
            .await
            .unwrap();
        connection.close().await.unwrap();

        let (pool, _) = pool(&path.into()).await.unwrap();
        let rows: Vec<(String, String, i64, Option<i64>)> = sqlx::query_as(
            "SELECT jti, grant_id, expires_at, revoked_at FROM access_tokens ORDER BY jti",
        )
        .fetch_all(&pool)
        .await
        .unwrap();
        let row = |jti: &str, end, revoked| (jti.to_owned(), "g".to_owned(), end, revoked);
        assert_eq!(rows, [row("a", 8, None), row("b", 9, Some(3))]);
        let refresh: Vec<(i64, Vec<u8>, Option<i64>, i64)> =
            sqlx::query_as("SELECT generation, digest, rotated_at, says_place FROM refresh_tokens")
                .fetch_all(&pool)
                .await
                .unwrap();
        assert_eq!(refresh, [(1, vec![2], Some(2), 0), (2, vec![1], None, 0)]);
        // What is withdrawn is told of as before, and what a grant gave goes with it.
        let run = async |sql: &'static str| sqlx::query(sql).execute(&pool).await.unwrap();
        let count = async |sql: &'static str| -> i64 {
            sqlx::query_scalar(sql).fetch_one(&pool).await.unwrap()
        };
        run("UPDATE access_tokens SET revoked_at = 5 WHERE jti = 'a'").await;
        assert_eq!(count("SELECT count(*) FROM revocations WHERE id = 'a'").await, 1);
        run("DELETE FROM grants").await;
        assert_eq!(count("SELECT count(*) FROM access_tokens").await, 0);
    }
}
