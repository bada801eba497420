//! The applications that may sign people in.

use jiff::Timestamp;
use sqlx::{Any, FromRow, any::AnyArguments, query::Query};

use super::{Store, StoreError, list, time, to_json};
use crate::client::{Client, ClientKind};

/// A client with what is said about it in lists.
#[derive(Debug, Clone)]
pub struct ClientEntry {
    pub client: Client,
    /// True when an operator made it by command, and false when the settings' file has it.
    pub by_operator: bool,
    /// None for those of the settings.
    pub created_at: Option<Timestamp>,
}

#[derive(FromRow)]
struct ClientRow {
    id: String,
    kind: String,
    secret_digest: Option<Vec<u8>>,
    redirect_uris: String,
    post_logout_uris: String,
    scopes: String,
    profile: String,
    origin: String,
    created_at: i64,
}

const SETTINGS: &str = "settings";
const OPERATOR: &str = "operator";

impl TryFrom<ClientRow> for ClientEntry {
    type Error = StoreError;
    fn try_from(row: ClientRow) -> Result<Self, StoreError> {
        let by_operator = row.origin == OPERATOR;
        let created_at = by_operator.then(|| time(row.created_at)).transpose()?;
        let client = Client {
            id: row.id,
            kind: ClientKind::parse(&row.kind).ok_or(StoreError::Damaged("a client's kind"))?,
            secret_digest: row.secret_digest,
            redirect_uris: list(&row.redirect_uris)?,
            post_logout_uris: list(&row.post_logout_uris)?,
            scopes: row.scopes.split_ascii_whitespace().map(str::to_owned).collect(),
            profile: serde_json::from_str(&row.profile)
                .map_err(|_| StoreError::Damaged("a client's profile"))?,
        };
        Ok(Self { client, by_operator, created_at })
    }
}

impl Store {
    /// Makes the table what the settings say. A client that is gone from them loses its grants; those
    /// that operators made stay, unless the settings have one of the same id.
    pub async fn set_clients(&self, clients: &[Client]) -> Result<(), StoreError> {
        let mut tx = self.write().await?;
        let known: Vec<String> =
            sqlx::query_scalar("SELECT id FROM clients WHERE origin = $1 ORDER BY id")
                .bind(SETTINGS)
                .fetch_all(&mut *tx)
                .await?;
        for gone in known.iter().filter(|id| !clients.iter().any(|client| client.id == **id)) {
            sqlx::query("DELETE FROM clients WHERE id = $1").bind(gone).execute(&mut *tx).await?;
        }
        for client in clients {
            bind(
                "INSERT INTO clients (id, kind, secret_digest, redirect_uris, post_logout_uris,
                    scopes, profile, origin, created_at)
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
                 ON CONFLICT (id) DO UPDATE SET kind = excluded.kind,
                    secret_digest = excluded.secret_digest, redirect_uris = excluded.redirect_uris,
                    post_logout_uris = excluded.post_logout_uris, scopes = excluded.scopes,
                    profile = excluded.profile, origin = excluded.origin",
                client,
                SETTINGS,
                0,
            )?
            .execute(&mut *tx)
            .await?;
        }
        tx.commit().await?;
        Ok(())
    }

    /// Adds a client that stays whatever the settings say.
    pub async fn add_client(&self, client: &Client, now: Timestamp) -> Result<(), StoreError> {
        let done = bind(
            "INSERT INTO clients (id, kind, secret_digest, redirect_uris, post_logout_uris, scopes,
                profile, origin, created_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT DO NOTHING",
            client,
            OPERATOR,
            now.as_second(),
        )?
        .execute(&self.pool)
        .await?;
        if done.rows_affected() == 0 { Err(StoreError::ClientTaken) } else { Ok(()) }
    }

    /// Replaces the secret of a client that an operator made and that has one.
    pub async fn set_client_secret(&self, id: &str, digest: Vec<u8>) -> Result<(), StoreError> {
        let entry = self.operators_client(id).await?;
        if entry.client.kind == ClientKind::Public || entry.client.profile.has_keys() {
            return Err(StoreError::Invalid("this client has no secret"));
        }
        sqlx::query("UPDATE clients SET secret_digest = $1 WHERE id = $2 AND origin = $3")
            .bind(digest)
            .bind(id)
            .bind(OPERATOR)
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// Removes a client that an operator made, and withdraws all that it was given.
    pub async fn remove_client(&self, id: &str, now: Timestamp) -> Result<(), StoreError> {
        self.operators_client(id).await?;
        let mut tx = self.write().await?;
        // First, so that the gateways hear of its tokens.
        sqlx::query(
            "UPDATE access_tokens SET revoked_at = coalesce(revoked_at, $1)
             WHERE grant_id IN (SELECT id FROM grants WHERE client_id = $2)",
        )
        .bind(now.as_second())
        .bind(id)
        .execute(&mut *tx)
        .await?;
        sqlx::query("DELETE FROM clients WHERE id = $1 AND origin = $2")
            .bind(id)
            .bind(OPERATOR)
            .execute(&mut *tx)
            .await?;
        tx.commit().await?;
        Ok(())
    }

    async fn operators_client(&self, id: &str) -> Result<ClientEntry, StoreError> {
        let entry = self.client_entry(id).await?;
        let entry = entry.ok_or_else(|| StoreError::NoSuchClient(id.to_owned()))?;
        if entry.by_operator { Ok(entry) } else { Err(StoreError::ClientOfSettings) }
    }

    pub async fn client_entry(&self, id: &str) -> Result<Option<ClientEntry>, StoreError> {
        let row: Option<ClientRow> = sqlx::query_as("SELECT * FROM clients WHERE id = $1")
            .bind(id)
            .fetch_optional(&self.pool)
            .await?;
        row.map(ClientEntry::try_from).transpose()
    }

    pub async fn client(&self, id: &str) -> Result<Option<Client>, StoreError> {
        Ok(self.client_entry(id).await?.map(|entry| entry.client))
    }

    /// All of them, by id.
    pub async fn client_entries(&self) -> Result<Vec<ClientEntry>, StoreError> {
        let rows: Vec<ClientRow> =
            sqlx::query_as("SELECT * FROM clients ORDER BY id").fetch_all(&self.pool).await?;
        rows.into_iter().map(ClientEntry::try_from).collect()
    }

    pub(crate) async fn clients(&self) -> Result<Vec<Client>, StoreError> {
        Ok(self.client_entries().await?.into_iter().map(|entry| entry.client).collect())
    }

    /// Grows with each change of any client.
    pub(crate) async fn client_version(&self) -> Result<i64, StoreError> {
        Ok(sqlx::query_scalar("SELECT version FROM feeds WHERE name = 'clients'")
            .fetch_one(&self.pool)
            .await?)
    }
}

fn bind<'q>(
    statement: &'static str,
    client: &Client,
    origin: &'static str,
    created_at: i64,
) -> Result<Query<'q, Any, AnyArguments>, StoreError> {
    let profile = serde_json::to_string(&client.profile)
        .map_err(|_| StoreError::Invalid("a client cannot be written down"))?;
    Ok(sqlx::query(statement)
        .bind(client.id.clone())
        .bind(client.kind.as_str())
        .bind(client.secret_digest.clone())
        .bind(to_json(&client.redirect_uris))
        .bind(to_json(&client.post_logout_uris))
        .bind(client.scopes.join(" "))
        .bind(profile)
        .bind(origin)
        .bind(created_at))
}
