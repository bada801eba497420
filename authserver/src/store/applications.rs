//! The applications that a person has let in: by a consent, or by signing in to them.

use std::collections::BTreeMap;

use jiff::Timestamp;
use sqlx::FromRow;

use super::{Store, StoreError, time};
use crate::scope;

/// Grants of one person that are looked at.
const GRANTS_MAX: i64 = 2_000;

/// What an application has of a person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Application {
    pub client_id: String,
    /// All that it was given, separated by spaces.
    pub scope: String,
    /// When and from where the person agreed, if they were asked.
    pub agreed: Option<(Timestamp, Option<String>)>,
    /// The last sign-in to it that goes on.
    pub signed_in: Option<(Timestamp, Option<String>)>,
}

#[derive(FromRow)]
struct Row {
    client_id: String,
    scope: String,
    at: i64,
    address: Option<String>,
}

impl Store {
    /// Without the gateways, which are no application of somebody else, and by their ids.
    pub async fn applications(
        &self,
        subject: &str,
        now: Timestamp,
    ) -> Result<Vec<Application>, StoreError> {
        let consents: Vec<Row> = sqlx::query_as(
            "SELECT client_id, scope, granted_at AS at, address FROM consents WHERE person_id = $1",
        )
        .bind(subject)
        .fetch_all(&self.pool)
        .await?;
        // Only those whose code was redeemed; the newest last.
        let grants: Vec<Row> = sqlx::query_as(
            "SELECT g.client_id, g.scope, g.created_at AS at, g.address FROM grants g
             JOIN sessions s ON s.id = g.session_id JOIN clients c ON c.id = g.client_id
             WHERE s.person_id = $1 AND s.ended_at IS NULL AND s.expires_at > $2
             AND g.revoked_at IS NULL AND c.kind <> 'gate'
             AND EXISTS (SELECT 1 FROM refresh_tokens r WHERE r.grant_id = g.id)
             ORDER BY g.created_at DESC, g.id LIMIT $3",
        )
        .bind(subject)
        .bind(now.as_second())
        .bind(GRANTS_MAX)
        .fetch_all(&self.pool)
        .await?;
        let mut all: BTreeMap<String, Application> = BTreeMap::new();
        let rows = consents.into_iter().map(|row| (true, row));
        for (agreed, row) in rows.chain(grants.into_iter().map(|row| (false, row))) {
            let place = (time(row.at)?, row.address);
            let known = all.entry(row.client_id.clone()).or_insert_with(|| Application {
                client_id: row.client_id,
                scope: String::new(),
                agreed: None,
                signed_in: None,
            });
            for one in row.scope.split_ascii_whitespace() {
                if !scope::contains(&known.scope, one) {
                    known.scope = format!("{} {one}", known.scope).trim().to_owned();
                }
            }
            let kept = if agreed { &mut known.agreed } else { &mut known.signed_in };
            kept.get_or_insert(place);
        }
        Ok(all.into_values().collect())
    }

    /// Forgets the person's consent to the application, and withdraws all that they gave it: devices
    /// with it are signed out. False when it had nothing.
    pub async fn withdraw_application(
        &self,
        subject: &str,
        client_id: &str,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let mut tx = self.write().await?;
        let consent = sqlx::query("DELETE FROM consents WHERE person_id = $1 AND client_id = $2")
            .bind(subject)
            .bind(client_id)
            .execute(&mut *tx)
            .await?;
        let mut touched = consent.rows_affected();
        // The gateways' are withdrawn by ending the session.
        for statement in [
            "UPDATE sessions SET ended_at = $1
             WHERE ended_at IS NULL AND person_id = $2 AND client_id = $3",
            "UPDATE grants SET revoked_at = $1 WHERE revoked_at IS NULL AND client_id = $3
             AND client_id NOT IN (SELECT id FROM clients WHERE kind = 'gate')
             AND session_id IN (SELECT id FROM sessions WHERE person_id = $2)",
        ] {
            let query = sqlx::query(statement).bind(now.as_second()).bind(subject).bind(client_id);
            touched += query.execute(&mut *tx).await?.rows_affected();
        }
        tx.commit().await?;
        Ok(touched > 0)
    }
}
