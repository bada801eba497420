//! Browser sessions: signing in through the code flow, renewing, signing out.

pub mod callback;
pub mod cookie;
pub mod issuer;
pub mod login;
pub mod renew;
pub mod return_path;
pub mod seal;
pub mod sign_out;

use std::sync::Arc;

use domain::token::Verifier;

use self::{issuer::Issuer, renew::Renewals, seal::Seal};

/// What all of a gateway's browser sessions share.
pub struct Sessions {
    pub(crate) issuer: Arc<Issuer>,
    pub(crate) verifier: Arc<Verifier>,
    pub(crate) renewals: Renewals,
    /// Seals the state of sign-ins that are under way, with the client's secret.
    pub(crate) seal: Seal,
    pub(crate) external_port: u16,
}

impl Sessions {
    pub fn new(issuer: Arc<Issuer>, verifier: Arc<Verifier>, external_port: u16) -> Self {
        Self {
            renewals: Renewals::new(issuer.clone(), verifier.clone()),
            seal: Seal::new(issuer.client_secret().as_bytes()),
            issuer,
            verifier,
            external_port,
        }
    }

    /// Where the issuer sends the browser back to.
    pub(crate) fn redirect_uri(&self, host: &str) -> String {
        let origin = crate::gate::origin::own(host, self.external_port);
        format!("{origin}/.dormouse/callback")
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use std::time::Duration;

    use domain::token::Expected;

    use super::*;

    /// Of a gateway that has not heard from the issuer yet.
    pub fn unheard() -> (Arc<Issuer>, Arc<Verifier>) {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let http = reqwest::Client::new();
        let issuer =
            Issuer::new("https://auth.test", "http://127.0.0.1:9", "gate", "s".into(), http);
        let expected = Expected {
            issuer: "https://auth.test".to_owned(),
            audience: "dormouse".to_owned(),
            leeway: Duration::ZERO,
        };
        (Arc::new(issuer), Arc::new(Verifier::new(expected, 1)))
    }
}
