//! `dormouse auth passkey ...`

use anyhow::bail;
use authserver::{Passkey, StoreError};
use clap::{Args, Subcommand};
use domain::name::UserName;
use serde_json::json;

use super::{
    Place,
    audit::{Act, Done},
};

#[derive(Subcommand)]
pub enum PasskeyOrder {
    /// List a person's passkeys, the oldest first
    #[command(
        after_help = "Example:\n  dormouse auth passkey list --data-dir .dormouse --user alice"
    )]
    List(Whose),
    /// Remove one passkey of a person, or all
    ///
    /// Nobody signs in with it any more. Sessions that began with it stay; end them with
    /// `dormouse auth session end`.
    #[command(
        after_help = "Examples:\n  dormouse auth passkey remove --data-dir .dormouse --user alice --all\n  dormouse auth passkey remove --data-dir .dormouse --user alice --id 3f0d6c1e-1111-4222-8333-444444444444"
    )]
    Remove(RemoveOptions),
}

#[derive(Args)]
pub struct Whose {
    #[command(flatten)]
    place: Place,
    #[arg(long, value_name = "NAME")]
    user: UserName,
}

#[derive(Args)]
pub struct RemoveOptions {
    #[command(flatten)]
    whose: Whose,
    /// The passkey of that id, as `list` shows it
    #[arg(long, value_name = "ID", required_unless_present = "all", conflicts_with = "all")]
    id: Option<String>,
    /// All of them
    #[arg(long)]
    all: bool,
}

impl PasskeyOrder {
    pub fn change(&self) -> Option<(&Place, Act)> {
        match self {
            Self::List(_) => None,
            Self::Remove(RemoveOptions { whose: Whose { place, user }, id, .. }) => {
                let act = Act::new("passkey-removed", format!("Person {user}"));
                let which = id.as_deref().map_or("all".to_owned(), |id| format!("passkey {id}"));
                Some((place, act.with(which)))
            }
        }
    }
}

pub async fn run(order: PasskeyOrder) -> anyhow::Result<Done> {
    match order {
        PasskeyOrder::List(Whose { place, user }) => {
            let store = place.open().await?;
            let person = store.person(&user).await?;
            let Some(person) = person else {
                return Err(StoreError::NoSuchPerson(user.to_string()).into());
            };
            for passkey in store.passkeys(&person.subject).await? {
                if place.json {
                    println!("{}", json!(passkey));
                } else {
                    println!("{}", line(&passkey));
                }
            }
            Ok(Done::default())
        }
        PasskeyOrder::Remove(RemoveOptions { whose: Whose { place, user }, id, .. }) => {
            let store = place.open().await?;
            let removed = store.remove_passkeys_of(&user, id.as_deref()).await?;
            if let (0, Some(id)) = (removed, &id) {
                bail!("{user} has no passkey {id}; see `dormouse auth passkey list --user {user}`");
            }
            let answer = if place.json {
                format!("{}\n", json!({ "removed": removed }))
            } else {
                format!("{removed} removed\n")
            };
            let which = id.map_or(format!("all, {removed} removed"), |id| format!("passkey {id}"));
            let act = Act::new("passkey-removed", format!("Person {user}")).with(which);
            Ok(Done::acted(act).answering(answer))
        }
    }
}

pub fn line(passkey: &Passkey) -> String {
    let used = passkey.used_at.map(|at| format!("last used {at}"));
    let used = used.unwrap_or_else(|| "not used yet".to_owned());
    let blocked = if passkey.blocked_at.is_some() { "  (blocked: may be copied)" } else { "" };
    format!("{}  {}  added {}, {used}{blocked}", passkey.id, passkey.name, passkey.created_at)
}
