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

use super::{Person, Store, StoreError, check_label, seconds, service_accounts::is_workload, time};
use crate::{issuer::Issuer, scope};

/// Tokens of one person that are alive.
const TOKENS_MAX: i64 = 100;

/// How exactly the last use is kept, in seconds.
const EXACT: i64 = 60;

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
    /// The only workload that it reaches, as `project/name`. Such a token may have
    /// [`scope::LIMITED`] alone.
    pub workload: Option<&'a str>,
}

impl<'a> NewPersonalToken<'a> {
    /// One for a single workload.
    pub fn limited(
        name: &'a str,
        lifetime: Duration,
        audience: &'a str,
        workload: &'a str,
    ) -> Self {
        Self { name, lifetime, audience, scope: scope::LIMITED, workload: Some(workload) }
    }

    /// One that can do all that its person can.
    pub fn full(name: &'a str, lifetime: Duration, audience: &'a str) -> Self {
        Self { name, lifetime, audience, scope: scope::PERSONAL, workload: None }
    }
}

/// A token as it is listed: not the token itself, which is shown once.
#[derive(Debug, Clone, Serialize)]
pub struct PersonalToken {
    pub id: String,
    pub name: String,
    pub audience: String,
    pub scope: String,
    /// The only one that it reaches.
    pub workload: Option<String>,
    pub created_at: Timestamp,
    pub expires_at: Timestamp,
    /// To the minute or so; what gateways saw they tell once a minute.
    pub used_at: Option<Timestamp>,
    pub revoked: bool,
}

#[derive(FromRow)]
struct Row {
    jti: String,
    name: String,
    audience: String,
    scope: String,
    workload: Option<String>,
    created_at: i64,
    expires_at: i64,
    used_at: Option<i64>,
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
            workload: row.workload,
            used_at: row.used_at.map(time).transpose()?,
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
    ) -> Result<(String, PersonalToken), StoreError> {
        let person = self.person(user).await?.filter(|person| person.disabled_at.is_none());
        let person = person.ok_or_else(|| StoreError::NoSuchPerson(user.to_string()))?;
        let ring = self.key_ring(now).await?;
        let (claims, record) = self.record_personal_token(issuer, &person, &new, now).await?;
        Ok((ring.sign(TYP, &claims, now)?, record))
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
        if let Some(workload) = new.workload {
            if !is_workload(workload) {
                return Err(StoreError::Invalid("a workload is named `project/name`"));
            }
            if new.scope.split(' ').any(|one| !scope::contains(scope::LIMITED, one)) {
                return Err(StoreError::Invalid(
                    "a token that is limited to a workload may have the scopes workload:use and \
                     workload:manage alone",
                ));
            }
        }
        let issued_at = now.as_second();
        let expires_at = issued_at.saturating_add(seconds(new.lifetime));
        let token = PersonalToken {
            id: Uuid::new_v4().to_string(),
            name: new.name.to_owned(),
            audience: new.audience.to_owned(),
            scope: new.scope.to_owned(),
            workload: new.workload.map(str::to_owned),
            used_at: None,
            created_at: time(issued_at)?,
            expires_at: time(expires_at)
                .map_err(|_| StoreError::Invalid("that lifetime is too long"))?,
            revoked: false,
        };
        let mut tx = self.write().await?;
        self.lock_person(&mut tx, &person.subject).await?;
        // As they are now: a group may have been lost since the request began.
        let person = match self.person_in(&mut tx, &person.subject).await? {
            Some(person) if person.disabled_at.is_none() => person,
            _ => return Err(StoreError::Invalid("this person may not sign in any more")),
        };
        let done = sqlx::query(
            "INSERT INTO personal_tokens
             (jti, person_id, name, audience, scope, created_at, expires_at, workload)
             SELECT $1, id, $3, $4, $5, $6, $7, $9 FROM people
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
        .bind(new.workload)
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
            workload: token.workload.clone(),
        };
        Ok((claims, token))
    }

    /// The person's tokens, the newest first.
    pub async fn personal_tokens(&self, subject: &str) -> Result<Vec<PersonalToken>, StoreError> {
        sqlx::query_as::<_, Row>(
            "SELECT jti, name, audience, scope, workload, created_at, expires_at, used_at, revoked_at
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

    /// Notes when tokens were used last, each by its id and the second. Nothing is written for a use
    /// that is known to the minute already; a time that lies ahead of ours is now.
    pub async fn note_token_uses(
        &self,
        uses: &[(String, i64)],
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let mut tx = self.write().await?;
        for (id, at) in uses {
            let at = (*at).clamp(0, now.as_second());
            sqlx::query(
                "UPDATE personal_tokens SET used_at = $1
                 WHERE jti = $2 AND (used_at IS NULL OR used_at <= $3)",
            )
            .bind(at)
            .bind(id)
            .bind(at - EXACT)
            .execute(&mut *tx)
            .await?;
        }
        tx.commit().await?;
        Ok(())
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
