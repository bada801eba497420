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
use crate::{
    answer::Besides,
    session::renew::{Outcome, Renewals},
};

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
    /// What the answer has to say of a renewed session goes into `besides`, whoever answers.
    pub(super) async fn identify<'a>(
        &self,
        head: &Head<'a>,
        besides: &mut Besides,
        now: Timestamp,
    ) -> Result<SignedIn<'a>, Unidentified> {
        match credential::presented(head, &|token| self.verifier.is_claimed(token)) {
            Err(error @ CredentialError::MalformedCookie) => {
                Err(Unidentified::Session(error.to_string()))
            }
            Err(error) => Err(Unidentified::Bad(error.to_string())),
            Ok(Presented::Nothing) => Err(Unidentified::Nothing),
            Ok(Presented::Token(token)) => match self.verify(&token, now) {
                Ok(identity) => Ok(SignedIn { identity, via: Via::Bearer, token }),
                Err(_) if !self.verifier.has_keys() => Err(Unidentified::NotYet),
                Err(error) => Err(Unidentified::Bad(error.to_string())),
            },
            Ok(Presented::Session { access, refresh }) => {
                self.session(access, refresh, besides, now).await
            }
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
        besides: &mut Besides,
        now: Timestamp,
    ) -> Result<SignedIn<'a>, Unidentified> {
        let renewed = match self.verify(access, now) {
            Ok(identity) => {
                let due = Renewals::is_due(identity.credential.expires_at, now);
                let renewed = match refresh.filter(|_| due) {
                    Some(refresh) => self.sessions.renewals.soon(refresh, now).await,
                    None => None,
                };
                let Some(renewed) = renewed else {
                    let token = Cow::Borrowed(access);
                    return Ok(SignedIn { identity, via: Via::Session, token });
                };
                renewed
            }
            Err(TokenError::Expired) => {
                let ended = || Unidentified::Session("the session has ended".to_owned());
                let refresh = refresh.ok_or_else(ended)?;
                match self.sessions.renewals.now(refresh, now).await {
                    Outcome::Renewed(renewed) => renewed,
                    Outcome::Ended | Outcome::Failed => return Err(ended()),
                }
            }
            Err(_) if !self.verifier.has_keys() => return Err(Unidentified::NotYet),
            Err(error) => return Err(Unidentified::Session(error.to_string())),
        };
        besides.set_cookies(renewed.cookies());
        let token = Cow::Owned(renewed.token.to_string());
        Ok(SignedIn { identity: renewed.identity, via: Via::Session, token })
    }
}
