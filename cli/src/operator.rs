//! `dormouse auth ...`: people, tokens, keys, sessions and clients, straight in the authserver's database. Safe beside a
//! running server.

mod clients;
mod keys;
mod passkeys;
mod service_accounts;
mod sessions;

use std::{
    io::{IsTerminal, Read},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, bail};
use authserver::{Database, Issuer, MasterKey, NewPerson, NewPersonalToken, Store};
use clap::{Args, Subcommand};
use domain::name::UserName;
use jiff::Timestamp;
use serde_json::json;

use crate::dev;

/// The variable that the server, too, takes the master key from.
const MASTER_KEY: &str = "DORMOUSE_AUTHSERVER__MASTER_KEY";

#[derive(Subcommand)]
pub enum Order {
    /// Make, list and disable people
    #[command(subcommand)]
    User(UserOrder),
    /// Print a new personal access token of a person
    #[command(
        after_help = "Example:\n  dormouse auth token --data-dir .dormouse --user alice --expires-in 30d"
    )]
    Token(TokenOptions),
    /// List and rotate the keys that sign tokens
    #[command(subcommand)]
    Key(keys::KeyOrder),
    /// List and end sessions
    #[command(subcommand)]
    Session(sessions::SessionOrder),
    /// Make, list and delete applications that sign people in
    #[command(subcommand)]
    Client(clients::ClientOrder),
    /// List and remove people's passkeys
    #[command(subcommand)]
    Passkey(passkeys::PasskeyOrder),
    /// Make, list and end programs' accounts
    #[command(subcommand)]
    ServiceAccount(service_accounts::ServiceAccountOrder),
}

#[derive(Subcommand)]
pub enum UserOrder {
    /// Make a person, or change one; the password is read from standard input
    #[command(
        after_help = "Example:\n  dormouse auth user add --data-dir .dormouse --name carol --group ml < password.txt"
    )]
    Add(AddOptions),
    /// List people
    List(Place),
    /// Show one person, with their passkeys
    #[command(after_help = "Example:\n  dormouse auth user show --data-dir .dormouse --name alice")]
    Show(Named),
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

/// Which authserver.
#[derive(Args)]
pub struct Place {
    /// The data directory of `dormouse dev`
    #[arg(
        long,
        value_name = "DIR",
        required_unless_present = "database",
        conflicts_with = "database"
    )]
    data_dir: Option<PathBuf>,
    /// The authserver's database: a file, or postgres://user@host/name (the password comes from
    /// the variable PGPASSWORD)
    #[arg(long, value_name = "FILE|URL")]
    database: Option<Database>,
    /// The master key's file, when keys are sealed with one; known when --data-dir is given
    #[arg(long, value_name = "FILE", env = "DORMOUSE_AUTHSERVER__MASTER_KEY_FILE")]
    master_key_file: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub struct Named {
    #[command(flatten)]
    place: Place,
    #[arg(long)]
    name: UserName,
}

#[derive(Args)]
pub struct AddOptions {
    #[command(flatten)]
    place: Place,
    #[arg(long)]
    name: UserName,
    #[arg(long)]
    email: Option<String>,
    /// May be given several times
    #[arg(long = "group", value_name = "GROUP")]
    groups: Vec<String>,
}

#[derive(Args)]
pub struct TokenOptions {
    #[command(flatten)]
    place: Place,
    #[arg(long, value_name = "NAME")]
    user: UserName,
    /// Such as 8h or 30d
    #[arg(long, value_name = "DURATION", default_value = "30d", value_parser = humantime::parse_duration)]
    expires_in: Duration,
    /// What the token is for
    #[arg(long, default_value = "dormouse")]
    audience: String,
    /// The only workload that the token reaches
    #[arg(long, value_name = "PROJECT/NAME")]
    workload: Option<String>,
    /// What the token is called in lists
    #[arg(long, value_name = "TEXT", default_value = "made by an operator")]
    label: String,
    /// The issuer's URL; known when --data-dir is given
    #[arg(long, value_name = "URL", required_unless_present = "data_dir")]
    issuer: Option<String>,
}

