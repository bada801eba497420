//! Label selectors and field selectors of list, watch and delete-collection requests.

use serde_json::Value;

use super::status::ApiError;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Requirement {
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
    Exists(String),
    Missing(String),
}

/// A conjunction of label requirements and field comparisons.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selector {
    labels: Vec<Requirement>,
    /// Dotted path, wanted value, and whether it must be equal.
    fields: Vec<(String, String, bool)>,
}

impl Selector {
    /// Parses `labelSelector` and `fieldSelector`.
    ///
    /// # Errors
    /// 400 when either is malformed, or names a field that cannot be selected by.
    pub fn parse(labels: &str, fields: &str, custom: bool) -> Result<Self, ApiError> {
        Ok(Self { labels: parse_labels(labels)?, fields: parse_fields(fields, custom)? })
    }

    pub fn is_empty(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    pub fn matches(&self, object: &Value) -> bool {
        self.matches_labels(&object["metadata"]["labels"])
            && self.fields.iter().all(|(path, wanted, equal)| {
                (field_text(object, path).as_deref().unwrap_or("") == wanted) == *equal
            })
    }

    fn matches_labels(&self, labels: &Value) -> bool {
        let get = |key: &str| labels.get(key).and_then(Value::as_str);
        self.labels.iter().all(|requirement| match requirement {
            Requirement::In(key, values) => get(key).is_some_and(|v| values.iter().any(|w| w == v)),
            Requirement::NotIn(key, values) => {
                !get(key).is_some_and(|v| values.iter().any(|w| w == v))
            }
            Requirement::Exists(key) => get(key).is_some(),
            Requirement::Missing(key) => get(key).is_none(),
        })
    }
}

/// The text of a scalar at a dotted path; `None` when absent.
fn field_text(object: &Value, path: &str) -> Option<String> {
    let mut at = object;
    for part in path.split('.') {
        at = at.get(part)?;
    }
    match at {
        Value::String(text) => Some(text.clone()),
        Value::Null => None,
        other => Some(other.to_string()),
    }
}

fn parse_fields(text: &str, custom: bool) -> Result<Vec<(String, String, bool)>, ApiError> {
    let mut parsed = Vec::new();
    for term in text.split(',').map(str::trim).filter(|term| !term.is_empty()) {
        let (path, value, equal) = if let Some((path, value)) = term.split_once("!=") {
            (path, value, false)
        } else if let Some((path, value)) = term.split_once("==") {
            (path, value, true)
        } else if let Some((path, value)) = term.split_once('=') {
            (path, value, true)
        } else {
            return Err(ApiError::bad_request(format!(
                "invalid selector: '{term}'; can't understand '{term}'"
            )));
        };
        let path = path.trim();
        if custom && !matches!(path, "metadata.name" | "metadata.namespace") {
            return Err(ApiError::bad_request(format!("field label not supported: {path}")));
        }
        parsed.push((path.to_owned(), value.trim().to_owned(), equal));
    }
    Ok(parsed)
}

fn parse_labels(text: &str) -> Result<Vec<Requirement>, ApiError> {
    let malformed = |term: &str| {
        ApiError::bad_request(format!(
            "unable to parse requirement: invalid label selector {term:?}"
        ))
    };
    let mut parsed = Vec::new();
    for term in split_terms(text) {
        let term = term.trim();
        if term.is_empty() {
            continue;
        }
        if let Some((key, rest)) = term.split_once('(') {
            let values: Vec<String> = rest
                .strip_suffix(')')
                .ok_or_else(|| malformed(term))?
                .split(',')
                .map(|value| value.trim().to_owned())
                .collect();
            let mut words = key.split_whitespace();
            match (words.next(), words.next(), words.next()) {
                (Some(key), Some("in"), None) => {
                    parsed.push(Requirement::In(valid_key(key)?, values))
                }
                (Some(key), Some("notin"), None) => {
                    parsed.push(Requirement::NotIn(valid_key(key)?, values));
                }
                _ => return Err(malformed(term)),
            }
        } else if let Some((key, value)) = term.split_once("!=") {
            parsed.push(Requirement::NotIn(valid_key(key)?, vec![value.trim().to_owned()]));
        } else if let Some((key, value)) = term.split_once('=') {
            let value = value.strip_prefix('=').unwrap_or(value);
            parsed.push(Requirement::In(valid_key(key)?, vec![value.trim().to_owned()]));
        } else if let Some(key) = term.strip_prefix('!') {
            parsed.push(Requirement::Missing(valid_key(key)?));
        } else {
            parsed.push(Requirement::Exists(valid_key(term)?));
        }
    }
    Ok(parsed)
}

fn valid_key(key: &str) -> Result<String, ApiError> {
    let key = key.trim();
    match super::names::label_key_problem(key) {
        None => Ok(key.to_owned()),
        Some(why) => Err(ApiError::bad_request(format!(
            "unable to parse requirement: key: Invalid value: {key:?}: {why}"
        ))),
    }
}

/// Splits at commas that are not inside parentheses.
fn split_terms(text: &str) -> Vec<&str> {
    let mut terms = Vec::new();
    let (mut depth, mut start) = (0usize, 0usize);
    for (i, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                terms.push(&text[start..i]);
                start = i + 1;
            }
            _ => {}
        }
    }
    terms.push(&text[start..]);
    terms
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn matches(labels: &str, fields: &str) -> bool {
        let object = json!({"metadata": {"name": "n", "labels": {"app": "x", "tier": "b"}},
            "spec": {"nodeName": "node-1"}, "status": {"phase": "Running"}});
        Selector::parse(labels, fields, false).unwrap().matches(&object)
    }

    #[test]
    fn label_operators() {
        assert!(matches("app=x,tier==b", ""));
        assert!(matches("app in (x, y),tier notin (a),!gone,app", ""));
        assert!(!matches("app!=x", ""));
        assert!(matches("other!=x", ""));
        assert!(!matches("gone", ""));
        assert!(Selector::parse("a in x", "", false).is_err());
        assert!(Selector::parse("_bad/", "", false).is_err());
    }

    #[test]
    fn fields_compare_as_text_and_absent_is_empty() {
        assert!(matches("", "spec.nodeName=node-1,status.phase!=Failed"));
        assert!(matches("", "spec.other="));
        assert!(!matches("", "metadata.name=m"));
        assert!(Selector::parse("", "spec.x=1", true).is_err());
    }
}
