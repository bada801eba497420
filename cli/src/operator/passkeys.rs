//! `dormouse auth passkey ...`, and what `dormouse auth user show` says.

use anyhow::bail;
use authserver::{Passkey, StoreError};
use clap::{Args, Subcommand};
use domain::name::UserName;
use serde_json::json;

use super::{Named, Place};

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

pub async fn run(order: PasskeyOrder) -> anyhow::Result<()> {
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
            Ok(())
        }
        PasskeyOrder::Remove(RemoveOptions { whose: Whose { place, user }, id, .. }) => {
            let store = place.open().await?;
            let removed = store.remove_passkeys_of(&user, id.as_deref()).await?;
            if let (0, Some(id)) = (removed, &id) {
                bail!("{user} has no passkey {id}; see `dormouse auth passkey list --user {user}`");
            }
            if place.json {
                println!("{}", json!({ "removed": removed }));
            } else {
                println!("{removed} removed");
            }
            Ok(())
        }
    }
}

/// One person with their passkeys.
pub async fn show(Named { place, name }: Named) -> anyhow::Result<()> {
    let store = place.open().await?;
    let Some(person) = store.person(&name).await? else {
        return Err(StoreError::NoSuchPerson(name.to_string()).into());
    };
    let passkeys = store.passkeys(&person.subject).await?;
    if place.json {
        let line = json!({
            "name": person.name, "subject": person.subject, "email": person.email,
            "groups": person.groups, "disabled": person.disabled_at.is_some(),
            "passkeys": passkeys,
        });
        println!("{line}");
        return Ok(());
    }
    println!("name      {}", person.name);
    println!("subject   {}", person.subject);
    println!("e-mail    {}", person.email.as_deref().unwrap_or("none"));
    println!("groups    {}", or_none(&person.groups.join(", ")));
    if let Some(since) = person.disabled_at {
        println!("disabled  since {since}");
    }
    println!("passkeys  {}", if passkeys.is_empty() { "none" } else { "" });
    for passkey in &passkeys {
        println!("  {}", line(passkey));
    }
    Ok(())
}

fn or_none(text: &str) -> &str {
    if text.is_empty() { "none" } else { text }
}

fn line(passkey: &Passkey) -> String {
    let used = passkey.used_at.map(|at| format!("last used {at}"));
    let used = used.unwrap_or_else(|| "not used yet".to_owned());
    let blocked = if passkey.blocked_at.is_some() { "  (blocked: may be copied)" } else { "" };
    format!("{}  {}  added {}, {used}{blocked}", passkey.id, passkey.name, passkey.created_at)
}
