//! The feed of people whom SSH certificates may name.

use serde::Serialize;
use sqlx::{Any, FromRow, Transaction};

use super::{Store, StoreError, list};

/// Somebody whom a certificate may name, as gateways need them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SshPerson {
    pub subject: String,
    pub user: String,
    pub email: Option<String>,
    pub groups: Vec<String>,
}

#[derive(FromRow)]
struct Row {
    subject: String,
    name: String,
    email: Option<String>,
    groups: String,
}

impl Store {
    /// False for programs, whose tokens may be withdrawn while a certificate lives on.
    pub async fn is_certifiable(&self, subject: &str) -> Result<bool, StoreError> {
        let program: Option<String> =
            sqlx::query_scalar("SELECT client_id FROM service_accounts WHERE person_id = $1")
                .bind(subject)
                .fetch_optional(&self.pool)
                .await?;
        Ok(program.is_none())
    }
}

/// Everybody who is not disabled and no program.
pub(super) async fn all(tx: &mut Transaction<'static, Any>) -> Result<Vec<SshPerson>, StoreError> {
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT p.id AS subject, p.name, p.email, p.groups FROM people p
         WHERE p.disabled_at IS NULL
           AND NOT EXISTS (SELECT 1 FROM service_accounts s WHERE s.person_id = p.id)
         ORDER BY p.id",
    )
    .fetch_all(&mut **tx)
    .await?;
    rows.into_iter()
        .map(|row| {
            let Row { subject, name, email, groups } = row;
            Ok(SshPerson { subject, user: name, email, groups: list(&groups)? })
        })
        .collect()
}
