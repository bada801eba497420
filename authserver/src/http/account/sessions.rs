//! Where somebody is signed in, on which devices, and to which applications: each is ended here. None of
//! it needs a fresh sign-in, since nobody gets in by ending something.

use axum::{extract::RawForm, response::Response};
use jiff::Timestamp;

use super::{ACCOUNT, Answer, Visitor, minute};
use crate::{
    http::{
        authorize,
        error::{ApiError, PageError},
        params::Params,
    },
    scope,
    server::Server,
    store::{Application, FEDERATED, Session, SessionEntry, StoreError},
};

/// Sessions of one person that are shown.
const SHOWN: i64 = 200;

/// A session in the list.
pub(in crate::http) struct Line {
    pub id: String,
    /// `Firefox on Linux`, or the name of a device's application.
    pub what: String,
    pub device: bool,
    /// The one that shows the page.
    pub current: bool,
    pub address: Option<String>,
    /// `a password`
    pub method: &'static str,
    /// To the minute.
    pub began: String,
    /// When they last proved who they are, if that is known.
    pub proved: Option<String>,
    pub used: String,
}

/// An application in the list.
pub(in crate::http) struct ApplicationLine {
    pub id: String,
    pub name: String,
    pub rights: String,
    pub agreed: Option<Place>,
    pub signed_in: Option<Place>,
}

/// When and where something happened.
pub(in crate::http) struct Place {
    pub time: String,
    pub address: Option<String>,
}

impl Place {
    fn of((time, address): (Timestamp, Option<String>)) -> Self {
        Self { time: minute(time), address }
    }
}

async fn alive(
    app: &Server,
    session: &Session,
    now: Timestamp,
) -> Result<Vec<SessionEntry>, StoreError> {
    let mut all = app.store.list_sessions(Some(&session.person.name), SHOWN, now).await?;
    let oldest = now.as_second().saturating_sub(crate::store::seconds(app.session_idle));
    all.retain(|entry| entry.used_at.as_second() > oldest);
    Ok(all)
}

/// The one that shows the page first, and the others with the last used first.
pub(super) async fn lines(
    app: &Server,
    session: &Session,
    now: Timestamp,
) -> Result<Vec<Line>, StoreError> {
    let mut lines = Vec::new();
    for entry in alive(app, session, now).await? {
        let current = entry.id == session.id;
        let what = match &entry.device {
            Some(client) => name_of(app, client).await?,
            None => browser_of(entry.agent.as_deref().unwrap_or_default()),
        };
        let line = Line {
            what,
            device: entry.device.is_some(),
            current,
            address: entry.address,
            method: means(&entry.method),
            began: minute(entry.signed_in_at),
            proved: entry.authenticated_at.map(minute),
            used: minute(entry.used_at),
            id: entry.id,
        };
        lines.push(line);
    }
    lines.sort_by_key(|line| !line.current);
    Ok(lines)
}

/// Names of the devices that were approved in this browser, and end when it is signed out.
pub(in crate::http) async fn devices_of(
    app: &Server,
    session: &Session,
    browser: &str,
    now: Timestamp,
) -> Result<Vec<String>, StoreError> {
    let mut names = Vec::new();
    for entry in alive(app, session, now).await? {
        if let Some(client) = &entry.device
            && entry.browser.as_deref() == Some(browser)
        {
            names.push(name_of(app, client).await?);
        }
    }
    Ok(names)
}

pub(super) async fn applications(
    app: &Server,
    session: &Session,
    now: Timestamp,
) -> Result<Vec<ApplicationLine>, StoreError> {
    let mut lines = Vec::new();
    for one in app.store.applications(&session.person.subject, now).await? {
        let Application { client_id, scope, agreed, signed_in } = one;
        let rights: Vec<&str> = scope.split_ascii_whitespace().map(scope::explain).collect();
        lines.push(ApplicationLine {
            name: name_of(app, &client_id).await?,
            id: client_id,
            rights: rights.join(", "),
            agreed: agreed.map(Place::of),
            signed_in: signed_in.map(Place::of),
        });
    }
    Ok(lines)
}

async fn name_of(app: &Server, client_id: &str) -> Result<String, StoreError> {
    let client = app.clients.get(client_id).await?;
    Ok(client.map_or_else(|| client_id.to_owned(), |client| client.name().to_owned()))
}

