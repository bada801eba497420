//! What the gate itself says: every refusal becomes a response here and nowhere else.

use bytes::Bytes;
use domain::workload::WorkloadRef;
use http::HeaderValue;
use serde_json::json;
use tokio::sync::mpsc;

use crate::{
    gate::{
        head::Audience,
        limits::{Exceeded, Held, Scope},
    },
    pages,
    session::return_path::ReturnPath,
};

/// A response of our own, not yet written by an engine.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(&'static str, String)>,
    pub body: Body,
    /// Close the connection afterwards: the client cannot be trusted to know where it is.
    pub close: bool,
}

#[derive(Debug)]
pub enum Body {
    Whole(Bytes),
    /// Written as it comes, until the sender is dropped.
    Stream(mpsc::Receiver<Bytes>),
}

impl Answer {
    pub fn new(status: u16, content_type: &str, body: impl Into<Bytes>) -> Self {
        let headers = vec![
            ("Content-Type", content_type.to_owned()),
            ("Cache-Control", "no-store".to_owned()),
            ("X-Content-Type-Options", "nosniff".to_owned()),
        ];
        Self { status, headers, body: Body::Whole(body.into()), close: false }
    }

    pub fn redirect(status: u16, location: String) -> Self {
        Self::new(status, "text/plain; charset=utf-8", "").with("Location", location)
    }

    pub fn json(status: u16, value: &serde_json::Value) -> Self {
        Self::new(status, "application/json", value.to_string())
    }

    pub fn page(status: u16, page: pages::Page) -> Self {
        Self::new(status, "text/html; charset=utf-8", page.html)
            .with("Content-Security-Policy", page.policy)
            .with("Referrer-Policy", "same-origin".to_owned())
    }

    pub fn with(mut self, name: &'static str, value: String) -> Self {
        self.headers.push((name, value));
        self
    }

    pub fn with_cookies(mut self, cookies: impl IntoIterator<Item = String>) -> Self {
        self.headers.extend(cookies.into_iter().map(|cookie| ("Set-Cookie", cookie)));
        self
    }
}

/// What every answer to one request says besides its own: the renewed cookies of its session, what is
/// left of its limits, and for how long to come by HTTPS only (RFC 6797). An answer of our own can be
/// written only once it has been through here, and an upstream's is written with [`Self::fields`].
#[derive(Debug, Clone)]
pub struct Besides {
    cookies: Vec<String>,
    limits: Vec<(&'static str, String)>,
    hsts: Option<HeaderValue>,
}

impl Besides {
    /// As long as nobody is identified.
    pub fn nobody(hsts: Option<HeaderValue>) -> Self {
        Self { cookies: Vec::new(), limits: Vec::new(), hsts }
    }

    pub fn set_cookies(&mut self, cookies: Vec<String>) {
        self.cookies = cookies;
    }

    /// With what there is to say of the limits that the request counts against.
    pub fn with_limits(&self, held: &mut Held) -> Self {
        Self { limits: std::mem::take(&mut held.fields), ..self.clone() }
    }

    /// For an upstream's answer; `Strict-Transport-Security` takes the place of the upstream's own.
    pub fn fields(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let cookies = self.cookies.iter().map(|cookie| ("Set-Cookie", cookie.as_str()));
        cookies.chain(self.limits.iter().map(|(name, value)| (*name, value.as_str())))
    }

    /// For an answer of our own, whose own word about a cookie counts.
    pub fn answer(&self, mut answer: Answer) -> Outgoing {
        let name_of = |cookie: &str| cookie.split('=').next().unwrap_or_default().to_owned();
        for (name, value) in self.fields() {
            let said = answer.headers.iter().any(|(other, own)| {
                *other == name && (name != "Set-Cookie" || name_of(own) == name_of(value))
            });
            if !said {
                answer.headers.push((name, value.to_owned()));
            }
        }
        if let Some(hsts) = self.hsts.as_ref().and_then(|hsts| hsts.to_str().ok()) {
            answer.headers.push(("Strict-Transport-Security", hsts.to_owned()));
        }
        Outgoing(answer)
    }
}

/// An answer of our own with all that belongs to it: the only one that engines write.
#[derive(Debug)]
pub struct Outgoing(Answer);

impl Outgoing {
    pub fn closing(mut self) -> Self {
        self.0.close = true;
        self
    }

