//! Codes, refresh tokens and access tokens: each belongs to a grant, and dies with it.

use std::time::Duration;

use domain::name::UserName;
use jiff::Timestamp;
use sqlx::FromRow;
use uuid::Uuid;

use super::{
    Person, RefreshToken, Session, Store, StoreError, people::PersonRow, refresh_token::Place,
    seconds,
};
use crate::{
    pkce,
    secret::{Secret, digest},
};

/// How long a code is valid (RFC 6749, section 4.1.2, allows ten minutes at most).
const CODE_LIFETIME: i64 = 60;

/// What a code is bound to.
#[derive(Debug)]
pub struct NewCode<'a> {
    pub session_id: &'a str,
    pub client_id: &'a str,
    pub scope: &'a str,
    pub redirect_uri: &'a str,
    pub challenge: &'a pkce::Challenge,
    pub nonce: Option<&'a str>,
}

/// What a code or a refresh token was exchanged for: the right to be issued tokens.
#[derive(Debug)]
pub struct Redeemed {
    pub grant_id: String,
    pub session: Session,
    pub scope: String,
    pub nonce: Option<String>,
    /// To be presented the next time.
    pub refresh_token: Option<RefreshToken>,
    /// Audiences of the grant's own (RFC 8707); none for the usual one.
    pub resources: Vec<String>,
    /// `jti` of an access token that is written down already.
    pub recorded: Option<String>,
}

/// Why a code or refresh token was refused. To the client all of them are `invalid_grant`.
#[derive(Debug, thiserror::Error)]
pub enum RedeemError {
    #[error("it is not known")]
    Unknown,
    #[error("it belongs to another client")]
    ForeignClient,
    #[error("the code was used before; all that it gave is withdrawn")]
    Replayed,
    /// With whose it was, as long as their session lives.
    #[error("it was exchanged before, and somebody else may have it; sign in again")]
    Reused(Option<UserName>),
    #[error("it has expired")]
    Expired,
    #[error("redirect_uri is not the one that the code was sent to")]
    RedirectUri,
    #[error("code_verifier does not match code_challenge")]
    Verifier,
    #[error("the session is over")]
    SessionOver,
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<sqlx::Error> for RedeemError {
    fn from(error: sqlx::Error) -> Self {
        Self::Store(error.into())
    }
}

#[derive(FromRow)]
struct CodeRow {
    grant_id: String,
    session_id: String,
    client_id: String,
    scope: String,
    redirect_uri: String,
    challenge: String,
    nonce: Option<String>,
    expires_at: i64,
    used_at: Option<i64>,
    revoked_at: Option<i64>,
}

impl Store {
    /// A grant, and the code for it.
    pub async fn issue_code(&self, new: NewCode<'_>, now: Timestamp) -> Result<Secret, StoreError> {
        let (grant_id, code) = (Uuid::new_v4().to_string(), Secret::generate());
        let mut tx = self.write().await?;
        sqlx::query(
            "INSERT INTO grants (id, session_id, client_id, scope, created_at)
             VALUES ($1, $2, $3, $4, $5)",
        )
        .bind(&grant_id)
        .bind(new.session_id)
        .bind(new.client_id)
        .bind(new.scope)
        .bind(now.as_second())
        .execute(&mut *tx)
        .await?;
        sqlx::query(
            "INSERT INTO codes (digest, grant_id, redirect_uri, challenge, nonce, expires_at)
             VALUES ($1, $2, $3, $4, $5, $6)",
        )
        .bind(code.digest())
        .bind(&grant_id)
        .bind(new.redirect_uri)
        .bind(new.challenge.as_str())
        .bind(new.nonce)
        .bind(now.as_second() + CODE_LIFETIME)
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(code)
    }

