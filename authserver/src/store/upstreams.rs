//! People who sign in at other providers.

use std::collections::BTreeSet;

use jiff::Timestamp;
use sqlx::{Any, Transaction};
use uuid::Uuid;

use super::{Person, Session, Store, StoreError, list, people::PersonRow, to_json};
use crate::{
    federation::{Email, Groups, Profile},
    secret,
};

/// How long somebody may take at a provider, in seconds.
const REQUEST_LIFETIME: i64 = 1800;

/// A sign-in that is under way at a provider.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpstreamRequest {
    /// What it is for.
    pub goal: String,
    /// Whether the person has to prove who they are even if they are signed in there.
    pub again: bool,
    /// Seconds since the epoch.
    pub asked_at: i64,
}

/// Where a session began.
#[derive(Debug, Clone, Copy)]
pub struct Origin<'a> {
    /// The provider's id in the settings.
    pub provider: &'a str,
    pub issuer: &'a str,
    pub subject: &'a str,
    pub id_token: &'a str,
}

/// Who came from a provider.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Arrival {
    Known(Person),
    /// For the first time.
    New(Person),
    Disabled(Person),
    /// For the first time, and somebody else has the name already.
    NameTaken,
    /// The provider does not say whether they are in a group that may come in, and never said so.
    NotAdmitted,
}

