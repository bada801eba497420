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
            return self.sign_out_here(head);
        };
        let back = format!("{}/.dormouse/signed-out", origin::own(host, self.external_port));
        let state = random::<16>();
        url.query_pairs_mut()
            .append_pair("client_id", &self.issuer.client_id)
            .append_pair("post_logout_redirect_uri", &back)
            .append_pair("state", &state);
        Answer::redirect(303, url.into()).with_cookies([cookie::sign_out(&state)])
    }

    /// For as long as nobody knows where the issuer would be asked: ends this host's own session, and
    /// says what that leaves. Not for a link on another site, since nothing asks the person first.
    fn sign_out_here(&self, head: &Head<'_>) -> Answer {
        let site = head.single("sec-fetch-site");
        let own = head.values("sec-fetch-site").next().is_none()
            || site.is_some_and(|site| matches!(site, "none" | "same-origin"));
        if !own || head.method == "HEAD" {
            return Refusal::SignInUnavailable.answer(Audience::Navigation);
        }
        if let Ok(Some(refresh)) = credential::cookie(head, REFRESH_COOKIE) {
            self.renewals.forget(refresh);
        }
        let text = "You are signed out at this address alone. The sign-in service does not answer, \
                    so it could not be told: other addresses may still be open in this browser, and \
                    signing in again may not ask who you are. Sign out everywhere in a few seconds, \
                    or close the browser.";
        let (href, label) = ("/.dormouse/sign-out", "Sign out everywhere");
        let page = pages::with_action("Signed out here, not everywhere", text, href, label);
        Answer::page(503, page)
            .with("Retry-After", "5".to_owned())
            .with_cookies(cookie::forget_session())
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{answer::Body, gate::head::Field, session::testing::unheard};

    fn sessions() -> Sessions {
        let (issuer, verifier) = unheard();
        Sessions::new(issuer, verifier, 443)
    }

    fn sign_out(method: &str, from: Option<&str>) -> (Answer, Vec<String>, String) {
        let cookies = b"__Host-dormouse=a; __Host-dormouse-refresh=r";
        let mut fields = vec![Field { name: "cookie", value: cookies }];
        fields.extend(from.map(|site| Field { name: "sec-fetch-site", value: site.as_bytes() }));
        let (target, authority) = ("/.dormouse/sign-out", "lab--alice.test");
        let head = Head { method, target, authority, fields: &fields };
        let answer = sessions().sign_out(&head, authority);
        let set = answer.headers.iter().filter(|(name, _)| *name == "Set-Cookie");
        let set = set.map(|(_, value)| value.clone()).collect();
        let Body::Whole(html) = &answer.body else { panic!("a stream") };
        let html = String::from_utf8(html.to_vec()).unwrap();
        (answer, set, html)
    }

    #[tokio::test]
    async fn without_the_issuer_this_hosts_session_ends_and_the_rest_is_said() {
        for site in [None, Some("none"), Some("same-origin")] {
            let (answer, cookies, html) = sign_out("GET", site);
            assert_eq!(answer.status, 503);
            assert_eq!(cookies, cookie::forget_session(), "{site:?}");
            assert!(html.contains("Signed out here, not everywhere"), "{html}");
            assert!(html.contains("href=\"/.dormouse/sign-out\""), "{html}");
        }
    }

    #[tokio::test]
    async fn another_site_ends_no_session_without_being_asked_either() {
        for (method, site) in [
            ("GET", Some("cross-site")),
            ("POST", Some("same-site")),
            ("GET", Some("")),
            ("HEAD", None),
        ] {
            let (answer, cookies, html) = sign_out(method, site);
            assert_eq!((answer.status, cookies.len()), (503, 0), "{method} {site:?}");
            assert!(html.contains("Sign-in is unavailable"), "{html}");
        }
    }
}
