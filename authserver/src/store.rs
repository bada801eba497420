//! Everything that is kept, in SQLite or PostgreSQL: durable before it is answered, and safe to
//! open by an operator's command beside the running servers.
//!
//! Statements are written once, in the SQL that both understand, with `$1` for parameters and
//! [`Dialect::pick`] where that is not possible. Tables are made by `migrations/sqlite` and
//! `migrations/postgres`, under the same numbers.

mod applications;
mod authentication;
mod clients;
mod devices;
mod flows;
mod grants;
mod keys;
mod links;
mod logout_notices;
mod open;
mod passkeys;
mod people;
mod personal_tokens;
mod refresh_token;
mod refreshes;
mod replicas;
mod revocations;
mod rotation;
mod sealed;
mod server_secrets;
mod service_accounts;
mod sessions;
mod ssh_keys;
mod ssh_people;
mod theft;
mod upstreams;
mod withdrawals;

use std::{io, sync::Arc, time::Duration};

use jiff::Timestamp;
use sqlx::AnyPool;
use tokio::sync::OnceCell;
use url::Url;

use self::server_secrets::KnownRefreshKeys;
pub use self::{
    applications::Application,
    authentication::Authentication,
    clients::ClientEntry,
    devices::{Asked, Lifetimes, NewDevice},
    flows::{Consent, PUSHED_LIFETIME},
    grants::{NewCode, RedeemError, Redeemed},
    keys::{KeyEntry, KeyPlan},
    links::{Identity, Unlinked, Ways},
    logout_notices::LogoutNotice,
    passkeys::Passkey,
    people::Person,
    personal_tokens::{NewPersonalToken, PersonalToken},
    refresh_token::RefreshToken,
    sealed::{Resealed, SecretEntry},
    service_accounts::{NewServiceAccount, Proof, ServiceAccount, ServiceAccountEntry},
    sessions::{Session, SessionEntry, Whence},
    ssh_keys::{NewSshKey, SshKey},
    theft::Replaced,
    upstreams::{Arrival, Origin, UpstreamRequest},
};
pub(crate) use self::{
    authentication::FEDERATED, open::Dialect, passkeys::FoundPasskey, refreshes::Refreshes,
    replicas::Standing, revocations::advance, rotation::Exchange,
};
use crate::{
    client::ClientError,
    database::Database,
    master_key::MasterKeys,
    password::{PasswordError, Passwords},
    secret,
    signing::SigningError,
};

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("cannot open the database {database}: {source}")]
    Open { database: Box<Database>, source: io::Error },
    #[error("cannot connect to the database {database}: {source}")]
    Connect { database: Box<Database>, source: sqlx::Error },
    #[error(
        "cannot open the database {database}: {source}; SQLite makes two more files beside it, so its \
         folder has to be writable: mount a volume there"
    )]
    Folder { database: Box<Database>, source: sqlx::Error },
    #[error(
        "the database {database} was written by another version, whose tables are not ours: {source}"
    )]
    Migrate { database: Box<Database>, source: sqlx::migrate::MigrateError },
    #[error("cannot bring the tables of the database {database} up to date: {source}")]
    Upgrade { database: Box<Database>, source: sqlx::migrate::MigrateError },
    #[error(
        "the database {database} needs a newer version of this program: one that knows migration \
         {needed}, and this one knows {known}; start the newer version, or restore a backup of before"
    )]
    TooNew { database: Box<Database>, needed: i64, known: i64 },
    #[error("the database failed: {0}")]
    Database(#[from] sqlx::Error),
    #[error("the database holds something unreadable: {0}")]
    Damaged(&'static str),
    #[error(
        "the keys in the database are sealed; name the master key with master_key_file, or \
         --master-key-file"
    )]
    NoMasterKey,
    #[error(
        "{0} in the database is sealed with another master key; name that one with \
         other_master_key_files, or --other-master-key-file, and run `dormouse auth key reseal`"
    )]
    WrongMasterKey(String),
    #[error("there is no person named {0}")]
    NoSuchPerson(String),
    #[error(transparent)]
    Password(#[from] PasswordError),
    #[error(transparent)]
    Signing(#[from] SigningError),
    /// Of a transaction that several share.
    #[error("{0}")]
    Together(Arc<StoreError>),
    #[error("{0}")]
    Invalid(&'static str),
    #[error("there is no client {0}; `dormouse auth client list` shows those that there are")]
    NoSuchClient(String),
    #[error("there is a client {0} already; delete it first, or take another id")]
    ClientTaken(String),
    #[error("client {0} is in the settings' file; change it there, and start the server again")]
    ClientOfSettings(String),
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(
        "the subject {subject} of this provider is {holder} already, and cannot be somebody else"
    )]
    IdentityTaken { subject: String, holder: String },
    #[error(
        "{name} is not the subject {subject} of this provider; see `dormouse auth user show --name \
         {name}`"
    )]
    NotLinked { name: String, subject: String },
    #[error("this SSH key is registered already")]
    KeyTaken,
    #[error("this passkey is registered already")]
    PasskeyTaken,
    #[error("there is a key of this name already")]
    NameTaken,
    #[error("there are {0} already; remove one first")]
    TooMany(&'static str),
}

