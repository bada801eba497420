//! Dropping fields that a schema does not know.

use serde_json::Value;

use super::{Schema, Type, join};

/// Removes fields that `schema` does not specify and returns their paths
/// (`spec.typo`, `spec.list[0].typo`). At the root, `apiVersion`, `kind` and `metadata`
/// always stay.
pub fn prune(schema: &Schema, value: &mut Value, root: bool) -> Vec<String> {
    let mut unknown = Vec::new();
    walk(schema, value, "", root, &mut unknown);
    unknown
}

fn walk(schema: &Schema, value: &mut Value, path: &str, is_root: bool, unknown: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            if schema.kind.is_some_and(|kind| kind != Type::Object) {
                return; // Not an object by its schema: validation says so.
            }
            let keep_all = schema.preserve_unknown
                || (schema.kind.is_none() && schema.is_empty_map() && !schema.int_or_string);
            let keep_meta = is_root || schema.embedded_resource;
            map.retain(|key, _| {
                let known = schema.field(key).is_some()
                    || keep_all
                    || (keep_meta && matches!(key.as_str(), "apiVersion" | "kind" | "metadata"));
                if !known {
                    unknown.push(join(path, key));
                }
                known
            });
            for (key, child) in map.iter_mut() {
                if let Some(schema) = schema.field(key) {
                    walk(schema, child, &join(path, key), false, unknown);
                }
            }
        }
        Value::Array(items) => {
            if let Some(schema) = &schema.items {
                for (i, item) in items.iter_mut().enumerate() {
                    walk(schema, item, &format!("{path}[{i}]"), false, unknown);
                }
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::super::parse;
    use super::*;
    use serde_json::json;

    #[test]
    fn unknown_fields_go_and_preserved_ones_stay() {
        let schema = parse(&json!({"type": "object", "properties": {
            "spec": {"type": "object", "properties": {
                "a": {"type": "string"},
                "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
                "list": {"type": "array", "items": {"type": "object", "properties": {"k": {"type": "string"}}}},
            }}
        }}))
        .unwrap();
        let mut value = json!({"kind": "K", "metadata": {"name": "n"}, "other": 1,
            "spec": {"a": "x", "b": 1, "free": {"any": 1}, "list": [{"k": "v", "z": 0}]}});
        let mut unknown = prune(&schema, &mut value, true);
        unknown.sort();
        assert_eq!(unknown, ["other", "spec.b", "spec.list[0].z"]);
        assert_eq!(
            value,
            json!({"kind": "K", "metadata": {"name": "n"}, "spec": {"a": "x", "free": {"any": 1}, "list": [{"k": "v"}]}})
        );
    }
}
