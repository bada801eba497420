//! Checking a value against a schema, with the errors API servers give.

use serde_json::Value;

use super::{Checks, ListKind, Schema, Type, join};
use crate::api::status::{FieldError, FieldErrorKind, short};

const MOST_ERRORS: usize = 100;

/// Every way in which `value` breaks `schema`, but for parts that are as they were in
/// `old`: a schema that grew stricter does not stop changes elsewhere. CEL rules are not
/// part of this.
pub fn validate(schema: &Schema, value: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    walk(schema, value, old, "", &mut errors);
    errors
}

fn walk(
    schema: &Schema,
    value: &Value,
    old: Option<&Value>,
    path: &str,
    errors: &mut Vec<FieldError>,
) {
    if old == Some(value) || errors.len() >= MOST_ERRORS {
        return;
    }
    if value.is_null() {
        if !schema.nullable && schema.kind.is_some() {
            errors.push(wrong_type(schema, value, path));
        }
        return;
    }
    if schema.int_or_string || schema.quantity {
        if !(value.is_string()
            || value.is_i64()
            || value.is_u64()
            || (schema.quantity && value.is_number()))
        {
            errors.push(wrong_type(schema, value, path));
            return;
        }
    } else if let Some(kind) = schema.kind
        && !fits(kind, value)
    {
        errors.push(wrong_type(schema, value, path));
        return;
    }
    if let Some(checks) = &schema.checks {
        check(checks, value, path, errors);
    }
    match value {
        Value::Object(map) => {
            for name in &schema.required {
                if !map.contains_key(name) {
                    errors.push(FieldError::required(join(path, name)));
                }
            }
            for (name, child) in map {
                if let Some(field) = schema.field(name) {
                    walk(
                        field,
                        child,
                        old.and_then(|old| old.get(name)),
                        &join(path, name),
                        errors,
                    );
                }
            }
        }
        Value::Array(items) => {
            if let Some(schema) = &schema.items {
                for (i, item) in items.iter().enumerate() {
                    walk(schema, item, None, &format!("{path}[{i}]"), errors);
                }
            }
            duplicates(schema, items, path, errors);
        }
        _ => {}
    }
}

