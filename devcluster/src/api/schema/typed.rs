//! What server-side apply refuses before it merges: a configuration that cannot be read as a typed
//! value (structured-merge-diff's `typed.AsTyped`, in its words).

use serde_json::Value;

use super::{ListKind, Schema, Type};
use crate::quantity;

/// Why `value` is no typed value of `schema`, as `.spec.replicas: expected numeric ...`; empty if it
/// is one. Unlike pruning and validation, it knows no leniency: fields that the schema does not
/// declare, wrong types and items with the same key are all errors.
pub fn untyped(schema: &Schema, value: &Value) -> Vec<String> {
    let mut errors = Vec::new();
    walk(schema, value, "", true, &mut errors);
    errors
}

/// Quantities in `value` that cannot be read, by path; apply fails on them when it converts the object.
pub fn bad_quantity<'v>(schema: &Schema, value: &'v Value) -> Option<&'v Value> {
    if schema.quantity {
        let text = value.as_str()?;
        return quantity::thousandths(text).is_none().then_some(value);
    }
    match value {
        Value::Object(map) => map.iter().find_map(|(name, child)| {
            schema.field(name).and_then(|field| bad_quantity(field, child))
        }),
        Value::Array(list) => {
            let items = schema.items.as_ref()?;
            list.iter().find_map(|item| bad_quantity(items, item))
        }
        _ => None,
    }
}

fn walk(schema: &Schema, value: &Value, path: &str, is_root: bool, errors: &mut Vec<String>) {
    if value.is_null() {
        return; // "Not mine", whatever the type.
    }
    let mut expected =
        |what: &str| errors.push(format!("{path}: expected {what}, got {}", go(value)));
    match schema.kind {
        _ if schema.int_or_string || schema.quantity => {
            if value.is_object() || value.is_array() {
                expected("scalar");
            }
            return;
        }
        Some(Type::String) if !value.is_string() => return expected("string"),
        Some(Type::Integer | Type::Number) if !value.is_number() => {
            return expected("numeric (int or float)");
        }
        Some(Type::Boolean) if !value.is_boolean() => return expected("boolean"),
        Some(Type::Object) if !value.is_object() => return expected("map"),
        Some(Type::Array) if !value.is_array() => return expected("list"),
        _ => {}
    }
    match value {
        Value::Object(map) => {
            let is_open =
                schema.preserve_unknown || (schema.kind.is_none() && schema.is_empty_map());
            let has_meta = is_root || schema.embedded_resource;
            for (name, child) in map {
                let path = format!("{path}.{name}");
                match schema.field(name) {
                    Some(field) => walk(field, child, &path, false, errors),
                    None if is_open => {}
                    None if has_meta
                        && matches!(name.as_str(), "apiVersion" | "kind" | "metadata") => {}
                    None => errors.push(format!("{path}: field not declared in schema")),
                }
            }
        }
        Value::Array(list) => items(schema, list, path, errors),
        _ => {}
    }
}

fn items(schema: &Schema, list: &[Value], path: &str, errors: &mut Vec<String>) {
    let mut seen: Vec<String> = Vec::with_capacity(list.len());
    for (i, item) in list.iter().enumerate() {
        let place = match &schema.list {
            ListKind::Atomic => format!("[{i}]"),
            ListKind::Set => format!("[={item}]"),
            ListKind::Map(keys) => match key(schema, keys, item) {
                Ok(key) => key,
                Err(missing) => {
                    errors.push(format!(
                        "{path}: element {i}: associative list with keys has an element that omits key field {missing:?} (and doesn't have default value)"
                    ));
                    continue;
                }
            },
        };
        if seen.contains(&place) {
            errors.push(format!("{path}: duplicate entries for key {place}"));
        }
        if let Some(schema) = &schema.items {
            walk(schema, item, &format!("{path}{place}"), false, errors);
        }
        seen.push(place);
    }
}

