//! When and how somebody proved who they are.

use domain::name::UserName;
use jiff::Timestamp;

use super::{Session, Store, StoreError, list, time, to_json};

/// `amr` of a session whose person came from a provider, as it is kept: what the provider says of the
/// means is beside it.
pub(crate) const FEDERATED: &str = "fed";

/// A proof of who somebody is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authentication {
    /// By which way they came: `pwd`, `pop` or `fed`.
    pub method: String,
    /// `auth_time`. None when the provider that they came from does not say it.
    pub at: Option<Timestamp>,
    /// `amr` (RFC 8176). Empty when nobody says it.
    pub amr: Vec<String>,
    /// `acr`, when a provider said one.
    pub acr: Option<String>,
}

impl Authentication {
    /// Here, by a password or a passkey.
    pub fn here(method: &str, now: Timestamp) -> Self {
        let method = method.to_owned();
        Self { amr: vec![method.clone()], method, at: Some(now), acr: None }
    }

    /// At a provider, which says nothing more about it.
    pub fn elsewhere() -> Self {
        Self { method: FEDERATED.to_owned(), at: None, amr: Vec::new(), acr: None }
    }

    pub fn is_federated(&self) -> bool {
        self.method == FEDERATED
    }

    /// As it was written down; an older server leaves all but `method` empty.
    pub(super) fn read(
        method: String,
        created_at: i64,
        auth_time: Option<i64>,
        amr: Option<&str>,
        acr: Option<String>,
    ) -> Result<Self, StoreError> {
        let federated = method == FEDERATED;
        let at = auth_time.or((!federated).then_some(created_at));
        let amr = match amr {
            Some(amr) => list(amr)?,
            None if federated => Vec::new(),
            None => vec![method.clone()],
        };
        Ok(Self { method, at: at.map(time).transpose()?, amr, acr })
    }
}

impl Store {
    /// Writes down that the person of the session has proved once more who they are: the session as it
    /// is then. None when it has ended.
    pub async fn confirm_session(
        &self,
        mut session: Session,
        method: &str,
        now: Timestamp,
    ) -> Result<Option<Session>, StoreError> {
        let proof = &mut session.authentication;
        proof.at = Some(now);
        if !proof.amr.iter().any(|known| known == method) {
            proof.amr.push(method.to_owned());
        }
        let done = sqlx::query(
            "UPDATE sessions SET auth_time = $1, amr = $2 WHERE id = $3 AND ended_at IS NULL",
        )
        .bind(now.as_second())
        .bind(to_json(&proof.amr))
        .bind(&session.id)
        .execute(&self.pool)
        .await?;
        Ok((done.rows_affected() == 1).then_some(session))
    }

    /// Whether the password is the person's second proof: the one for that, else their own.
    pub async fn check_second_password(
        &self,
        subject: &str,
        password: &str,
    ) -> Result<bool, StoreError> {
        let stored: Option<Option<String>> = sqlx::query_scalar(
            "SELECT coalesce(proof_hash, password_hash) FROM people
             WHERE id = $1 AND disabled_at IS NULL",
        )
        .bind(subject)
        .fetch_optional(&self.pool)
        .await?;
        Ok(self.passwords.check(password, stored.flatten()).await?)
    }

    /// Whether the person has one that is for that alone.
    pub async fn has_own_second_password(&self, subject: &str) -> Result<bool, StoreError> {
        let found: Option<String> =
            sqlx::query_scalar("SELECT id FROM people WHERE id = $1 AND proof_hash IS NOT NULL")
                .bind(subject)
                .fetch_optional(&self.pool)
                .await?;
        Ok(found.is_some())
    }

    /// Whether there is one.
    pub async fn has_second_password(&self, subject: &str) -> Result<bool, StoreError> {
        let found: Option<String> = sqlx::query_scalar(
            "SELECT id FROM people
             WHERE id = $1 AND coalesce(proof_hash, password_hash) IS NOT NULL",
        )
        .bind(subject)
        .fetch_optional(&self.pool)
        .await?;
        Ok(found.is_some())
    }

    /// Sets the password that is a second proof and signs nobody in, or takes it away.
    pub async fn set_second_password(
        &self,
        name: &UserName,
        password: Option<&str>,
    ) -> Result<(), StoreError> {
        let hash = match password {
            Some(password) => Some(self.passwords.hash(password).await?),
            None => None,
        };
        let done = sqlx::query("UPDATE people SET proof_hash = $1 WHERE name = $2")
            .bind(hash)
            .bind(name.as_str())
            .execute(&self.pool)
            .await?;
        super::people::found(done.rows_affected(), name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_older_server_wrote_is_known_of_who_signed_in_here_and_unknown_of_others() {
        let read = |method: &str, auth_time, amr| {
            Authentication::read(method.to_owned(), 1000, auth_time, amr, None).unwrap()
        };
        let at = |seconds| Some(Timestamp::from_second(seconds).unwrap());
        let old = read("pwd", None, None);
        assert_eq!((old.at, old.amr), (at(1000), vec!["pwd".to_owned()]));
        let old = read("fed", None, None);
        assert_eq!((old.at, old.amr), (None, Vec::new()));
        let new = read("fed", Some(10), Some(r#"["mfa","otp"]"#));
        assert_eq!((new.at, new.amr), (at(10), vec!["mfa".to_owned(), "otp".to_owned()]));
        assert!(Authentication::read("fed".to_owned(), 0, None, Some("{"), None).is_err());
    }
}
