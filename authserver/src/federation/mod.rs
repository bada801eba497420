//! Signing in at other OpenID providers: we are a client of theirs, and issue our own tokens.

mod config;
mod fetch;
mod openid;
mod profile;
mod provider;
mod verify;

use std::collections::BTreeSet;

pub use self::config::ProviderConfig;
pub(crate) use self::{
    profile::{Email, Groups, NoGroups, Profile, ProfileError},
    provider::{Ask, LEEWAY, Provider, SignedIn, UpstreamError, is_issuer},
};
use crate::issuer::Issuer;

/// Where sign-ins at a provider begin, and where they come back to; the provider's id follows.
pub(crate) const BEGIN: &str = "/sign-in/with/";
pub(crate) const RETURN: &str = "/sign-in/from/";

/// All providers, in the order of the settings.
pub(crate) struct Federation {
    providers: Vec<Provider>,
    /// People with a password may sign in here as well.
    pub local: bool,
}

impl Federation {
    /// Asks nobody anything yet.
    pub fn new(configs: &[ProviderConfig], local: bool, issuer: &Issuer) -> anyhow::Result<Self> {
        let ids: BTreeSet<&str> = configs.iter().map(|config| config.id.as_str()).collect();
        anyhow::ensure!(ids.len() == configs.len(), "two [[providers]] have the same id");
        anyhow::ensure!(
            local || !configs.is_empty(),
            "nobody could sign in: set local_sign_in = true, or add one of [[providers]]"
        );
        let providers = configs
            .iter()
            .map(|config| Provider::new(config.clone(), issuer))
            .collect::<anyhow::Result<_>>()?;
        Ok(Self { providers, local })
    }

    pub fn providers(&self) -> &[Provider] {
        &self.providers
    }

    pub fn provider(&self, id: &str) -> Option<&Provider> {
        self.providers.iter().find(|provider| provider.config.id == id)
    }

    /// The provider that everybody signs in with: there is nothing to choose.
    pub fn only(&self) -> Option<&Provider> {
        match self.providers.as_slice() {
            [only] if !self.local => Some(only),
            _ => None,
        }
    }
}
