//! Errors as the API answers them: `metav1.Status` documents with code, reason and causes.

use serde_json::{Value, json};

/// What a request failed with. Rendered by [`ApiError::to_status`].
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    pub code: u16,
    pub reason: &'static str,
    pub message: String,
    pub details: Option<Value>,
}

/// One problem with one field, in the words the field's standard errors use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldError {
    /// Dotted path, for example `spec.containers[0].name`.
    pub field: String,
    pub kind: FieldErrorKind,
    /// What follows the kind, for example `"x": must be a string`.
    pub detail: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FieldErrorKind {
    Required,
    Invalid,
    Duplicate,
    NotSupported,
    TooLong,
    TooMany,
    TypeInvalid,
    Forbidden,
    NotFound,
}

impl FieldErrorKind {
    fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::Required => ("FieldValueRequired", "Required value"),
            Self::Invalid => ("FieldValueInvalid", "Invalid value"),
            Self::Duplicate => ("FieldValueDuplicate", "Duplicate value"),
            Self::NotSupported => ("FieldValueNotSupported", "Unsupported value"),
            Self::TooLong => ("FieldValueTooLong", "Too long"),
            Self::TooMany => ("FieldValueTooMany", "Too many"),
            Self::TypeInvalid => ("FieldValueTypeInvalid", "Invalid value"),
            Self::Forbidden => ("FieldValueForbidden", "Forbidden"),
            Self::NotFound => ("FieldValueNotFound", "Not found"),
        }
    }
}

impl FieldError {
    pub fn new(field: impl Into<String>, kind: FieldErrorKind, detail: impl Into<String>) -> Self {
        Self { field: field.into(), kind, detail: detail.into() }
    }

    pub fn required(field: impl Into<String>) -> Self {
        Self::new(field, FieldErrorKind::Required, "")
    }

    /// `field: Invalid value: <value>: <why>`; long values are cut.
    pub fn invalid(field: impl Into<String>, value: &Value, why: impl AsRef<str>) -> Self {
        Self::new(field, FieldErrorKind::Invalid, format!("{}: {}", short(value), why.as_ref()))
    }

    pub fn forbidden(field: impl Into<String>, why: impl Into<String>) -> Self {
        Self::new(field, FieldErrorKind::Forbidden, why)
    }

    /// The field's name; the root has none, and Kubernetes writes that so.
    fn place(&self) -> &str {
        if self.field.is_empty() { "<nil>" } else { &self.field }
    }

    /// The message of the cause, without the field's name.
    pub fn body(&self) -> String {
        let (_, words) = self.kind.words();
        if self.detail.is_empty() { words.to_owned() } else { format!("{words}: {}", self.detail) }
    }
}

impl std::fmt::Display for FieldError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.place(), self.body())
    }
}

/// A value as error messages show it: compact JSON, `object`/`array` named only by type.
pub fn short(value: &Value) -> String {
    match value {
        Value::Object(_) => "\"object\"".to_owned(),
        Value::Array(_) => "\"array\"".to_owned(),
        other => {
            let mut text = other.to_string();
            if text.len() > 200 {
                let mut end = 200;
                while !text.is_char_boundary(end) {
                    end -= 1;
                }
                text.truncate(end);
                text.push_str("...\"");
            }
            text
        }
    }
}

/// `workspaces.dormouse.dev`, or `pods` in the core group.
pub fn qualified(plural: &str, group: &str) -> String {
    if group.is_empty() { plural.to_owned() } else { format!("{plural}.{group}") }
}

