//! `dormouse auth token`

use std::time::Duration;

use anyhow::bail;
use authserver::{Issuer, NewPersonalToken};
use clap::Args;
use domain::name::UserName;
use jiff::Timestamp;
use serde_json::json;

use super::{
    Place,
    audit::{Act, Done},
};

const DID: &str = "token-issued";

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
    /// The issuer's URL; known when --data-dir or --config is given
    #[arg(long, value_name = "URL", required_unless_present_any = ["data_dir", "config"])]
    issuer: Option<String>,
}

impl TokenOptions {
    pub fn change(&self) -> (&Place, Act) {
        (&self.place, Act::new(DID, format!("Person {}", self.user)))
    }
}

pub async fn run(options: TokenOptions, now: Timestamp) -> anyhow::Result<Done> {
    let TokenOptions { place, user, expires_in, audience, workload, label, issuer } = options;
    let store = place.open().await?;
    let issuer = match issuer {
        Some(issuer) => Some(issuer),
        None => place.issuer()?,
    };
    let Some(issuer) = issuer else { bail!("name the issuer with --issuer") };
    let issuer: Issuer = issuer.parse().map_err(|error| anyhow::anyhow!("{issuer}: {error}"))?;
    let new = match &workload {
        Some(only) => NewPersonalToken::limited(&label, expires_in, &audience, only),
        None => NewPersonalToken::full(&label, expires_in, &audience),
    };
    let (token, record) = store.issue_personal_token(&issuer, &user, new, now).await?;
    let reach = workload.map(|only| format!(", {only} alone")).unwrap_or_default();
    let detail = format!("of {user}, for {audience}{reach}, until {}", record.expires_at);
    let act = Act::new(DID, format!("Token {}", record.id)).with(detail);
    let answer =
        if place.json { format!("{}\n", json!({"token": token})) } else { format!("{token}\n") };
    Ok(Done::acted(act).answering(answer))
}
