//! `dormouse auth session ...`

use anyhow::bail;
use authserver::SessionEntry;
use clap::{Args, Subcommand};
use domain::name::UserName;
use jiff::Timestamp;
use serde_json::json;

use super::{
    Place,
    audit::{Act, Done},
};

/// More than anybody reads.
const SHOWN_MAX: i64 = 10_000;

#[derive(Subcommand)]
pub enum SessionOrder {
    /// List who is signed in, the last used first
    #[command(
        after_help = "Examples:\n  dormouse auth session list --data-dir .dormouse\n  dormouse auth session list --data-dir .dormouse --user alice --json"
    )]
    List(ListOptions),
    /// Sign somebody out everywhere, or end one session
    ///
    /// Gateways close what is open within seconds. Personal tokens stay; to end those too, disable
    /// the person.
    #[command(
        after_help = "Examples:\n  dormouse auth session end --data-dir .dormouse --user alice\n  dormouse auth session end --data-dir .dormouse --id 3f0d6c1e-1111-4222-8333-444444444444"
    )]
    End(EndOptions),
}

#[derive(Args)]
pub struct ListOptions {
    #[command(flatten)]
    place: Place,
    /// Of this person only
    #[arg(long, value_name = "NAME")]
    user: Option<UserName>,
}

#[derive(Args)]
pub struct EndOptions {
    #[command(flatten)]
    place: Place,
    /// All sessions of this person
    #[arg(long, value_name = "NAME", required_unless_present = "id", conflicts_with = "id")]
    user: Option<UserName>,
    /// The session of that id, as `list` shows it
    #[arg(long, value_name = "ID")]
    id: Option<String>,
}

impl SessionOrder {
    pub fn change(&self) -> Option<(&Place, Act)> {
        match self {
            Self::List(_) => None,
            Self::End(EndOptions { place, user: Some(user), .. }) => {
                Some((place, Act::new("sessions-ended", format!("Person {user}"))))
            }
            Self::End(EndOptions { place, user: None, id }) => {
                let id = id.as_deref().unwrap_or_default();
                Some((place, Act::new("session-ended", format!("Session {id}"))))
            }
        }
    }
}

fn line(session: &SessionEntry) -> String {
    let SessionEntry { id, user, used_at, .. } = session;
    let authenticated = session.authenticated_at.map(|at| at.to_string());
    let authenticated = authenticated.unwrap_or_else(|| "unknown".to_owned());
    format!("{id}  {user}  authenticated {authenticated}  last used {used_at}")
}

pub async fn run(order: SessionOrder, now: Timestamp) -> anyhow::Result<Done> {
    match order {
        SessionOrder::List(ListOptions { place, user }) => {
            let store = place.open().await?;
            for session in store.list_sessions(user.as_ref(), SHOWN_MAX, now).await? {
                if place.json {
                    println!("{}", json!(session));
                } else {
                    println!("{}", line(&session));
                }
            }
            Ok(Done::default())
        }
        SessionOrder::End(EndOptions { place, user, id }) => {
            let store = place.open().await?;
            let (ended, act) = match (&user, &id) {
                (Some(user), _) => {
                    let ended = store.end_sessions_of(user, now).await?;
                    let act = Act::new("sessions-ended", format!("Person {user}"));
                    (ended, act.with(format!("{ended} ended")))
                }
                (None, Some(id)) => {
                    let Some(holder) = store.session_holder(id).await? else {
                        bail!("there is no session {id}; see `dormouse auth session list`")
                    };
                    store.end_session(id, now).await?;
                    let act = Act::new("session-ended", format!("Session {id}"));
                    (1, act.with(format!("of {holder}")))
                }
                (None, None) => bail!("say whose sessions with --user, or which with --id"),
            };
            let answer = if place.json {
                format!("{}\n", json!({ "ended": ended }))
            } else {
                format!("{ended} ended\n")
            };
            Ok(Done::acted(act).answering(answer))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_says_when_somebody_was_last_authenticated_or_that_nobody_knows() {
        let at = Timestamp::from_second(1_800_000_000).unwrap();
        let session = |authenticated_at| SessionEntry {
            id: "s-1".to_owned(),
            user: "carol".parse().unwrap(),
            method: "fed".to_owned(),
            signed_in_at: at,
            authenticated_at,
            used_at: at,
            expires_at: at,
            device: None,
            address: None,
            agent: None,
            browser: None,
        };
        assert!(line(&session(None)).contains("carol  authenticated unknown"));
        assert!(line(&session(Some(at))).contains("authenticated 2027-01-15T08:00:00Z"));
        assert!(json!(session(None))["authenticated_at"].is_null());
    }
}
