//! Walking values along their schema: which fields a value has, how two differ, how an
//! applied configuration merges, and taking fields out again.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::set::{Element, FieldSet};
use crate::api::schema::{ListKind, Schema};

type Typed<'a> = Option<&'a Schema>;

fn is_granular_map(schema: Typed<'_>) -> bool {
    schema.is_none_or(|schema| !schema.map_atomic)
}

fn child<'a>(schema: Typed<'a>, name: &str) -> Typed<'a> {
    schema.and_then(|schema| schema.field(name)).map(AsRef::as_ref)
}

fn items(schema: Typed<'_>) -> Typed<'_> {
    schema.and_then(|schema| schema.items.as_deref())
}

/// Each item with its element, if the list is merged item by item and every item can be told apart.
fn elements<'v>(schema: Typed<'_>, list: &'v [Value]) -> Option<Vec<(Element, &'v Value)>> {
    match &schema?.list {
        ListKind::Atomic => None,
        ListKind::Set => {
            Some(list.iter().map(|item| (Element::Value(item.to_string()), item)).collect())
        }
        ListKind::Map(keys) => list
            .iter()
            .map(|item| Some((Element::Key(key_of(keys, items(schema), item)?), item)))
            .collect(),
    }
}

fn key_of(keys: &[String], schema: Typed<'_>, item: &Value) -> Option<String> {
    let item = item.as_object()?;
    let mut fields = BTreeMap::new();
    for key in keys {
        if let Some(value) = item.get(key) {
            fields.insert(key, value.clone());
        } else if let Some(default) = child(schema, key).and_then(|s| s.default.clone()) {
            fields.insert(key, default);
        }
    }
    if fields.is_empty() {
        return None;
    }
    serde_json::to_string(&fields).ok()
}

/// All fields that `value` has.
pub fn set_of(schema: Typed<'_>, value: &Value) -> FieldSet {
    match value {
        Value::Object(map) if is_granular_map(schema) && !map.is_empty() => {
            let mut set = FieldSet::default();
            for (name, value) in map {
                set.insert(Element::Field(name.clone()), set_of(child(schema, name), value));
            }
            set
        }
        Value::Array(list) if !list.is_empty() => match elements(schema, list) {
            None => FieldSet::leaf(),
            Some(elements) => {
                let mut set = FieldSet::default();
                for (element, item) in elements {
                    let mut below = match element {
                        Element::Key(_) => set_of(items(schema), item),
                        _ => FieldSet::default(),
                    };
                    below.here = true;
                    set.insert(element, below);
                }
                set
            }
        },
        _ => FieldSet::leaf(),
    }
}

/// How one value became another.
#[derive(Debug, Default)]
pub struct Difference {
    /// Fields that are new or have another value.
    pub changed: FieldSet,
    pub removed: FieldSet,
}

pub fn difference(schema: Typed<'_>, old: &Value, new: &Value) -> Difference {
    let mut difference = Difference::default();
    if old == new {
        return difference;
    }
    match (old, new) {
        (Value::Object(old), Value::Object(new)) if is_granular_map(schema) => {
            // A map that lost or got its first entry is itself a field.
            if new.is_empty() {
                difference.changed.here = true;
            }
            for (name, value) in new {
                let element = Element::Field(name.clone());
                match old.get(name) {
                    None => difference.changed.insert(element, set_of(child(schema, name), value)),
                    Some(before) => {
                        let below = self::difference(child(schema, name), before, value);
                        difference.changed.insert(element.clone(), below.changed);
                        difference.removed.insert(element, below.removed);
                    }
                }
            }
            for (name, value) in old {
                if !new.contains_key(name) {
                    difference.removed.insert(
                        Element::Field(name.clone()),
                        removed_set(child(schema, name), value),
                    );
                }
            }
        }
        (Value::Array(old), Value::Array(new)) => {
            let (Some(old), Some(new)) = (elements(schema, old), elements(schema, new)) else {
                difference.changed.here = true;
                return difference;
            };
            let old: BTreeMap<Element, &Value> = old.into_iter().collect();
            let new: BTreeMap<Element, &Value> = new.into_iter().collect();
            for (element, value) in &new {
                let below = |value: &Value| {
                    let mut set = match element {
                        Element::Key(_) => set_of(items(schema), value),
                        _ => FieldSet::default(),
                    };
                    set.here = true;
                    set
                };
                match old.get(element) {
                    None => difference.changed.insert(element.clone(), below(value)),
                    Some(before) => {
                        let below = self::difference(items(schema), before, value);
                        difference.changed.insert(element.clone(), below.changed);
                        difference.removed.insert(element.clone(), below.removed);
                    }
                }
            }
            for (element, value) in old {
                if !new.contains_key(&element) {
                    let mut set = removed_set(items(schema), value);
                    set.here = true;
                    difference.removed.insert(element, set);
                }
            }
        }
        _ => {
            difference.changed.here = true;
            // What was below a replaced value is gone with it.
            if old.is_object() || old.is_array() {
                difference.removed =
                    FieldSet { here: false, children: set_of(schema, old).children };
            }
        }
    }
    difference
}

