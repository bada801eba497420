//! The applications that may sign people in.

use sqlx::FromRow;

use super::{Store, StoreError, list, to_json};
use crate::client::{Client, ClientKind};

#[derive(FromRow)]
struct ClientRow {
    id: String,
    kind: String,
    secret_digest: Option<Vec<u8>>,
    redirect_uris: String,
    post_logout_uris: String,
    scopes: String,
    profile: String,
}

impl Store {
    /// Makes the table what the settings say. A client that is gone loses its grants.
    pub async fn set_clients(&self, clients: &[Client]) -> Result<(), StoreError> {
        let mut tx = self.write().await?;
        let known: Vec<String> =
            sqlx::query_scalar("SELECT id FROM clients ORDER BY id").fetch_all(&mut *tx).await?;
        for gone in known.iter().filter(|id| !clients.iter().any(|client| client.id == **id)) {
            sqlx::query("DELETE FROM clients WHERE id = $1").bind(gone).execute(&mut *tx).await?;
        }
        for client in clients {
            let profile = serde_json::to_string(&client.profile)
                .map_err(|_| StoreError::Invalid("a client cannot be written down"))?;
            sqlx::query(
                "INSERT INTO clients
                 (id, kind, secret_digest, redirect_uris, post_logout_uris, scopes, profile)
                 VALUES ($1, $2, $3, $4, $5, $6, $7)
                 ON CONFLICT (id) DO UPDATE SET kind = excluded.kind,
                    secret_digest = excluded.secret_digest, redirect_uris = excluded.redirect_uris,
                    post_logout_uris = excluded.post_logout_uris, scopes = excluded.scopes,
                    profile = excluded.profile",
            )
            .bind(&client.id)
            .bind(client.kind.as_str())
            .bind(&client.secret_digest)
            .bind(to_json(&client.redirect_uris))
            .bind(to_json(&client.post_logout_uris))
            .bind(client.scopes.join(" "))
            .bind(profile)
            .execute(&mut *tx)
            .await?;
        }
        tx.commit().await?;
        Ok(())
    }

    pub async fn client(&self, id: &str) -> Result<Option<Client>, StoreError> {
        let row: Option<ClientRow> = sqlx::query_as("SELECT * FROM clients WHERE id = $1")
            .bind(id)
            .fetch_optional(&self.pool)
            .await?;
        let Some(row) = row else { return Ok(None) };
        Ok(Some(Client {
            id: row.id,
            kind: ClientKind::parse(&row.kind).ok_or(StoreError::Damaged("a client's kind"))?,
            secret_digest: row.secret_digest,
            redirect_uris: list(&row.redirect_uris)?,
            post_logout_uris: list(&row.post_logout_uris)?,
            scopes: row.scopes.split_ascii_whitespace().map(str::to_owned).collect(),
            profile: serde_json::from_str(&row.profile)
                .map_err(|_| StoreError::Damaged("a client's profile"))?,
        }))
    }
}
