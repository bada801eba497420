//! The way back from the issuer.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use domain::{identity::Identity, token::Audience as TokenAudience};
use jiff::Timestamp;
use serde::Deserialize;
use std::sync::Arc;
use url::form_urlencoded;

use super::{
    Sessions, cookie,
    issuer::TokenEndpointError,
    login::{Attempt, Login},
    return_path::ReturnPath,
};
use crate::{
    answer::{Answer, Refusal},
    gate::head::{Audience, Head},
    pages,
};

/// A sign-in that came to its end, with the person if it went well.
pub struct Landed {
    pub answer: Answer,
    pub who: Option<Arc<Identity>>,
    pub problem: Option<&'static str>,
}

/// What an authorization response says (RFC 6749, section 4.1.2; `iss` of RFC 9207).
#[derive(Default)]
struct Response {
    code: Option<String>,
    state: Option<String>,
    iss: Option<String>,
    error: Option<String>,
}

impl Response {
    /// `None` when a parameter is there twice.
    fn parse(query: &str) -> Option<Self> {
        let mut response = Self::default();
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            let slot = match &*name {
                "code" => &mut response.code,
                "state" => &mut response.state,
                "iss" => &mut response.iss,
                "error" => &mut response.error,
                _ => continue,
            };
            if slot.replace(value.into_owned()).is_some() {
                return None;
            }
        }
        Some(response)
    }
}

/// The claims of the ID token that bind it to this sign-in (OpenID Connect Core, section 3.1.3.7).
/// Its signature need not be checked: it comes straight from the token endpoint, to which we have
/// authenticated, and nothing is believed of it that the access token does not say too.
#[derive(Deserialize)]
struct IdToken {
    iss: String,
    sub: String,
    aud: TokenAudience,
    exp: i64,
    nonce: Option<String>,
}

impl IdToken {
    fn read(token: &str) -> Option<Self> {
        let payload = token.split('.').nth(1)?;
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).ok()?).ok()
    }
}

impl Sessions {
    /// Ends a sign-in: exchanges the code and sets the session's cookies. `signed_in` tells whether
    /// the browser has a good session already, as when another tab was faster.
    pub async fn finish_login(
        &self,
        head: &Head<'_>,
        host: &str,
        signed_in: bool,
        now: Timestamp,
    ) -> Landed {
        let Some(response) = Response::parse(head.query()) else {
            return failed("doubled parameter", &ReturnPath::home());
        };
        let state = response.state.as_deref().unwrap_or_default();
        let (attempt, login) = Login::open(state, &self.seal, host);
        // Checked again: the seal is no reason to trust what an older version sealed.
        let to = login.as_ref().map_or_else(ReturnPath::home, |login| ReturnPath::new(&login.to));
        if signed_in {
            // Another tab, the back button or a bookmark. The code is good for nobody else, and not
            // for long.
            return Landed { answer: home(&to), who: None, problem: None };
        }
        let again = |problem| match attempt {
            Attempt::First => {
                let answer = self.start_login(head, host, &to, Attempt::Again, now);
                Landed { answer, who: None, problem: Some(problem) }
            }
            Attempt::Again => failed(problem, &to),
        };
        let Some(login) = login else { return again("unknown state") };
        if !login.is_current(head, now) {
            // A bookmark of the sign-in page, a tab that waited too long, or another browser's
            // sign-in: whoever this browser belongs to signs in themselves.
            return again("another browser or too late");
        }
        if response.iss.as_deref() != Some(&self.issuer.url) {
            return failed("another issuer", &to);
        }
        if response.error.is_some() {
            return failed("the issuer refused", &to);
        }
        let Some(code) = response.code else { return failed("no code", &to) };
        let redirect_uri = self.redirect_uri(host);
        let form = [
            ("grant_type", "authorization_code"),
            ("code", code.as_str()),
            ("redirect_uri", redirect_uri.as_str()),
            ("code_verifier", login.verifier.as_str()),
        ];
        let tokens = match self.issuer.token(&form).await {
            Ok(tokens) => tokens,
            Err(TokenEndpointError::Unreachable | TokenEndpointError::Interrupted) => {
                let answer = Refusal::SignInUnavailable.answer(Audience::Navigation);
                return Landed { answer, who: None, problem: Some("token endpoint unreachable") };
            }
            // Too old, or used: the answer to its first use was lost on the way.
            Err(TokenEndpointError::InvalidGrant) => return again("code refused"),
            Err(error) => {
                tracing::info!(%error, "a sign-in's code was not accepted");
                return failed("code refused", &to);
            }
        };
        let identity = match self.verifier.verify(&tokens.access_token, now) {
            Ok(identity) => identity,
            Err(error) => {
                tracing::warn!(%error, "the issuer gave an access token that we refuse");
                return failed("bad access token", &to);
            }
        };
        let bound = tokens.id_token.as_deref().and_then(IdToken::read).is_some_and(|id_token| {
            id_token.iss == self.issuer.url
                && id_token.aud.contains(&self.issuer.client_id)
                && id_token.sub == identity.subject
                && id_token.exp >= now.as_second() - 30
                && id_token.nonce.as_deref() == Some(&login.nonce)
        });
        if !bound {
            return failed("bad ID token", &to);
        }
        // A cookie that the browser drops would send it round in circles.
        if !cookie::access_fits(&tokens.access_token) {
            return too_many_groups();
        }
        let answer = home(&to)
            .with_cookies([cookie::access(&tokens.access_token)])
            .with_cookies(tokens.refresh_token.as_deref().map(cookie::refresh));
        Landed { answer, who: Some(identity), problem: None }
    }
}

/// Without a fragment, so that browsers keep the one that they came with (Fetch, section 4.4).
fn home(to: &ReturnPath) -> Answer {
    Answer::redirect(302, to.as_str().to_owned())
}

fn failed(problem: &'static str, to: &ReturnPath) -> Landed {
    let page = pages::with_action(
        "Sign-in did not finish",
        "It took too long, was started in another browser, or cookies are blocked here.",
        to.as_str(),
        "Sign in again",
    );
    Landed { answer: Answer::page(400, page), who: None, problem: Some(problem) }
}

fn too_many_groups() -> Landed {
    let page = pages::plain(
        "Sign-in did not finish",
        "Your account is in so many groups that a browser cannot keep the session. Ask whoever runs \
         this to let the sign-in service send fewer groups.",
    );
    let problem = Some("the access token is too long for a cookie");
    Landed { answer: Answer::page(500, page), who: None, problem }
}
