//! `dormouse auth client ...`: applications that sign people in, beside those of the settings' file.

use std::path::PathBuf;

use anyhow::bail;
use authserver::{ClientConfig, ClientEntry, GrantType};
use clap::{Args, Subcommand, ValueEnum};
use jiff::Timestamp;
use serde_json::json;

use super::{
    Place,
    audit::{Act, Done},
};

#[derive(Subcommand)]
pub enum ClientOrder {
    /// Make a client; its secret, if it has one, is printed this once
    #[command(after_help = "Examples:
  dormouse auth client create --data-dir .dormouse --id hub \\
    --redirect-uri https://hub.example.org/hub/oauth_callback
  dormouse auth client create --database auth.db --id desktop-tool --public \\
    --redirect-uri http://127.0.0.1:8765/callback
  dormouse auth client create --database auth.db --id reports --jwks-file reports-keys.json \\
    --grant-type authorization-code --grant-type token-exchange \\
    --redirect-uri https://reports.example.org/callback --resource https://api.example.org")]
    Create(Box<CreateOptions>),
    /// List clients
    List(Place),
    /// Show one client
    Show(Identified),
    /// Print a new secret for a client; the old one is worth nothing within about a second
    #[command(
        after_help = "Example:\n  dormouse auth client rotate-secret --data-dir .dormouse --id hub > hub-secret"
    )]
    RotateSecret(Identified),
    /// Delete a client; all that it was given is withdrawn
    Delete(Identified),
}

#[derive(Args)]
pub struct Identified {
    #[command(flatten)]
    place: Place,
    /// The client's id
    #[arg(long)]
    id: String,
}

