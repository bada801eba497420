//! Access reviews: whoever has the credential may do everything.

use axum::body::Body;
use http::{Response, StatusCode};
use serde_json::{Value, json};

use super::rest::json_response;
use super::status::ApiError;

/// Plural, kind, namespaced.
pub const REVIEWS: &[(&str, &str, bool)] = &[
    ("selfsubjectaccessreviews", "SelfSubjectAccessReview", false),
    ("selfsubjectrulesreviews", "SelfSubjectRulesReview", false),
    ("subjectaccessreviews", "SubjectAccessReview", false),
    ("localsubjectaccessreviews", "LocalSubjectAccessReview", true),
];

/// Whether the path is one of a review.
pub fn is_review(path: &str) -> Option<&'static str> {
    let rest = path.strip_prefix("/apis/authorization.k8s.io/v1/")?;
    let last = rest.rsplit('/').next()?;
    REVIEWS.iter().find(|(plural, ..)| *plural == last).map(|(_, kind, _)| *kind)
}

pub fn review(kind: &str, mut body: Value) -> Result<Response<Body>, ApiError> {
    body["kind"] = kind.into();
    body["apiVersion"] = "authorization.k8s.io/v1".into();
    body["status"] = match kind {
        "SelfSubjectRulesReview" => json!({
            "incomplete": false,
            "nonResourceRules": [{"nonResourceURLs": ["*"], "verbs": ["*"]}],
            "resourceRules": [{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}],
        }),
        _ => json!({"allowed": true, "reason": "the credential of this cluster may do everything"}),
    };
    Ok(json_response(StatusCode::CREATED, &body))
}
