//! Signing out: asked for by a person on our own page, and never by another site.

use url::Url;

use super::{Sessions, cookie};
use crate::{
    answer::{Answer, Refusal},
    gate::{
        credential::{self, REFRESH_COOKIE},
        head::{Audience, Head},
        origin,
    },
    pages,
};

impl Sessions {
    /// GET asks, POST does. The session ends here and, by a redirect, at the issuer (OpenID Connect
    /// RP-Initiated Logout, section 2).
    pub fn sign_out(&self, head: &Head<'_>, host: &str) -> Answer {
        let metadata = self.issuer.metadata();
        let end = metadata.as_ref().and_then(|metadata| metadata.end_session_endpoint.as_deref());
        let end = end.and_then(|url| Url::parse(url).ok());
        match head.method {
            "GET" | "HEAD" => {
                let target = end.map(|url| url.origin().ascii_serialization()).unwrap_or_default();
                Answer::page(200, pages::sign_out(&target))
            }
            // Another site may not sign people out; browsers send `Origin` with every POST.
            "POST" if !origin::is_own(head, host, self.external_port) => {
                Refusal::CrossOrigin.answer(Audience::Client)
            }
            "POST" => {
                if let Ok(Some(refresh)) = credential::cookie(head, REFRESH_COOKIE) {
                    self.renewals.forget(refresh);
                }
                let location = match end {
                    Some(mut url) => {
                        url.query_pairs_mut().append_pair("client_id", &self.issuer.client_id);
                        url.into()
                    }
                    None => "/".to_owned(),
                };
                Answer::redirect(303, location).with_cookies(cookie::forget_session())
            }
            _ => Refusal::MethodNotAllowed.answer(Audience::Client),
        }
    }
}
