//! `dormouse auth key ...`

use std::{fmt::Write as _, time::Duration};

use authserver::{Replaced, Resealed, Store, Under};
use clap::{Args, Subcommand};
use jiff::Timestamp;
use serde_json::json;

use super::{
    Place,
    audit::{Act, Done},
};

#[derive(Subcommand)]
pub enum KeyOrder {
    /// List the keys that sign tokens, and what they and the server's secrets are sealed with
    #[command(
        after_help = "Examples:\n  dormouse auth key list --data-dir .dormouse\n  dormouse auth key list --database postgres://dormouse@db/dormouse --json"
    )]
    List(Place),
    /// Publish a new key, which signs when everybody has had the time to fetch it
    ///
    /// Running servers take it over within a second. What the old key signed stays valid until it
    /// expires.
    ///
    /// With --all everything is replaced that whoever has a copy of the database could use: all
    /// signing keys at once, the secrets that sealed forms and refresh tokens are made with, and the
    /// key that signs SSH certificates. People stay signed in, and browsers get new tokens by
    /// themselves. Void are personal tokens, SSH certificates, and sign-ins that are under way.
    #[command(
        after_help = "Examples:\n  dormouse auth key rotate --data-dir .dormouse\n  dormouse auth key rotate --database auth.db --master-key-file master-key --after 10m\n\nAfter a theft of the database (docs/after-a-theft.md):\n  dormouse auth key rotate --config authserver.toml --all --dry-run\n  dormouse auth key rotate --config authserver.toml --all\n\nOf the signing keys alone; browsers get new tokens by themselves, personal tokens have to be made anew:\n  dormouse auth key rotate --database auth.db --master-key-file master-key --void-all-tokens"
    )]
    Rotate(RotateOptions),
    /// Seal everything in the database under the current master key
    ///
    /// For a change of the master key: servers and this command name the new one as
    /// master_key_file, and the one of before as one of other_master_key_files. It may be repeated;
    /// all is sealed anew, or nothing.
    #[command(
        after_help = "Examples:\n  dormouse auth key reseal --config authserver.toml\n  dormouse auth key reseal --database auth.db --master-key-file new --other-master-key-file old"
    )]
    Reseal(Place),
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
    /// The same, and replace the server's secrets and the key of SSH certificates as well
    #[arg(long, conflicts_with_all = ["after", "void_all_tokens"])]
    all: bool,
    /// Only say what --all would replace and end
    #[arg(long, requires = "all")]
    dry_run: bool,
}

impl KeyOrder {
    pub fn change(&self) -> Option<(&Place, Act)> {
        match self {
            Self::List(_) | Self::Rotate(RotateOptions { dry_run: true, .. }) => None,
            Self::Rotate(options) => {
                Some((&options.place, Act::new(options.did(), options.what())))
            }
            Self::Reseal(place) => {
                Some((place, Act::new("keys-resealed", "Signing keys and secrets".to_owned())))
            }
        }
    }
}

impl RotateOptions {
    fn did(&self) -> &'static str {
        match self {
            Self { all: true, .. } => "all-keys-replaced",
            Self { void_all_tokens: true, .. } => "keys-replaced",
            _ => "key-rotated",
        }
    }

    fn what(&self) -> String {
        let what = if self.all { "Signing keys and secrets" } else { "Signing keys" };
        what.to_owned()
    }
}

pub async fn run(order: KeyOrder, now: Timestamp) -> anyhow::Result<Done> {
    match order {
        KeyOrder::List(place) => {
            Ok(Done::default().answering(list(&place.open().await?, place.json, now).await?))
        }
        KeyOrder::Rotate(options) => rotate(&options, now).await,
        KeyOrder::Reseal(place) => {
            let store = place.open().await?;
            let Resealed { keys, secrets, unchanged } = store.reseal().await?;
            let told = format!(
                "{keys} signing keys and {secrets} secrets sealed anew, {unchanged} were already under this \
                 master key"
            );
            let answer = if place.json {
                json!({ "keys": keys, "secrets": secrets, "unchanged": unchanged }).to_string()
            } else {
                told.clone()
            };
            let act = Act::new("keys-resealed", "Signing keys and secrets".to_owned()).with(told);
            Ok(Done::acted(act).answering(format!("{answer}\n")))
        }
    }
}

