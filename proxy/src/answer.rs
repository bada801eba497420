//! What the gate itself says: every refusal becomes a response here and nowhere else.

use bytes::Bytes;
use domain::workload::WorkloadRef;
use serde_json::json;
use tokio::sync::mpsc;

use crate::{
    gate::{
        head::Audience,
        limits::{Exceeded, Scope},
    },
    pages,
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

    pub fn closing(mut self) -> Self {
        self.close = true;
        self
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
    /// A credential is there and is not good; why, in words that hold no secret.
    BadCredential(String),
    CrossOrigin,
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
    /// The upstream broke off or spoke nonsense.
    BadGateway,
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
            Self::BadCredential(_) => "bad-credential",
            Self::CrossOrigin => "cross-origin",
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
                "Send an access token as `Authorization: Bearer`, or sign in with a browser."
                    .to_owned(),
                None,
            ),
            Self::BadCredential(why) => {
                words(401, "Credential refused", format!("{why}. Sign in again."), None)
            }
            Self::CrossOrigin => words(
                403,
                "Cross-origin request refused",
                "With a browser's session only this host's own pages may do that; use a token instead."
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
                format!("{workload} is asleep, and background requests of an open page do not wake it. Reload the page to wake it."),
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
        let mut answer = if audience == Audience::Navigation {
            Answer::page(status, pages::plain(title, &detail))
        } else {
            let problem = json!({ "type": "about:blank", "title": title, "status": status, "detail": detail });
            Answer::new(status, "application/problem+json", problem.to_string())
        };
        if let Some(seconds) = retry_after {
            answer = answer.with("Retry-After", seconds.to_string());
        }
        match self {
            Self::NotSignedIn => {
                answer = answer.with("WWW-Authenticate", "Bearer realm=\"dormouse\"".to_owned());
            }
            Self::BadCredential(why) => {
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
