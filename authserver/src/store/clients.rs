//! The applications that may sign people in.

use jiff::Timestamp;
use serde::Serialize;
use sqlx::{Any, FromRow, Transaction, any::AnyArguments, query::Query};

use super::{Dialect, Store, StoreError, list, time, to_json};
use crate::{
    client::{Client, ClientKind, GrantType},
    config::ClientConfig,
    secret::Secret,
};

/// A client as it is listed, and never with a secret.
#[derive(Debug, Clone, Serialize)]
pub struct ClientEntry {
    pub id: String,
    pub name: Option<String>,
    /// How it proves who it is, by its registered name (RFC 7591, section 2): `none`,
    /// `client_secret_basic` (the same secret is taken in the form, too) or `private_key_jwt`.
    pub auth_method: &'static str,
    /// Where its keys are, if not in the database.
    pub jwks_uri: Option<String>,
    pub redirect_uris: Vec<String>,
    pub post_logout_redirect_uris: Vec<String>,
    pub back_channel_logout_uri: Option<String>,
    pub grant_types: Vec<GrantType>,
    pub scopes: Vec<String>,
    pub resources: Vec<String>,
    pub third_party: bool,
    pub pushed_requests_only: bool,
    /// True when it is in the settings' file, and false when an operator made it by command.
    pub in_settings: bool,
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

impl TryFrom<ClientRow> for Client {
    type Error = StoreError;
    fn try_from(row: ClientRow) -> Result<Self, StoreError> {
        Ok(Self {
            id: row.id,
            kind: ClientKind::parse(&row.kind).ok_or(StoreError::Damaged("a client's kind"))?,
            secret_digest: row.secret_digest,
            redirect_uris: list(&row.redirect_uris)?,
            post_logout_uris: list(&row.post_logout_uris)?,
            scopes: row.scopes.split_ascii_whitespace().map(str::to_owned).collect(),
            profile: serde_json::from_str(&row.profile)
                .map_err(|_| StoreError::Damaged("a client's profile"))?,
        })
    }
}

impl TryFrom<ClientRow> for ClientEntry {
    type Error = StoreError;
    fn try_from(row: ClientRow) -> Result<Self, StoreError> {
        let in_settings = row.origin == SETTINGS;
        let created_at = (!in_settings).then(|| time(row.created_at)).transpose()?;
        let client = Client::try_from(row)?;
        let auth_method = match client.kind {
            ClientKind::Public => "none",
            _ if client.profile.has_keys() => "private_key_jwt",
            ClientKind::Gate | ClientKind::Confidential => "client_secret_basic",
        };
        let profile = client.profile;
        Ok(Self {
            id: client.id,
            name: profile.name,
            auth_method,
            jwks_uri: profile.jwks_uri,
            redirect_uris: client.redirect_uris,
            post_logout_redirect_uris: client.post_logout_uris,
            back_channel_logout_uri: profile.back_channel_logout_uri,
            grant_types: profile.grant_types,
            scopes: client.scopes,
            resources: profile.resources,
            third_party: profile.third_party,
            pushed_requests_only: profile.pushed_only,
            in_settings,
            created_at,
        })
    }
}

impl Store {
    /// Makes the table what the settings say. All that was given to a client that is gone from them is
    /// withdrawn; those that operators made stay, unless the settings have one of the same id.
    pub(super) async fn write_clients(
        &self,
        tx: &mut Transaction<'static, Any>,
        clients: &[Client],
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let known: Vec<String> =
            sqlx::query_scalar("SELECT id FROM clients WHERE origin = $1 ORDER BY id")
                .bind(SETTINGS)
                .fetch_all(&mut **tx)
                .await?;
        for gone in known.iter().filter(|id| !clients.iter().any(|client| client.id == **id)) {
            self.delete_client(tx, gone, SETTINGS, now).await?;
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
            .execute(&mut **tx)
            .await?;
        }
        Ok(())
    }

