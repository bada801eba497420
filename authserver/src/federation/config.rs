//! What an operator sets for each provider.

use std::{collections::BTreeMap, path::PathBuf};

use schemars::JsonSchema;
use serde::Deserialize;

/// An OpenID provider that signs people in: the company's own, or a public one.
///
/// Register with it the redirect URI `<our issuer>/sign-in/from/<id>` and, for signing out there as
/// well, the post-logout redirect URI `<our issuer>/sign-out`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ProviderConfig {
    /// Names the provider in addresses: lower-case letters, digits and hyphens. Changing it ends
    /// nothing, but the redirect URI changes with it.
    pub id: String,
    /// What people read on the button: `Sign in with <name>`.
    pub name: String,
    /// The issuer, character by character as the provider writes it in its tokens.
    pub issuer: String,
    /// The `client_id` that the provider gave us.
    pub client_id: String,
    /// A file with the client's secret. Left out for a public client.
    #[serde(default)]
    pub client_secret_file: Option<PathBuf>,
    /// What to ask for. `openid` is always among them.
    #[serde(default = "default_scopes")]
    pub scopes: Vec<String>,
    /// A file with the authority of the provider's certificate, if the system does not know it.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    /// The claim that becomes the user name of somebody who comes for the first time; dots lead
    /// into objects. In lower case; it never changes afterwards.
    #[serde(default = "default_user_name_claim")]
    pub user_name_claim: String,
    /// Taken off the end of user names: with `example.com`, `alice@example.com` becomes `alice`.
    #[serde(default)]
    pub strip_domain: Option<String>,
    /// The claim with the e-mail address.
    #[serde(default = "default_email_claim")]
    pub email_claim: String,
    /// E-mail addresses count without `email_verified`: for a provider that leaves it out and
    /// lets nobody choose their own.
    #[serde(default)]
    pub trust_email: bool,
    /// The claim with the groups, such as `groups` or `realm_access.roles`. Where it is missing,
    /// what was known stays. Empty for a provider that has no say in groups: those that operators
    /// give are all there are.
    #[serde(default = "default_groups_claim")]
    pub groups_claim: String,
    /// Which of the provider's groups become which of ours, and no others do. Left out, all keep
    /// their names. Needed where people are in very many groups, since tokens carry them.
    #[serde(default)]
    pub group_map: Option<BTreeMap<String, String>>,
    /// Only people with an e-mail address of one of these domains may sign in.
    #[serde(default)]
    pub allowed_email_domains: Vec<String>,
    /// Only people in one of these groups, by the provider's names, may sign in.
    #[serde(default)]
    pub allowed_groups: Vec<String>,
    /// `prompt=login` counts where the provider gives no `auth_time`: for one that is known to ask for
    /// a proof then. Whoever sits at a browser can take it out of the address on the way to the
    /// provider; only one that gives `auth_time` is safe from that.
    #[serde(default)]
    pub trust_prompt_login: bool,
    /// After signing out here, offer to sign out at the provider too, if it can do that.
    #[serde(default = "yes")]
    pub offer_sign_out: bool,
}

fn default_scopes() -> Vec<String> {
    ["openid", "profile", "email"].map(str::to_owned).to_vec()
}

fn default_user_name_claim() -> String {
    "preferred_username".to_owned()
}

fn default_email_claim() -> String {
    "email".to_owned()
}

fn default_groups_claim() -> String {
    "groups".to_owned()
}

fn yes() -> bool {
    true
}
