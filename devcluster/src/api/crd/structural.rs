//! Whether a schema is structural, as API servers demand: what is accepted here has to be
//! accepted by a real cluster too.

use serde_json::{Map, Value};

use crate::api::schema::{self, Schema};
use crate::api::status::{FieldError, FieldErrorKind};

/// Parts of OpenAPI that structural schemas cannot have.
const FORBIDDEN: [&str; 6] =
    ["$ref", "definitions", "dependencies", "patternProperties", "additionalItems", "id"];
/// What value validations inside `allOf` and the like cannot say.
const ONLY_OUTSIDE: [&str; 5] =
    ["type", "default", "description", "additionalProperties", "nullable"];

/// Adds what is wrong with the schema at `path`; `parsed` is the same schema.
pub fn check(json: &Value, parsed: &Schema, path: &str, errors: &mut Vec<FieldError>) {
    node(json, path, true, errors);
    defaults(parsed, path, errors);
}

fn forbidden(path: String, why: &str, errors: &mut Vec<FieldError>) {
    errors.push(FieldError::forbidden(path, why));
}

fn node(json: &Value, path: &str, root: bool, errors: &mut Vec<FieldError>) {
    let Some(map) = json.as_object() else { return };
    let flag = |key: &str| map.get(key) == Some(&Value::Bool(true));
    for key in FORBIDDEN.iter().filter(|key| map.contains_key(**key)) {
        forbidden(format!("{path}.{key}"), "is not supported", errors);
    }
    let typed = map.get("type").and_then(Value::as_str).is_some_and(|kind| !kind.is_empty());
    let open = flag("x-kubernetes-preserve-unknown-fields") || flag("x-kubernetes-int-or-string");
    if !typed && !open {
        errors.push(FieldError::new(
            format!("{path}.type"),
            FieldErrorKind::Required,
            if root {
                "must not be empty at the root"
            } else {
                "must not be empty for specified object fields"
            },
        ));
    }
    if typed && flag("x-kubernetes-int-or-string") {
        forbidden(
            format!("{path}.type"),
            "must be empty if x-kubernetes-int-or-string is true",
            errors,
        );
    }
    if flag("uniqueItems") {
        forbidden(
            format!("{path}.uniqueItems"),
            "uniqueItems cannot be set to true since the runtime complexity becomes quadratic",
            errors,
        );
    }
    match map.get("additionalProperties") {
        Some(Value::Bool(false)) => {
            forbidden(
                format!("{path}.additionalProperties"),
                "additionalProperties cannot be set to false",
                errors,
            );
        }
        Some(value) if map.contains_key("properties") && !value.is_null() => {
            forbidden(
                format!("{path}.additionalProperties"),
                "additionalProperties and properties are mutual exclusive",
                errors,
            );
        }
        Some(value @ Value::Object(_)) => {
            node(value, &format!("{path}.additionalProperties"), false, errors)
        }
        _ => {}
    }
    match (map.get("type").and_then(Value::as_str), map.get("items")) {
        (Some("array"), None) => errors.push(FieldError::new(
            format!("{path}.items"),
            FieldErrorKind::Required,
            "must be specified",
        )),
        (_, Some(Value::Array(_))) => forbidden(
            format!("{path}.items"),
            "items must be a schema object and not an array",
            errors,
        ),
        (_, Some(items)) => node(items, &format!("{path}.items"), false, errors),
        _ => {}
    }
    lists(map, path, errors);
    for (name, property) in map.get("properties").and_then(Value::as_object).into_iter().flatten() {
        if root && matches!(name.as_str(), "apiVersion" | "kind") {
            continue;
        }
        if root && name == "metadata" {
            let extra = property.get("properties").and_then(Value::as_object);
            if extra
                .into_iter()
                .flatten()
                .any(|(key, _)| !matches!(key.as_str(), "name" | "generateName"))
            {
                forbidden(
                    format!("{path}.properties[metadata]"),
                    "must not specify anything other than name and generateName, but metadata is implicitly specified",
                    errors,
                );
            }
            continue;
        }
        node(property, &format!("{path}.properties[{name}]"), false, errors);
    }
    for key in ["allOf", "anyOf", "oneOf"] {
        for (i, inner) in map.get(key).and_then(Value::as_array).into_iter().flatten().enumerate() {
            // The one exception: both types of an int-or-string.
            if open && map.contains_key("x-kubernetes-int-or-string") {
                continue;
            }
            validation_only(inner, &format!("{path}.{key}[{i}]"), errors);
        }
    }
    if let Some(inner) = map.get("not") {
        validation_only(inner, &format!("{path}.not"), errors);
    }
}