impl ApiError {
    fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self { code, reason, message: message.into(), details: None }
    }

    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }

    pub fn unauthorized() -> Self {
        Self::new(401, "Unauthorized", "Unauthorized")
    }

    pub fn forbidden(group: &str, plural: &str, name: &str, why: impl AsRef<str>) -> Self {
        let what = qualified(plural, group);
        let mut error = Self::new(
            403,
            "Forbidden",
            format!("{what} \"{name}\" is forbidden: {}", why.as_ref()),
        );
        error.details = Some(json!({"name": name, "group": group, "kind": plural}));
        error
    }

    pub fn not_found(group: &str, plural: &str, name: &str) -> Self {
        let mut error = Self::new(
            404,
            "NotFound",
            format!("{} \"{name}\" not found", qualified(plural, group)),
        );
        error.details = Some(json!({"name": name, "group": group, "kind": plural}));
        error
    }

    /// No such path or resource type.
    pub fn no_such_resource() -> Self {
        let mut error =
            Self::new(404, "NotFound", "the server could not find the requested resource");
        error.details = Some(json!({}));
        error
    }

    pub fn method_not_allowed() -> Self {
        Self::new(
            405,
            "MethodNotAllowed",
            "the server does not allow this method on the requested resource",
        )
    }

    pub fn not_acceptable(message: impl Into<String>) -> Self {
        Self::new(406, "NotAcceptable", message)
    }

    pub fn already_exists(group: &str, plural: &str, name: &str) -> Self {
        let mut error = Self::new(
            409,
            "AlreadyExists",
            format!("{} \"{name}\" already exists", qualified(plural, group)),
        );
        error.details = Some(json!({"name": name, "group": group, "kind": plural}));
        error
    }

    pub fn conflict(group: &str, plural: &str, name: &str, why: impl AsRef<str>) -> Self {
        let mut error = Self::new(
            409,
            "Conflict",
            format!(
                "Operation cannot be fulfilled on {} \"{name}\": {}",
                qualified(plural, group),
                why.as_ref()
            ),
        );
        error.details = Some(json!({"name": name, "group": group, "kind": plural}));
        error
    }

    /// The write was based on an older version of the object.
    pub fn stale(group: &str, plural: &str, name: &str) -> Self {
        Self::conflict(
            group,
            plural,
            name,
            "the object has been modified; please apply your changes to the latest version and try again",
        )
    }

    /// Fields that other managers own: `(manager description, field path)` each.
    pub fn apply_conflict(conflicts: &[(String, String)]) -> Self {
        let mut managers: Vec<&str> = conflicts.iter().map(|(m, _)| m.as_str()).collect();
        managers.sort_unstable();
        managers.dedup();
        let mut text = String::new();
        for manager in managers {
            let fields: Vec<&str> =
                conflicts.iter().filter(|(m, _)| m == manager).map(|(_, f)| f.as_str()).collect();
            if !text.is_empty() {
                text.push('\n');
            }
            match fields.as_slice() {
                [one] => text.push_str(&format!("conflict with {manager}: {one}")),
                many => {
                    text.push_str(&format!("conflicts with {manager}:"));
                    for field in many {
                        text.push_str(&format!("\n- {field}"));
                    }
                }
            }
        }
        let count = conflicts.len();
        let plural = if count == 1 { "" } else { "s" };
        let mut error = Self::new(
            409,
            "Conflict",
            format!("Apply failed with {count} conflict{plural}: {text}"),
        );
        let causes: Vec<Value> = conflicts
            .iter()
            .map(|(manager, field)| {
                json!({"reason": "FieldManagerConflict", "message": format!("conflict with {manager}"), "field": field})
            })
            .collect();
        error.details = Some(json!({ "causes": causes }));
        error
    }

    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(410, "Expired", message)
    }

    pub fn unsupported_media_type(message: impl Into<String>) -> Self {
        Self::new(415, "UnsupportedMediaType", message)
    }

    pub fn too_large(limit: usize) -> Self {
        Self::new(
            413,
            "RequestEntityTooLarge",
            format!("Request entity too large: limit is {limit} bytes"),
        )
    }

    pub fn invalid(group: &str, kind: &str, name: &str, errors: &[FieldError]) -> Self {
        let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
        let list = match texts.as_slice() {
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        };
        let causes: Vec<Value> = errors
            .iter()
            .map(|e| json!({"reason": e.kind.words().0, "message": e.body(), "field": e.place()}))
            .collect();
        let mut error = Self::new(
            422,
            "Invalid",
            format!("{} \"{name}\" is invalid: {list}", qualified(kind, group)),
        );
        error.details = Some(json!({"name": name, "group": group, "kind": kind, "causes": causes}));
        error
    }

    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(500, "InternalError", format!("Internal error occurred: {}", message.into()))
    }

    /// An applied configuration that cannot be read as a typed value: 500, and no reason.
    pub fn untyped(message: impl Into<String>) -> Self {
        Self::new(500, "", message)
    }

    pub fn to_status(&self) -> Value {
        let mut status = json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "code": self.code,
        });
        if !self.reason.is_empty() {
            status["reason"] = self.reason.into();
        }
        if let (Some(details), Some(map)) = (&self.details, status.as_object_mut()) {
            map.insert("details".to_owned(), details.clone());
        }
        status
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_invalid_object_reads_like_kubernetes() {
        let error = ApiError::invalid(
            "dormouse.dev",
            "Workspace",
            "lab",
            &[FieldError::required("spec.owner")],
        );
        assert_eq!(
            error.message,
            "Workspace.dormouse.dev \"lab\" is invalid: spec.owner: Required value"
        );
        assert_eq!(error.to_status()["details"]["causes"][0]["reason"], "FieldValueRequired");
    }

    #[test]
    fn an_apply_conflict_names_the_manager() {
        let error = ApiError::apply_conflict(&[("\"other\"".into(), ".spec.x".into())]);
        assert_eq!(error.code, 409);
        assert_eq!(error.message, "Apply failed with 1 conflict: conflict with \"other\": .spec.x");
    }
}