    /// Adds a client that stays whatever the settings say, and returns its secret if one was made
    /// for it: nobody can see it again.
    pub async fn add_client(
        &self,
        config: &ClientConfig,
        now: Timestamp,
    ) -> Result<Option<String>, StoreError> {
        let (client, secret) = Client::register(config)?;
        let done = bind(
            "INSERT INTO clients (id, kind, secret_digest, redirect_uris, post_logout_uris, scopes,
                profile, origin, created_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT DO NOTHING",
            &client,
            OPERATOR,
            now.as_second(),
        )?
        .execute(&self.pool)
        .await?;
        if done.rows_affected() == 0 {
            return Err(StoreError::ClientTaken(client.id));
        }
        Ok(secret.map(|secret| secret.as_str().to_owned()))
    }

    /// Gives a new secret to a client that an operator made; the old one is worth nothing within about
    /// a second, when every server has heard of it. What the client was given stays.
    pub async fn rotate_client_secret(&self, id: &str) -> Result<String, StoreError> {
        let client = self.operators_client(id).await?;
        if client.kind == ClientKind::Public || client.profile.has_keys() {
            return Err(StoreError::Invalid("this client has no secret"));
        }
        let secret = Secret::generate();
        sqlx::query("UPDATE clients SET secret_digest = $1 WHERE id = $2 AND origin = $3")
            .bind(secret.digest())
            .bind(id)
            .bind(OPERATOR)
            .execute(&self.pool)
            .await?;
        Ok(secret.as_str().to_owned())
    }

    /// Removes a client that an operator made, and withdraws all that it was given.
    pub async fn remove_client(&self, id: &str, now: Timestamp) -> Result<(), StoreError> {
        self.operators_client(id).await?;
        let mut tx = self.write().await?;
        self.delete_client(&mut tx, id, OPERATOR, now).await?;
        tx.commit().await?;
        Ok(())
    }

    /// Deletes a client, and withdraws all that it was given.
    async fn delete_client(
        &self,
        tx: &mut Transaction<'static, Any>,
        id: &str,
        origin: &'static str,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        if self.dialect == Dialect::Postgres {
            // Nobody gives it anything from now on, and what is being given is waited for.
            sqlx::query("SELECT id FROM clients WHERE id = $1 FOR UPDATE")
                .bind(id)
                .fetch_optional(&mut **tx)
                .await?;
        }
        // Before it goes, so that the gateways hear of its tokens.
        sqlx::query("UPDATE grants SET revoked_at = coalesce(revoked_at, $1) WHERE client_id = $2")
            .bind(now.as_second())
            .bind(id)
            .execute(&mut **tx)
            .await?;
        sqlx::query("DELETE FROM clients WHERE id = $1 AND origin = $2")
            .bind(id)
            .bind(origin)
            .execute(&mut **tx)
            .await?;
        Ok(())
    }

    async fn operators_client(&self, id: &str) -> Result<Client, StoreError> {
        match self.client_row(id).await? {
            None => Err(StoreError::NoSuchClient(id.to_owned())),
            Some(row) if row.origin == OPERATOR => row.try_into(),
            Some(_) => Err(StoreError::ClientOfSettings(id.to_owned())),
        }
    }

    async fn client_row(&self, id: &str) -> Result<Option<ClientRow>, StoreError> {
        Ok(sqlx::query_as("SELECT * FROM clients WHERE id = $1")
            .bind(id)
            .fetch_optional(&self.pool)
            .await?)
    }

    async fn client_rows(&self) -> Result<Vec<ClientRow>, StoreError> {
        Ok(sqlx::query_as("SELECT * FROM clients ORDER BY id").fetch_all(&self.pool).await?)
    }

    pub async fn client(&self, id: &str) -> Result<Option<Client>, StoreError> {
        self.client_row(id).await?.map(Client::try_from).transpose()
    }

    pub(crate) async fn clients(&self) -> Result<Vec<Client>, StoreError> {
        self.client_rows().await?.into_iter().map(Client::try_from).collect()
    }

    /// One of them, as it is shown.
    pub async fn show_client(&self, id: &str) -> Result<Option<ClientEntry>, StoreError> {
        self.client_row(id).await?.map(ClientEntry::try_from).transpose()
    }

    /// All of them, by id, as they are shown.
    pub async fn list_clients(&self) -> Result<Vec<ClientEntry>, StoreError> {
        self.client_rows().await?.into_iter().map(ClientEntry::try_from).collect()
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
