//! Filling in the defaults of a schema.

use serde_json::Value;

use super::Schema;

/// Sets missing fields to their defaults, from the outside in, as API servers do:
/// a default applies only where its parent exists. Explicit nulls of fields that are
/// not nullable count as missing when they have a default, and are dropped otherwise.
pub fn apply_defaults(schema: &Schema, value: &mut Value) {
    if schema.quantity && value.is_number() {
        *value = Value::String(value.to_string());
        return;
    }
    match value {
        Value::Object(map) => {
            for (name, field) in &schema.properties {
                let null = matches!(map.get(name), Some(Value::Null)) && !field.nullable;
                if let Some(default) = &field.default
                    && (null || !map.contains_key(name))
                {
                    map.insert(name.clone(), default.clone());
                } else if null {
                    map.remove(name);
                }
            }
            for (name, child) in map.iter_mut() {
                if let Some(field) = schema.field(name) {
                    apply_defaults(field, child);
                }
            }
        }
        Value::Array(items) => {
            if let Some(schema) = &schema.items {
                for item in items {
                    apply_defaults(schema, item);
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
    fn defaults_reach_into_defaulted_parents_only() {
        let schema = parse(&json!({"type": "object", "properties": {
            "made": {"type": "object", "default": {}, "properties": {"n": {"type": "integer", "default": 3}}},
            "absent": {"type": "object", "properties": {"n": {"type": "integer", "default": 3}}},
            "null": {"type": "string"},
        }}))
        .unwrap();
        let mut value = json!({"null": null});
        apply_defaults(&schema, &mut value);
        assert_eq!(value, json!({"made": {"n": 3}}));
    }
}
