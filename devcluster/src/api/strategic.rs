//! Strategic merge patches of built-in types: maps merge, lists merge by their key where
//! their type says so, and `$patch`, `$deleteFromPrimitiveList`, `$setElementOrder` and
//! `$retainKeys` steer it.

use serde_json::{Map, Value};

use super::schema::{ListKind, Schema};

/// Applies `patch` to `value`.
///
/// # Errors
/// A directive that is not known, or a list item without its merge key.
pub fn merge(schema: Option<&Schema>, value: &mut Value, patch: &Value) -> Result<(), String> {
    let (Value::Object(map), Value::Object(patch)) = (&mut *value, patch) else {
        *value = clean(patch);
        return Ok(());
    };
    merge_map(schema, map, patch)
}

fn merge_map(
    schema: Option<&Schema>,
    map: &mut Map<String, Value>,
    patch: &Map<String, Value>,
) -> Result<(), String> {
    match patch.get("$patch").and_then(Value::as_str) {
        None | Some("merge") => {}
        Some("replace") => {
            *map = without_directives(patch);
            return Ok(());
        }
        Some("delete") => {
            map.clear();
            return Ok(());
        }
        Some(other) => return Err(format!("unknown $patch directive {other:?}")),
    }
    if let Some(keep) = patch.get("$retainKeys").and_then(Value::as_array) {
        map.retain(|key, _| keep.iter().any(|kept| kept == key));
    }
    for (key, value) in patch {
        if let Some(field) = key.strip_prefix("$deleteFromPrimitiveList/") {
            if let (Some(list), Some(gone)) =
                (map.get_mut(field).and_then(Value::as_array_mut), value.as_array())
            {
                list.retain(|item| !gone.contains(item));
            }
            continue;
        }
        if key.starts_with('$') {
            continue;
        }
        if value.is_null() {
            map.remove(key);
            continue;
        }
        let field = schema.and_then(|schema| schema.field(key)).map(AsRef::as_ref);
        match (map.get_mut(key), value) {
            (Some(Value::Object(old)), Value::Object(new)) => merge_map(field, old, new)?,
            (Some(Value::Array(old)), Value::Array(new)) => merge_list(field, old, new)?,
            (None, Value::Array(new)) => {
                let mut list = Vec::new();
                merge_list(field, &mut list, new)?;
                map.insert(key.clone(), Value::Array(list));
            }
            _ => {
                map.insert(key.clone(), clean(value));
            }
        }
    }
    for (key, order) in patch {
        if let Some(field) = key.strip_prefix("$setElementOrder/")
            && let (Some(list), Some(order)) =
                (map.get_mut(field).and_then(Value::as_array_mut), order.as_array())
        {
            let schema = schema.and_then(|schema| schema.field(field)).map(AsRef::as_ref);
            reorder(schema, list, order);
        }
    }
    Ok(())
}

fn merge_key(schema: Option<&Schema>) -> Option<&str> {
    let schema = schema?;
    match &schema.list {
        ListKind::Map(keys) => schema.merge_key.as_deref().or(keys.first().map(String::as_str)),
        _ => None,
    }
}

fn merge_list(
    schema: Option<&Schema>,
    list: &mut Vec<Value>,
    patch: &[Value],
) -> Result<(), String> {
    let replace = patch
        .iter()
        .any(|item| item.get("$patch").is_some_and(|d| d == "replace") && only_directives(item));
    if replace {
        *list = patch.iter().filter(|item| !only_directives(item)).map(clean).collect();
        return Ok(());
    }
    if schema.is_some_and(|schema| schema.list == ListKind::Set) {
        for item in patch {
            if !list.contains(item) {
                list.push(item.clone());
            }
        }
        return Ok(());
    }
    let Some(key) = merge_key(schema) else {
        *list = patch.iter().map(clean).collect();
        return Ok(());
    };
    let item_schema = schema.and_then(|schema| schema.items.as_deref());
    for item in patch {
        let (Some(id), Some(map)) = (item.get(key), item.as_object()) else {
            return Err(format!("a list item does not contain its merge key {key}"));
        };
        let delete = map.get("$patch").is_some_and(|directive| directive == "delete");
        let position = list.iter().position(|old| old.get(key) == Some(id));
        match position {
            Some(i) if delete => {
                list.remove(i);
            }
            None if delete => {}
            Some(i) => {
                if let Some(Value::Object(old)) = list.get_mut(i) {
                    merge_map(item_schema, old, map)?;
                }
            }
            None => {
                let mut fresh = Map::new();
                merge_map(item_schema, &mut fresh, map)?;
                list.push(Value::Object(fresh));
            }
        }
    }
    Ok(())
}

