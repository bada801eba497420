//! Access tokens: JWTs by RFC 9068, signed with RS256 (RFC 7518, section 3.3), verified locally.
//!
//! One algorithm, one type, keys only from our issuer's key set: a header that offers a key of its
//! own (`jwk`, `jku`, `x5u`, `x5c`) or asks for extensions (`crit`) is refused before anything else
//! is looked at.

mod claimed;

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jiff::{SignedDuration, Timestamp};
use jsonwebtoken::{Algorithm, DecodingKey};
use quick_cache::sync::Cache;
use serde::{Deserialize, Serialize};

use crate::identity::{Credential, CredentialKind, Identity};

pub use claimed::is_claimed;

/// Longest token that is looked at, in bytes. Ours have about 900.
pub const TOKEN_MAX: usize = 8 * 1024;

/// No JWT that names an issuer with `https://` is shorter.
const TOKEN_MIN: usize = 40;

/// Most keys of a set. An issuer that needs more for its tokens does not start.
pub const KEYS_MAX: usize = 512;

/// `typ` of an access token (RFC 9068, section 2.1).
pub const TYP: &str = "at+jwt";

/// The claims of our access tokens (RFC 9068, section 2.2). Unknown ones are ignored, doubled ones
/// are refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    pub iss: String,
    pub sub: String,
    pub aud: Audience,
    /// Seconds since the epoch, as are `nbf` and `iat`.
    pub exp: i64,
    pub nbf: i64,
    pub iat: i64,
    pub jti: String,
    pub client_id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sid: Option<String>,
    /// Separated by spaces (RFC 8693, section 4.2).
    #[serde(default)]
    pub scope: String,
    pub preferred_username: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub email: Option<String>,
    #[serde(default)]
    pub groups: Vec<String>,
    pub kind: TokenKind,
    /// A claim of our own: the only workload that the token reaches, as `project/name`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workload: Option<String>,
}

/// `aud` is one value or several (RFC 7519, section 4.1.3).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Audience {
    One(String),
    Many(Vec<String>),
}

impl Audience {
    pub fn contains(&self, audience: &str) -> bool {
        match self {
            Self::One(one) => one == audience,
            Self::Many(many) => many.iter().any(|one| one == audience),
        }
    }
}

/// A claim of our own, `kind`: how long it lives and how it is revoked differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TokenKind {
    Session,
    Personal,
}

/// Whose fault and what to tell: every one of these is a 401.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    #[error("the token is too long")]
    TooLong,
    #[error("the token is malformed")]
    Malformed,
    #[error("the token's algorithm, type or header is not accepted")]
    Header,
    #[error("the token is signed with an unknown key")]
    UnknownKey,
    #[error("the token's signature is wrong")]
    Signature,
    #[error("the token is from another issuer")]
    Issuer,
    #[error("the token is for another audience")]
    Audience,
    #[error("the token has expired")]
    Expired,
    #[error("the token is not valid yet")]
    NotYetValid,
    /// Said by whoever follows revocations; a [`Verifier`] alone does not know.
    #[error("the token has been withdrawn")]
    Withdrawn,
}

/// A JSON Web Key Set (RFC 7517), reduced to the RS256 keys in it.
#[derive(Default)]
pub struct KeySet {
    keys: HashMap<String, DecodingKey>,
}

impl std::fmt::Debug for KeySet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.keys.keys()).finish()
    }
}

#[derive(Debug, thiserror::Error)]
#[error("not a JSON Web Key Set")]
pub struct KeySetError;

impl KeySet {
    /// Keys of other types, uses and algorithms are skipped, as RFC 7517, section 5, asks for.
    ///
    /// # Errors
    /// No key set, or one of more than [`KEYS_MAX`] keys: with some of them left out, tokens that are good
    /// would be refused.
    pub fn from_json(json: &[u8]) -> Result<Self, KeySetError> {
        #[derive(Deserialize)]
        struct Set {
            keys: Vec<serde_json::Value>,
        }
        #[derive(Deserialize)]
        struct Key {
            kty: String,
            kid: String,
            n: String,
            e: String,
            alg: Option<String>,
            #[serde(rename = "use")]
            usage: Option<String>,
        }
        let set: Set = serde_json::from_slice(json).map_err(|_| KeySetError)?;
        if set.keys.len() > KEYS_MAX {
            return Err(KeySetError);
        }
        let mut keys = HashMap::new();
        for value in set.keys {
            let Ok(key) = serde_json::from_value::<Key>(value) else { continue };
            let usable = key.kty == "RSA"
                && key.alg.as_deref().is_none_or(|alg| alg == "RS256")
                && key.usage.as_deref().is_none_or(|usage| usage == "sig");
            if !usable {
                continue;
            }
            if let Ok(decoding) = DecodingKey::from_rsa_components(&key.n, &key.e) {
                keys.insert(key.kid, decoding);
            }
        }
        Ok(Self { keys })
    }

