//! Options in the query of a request.

use std::collections::HashMap;

use http::{header, request::Parts};

use crate::api::selector::Selector;
use crate::api::status::ApiError;

/// What to do about unknown and duplicate fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FieldValidation {
    Ignore,
    Warn,
    Strict,
}

#[derive(Debug)]
pub struct Options {
    pub dry_run: bool,
    pub field_manager: String,
    pub manager_given: bool,
    pub force: bool,
    pub validation: FieldValidation,
    pub watch: bool,
    pub bookmarks: bool,
    pub send_initial_events: bool,
    pub resource_version: Option<String>,
    pub resource_version_match: Option<String>,
    pub timeout_seconds: Option<u64>,
    pub limit: usize,
    pub continue_token: Option<String>,
    pub label_selector: String,
    pub field_selector: String,
    query: HashMap<String, String>,
}

impl Options {
    pub fn parse(parts: &Parts) -> Result<Self, ApiError> {
        let query: HashMap<String, String> =
            axum::extract::Query::<Vec<(String, String)>>::try_from_uri(&parts.uri)
                .map_err(|error| ApiError::bad_request(format!("malformed query: {error}")))?
                .0
                .into_iter()
                .collect();
        let text = |key: &str| query.get(key).filter(|value| !value.is_empty()).cloned();
        let flag = |key: &str| {
            query
                .get(key)
                .is_some_and(|value| !matches!(value.as_str(), "false" | "0" | "False" | "FALSE"))
        };
        let number = |key: &str| -> Result<Option<u64>, ApiError> {
            text(key)
                .map(|value| {
                    value.parse().map_err(|_| {
                        ApiError::bad_request(format!(
                            "invalid value {value:?} for {key}: must be a number"
                        ))
                    })
                })
                .transpose()
        };
        let dry_run = match text("dryRun").as_deref() {
            None => false,
            Some("All") => true,
            Some(other) => {
                return Err(ApiError::bad_request(format!(
                    "dryRun: Unsupported value: {other:?}: supported values: \"All\""
                )));
            }
        };
        let validation = match text("fieldValidation").as_deref() {
            None | Some("Warn") => FieldValidation::Warn,
            Some("Strict") => FieldValidation::Strict,
            Some("Ignore") => FieldValidation::Ignore,
            Some(other) => {
                return Err(ApiError::bad_request(format!(
                    "fieldValidation: Unsupported value: {other:?}: supported values: \"Ignore\", \"Strict\", \"Warn\""
                )));
            }
        };
        let given = text("fieldManager");
        if given
            .as_ref()
            .is_some_and(|manager| manager.len() > 128 || manager.chars().any(char::is_control))
        {
            return Err(ApiError::bad_request(
                "fieldManager: Invalid value: must be printable and at most 128 bytes",
            ));
        }
        let agent =
            parts.headers.get(header::USER_AGENT).and_then(|v| v.to_str().ok()).unwrap_or("");
        let agent: String = agent.split('/').next().unwrap_or("").chars().take(128).collect();
        Ok(Self {
            dry_run,
            manager_given: given.is_some(),
            field_manager: given.unwrap_or(if agent.is_empty() {
                "unknown".to_owned()
            } else {
                agent
            }),
            force: flag("force"),
            validation,
            watch: flag("watch"),
            bookmarks: flag("allowWatchBookmarks"),
            send_initial_events: flag("sendInitialEvents"),
            resource_version: text("resourceVersion"),
            resource_version_match: text("resourceVersionMatch"),
            timeout_seconds: number("timeoutSeconds")?,
            limit: number("limit")?
                .and_then(|n| usize::try_from(n).ok())
                .filter(|n| *n > 0)
                .unwrap_or(usize::MAX),
            continue_token: text("continue"),
            label_selector: text("labelSelector").unwrap_or_default(),
            field_selector: text("fieldSelector").unwrap_or_default(),
            query,
        })
    }

    pub fn selector(&self, custom: bool) -> Result<Selector, ApiError> {
        Selector::parse(&self.label_selector, &self.field_selector, custom)
    }

    /// The raw value of a query parameter.
    pub fn raw(&self, key: &str) -> Option<&str> {
        self.query.get(key).map(String::as_str)
    }
}