async fn rotate(options: &RotateOptions, now: Timestamp) -> anyhow::Result<Done> {
    let (store, json) = (options.place.open().await?, options.place.json);
    if options.dry_run {
        let replaced = store.would_replace(now).await?;
        return Ok(Done::default().answering(effects(false, &replaced, json)));
    }
    let (act, mut answer) = if options.all {
        let replaced = store.replace_all(now).await?;
        let Replaced { kid, keys, personal_tokens, sign_ins, devices } = &replaced;
        let detail = format!(
            "{keys} signing keys are gone, and the secrets seal, refresh and ssh-authority; ended: \
             {personal_tokens} personal tokens, {sign_ins} sign-ins under way, {devices} devices that waited"
        );
        let act = Act::new(options.did(), format!("Signing key {kid}")).with(detail);
        (act, effects(true, &replaced, json))
    } else {
        let (kid, detail) = if options.void_all_tokens {
            (store.replace_keys(now).await?, "all other keys are gone".to_owned())
        } else {
            let after = humantime::format_duration(options.after);
            (store.rotate_key(options.after, now).await?, format!("signs after {after}"))
        };
        (Act::new(options.did(), format!("Signing key {kid}")).with(detail), String::new())
    };
    // It is done, whatever becomes of the list.
    match list(&store, json, now).await {
        Ok(list) => answer.push_str(&list),
        Err(error) => eprintln!("dormouse: the keys were changed, but cannot be listed: {error}"),
    }
    Ok(Done::acted(act).answering(answer))
}

/// What was replaced, and what people will notice.
fn effects(done: bool, replaced: &Replaced, json: bool) -> String {
    let Replaced { keys, personal_tokens, sign_ins, devices, kid: _ } = replaced;
    if json {
        let counts = json!({
            "keys": keys, "secrets": ["seal", "refresh", "ssh-authority"],
            "personal_tokens": personal_tokens, "sign_ins": sign_ins, "devices": devices,
        });
        let how = if done { "replaced" } else { "would_replace" };
        return format!("{}\n", json!({ how: counts }));
    }
    let how = if done { "replaced" } else { "would be replaced" };
    format!(
        "{how}: {keys} signing keys, the secrets of forms and of refresh tokens, the key of SSH \
         certificates\n\
         browsers: stay signed in, and get new tokens by themselves\n\
         personal tokens: {personal_tokens} are void, and have to be made anew\n\
         SSH: certificates are void, registered keys stay\n\
         sign-ins under way: begin again; {sign_ins} at other providers, {devices} devices that \
         wait, and forms that are open\n"
    )
}

async fn list(store: &Store, json: bool, now: Timestamp) -> anyhow::Result<String> {
    let mut lines = String::new();
    for key in store.list_keys(now).await? {
        if json {
            writeln!(lines, "{}", json!(key))?;
        } else {
            let (state, kid, from) = (key.state, &key.kid, key.active_from);
            writeln!(lines, "{state:<8}  {kid}  signs from {from}  {}", told(key.under))?;
        }
    }
    for secret in store.list_secrets().await? {
        if json {
            writeln!(lines, "{}", json!(secret))?;
        } else {
            writeln!(lines, "secret    {}  {}", secret.secret, told(secret.under))?;
        }
    }
    Ok(lines)
}

fn told(under: Under) -> &'static str {
    match under {
        Under::Nothing => "not sealed",
        Under::Current => "sealed",
        Under::Other => "sealed with another master key: run `dormouse auth key reseal`",
        Under::Unknown => "sealed with a master key that is not named",
    }
}