    /// Uses a code up. A second use withdraws what the first one gave (RFC 6749, section 4.1.2).
    pub async fn redeem_code(
        &self,
        code: &str,
        client_id: &str,
        redirect_uri: &str,
        verifier: &pkce::Verifier,
        idle: Duration,
        now: Timestamp,
    ) -> Result<Redeemed, RedeemError> {
        let mut tx = self.write().await?;
        let row: Option<CodeRow> = sqlx::query_as(self.dialect.pick(
            "SELECT c.grant_id, g.session_id, g.client_id, g.scope, c.redirect_uri, c.challenge,
                    c.nonce, c.expires_at, c.used_at, g.revoked_at
             FROM codes c JOIN grants g ON g.id = c.grant_id WHERE c.digest = $1",
            "SELECT c.grant_id, g.session_id, g.client_id, g.scope, c.redirect_uri, c.challenge,
                    c.nonce, c.expires_at, c.used_at, g.revoked_at
             FROM codes c JOIN grants g ON g.id = c.grant_id WHERE c.digest = $1 FOR UPDATE",
        ))
        .bind(digest(code))
        .fetch_optional(&mut *tx)
        .await?;
        let row = row.ok_or(RedeemError::Unknown)?;
        if row.used_at.is_some() {
            sqlx::query("UPDATE grants SET revoked_at = coalesce(revoked_at, $1) WHERE id = $2")
                .bind(now.as_second())
                .bind(&row.grant_id)
                .execute(&mut *tx)
                .await?;
            tx.commit().await?;
            return Err(RedeemError::Replayed);
        }
        // A stranger cannot use the code up.
        if row.client_id != client_id {
            return Err(RedeemError::ForeignClient);
        }
        // From here on the code is spent, whatever comes of it: no second guess at the verifier.
        sqlx::query("UPDATE codes SET used_at = $1 WHERE digest = $2")
            .bind(now.as_second())
            .bind(digest(code))
            .execute(&mut *tx)
            .await?;
        let refusal = if row.expires_at <= now.as_second() {
            Some(RedeemError::Expired)
        } else if row.revoked_at.is_some() {
            Some(RedeemError::SessionOver)
        } else if row.redirect_uri != redirect_uri {
            Some(RedeemError::RedirectUri)
        } else if !verifier.matches(&row.challenge) {
            Some(RedeemError::Verifier)
        } else {
            None
        };
        if let Some(refusal) = refusal {
            tx.commit().await?;
            return Err(refusal);
        }
        let place = Place { grant_id: row.grant_id.clone(), generation: 0 };
        let refresh_token = RefreshToken::first(&place);
        sqlx::query(
            "INSERT INTO refresh_tokens (grant_id, generation, digest, says_place, created_at)
             VALUES ($1, $2, $3, 1, $4)",
        )
        .bind(place.grant_id)
        .bind(place.generation)
        .bind(refresh_token.digest())
        .bind(now.as_second())
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        let session = self.session_by_id(&row.session_id, idle, now).await?;
        Ok(Redeemed {
            session: session.ok_or(RedeemError::SessionOver)?,
            scope: row.scope,
            nonce: row.nonce,
            refresh_token: Some(refresh_token),
            resources: self.grant_resources(&row.grant_id).await?,
            grant_id: row.grant_id,
            recorded: None,
        })
    }

    /// Writes down an access token before it is handed out, and says whose it is as they are at
    /// that moment: a group that is lost later withdraws the token. None when its grant has been
    /// withdrawn or its person is disabled: then it must not be handed out.
    pub async fn record_access_token(
        &self,
        jti: &str,
        grant_id: &str,
        lifetime: Duration,
        now: Timestamp,
    ) -> Result<Option<Person>, StoreError> {
        let mut tx = self.write().await?;
        let row: Option<PersonRow> = sqlx::query_as(self.dialect.pick(
            "SELECT p.id, p.name, p.email, p.groups, p.disabled_at FROM grants g JOIN sessions s ON s.id = g.session_id
             JOIN people p ON p.id = s.person_id
             WHERE g.id = $1 AND g.revoked_at IS NULL AND p.disabled_at IS NULL",
            // Whoever withdraws the grant or changes the person at this moment does so before us,
            // or sees our token.
            "SELECT p.id, p.name, p.email, p.groups, p.disabled_at FROM grants g JOIN sessions s ON s.id = g.session_id
             JOIN people p ON p.id = s.person_id
             WHERE g.id = $1 AND g.revoked_at IS NULL AND p.disabled_at IS NULL
             FOR SHARE OF g, p",
        ))
        .bind(grant_id)
        .fetch_optional(&mut *tx)
        .await?;
        let Some(row) = row else { return Ok(None) };
        sqlx::query("INSERT INTO access_tokens (jti, grant_id, expires_at) VALUES ($1, $2, $3)")
            .bind(jti)
            .bind(grant_id)
            .bind(now.as_second().saturating_add(seconds(lifetime)))
            .execute(&mut *tx)
            .await?;
        tx.commit().await?;
        row.try_into().map(Some)
    }

