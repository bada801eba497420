//! `events.k8s.io/v1` and core v1 events are one thing in two forms; the core form is stored.

use serde_json::{Map, Value};

/// Field names: in the new form, in the core form.
const RENAMED: &[(&str, &str)] = &[
    ("regarding", "involvedObject"),
    ("note", "message"),
    ("deprecatedSource", "source"),
    ("deprecatedFirstTimestamp", "firstTimestamp"),
    ("deprecatedLastTimestamp", "lastTimestamp"),
    ("deprecatedCount", "count"),
    ("reportingController", "reportingComponent"),
];

fn renamed(object: &Value, api_version: &str, rename: impl Fn(&str) -> String) -> Value {
    let mut map = Map::new();
    for (key, value) in object.as_object().into_iter().flatten() {
        map.insert(rename(key), value.clone());
    }
    map.insert("apiVersion".to_owned(), api_version.into());
    Value::Object(map)
}

pub fn to_core(object: &Value) -> Value {
    renamed(object, "v1", |key| {
        RENAMED.iter().find(|(new, _)| *new == key).map_or(key, |(_, core)| core).to_owned()
    })
}

pub fn to_new(object: &Value) -> Value {
    renamed(object, "events.k8s.io/v1", |key| {
        RENAMED.iter().find(|(_, core)| *core == key).map_or(key, |(new, _)| new).to_owned()
    })
}
