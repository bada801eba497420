//! `dormouse auth user ...`

use std::io::{IsTerminal, Read};

use anyhow::{Context as _, bail};
use authserver::{Identity, NewPerson, StoreError, Ways};
use clap::{Args, Subcommand};
use domain::name::UserName;
use jiff::Timestamp;
use serde_json::json;

use super::{
    Named, Place,
    audit::{Act, Done},
    passkeys,
};

#[derive(Subcommand)]
pub enum UserOrder {
    /// Make a person, or change one; the password is read from standard input
    #[command(
        after_help = "Example:\n  dormouse auth user add --data-dir .dormouse --name carol --group ml < password.txt"
    )]
    Add(AddOptions),
    /// List people
    List(Place),
    /// Show one person, with their passkeys and their accounts at providers
    #[command(after_help = "Example:\n  dormouse auth user show --data-dir .dormouse --name alice")]
    Show(Named),
    /// Give somebody of a provider a password that signs them in nowhere, read from standard input
    ///
    /// With it they show, once the provider has let them in, that it is still them: for a provider that
    /// does not say when it last asked. They need it until they have a passkey.
    #[command(
        after_help = "Examples:\n  dormouse auth user second-password --data-dir .dormouse --name carol < password.txt\n  \
                      dormouse auth user second-password --data-dir .dormouse --name carol --remove"
    )]
    SecondPassword(SecondPasswordOptions),
    /// Keep a person out; their sessions and tokens end
    Disable(Named),
    /// Let a disabled person in again
    Enable(Named),
    /// Let a person sign in at the company's provider as well, as the subject that it knows them by
    #[command(
        after_help = "Example:\n  dormouse auth user link-upstream --data-dir .dormouse --name carol \\\n    \
                      --provider https://login.example.com --subject 00u1a2b3c4"
    )]
    LinkUpstream(LinkOptions),
    /// Undo that: the account at the provider is no longer this person's, and sessions that began
    /// with it end
    ///
    /// Personal tokens stay; to end those too, disable the person. Says so when the person has no
    /// other way to sign in.
    #[command(
        after_help = "Examples:\n  dormouse auth user show --data-dir .dormouse --name carol           which accounts there are\n  \
                      dormouse auth user unlink-upstream --data-dir .dormouse --name carol \\\n    \
                      --provider https://login.example.com --subject 00u1a2b3c4\n  \
                      dormouse auth user unlink-upstream --config authserver.toml --json --name carol \\\n    \
                      --provider https://login.example.com --subject 00u1a2b3c4"
    )]
    UnlinkUpstream(LinkOptions),
}

#[derive(Args)]
pub struct LinkOptions {
    #[command(flatten)]
    named: Named,
    /// The provider's issuer URL, as in the settings
    #[arg(long, value_name = "URL")]
    provider: String,
    /// What the provider says in `sub`
    #[arg(long, value_name = "TEXT")]
    subject: String,
}

#[derive(Args)]
pub struct SecondPasswordOptions {
    #[command(flatten)]
    named: Named,
    /// Take it away
    #[arg(long)]
    remove: bool,
}

#[derive(Args)]
pub struct AddOptions {
    #[command(flatten)]
    place: Place,
    #[arg(long)]
    name: UserName,
    #[arg(long)]
    email: Option<String>,
    /// May be given several times. These stay whatever a provider says; what one gave is gone until
    /// it says so again
    #[arg(long = "group", value_name = "GROUP")]
    groups: Vec<String>,
}

impl UserOrder {
    pub fn change(&self) -> Option<(&Place, Act)> {
        let person = |place, did, name: &UserName| Some((place, Act::new(did, named(name))));
        match self {
            Self::List(_) | Self::Show(_) => None,
            Self::Add(AddOptions { place, name, .. }) => person(place, "person-added", name),
            Self::SecondPassword(SecondPasswordOptions { named, remove }) => {
                let did = if *remove { "second-password-removed" } else { "second-password-set" };
                person(&named.place, did, &named.name)
            }
            Self::Disable(Named { place, name }) => person(place, "person-disabled", name),
            Self::Enable(Named { place, name }) => person(place, "person-enabled", name),
            Self::LinkUpstream(options) => options.change("upstream-linked"),
            Self::UnlinkUpstream(options) => options.change("upstream-unlinked"),
        }
    }
}

