//! Turns refusals and pages into responses.

use askama::Template;
use axum::{
    http::{HeaderName, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::json;

/// The page brings its own style and nothing else.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; form-action 'self'; \
                      base-uri 'none'; frame-ancestors 'none'";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    NotSignedIn,
    /// The token was not given for looking at workloads.
    Scope,
    NotFound,
    Broken,
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let (status, detail) = match self {
            Self::NotSignedIn => {
                (StatusCode::UNAUTHORIZED, "Sign in, or send a token as Authorization: Bearer.")
            }
            Self::Scope => (StatusCode::FORBIDDEN, "The token needs the scope `workload:use`."),
            Self::NotFound => (StatusCode::NOT_FOUND, "There is no such page."),
            Self::Broken => (StatusCode::INTERNAL_SERVER_ERROR, "The page could not be made."),
        };
        // RFC 9457.
        let problem = json!({
            "type": "about:blank",
            "title": status.canonical_reason(),
            "status": status.as_u16(),
            "detail": detail,
        });
        // RFC 6750, section 3.
        let challenge = match self {
            Self::Scope => r#"Bearer error="insufficient_scope", scope="workload:use""#,
            _ => "Bearer",
        };
        let headers = [
            (header::CONTENT_TYPE, "application/problem+json"),
            (header::WWW_AUTHENTICATE, challenge),
        ];
        (status, headers, problem.to_string()).into_response()
    }
}

pub fn page(template: &impl Template) -> Result<Response, Refusal> {
    let html = template.render().map_err(|error| {
        tracing::error!(%error, "a page could not be made");
        Refusal::Broken
    })?;
    let headers: [(HeaderName, &str); 5] = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
    ];
    Ok((headers, html).into_response())
}