/// Items named in `order` come in that order; the others keep their place behind them.
fn reorder(schema: Option<&Schema>, list: &mut [Value], order: &[Value]) {
    let key = merge_key(schema);
    let rank = |item: &Value| {
        order
            .iter()
            .position(|wanted| match key {
                Some(key) => wanted.get(key) == item.get(key),
                None => wanted == item,
            })
            .unwrap_or(usize::MAX)
    };
    list.sort_by_key(rank);
}

fn only_directives(item: &Value) -> bool {
    item.as_object().is_some_and(|map| map.keys().all(|key| key.starts_with('$')))
}

fn without_directives(map: &Map<String, Value>) -> Map<String, Value> {
    map.iter()
        .filter(|(key, value)| !key.starts_with('$') && !value.is_null())
        .map(|(key, value)| (key.clone(), clean(value)))
        .collect()
}

/// A new value as it is stored: without directives and nulls.
fn clean(value: &Value) -> Value {
    match value {
        Value::Object(map) => Value::Object(without_directives(map)),
        Value::Array(list) => Value::Array(
            list.iter()
                .filter(|item| {
                    !(item.is_object()
                        && only_directives(item)
                        && item.as_object().is_some_and(|m| !m.is_empty()))
                })
                .map(clean)
                .collect(),
        ),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::schema::builtin;
    use serde_json::json;

    fn patched(value: Value, patch: Value) -> Value {
        let schema = builtin::schema("io.k8s.api.core.v1.Pod");
        let mut value = value;
        merge(Some(&schema), &mut value, &patch).unwrap();
        value
    }

    #[test]
    fn containers_merge_by_name() {
        let pod = json!({"spec": {"containers": [{"name": "a", "image": "1", "env": [{"name": "X", "value": "1"}]}, {"name": "b"}]}});
        assert_eq!(
            patched(
                pod.clone(),
                json!({"spec": {"containers": [{"name": "a", "image": "2", "env": [{"name": "Y", "value": "2"}]}]}})
            ),
            json!({"spec": {"containers": [{"name": "a", "image": "2", "env": [{"name": "X", "value": "1"}, {"name": "Y", "value": "2"}]}, {"name": "b"}]}})
        );
        assert_eq!(
            patched(pod, json!({"spec": {"containers": [{"name": "a", "$patch": "delete"}]}})),
            json!({"spec": {"containers": [{"name": "b"}]}})
        );
    }

    #[test]
    fn primitives_order_and_replacement() {
        let value =
            json!({"metadata": {"finalizers": ["a/x", "b/x"], "labels": {"k": "v", "l": "w"}}});
        assert_eq!(
            patched(
                value.clone(),
                json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["a/x"], "finalizers": ["c/x"],
                    "$setElementOrder/finalizers": ["c/x", "b/x"], "labels": {"k": null}}})
            ),
            json!({"metadata": {"finalizers": ["c/x", "b/x"], "labels": {"l": "w"}}})
        );
        assert_eq!(
            patched(value, json!({"metadata": {"labels": {"$patch": "replace", "z": "1"}}}))["metadata"]
                ["labels"],
            json!({"z": "1"})
        );
    }

    #[test]
    fn lists_without_a_key_are_replaced() {
        let pod = json!({"spec": {"tolerations": [{"key": "a"}]}});
        assert_eq!(
            patched(pod, json!({"spec": {"tolerations": [{"key": "b"}]}})),
            json!({"spec": {"tolerations": [{"key": "b"}]}})
        );
    }
}