/// Everything that goes when a value goes, its containers included.
fn removed_set(schema: Typed<'_>, value: &Value) -> FieldSet {
    let mut set = set_of(schema, value);
    mark_containers(&mut set);
    set
}

fn mark_containers(set: &mut FieldSet) {
    set.here = true;
    set.children.values_mut().for_each(mark_containers);
}

/// `live` with `applied` on top.
pub fn merge(schema: Typed<'_>, live: &Value, applied: &Value) -> Value {
    match (live, applied) {
        (Value::Object(live), Value::Object(applied)) if is_granular_map(schema) => {
            let mut merged = live.clone();
            for (name, value) in applied {
                let value = match live.get(name) {
                    Some(before) => merge(child(schema, name), before, value),
                    None => value.clone(),
                };
                merged.insert(name.clone(), value);
            }
            Value::Object(merged)
        }
        (Value::Array(live_items), Value::Array(applied_items)) => {
            let (Some(old), Some(new)) =
                (elements(schema, live_items), elements(schema, applied_items))
            else {
                return applied.clone();
            };
            let mut merged: Vec<(Element, Value)> =
                old.into_iter().map(|(element, item)| (element, item.clone())).collect();
            for (element, item) in new {
                match merged.iter_mut().find(|(known, _)| *known == element) {
                    Some((_, before)) => *before = merge(items(schema), before, item),
                    None => merged.push((element, item.clone())),
                }
            }
            Value::Array(merged.into_iter().map(|(_, item)| item).collect())
        }
        _ => applied.clone(),
    }
}

/// Takes out of `value` what is in `gone` and has nothing of `kept` at or below it.
pub fn remove(schema: Typed<'_>, value: &mut Value, gone: &FieldSet, kept: &FieldSet) {
    let nothing = FieldSet::default();
    match value {
        Value::Object(map) => {
            for (element, below) in &gone.children {
                let Element::Field(name) = element else { continue };
                let kept = kept.children.get(element);
                let Some(inner) = map.get_mut(name) else { continue };
                if take_out(child(schema, name), inner, below, kept, &nothing) {
                    map.remove(name);
                }
            }
        }
        Value::Array(list) => {
            let known: Option<Vec<Element>> = elements(schema, list)
                .map(|all| all.into_iter().map(|(element, _)| element).collect());
            let Some(known) = known else { return };
            let mut rest = Vec::with_capacity(list.len());
            for (element, mut item) in known.into_iter().zip(std::mem::take(list)) {
                let drop = match gone.children.get(&element) {
                    None => false,
                    Some(below) => take_out(
                        items(schema),
                        &mut item,
                        below,
                        kept.children.get(&element),
                        &nothing,
                    ),
                };
                if !drop {
                    rest.push(item);
                }
            }
            *list = rest;
        }
        _ => {}
    }
}

/// Whether the value itself is to go; otherwise takes out what goes below it.
fn take_out(
    schema: Typed<'_>,
    value: &mut Value,
    gone: &FieldSet,
    kept: Option<&FieldSet>,
    nothing: &FieldSet,
) -> bool {
    let kept = kept.filter(|kept| !kept.is_empty());
    if gone.here && kept.is_none() {
        return true;
    }
    // A field that somebody owns as a whole stays whole; owning an empty map or list says
    // nothing about what others put into it.
    if kept.is_some_and(|kept| kept.here && kept.children.is_empty()) && !is_granular(schema, value)
    {
        return false;
    }
    let had_content = !is_hollow(value);
    remove(schema, value, gone, kept.unwrap_or(nothing));
    had_content && is_hollow(value) && kept.is_none()
}

fn is_granular(schema: Typed<'_>, value: &Value) -> bool {
    match value {
        Value::Object(_) => is_granular_map(schema),
        Value::Array(list) => elements(schema, list).is_some(),
        _ => false,
    }
}

fn is_hollow(value: &Value) -> bool {
    match value {
        Value::Object(map) => map.is_empty(),
        Value::Array(list) => list.is_empty(),
        _ => false,
    }
}

/// Nulls in an applied configuration mean "not mine", unless the field may be null.
pub fn strip_nulls(schema: Typed<'_>, value: &mut Value) {
    match value {
        Value::Object(map) => {
            let taken: Map<String, Value> = std::mem::take(map);
            for (name, mut inner) in taken {
                let field = child(schema, &name);
                if inner.is_null() && !field.is_some_and(|field| field.nullable) {
                    continue;
                }
                strip_nulls(field, &mut inner);
                map.insert(name, inner);
            }
        }
        Value::Array(list) => list.iter_mut().for_each(|item| strip_nulls(items(schema), item)),
        _ => {}
    }
}
