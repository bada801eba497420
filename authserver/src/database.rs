//! Where everything is kept: a file, or a PostgreSQL server that several replicas share.

use std::{fmt, path::PathBuf, str::FromStr};

use serde::Deserialize;
use url::Url;

/// A database as the settings name it: the path of an SQLite file, or `postgres://...`.
#[derive(Clone, Deserialize)]
#[serde(try_from = "String")]
pub enum Database {
    File(PathBuf),
    /// With a password in it at times, so it is never shown whole.
    Postgres(Url),
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("database must be the path of a file, or look like postgres://user@host:5432/dormouse")]
pub struct DatabaseError;

impl Database {
    /// With that password; a file has none.
    #[must_use]
    pub fn with_password(mut self, password: &str) -> Self {
        if let Self::Postgres(url) = &mut self {
            // Only addresses without a host refuse a password, and those log in by the socket.
            let _ = url.set_password(Some(password));
        }
        self
    }
}

impl FromStr for Database {
    type Err = DatabaseError;

    fn from_str(text: &str) -> Result<Self, DatabaseError> {
        if text.is_empty() {
            return Err(DatabaseError);
        }
        let Some((scheme, _)) = text.split_once("://") else {
            return Ok(Self::File(text.into()));
        };
        match (scheme, Url::parse(text)) {
            ("postgres" | "postgresql", Ok(url)) if url.path().len() > 1 => Ok(Self::Postgres(url)),
            _ => Err(DatabaseError),
        }
    }
}

impl TryFrom<String> for Database {
    type Error = DatabaseError;
    fn try_from(text: String) -> Result<Self, DatabaseError> {
        text.parse()
    }
}

impl From<PathBuf> for Database {
    fn from(path: PathBuf) -> Self {
        Self::File(path)
    }
}

impl fmt::Display for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Postgres(url) => {
                let host = url.host_str().unwrap_or_default();
                let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
                write!(f, "{}://{host}{port}{}", url.scheme(), url.path())
            }
        }
    }
}

impl fmt::Debug for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Database({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_and_servers() {
        assert!(matches!("auth.db".parse(), Ok(Database::File(_))));
        assert!(matches!("/var/lib/dormouse/auth.db".parse(), Ok(Database::File(_))));
        assert!(matches!("postgres://h/dormouse".parse(), Ok(Database::Postgres(_))));
        for bad in ["", "mysql://h/x", "postgres://h", "postgres://h/", "sqlite://x.db"] {
            assert!(bad.parse::<Database>().is_err(), "{bad}");
        }
    }

    #[test]
    fn passwords_are_not_shown() {
        let database: Database = "postgres://u:hunter2@db:5433/dormouse?a=hunter2".parse().unwrap();
        assert_eq!(database.to_string(), "postgres://db:5433/dormouse");
        assert!(!format!("{:?}", database.with_password("hunter3")).contains("hunter"));
    }
}