    pub fn contains(&self, kid: &str) -> bool {
        self.keys.contains_key(kid)
    }

    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }
}

/// What a token must say to be accepted.
#[derive(Debug, Clone)]
pub struct Expected {
    pub issuer: String,
    pub audience: String,
    /// How far clocks may differ.
    pub leeway: Duration,
}

/// Verifies tokens against a key set that may be replaced at any time. Remembers what it verified;
/// expiry is checked each time, and a new key set empties the memory.
pub struct Verifier {
    expected: Expected,
    keys: ArcSwap<Generation>,
    verified: Cache<String, Verified>,
}

struct Generation {
    number: u64,
    keys: KeySet,
}

#[derive(Clone)]
struct Verified {
    generation: u64,
    not_before: Timestamp,
    expires_at: Timestamp,
    identity: Arc<Identity>,
    /// The second of its last use, of personal tokens: people want to know which ones they need.
    used_at: Option<Arc<AtomicI64>>,
}

impl Verified {
    fn is_used(&self, now: Timestamp) {
        if let Some(used_at) = &self.used_at {
            used_at.store(now.as_second(), Ordering::Relaxed);
        }
    }
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    typ: Option<String>,
    kid: Option<String>,
    jwk: Option<serde::de::IgnoredAny>,
    jku: Option<serde::de::IgnoredAny>,
    x5u: Option<serde::de::IgnoredAny>,
    x5c: Option<serde::de::IgnoredAny>,
    crit: Option<serde::de::IgnoredAny>,
}

impl Verifier {
    /// Remembers at most `capacity` verified tokens.
    pub fn new(expected: Expected, capacity: usize) -> Self {
        Self {
            expected,
            keys: ArcSwap::from_pointee(Generation { number: 0, keys: KeySet::default() }),
            verified: Cache::new(capacity),
        }
    }

    pub fn set_keys(&self, keys: KeySet) {
        let number = self.keys.load().number + 1;
        self.keys.store(Arc::new(Generation { number, keys }));
    }

    /// False until a first key set has arrived.
    pub fn has_keys(&self) -> bool {
        !self.keys.load().keys.is_empty()
    }

    pub fn verify(&self, token: &str, now: Timestamp) -> Result<Arc<Identity>, TokenError> {
        let generation = self.keys.load();
        if token.len() > TOKEN_MAX {
            return Err(TokenError::TooLong);
        }
        if let Some(known) = self.verified.get(token)
            && known.generation == generation.number
        {
            self.check_time(known.not_before, known.expires_at, now)?;
            known.is_used(now);
            return Ok(known.identity);
        }
        let verified = self.verify_anew(token, &generation, now)?;
        verified.is_used(now);
        let identity = verified.identity.clone();
        self.verified.insert(token.to_owned(), verified);
        Ok(identity)
    }

    /// Whether a token says that it is our issuer's, good or not. Nearly every text that is asked
    /// about is none, and too short for one.
    pub fn is_claimed(&self, token: &str) -> bool {
        token.len() >= TOKEN_MIN
            && (self.verified.contains_key(token) || is_claimed(token, &self.expected.issuer))
    }

    /// Personal tokens that were used at that time or later, by `jti`, each with its last use to the
    /// second. Those are missing that had to make room for others since.
    pub fn personal_uses(&self, since: Timestamp) -> Vec<(String, i64)> {
        let uses = self.verified.iter().filter_map(|(_, verified)| {
            let used_at = verified.used_at?.load(Ordering::Relaxed);
            let is_new = used_at >= since.as_second();
            is_new.then(|| (verified.identity.credential.id.clone(), used_at))
        });
        uses.collect()
    }

