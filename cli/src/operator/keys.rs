//! `dormouse auth key ...`

use std::time::Duration;

use clap::{Args, Subcommand};
use jiff::Timestamp;
use serde_json::json;

use super::Place;

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

pub async fn run(order: KeyOrder, now: Timestamp) -> anyhow::Result<()> {
    match order {
        KeyOrder::List(place) => list(&place, now).await,
        KeyOrder::Rotate(options) => {
            let store = options.place.open().await?;
            if options.void_all_tokens {
                store.replace_keys(now).await?;
            } else {
                store.rotate_key(options.after, now).await?;
            }
            list(&options.place, now).await
        }
    }
}

async fn list(place: &Place, now: Timestamp) -> anyhow::Result<()> {
    for key in place.open().await?.list_keys(now).await? {
        if place.json {
            println!("{}", json!(key));
        } else {
            let sealed = if key.sealed { "sealed" } else { "not sealed" };
            println!("{:<8}  {}  signs from {}  {sealed}", key.state, key.kid, key.active_from);
        }
    }
    Ok(())
}
