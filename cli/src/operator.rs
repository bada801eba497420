//! `dormouse auth ...`: people, tokens, keys, sessions and clients, straight in the authserver's database. Safe beside a
//! running server. What changes something is in the audit log when the command ends.

mod audit;
mod clients;
mod keys;
mod passkeys;
mod place;
mod service_accounts;
mod sessions;
#[cfg(test)]
mod tests;
mod tokens;
mod users;

use clap::{Args, Subcommand};
use domain::name::UserName;
use jiff::Timestamp;

use self::{
    audit::{Act, Done},
    place::Place,
};

#[derive(Subcommand)]
pub enum Order {
    /// Make, list and disable people
    #[command(subcommand)]
    User(users::UserOrder),
    /// Print a new personal access token of a person
    #[command(
        after_help = "Example:\n  dormouse auth token --data-dir .dormouse --user alice --expires-in 30d"
    )]
    Token(tokens::TokenOptions),
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

#[derive(Args)]
pub struct Named {
    #[command(flatten)]
    place: Place,
    #[arg(long)]
    name: UserName,
}

impl Order {
    /// What it is about to change, and where; none when it only reads.
    fn change(&self) -> Option<(&Place, Act)> {
        match self {
            Self::User(order) => order.change(),
            Self::Token(options) => Some(options.change()),
            Self::Key(order) => order.change(),
            Self::Session(order) => order.change(),
            Self::Client(order) => order.change(),
            Self::Passkey(order) => order.change(),
            Self::ServiceAccount(order) => order.change(),
        }
    }

    async fn run(self, now: Timestamp) -> anyhow::Result<Done> {
        match self {
            Self::User(order) => users::run(order, now).await,
            Self::Token(options) => tokens::run(options, now).await,
            Self::Key(order) => keys::run(order, now).await,
            Self::Session(order) => sessions::run(order, now).await,
            Self::Client(order) => clients::run(order, now).await,
            Self::Passkey(order) => passkeys::run(order).await,
            Self::ServiceAccount(order) => service_accounts::run(order, now).await,
        }
    }
}

/// What is changed is written down before it is answered: no secret is out that nobody knows of.
pub async fn run(order: Order) -> anyhow::Result<()> {
    let now = Timestamp::now();
    // Before anything is changed, so that nothing is when the log cannot be written.
    let tried = order.change().map(|(place, act)| anyhow::Ok((place.journal()?, act)));
    let tried = tried.transpose()?;
    let done = order.run(now).await;
    if let Some((journal, act)) = &tried {
        audit::record(journal, act, &done, now)?;
    }
    print!("{}", done?.answer);
    Ok(())
}
