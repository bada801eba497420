//! The way back from the issuer.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use domain::{identity::Identity, token::Audience as TokenAudience};
use jiff::Timestamp;
use serde::Deserialize;
use std::sync::Arc;
use url::form_urlencoded;

use super::{Sessions, cookie, issuer::TokenEndpointError, login::Login, return_path::ReturnPath};
use crate::{
    answer::{Answer, Refusal},
    gate::{
        credential::{self, LOGIN_COOKIE_PREFIX},
        head::{Audience, Head},
    },
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
            return failed("doubled parameter", None);
        };
        let login = response.state.as_deref().and_then(|state| self.login(head, host, state, now));
        let Some(login) = login else {
            // The back button, a bookmark, or a tab that waited too long.
            if signed_in {
                let answer = Answer::redirect(302, "/".to_owned());
                return Landed { answer, who: None, problem: None };
            }
            return failed("unknown state", None);
        };
        let id = Some(login.id.as_str());
        if response.iss.as_deref() != Some(&self.issuer.url) {
            return failed("another issuer", id);
        }
        if response.error.is_some() {
            return failed("the issuer refused", id);
        }
        let Some(code) = response.code else { return failed("no code", id) };
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
            Err(error) => {
                tracing::info!(%error, "a sign-in's code was not accepted");
                return failed("code refused", id);
            }
        };
        let identity = match self.verifier.verify(&tokens.access_token, now) {
            Ok(identity) => identity,
            Err(error) => {
                tracing::warn!(%error, "the issuer gave an access token that we refuse");
                return failed("bad access token", id);
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
            return failed("bad ID token", id);
        }
        // A cookie that the browser drops would send it round in circles.
        if !cookie::access_fits(&tokens.access_token) {
            return too_many_groups(&login.id);
        }
        // Checked again: the seal is no reason to trust what an older version sealed.
        let to = ReturnPath::new(&login.to);
        let answer = Answer::redirect(302, to.as_str().to_owned())
            .with_cookies([cookie::access(&tokens.access_token)])
            .with_cookies(tokens.refresh_token.as_deref().map(cookie::refresh))
            .with_cookies([cookie::forget_login(&login.id)]);
        Landed { answer, who: Some(identity), problem: None }
    }

    /// The sign-in of this browser that `state` belongs to.
    fn login(&self, head: &Head<'_>, host: &str, state: &str, now: Timestamp) -> Option<Login> {
        let (id, _) = state.split_once('.')?;
        let sealed = credential::cookie(head, &format!("{LOGIN_COOKIE_PREFIX}{id}")).ok()??;
        Login::open(sealed, &self.seal, host, now).filter(|login| login.state == state)
    }
}

fn failed(problem: &'static str, id: Option<&str>) -> Landed {
    let page = pages::with_action(
        "Sign-in did not finish",
        "It took too long, was started in another browser, or cookies are blocked here.",
        "/",
        "Sign in again",
    );
    let answer = Answer::page(400, page).with_cookies(id.map(cookie::forget_login));
    Landed { answer, who: None, problem: Some(problem) }
}

fn too_many_groups(id: &str) -> Landed {
    let page = pages::plain(
        "Sign-in did not finish",
        "Your account is in so many groups that a browser cannot keep the session. Ask whoever runs \
         this to let the sign-in service send fewer groups.",
    );
    let answer = Answer::page(500, page).with_cookies([cookie::forget_login(id)]);
    Landed { answer, who: None, problem: Some("the access token is too long for a cookie") }
}
