//! What a refresh token looks like, and where it is kept.

use std::fmt;

use aws_lc_rs::hmac;

use crate::secret::{Secret, digest};

/// Longest id of a grant, in bytes: they are UUIDs.
const GRANT_MAX: usize = 36;

/// Where a refresh token is kept, and the access token that was issued along with it: the tokens of a
/// grant lie in the order in which they follow each other.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Place {
    pub grant_id: String,
    /// Grows by one with each exchange.
    pub generation: i64,
}

impl Place {
    /// `jti` of the access token.
    pub fn jti(&self) -> String {
        format!("{}.{}", self.grant_id, self.generation)
    }

    pub fn of_jti(jti: &str) -> Option<Self> {
        let (grant_id, generation) = jti.split_once('.')?;
        Self::new(grant_id, generation)
    }

    /// Where the token says that it is kept; not whether it is there.
    pub fn of_token(token: &str) -> Option<Self> {
        let mut parts = token.splitn(3, '.');
        let (grant_id, generation, _secret) = (parts.next()?, parts.next()?, parts.next()?);
        Self::new(grant_id, generation)
    }

    pub fn next(&self) -> Self {
        Self { grant_id: self.grant_id.clone(), generation: self.generation.saturating_add(1) }
    }

    fn new(grant_id: &str, generation: &str) -> Option<Self> {
        // It comes from outside, and PostgreSQL refuses some of what a text can hold.
        let named = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        if !(1..=GRANT_MAX).contains(&grant_id.len()) || !grant_id.bytes().all(named) {
            return None;
        }
        if !generation.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        Some(Self { grant_id: grant_id.to_owned(), generation: generation.parse().ok()? })
    }
}

/// `<grant>.<generation>.<256 bits in base64url>`; who knows the first two alone has nothing. Tokens
/// of older servers, and all that follow them, are the 256 bits alone.
pub struct RefreshToken(String);

impl RefreshToken {
    pub(super) fn first(place: &Place) -> Self {
        Self(format!("{}.{}", place.jti(), Secret::generate().as_str()))
    }

    /// The one that follows another: always the same, see [`Secret::derived`].
    pub(super) fn successor(key: &hmac::Key, predecessor: &str) -> Self {
        let secret = Secret::derived(key, predecessor);
        Self(match Place::of_token(predecessor) {
            Some(place) => format!("{}.{}", place.next().jti(), secret.as_str()),
            None => secret.as_str().to_owned(),
        })
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What is stored in its place.
    pub fn digest(&self) -> Vec<u8> {
        digest(&self.0)
    }
}

impl fmt::Debug for RefreshToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RefreshToken")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(generation: i64) -> Place {
        Place { grant_id: "grant".to_owned(), generation }
    }

    #[test]
    fn a_family_keeps_the_form_of_its_first_token() {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &[1; 32]);
        let first = RefreshToken::first(&place(0));
        let next = RefreshToken::successor(&key, first.as_str());
        assert_eq!(Place::of_token(first.as_str()), Some(place(0)));
        assert_eq!(Place::of_token(next.as_str()), Some(place(1)));
        let old = RefreshToken::successor(&key, Secret::generate().as_str());
        assert_eq!((old.as_str().len(), Place::of_token(old.as_str())), (43, None));
        assert_eq!(format!("{first:?}"), "RefreshToken");
    }

    #[test]
    fn the_name_of_an_access_token_leads_to_the_refresh_token_beside_it() {
        assert_eq!(place(12).jti(), "grant.12");
        assert_eq!(Place::of_jti("grant.12"), Some(place(12)));
        for other in
            ["grant", "grant.", "grant.+1", "grant.-1", "grant.1.2", "grant.99999999999999999999"]
        {
            assert_eq!(Place::of_jti(other), None, "{other}");
        }
        let long = format!("{}.1.b", "g".repeat(GRANT_MAX + 1));
        for other in
            ["", "grant.1", "grant.a.b", "grant..b", "a.b", ".1.b", "g\0.1.b", "ä.1.b", &long]
        {
            assert_eq!(Place::of_token(other), None, "{other:?}");
        }
    }
}
