//! Passkeys (Web Authentication, Level 3): what the browser is asked, and whether its answer holds.
//!
//! Credentials are discoverable and verify their user, so one alone signs in. The relying party is
//! the issuer's host. Attestation is not asked for: which make of authenticator people use is theirs.

use std::time::Duration;

use serde_json::{Value, json};
use url::Url;
use uuid::Uuid;
use webauthn_rs::prelude::{
    CredentialID, DiscoverableAuthentication, PasskeyRegistration, PublicKeyCredential,
    RegisterPublicKeyCredential, Webauthn, WebauthnBuilder, WebauthnError,
};

pub use webauthn_rs::prelude::Passkey as Credential;

use crate::issuer::Issuer;

/// How long a challenge is good for, which is also what the browser is told.
pub const CHALLENGE_LIFETIME: Duration = Duration::from_secs(5 * 60);

/// Longest answer of a browser that is read, in bytes.
const ANSWER_MAX: usize = 16 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum PasskeyError {
    #[error("the browser's answer cannot be read")]
    Unreadable,
    #[error("the authenticator keeps no passkeys that can be found without a name")]
    NotDiscoverable,
    /// The signature is good and its counter is not: two copies of the key may be in use
    /// (Web Authentication, section 6.1.1).
    #[error("the passkey's signature counter went back")]
    CounterWentBack,
    #[error("the passkey was not accepted: {0}")]
    Refused(WebauthnError),
}

impl From<WebauthnError> for PasskeyError {
    fn from(error: WebauthnError) -> Self {
        match error {
            WebauthnError::CredentialPossibleCompromise => Self::CounterWentBack,
            other => Self::Refused(other),
        }
    }
}

/// An answer to a sign-in's challenge that nobody has checked yet.
pub struct Assertion {
    answer: PublicKeyCredential,
    /// Whose the passkey says it is.
    pub subject: Uuid,
}

impl Assertion {
    pub fn parse(text: &str) -> Result<Self, PasskeyError> {
        let answer: PublicKeyCredential = parse(text)?;
        let subject = answer
            .get_user_unique_id()
            .and_then(|handle| Uuid::from_slice(handle).ok())
            .ok_or(PasskeyError::Unreadable)?;
        Ok(Self { answer, subject })
    }

    pub fn credential_id(&self) -> &[u8] {
        self.answer.get_credential_id()
    }
}

pub struct RelyingParty {
    webauthn: Webauthn,
}

impl RelyingParty {
    pub fn new(issuer: &Issuer) -> anyhow::Result<Self> {
        let origin = Url::parse(issuer.as_str())?;
        let webauthn = WebauthnBuilder::new(issuer.host(), &origin)?
            .rp_name("Dormouse")
            .timeout(CHALLENGE_LIFETIME)
            .build()?;
        Ok(Self { webauthn })
    }

    /// What to hand to `navigator.credentials.create`, with binary values in base64url, and what is
    /// needed to check the answer. `known` are the person's passkeys, which are not made again.
    pub fn begin_registration(
        &self,
        subject: Uuid,
        name: &str,
        known: Vec<CredentialID>,
    ) -> Result<(Value, PasskeyRegistration), PasskeyError> {
        let (options, state) =
            self.webauthn.start_passkey_registration(subject, name, name, Some(known))?;
        let mut options = json!(options.public_key);
        // The library leaves it open whether a passkey can be found without a name; we need that.
        if let Some(selection) = options.get_mut("authenticatorSelection") {
            selection["residentKey"] = json!("required");
            selection["requireResidentKey"] = json!(true);
        }
        Ok((options, state))
    }

    pub fn finish_registration(
        &self,
        answer: &str,
        state: &PasskeyRegistration,
    ) -> Result<Credential, PasskeyError> {
        let answer: RegisterPublicKeyCredential = parse(answer)?;
        let credential = self.webauthn.finish_passkey_registration(&answer, state)?;
        // Browsers say so themselves, where they know.
        let discoverable = answer.extensions.cred_props.and_then(|properties| properties.rk);
        if discoverable == Some(false) {
            return Err(PasskeyError::NotDiscoverable);
        }
        Ok(credential)
    }

    /// What to hand to `navigator.credentials.get`, likewise.
    pub fn begin_sign_in(&self) -> Result<(Value, DiscoverableAuthentication), PasskeyError> {
        let (options, state) = self.webauthn.start_discoverable_authentication()?;
        Ok((json!(options.public_key), state))
    }

    /// The credential with its new counter, if the assertion is by it and the person was verified.
    pub fn finish_sign_in(
        &self,
        assertion: &Assertion,
        state: DiscoverableAuthentication,
        mut credential: Credential,
    ) -> Result<Used, PasskeyError> {
        let result = self.webauthn.finish_discoverable_authentication_v2(
            &assertion.answer,
            state,
            &credential,
        )?;
        if !result.user_verified() {
            return Err(PasskeyError::Refused(WebauthnError::UserNotVerified));
        }
        credential.update_credential(&result);
        Ok(Used { credential, counter: result.counter().into() })
    }
}

/// A credential after a sign-in with it.
pub struct Used {
    pub credential: Credential,
    /// 0 for those that do not count.
    pub counter: i64,
}

fn parse<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, PasskeyError> {
    if text.len() > ANSWER_MAX {
        return Err(PasskeyError::Unreadable);
    }
    serde_json::from_str(text).map_err(|_| PasskeyError::Unreadable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_browser_is_asked_for_a_passkey_that_is_found_without_a_name_and_verifies() {
        let party = RelyingParty::new(&"https://auth.localhost:8443".parse().unwrap()).unwrap();
        let (options, _) = party.begin_registration(Uuid::new_v4(), "alice", vec![]).unwrap();
        assert_eq!(options["rp"]["id"], "auth.localhost");
        assert_eq!(options["attestation"], "none");
        let selection = &options["authenticatorSelection"];
        assert_eq!(selection["residentKey"], "required");
        assert_eq!(selection["requireResidentKey"], true);
        assert_eq!(selection["userVerification"], "required");
        let (options, _) = party.begin_sign_in().unwrap();
        assert_eq!(options["rpId"], "auth.localhost");
        assert_eq!(options["userVerification"], "required");
        assert_eq!(options["allowCredentials"], json!([]));
    }

    #[test]
    fn what_cannot_be_read_is_an_error() {
        for bad in ["", "{}", "[]", "null", &"[".repeat(100_000)] {
            assert!(matches!(Assertion::parse(bad), Err(PasskeyError::Unreadable)));
        }
    }
}
