//! Access tokens on the account page, by the rules of the API.

use axum::{extract::RawForm, response::Response};
use jiff::{SignedDuration, Timestamp};

use super::{Answer, Change, day, minute};
use crate::{
    http::{
        bearer::Actor,
        error::{ApiError, PageError},
        pages::{self, TokenPage},
        params::Params,
        tokens,
    },
    scope,
    server::Server,
    store::{NewPersonalToken, PersonalToken, Session, StoreError},
};

const DAY: u64 = 24 * 3600;

/// Lives to choose from, in days.
const LIVES: [u64; 4] = [1, 7, 30, 90];

/// The one that is chosen already, in seconds.
const USUAL: u64 = 30 * DAY;

/// What a token of the page may do at most. One that may make other tokens is only for the API.
const OFFERED: [(&str, &str); 3] = [
    ("workload:use", "Use workloads"),
    ("workload:manage", "Manage workloads: change, start and stop them"),
    ("usage:read", "Read how much is used"),
];

/// A token in the list.
pub(in crate::http) struct Line {
    pub id: String,
    pub name: String,
    pub may: String,
    pub workload: Option<String>,
    /// To the minute.
    pub expires: String,
    /// A day.
    pub used: Option<String>,
}

/// The form as somebody filled it in.
pub(super) struct Form {
    name: String,
    /// Seconds.
    expires_in: Option<u64>,
    workload: String,
    /// Separated by spaces.
    scope: String,
}

/// The form as it is shown.
pub(in crate::http) struct NewToken {
    pub name: String,
    pub workload: String,
    pub lives: Vec<Choice>,
    pub scopes: Vec<Choice>,
    pub opened: bool,
}

pub(in crate::http) struct Choice {
    pub value: String,
    pub label: String,
    pub chosen: bool,
}

impl Form {
    fn read(form: &Params) -> Self {
        let text = |name| form.get(name).unwrap_or_default().trim().to_owned();
        Self {
            name: text("name"),
            expires_in: form.get("expires_in").and_then(|text| text.parse().ok()),
            workload: text("workload"),
            scope: form.all("scope").collect::<Vec<_>>().join(" "),
        }
    }
}

impl NewToken {
    pub(super) fn new(app: &Server, form: Option<Form>) -> Self {
        let opened = form.is_some();
        let form = form.unwrap_or_else(|| Form {
            name: String::new(),
            expires_in: None,
            workload: String::new(),
            scope: "workload:use".to_owned(),
        });
        let longest = app.personal_token_max.as_secs();
        let mut lives: Vec<u64> = LIVES.iter().map(|days| days * DAY).collect();
        lives.retain(|life| *life <= longest);
        if lives.is_empty() {
            lives.push(longest);
        }
        let known = |life: &u64| lives.contains(life);
        let usual = lives.iter().copied().filter(|life| *life <= USUAL).max();
        let chosen = form.expires_in.filter(known).or(usual);
        let life = |life: &u64| Choice {
            value: life.to_string(),
            label: length(*life),
            chosen: Some(*life) == chosen,
        };
        let scope = |(value, label): &(&str, &str)| Choice {
            value: (*value).to_owned(),
            label: (*label).to_owned(),
            chosen: scope::contains(&form.scope, value),
        };
        Self {
            lives: lives.iter().map(life).collect(),
            scopes: OFFERED.iter().map(scope).collect(),
            name: form.name,
            workload: form.workload,
            opened,
        }
    }
}

/// `7 days`
fn length(seconds: u64) -> String {
    match (seconds / DAY, seconds % DAY) {
        (1, 0) => "1 day".to_owned(),
        (days, 0) => format!("{days} days"),
        _ => {
            let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
            format!("{:#}", SignedDuration::from_secs(seconds))
        }
    }
}

/// Those that are good still.
pub(super) async fn lines(
    app: &Server,
    session: &Session,
    now: Timestamp,
) -> Result<Vec<Line>, StoreError> {
    let all = app.store.personal_tokens(&session.person.subject).await?;
    let alive = all.into_iter().filter(|token| !token.revoked && token.expires_at > now);
    let line = |token: PersonalToken| Line {
        may: explain(&token.scope),
        id: token.id,
        name: token.name,
        workload: token.workload,
        expires: minute(token.expires_at),
        used: token.used_at.map(day),
    };
    Ok(alive.map(line).collect())
}

fn explain(scopes: &str) -> String {
    let told = [
        ("workload:use", "use workloads"),
        ("workload:manage", "manage workloads"),
        ("usage:read", "read usage"),
        (scope::ACCOUNT, "manage tokens and keys"),
    ];
    let told = told.iter().filter(|(scope, _)| scope::contains(scopes, scope));
    let told: Vec<&str> = told.map(|(_, text)| *text).collect();
    if told.is_empty() { "say who you are".to_owned() } else { told.join(", ") }
}

/// Answers with the token itself: it is in no address, no cookie and no other page.
pub(in crate::http) async fn make(
    Change(visitor): Change,
    RawForm(form): RawForm,
) -> Result<Response, PageError> {
    let form = Form::read(&Params::parse(&form));
    match issue(&visitor.app, &visitor.actor(), &form).await {
        Ok(created) => Ok(shown(&visitor.app, &created)),
        Err(error) => visitor.told(error, Answer { token: Some(form), ..Answer::default() }).await,
    }
}

async fn issue(app: &Server, actor: &Actor<'_>, form: &Form) -> Result<tokens::Created, ApiError> {
    if form.scope.is_empty() {
        return Err(ApiError::BadRequest("choose what the token may do".to_owned()));
    }
    let most: Vec<&str> = OFFERED.iter().map(|(scope, _)| *scope).collect();
    let new = NewPersonalToken {
        name: &form.name,
        lifetime: tokens::lifetime(app, form.expires_in)?,
        audience: &app.audience,
        scope: &tokens::narrowed(&form.scope, &most.join(" "))?,
        workload: Some(form.workload.as_str()).filter(|workload| !workload.is_empty()),
    };
    tokens::issue(app, actor, &new).await
}

fn shown(app: &Server, created: &tokens::Created) -> Response {
    let record = &created.record;
    let host = match record.workload.as_deref().and_then(|workload| workload.split_once('/')) {
        Some((project, name)) => format!("{name}--{project}"),
        None => "NAME--PROJECT".to_owned(),
    };
    let address = app.gate.start_page(&host);
    let opens = scope::contains(&record.scope, "workload:use");
    pages::plain(&TokenPage {
        name: &record.name,
        expires: &minute(record.expires_at),
        token: &created.token,
        address: opens.then_some(address.as_str()),
        exact: record.workload.is_some(),
    })
}

pub(in crate::http) async fn withdraw(
    Change(visitor): Change,
    RawForm(form): RawForm,
) -> Result<Response, PageError> {
    let form = Params::parse(&form);
    let id = form.get("id").unwrap_or_default();
    visitor.removed(tokens::withdraw(&visitor.app, &visitor.actor(), id).await).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lives_are_told_in_days_where_they_can_be() {
        assert_eq!(length(DAY), "1 day");
        assert_eq!(length(30 * DAY), "30 days");
        assert_eq!(length(12 * 3600), "12h");
    }

    #[test]
    fn what_a_token_may_do_is_told() {
        assert_eq!(explain("workload:manage workload:use"), "use workloads, manage workloads");
        assert_eq!(explain("openid"), "say who you are");
        assert!(explain(scope::PERSONAL).contains("manage tokens and keys"));
    }
}
