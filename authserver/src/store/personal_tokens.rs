//! Personal access tokens: access tokens with a long life and a name, listed and withdrawn by hand.

use std::time::Duration;

use domain::{
    name::UserName,
    token::{Audience, Claims, TYP, TokenKind},
};
use jiff::Timestamp;
use serde::Serialize;
use sqlx::FromRow;
use uuid::Uuid;

use super::{Person, Store, StoreError, check_label, seconds, time};
use crate::{issuer::Issuer, scope};

/// Tokens of one person that are alive.
const TOKENS_MAX: i64 = 100;

/// What `client_id` says in a token that no client asked for.
const CLIENT: &str = "personal";

#[derive(Debug)]
pub struct NewPersonalToken<'a> {
    /// What the person calls it.
    pub name: &'a str,
    pub lifetime: Duration,
    pub audience: &'a str,
    /// Separated by spaces; [`scope::PERSONAL`] is all there is.
    pub scope: &'a str,
}

impl<'a> NewPersonalToken<'a> {
    /// One that can do all that its person can.
    pub fn full(name: &'a str, lifetime: Duration, audience: &'a str) -> Self {
        Self { name, lifetime, audience, scope: scope::PERSONAL }
    }
}

/// A token as it is listed: not the token itself, which is shown once.
#[derive(Debug, Clone, Serialize)]
pub struct PersonalToken {
    pub id: String,
    pub name: String,
    pub audience: String,
    pub scope: String,
    pub created_at: Timestamp,
    pub expires_at: Timestamp,
    pub revoked: bool,
}

#[derive(FromRow)]
struct Row {
    jti: String,
    name: String,
    audience: String,
    scope: String,
    created_at: i64,
    expires_at: i64,
    revoked_at: Option<i64>,
}

impl TryFrom<Row> for PersonalToken {
    type Error = StoreError;
    fn try_from(row: Row) -> Result<Self, StoreError> {
        Ok(Self {
            id: row.jti,
            name: row.name,
            audience: row.audience,
            scope: row.scope,
            created_at: time(row.created_at)?,
            expires_at: time(row.expires_at)?,
            revoked: row.revoked_at.is_some(),
        })
    }
}

impl Store {
    /// Makes a token for the person of that name; it is returned once and kept nowhere.
    pub async fn issue_personal_token(
        &self,
        issuer: &Issuer,
        user: &UserName,
        new: NewPersonalToken<'_>,
        now: Timestamp,
    ) -> Result<String, StoreError> {
        let person = self.person(user).await?.filter(|person| person.disabled_at.is_none());
        let person = person.ok_or_else(|| StoreError::NoSuchPerson(user.to_string()))?;
        let ring = self.key_ring(now).await?;
        let (claims, _) = self.record_personal_token(issuer, &person, &new, now).await?;
        Ok(ring.sign(TYP, &claims, now)?)
    }

    /// Writes a token down and returns what is to be signed.
    pub(crate) async fn record_personal_token(
        &self,
        issuer: &Issuer,
        person: &Person,
        new: &NewPersonalToken<'_>,
        now: Timestamp,
    ) -> Result<(Claims, PersonalToken), StoreError> {
        check_label(new.name)?;
        let issued_at = now.as_second();
        let expires_at = issued_at.saturating_add(seconds(new.lifetime));
        let token = PersonalToken {
            id: Uuid::new_v4().to_string(),
            name: new.name.to_owned(),
            audience: new.audience.to_owned(),
            scope: new.scope.to_owned(),
            created_at: time(issued_at)?,
            expires_at: time(expires_at)
                .map_err(|_| StoreError::Invalid("that lifetime is too long"))?,
            revoked: false,
        };
        let mut tx = self.write().await?;
        self.lock_person(&mut tx, &person.subject).await?;
        let done = sqlx::query(
            "INSERT INTO personal_tokens
             (jti, person_id, name, audience, scope, created_at, expires_at)
             SELECT $1, id, $3, $4, $5, $6, $7 FROM people
             WHERE id = $2 AND disabled_at IS NULL AND $8 > (SELECT count(*) FROM personal_tokens
                WHERE person_id = $2 AND revoked_at IS NULL AND expires_at > $6)",
        )
        .bind(&token.id)
        .bind(&person.subject)
        .bind(&token.name)
        .bind(&token.audience)
        .bind(&token.scope)
        .bind(issued_at)
        .bind(expires_at)
        .bind(TOKENS_MAX)
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        if done.rows_affected() == 0 {
            return Err(StoreError::TooMany("100 tokens"));
        }
        let claims = Claims {
            iss: issuer.as_str().to_owned(),
            sub: person.subject.clone(),
            aud: Audience::One(token.audience.clone()),
            exp: expires_at,
            nbf: issued_at,
            iat: issued_at,
            jti: token.id.clone(),
            client_id: CLIENT.to_owned(),
            sid: None,
            scope: token.scope.clone(),
            preferred_username: person.name.to_string(),
            email: person.email.clone(),
            groups: person.groups.clone(),
            kind: TokenKind::Personal,
            workload: None,
        };
        Ok((claims, token))
    }

    /// The person's tokens, the newest first.
    pub async fn personal_tokens(&self, subject: &str) -> Result<Vec<PersonalToken>, StoreError> {
        sqlx::query_as::<_, Row>(
            "SELECT jti, name, audience, scope, created_at, expires_at, revoked_at
             FROM personal_tokens WHERE person_id = $1 ORDER BY created_at DESC, jti LIMIT 1000",
        )
        .bind(subject)
        .fetch_all(&self.pool)
        .await?
        .into_iter()
        .map(PersonalToken::try_from)
        .collect()
    }

    /// False when the person has no such token.
    pub async fn revoke_personal_token(
        &self,
        subject: &str,
        id: &str,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let done = sqlx::query(
            "UPDATE personal_tokens SET revoked_at = coalesce(revoked_at, $1)
             WHERE jti = $2 AND person_id = $3",
        )
        .bind(now.as_second())
        .bind(id)
        .bind(subject)
        .execute(&self.pool)
        .await?;
        Ok(done.rows_affected() == 1)
    }

    /// The person of a token, if neither is withdrawn.
    pub async fn personal_token_holder(&self, jti: &str) -> Result<Option<Person>, StoreError> {
        let subject: Option<String> = sqlx::query_scalar(
            "SELECT person_id FROM personal_tokens WHERE jti = $1 AND revoked_at IS NULL",
        )
        .bind(jti)
        .fetch_optional(&self.pool)
        .await?;
        let Some(subject) = subject else { return Ok(None) };
        let person = self.person_by_subject(&subject).await?;
        Ok(person.filter(|person| person.disabled_at.is_none()))
    }
}
