//! The way to the issuer: authorization code flow with PKCE (RFC 6749, section 4.1; RFC 7636).

use aws_lc_rs::hmac;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use url::Url;

use super::{Sessions, cookie, return_path::ReturnPath};
use crate::{
    answer::{Answer, Refusal},
    gate::{
        credential::{LOGIN_COOKIE_PREFIX, cookies},
        head::{Audience, Head},
    },
};

/// Sign-ins that may be under way in one browser on one host: one per tab. More, and the oldest is
/// forgotten, for a browser sends all of them with every request.
const LOGINS_MAX: usize = 12;

/// One sign-in under way. Kept by the browser, sealed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Login {
    /// Names the cookie, and begins `state`.
    pub id: String,
    /// Seconds since the epoch.
    pub started: i64,
    pub state: String,
    pub nonce: String,
    /// The PKCE code verifier.
    pub verifier: String,
    pub to: String,
}

pub(super) fn random<const N: usize>() -> String {
    URL_SAFE_NO_PAD.encode(rand::random::<[u8; N]>())
}

impl Login {
    fn new(to: &ReturnPath, now: Timestamp) -> Self {
        let id = random::<9>();
        Self {
            state: format!("{id}.{}", random::<16>()),
            id,
            started: now.as_second(),
            nonce: random::<16>(),
            verifier: random::<32>(),
            to: to.as_str().to_owned(),
        }
    }

    /// The text of the cookie: JSON and its tag, bound to the host.
    pub fn seal(&self, key: &hmac::Key, host: &str) -> String {
        let body = URL_SAFE_NO_PAD.encode(serde_json::to_vec(self).unwrap_or_default());
        let tag = hmac::sign(key, format!("{host}\n{body}").as_bytes());
        format!("{body}.{}", URL_SAFE_NO_PAD.encode(tag.as_ref()))
    }

    pub fn open(sealed: &str, key: &hmac::Key, host: &str, now: Timestamp) -> Option<Self> {
        let (body, tag) = sealed.split_once('.')?;
        let tag = URL_SAFE_NO_PAD.decode(tag).ok()?;
        hmac::verify(key, format!("{host}\n{body}").as_bytes(), &tag).ok()?;
        let login: Self = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(body).ok()?).ok()?;
        let age = now.as_second().saturating_sub(login.started);
        (-60..=i64::from(cookie::LOGIN_SECONDS)).contains(&age).then_some(login)
    }
}

impl Sessions {
    /// Sends the browser to the issuer, to come back to `to`.
    pub fn start_login(
        &self,
        head: &Head<'_>,
        host: &str,
        to: &ReturnPath,
        now: Timestamp,
    ) -> Answer {
        let url = self
            .issuer
            .metadata()
            .and_then(|metadata| Url::parse(&metadata.authorization_endpoint).ok());
        let Some(mut url) = url else {
            return Refusal::SignInUnavailable.answer(Audience::Navigation);
        };
        let login = Login::new(to, now);
        let challenge = URL_SAFE_NO_PAD.encode(Sha256::digest(login.verifier.as_bytes()));
        url.query_pairs_mut()
            .append_pair("response_type", "code")
            .append_pair("client_id", &self.issuer.client_id)
            .append_pair("redirect_uri", &self.redirect_uri(host))
            .append_pair("scope", "openid profile email groups")
            .append_pair("state", &login.state)
            .append_pair("nonce", &login.nonce)
            .append_pair("code_challenge", &challenge)
            .append_pair("code_challenge_method", "S256");
        let sealed = login.seal(&self.seal, host);
        Answer::redirect(302, url.into())
            .with_cookies([cookie::login(&login.id, &sealed)])
            .with_cookies(self.too_many(head, host, now).iter().map(|id| cookie::forget_login(id)))
    }

    /// Identifiers of the sign-ins to forget so that there is room for one more: those that are
    /// over or not ours, and the oldest.
    fn too_many(&self, head: &Head<'_>, host: &str, now: Timestamp) -> Vec<String> {
        let mut all: Vec<(i64, String)> = cookies(head)
            .filter_map(|(name, value)| {
                let name = std::str::from_utf8(name).ok()?;
                let id = name.strip_prefix(LOGIN_COOKIE_PREFIX)?;
                let plain = id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
                if !plain {
                    return None;
                }
                let value = std::str::from_utf8(value).unwrap_or_default();
                let started = Login::open(value, &self.seal, host, now)
                    .map_or(i64::MIN, |login| login.started);
                Some((started, id.to_owned()))
            })
            .collect();
        all.sort();
        let over = all.iter().filter(|(started, _)| *started == i64::MIN).count();
        let excess = (all.len() + 1).saturating_sub(LOGINS_MAX).max(over);
        all.into_iter().take(excess).map(|(_, id)| id).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> hmac::Key {
        hmac::Key::new(hmac::HMAC_SHA256, b"k")
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn a_sign_in_opens_where_and_while_it_was_sealed() {
        let login = Login::new(&ReturnPath::new("/lab"), at(1000));
        let sealed = login.seal(&key(), "a.example.org");
        let open = |sealed: &str, host, second| Login::open(sealed, &key(), host, at(second));
        assert_eq!(open(&sealed, "a.example.org", 1100), Some(login));
        assert_eq!(open(&sealed, "b.example.org", 1100), None, "another host");
        assert_eq!(open(&sealed, "a.example.org", 1000 + 16 * 60), None, "too late");
        let other = Login::open(
            &sealed,
            &hmac::Key::new(hmac::HMAC_SHA256, b"x"),
            "a.example.org",
            at(1000),
        );
        assert_eq!(other, None, "another key");
        let mut forged = sealed.into_bytes();
        forged[5] ^= 1;
        assert_eq!(open(std::str::from_utf8(&forged).unwrap(), "a.example.org", 1100), None);
    }
}