fn validation_only(json: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let Some(map) = json.as_object() else { return };
    for (key, value) in map {
        let extension = key.starts_with("x-kubernetes-") && key != "x-kubernetes-validations";
        if ONLY_OUTSIDE.contains(&key.as_str()) || extension {
            forbidden(format!("{path}.{key}"), "must be empty to be structural", errors);
        }
        if key == "properties" {
            for (name, inner) in value.as_object().into_iter().flatten() {
                validation_only(inner, &format!("{path}.properties[{name}]"), errors);
            }
        }
    }
}

fn lists(map: &Map<String, Value>, path: &str, errors: &mut Vec<FieldError>) {
    let keys: Vec<&str> = map
        .get("x-kubernetes-list-map-keys")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let kind = map.get("x-kubernetes-list-type").and_then(Value::as_str);
    match kind {
        None | Some("atomic" | "set") => {
            if !keys.is_empty() {
                forbidden(
                    format!("{path}.x-kubernetes-list-map-keys"),
                    "must not be set unless x-kubernetes-list-type is map",
                    errors,
                );
            }
        }
        Some("map") => {
            let items = map.get("items").unwrap_or(&Value::Null);
            if keys.is_empty() {
                errors.push(FieldError::required(format!("{path}.x-kubernetes-list-map-keys")));
            }
            for key in keys {
                let property = items.get("properties").and_then(|properties| properties.get(key));
                let required = items
                    .get("required")
                    .and_then(Value::as_array)
                    .is_some_and(|required| required.iter().any(|name| name == key));
                match property {
                    None => errors.push(FieldError::invalid(
                        format!("{path}.x-kubernetes-list-map-keys"),
                        &Value::from(key),
                        "entries must all be names of item properties",
                    )),
                    Some(property) if !required && property.get("default").is_none() => {
                        errors.push(FieldError::new(
                            format!("{path}.items.properties[{key}].default"),
                            FieldErrorKind::Required,
                            "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property",
                        ));
                    }
                    Some(_) => {}
                }
            }
        }
        Some(other) => errors.push(FieldError::new(
            format!("{path}.x-kubernetes-list-type"),
            FieldErrorKind::NotSupported,
            format!("{other:?}: supported values: \"atomic\", \"set\", \"map\""),
        )),
    }
}

/// Defaults have to be valid themselves.
fn defaults(parsed: &Schema, path: &str, errors: &mut Vec<FieldError>) {
    if let Some(default) = &parsed.default {
        let mut completed = default.clone();
        schema::apply_defaults(parsed, &mut completed);
        for error in schema::validate(parsed, &completed, None) {
            errors.push(FieldError::invalid(format!("{path}.default"), default, error.to_string()));
        }
    }
    for (name, field) in &parsed.properties {
        defaults(field, &format!("{path}.properties[{name}]"), errors);
    }
    if let Some(field) = &parsed.additional {
        defaults(field, &format!("{path}.additionalProperties"), errors);
    }
    if let Some(items) = &parsed.items {
        defaults(items, &format!("{path}.items"), errors);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn problems(properties: Value) -> Vec<String> {
        let schema = json!({"type": "object", "properties": properties});
        let mut errors = Vec::new();
        check(&schema, &schema::parse(&schema).unwrap(), "s", &mut errors);
        errors.iter().map(|error| error.field.clone()).collect()
    }

    #[test]
    fn structural_schemas_pass() {
        let none: [&str; 0] = [];
        assert_eq!(
            problems(json!({
                "a": {"type": "string", "default": "x"},
                "b": {"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}]},
                "c": {"type": "object", "additionalProperties": {"type": "string"}},
                "d": {"type": "object", "properties": {"x": {"type": "string"}}, "oneOf": [{"required": ["x"]}]},
                "metadata": {"type": "object"},
            })),
            none
        );
    }

    #[test]
    fn what_real_servers_refuse_is_named() {
        assert_eq!(problems(json!({"a": {}})), ["s.properties[a].type"]);
        assert_eq!(problems(json!({"a": {"type": "array"}})), ["s.properties[a].items"]);
        assert_eq!(
            problems(json!({"a": {"type": "object", "additionalProperties": false}})),
            ["s.properties[a].additionalProperties"]
        );
        assert_eq!(
            problems(json!({"a": {"type": "string", "anyOf": [{"type": "string"}]}})),
            ["s.properties[a].anyOf[0].type"]
        );
        assert_eq!(
            problems(json!({"a": {"type": "integer", "default": "x"}})),
            ["s.properties[a].default"]
        );
        assert_eq!(
            problems(
                json!({"a": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"],
                "items": {"type": "object", "properties": {"k": {"type": "string"}}}}})
            ),
            ["s.properties[a].items.properties[k].default"]
        );
    }
}
