//! What the flows keep beside grants and sessions: used assertions, pushed requests, consents, and
//! the audiences of grants.

use std::net::IpAddr;

use jiff::Timestamp;

use super::{Store, StoreError, list, to_json};
use crate::{
    scope,
    secret::{Secret, digest},
};

/// How long a pushed request waits to be used, in seconds (RFC 9126, section 2.2).
pub const PUSHED_LIFETIME: i64 = 90;

/// What a person let a third party's client do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Consent {
    pub scope: String,
    pub resources: Vec<String>,
}

impl Consent {
    pub fn covers(&self, wanted: &Self) -> bool {
        wanted.scope.split_ascii_whitespace().all(|one| scope::contains(&self.scope, one))
            && wanted.resources.iter().all(|one| self.resources.contains(one))
    }
}

impl Store {
    /// True for the first use of the assertion; until `until` any other is a replay.
    pub async fn use_assertion(
        &self,
        client_id: &str,
        jti: &str,
        until: i64,
    ) -> Result<bool, StoreError> {
        // A client_id has no line break in it, so no two pairs are one text.
        let done = sqlx::query(
            "INSERT INTO used_assertions (digest, expires_at) VALUES ($1, $2)
             ON CONFLICT DO NOTHING",
        )
        .bind(digest(&format!("{client_id}\n{jti}")))
        .bind(until)
        .execute(&self.pool)
        .await?;
        Ok(done.rows_affected() == 1)
    }

    /// The random part of a `request_uri`.
    pub async fn push_request(
        &self,
        client_id: &str,
        query: &str,
        now: Timestamp,
    ) -> Result<Secret, StoreError> {
        let secret = Secret::generate();
        sqlx::query(
            "INSERT INTO pushed_requests (digest, client_id, query, expires_at)
             VALUES ($1, $2, $3, $4)",
        )
        .bind(secret.digest())
        .bind(client_id)
        .bind(query)
        .bind(now.as_second().saturating_add(PUSHED_LIFETIME))
        .execute(&self.pool)
        .await?;
        Ok(secret)
    }

    /// What that client pushed. It may be looked at again until it expires, since people reload
    /// pages (RFC 9126, section 4).
    pub async fn pushed_request(
        &self,
        reference: &str,
        client_id: &str,
        now: Timestamp,
    ) -> Result<Option<String>, StoreError> {
        Ok(sqlx::query_scalar(
            "SELECT query FROM pushed_requests
             WHERE digest = $1 AND client_id = $2 AND expires_at > $3",
        )
        .bind(digest(reference))
        .bind(client_id)
        .bind(now.as_second())
        .fetch_optional(&self.pool)
        .await?)
    }

    pub async fn consent(
        &self,
        subject: &str,
        client_id: &str,
    ) -> Result<Option<Consent>, StoreError> {
        let row: Option<(String, String)> = sqlx::query_as(
            "SELECT scope, resources FROM consents WHERE person_id = $1 AND client_id = $2",
        )
        .bind(subject)
        .bind(client_id)
        .fetch_optional(&self.pool)
        .await?;
        let Some((scope, resources)) = row else { return Ok(None) };
        Ok(Some(Consent { scope, resources: list(&resources)? }))
    }

    /// Remembers a consent in place of an earlier one.
    pub async fn set_consent(
        &self,
        subject: &str,
        client_id: &str,
        consent: &Consent,
        from: IpAddr,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO consents (person_id, client_id, scope, resources, granted_at, address)
             VALUES ($1, $2, $3, $4, $5, $6)
             ON CONFLICT (person_id, client_id) DO UPDATE SET scope = excluded.scope,
                resources = excluded.resources, granted_at = excluded.granted_at,
                address = excluded.address",
        )
        .bind(subject)
        .bind(client_id)
        .bind(&consent.scope)
        .bind(to_json(&consent.resources))
        .bind(now.as_second())
        .bind(from.to_string())
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Notes where the browser is that a code's grant was given in, before the code is handed out.
    pub async fn place_grant(&self, code: &Secret, from: IpAddr) -> Result<(), StoreError> {
        sqlx::query(
            "UPDATE grants SET address = $1 WHERE id = (SELECT grant_id FROM codes WHERE digest = $2)",
        )
        .bind(from.to_string())
        .bind(code.digest())
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Binds a code's grant to audiences, before the code is handed out; a grant without any is for
    /// the usual one.
    pub async fn set_code_resources(
        &self,
        code: &Secret,
        resources: &[String],
    ) -> Result<(), StoreError> {
        if resources.is_empty() {
            return Ok(());
        }
        sqlx::query(
            "INSERT INTO grant_resources (grant_id, resources)
             SELECT grant_id, $1 FROM codes WHERE digest = $2",
        )
        .bind(to_json(resources))
        .bind(code.digest())
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    pub async fn grant_resources(&self, grant_id: &str) -> Result<Vec<String>, StoreError> {
        let resources: Option<String> =
            sqlx::query_scalar("SELECT resources FROM grant_resources WHERE grant_id = $1")
                .bind(grant_id)
                .fetch_optional(&self.pool)
                .await?;
        resources.map_or(Ok(Vec::new()), |resources| list(&resources))
    }

    /// Deletes what has expired of all this.
    pub async fn clean_up_flows(&self, now: Timestamp) -> Result<(), StoreError> {
        let now = now.as_second();
        for statement in [
            "DELETE FROM used_assertions WHERE expires_at < $1",
            "DELETE FROM pushed_requests WHERE expires_at < $1",
            "DELETE FROM devices WHERE expires_at < $1",
            "DELETE FROM service_tokens WHERE expires_at < $1",
            "DELETE FROM used_challenges WHERE expires_at < $1",
        ] {
            sqlx::query(statement).bind(now - 3600).execute(&self.pool).await?;
        }
        sqlx::query("DELETE FROM logout_notices WHERE done_at IS NOT NULL AND created_at < $1")
            .bind(now - 7 * 24 * 3600)
            .execute(&self.pool)
            .await?;
        Ok(())
    }
}
