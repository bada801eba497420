//! SSH keys on the account page, by the rules of the API.

use axum::{
    extract::{RawForm, State},
    http::HeaderMap,
    response::Response,
};

use super::{ACCOUNT, Answer, day, is_fresh, page};
use crate::{
    http::{
        Caller, authorize,
        bearer::Actor,
        error::{ApiError, PageError},
        params::Params,
        sign_in::check_origin,
        ssh_keys,
    },
    server::App,
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
    State(app): State<App>,
    caller: Caller,
    headers: HeaderMap,
    RawForm(form): RawForm,
) -> Result<Response, PageError> {
    check_origin(&app, &headers)?;
    let Some(session) = authorize::session(&app, &headers, caller.now).await? else {
        return Ok(authorize::see_other(ACCOUNT));
    };
    let form = Form::read(&Params::parse(&form));
    if !is_fresh(&session, caller.now) {
        return page(&app, &headers, caller, &session, Answer::late()).await;
    }
    let actor = Actor { person: &session.person, credential: None, caller };
    match ssh_keys::register(&app, &actor, &form.label(), &form.public_key).await {
        Ok(_) => Ok(authorize::see_other(ACCOUNT)),
        Err(error) => {
            let (status, problem) = error.on_page()?;
            let answer = Answer { status, problem, key: Some(form.kept()), ..Answer::default() };
            page(&app, &headers, caller, &session, answer).await
        }
    }
}

pub(in crate::http) async fn remove(
    State(app): State<App>,
    caller: Caller,
    headers: HeaderMap,
    RawForm(form): RawForm,
) -> Result<Response, PageError> {
    check_origin(&app, &headers)?;
    let Some(session) = authorize::session(&app, &headers, caller.now).await? else {
        return Ok(authorize::see_other(ACCOUNT));
    };
    if !is_fresh(&session, caller.now) {
        return page(&app, &headers, caller, &session, Answer::late()).await;
    }
    let form = Params::parse(&form);
    let actor = Actor { person: &session.person, credential: None, caller };
    match ssh_keys::take_away(&app, &actor, form.get("id").unwrap_or_default()).await {
        // One that is gone already is what was asked for.
        Ok(_) | Err(ApiError::NotFound(_)) => Ok(authorize::see_other(ACCOUNT)),
        Err(error) => {
            let (status, problem) = error.on_page()?;
            let answer = Answer { status, problem, ..Answer::default() };
            page(&app, &headers, caller, &session, answer).await
        }
    }
}
