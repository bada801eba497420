//! A person or a service account whose credential has been verified.

use jiff::Timestamp;
use serde::Serialize;

use crate::{name::UserName, workload::WorkloadRef};

/// Who is asking. Made by [`crate::token::Verifier`], or by the SSH gateway after a proven key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The stable subject (`sub`); never shown to people.
    pub subject: String,
    pub user: UserName,
    pub email: Option<String>,
    pub groups: Vec<String>,
    pub credential: Credential,
}

/// What proved the identity. Goes into audit events, so it holds names and never secrets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credential {
    pub kind: CredentialKind,
    /// `jti` of a token, or of the token that a certificate was made with; fingerprint of a key.
    pub id: String,
    /// The sign-in session the credential belongs to, if any (`sid`).
    pub session: Option<String>,
    /// When it stops being valid.
    pub expires_at: Timestamp,
    /// Scopes granted to it (RFC 6749, section 3.3).
    pub scopes: Vec<String>,
    /// The only workload that it reaches, as `project/name`; all that its holder may, if `None`.
    pub workload: Option<String>,
}

/// The scope that lets a token reach workloads.
pub const USE: &str = "workload:use";

impl Credential {
    /// False for a token that was not given for reaching workloads, such as another program's
    /// sign-in, and for a credential that is limited to another workload.
    pub fn reaches(&self, workload: &WorkloadRef) -> bool {
        let is_token = match self.kind {
            CredentialKind::AccessToken | CredentialKind::PersonalAccessToken => true,
            CredentialKind::SshKey | CredentialKind::SshCertificate => false,
        };
        if is_token && !self.scopes.iter().any(|scope| scope == USE) {
            return false;
        }
        let Some(only) = &self.workload else { return true };
        let (project, name) = (workload.project.as_str(), workload.name.as_str());
        only.split_once('/') == Some((project, name))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum CredentialKind {
    /// A short-lived access token of a signed-in session.
    AccessToken,
    /// A personal access token or a service account's token.
    PersonalAccessToken,
    /// A registered SSH public key.
    SshKey,
    /// An SSH certificate of the auth server's authority.
    SshCertificate,
}
