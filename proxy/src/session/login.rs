//! The way to the issuer: authorization code flow with PKCE (RFC 6749, section 4.1; RFC 7636).
//!
//! What has to be remembered meanwhile travels sealed in `state`, so that any number of tabs may sign
//! in at a time; one cookie binds it to the browser.

use aws_lc_rs::constant_time::verify_slices_are_equal;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use url::Url;

use super::{Sessions, cookie, return_path::ReturnPath, seal::Seal};
use crate::{
    answer::{Answer, Refusal},
    gate::{
        credential::{self, LOGIN_COOKIE},
        head::{Audience, Head},
    },
};

/// Characters of the cookie that names a browser.
const BROWSER: usize = 22;

/// How often the gate has begun this sign-in by itself. Stands in `state` for all to read, since it
/// must end a circle also where nothing else can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attempt {
    /// A person opened a page.
    First,
    /// What came back from the first was of no use.
    Again,
}

/// One sign-in under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Login {
    /// Seconds since the epoch.
    pub started: i64,
    /// The cookie of the browser that it was started in.
    browser: String,
    pub nonce: String,
    /// The PKCE code verifier.
    pub verifier: String,
    pub to: String,
}

pub(super) fn random<const N: usize>() -> String {
    URL_SAFE_NO_PAD.encode(rand::random::<[u8; N]>())
}

impl Login {
    fn new(to: &ReturnPath, browser: &str, now: Timestamp) -> Self {
        Self {
            started: now.as_second(),
            browser: browser.to_owned(),
            nonce: random::<16>(),
            verifier: random::<32>(),
            to: to.as_str().to_owned(),
        }
    }

    fn state(&self, attempt: Attempt, seal: &Seal, host: &str) -> Option<String> {
        let sealed = seal.seal(host, &serde_json::to_vec(self).ok()?)?;
        let attempt = match attempt {
            Attempt::First => "1",
            Attempt::Again => "2",
        };
        Some(format!("{attempt}.{sealed}"))
    }

    /// The sign-in that a `state` was made for, on this host.
    pub fn open(state: &str, seal: &Seal, host: &str) -> (Attempt, Option<Self>) {
        let (attempt, sealed) = match state.split_once('.') {
            Some(("2", sealed)) => (Attempt::Again, sealed),
            Some((_, sealed)) => (Attempt::First, sealed),
            None => return (Attempt::First, None),
        };
        let text = seal.open(host, sealed);
        (attempt, text.and_then(|text| serde_json::from_slice(&text).ok()))
    }

    /// Whether it is not too old, and this browser's.
    pub fn is_current(&self, head: &Head<'_>, now: Timestamp) -> bool {
        let age = now.as_second().saturating_sub(self.started);
        let same = |browser: &str| {
            verify_slices_are_equal(browser.as_bytes(), self.browser.as_bytes()).is_ok()
        };
        (-60..=i64::from(cookie::LOGIN_SECONDS)).contains(&age) && browser(head).is_some_and(same)
    }
}

fn browser<'a>(head: &Head<'a>) -> Option<&'a str> {
    let value = credential::cookie(head, LOGIN_COOKIE).ok().flatten();
    value.filter(|value| value.len() == BROWSER)
}

impl Sessions {
    /// Sends the browser to the issuer, to come back to `to`.
    pub fn start_login(
        &self,
        head: &Head<'_>,
        host: &str,
        to: &ReturnPath,
        attempt: Attempt,
        now: Timestamp,
    ) -> Answer {
        // Kept, so that other tabs' sign-ins stay good.
        let browser = browser(head).map_or_else(random::<16>, str::to_owned);
        let login = Login::new(to, &browser, now);
        let url = self
            .issuer
            .metadata()
            .and_then(|metadata| Url::parse(&metadata.authorization_endpoint).ok());
        let state = login.state(attempt, &self.seal, host);
        let (Some(mut url), Some(state)) = (url, state) else {
            return Refusal::SignInUnavailable.answer(Audience::Navigation);
        };
        let challenge = URL_SAFE_NO_PAD.encode(Sha256::digest(login.verifier.as_bytes()));
        url.query_pairs_mut()
            .append_pair("response_type", "code")
            .append_pair("client_id", &self.issuer.client_id)
            .append_pair("redirect_uri", &self.redirect_uri(host))
            .append_pair("scope", "openid profile email groups")
            .append_pair("state", &state)
            .append_pair("nonce", &login.nonce)
            .append_pair("code_challenge", &challenge)
            .append_pair("code_challenge_method", "S256");
        Answer::redirect(302, url.into()).with_cookies([cookie::login(&browser)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gate::head::Field;

    const HOST: &str = "a.example.org";

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn is_current(login: &Login, cookie: &str, second: i64) -> bool {
        let fields = [Field { name: "cookie", value: cookie.as_bytes() }];
        let head = Head { method: "GET", target: "/", authority: HOST, fields: &fields };
        login.is_current(&head, at(second))
    }

    #[test]
    fn a_sign_in_is_good_in_its_browser_for_a_day() {
        let browser = random::<16>();
        let login = Login::new(&ReturnPath::new("/lab"), &browser, at(1000));
        let cookie = format!("{LOGIN_COOKIE}={browser}");
        for second in [1000, 1000 + 16 * 60, 1000 + 24 * 3600] {
            assert!(is_current(&login, &cookie, second), "{second}");
        }
        assert!(!is_current(&login, &cookie, 1000 + 26 * 3600), "too late");
        assert!(!is_current(&login, &cookie, 0), "from the future");
        let other = format!("{LOGIN_COOKIE}={}", random::<16>());
        for other in
            [other.as_str(), "x=1", &format!("{LOGIN_COOKIE}="), &format!("{cookie}; {cookie}")]
        {
            assert!(!is_current(&login, other, 1000), "{other}");
        }
    }

    #[test]
    fn a_state_opens_where_it_was_sealed_and_always_says_which_attempt_it_was() {
        let (seal, other) = (Seal::new(b"k"), Seal::new(b"x"));
        let login = Login::new(&ReturnPath::new("/lab"), "b", at(1000));
        for attempt in [Attempt::First, Attempt::Again] {
            let state = login.state(attempt, &seal, HOST).unwrap();
            assert_eq!(Login::open(&state, &seal, HOST), (attempt, Some(login.clone())));
            assert_eq!(Login::open(&state, &seal, "b.example.org"), (attempt, None));
            assert_eq!(Login::open(&state, &other, HOST), (attempt, None));
            assert!(!state.contains("lab"), "{state}");
        }
        for made_up in ["", ".", "1.", "2", "x", "abc.def"] {
            assert_eq!(Login::open(made_up, &seal, HOST), (Attempt::First, None), "{made_up}");
        }
    }

    #[test]
    fn the_longest_path_fits_into_what_the_issuer_reads() {
        let to = ReturnPath::new(&format!("/{}", "%".repeat(8 * 1024 - 1)));
        let login = Login::new(&to, &random::<16>(), at(1000));
        let state = login.state(Attempt::First, &Seal::new(b"k"), HOST).unwrap();
        assert!(state.len() < 12 * 1024, "{}", state.len());
    }
}