    pub fn into_answer(self) -> Answer {
        self.0
    }
}

impl std::ops::Deref for Outgoing {
    type Target = Answer;

    fn deref(&self) -> &Answer {
        &self.0
    }
}

/// What is wrong with an upstream's answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// No HTTP, or a field that cannot be read.
    Head,
    /// More or longer fields than are taken.
    Size,
    /// No number, or two of them.
    Length,
    /// Not `chunked` alone, or twice.
    Coding,
    /// Another protocol than was asked for.
    Protocol,
}

impl Fault {
    fn words(self) -> &'static str {
        match self {
            Self::Head => "its status line or one of its header fields is not well-formed",
            Self::Size => "its header has more than 200 fields or more than 64 KiB",
            Self::Length => "its Content-Length is no number, or is there twice",
            Self::Coding => "its Transfer-Encoding is not `chunked`, or is there twice",
            Self::Protocol => "it changes to a protocol that nobody asked for",
        }
    }
}

/// Why a request goes no further. Says nothing that its reader may not know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// The head breaks the protocol; the connection closes.
    BadRequest(&'static str),
    HeadTooLarge,
    MethodNotAllowed,
    /// No such host, or not this person's: the same words for both.
    NotFound,
    NotSignedIn,
    /// A browser's session is no good any more; why, in words that hold no secret.
    SessionOver(String),
    /// Any other credential that is not good; why, the same.
    BadCredential(String),
    CrossOrigin,
    /// A form of a person whose session is over, and the page that it was on.
    FormWithoutSession(ReturnPath),
    /// Nobody is signed in, and the link cannot be kept meanwhile.
    LinkTooLong,
    /// Keys or routes have not arrived yet.
    NotYet,
    SignInUnavailable,
    Stopped(WorkloadRef),
    Failed(WorkloadRef, String),
    /// Asleep, and the request is a background one that must not wake it.
    Asleep(WorkloadRef),
    /// Held as long as allowed.
    StillStarting(WorkloadRef),
    TooManyHeld,
    /// More than somebody's share.
    TooMany(Exceeded),
    /// The request's body is longer than this, in bytes.
    BodyTooLarge(u64),
    /// The request's body does not come.
    BodyTooSlow,
    Unreachable,
    /// The upstream broke off.
    BadGateway,
    /// The upstream's answer is not passed on, because of what is wrong with it.
    BadAnswer(Fault),
    ShuttingDown,
}

struct Words {
    status: u16,
    title: &'static str,
    detail: String,
    retry_after: Option<u32>,
}

