//! `dormouse auth service-account ...`: programs that get tokens of their own.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context as _, bail};
use authserver::{NewServiceAccount, Proof};
use clap::{Args, Subcommand};
use domain::name::UserName;
use jiff::Timestamp;
use serde_json::json;

use super::{
    Named, Place,
    audit::{Act, Done},
};

#[derive(Subcommand)]
pub enum ServiceAccountOrder {
    /// Make one; its client id and its secret are printed this once
    #[command(
        after_help = "Example:\n  dormouse auth service-account add --data-dir .dormouse --name nightly \
                      --scope workload:use --workload alice/lab"
    )]
    Add(AddOptions),
    /// List them, with the last time each was given a token
    List(Place),
    /// End one, and the tokens it holds
    Revoke(Named),
}

#[derive(Args)]
pub struct AddOptions {
    #[command(flatten)]
    place: Place,
    #[arg(long)]
    name: UserName,
    /// workload:use, workload:manage, usage:read or admin; may be given several times
    #[arg(long = "scope", value_name = "SCOPE", required = true)]
    scopes: Vec<String>,
    /// May be given several times
    #[arg(long = "group", value_name = "GROUP")]
    groups: Vec<String>,
    /// The only workload that its tokens reach
    #[arg(long, value_name = "PROJECT/NAME")]
    workload: Option<String>,
    /// A JSON Web Key Set with its public keys, in place of a secret
    #[arg(long, value_name = "FILE")]
    jwks_file: Option<PathBuf>,
    /// Such as 8h or 30d; without it the account does not expire
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    expires_in: Option<Duration>,
}

impl ServiceAccountOrder {
    pub fn change(&self) -> Option<(&Place, Act)> {
        let account = |name| format!("ServiceAccount {name}");
        match self {
            Self::List(_) => None,
            Self::Add(AddOptions { place, name, .. }) => {
                Some((place, Act::new("service-account-added", account(name))))
            }
            Self::Revoke(Named { place, name }) => {
                Some((place, Act::new("service-account-revoked", account(name))))
            }
        }
    }
}

pub async fn run(order: ServiceAccountOrder, now: Timestamp) -> anyhow::Result<Done> {
    match order {
        ServiceAccountOrder::Add(options) => add(options, now).await,
        ServiceAccountOrder::List(place) => list(&place).await,
        ServiceAccountOrder::Revoke(Named { place, name }) => {
            if !place.open().await?.revoke_service_account(&name, now).await? {
                bail!("there is no service account {name}; `service-account list` shows them");
            }
            Ok(Done::default())
        }
    }
}

async fn add(options: AddOptions, now: Timestamp) -> anyhow::Result<Done> {
    let keys = match &options.jwks_file {
        Some(file) => Some(
            std::fs::read_to_string(file)
                .with_context(|| format!("{} cannot be read", file.display()))?,
        ),
        None => None,
    };
    let scopes = options.scopes.join(" ");
    let act = Act::new("service-account-added", format!("ServiceAccount {}", options.name));
    let new = NewServiceAccount {
        name: options.name,
        groups: &options.groups,
        scopes: &scopes,
        workload: options.workload.as_deref(),
        proof: keys.as_deref().map_or(Proof::Secret, Proof::Keys),
        lifetime: options.expires_in,
    };
    let (client_id, secret) = options.place.open().await?.add_service_account(new, now).await?;
    let mut detail = format!("{client_id}; scopes {scopes}");
    if !options.groups.is_empty() {
        detail += &format!("; groups {}", options.groups.join(", "));
    }
    if let Some(only) = &options.workload {
        detail += &format!("; {only} alone");
    }
    if let Some(lifetime) = options.expires_in {
        detail += &format!("; for {}", humantime::format_duration(lifetime));
    }
    let answer = if options.place.json {
        format!("{}\n", json!({"client_id": client_id, "client_secret": secret}))
    } else {
        let secret = secret.map(|secret| format!("client_secret  {secret}\n"));
        format!("client_id      {client_id}\n{}", secret.unwrap_or_default())
    };
    Ok(Done::acted(act.with(detail)).answering(answer))
}

async fn list(place: &Place) -> anyhow::Result<Done> {
    for account in place.open().await?.service_accounts().await? {
        if place.json {
            println!("{}", json!(account));
        } else {
            let workload = account.workload.map(|only| format!("  {only}")).unwrap_or_default();
            let revoked = if account.revoked { "  (revoked)" } else { "" };
            println!("{}  {}{workload}{revoked}", account.name, account.scopes);
        }
    }
    Ok(Done::default())
}
