//! Issues tokens: a small OpenID Connect provider.
//!
//! The code flow with PKCE for browsers, personal access tokens for programs, registered keys for
//! SSH. Gateways verify what is issued here by themselves, with the key set; nobody asks this
//! server during a request.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod address;
mod assertion;
mod back_channel;
mod client;
mod config;
mod database;
mod device;
mod federation;
mod http;
mod issuer;
mod jws;
mod key_sets;
mod known_clients;
mod limiter;
mod listen;
mod master_key;
mod metrics;
mod passkey;
mod password;
mod pkce;
mod scope;
mod secret;
mod server;
mod signing;
mod ssh_authority;
mod ssh_key;
mod ssh_signature;
mod store;
mod throttle;

pub use self::{
    address::Cidr,
    client::GrantType,
    config::{ClientConfig, Config, NewPerson},
    database::Database,
    federation::ProviderConfig,
    issuer::{GATE_CALLBACK, Issuer},
    master_key::{MasterKey, MasterKeyError, MasterKeys, Under},
    server::{Authserver, Clock, serve},
    store::{
        Authentication, ClientEntry, Identity, KeyEntry, KeyPlan, NewPersonalToken,
        NewServiceAccount, Passkey, Person, PersonalToken, Proof, Replaced, Resealed, SecretEntry,
        ServiceAccountEntry, SessionEntry, SshKey, Store, StoreError, Unlinked, Ways,
    },
};

/// Parsers of outside input, for fuzzing; not an API.
#[doc(hidden)]
pub mod parsers {
    pub use crate::http::parsers::{authorize_query, cookies, jwt, token_form};
}
