//! From what a request presents to a verified identity.

use std::{borrow::Cow, sync::Arc};

use domain::{
    identity::Identity,
    token::{TokenError, unverified_kid},
};
use jiff::Timestamp;

use super::{
    Gate,
    credential::{self, CredentialError, Presented},
    head::Head,
};
use crate::session::renew::{Outcome, Renewals};

/// By what the identity was proven. Only browsers send cookies without being told to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Via {
    Bearer,
    Session,
}

pub(super) struct SignedIn<'a> {
    pub identity: Arc<Identity>,
    pub via: Via,
    pub token: Cow<'a, str>,
    /// Session cookies to set with the answer.
    pub cookies: Vec<String>,
}

/// Why nobody was identified; the texts may be shown.
pub(super) enum Unidentified {
    /// Our own keys have not arrived.
    NotYet,
    Nothing,
    /// A browser's session that is no good; signing in again helps.
    Session(String),
    /// Anything else that is no good.
    Bad(String),
}

impl Unidentified {
    pub fn sign_in_helps(&self) -> bool {
        matches!(self, Self::Nothing | Self::Session(_))
    }
}

impl Gate {
    pub(super) async fn identify<'a>(
        &self,
        head: &Head<'a>,
        now: Timestamp,
    ) -> Result<SignedIn<'a>, Unidentified> {
        match credential::presented(head) {
            Err(error @ CredentialError::MalformedCookie) => {
                Err(Unidentified::Session(error.to_string()))
            }
            Err(error) => Err(Unidentified::Bad(error.to_string())),
            Ok(Presented::Nothing) => Err(Unidentified::Nothing),
            Ok(Presented::Bearer(token)) => match self.verify(token, now) {
                Ok(identity) => Ok(SignedIn {
                    identity,
                    via: Via::Bearer,
                    token: Cow::Borrowed(token),
                    cookies: Vec::new(),
                }),
                Err(_) if !self.verifier.has_keys() => Err(Unidentified::NotYet),
                Err(error) => Err(Unidentified::Bad(error.to_string())),
            },
            Ok(Presented::Session { access, refresh }) => self.session(access, refresh, now).await,
        }
    }

    fn verify(&self, token: &str, now: Timestamp) -> Result<Arc<Identity>, TokenError> {
        let verified = self.verifier.verify(token, now);
        if verified == Err(TokenError::UnknownKey) && unverified_kid(token).is_some() {
            self.jwks.unknown_kid();
        }
        verified.and_then(|identity| {
            if self.revocations.is_revoked(&identity) {
                Err(TokenError::Withdrawn)
            } else {
                Ok(identity)
            }
        })
    }

    /// A session past half its token's life is renewed beside the request; one past its end before
    /// it. Only a token that was truly ours once makes us ask the issuer.
    async fn session<'a>(
        &self,
        access: &'a str,
        refresh: Option<&str>,
        now: Timestamp,
    ) -> Result<SignedIn<'a>, Unidentified> {
        let signed_in =
            |identity, token, cookies| SignedIn { identity, via: Via::Session, token, cookies };
        match self.verify(access, now) {
            Ok(identity) => {
                let due = Renewals::is_due(identity.credential.expires_at, now);
                let renewed = match refresh.filter(|_| due) {
                    Some(refresh) => self.sessions.renewals.soon(refresh, now).await,
                    None => None,
                };
                Ok(match renewed {
                    Some(renewed) => {
                        let cookies = renewed.cookies();
                        signed_in(renewed.identity, Cow::Owned(renewed.token.to_string()), cookies)
                    }
                    None => signed_in(identity, Cow::Borrowed(access), Vec::new()),
                })
            }
            Err(TokenError::Expired) => {
                let ended = || Unidentified::Session("the session has ended".to_owned());
                let refresh = refresh.ok_or_else(ended)?;
                match self.sessions.renewals.now(refresh, now).await {
                    Outcome::Renewed(renewed) => {
                        let cookies = renewed.cookies();
                        Ok(signed_in(
                            renewed.identity,
                            Cow::Owned(renewed.token.to_string()),
                            cookies,
                        ))
                    }
                    Outcome::Ended | Outcome::Failed => Err(ended()),
                }
            }
            Err(_) if !self.verifier.has_keys() => Err(Unidentified::NotYet),
            Err(error) => Err(Unidentified::Session(error.to_string())),
        }
    }
}