impl Refusal {
    /// A short name for metrics and logs.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::BadRequest(_) => "bad-request",
            Self::HeadTooLarge => "head-too-large",
            Self::MethodNotAllowed => "method",
            Self::NotFound => "not-found",
            Self::NotSignedIn => "not-signed-in",
            Self::SessionOver(_) => "session-over",
            Self::BadCredential(_) => "bad-credential",
            Self::CrossOrigin => "cross-origin",
            Self::FormWithoutSession(_) => "form-without-session",
            Self::LinkTooLong => "link-too-long",
            Self::NotYet => "not-synced",
            Self::SignInUnavailable => "sign-in-unavailable",
            Self::Stopped(_) => "stopped",
            Self::Failed(..) => "failed",
            Self::Asleep(_) => "asleep",
            Self::StillStarting(_) => "still-starting",
            Self::TooManyHeld => "too-many-held",
            Self::TooMany(Exceeded::Rate { .. }) => "rate",
            Self::TooMany(Exceeded::Concurrent { .. }) => "concurrency",
            Self::BodyTooLarge(_) => "body-too-large",
            Self::BodyTooSlow => "body-too-slow",
            Self::Unreachable => "unreachable",
            Self::BadGateway => "bad-gateway",
            Self::BadAnswer(_) => "bad-answer",
            Self::ShuttingDown => "shutting-down",
        }
    }

    fn words(&self) -> Words {
        let words = |status, title, detail: String, retry_after| Words {
            status,
            title,
            detail,
            retry_after,
        };
        match self {
            Self::BadRequest(why) => words(400, "Bad request", format!("{why}."), None),
            Self::HeadTooLarge => words(
                431,
                "Request header fields too large",
                "Send fewer or shorter headers; deleting this site's cookies may help.".to_owned(),
                None,
            ),
            Self::MethodNotAllowed => words(
                405,
                "Method not allowed",
                "CONNECT and TRACE are not served here.".to_owned(),
                None,
            ),
            Self::NotFound => words(
                404,
                "Not found",
                "There is nothing here, or it is not yours. Ask its owner to share it with you."
                    .to_owned(),
                None,
            ),
            Self::NotSignedIn => words(
                401,
                "Not signed in",
                "Send an access token as `Authorization: Bearer` or `Dormouse-Token`, or sign in with a browser."
                    .to_owned(),
                None,
            ),
            Self::SessionOver(why) => {
                words(401, "Session over", format!("{why}. Sign in again."), None)
            }
            Self::BadCredential(why) => words(
                401,
                "Credential refused",
                format!("{why}. Send another token: your account page makes them."),
                None,
            ),
            Self::CrossOrigin => words(
                403,
                "Cross-origin request refused",
                "With a browser's session only this host's own pages may do that. Use a token, or let the owner name the page's origin in spec.traffic.allowedOrigins."
                    .to_owned(),
                None,
            ),
            Self::FormWithoutSession(_) => words(
                401,
                "Sign in, and send it again",
                "You are not signed in any more, so what you sent was not taken. Sign in in the tab that the button opens. Then come back here and reload this page: the browser asks whether to send it again."
                    .to_owned(),
                None,
            ),
            Self::LinkTooLong => words(
                401,
                "Sign in, and open it again",
                "This link is too long to be kept while you sign in. Sign in in the tab that the button opens. Then come back here and reload this page."
                    .to_owned(),
                None,
            ),
            Self::NotYet => words(
                503,
                "Starting up",
                "This gateway is still learning what exists. Try again in a few seconds.".to_owned(),
                Some(2),
            ),
            Self::SignInUnavailable => words(
                503,
                "Sign-in is unavailable",
                "The sign-in service does not answer. Try again in a few seconds.".to_owned(),
                Some(5),
            ),
            Self::Stopped(workload) => words(
                503,
                "Stopped",
                format!("{workload} was stopped by a person, so it does not wake by itself. Its owner can start it again."),
                Some(60),
            ),
            Self::Failed(workload, message) => words(
                503,
                "Failed to start",
                format!("{workload} did not start: {message}"),
                Some(30),
            ),
            Self::Asleep(workload) => words(
                503,
                "Asleep",
                // Streamlit shows people the beginning of it.
                format!("Reload the page to wake it. {workload} is asleep, and background requests of an open page do not wake it."),
                Some(30),
            ),
            Self::StillStarting(workload) => words(
                503,
                "Still starting",
                format!("{workload} is waking up and is not ready yet. Try again shortly."),
                Some(5),
            ),
            Self::TooManyHeld => words(
                503,
                "Too many waiting",
                "Too many requests are waiting for this workload to wake. Try again shortly."
                    .to_owned(),
                Some(10),
            ),
            Self::TooMany(exceeded) => {
                let whose = match exceeded.scope() {
                    Scope::Person => "you may send",
                    Scope::Token => "this token may send",
                    Scope::Route => "this program takes",
                    Scope::Address | Scope::Connection => "may come from here without signing in",
                };
                let wait = exceeded.retry_after();
                let detail = match exceeded {
                    Exceeded::Rate { .. } => format!("These are more requests than {whose}. Try again in {wait} s."),
                    Exceeded::Concurrent { most, .. } => format!("These are more requests at a time than {whose}: {most}. Try again when one has ended."),
                };
                words(429, "Too many requests", detail, Some(wait))
            }
            Self::BodyTooLarge(most) => words(
                413,
                "Too large",
                format!("At most {most} bytes are taken here. Send less, or ask the owner of the program for more."),
                None,
            ),
            Self::BodyTooSlow => words(
                408,
                "Request timeout",
                "The request's body did not come in time. Send it again.".to_owned(),
                None,
            ),
            Self::Unreachable => words(
                502,
                "Not reachable",
                "The program does not accept connections. Try again; if it stays so, look at its logs."
                    .to_owned(),
                Some(2),
            ),
            Self::BadGateway => words(
                502,
                "Bad gateway",
                "The program broke off its answer. Try again; if it stays so, look at its logs."
                    .to_owned(),
                None,
            ),
            Self::BadAnswer(fault) => words(
                502,
                "Bad answer",
                format!("The program's answer is not passed on, because {}. Its owner has to mend that; its logs may say nothing of it.", fault.words()),
                None,
            ),
            Self::ShuttingDown => words(
                503,
                "Shutting down",
                "This gateway is stopping. Try again.".to_owned(),
                Some(1),
            ),
        }
    }

    /// A page for a navigation, else a problem document (RFC 9457).
    pub fn answer(&self, audience: Audience) -> Answer {
        let Words { status, title, detail, retry_after } = self.words();
        let for_a_person = matches!(audience, Audience::Navigation | Audience::Submission);
        let mut answer = if for_a_person {
            let page = match self {
                Self::FormWithoutSession(to) => {
                    pages::in_new_tab(title, &detail, to.as_str(), "Sign in")
                }
                Self::LinkTooLong => pages::in_new_tab(title, &detail, "/", "Sign in"),
                _ => pages::plain(title, &detail),
            };
            Answer::page(status, page)
        } else {
            let problem = json!({ "type": "about:blank", "title": title, "status": status, "detail": detail });
            Answer::new(status, "application/problem+json", problem.to_string())
        };
        if let Some(seconds) = retry_after {
            let (name, value) = runtime::http::retry_field(u64::from(seconds));
            answer = answer.with(name, value);
        }
        match self {
            Self::NotSignedIn | Self::FormWithoutSession(_) | Self::LinkTooLong => {
                answer = answer.with("WWW-Authenticate", "Bearer realm=\"dormouse\"".to_owned());
            }
            Self::SessionOver(why) | Self::BadCredential(why) => {
                let challenge = format!(
                    "Bearer realm=\"dormouse\", error=\"invalid_token\", error_description=\"{}\"",
                    why.replace(['"', '\\'], "'")
                );
                answer = answer.with("WWW-Authenticate", challenge);
            }
            Self::MethodNotAllowed => {
                answer =
                    answer.with("Allow", "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS".to_owned());
            }
            Self::TooMany(exceeded) => answer.headers.extend(exceeded.fields()),
            Self::BadRequest(_)
            | Self::HeadTooLarge
            | Self::BodyTooLarge(_)
            | Self::BodyTooSlow => answer.close = true,
            _ => {}
        }
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set_cookies(answer: &Answer) -> Vec<&str> {
        let all = answer.headers.iter().filter(|(name, _)| *name == "Set-Cookie");
        all.map(|(_, value)| value.as_str()).collect()
    }

    #[test]
    fn whatever_is_answered_carries_what_belongs_to_the_request_once() {
        let mut besides = Besides::nobody(Some(HeaderValue::from_static("max-age=1")));
        besides.set_cookies(vec!["a=new; Path=/".to_owned(), "b=new; Path=/".to_owned()]);
        let mut held = Held::default();
        held.fields.push(("RateLimit", "left".to_owned()));
        let besides = besides.with_limits(&mut held);
        let plain = besides.answer(Refusal::NotFound.answer(Audience::Client));
        assert_eq!(set_cookies(&plain), ["a=new; Path=/", "b=new; Path=/"]);
        for field in ["RateLimit", "Strict-Transport-Security"] {
            assert_eq!(plain.headers.iter().filter(|(name, _)| *name == field).count(), 1);
        }
        let own = Answer::redirect(302, "/".to_owned())
            .with_cookies(["a=; Max-Age=0".to_owned()])
            .with("RateLimit", "none".to_owned());
        let own = besides.answer(own);
        assert_eq!(set_cookies(&own), ["a=; Max-Age=0", "b=new; Path=/"]);
        assert_eq!(own.headers.iter().filter(|(name, _)| *name == "RateLimit").count(), 1);
    }
}