/// The key of an item of an associative list, as `[containerPort=80,protocol="TCP"]`.
///
/// # Errors
/// The name of a key field that is not there and has no default.
fn key<'k>(schema: &Schema, keys: &'k [String], item: &Value) -> Result<String, &'k str> {
    let mut parts = Vec::with_capacity(keys.len());
    for key in keys {
        let default = || schema.items.as_ref()?.field(key)?.default.as_ref();
        let value = item.get(key).filter(|value| !value.is_null()).or_else(default);
        parts.push(format!("{key}={}", value.ok_or(key.as_str())?));
    }
    Ok(format!("[{}]", parts.join(",")))
}

/// A value as Go prints it in these messages; the content of maps and lists stays out.
fn go(value: &Value) -> String {
    match value {
        Value::Object(_) => "&{map[...]}".to_owned(),
        Value::Array(_) => "&{[...]}".to_owned(),
        scalar => format!("&value.valueUnstructured{{Value:{scalar}}}"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::builtin;
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn pod(container: Value) -> Value {
        let mut container = container;
        container["name"] = "m".into();
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"containers": [container]}})
    }

    fn errors(container: Value) -> Vec<String> {
        untyped(&builtin::schema("io.k8s.api.core.v1.Pod"), &pod(container))
    }

    #[test]
    fn a_configuration_that_is_typed_passes() {
        let container = json!({
            "image": "x",
            "env": [{"name": "A", "value": "1"}, {"name": "B", "value": null}],
            "ports": [{"containerPort": 80}, {"containerPort": 80, "protocol": "UDP"}],
            "resources": {"limits": {"cpu": 1, "memory": "1Gi"}},
            "readinessProbe": {"httpGet": {"port": "http"}},
        });
        assert_eq!(errors(container), Vec::<String>::new());
    }

    #[test]
    fn the_same_key_twice_is_refused_in_every_associative_list() {
        let at = r#".spec.containers[name="m"]"#;
        for (field, list, key) in [
            ("env", json!([{"name": "A"}, {"name": "A"}]), r#"[name="A"]"#),
            (
                "volumeMounts",
                json!([{"mountPath": "/d", "name": "a"}, {"mountPath": "/d", "name": "b"}]),
                r#"[mountPath="/d"]"#,
            ),
            (
                "ports",
                json!([{"containerPort": 80}, {"containerPort": 80, "protocol": "TCP"}]),
                r#"[containerPort=80,protocol="TCP"]"#,
            ),
        ] {
            assert_eq!(
                errors(json!({ field: list })),
                [format!("{at}.{field}: duplicate entries for key {key}")]
            );
        }
    }

    #[test]
    fn unknown_fields_and_wrong_types_are_refused() {
        let at = r#".spec.containers[name="m"]"#;
        assert_eq!(
            errors(json!({"typo": 1})),
            [format!("{at}.typo: field not declared in schema")]
        );
        assert_eq!(
            errors(json!({"env": [{"name": "A", "value": 1}]})),
            [format!(
                r#"{at}.env[name="A"].value: expected string, got &value.valueUnstructured{{Value:1}}"#
            )]
        );
        assert_eq!(
            errors(json!({"env": {}})),
            [format!("{at}.env: expected list, got &{{map[...]}}")]
        );
        assert_eq!(errors(json!({"env": [{"value": "x"}]})).len(), 1, "an item without its key");
    }

    #[test]
    fn a_quantity_that_cannot_be_read_is_found() {
        let schema = builtin::schema("io.k8s.api.core.v1.Pod");
        let with = |memory: &str| pod(json!({"resources": {"limits": {"memory": memory}}}));
        assert_eq!(bad_quantity(&schema, &with("1Gi")), None);
        assert_eq!(bad_quantity(&schema, &with("1 Gi")), Some(&json!("1 Gi")));
    }

    proptest! {
        /// A list whose items differ in their key has no duplicates, and one more of the same has one.
        #[test]
        fn duplicates_are_found_and_nothing_else(names in proptest::collection::btree_set("[A-Z]{1,4}", 1..6), pick: prop::sample::Index) {
            let mut env: Vec<Value> = names.iter().map(|name| json!({"name": name})).collect();
            prop_assert_eq!(errors(json!({"env": env})), Vec::<String>::new());
            let again = env[pick.index(env.len())].clone();
            env.push(again);
            prop_assert_eq!(errors(json!({"env": env})).len(), 1);
        }
    }
}
