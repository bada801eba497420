//! Who is it? A token, or a registered or certified key whose possession is proven.

use std::sync::Arc;

use domain::{
    identity::Identity,
    token::{TokenError, unverified_kid},
};
use jiff::Timestamp;
use russh::keys::{Algorithm, Certificate, PublicKey, ssh_key::Fingerprint};

use crate::{certified::CertificateError, visit::Gate};

/// Longest answer that OpenSSH reads from a terminal or a helper, in bytes: it cuts what is longer.
const CUT_BY_CLIENT: usize = 1023;

/// Who somebody has proven to be.
#[derive(Debug, Clone)]
pub struct Proven {
    pub identity: Arc<Identity>,
    /// Whose certificate it was, if it was one.
    pub authority: Option<Fingerprint>,
}

impl From<Arc<Identity>> for Proven {
    fn from(identity: Arc<Identity>) -> Self {
        Self { identity, authority: None }
    }
}

impl Gate {
    /// A token given as password or as an answer. The SSH user name plays no part: it names a
    /// workload and never a person.
    pub fn identify_by_token(&self, token: &str) -> Result<Arc<Identity>, TokenError> {
        let token = token.trim();
        let verified = self.verifier.verify(token, Timestamp::now());
        if matches!(verified, Err(TokenError::UnknownKey)) && unverified_kid(token).is_some() {
            self.jwks.unknown_kid();
        }
        let identity = verified?;
        if self.revocations.is_revoked(&identity) {
            Err(TokenError::Withdrawn)
        } else {
            Ok(identity)
        }
    }

    /// Must only be believed after the signature has been verified.
    pub fn identify_by_key(&self, key: &PublicKey, algorithm: &Algorithm) -> Option<Arc<Identity>> {
        if !is_sound(algorithm) {
            return None;
        }
        let (registered, now) = (self.registered.borrow(), Timestamp::now());
        let identity = registered.find(key, now)?;
        registered.note_use(identity, now);
        Some(identity.clone())
    }

    /// Must only be believed after the signature has been verified, with an algorithm for which
    /// `may_offer` was true.
    pub fn identify_by_certificate(
        &self,
        certificate: &Certificate,
    ) -> Result<Proven, CertificateError> {
        let registered = self.registered.borrow();
        let (identity, authority) = registered.certified.identify(certificate, Timestamp::now())?;
        Ok(Proven { identity: Arc::new(identity), authority: Some(authority) })
    }

    /// Whether to let a client go on and sign. The library does not say whether the key came with a
    /// certificate, so where there is an authority every key might have.
    pub fn may_offer(&self, key: &PublicKey, algorithm: &Algorithm) -> bool {
        let registered = self.registered.borrow();
        is_sound(algorithm)
            && (registered.certified.is_possible()
                || registered.find(key, Timestamp::now()).is_some())
    }
}

/// A signature over SHA-1 proves nothing any more (RFC 8332, section 1).
fn is_sound(algorithm: &Algorithm) -> bool {
    !matches!(algorithm, Algorithm::Rsa { hash: None } | Algorithm::Dsa)
}

/// What to tell somebody whose token was refused; never says more than the token's holder may know.
pub fn advice(token: &str, error: TokenError) -> String {
    if token.len() >= CUT_BY_CLIENT && error == TokenError::Signature {
        return format!(
            "the token arrived with {} characters, and SSH clients cut longer ones; use a \
             personal access token or a public key",
            token.len()
        );
    }
    format!("{error}; make a personal access token in the portal and give it as the password")
}
