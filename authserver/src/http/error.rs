//! Errors as responses: pages for people, problem documents (RFC 9457) for API clients, and the
//! token endpoint's own form (RFC 6749, section 5.2).

use axum::{
    Json,
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::json;

use super::pages;
use crate::{password::PasswordError, store::StoreError};

/// Something a person has to be told on a page.
#[derive(Debug)]
pub(super) struct PageError {
    pub status: StatusCode,
    pub title: &'static str,
    /// What happened and what to do next.
    pub text: String,
}

impl PageError {
    pub fn bad_request(text: impl Into<String>) -> Self {
        let text = text.into();
        Self { status: StatusCode::BAD_REQUEST, title: "That did not work", text }
    }
}

impl From<StoreError> for PageError {
    fn from(error: StoreError) -> Self {
        tracing::error!(%error, "a page could not be shown");
        let busy = matches!(error, StoreError::Password(PasswordError::Busy));
        Self {
            status: if busy {
                StatusCode::SERVICE_UNAVAILABLE
            } else {
                StatusCode::INTERNAL_SERVER_ERROR
            },
            title: "Something went wrong here",
            text: "It is not your fault. Please try again in a minute.".to_owned(),
        }
    }
}

/// Says when to try again, in seconds.
pub(super) fn try_again_in(response: &mut Response, seconds: impl TryInto<u64>) {
    let (name, value) = runtime::http::retry_field(seconds.try_into().unwrap_or_default());
    let name = HeaderName::from_bytes(name.as_bytes());
    if let (Ok(name), Ok(value)) = (name, HeaderValue::try_from(value)) {
        response.headers_mut().insert(name, value);
    }
}

impl IntoResponse for PageError {
    fn into_response(self) -> Response {
        let mut response = pages::message(
            self.status,
            self.title,
            &self.text,
            Some(("/", "Go to the start page")),
        );
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            try_again_in(&mut response, 5);
        }
        response
    }
}

