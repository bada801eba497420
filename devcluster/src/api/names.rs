//! What names, labels and keys may look like (RFC 1123 and Kubernetes' own rules).

use serde_json::Value;

use super::status::FieldError;

const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const LABEL_1035: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";
const LABEL_VALUE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";
const KEY_NAME: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";

fn is_label(text: &str) -> bool {
    let alphanumeric = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    !text.is_empty()
        && text.chars().all(|c| alphanumeric(c) || c == '-')
        && text.starts_with(alphanumeric)
        && text.ends_with(alphanumeric)
}

/// Why `name` is not an RFC 1123 subdomain.
pub fn subdomain_problem(name: &str) -> Option<String> {
    if name.len() > 253 {
        return Some("must be no more than 253 bytes".to_owned());
    }
    (!name.split('.').all(is_label)).then(|| SUBDOMAIN.to_owned())
}

/// Why `name` is not an RFC 1123 label.
pub fn label_problem(name: &str) -> Option<String> {
    if name.len() > 63 {
        return Some("must be no more than 63 bytes".to_owned());
    }
    (!is_label(name)).then(|| LABEL.to_owned())
}

/// Why `name` is not an RFC 1035 label (services).
pub fn label_1035_problem(name: &str) -> Option<String> {
    if name.len() > 63 {
        return Some("must be no more than 63 bytes".to_owned());
    }
    let ok = is_label(name) && name.starts_with(|c: char| c.is_ascii_lowercase());
    (!ok).then(|| LABEL_1035.to_owned())
}

/// Why `name` cannot be part of a path (RBAC objects allow anything else).
pub fn path_segment_problem(name: &str) -> Option<String> {
    if name == "." || name == ".." {
        return Some(format!("may not be '{name}'"));
    }
    ['/', '%'].iter().find(|c| name.contains(**c)).map(|c| format!("may not contain '{c}'"))
}

fn is_key_name(text: &str) -> bool {
    let alphanumeric = |c: char| c.is_ascii_alphanumeric();
    !text.is_empty()
        && text.chars().all(|c| alphanumeric(c) || matches!(c, '-' | '_' | '.'))
        && text.starts_with(alphanumeric)
        && text.ends_with(alphanumeric)
}

/// Why `key` is not a qualified name: `[prefix/]name`.
pub fn label_key_problem(key: &str) -> Option<String> {
    let (prefix, name) = match key.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, key),
    };
    if let Some(prefix) = prefix {
        if prefix.is_empty() {
            return Some("prefix part must be non-empty".to_owned());
        }
        if let Some(why) = subdomain_problem(prefix) {
            return Some(format!("prefix part {why}"));
        }
    }
    if name.is_empty() {
        return Some("name part must be non-empty".to_owned());
    }
    if name.len() > 63 {
        return Some("name part must be no more than 63 bytes".to_owned());
    }
    (!is_key_name(name)).then(|| KEY_NAME.to_owned())
}

/// Why `value` is not a label's value.
pub fn label_value_problem(value: &str) -> Option<String> {
    if value.len() > 63 {
        return Some("must be no more than 63 bytes".to_owned());
    }
    (!value.is_empty() && !is_key_name(value)).then(|| LABEL_VALUE.to_owned())
}

/// Problems of `labels` (at `path`): keys and values.
pub fn labels_problems(labels: &Value, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (key, value) in labels.as_object().into_iter().flatten() {
        if let Some(why) = label_key_problem(key) {
            errors.push(FieldError::invalid(path, &Value::from(key.as_str()), why));
        }
        let text = value.as_str().unwrap_or_default();
        if let Some(why) = label_value_problem(text) {
            errors.push(FieldError::invalid(path, value, why));
        }
    }
    errors
}

/// Problems of annotations: their keys, and their total size (256 KiB).
pub fn annotations_problems(annotations: &Value, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut size = 0;
    for (key, value) in annotations.as_object().into_iter().flatten() {
        if let Some(why) = label_key_problem(&key.to_lowercase()) {
            errors.push(FieldError::invalid(path, &Value::from(key.as_str()), why));
        }
        size += key.len() + value.as_str().map_or(0, str::len);
    }
    if size > 256 * 1024 {
        errors.push(FieldError::new(
            path,
            super::status::FieldErrorKind::TooLong,
            "may not be more than 262144 bytes",
        ));
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_rfc() {
        assert!(subdomain_problem("a.b-c.9").is_none());
        for bad in ["", "A", "-a", "a-", "a..b", "a_b"] {
            assert!(subdomain_problem(bad).is_some(), "{bad:?}");
        }
        assert!(label_1035_problem("9a").is_some());
        assert!(label_problem("9a").is_none());
        assert!(label_problem(&"a".repeat(64)).is_some());
    }

    #[test]
    fn label_keys_and_values() {
        assert!(label_key_problem("app.kubernetes.io/name").is_none());
        for bad in ["", "/x", "x/", "a b", "UPPER.prefix/x", "-x"] {
            assert!(label_key_problem(bad).is_some(), "{bad:?}");
        }
        assert!(label_value_problem("").is_none());
        assert!(label_value_problem("a b").is_some());
    }
}