#[derive(Args)]
pub struct CreateOptions {
    #[command(flatten)]
    place: Place,
    /// What the program gives as `client_id`
    #[arg(long)]
    id: String,
    /// What people see on pages instead of the id
    #[arg(long, value_name = "TEXT")]
    name: Option<String>,
    /// Runs where no secret can be kept: in a browser, on a person's own machine
    #[arg(long, conflicts_with_all = ["jwks_file", "jwks_uri"])]
    public: bool,
    /// The client's public keys as a JSON Web Key Set: it signs assertions instead of having a secret
    #[arg(long, value_name = "FILE")]
    jwks_file: Option<PathBuf>,
    /// Where the client publishes that set instead
    #[arg(long, value_name = "URL", conflicts_with = "jwks_file")]
    jwks_uri: Option<String>,
    /// Where codes may be sent, compared character by character; may be given several times
    #[arg(long = "redirect-uri", value_name = "URI")]
    redirect_uris: Vec<String>,
    /// Where a browser may be sent after signing out; may be given several times
    #[arg(long = "post-logout-redirect-uri", value_name = "URI")]
    post_logout_redirect_uris: Vec<String>,
    /// Where the client is told that a session is over
    #[arg(long, value_name = "URI")]
    back_channel_logout_uri: Option<String>,
    /// How it may come by tokens; may be given several times [default: authorization-code and
    /// refresh-token]
    #[arg(long = "grant-type", value_name = "GRANT")]
    grant_types: Vec<Grant>,
    /// What it may ask for; may be given several times [default: openid, profile, email and groups]
    #[arg(long = "scope", value_name = "SCOPE")]
    scopes: Vec<String>,
    /// An audience other than the usual one that it may ask for; may be given several times
    #[arg(long = "resource", value_name = "URI")]
    resources: Vec<String>,
    /// Somebody else's: people are asked before it gets anything
    #[arg(long)]
    third_party: bool,
    /// Only authorization requests that the client pushed itself are accepted
    #[arg(long)]
    pushed_requests_only: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Grant {
    AuthorizationCode,
    RefreshToken,
    DeviceCode,
    TokenExchange,
}

impl From<Grant> for GrantType {
    fn from(grant: Grant) -> Self {
        match grant {
            Grant::AuthorizationCode => Self::AuthorizationCode,
            Grant::RefreshToken => Self::RefreshToken,
            Grant::DeviceCode => Self::DeviceCode,
            Grant::TokenExchange => Self::TokenExchange,
        }
    }
}

impl ClientOrder {
    pub fn change(&self) -> Option<(&Place, Act)> {
        match self {
            Self::List(_) | Self::Show(_) => None,
            Self::Create(options) => {
                Some((&options.place, Act::new("client-added", named(&options.id))))
            }
            Self::RotateSecret(Identified { place, id }) => {
                Some((place, Act::new("client-secret-rotated", named(id))))
            }
            Self::Delete(Identified { place, id }) => {
                Some((place, Act::new("client-deleted", named(id))))
            }
        }
    }
}

fn named(id: &str) -> String {
    format!("Client {id}")
}

pub async fn run(order: ClientOrder, now: Timestamp) -> anyhow::Result<Done> {
    match order {
        ClientOrder::Create(options) => create(*options, now).await,
        ClientOrder::List(place) => list(&place).await,
        ClientOrder::Show(Identified { place, id }) => show(&place, &id).await,
        ClientOrder::RotateSecret(Identified { place, id }) => {
            let secret = place.open().await?.rotate_client_secret(&id).await?;
            let answer = if place.json {
                format!("{}\n", json!({ "client_id": id, "client_secret": secret }))
            } else {
                format!("{secret}\n")
            };
            Ok(Done::default().answering(answer))
        }
        ClientOrder::Delete(Identified { place, id }) => {
            place.open().await?.remove_client(&id, now).await?;
            Ok(Done::default())
        }
    }
}

async fn create(options: CreateOptions, now: Timestamp) -> anyhow::Result<Done> {
    let mut client = ClientConfig::named(options.id);
    client.public = options.public;
    client.jwks_file = options.jwks_file;
    client.jwks_uri = options.jwks_uri;
    client.name = options.name;
    client.redirect_uris = options.redirect_uris;
    client.post_logout_redirect_uris = options.post_logout_redirect_uris;
    client.back_channel_logout_uri = options.back_channel_logout_uri;
    if !options.grant_types.is_empty() {
        client.grant_types = options.grant_types.into_iter().map(GrantType::from).collect();
    }
    if !options.scopes.is_empty() {
        client.scopes = options.scopes;
    }
    client.resources = options.resources;
    client.third_party = options.third_party;
    client.pushed_requests_only = options.pushed_requests_only;
    let secret = options.place.open().await?.add_client(&client, now).await?;
    let answer = if options.place.json {
        format!("{}\n", json!({ "client_id": client.id, "client_secret": secret }))
    } else {
        let secret = secret.map(|secret| format!("client_secret  {secret}\n"));
        format!("client_id      {}\n{}", client.id, secret.unwrap_or_default())
    };
    let act = Act::new("client-added", named(&client.id)).with(rights(&client));
    Ok(Done::acted(act).answering(answer))
}

/// What a client may do, on one line.
fn rights(client: &ClientConfig) -> String {
    let mut said = format!("scopes {}; codes to", client.scopes.join(" "));
    if client.redirect_uris.is_empty() {
        said += " nowhere";
    }
    for uri in &client.redirect_uris {
        said = format!("{said} {uri}");
    }
    if !client.resources.is_empty() {
        said += &format!("; resources {}", client.resources.join(" "));
    }
    if client.public {
        said += "; public";
    }
    if client.third_party {
        said += "; third party";
    }
    said
}

async fn list(place: &Place) -> anyhow::Result<Done> {
    for client in place.open().await?.list_clients().await? {
        if place.json {
            println!("{}", json!(client));
        } else {
            let origin = if client.in_settings { "  (in the settings)" } else { "" };
            println!("{}  {}{origin}", client.id, client.auth_method);
        }
    }
    Ok(Done::default())
}

async fn show(place: &Place, id: &str) -> anyhow::Result<Done> {
    let Some(client) = place.open().await?.show_client(id).await? else {
        bail!("there is no client {id}; `dormouse auth client list` shows those that there are");
    };
    if place.json {
        println!("{}", json!(client));
    } else {
        print!("{}", lines(&client));
    }
    Ok(Done::default())
}

/// One line for each thing that is set.
fn lines(client: &ClientEntry) -> String {
    let grants: Vec<_> = client.grant_types.iter().map(|grant| json!(grant)).collect();
    let grants: Vec<_> = grants.iter().filter_map(|grant| grant.as_str()).collect();
    let yes = |is: bool| if is { "yes" } else { "" }.to_owned();
    let whose = if client.in_settings { "the settings' file" } else { "an operator's command" };
    let fields = [
        ("id", client.id.clone()),
        ("name", client.name.clone().unwrap_or_default()),
        ("auth method", client.auth_method.to_owned()),
        ("key set", client.jwks_uri.clone().unwrap_or_default()),
        ("redirect URIs", client.redirect_uris.join(" ")),
        ("after sign-out", client.post_logout_redirect_uris.join(" ")),
        ("back channel", client.back_channel_logout_uri.clone().unwrap_or_default()),
        ("grant types", grants.join(" ")),
        ("scopes", client.scopes.join(" ")),
        ("resources", client.resources.join(" ")),
        ("third party", yes(client.third_party)),
        ("pushed only", yes(client.pushed_requests_only)),
        ("made by", whose.to_owned()),
        ("made at", client.created_at.map(|at| at.to_string()).unwrap_or_default()),
    ];
    let set = fields.into_iter().filter(|(_, value)| !value.is_empty());
    set.map(|(name, value)| format!("{name:<15}{value}\n")).collect()
}