fn fits(kind: Type, value: &Value) -> bool {
    match kind {
        Type::Object => value.is_object(),
        Type::Array => value.is_array(),
        Type::String => value.is_string(),
        Type::Boolean => value.is_boolean(),
        Type::Number => value.is_number(),
        Type::Integer => {
            value.is_i64() || value.is_u64() || value.as_f64().is_some_and(|n| n.fract() == 0.0)
        }
    }
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(n) if n.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn wrong_type(schema: &Schema, value: &Value, path: &str) -> FieldError {
    let wanted = match schema.kind {
        _ if schema.int_or_string => "integer or string",
        Some(Type::Object) => "object",
        Some(Type::Array) => "array",
        Some(Type::String) => "string",
        Some(Type::Integer) => "integer",
        Some(Type::Number) => "number",
        Some(Type::Boolean) => "boolean",
        None => "value",
    };
    let shown = match value {
        Value::Null => "\"null\"".to_owned(),
        Value::Object(_) | Value::Array(_) | Value::String(_) => {
            format!("\"{}\"", type_name(value))
        }
        other => format!("\"{}\"", type_name(other)),
    };
    let what = if path.is_empty() { "body".to_owned() } else { path.to_owned() };
    FieldError::new(
        path,
        FieldErrorKind::TypeInvalid,
        format!("{shown}: {what} in body must be of type {wanted}: \"{}\"", type_name(value)),
    )
}

fn check(checks: &Checks, value: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let mut invalid = |why: String| {
        errors.push(FieldError::new(
            path,
            FieldErrorKind::Invalid,
            format!("{}: {path} in body {why}", short(value)),
        ));
    };
    match value {
        Value::String(text) => {
            let length = text.chars().count() as u64;
            if checks.min_length.is_some_and(|least| length < least) {
                let least = checks.min_length.unwrap_or(0);
                invalid(format!("should be at least {least} chars long"));
            }
            if let Some((source, regex)) = &checks.pattern
                && !regex.is_match(text)
            {
                invalid(format!("should match '{source}'"));
            }
            if let Some(format) = &checks.format
                && !format_fits(format, text)
            {
                invalid(format!("must be of type {format}: {}", short(value)));
            }
        }
        Value::Number(number) => {
            let n = number.as_f64().unwrap_or(0.0);
            if let Some(least) = checks.minimum
                && (n < least || (checks.exclusive_minimum && n <= least))
            {
                let or_equal = if checks.exclusive_minimum { "" } else { "or equal to " };
                invalid(format!("should be greater than {or_equal}{least}"));
            }
            if let Some(most) = checks.maximum
                && (n > most || (checks.exclusive_maximum && n >= most))
            {
                let or_equal = if checks.exclusive_maximum { "" } else { "or equal to " };
                invalid(format!("should be less than {or_equal}{most}"));
            }
            if let Some(factor) = checks.multiple_of
                && factor != 0.0
                && (n / factor).fract().abs() > 1e-9
            {
                invalid(format!("should be a multiple of {factor}"));
            }
            let fits = match checks.format.as_deref() {
                Some("int32") => n >= f64::from(i32::MIN) && n <= f64::from(i32::MAX),
                _ => true,
            };
            if !fits {
                invalid("must be of type int32".to_owned());
            }
        }
        Value::Array(items) => {
            let count = items.len() as u64;
            if let Some(least) = checks.min_items.filter(|least| count < *least) {
                invalid(format!("should have at least {least} items"));
            }
            if checks.unique_items && items.iter().enumerate().any(|(i, a)| items[..i].contains(a))
            {
                invalid("shouldn't contain duplicates".to_owned());
            }
        }
        Value::Object(map) => {
            let count = map.len() as u64;
            if let Some(least) = checks.min_properties.filter(|least| count < *least) {
                invalid(format!("should have at least {least} properties"));
            }
        }
        _ => {}
    }
    let mut most = |limit: Option<u64>, count: u64, kind: FieldErrorKind, what: &str| {
        if let Some(limit) = limit.filter(|limit| count > *limit) {
            let detail = match kind {
                FieldErrorKind::TooLong => format!("may not be more than {limit} {what}"),
                _ => format!("{count}: must have at most {limit} {what}"),
            };
            errors.push(FieldError::new(path, kind, detail));
        }
    };
    match value {
        Value::String(text) => {
            most(checks.max_length, text.chars().count() as u64, FieldErrorKind::TooLong, "bytes");
        }
        Value::Array(items) => {
            most(checks.max_items, items.len() as u64, FieldErrorKind::TooMany, "items");
        }
        Value::Object(map) => {
            most(checks.max_properties, map.len() as u64, FieldErrorKind::TooMany, "properties");
        }
        _ => {}
    }
    if let Some(allowed) = &checks.enumeration
        && !allowed.contains(value)
    {
        let list: Vec<String> = allowed.iter().map(Value::to_string).collect();
        errors.push(FieldError::new(
            path,
            FieldErrorKind::NotSupported,
            format!("{}: supported values: {}", short(value), list.join(", ")),
        ));
    }
    combine(checks, value, path, errors);
}

fn combine(checks: &Checks, value: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let passes = |schema: &Schema| {
        let mut problems = Vec::new();
        walk(schema, value, None, path, &mut problems);
        problems.is_empty()
    };
    for schema in &checks.all_of {
        walk(schema, value, None, path, errors);
    }
    let mut invalid = |why: &str| {
        errors.push(FieldError::new(
            path,
            FieldErrorKind::Invalid,
            format!("{}: {path} in body {why}", short(value)),
        ));
    };
    if !checks.any_of.is_empty() && !checks.any_of.iter().any(passes) {
        invalid("must validate at least one schema (anyOf)");
    }
    if !checks.one_of.is_empty() && checks.one_of.iter().filter(|s| passes(s)).count() != 1 {
        invalid("must validate one and only one schema (oneOf)");
    }
    if checks.not.as_deref().is_some_and(passes) {
        invalid("must not validate the schema (not)");
    }
}

fn duplicates(schema: &Schema, items: &[Value], path: &str, errors: &mut Vec<FieldError>) {
    let key_of = |item: &Value| -> Option<Vec<Value>> {
        match &schema.list {
            ListKind::Atomic => None,
            ListKind::Set => Some(vec![item.clone()]),
            ListKind::Map(keys) => {
                Some(keys.iter().map(|key| item.get(key).cloned().unwrap_or(Value::Null)).collect())
            }
        }
    };
    let mut seen: Vec<Vec<Value>> = Vec::new();
    for (i, item) in items.iter().enumerate() {
        let Some(key) = key_of(item) else { return };
        if seen.contains(&key) {
            let shown = match &schema.list {
                ListKind::Map(keys) => {
                    let fields: serde_json::Map<String, Value> =
                        keys.iter().cloned().zip(key).collect();
                    Value::Object(fields).to_string()
                }
                _ => item.to_string(),
            };
            errors.push(FieldError::new(format!("{path}[{i}]"), FieldErrorKind::Duplicate, shown));
        } else {
            seen.push(key);
        }
    }
}

/// The formats that are enforced; unknown ones are ignored, as the standard says.
fn format_fits(format: &str, text: &str) -> bool {
    match format {
        "date-time" => text.parse::<jiff::Timestamp>().is_ok(),
        "date" => text.parse::<jiff::civil::Date>().is_ok(),
        "ipv4" => text.parse::<std::net::Ipv4Addr>().is_ok(),
        "ipv6" => text.parse::<std::net::Ipv6Addr>().is_ok(),
        "uuid" => uuid::Uuid::parse_str(text).is_ok(),
        "byte" => {
            use base64::Engine as _;
            base64::engine::general_purpose::STANDARD.decode(text).is_ok()
        }
        "uri" => http::Uri::try_from(text).is_ok_and(|uri| uri.scheme().is_some()),
        "duration" => text.parse::<jiff::SignedDuration>().is_ok(),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::super::parse;
    use super::*;
    use serde_json::json;

    fn messages(schema: Value, value: Value) -> Vec<String> {
        validate(&parse(&schema).unwrap(), &value, None).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn each_rule_is_enforced() {
        let schema = json!({"type": "object", "required": ["owner"], "properties": {
            "owner": {"type": "string", "minLength": 1, "maxLength": 4, "pattern": "^[a-z]+$"},
            "n": {"type": "integer", "minimum": 1, "maximum": 5},
            "e": {"type": "string", "enum": ["A", "B"]},
            "m": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"],
                  "items": {"type": "object", "properties": {"k": {"type": "string"}}}},
        }});
        assert_eq!(messages(schema.clone(), json!({})), ["owner: Required value"]);
        assert_eq!(
            messages(schema.clone(), json!({"owner": 3})),
            [
                "owner: Invalid value: \"integer\": owner in body must be of type string: \"integer\""
            ]
        );
        assert_eq!(
            messages(schema.clone(), json!({"owner": "A"})),
            ["owner: Invalid value: \"A\": owner in body should match '^[a-z]+$'"]
        );
        assert_eq!(
            messages(schema.clone(), json!({"owner": "a", "n": 9, "e": "C"})),
            [
                "e: Unsupported value: \"C\": supported values: \"A\", \"B\"",
                "n: Invalid value: 9: n in body should be less than or equal to 5"
            ]
        );
        assert_eq!(
            messages(schema, json!({"owner": "a", "m": [{"k": "x"}, {"k": "x"}]})),
            ["m[1]: Duplicate value: {\"k\":\"x\"}"]
        );
    }
}
