//! Columns of built-in types, as `kubectl get` shows them.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::human::since;
use crate::api::registry::Resource;

/// Name, type and priority (1: only with `-o wide`).
type Spec = (&'static str, &'static str, i64);

const AGE: &[Spec] = &[("Age", "string", 0)];

/// The columns after the name.
pub fn columns(resource: &Resource) -> &'static [Spec] {
    match (resource.group.as_str(), resource.plural.as_str()) {
        ("", "pods") => &[
            ("Ready", "string", 0),
            ("Status", "string", 0),
            ("Restarts", "string", 0),
            ("Age", "string", 0),
            ("IP", "string", 1),
            ("Node", "string", 1),
        ],
        _ => AGE,
    }
}

/// The cells of those columns.
pub fn cells(resource: &Resource, object: &Value, now: Timestamp) -> Vec<Value> {
    let age = since(now, &object["metadata"]["creationTimestamp"]);
    match (resource.group.as_str(), resource.plural.as_str()) {
        ("", "pods") => vec![
            json!(""),
            object["status"]["phase"].clone(),
            json!(0),
            json!(age),
            object["status"]["podIP"].clone(),
            object["spec"]["nodeName"].clone(),
        ],
        _ => vec![json!(age)],
    }
}