impl LinkOptions {
    fn change(&self, did: &'static str) -> Option<(&Place, Act)> {
        Some((&self.named.place, Act::new(did, named(&self.named.name)).with(self.account())))
    }

    fn account(&self) -> String {
        format!("subject {} of {}", self.subject, self.provider)
    }
}

fn named(name: &UserName) -> String {
    format!("Person {name}")
}

pub async fn run(order: UserOrder, now: Timestamp) -> anyhow::Result<Done> {
    match order {
        UserOrder::Add(options) => add(options, now).await,
        UserOrder::List(place) => list(&place).await,
        UserOrder::Show(named) => show(named).await,
        UserOrder::SecondPassword(SecondPasswordOptions {
            named: Named { place, name },
            remove,
        }) => {
            let password = if remove { None } else { Some(read_password()?) };
            place.open().await?.set_second_password(&name, password.as_deref()).await?;
            Ok(Done::default())
        }
        UserOrder::Disable(Named { place, name }) => {
            place.open().await?.disable_user(&name, now).await?;
            Ok(Done::default())
        }
        UserOrder::Enable(Named { place, name }) => {
            place.open().await?.enable_user(&name).await?;
            Ok(Done::default())
        }
        UserOrder::LinkUpstream(options) => {
            let LinkOptions { named: Named { place, name }, provider, subject } = options;
            place.open().await?.link_upstream(&name, &provider, &subject, now).await?;
            Ok(Done::default())
        }
        UserOrder::UnlinkUpstream(options) => unlink(&options, now).await,
    }
}

async fn add(options: AddOptions, now: Timestamp) -> anyhow::Result<Done> {
    let AddOptions { place, name, email, groups } = options;
    let store = place.open().await?;
    let password = read_password()?;
    let person = NewPerson { name, email, groups };
    let is_new = store.save_user(&person, &password, now).await?;
    let did = if is_new { "person-added" } else { "person-changed" };
    let groups = match person.groups.join(", ") {
        none if none.is_empty() => "no groups".to_owned(),
        groups => format!("groups {groups}"),
    };
    Ok(Done::acted(Act::new(did, named(&person.name)).with(format!("{groups}; a password"))))
}

fn read_password() -> anyhow::Result<String> {
    if std::io::stdin().is_terminal() {
        eprintln!("Password, then Enter and Ctrl-D:");
    }
    let mut password = String::new();
    std::io::stdin().read_to_string(&mut password).context("the password cannot be read")?;
    let password = password.trim_end_matches(['\r', '\n']);
    if password.is_empty() {
        bail!("the password is empty; write it to standard input");
    }
    Ok(password.to_owned())
}

async fn list(place: &Place) -> anyhow::Result<Done> {
    for person in place.open().await?.list_users().await? {
        if place.json {
            let line = json!({
                "name": person.name, "email": person.email, "groups": person.groups,
                "disabled": person.disabled_at.is_some(),
            });
            println!("{line}");
        } else {
            let disabled = if person.disabled_at.is_some() { "  (disabled)" } else { "" };
            println!("{}{disabled}", person.name);
        }
    }
    Ok(Done::default())
}

