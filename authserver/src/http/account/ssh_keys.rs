//! SSH keys on the account page, by the rules of the API.

use axum::{extract::RawForm, response::Response};
use jiff::Timestamp;

use super::{ACCOUNT, Answer, Change, day};
use crate::{
    http::{
        authorize,
        error::PageError,
        params::Params,
        ssh_keys::{self, Challenge, Proof},
    },
    server::Server,
    ssh_signature,
    store::{Session, SshKey},
};

/// How long before its end people are told of it, in seconds.
const NOTICE: i64 = 30 * 24 * 3600;

/// A key in the list.
pub(in crate::http) struct Line {
    pub id: String,
    pub name: String,
    pub fingerprint: String,
    /// Days.
    pub added: String,
    pub ends: String,
    pub used: Option<String>,
    /// What its owner has to know or do; empty for nothing.
    pub notice: &'static str,
    /// Ends earlier, with the application that made it.
    pub by_token: bool,
}

impl Line {
    pub(super) fn new(key: SshKey, now: Timestamp) -> Self {
        Self {
            notice: notice(&key, now),
            added: day(key.created_at),
            ends: day(key.expires_at),
            used: key.used_at.map(day),
            by_token: key.by_token,
            id: key.id,
            name: key.name,
            fingerprint: key.fingerprint,
        }
    }
}

fn notice(key: &SshKey, now: Timestamp) -> &'static str {
    let left = key.expires_at.as_second().saturating_sub(now.as_second());
    if left <= 0 {
        "It has ended and signs you in no longer. Register it again under “New key”."
    } else if left <= NOTICE && !key.by_token {
        "It ends soon. Register it again under “New key” to go on using it."
    } else if !key.proven {
        "It was added before keys had to be proven, and ends on the day above. Register it again \
         under “New key” to go on using it."
    } else {
        ""
    }
}

/// The form as somebody filled it in.
pub(in crate::http) struct Form {
    name: String,
    challenge: String,
    signature: String,
}

impl Form {
    fn read(form: &Params) -> Self {
        let text = |name| form.get(name).unwrap_or_default().trim().to_owned();
        Self { name: text("name"), challenge: text("challenge"), signature: text("signature") }
    }
}

/// The form as it is shown. What was pasted is not: it was over the text of before.
pub(in crate::http) struct NewKey {
    pub name: String,
    /// What to run where the key is.
    pub command: String,
    pub challenge: String,
    pub opened: bool,
}

impl NewKey {
    pub(super) fn new(app: &Server, session: &Session, form: Option<Form>, now: Timestamp) -> Self {
        let challenge = Challenge::new(app, &session.person, now);
        Self {
            command: ssh_signature::command(&challenge.text),
            challenge: challenge.seal(app),
            opened: form.is_some(),
            name: form.map(|form| form.name).unwrap_or_default(),
        }
    }
}

pub(in crate::http) async fn add(
    Change(visitor): Change,
    RawForm(form): RawForm,
) -> Result<Response, PageError> {
    let form = Form::read(&Params::parse(&form));
    let proof = Proof { challenge: &form.challenge, signature: &form.signature, grant: None };
    match ssh_keys::register(&visitor.app, &visitor.actor(), &form.name, &proof).await {
        Ok(_) => Ok(authorize::see_other(ACCOUNT)),
        Err(error) => visitor.told(error, Answer { key: Some(form), ..Answer::default() }).await,
    }
}

pub(in crate::http) async fn remove(
    Change(visitor): Change,
    RawForm(form): RawForm,
) -> Result<Response, PageError> {
    let form = Params::parse(&form);
    let id = form.get("id").unwrap_or_default();
    visitor.removed(ssh_keys::take_away(&visitor.app, &visitor.actor(), id).await).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_are_told_of_keys_that_end_or_were_never_proven() {
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        let at = |days: i64| Timestamp::from_second(1_800_000_000 + days * 86_400).unwrap();
        let key = |days, proven, by_token| SshKey {
            id: "i".to_owned(),
            name: "n".to_owned(),
            fingerprint: "SHA256:x".to_owned(),
            public_key: "ssh-ed25519 x".to_owned(),
            created_at: at(-300),
            expires_at: at(days),
            used_at: None,
            proven,
            by_token,
        };
        assert_eq!(notice(&key(100, true, false), now), "");
        assert_eq!(notice(&key(3, true, true), now), "");
        assert!(notice(&key(30, true, false), now).starts_with("It ends soon"));
        assert!(notice(&key(0, true, false), now).starts_with("It has ended"));
        assert!(notice(&key(65, false, false), now).starts_with("It was added before"));
    }
}