/// What an API client is told.
#[derive(Debug)]
pub(super) enum ApiError {
    /// 401, with what is wrong with the token if there is one (RFC 6750, section 3).
    Unauthorized(Option<String>),
    /// 403: the token is good and does not reach this far.
    Scope(&'static str),
    BadRequest(String),
    Forbidden(&'static str),
    NotFound(&'static str),
    Conflict(String),
    /// No challenge could be made.
    Passkeys,
    Store(StoreError),
}

impl ApiError {
    /// What a person did wrong, as a page says it; a page of its own when it was not them.
    pub fn on_page(self) -> Result<(StatusCode, String), PageError> {
        let (status, detail) = match self {
            Self::BadRequest(detail) => (StatusCode::BAD_REQUEST, detail),
            Self::Forbidden(detail) => (StatusCode::FORBIDDEN, detail.to_owned()),
            Self::NotFound(detail) => (StatusCode::NOT_FOUND, detail.to_owned()),
            Self::Conflict(detail) => (StatusCode::CONFLICT, detail),
            Self::Store(error) => return Err(error.into()),
            Self::Unauthorized(_) | Self::Scope(_) | Self::Passkeys => {
                let text = "That is not possible here. Open the page again.";
                return Err(PageError::bad_request(text));
            }
        };
        Ok((status, sentence(&detail)))
    }
}

/// With a capital letter and a full stop.
pub(super) fn sentence(text: &str) -> String {
    let mut letters = text.chars();
    let first = letters.next().map(|first| first.to_uppercase().to_string()).unwrap_or_default();
    format!("{first}{}.", letters.as_str())
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Invalid(text) => Self::BadRequest(text.to_owned()),
            StoreError::KeyTaken
            | StoreError::PasskeyTaken
            | StoreError::NameTaken
            | StoreError::TooMany(_) => Self::Conflict(error.to_string()),
            other => Self::Store(other),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut challenge = None;
        let (status, detail) = match self {
            Self::Unauthorized(problem) => {
                challenge = Some(match &problem {
                    Some(_) => "Bearer realm=\"dormouse\", error=\"invalid_token\"".to_owned(),
                    None => "Bearer realm=\"dormouse\"".to_owned(),
                });
                let detail = problem
                    .unwrap_or_else(|| "send a token as `Authorization: Bearer ...`".to_owned());
                (StatusCode::UNAUTHORIZED, detail)
            }
            Self::Scope(scope) => {
                challenge = Some(format!(
                    "Bearer realm=\"dormouse\", error=\"insufficient_scope\", scope=\"{scope}\""
                ));
                (StatusCode::FORBIDDEN, format!("the token needs the scope `{scope}`"))
            }
            Self::BadRequest(detail) => (StatusCode::BAD_REQUEST, detail),
            Self::Forbidden(detail) => (StatusCode::FORBIDDEN, detail.to_owned()),
            Self::NotFound(detail) => (StatusCode::NOT_FOUND, detail.to_owned()),
            Self::Conflict(detail) => (StatusCode::CONFLICT, detail),
            Self::Passkeys => {
                let detail = "passkeys do not work right now; use your password".to_owned();
                (StatusCode::INTERNAL_SERVER_ERROR, detail)
            }
            Self::Store(error) => {
                tracing::error!(%error, "an API request failed");
                let detail = "the server failed; try again in a minute".to_owned();
                (StatusCode::INTERNAL_SERVER_ERROR, detail)
            }
        };
        let mut response = problem(status, &detail);
        if let Some(value) = challenge.and_then(|text| HeaderValue::from_str(&text).ok()) {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, value);
        }
        response
    }
}

/// A problem document whose title is the status's own (RFC 9457, section 4.2.1).
fn problem(status: StatusCode, detail: &str) -> Response {
    let document = json!({
        "type": "about:blank",
        "title": status.canonical_reason().unwrap_or_default(),
        "status": status.as_u16(),
        "detail": detail,
    });
    let kind = [(header::CONTENT_TYPE, "application/problem+json")];
    (status, kind, document.to_string()).into_response()
}

/// The token endpoint's errors. The description says what to do and holds no secret.
#[derive(Debug)]
pub(super) struct OAuthError {
    pub error: &'static str,
    pub description: String,
    /// The client tried `Authorization: Basic`.
    pub basic: bool,
}

impl OAuthError {
    pub fn new(error: &'static str, description: impl Into<String>) -> Self {
        Self { error, description: description.into(), basic: false }
    }
}

impl From<StoreError> for OAuthError {
    fn from(error: StoreError) -> Self {
        tracing::error!(%error, "tokens could not be issued");
        Self::new("server_error", "the server failed; try again in a minute")
    }
}

impl IntoResponse for OAuthError {
    fn into_response(self) -> Response {
        let status = match self.error {
            "invalid_client" => StatusCode::UNAUTHORIZED,
            "server_error" => StatusCode::INTERNAL_SERVER_ERROR,
            "temporarily_unavailable" => StatusCode::TOO_MANY_REQUESTS,
            _ => StatusCode::BAD_REQUEST,
        };
        let body = json!({ "error": self.error, "error_description": self.description });
        let mut response = (status, Json(body)).into_response();
        if status == StatusCode::UNAUTHORIZED && self.basic {
            let challenge = HeaderValue::from_static("Basic realm=\"dormouse\", charset=\"UTF-8\"");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
        }
        response
    }
}

pub(super) async fn not_found(headers: HeaderMap) -> Response {
    let accept = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok());
    if accept.is_some_and(|accept| accept.contains("text/html")) {
        let text = "Check the address, or go back to where you came from.".to_owned();
        let title = "There is no such page";
        return PageError { status: StatusCode::NOT_FOUND, title, text }.into_response();
    }
    ApiError::NotFound("there is no such endpoint").into_response()
}
