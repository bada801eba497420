//! `meta.k8s.io` Tables: what `kubectl get` prints.

mod builtin;
mod human;
pub mod jsonpath;
mod pods;
mod rows;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::registry::{Column, Resource};
use super::rest::metadata_only;

/// A column's header.
pub(crate) struct Header {
    pub name: String,
    pub kind: String,
    pub format: String,
    pub description: String,
    pub priority: i64,
}

/// Renders `objects` with the columns of their type. `include` is the request's
/// `includeObject`: `None`, `Metadata` (also when empty) or `Object`.
pub fn table<'a>(
    resource: &Resource,
    version: &str,
    objects: impl IntoIterator<Item = &'a Value>,
    include: &str,
    revision: &str,
    next: Option<&str>,
    remaining: Option<usize>,
) -> Value {
    let now = Timestamp::now();
    let headers = headers(resource);
    let rows: Vec<Value> = objects
        .into_iter()
        .map(|object| {
            let shown = match include {
                "None" => Value::Null,
                "Object" => super::rest::in_version(resource, object).into_owned(),
                _ => metadata_only(object, version),
            };
            json!({"cells": cells(resource, object, now), "object": shown})
        })
        .collect();
    let mut metadata = json!({ "resourceVersion": revision });
    if let Some(next) = next {
        metadata["continue"] = next.into();
    }
    if let Some(remaining) = remaining {
        metadata["remainingItemCount"] = remaining.into();
    }
    json!({
        "kind": "Table",
        "apiVersion": format!("meta.k8s.io/{version}"),
        "metadata": metadata,
        "columnDefinitions": headers.iter().map(|h| json!({
            "name": h.name, "type": h.kind, "format": h.format, "description": h.description, "priority": h.priority,
        })).collect::<Vec<_>>(),
        "rows": rows,
    })
}

fn name_header() -> Header {
    Header {
        name: "Name".to_owned(),
        kind: "string".to_owned(),
        format: "name".to_owned(),
        description: "Name must be unique within a namespace.".to_owned(),
        priority: 0,
    }
}

fn headers(resource: &Resource) -> Vec<Header> {
    let mut headers = vec![name_header()];
    if resource.custom {
        headers.extend(resource.columns.iter().map(|column| Header {
            name: column.name.clone(),
            kind: column.kind.clone(),
            format: column.format.clone(),
            description: column.description.clone(),
            priority: column.priority,
        }));
        return headers;
    }
    headers.extend(builtin::columns(resource).iter().map(|(name, kind, priority)| Header {
        name: (*name).to_owned(),
        kind: (*kind).to_owned(),
        format: String::new(),
        description: String::new(),
        priority: *priority,
    }));
    headers
}

fn cells(resource: &Resource, object: &Value, now: Timestamp) -> Vec<Value> {
    let mut cells = vec![object["metadata"]["name"].clone()];
    if resource.custom {
        cells.extend(resource.columns.iter().map(|column| custom_cell(column, object, now)));
    } else {
        cells.extend(builtin::cells(resource, object, now));
    }
    cells
}

fn custom_cell(column: &Column, object: &Value, now: Timestamp) -> Value {
    let Ok(path) = jsonpath::parse(&column.json_path) else { return Value::Null };
    let found = path.find(object);
    let Some(first) = found.first() else { return Value::Null };
    match (column.kind.as_str(), *first) {
        ("date", Value::String(text)) => match text.parse::<Timestamp>() {
            Ok(time) => human::age(now, time).into(),
            Err(_) => "<invalid>".into(),
        },
        ("integer", Value::Number(number)) => match number.as_f64() {
            #[allow(clippy::cast_possible_truncation)] // A column of whole numbers.
            Some(n) if number.is_f64() => Value::from(n as i64),
            _ => (*first).clone(),
        },
        ("number" | "boolean", value) => value.clone(),
        ("integer", _) => Value::Null,
        ("string", Value::String(text)) if found.len() == 1 => text.clone().into(),
        (_, Value::Null) => Value::Null,
        (_, _) if found.len() > 1 => {
            found.iter().map(|value| text_of(value)).collect::<Vec<_>>().join(",").into()
        }
        (_, value) => text_of(value).into(),
    }
}

fn text_of(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}
