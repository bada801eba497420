//! Which accounts at other providers are whose, as operators tie and untie them.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use domain::name::UserName;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sqlx::{Any, FromRow, Transaction};

use super::{Store, StoreError, list, sessions, time};
use crate::federation::is_issuer;

/// An account at another provider, and what the provider said of its groups.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Identity {
    pub issuer: String,
    pub subject: String,
    pub signed_in_at: Option<Timestamp>,
    /// Those that it said last, by our names. None when it never said any.
    pub groups: Option<Vec<String>>,
    /// When it said so.
    pub groups_at: Option<Timestamp>,
    /// Since when it says nothing.
    pub groups_silent_since: Option<Timestamp>,
}

#[derive(FromRow)]
struct IdentityRow {
    issuer: String,
    subject: String,
    signed_in_at: Option<i64>,
    groups: Option<String>,
    groups_at: Option<i64>,
    silent_since: Option<i64>,
}

impl TryFrom<IdentityRow> for Identity {
    type Error = StoreError;
    fn try_from(row: IdentityRow) -> Result<Self, StoreError> {
        Ok(Self {
            issuer: row.issuer,
            subject: row.subject,
            signed_in_at: row.signed_in_at.map(time).transpose()?,
            groups: row.groups.as_deref().map(list).transpose()?,
            groups_at: row.groups_at.map(time).transpose()?,
            groups_silent_since: row.silent_since.map(time).transpose()?,
        })
    }
}

/// What came of untying an account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unlinked {
    /// Sessions that had begun with it.
    pub ended: u64,
    pub left: Ways,
}

/// How somebody can sign in, as far as the database knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Ways {
    /// Of use where the settings allow signing in here.
    pub password: bool,
    /// How many. Of use where the settings allow signing in here.
    pub passkeys: i64,
    /// Of use where the settings name the provider.
    pub providers: Vec<Identity>,
}

impl Store {
    /// Lets an existing person sign in at a provider from now on: an operator's decision, which no
    /// claim can replace. The issuer is compared character by character.
    pub async fn link_upstream(
        &self,
        name: &UserName,
        issuer: &str,
        subject: &str,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        if !is_issuer(issuer) {
            return Err(StoreError::Invalid(
                "name the provider by its issuer URL, as in the settings: https://login.example.com",
            ));
        }
        if subject.is_empty() || subject.trim() != subject {
            return Err(StoreError::Invalid("a subject is not empty, and has no spaces around it"));
        }
        let person = self.person(name).await?;
        let person = person.ok_or_else(|| StoreError::NoSuchPerson(name.to_string()))?;
        let mut tx = self.write().await?;
        let done = sqlx::query(
            "INSERT INTO upstream_identities (issuer, subject, person_id, created_at)
             VALUES ($1, $2, $3, $4) ON CONFLICT (issuer, subject) DO NOTHING",
        )
        .bind(issuer)
        .bind(subject)
        .bind(&person.subject)
        .bind(now.as_second())
        .execute(&mut *tx)
        .await?;
        if done.rows_affected() == 0 {
            let holder: String = sqlx::query_scalar(
                "SELECT p.name FROM upstream_identities u JOIN people p ON p.id = u.person_id
                 WHERE u.issuer = $1 AND u.subject = $2",
            )
            .bind(issuer)
            .bind(subject)
            .fetch_one(&mut *tx)
            .await?;
            // Linked to the same person before: nothing to do.
            if holder != name.as_str() {
                return Err(StoreError::IdentityTaken { subject: subject.to_owned(), holder });
            }
        }
        tx.commit().await?;
        Ok(())
    }

    /// Undoes that, and ends the sessions that began with the account. From then on it is a
    /// stranger's, who comes in under a name that is free, or not at all.
    pub async fn unlink_upstream(
        &self,
        name: &UserName,
        issuer: &str,
        subject: &str,
        now: Timestamp,
    ) -> Result<Unlinked, StoreError> {
        let person = self.person(name).await?;
        let person = person.ok_or_else(|| StoreError::NoSuchPerson(name.to_string()))?;
        let mut tx = self.write().await?;
        // First: a session that begins at this moment is seen below, or finds nothing to begin with.
        let done = sqlx::query(
            "DELETE FROM upstream_identities WHERE issuer = $1 AND subject = $2 AND person_id = $3",
        )
        .bind(issuer)
        .bind(subject)
        .bind(&person.subject)
        .execute(&mut *tx)
        .await?;
        if done.rows_affected() == 0 {
            let (name, subject) = (name.to_string(), subject.to_owned());
            return Err(StoreError::NotLinked { name, subject });
        }
        let mut ended = 0;
        // Again until there are none: a device that was being let in by one of them has one now.
        loop {
            let sessions: Vec<(String, String)> = sqlx::query_as(
                "SELECT s.id, u.id_token FROM sessions s
                 JOIN upstream_sessions u ON u.session_id = s.id
                 WHERE s.person_id = $1 AND s.ended_at IS NULL AND s.expires_at > $2",
            )
            .bind(&person.subject)
            .bind(now.as_second())
            .fetch_all(&mut *tx)
            .await?;
            let began = |(_, token): &&(String, String)| began_with(token, issuer, subject);
            let alive: Vec<_> = sessions.iter().filter(began).collect();
            if alive.is_empty() {
                break;
            }
            for (id, _) in alive {
                sessions::end(&mut tx, id, now).await?;
                ended += 1;
            }
        }
        let left = ways(&mut tx, &person.subject).await?;
        tx.commit().await?;
        Ok(Unlinked { ended, left })
    }