async fn unlink(options: &LinkOptions, now: Timestamp) -> anyhow::Result<Done> {
    let LinkOptions { named: Named { place, name }, provider, subject } = options;
    let (store, is_local) = (place.open().await?, place.local_sign_in()?);
    let done = store.unlink_upstream(name, provider, subject, now).await?;
    let left = in_words(&done.left, is_local);
    let sessions = match done.ended {
        1 => "1 session ended".to_owned(),
        ended => format!("{ended} sessions ended"),
    };
    let account = options.account();
    let (answer, known) = match left.join(", ") {
        none if none.is_empty() => {
            let advice =
                "give them a password with `dormouse auth user add`, or link another account";
            let known = "no other way to sign in".to_owned();
            (format!("{name} has {known}; {advice}"), known)
        }
        left => (format!("{name} can still sign in with: {left}"), left),
    };
    let answer = if place.json {
        let ways = json!({
            "password": is_local && done.left.password,
            "passkeys": if signs_in_by_passkey(&done.left, is_local) { done.left.passkeys } else { 0 },
            "providers": done.left.providers,
        });
        let locked_out = left.is_empty();
        let line = json!({ "ended": done.ended, "locked_out": locked_out, "left": ways });
        format!("{line}\n")
    } else {
        format!("{name} is no longer {account}; {sessions}\n{answer}\n")
    };
    let detail = format!("{account}; {sessions}; left: {known}");
    Ok(Done::acted(Act::new("upstream-unlinked", self::named(name)).with(detail)).answering(answer))
}

/// Nothing when there is no way. Without local sign-in, passwords and passkeys count for nothing.
fn in_words(ways: &Ways, is_local: bool) -> Vec<String> {
    let mut words = Vec::new();
    if is_local && ways.password {
        words.push("a password".to_owned());
    }
    if signs_in_by_passkey(ways, is_local) {
        words.push("a passkey".to_owned());
    }
    let providers = ways.providers.iter();
    words.extend(providers.map(|at| format!("subject {} of {}", at.subject, at.issuer)));
    words
}

/// For who has no password of their own a passkey is no more than a second proof.
fn signs_in_by_passkey(ways: &Ways, is_local: bool) -> bool {
    is_local && ways.password && ways.passkeys > 0
}

async fn show(Named { place, name }: Named) -> anyhow::Result<Done> {
    let store = place.open().await?;
    let Some(person) = store.person(&name).await? else {
        return Err(StoreError::NoSuchPerson(name.to_string()).into());
    };
    let passkeys = store.passkeys(&person.subject).await?;
    let ways = store.ways_to_sign_in(&person.subject).await?;
    let second = store.has_own_second_password(&person.subject).await?;
    if place.json {
        let line = json!({
            "name": person.name, "subject": person.subject, "email": person.email,
            "groups": person.groups, "disabled": person.disabled_at.is_some(),
            "password": ways.password, "second_password": second, "passkeys": passkeys, "providers": ways.providers,
        });
        println!("{line}");
        return Ok(Done::default());
    }
    println!("name      {}", person.name);
    println!("subject   {}", person.subject);
    println!("e-mail    {}", person.email.as_deref().unwrap_or("none"));
    println!("groups    {}", or_none(&person.groups.join(", ")));
    if let Some(since) = person.disabled_at {
        println!("disabled  since {since}");
    }
    println!("password  {}", if ways.password { "yes" } else { "none" });
    if second {
        println!("          and one that is a second proof");
    }
    println!("passkeys  {}", if passkeys.is_empty() { "none" } else { "" });
    for passkey in &passkeys {
        println!("  {}", passkeys::line(passkey));
    }
    println!("provider  {}", if ways.providers.is_empty() { "none" } else { "" });
    for at in &ways.providers {
        println!("  {}  subject {}", at.issuer, at.subject);
        if let Some(words) = groups_of(at) {
            println!("    {words}");
        }
    }
    Ok(Done::default())
}

/// What a provider said of the groups of an account, and how old that is. None before its first
/// sign-in.
fn groups_of(at: &Identity) -> Option<String> {
    let said = match (&at.groups, at.groups_at) {
        (Some(groups), Some(since)) => {
            format!("groups {} as of {since}", or_none(&groups.join(", ")))
        }
        _ => "groups never said".to_owned(),
    };
    at.signed_in_at?;
    Some(match at.groups_silent_since {
        Some(since) => format!("{said}; NOT SAID SINCE {since}: what is known stays"),
        None => said,
    })
}

fn or_none(text: &str) -> &str {
    if text.is_empty() { "none" } else { text }
}