    fn verify_anew(
        &self,
        token: &str,
        generation: &Generation,
        now: Timestamp,
    ) -> Result<Verified, TokenError> {
        let (message, signature) = token.rsplit_once('.').ok_or(TokenError::Malformed)?;
        let (header, payload) = message.split_once('.').ok_or(TokenError::Malformed)?;
        let header: Header = from_part(header)?;
        let typ = header.typ.as_deref().unwrap_or_default();
        let typ = typ.strip_prefix("application/").unwrap_or(typ);
        let foreign_key = header.jwk.is_some()
            || header.jku.is_some()
            || header.x5u.is_some()
            || header.x5c.is_some();
        if header.alg != "RS256"
            || !typ.eq_ignore_ascii_case(TYP)
            || foreign_key
            || header.crit.is_some()
        {
            return Err(TokenError::Header);
        }
        let kid = header.kid.as_deref().ok_or(TokenError::UnknownKey)?;
        let key = generation.keys.keys.get(kid).ok_or(TokenError::UnknownKey)?;
        match jsonwebtoken::crypto::verify(signature, message.as_bytes(), key, Algorithm::RS256) {
            Ok(true) => {}
            Ok(false) | Err(_) => return Err(TokenError::Signature),
        }

        let claims: Claims = from_part(payload)?;
        if claims.iss != self.expected.issuer {
            return Err(TokenError::Issuer);
        }
        if !claims.aud.contains(&self.expected.audience) {
            return Err(TokenError::Audience);
        }
        let time = |seconds| Timestamp::from_second(seconds).map_err(|_| TokenError::Malformed);
        let (not_before, expires_at) = (time(claims.nbf)?, time(claims.exp)?);
        self.check_time(not_before, expires_at, now)?;
        let identity = identity_of(claims, expires_at)?;
        let personal = identity.credential.kind == CredentialKind::PersonalAccessToken;
        Ok(Verified {
            generation: generation.number,
            not_before,
            expires_at,
            identity: Arc::new(identity),
            used_at: personal.then(Arc::default),
        })
    }

    fn check_time(
        &self,
        not_before: Timestamp,
        expires_at: Timestamp,
        now: Timestamp,
    ) -> Result<(), TokenError> {
        let leeway = SignedDuration::try_from(self.expected.leeway).unwrap_or_default();
        if now.duration_since(expires_at) >= leeway {
            return Err(TokenError::Expired);
        }
        if not_before.duration_since(now) > leeway {
            return Err(TokenError::NotYetValid);
        }
        Ok(())
    }
}

/// The `kid` a token names, without believing anything of it: tells whether fetching the key set
/// again could help.
pub fn unverified_kid(token: &str) -> Option<String> {
    if token.len() > TOKEN_MAX {
        return None;
    }
    let (header, _) = token.split_once('.')?;
    from_part::<Header>(header).ok()?.kid
}

fn from_part<T: serde::de::DeserializeOwned>(part: &str) -> Result<T, TokenError> {
    let bytes = URL_SAFE_NO_PAD.decode(part).map_err(|_| TokenError::Malformed)?;
    serde_json::from_slice(&bytes).map_err(|_| TokenError::Malformed)
}

fn identity_of(claims: Claims, expires_at: Timestamp) -> Result<Identity, TokenError> {
    let kind = match claims.kind {
        TokenKind::Session => CredentialKind::AccessToken,
        TokenKind::Personal => CredentialKind::PersonalAccessToken,
    };
    Ok(Identity {
        subject: claims.sub,
        user: claims.preferred_username.parse().map_err(|_| TokenError::Malformed)?,
        email: claims.email,
        groups: claims.groups,
        credential: Credential {
            kind,
            id: claims.jti,
            session: claims.sid,
            expires_at,
            scopes: claims.scope.split_ascii_whitespace().map(str::to_owned).collect(),
            workload: claims.workload,
        },
    })
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    pub fn identity(user: &str, groups: &[&str]) -> Identity {
        Identity {
            subject: format!("sub-{user}"),
            user: user.parse().unwrap(),
            email: None,
            groups: groups.iter().map(|&g| g.to_owned()).collect(),
            credential: Credential {
                kind: CredentialKind::AccessToken,
                id: "jti".to_owned(),
                session: None,
                expires_at: Timestamp::MAX,
                scopes: vec![crate::identity::USE.to_owned()],
                workload: None,
            },
        }
    }
}

#[cfg(test)]
mod tests;
