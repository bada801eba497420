//! SSH keys on the account page, by the rules of the API.

use axum::{extract::RawForm, response::Response};

use super::{ACCOUNT, Answer, Change, day};
use crate::{
    http::{authorize, error::PageError, params::Params, ssh_keys},
    store::SshKey,
};

/// A key in the list.
pub(in crate::http) struct Line {
    pub id: String,
    pub name: String,
    pub fingerprint: String,
    /// A day.
    pub added: String,
}

impl From<SshKey> for Line {
    fn from(key: SshKey) -> Self {
        let SshKey { id, name, fingerprint, created_at, .. } = key;
        Self { id, name, fingerprint, added: day(created_at) }
    }
}

/// The form as somebody filled it in.
#[derive(Default)]
pub(in crate::http) struct Form {
    pub name: String,
    pub public_key: String,
}

impl Form {
    fn read(form: &Params) -> Self {
        let text = |name| form.get(name).unwrap_or_default().trim().to_owned();
        Self { name: text("name"), public_key: text("public_key") }
    }

    /// What was typed, or the comment behind the key.
    fn label(&self) -> String {
        if !self.name.is_empty() {
            return self.name.clone();
        }
        self.public_key.split_ascii_whitespace().skip(2).collect::<Vec<_>>().join(" ")
    }

    /// To be shown again. A private key that was pasted by mistake is not sent anywhere once more.
    fn kept(mut self) -> Self {
        if self.public_key.contains("PRIVATE KEY") {
            self.public_key.clear();
        }
        self
    }
}

pub(in crate::http) async fn add(
    Change(visitor): Change,
    RawForm(form): RawForm,
) -> Result<Response, PageError> {
    let form = Form::read(&Params::parse(&form));
    let (app, actor) = (&visitor.app, visitor.actor());
    match ssh_keys::register(app, &actor, &form.label(), &form.public_key).await {
        Ok(_) => Ok(authorize::see_other(ACCOUNT)),
        Err(error) => {
            visitor.told(error, Answer { key: Some(form.kept()), ..Answer::default() }).await
        }
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
