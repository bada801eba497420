//! What a refresh token looks like, and the access token that is issued along with it.

use std::fmt;

use aws_lc_rs::hmac;

use crate::secret::{Secret, digest, hex};

/// Bytes of a refresh token's digest that name the access token beside it.
const HEAD: usize = 8;

/// `<grant>.<256 bits in base64url>`. It says its grant, since the tokens of a grant lie side by side
/// in the database; who knows the grant alone has nothing. Tokens of older servers, and all that
/// follow them, are the 256 bits alone.
pub struct RefreshToken(String);

impl RefreshToken {
    /// The first one of a grant.
    pub(super) fn first(grant_id: &str) -> Self {
        Self(format!("{grant_id}.{}", Secret::generate().as_str()))
    }

    /// The one that follows another: always the same, see [`Secret::derived`].
    pub(super) fn successor(key: &hmac::Key, predecessor: &str) -> Self {
        let secret = Secret::derived(key, predecessor);
        Self(match grant_of(predecessor) {
            Some(grant) => format!("{grant}.{}", secret.as_str()),
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

/// The grant that a refresh token says it is of; not whether it is.
pub(super) fn grant_of(token: &str) -> Option<&str> {
    token.split_once('.').map(|(grant, _)| grant)
}

/// `jti` of the access token that is issued along with the refresh token of this digest.
pub(super) fn issued_along(grant_id: &str, digest: &[u8]) -> String {
    format!("{grant_id}.{}", hex(digest.get(..HEAD).unwrap_or(digest)))
}

/// The grant and the head of the digest in such a `jti`.
pub(super) fn place(jti: &str) -> Option<(&str, Vec<u8>)> {
    let (grant, head) = jti.split_once('.')?;
    if head.len() != 2 * HEAD || !head.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let bytes = (0..HEAD).map(|n| u8::from_str_radix(head.get(2 * n..2 * n + 2)?, 16).ok());
    Some((grant, bytes.collect::<Option<_>>()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_family_keeps_the_form_of_its_first_token() {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &[1; 32]);
        let first = RefreshToken::first("grant");
        let next = RefreshToken::successor(&key, first.as_str());
        assert_eq!(
            (grant_of(first.as_str()), grant_of(next.as_str())),
            (Some("grant"), Some("grant"))
        );
        assert_ne!(first.as_str(), next.as_str());
        let old = RefreshToken::successor(&key, Secret::generate().as_str());
        assert_eq!((old.as_str().len(), grant_of(old.as_str())), (43, None));
        assert_eq!(format!("{first:?}"), "RefreshToken");
    }

    #[test]
    fn the_name_of_an_access_token_leads_to_the_refresh_token_beside_it() {
        let jti = issued_along("grant", &[0xab; 32]);
        assert_eq!(jti, "grant.abababababababab");
        assert_eq!(place(&jti), Some(("grant", vec![0xab; HEAD])));
        for other in ["grant", "grant.", "grant.+1ababababababab", "grant.abab", "g.äbäbäbäb"] {
            assert_eq!(place(other), None, "{other}");
        }
    }
}