    /// The person of an access token, if it has not been withdrawn and its session is alive.
    pub async fn access_token_holder(
        &self,
        jti: &str,
        idle: Duration,
        now: Timestamp,
    ) -> Result<Option<Person>, StoreError> {
        let found = self.access_token_session(jti, idle, now).await?;
        Ok(found.map(|(_, session)| session.person))
    }

    /// The same with the token's grant and the whole session.
    pub async fn access_token_session(
        &self,
        jti: &str,
        idle: Duration,
        now: Timestamp,
    ) -> Result<Option<(String, Session)>, StoreError> {
        let Some(grant) = self.access_token_grant(jti).await? else { return Ok(None) };
        let session: Option<String> = sqlx::query_scalar(
            "SELECT session_id FROM grants WHERE id = $1 AND revoked_at IS NULL",
        )
        .bind(&grant)
        .fetch_optional(&self.pool)
        .await?;
        let Some(session) = session else { return Ok(None) };
        Ok(self.session_by_id(&session, idle, now).await?.map(|session| (grant, session)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::{ClientConfig, NewPerson},
        store::Authentication,
    };

    const URI: &str = "https://app.example/cb";
    const HOUR: Duration = Duration::from_secs(3600);

    #[tokio::test]
    async fn a_token_has_the_groups_of_the_moment_in_which_it_is_written_down() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("auth.db").into()).await.unwrap();
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        let alice: UserName = "alice".parse().unwrap();
        let in_groups = async |groups: &[&str]| {
            let groups = groups.iter().map(|&group| group.to_owned()).collect();
            let person = NewPerson { name: alice.clone(), email: None, groups };
            store.ensure_user(&person, None, now).await.unwrap()
        };
        let app = ClientConfig {
            redirect_uris: vec![URI.to_owned()],
            ..ClientConfig::named("app".to_owned())
        };
        store.add_client(&app, now).await.unwrap();
        let person = in_groups(&["ml", "ops"]).await;
        let (session, _) = store
            .begin_session(person, &Authentication::here("pwd", now), HOUR, now)
            .await
            .unwrap();
        let verifier = pkce::Verifier::parse(&"v".repeat(43)).unwrap();
        let code = NewCode {
            session_id: &session.id,
            client_id: "app",
            scope: "openid",
            redirect_uri: URI,
            challenge: &verifier.challenge(),
            nonce: None,
        };
        let code = store.issue_code(code, now).await.unwrap();
        let redeemed = store.redeem_code(code.as_str(), "app", URI, &verifier, HOUR, now).await;
        let redeemed = redeemed.unwrap();
        assert_eq!(redeemed.session.person.groups, ["ml", "ops"]);
        let record = async |jti: &str| {
            store.record_access_token(jti, &redeemed.grant_id, HOUR, now).await.unwrap()
        };
        let holder = async |jti: &str| store.access_token_holder(jti, HOUR, now).await.unwrap();

        // Before the token: it is not in it. After: the token is withdrawn.
        in_groups(&["ml"]).await;
        assert_eq!(record("first").await.unwrap().groups, ["ml"]);
        assert!(holder("first").await.is_some());
        in_groups(&[]).await;
        assert!(holder("first").await.is_none());
        store.disable_user(&alice, now).await.unwrap();
        assert!(record("second").await.is_none());
    }
}