impl Place {
    async fn open(&self) -> anyhow::Result<Store> {
        let database = match (&self.database, &self.data_dir) {
            (Some(database), _) => database.clone(),
            (None, Some(data_dir)) => Database::File(dev::database(data_dir)),
            (None, None) => bail!("name the database with --data-dir or --database"),
        };
        if let Database::File(path) = &database
            && !path.exists()
        {
            bail!("there is no database {}; check --data-dir or --database", path.display());
        }
        let master_key = match (&self.master_key_file, &self.data_dir) {
            (Some(file), _) => Some(file.clone()),
            (None, Some(data_dir)) => Some(dev::master_key(data_dir)).filter(|file| file.exists()),
            (None, None) => None,
        };
        let master_key = match (master_key, std::env::var(MASTER_KEY)) {
            (Some(file), _) => Some(MasterKey::from_file(&file)?),
            (None, Ok(text)) => Some(MasterKey::from_text(&text)?),
            (None, Err(_)) => None,
        };
        Ok(Store::open_with(&database, master_key).await?)
    }
}

pub async fn run(order: Order) -> anyhow::Result<()> {
    let now = Timestamp::now();
    match order {
        Order::User(UserOrder::Add(options)) => add(options, now).await,
        Order::User(UserOrder::List(place)) => list(&place).await,
        Order::User(UserOrder::Show(named)) => passkeys::show(named).await,
        Order::User(UserOrder::Disable(Named { place, name })) => {
            Ok(place.open().await?.disable_user(&name, now).await?)
        }
        Order::User(UserOrder::Enable(Named { place, name })) => {
            Ok(place.open().await?.enable_user(&name).await?)
        }
        Order::User(UserOrder::LinkUpstream(options)) => {
            let LinkOptions { named: Named { place, name }, provider, subject } = options;
            Ok(place.open().await?.link_upstream(&name, &provider, &subject, now).await?)
        }
        Order::Token(options) => token(options, now).await,
        Order::Key(order) => keys::run(order, now).await,
        Order::Session(order) => sessions::run(order, now).await,
        Order::Client(order) => clients::run(order, now).await,
        Order::Passkey(order) => passkeys::run(order).await,
        Order::ServiceAccount(order) => service_accounts::run(order, now).await,
    }
}

async fn add(options: AddOptions, now: Timestamp) -> anyhow::Result<()> {
    let store = options.place.open().await?;
    if std::io::stdin().is_terminal() {
        eprintln!("Password, then Enter and Ctrl-D:");
    }
    let mut password = String::new();
    std::io::stdin().read_to_string(&mut password).context("the password cannot be read")?;
    let password = password.trim_end_matches(['\r', '\n']);
    if password.is_empty() {
        bail!("the password is empty; write it to standard input");
    }
    let person = NewPerson { name: options.name, email: options.email, groups: options.groups };
    store.ensure_user(&person, None, now).await?;
    store.set_password(&person.name, password).await?;
    Ok(())
}

async fn list(place: &Place) -> anyhow::Result<()> {
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
    Ok(())
}

async fn token(options: TokenOptions, now: Timestamp) -> anyhow::Result<()> {
    let store = options.place.open().await?;
    let issuer = match (&options.issuer, &options.place.data_dir) {
        (Some(url), _) => url.clone(),
        (None, Some(data_dir)) => kept_issuer(data_dir)?,
        (None, None) => bail!("name the issuer with --issuer"),
    };
    let issuer: Issuer = issuer.parse().map_err(|error| anyhow::anyhow!("{issuer}: {error}"))?;
    let (label, lifetime, audience) = (&options.label, options.expires_in, &options.audience);
    let new = match &options.workload {
        Some(only) => NewPersonalToken::limited(label, lifetime, audience, only),
        None => NewPersonalToken::full(label, lifetime, audience),
    };
    let token = store.issue_personal_token(&issuer, &options.user, new, now).await?;
    if options.place.json {
        println!("{}", json!({"token": token}));
    } else {
        println!("{token}");
    }
    Ok(())
}

fn kept_issuer(data_dir: &Path) -> anyhow::Result<String> {
    dev::issuer_of(data_dir).with_context(|| {
        format!("no issuer is known in {}; name it with --issuer", data_dir.display())
    })
}
