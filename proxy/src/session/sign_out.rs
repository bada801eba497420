//! Signing out: asked once, by the issuer, and never done by another site.
//!
//! The question is the issuer's because nobody but a person can answer it there: a workload's own
//! scripts run on the workload's host, and could answer whatever is asked on that host. The most that
//! they can do is to feign the way back, and so to end this host's own session.

use aws_lc_rs::constant_time::verify_slices_are_equal;
use url::Url;

use super::{Sessions, cookie, login::random};
use crate::{
    answer::{Answer, Refusal},
    gate::{
        credential::{self, REFRESH_COOKIE, SIGN_OUT_COOKIE},
        head::{Audience, Head},
        origin,
    },
    pages,
};

impl Sessions {
    /// Sends the browser to the issuer, to ask, to end the session and all that came of it, and to
    /// come back (OpenID Connect RP-Initiated Logout 1.0, section 2).
    pub fn sign_out(&self, head: &Head<'_>, host: &str) -> Answer {
        if !matches!(head.method, "GET" | "HEAD" | "POST") {
            return Refusal::MethodNotAllowed.answer(Audience::Client);
        }
        let metadata = self.issuer.metadata();
        let end = metadata.as_ref().and_then(|metadata| metadata.end_session_endpoint.as_deref());
        let Some(mut url) = end.and_then(|url| Url::parse(url).ok()) else {
            return Refusal::SignInUnavailable.answer(Audience::Navigation);
        };
        let back = format!("{}/.dormouse/signed-out", origin::own(host, self.external_port));
        let state = random::<16>();
        url.query_pairs_mut()
            .append_pair("client_id", &self.issuer.client_id)
            .append_pair("post_logout_redirect_uri", &back)
            .append_pair("state", &state);
        Answer::redirect(303, url.into()).with_cookies([cookie::sign_out(&state)])
    }

    /// Where the issuer sends the browser back to: the cookies of this host go. The session behind
    /// them is over already, unless the browser had lost the issuer's own cookie; so the refresh
    /// token is withdrawn as well.
    pub fn signed_out(&self, head: &Head<'_>) -> Answer {
        if head.method != "GET" {
            return Refusal::MethodNotAllowed.answer(Audience::Client);
        }
        let state = url::form_urlencoded::parse(head.query().as_bytes())
            .find_map(|(name, value)| (name == "state").then_some(value));
        let expected = credential::cookie(head, SIGN_OUT_COOKIE).ok().flatten();
        let ours = state.zip(expected).is_some_and(|(state, expected)| {
            !expected.is_empty()
                && verify_slices_are_equal(state.as_bytes(), expected.as_bytes()).is_ok()
        });
        if !ours {
            // A reload, or another site's doing.
            return Answer::redirect(302, "/".to_owned());
        }
        if let Ok(Some(refresh)) = credential::cookie(head, REFRESH_COOKIE) {
            self.renewals.forget(refresh);
            let (issuer, refresh) = (self.issuer.clone(), refresh.to_owned());
            tokio::spawn(async move { issuer.revoke(&refresh).await });
        }
        let text = "Workloads keep running. Close the browser if this machine is not yours.";
        let page = pages::with_action("You are signed out", text, "/", "Sign in again");
        Answer::page(200, page)
            .with_cookies(cookie::forget_session())
            .with_cookies([cookie::forget_sign_out()])
    }
}