impl Store {
    pub async fn begin_upstream(
        &self,
        state: &str,
        browser: &str,
        provider: &str,
        request: &UpstreamRequest,
    ) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO upstream_requests
             (digest, browser, provider, goal, again, created_at, expires_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7)",
        )
        .bind(secret::digest(state))
        .bind(browser)
        .bind(provider)
        .bind(&request.goal)
        .bind(i64::from(request.again))
        .bind(request.asked_at)
        .bind(request.asked_at.saturating_add(REQUEST_LIFETIME))
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// The request of that state, once, to the browser that began it and from the provider that
    /// it was sent to. Anybody else uses nothing up.
    pub async fn take_upstream(
        &self,
        state: &str,
        browser: &str,
        provider: &str,
        now: Timestamp,
    ) -> Result<Option<UpstreamRequest>, StoreError> {
        let row: Option<(String, i64, i64)> = sqlx::query_as(
            "DELETE FROM upstream_requests
             WHERE digest = $1 AND browser = $2 AND provider = $3 AND expires_at > $4
             RETURNING goal, again, created_at",
        )
        .bind(secret::digest(state))
        .bind(browser)
        .bind(provider)
        .bind(now.as_second())
        .fetch_optional(&self.pool)
        .await?;
        Ok(row.map(|(goal, again, asked_at)| UpstreamRequest { goal, again: again != 0, asked_at }))
    }

    /// Finds the person by issuer and subject, and brings e-mail address and groups up to date; or
    /// makes them, if nobody has the name.
    pub async fn arrive(
        &self,
        issuer: &str,
        subject: &str,
        profile: &Profile,
        now: Timestamp,
    ) -> Result<Arrival, StoreError> {
        // Of two first sign-ins at once, one makes the person and the other finds them.
        for _ in 0..2 {
            if let Some(found) = self.find_upstream(issuer, subject, profile, now).await? {
                return Ok(found);
            }
            if let Some(made) = self.make_upstream(issuer, subject, profile, now).await? {
                return Ok(made);
            }
        }
        Ok(Arrival::NameTaken)
    }

    async fn find_upstream(
        &self,
        issuer: &str,
        subject: &str,
        profile: &Profile,
        now: Timestamp,
    ) -> Result<Option<Arrival>, StoreError> {
        let mut tx = self.write().await?;
        let row: Option<PersonRow> = sqlx::query_as(self.dialect.pick(
            "SELECT p.id, p.name, p.email, p.groups, p.disabled_at FROM upstream_identities u JOIN people p ON p.id = u.person_id
             WHERE u.issuer = $1 AND u.subject = $2",
            "SELECT p.id, p.name, p.email, p.groups, p.disabled_at FROM upstream_identities u JOIN people p ON p.id = u.person_id
             WHERE u.issuer = $1 AND u.subject = $2 FOR UPDATE",
        ))
        .bind(issuer)
        .bind(subject)
        .fetch_optional(&mut *tx)
        .await?;
        let Some(row) = row else { return Ok(None) };
        let mut person = Person::try_from(row)?;
        if person.disabled_at.is_some() {
            return Ok(Some(Arrival::Disabled(person)));
        }
        let admitted: Option<String> = sqlx::query_scalar(
            "SELECT admitted FROM upstream_identities WHERE issuer = $1 AND subject = $2",
        )
        .bind(issuer)
        .bind(subject)
        .fetch_one(&mut *tx)
        .await?;
        let before = admitted.as_deref().map_or(Ok(Vec::new()), list)?;
        if !profile.may_come_in(&before) {
            return Ok(Some(Arrival::NotAdmitted));
        }
        if let Email::Said(email) = &profile.email {
            person.email.clone_from(email);
        }
        let operators = operators_groups(&mut tx, &person).await?;
        match &profile.groups {
            Ok(said) => {
                person.groups =
                    in_effect(&mut tx, (issuer, subject), &person, operators, said).await?;
                sqlx::query(
                    "UPDATE upstream_identities
                     SET groups = $1, groups_at = $2, admitted = $3, silent_since = NULL
                     WHERE issuer = $4 AND subject = $5",
                )
                .bind(to_json(&said.ours))
                .bind(now.as_second())
                .bind(to_json(&said.admitted))
                .bind(issuer)
                .bind(subject)
                .execute(&mut *tx)
                .await?;
            }
            Err(_) => {
                sqlx::query(
                    "UPDATE upstream_identities SET silent_since = coalesce(silent_since, $1)
                     WHERE issuer = $2 AND subject = $3",
                )
                .bind(now.as_second())
                .bind(issuer)
                .bind(subject)
                .execute(&mut *tx)
                .await?;
            }
        }
        sqlx::query("UPDATE people SET email = $1, groups = $2 WHERE id = $3")
            .bind(&person.email)
            .bind(to_json(&person.groups))
            .bind(&person.subject)
            .execute(&mut *tx)
            .await?;
        sqlx::query(
            "UPDATE upstream_identities SET signed_in_at = $1 WHERE issuer = $2 AND subject = $3",
        )
        .bind(now.as_second())
        .bind(issuer)
        .bind(subject)
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(Some(Arrival::Known(person)))
    }

    /// None when the name is taken, perhaps by the same identity at the same moment.
    async fn make_upstream(
        &self,
        issuer: &str,
        subject: &str,
        profile: &Profile,
        now: Timestamp,
    ) -> Result<Option<Arrival>, StoreError> {
        if !profile.may_come_in(&[]) {
            return Ok(Some(Arrival::NotAdmitted));
        }
        let id = Uuid::new_v4().to_string();
        let email = match &profile.email {
            Email::Said(email) => email.clone(),
            Email::Unsaid => None,
        };
        let said = profile.groups.as_ref().ok();
        let groups = said.map(|said| said.ours.clone()).unwrap_or_default();
        let mut tx = self.write().await?;
        let person = sqlx::query(
            "INSERT INTO people (id, name, email, groups, created_at) VALUES ($1, $2, $3, $4, $5)
             ON CONFLICT (name) DO NOTHING",
        )
        .bind(&id)
        .bind(profile.name.as_str())
        .bind(&email)
        .bind(to_json(&groups))
        .bind(now.as_second())
        .execute(&mut *tx)
        .await?;
        if person.rows_affected() == 0 {
            return Ok(None);
        }
        let identity = sqlx::query(
            "INSERT INTO upstream_identities (issuer, subject, person_id, created_at, signed_in_at,
                groups, groups_at, admitted, silent_since)
             VALUES ($1, $2, $3, $4, $4, $5, $6, $7, $8) ON CONFLICT (issuer, subject) DO NOTHING",
        )
        .bind(issuer)
        .bind(subject)
        .bind(&id)
        .bind(now.as_second())
        .bind(said.map(|said| to_json(&said.ours)))
        .bind(said.map(|_| now.as_second()))
        .bind(said.map(|said| to_json(&said.admitted)))
        .bind(said.is_none().then_some(now.as_second()))
        .execute(&mut *tx)
        .await?;
        if identity.rows_affected() == 0 {
            return Ok(None);
        }
        keep_operators_groups(&mut tx, &id, &[]).await?;
        tx.commit().await?;
        Ok(Some(Arrival::New(Person {
            subject: id,
            name: profile.name.clone(),
            email,
            groups,
            disabled_at: None,
        })))
    }

    /// Remembers at which provider the session began. False when whoever came is no longer tied to
    /// the person: somebody has undone that since they arrived.
    pub async fn keep_upstream(
        &self,
        session: &Session,
        origin: &Origin<'_>,
    ) -> Result<bool, StoreError> {
        let done = sqlx::query(self.dialect.pick(
            "INSERT INTO upstream_sessions (session_id, provider, id_token)
             SELECT $1, $2, $3 FROM upstream_identities
             WHERE issuer = $4 AND subject = $5 AND person_id = $6",
            "INSERT INTO upstream_sessions (session_id, provider, id_token)
             SELECT $1, $2, $3 FROM upstream_identities
             WHERE issuer = $4 AND subject = $5 AND person_id = $6 FOR SHARE",
        ))
        .bind(&session.id)
        .bind(origin.provider)
        .bind(origin.id_token)
        .bind(origin.issuer)
        .bind(origin.subject)
        .bind(&session.person.subject)
        .execute(&self.pool)
        .await?;
        Ok(done.rows_affected() == 1)
    }

    /// The provider's id and its ID token, if the session began at one.
    pub async fn upstream_of(
        &self,
        session_id: &str,
    ) -> Result<Option<(String, String)>, StoreError> {
        Ok(sqlx::query_as("SELECT provider, id_token FROM upstream_sessions WHERE session_id = $1")
            .bind(session_id)
            .fetch_optional(&self.pool)
            .await?)
    }

    pub async fn clean_up_upstreams(&self, now: Timestamp) -> Result<(), StoreError> {
        sqlx::query("DELETE FROM upstream_requests WHERE expires_at < $1")
            .bind(now.as_second())
            .execute(&self.pool)
            .await?;
        Ok(())
    }
}