/// How somebody proved who they are, by its `amr`.
fn means(method: &str) -> &'static str {
    match method {
        "pwd" => "a password",
        "pop" => "a passkey",
        FEDERATED => "another provider",
        _ => "another means",
    }
}

/// A browser's and a system's name out of a `User-Agent`, as well as can be told: it is a claim.
fn browser_of(agent: &str) -> String {
    let first = |names: &[(&str, &'static str)]| {
        names.iter().find(|(mark, _)| agent.contains(mark)).map(|(_, name)| *name)
    };
    // Each says that it is those behind it, too.
    let browser = first(&[
        ("Edg", "Edge"),
        ("OPR/", "Opera"),
        ("Firefox/", "Firefox"),
        ("FxiOS/", "Firefox"),
        ("Chrome/", "Chrome"),
        ("CriOS/", "Chrome"),
        ("Safari/", "Safari"),
        ("curl/", "curl"),
    ]);
    let system = first(&[
        ("Android", "Android"),
        ("iPhone", "iPhone"),
        ("iPad", "iPad"),
        ("Windows", "Windows"),
        ("Mac OS X", "macOS"),
        ("CrOS", "ChromeOS"),
        ("Linux", "Linux"),
    ]);
    match (browser, system) {
        (Some(browser), Some(system)) => format!("{browser} on {system}"),
        (Some(one), None) | (None, Some(one)) => one.to_owned(),
        (None, None) => "A browser".to_owned(),
    }
}

pub(in crate::http) async fn end(
    visitor: Visitor,
    RawForm(form): RawForm,
) -> Result<Response, PageError> {
    let form = Params::parse(&form);
    let id = form.get("id").unwrap_or_default();
    let subject = &visitor.session.person.subject;
    // One that is over already is what was asked for.
    if visitor.app.store.end_own_session(subject, id, visitor.caller.now).await? {
        visitor.actor().record(&visitor.app, "session-ended", &format!("Session {id}"));
    }
    Ok(authorize::see_other(ACCOUNT))
}

pub(in crate::http) async fn end_others(visitor: Visitor) -> Result<Response, PageError> {
    let Visitor { app, caller, session, .. } = &visitor;
    let subject = &session.person.subject;
    app.store.end_other_sessions(subject, &session.id, caller.now).await?;
    let person = format!("Person {}", session.person.name);
    visitor.actor().record(app, "sessions-ended", &person);
    Ok(authorize::see_other(ACCOUNT))
}

pub(in crate::http) async fn withdraw(
    visitor: Visitor,
    RawForm(form): RawForm,
) -> Result<Response, PageError> {
    let form = Params::parse(&form);
    let Some(id) = form.get("id") else {
        let error = ApiError::BadRequest("name the application".to_owned());
        return visitor.told(error, Answer::default()).await;
    };
    let Visitor { app, caller, session, .. } = &visitor;
    if app.store.withdraw_application(&session.person.subject, id, caller.now).await? {
        visitor.actor().record(app, "application-withdrawn", &format!("Client {id}"));
    }
    Ok(authorize::see_other(ACCOUNT))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn browsers_are_named_as_people_know_them() {
        for (agent, name) in [
            (
                "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0",
                "Firefox on Linux",
            ),
            (
                "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) \
                 Chrome/140.0.0.0 Safari/537.36 Edg/140.0.0.0",
                "Edge on Windows",
            ),
            (
                "Mozilla/5.0 (iPhone; CPU iPhone OS 18_5 like Mac OS X) AppleWebKit/605.1.15 (KHTML, \
                 like Gecko) Version/18.5 Mobile/15E148 Safari/604.1",
                "Safari on iPhone",
            ),
            ("curl/8.14.1", "curl"),
            ("", "A browser"),
        ] {
            assert_eq!(browser_of(agent), name);
        }
    }

    proptest! {
        #[test]
        fn no_text_of_a_strangers_is_shown(agent in "\\PC{0,60}") {
            let named = browser_of(&agent);
            prop_assert!(named.len() < 30 && named.bytes().all(|b| b.is_ascii_alphabetic() || b == b' '));
        }
    }
}