    /// What is known of an account at a provider, if it is anybody's.
    pub(crate) async fn upstream_identity(
        &self,
        issuer: &str,
        subject: &str,
    ) -> Result<Option<Identity>, StoreError> {
        sqlx::query_as::<_, IdentityRow>(
            "SELECT issuer, subject, signed_in_at, groups, groups_at, silent_since
             FROM upstream_identities WHERE issuer = $1 AND subject = $2",
        )
        .bind(issuer)
        .bind(subject)
        .fetch_optional(&self.pool)
        .await?
        .map(Identity::try_from)
        .transpose()
    }

    /// How the person can sign in.
    pub async fn ways_to_sign_in(&self, subject: &str) -> Result<Ways, StoreError> {
        ways(&mut self.snapshot().await?, subject).await
    }
}

async fn ways(tx: &mut Transaction<'static, Any>, subject: &str) -> Result<Ways, StoreError> {
    let passwords: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM people WHERE id = $1 AND password_hash IS NOT NULL",
    )
    .bind(subject)
    .fetch_one(&mut **tx)
    .await?;
    let passkeys = sqlx::query_scalar(
        "SELECT count(*) FROM passkeys WHERE person_id = $1 AND blocked_at IS NULL",
    )
    .bind(subject)
    .fetch_one(&mut **tx)
    .await?;
    let providers: Vec<IdentityRow> = sqlx::query_as(
        "SELECT issuer, subject, signed_in_at, groups, groups_at, silent_since
         FROM upstream_identities WHERE person_id = $1 ORDER BY issuer, subject",
    )
    .bind(subject)
    .fetch_all(&mut **tx)
    .await?;
    let providers = providers.into_iter().map(Identity::try_from).collect::<Result<_, _>>()?;
    Ok(Ways { password: passwords > 0, passkeys, providers })
}

/// Whether the session of that ID token began with the account. The token was verified when it came;
/// one that cannot be read counts, since a session too many is ended more easily than brought back.
fn began_with(id_token: &str, issuer: &str, subject: &str) -> bool {
    #[derive(Deserialize)]
    struct Claims {
        iss: String,
        sub: String,
    }
    let payload = id_token.split('.').nth(1).and_then(|part| URL_SAFE_NO_PAD.decode(part).ok());
    let claims = payload.and_then(|json| serde_json::from_slice::<Claims>(&json).ok());
    claims.is_none_or(|claims| claims.iss == issuer && claims.sub == subject)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        federation::{Email, NoGroups, Profile},
        store::{Arrival, Authentication, Origin},
    };

    #[test]
    fn a_session_began_with_the_account_that_its_id_token_names() {
        let token = |claims: &str| format!("x.{}.x", URL_SAFE_NO_PAD.encode(claims));
        let corp = "https://login.example.com";
        let own = token(r#"{"iss":"https://login.example.com","sub":"u-1","aud":"dormouse"}"#);
        assert!(began_with(&own, corp, "u-1"));
        assert!(!began_with(&own, corp, "u-2"));
        assert!(!began_with(&own, "https://other.example.com", "u-1"));
        for unreadable in ["", "x.y.z", &token("{}")] {
            assert!(began_with(unreadable, corp, "u-1"), "{unreadable}");
        }
    }

    /// Who is on the way in while an operator unties the account does not come in.
    #[tokio::test]
    async fn no_session_begins_with_an_account_that_was_untied_meanwhile() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("auth.db").into()).await.unwrap();
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        let (issuer, name) = ("https://login.example.com", "carol".parse().unwrap());
        let groups = Err(NoGroups::Missing);
        let (email, admitted_before) = (Email::Unsaid, Vec::new());
        let profile = Profile { name, email, groups, admitted_before };
        let arrival = store.arrive(issuer, "u-1", &profile, now).await.unwrap();
        let Arrival::New(carol) = arrival else { panic!("{arrival:?}") };
        let origin = Origin { provider: "corp", issuer, subject: "u-1", id_token: "x" };
        let begin = async || {
            let (hour, proof) = (Duration::from_secs(3600), Authentication::elsewhere());
            store.begin_session(carol.clone(), &proof, hour, now).await.unwrap().0
        };
        assert!(store.keep_upstream(&begin().await, &origin).await.unwrap());
        let late = begin().await;
        let done = store.unlink_upstream(&carol.name, issuer, "u-1", now).await.unwrap();
        assert_eq!(done.ended, 1);
        assert!(!store.keep_upstream(&late, &origin).await.unwrap());
    }
}