/// How long lies between two calls of [`Store::clean_up`] at most, in seconds, with some to spare.
const CLEAN_UP_EVERY: i64 = 20 * 60;

/// Cheap to clone.
#[derive(Debug, Clone)]
pub struct Store {
    pool: AnyPool,
    dialect: Dialect,
    passwords: Passwords,
    master_keys: MasterKeys,
    refresh_keys: Arc<KnownRefreshKeys>,
    /// Where PostgreSQL tells of what happens.
    listen_to: Option<Url>,
    /// For whom writes all the time: SQLite's, opened when it is needed.
    writer: Arc<OnceCell<AnyPool>>,
    database: Arc<Database>,
}

impl Store {
    /// Opens the database, makes the file when it is missing, and brings its tables up to date. What
    /// is sealed with a master key cannot be used.
    pub async fn open(database: &Database) -> Result<Self, StoreError> {
        Self::open_with(database, MasterKeys::default()).await
    }

    /// The same with the master keys. What was kept in the clear before is sealed with the current one.
    pub async fn open_with(
        database: &Database,
        master_keys: impl Into<MasterKeys>,
    ) -> Result<Self, StoreError> {
        let master_keys = master_keys.into();
        let (pool, dialect) = open::pool(database).await?;
        let listen_to = match database {
            Database::Postgres(url) => Some(url.clone()),
            Database::File(_) => None,
        };
        let passwords = Passwords::default();
        let (refresh_keys, writer) = (Arc::default(), Arc::default());
        let database = Arc::new(database.clone());
        let store = Self {
            pool,
            dialect,
            passwords,
            master_keys,
            refresh_keys,
            listen_to,
            writer,
            database,
        };
        store.seal_all().await?;
        Ok(store)
    }

    /// Whether the database itself tells of new revocations.
    pub(crate) fn tells_of_revocations(&self) -> bool {
        self.listen_to.is_some()
    }

    /// Waits until all connections are closed; the log is merged into the file.
    pub async fn close(&self) {
        if let Some(writer) = self.writer.get() {
            writer.close().await;
        }
        self.pool.close().await;
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
        sqlx::query(
            "DELETE FROM revocations
             WHERE expires_at < $1 AND version < (SELECT max(version) FROM revocations)",
        )
        .bind(now)
        .execute(&mut *tx)
        .await?;
        sqlx::query(
            "DELETE FROM refresh_tokens WHERE rotated_at < $1
             AND (access_expires_at IS NULL OR access_expires_at < $2)",
        )
        .bind(now - rotation::REMEMBERED)
        .bind(now - 3600)
        .execute(&mut *tx)
        .await?;
        sqlx::query("DELETE FROM personal_tokens WHERE expires_at < $1")
            .bind(now - 30 * 24 * 3600)
            .execute(&mut *tx)
            .await?;
        tx.commit().await?;
        self.clean_up_secrets(now).await?;
        self.clean_up_ssh_keys(CLEAN_UP_EVERY, now).await?;
        self.clean_up_upstreams(Timestamp::from_second(now).unwrap_or_default()).await
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

/// SHA-256 in hexadecimal.
fn hex_digest(text: &str) -> String {
    secret::hex(&secret::digest(text))
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
