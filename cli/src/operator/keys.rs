//! `dormouse auth key ...`

use std::time::Duration;

use clap::{Args, Subcommand};
use jiff::Timestamp;
use serde_json::json;

use super::{
    Place,
    audit::{Act, Done},
};

#[derive(Subcommand)]
pub enum KeyOrder {
    /// List the keys that sign tokens
    #[command(
        after_help = "Examples:\n  dormouse auth key list --data-dir .dormouse\n  dormouse auth key list --database postgres://dormouse@db/dormouse --json"
    )]
    List(Place),
    /// Publish a new key, which signs when everybody has had the time to fetch it
    ///
    /// Running servers take it over within a second. What the old key signed stays valid until it
    /// expires.
    #[command(
        after_help = "Examples:\n  dormouse auth key rotate --data-dir .dormouse\n  dormouse auth key rotate --database auth.db --master-key-file master-key --after 10m\n\nAfter a theft; browsers get new tokens by themselves, personal tokens have to be made anew:\n  dormouse auth key rotate --database auth.db --master-key-file master-key --void-all-tokens"
    )]
    Rotate(RotateOptions),
}

#[derive(Args)]
pub struct RotateOptions {
    #[command(flatten)]
    place: Place,
    /// How long it is published before it signs
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = humantime::parse_duration)]
    after: Duration,
    /// Sign with the new key at once, and remove all others: no token that is out there is good
    /// any more
    #[arg(long, conflicts_with = "after")]
    void_all_tokens: bool,
}

impl KeyOrder {
    pub fn change(&self) -> Option<(&Place, Act)> {
        match self {
            Self::List(_) => None,
            Self::Rotate(options) => {
                Some((&options.place, Act::new(options.did(), "Signing keys".to_owned())))
            }
        }
    }
}

impl RotateOptions {
    fn did(&self) -> &'static str {
        if self.void_all_tokens { "keys-replaced" } else { "key-rotated" }
    }
}

pub async fn run(order: KeyOrder, now: Timestamp) -> anyhow::Result<Done> {
    match order {
        KeyOrder::List(place) => Ok(Done::default().answering(list(&place, now).await?)),
        KeyOrder::Rotate(options) => {
            let store = options.place.open().await?;
            let (kid, detail) = if options.void_all_tokens {
                (store.replace_keys(now).await?, "all other keys are gone".to_owned())
            } else {
                let after = humantime::format_duration(options.after);
                (store.rotate_key(options.after, now).await?, format!("signs after {after}"))
            };
            let act = Act::new(options.did(), format!("Signing key {kid}")).with(detail);
            // It is done, whatever becomes of the list.
            let answer = list(&options.place, now).await.unwrap_or_else(|error| {
                eprintln!("dormouse: the keys were changed, but cannot be listed: {error}");
                String::new()
            });
            Ok(Done::acted(act).answering(answer))
        }
    }
}

async fn list(place: &Place, now: Timestamp) -> anyhow::Result<String> {
    let keys = place.open().await?.list_keys(now).await?;
    let lines = keys.into_iter().map(|key| {
        if place.json {
            return format!("{}\n", json!(key));
        }
        let sealed = if key.sealed { "sealed" } else { "not sealed" };
        format!("{:<8}  {}  signs from {}  {sealed}\n", key.state, key.kid, key.active_from)
    });
    Ok(lines.collect())
}