/// Writes down which groups an operator gives: no provider takes them away.
pub(super) async fn keep_operators_groups(
    tx: &mut Transaction<'static, Any>,
    subject: &str,
    groups: &[String],
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO operator_groups (person_id, groups) VALUES ($1, $2)
         ON CONFLICT (person_id) DO UPDATE SET groups = excluded.groups",
    )
    .bind(subject)
    .bind(to_json(groups))
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// The groups that an operator gave. Where nobody wrote that down, those of a person who has not
/// come from a provider yet; it is written down then.
async fn operators_groups(
    tx: &mut Transaction<'static, Any>,
    person: &Person,
) -> Result<Vec<String>, StoreError> {
    let kept: Option<String> =
        sqlx::query_scalar("SELECT groups FROM operator_groups WHERE person_id = $1")
            .bind(&person.subject)
            .fetch_optional(&mut **tx)
            .await?;
    if let Some(kept) = kept {
        return list(&kept);
    }
    let came: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM upstream_identities
         WHERE person_id = $1 AND signed_in_at IS NOT NULL",
    )
    .bind(&person.subject)
    .fetch_one(&mut **tx)
    .await?;
    let groups = if came == 0 { person.groups.clone() } else { Vec::new() };
    keep_operators_groups(tx, &person.subject, &groups).await?;
    Ok(groups)
}

/// What counts once a provider has said its groups: they, the operator's, and what the person has
/// from other providers. What nobody vouches for goes.
async fn in_effect(
    tx: &mut Transaction<'static, Any>,
    (issuer, subject): (&str, &str),
    person: &Person,
    operators: Vec<String>,
    said: &Groups,
) -> Result<Vec<String>, StoreError> {
    let others: Vec<String> = sqlx::query_scalar(
        "SELECT groups FROM upstream_identities
         WHERE person_id = $1 AND groups IS NOT NULL AND NOT (issuer = $2 AND subject = $3)",
    )
    .bind(&person.subject)
    .bind(issuer)
    .bind(subject)
    .fetch_all(&mut **tx)
    .await?;
    let mut all: BTreeSet<String> = operators.into_iter().chain(said.ours.clone()).collect();
    for other in others {
        // Only what they have still: it may have been taken away since that one said it.
        all.extend(list(&other)?.into_iter().filter(|group| person.groups.contains(group)));
    }
    Ok(all.into_iter().collect())
}
