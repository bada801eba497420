//! From the JSON of an OpenAPI v3 schema to [`Schema`].

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use serde_json::{Map, Value};

use super::{Checks, ListKind, Rule, Schema, Type};

#[derive(Debug, thiserror::Error)]
#[error("{path}: {why}")]
pub struct ParseError {
    /// Dotted path inside the schema.
    pub path: String,
    pub why: String,
}

fn fail<T>(path: &str, why: impl Into<String>) -> Result<T, ParseError> {
    Err(ParseError { path: path.to_owned(), why: why.into() })
}

/// Parses the schema of a custom resource.
///
/// # Errors
/// A part that is not a schema, or a pattern that is not a regular expression.
pub fn parse(json: &Value) -> Result<Schema, ParseError> {
    Parser { definitions: &HashMap::new(), known: HashMap::new(), open: Vec::new() }.node(json, "")
}

/// Parses one definition among others that it refers to by name.
pub fn parse_definition(
    name: &str,
    definitions: &HashMap<String, Value>,
) -> Result<Arc<Schema>, ParseError> {
    Parser { definitions, known: HashMap::new(), open: Vec::new() }.definition(name)
}

struct Parser<'a> {
    definitions: &'a HashMap<String, Value>,
    known: HashMap<String, Arc<Schema>>,
    /// Definitions being parsed, outermost first: a recursive one becomes an open node.
    open: Vec<String>,
}

impl Parser<'_> {
    fn definition(&mut self, name: &str) -> Result<Arc<Schema>, ParseError> {
        if let Some(known) = self.known.get(name) {
            return Ok(known.clone());
        }
        let Some(json) = self.definitions.get(name) else {
            return fail(name, "no such definition");
        };
        if self.open.iter().any(|open| open == name) {
            return Ok(Arc::new(Schema::open()));
        }
        self.open.push(name.to_owned());
        let mut schema = self.node(json, "")?;
        self.open.pop();
        schema.name = Some(name.to_owned());
        // Types whose content is free (FieldsV1, RawExtension) are objects without properties.
        if schema.kind == Some(Type::Object) && schema.is_empty_map() {
            schema.preserve_unknown = true;
        }
        if name.ends_with(".Quantity") {
            schema.quantity = true;
        }
        super::lists::mark(name, &mut schema);
        let schema = Arc::new(schema);
        self.known.insert(name.to_owned(), schema.clone());
        Ok(schema)
    }

    fn child(&mut self, json: &Value, path: &str) -> Result<Arc<Schema>, ParseError> {
        if let Some(name) = reference(json) {
            return self.definition(name);
        }
        Ok(Arc::new(self.node(json, path)?))
    }

    fn node(&mut self, json: &Value, path: &str) -> Result<Schema, ParseError> {
        let Some(map) = json.as_object() else {
            return match json {
                Value::Bool(true) => Ok(Schema::open()),
                _ => fail(path, "must be a schema object"),
            };
        };
        let mut schema = Schema {
            kind: kind(map, path)?,
            nullable: flag(map, "nullable") || type_list_has_null(map),
            int_or_string: flag(map, "x-kubernetes-int-or-string"),
            preserve_unknown: flag(map, "x-kubernetes-preserve-unknown-fields"),
            embedded_resource: flag(map, "x-kubernetes-embedded-resource"),
            list: list_kind(map),
            map_atomic: text(map, "x-kubernetes-map-type").as_deref() == Some("atomic"),
            default: map.get("default").cloned(),
            required: strings(map, "required"),
            rules: rules(map),
            ..Schema::default()
        };
        if let Some(properties) = map.get("properties").and_then(Value::as_object) {
            let mut parsed = BTreeMap::new();
            for (name, json) in properties {
                parsed
                    .insert(name.clone(), self.child(json, &format!("{path}.properties[{name}]"))?);
            }
            schema.properties = parsed;
        }
        match map.get("additionalProperties") {
            None | Some(Value::Bool(false)) => {}
            Some(json) => {
                schema.additional =
                    Some(self.child(json, &format!("{path}.additionalProperties"))?);
            }
        }
        if let Some(json) = map.get("items") {
            schema.items = Some(self.child(json, &format!("{path}.items"))?);
        }
        schema.checks = self.checks(map, path)?;
        Ok(schema)
    }

    fn list_of(
        &mut self,
        map: &Map<String, Value>,
        key: &str,
        path: &str,
    ) -> Result<Vec<Schema>, ParseError> {
        let mut nodes = Vec::new();
        for (i, json) in map.get(key).and_then(Value::as_array).into_iter().flatten().enumerate() {
            nodes.push(self.node(json, &format!("{path}.{key}[{i}]"))?);
        }
        Ok(nodes)
    }

    fn checks(
        &mut self,
        map: &Map<String, Value>,
        path: &str,
    ) -> Result<Option<Box<Checks>>, ParseError> {
        const KEYS: [&str; 18] = [
            "enum",
            "pattern",
            "format",
            "minimum",
            "exclusiveMinimum",
            "maximum",
            "exclusiveMaximum",
            "multipleOf",
            "minLength",
            "maxLength",
            "minItems",
            "maxItems",
            "uniqueItems",
            "minProperties",
            "maxProperties",
            "allOf",
            "anyOf",
            "oneOf",
        ];
        if !KEYS.iter().any(|key| map.contains_key(*key)) && !map.contains_key("not") {
            return Ok(None);
        }
        let pattern = match text(map, "pattern") {
            None => None,
            Some(source) => match regex::RegexBuilder::new(&source).size_limit(1 << 20).build() {
                Ok(regex) => Some((source, regex)),
                Err(error) => {
                    return fail(
                        path,
                        format!("pattern {source:?} is not a regular expression: {error}"),
                    );
                }
            },
        };
        let not = match map.get("not") {
            None => None,
            Some(json) => Some(Box::new(self.node(json, &format!("{path}.not"))?)),
        };
        Ok(Some(Box::new(Checks {
            enumeration: map.get("enum").and_then(Value::as_array).cloned(),
            pattern,
            format: text(map, "format"),
            minimum: number(map, "minimum"),
            exclusive_minimum: flag(map, "exclusiveMinimum"),
            maximum: number(map, "maximum"),
            exclusive_maximum: flag(map, "exclusiveMaximum"),
            multiple_of: number(map, "multipleOf"),
            min_length: count(map, "minLength"),
            max_length: count(map, "maxLength"),
            min_items: count(map, "minItems"),
            max_items: count(map, "maxItems"),
            unique_items: flag(map, "uniqueItems"),
            min_properties: count(map, "minProperties"),
            max_properties: count(map, "maxProperties"),
            all_of: self.list_of(map, "allOf", path)?,
            any_of: self.list_of(map, "anyOf", path)?,
            one_of: self.list_of(map, "oneOf", path)?,
            not,
        })))
    }
}

/// The name a reference points to; `allOf` with a single reference is one, too.
pub fn reference(json: &Value) -> Option<&str> {
    if let Some(target) = json.get("$ref").and_then(Value::as_str) {
        return target.rsplit('/').next();
    }
    match json.get("allOf").and_then(Value::as_array).map(Vec::as_slice) {
        Some([one]) => one.get("$ref").and_then(Value::as_str)?.rsplit('/').next(),
        _ => None,
    }
}

fn kind(map: &Map<String, Value>, path: &str) -> Result<Option<Type>, ParseError> {
    let name = match map.get("type") {
        None => return Ok(None),
        Some(Value::String(name)) => name.as_str(),
        Some(Value::Array(names)) => {
            match names.iter().filter_map(Value::as_str).find(|name| *name != "null") {
                Some(name) => name,
                None => return Ok(None),
            }
        }
        Some(_) => return fail(path, "type must be a string"),
    };
    Ok(Some(match name {
        "object" => Type::Object,
        "array" => Type::Array,
        "string" => Type::String,
        "integer" => Type::Integer,
        "number" => Type::Number,
        "boolean" => Type::Boolean,
        "" => return Ok(None),
        other => return fail(path, format!("unknown type {other:?}")),
    }))
}

fn type_list_has_null(map: &Map<String, Value>) -> bool {
    map.get("type").and_then(Value::as_array).is_some_and(|names| names.iter().any(|n| n == "null"))
}

fn list_kind(map: &Map<String, Value>) -> ListKind {
    match map.get("x-kubernetes-list-type").and_then(Value::as_str) {
        Some("set") => ListKind::Set,
        Some("map") => ListKind::Map(strings(map, "x-kubernetes-list-map-keys")),
        _ => ListKind::Atomic,
    }
}

fn rules(map: &Map<String, Value>) -> Vec<Rule> {
    let Some(list) = map.get("x-kubernetes-validations").and_then(Value::as_array) else {
        return Vec::new();
    };
    list.iter()
        .filter_map(Value::as_object)
        .map(|rule| Rule {
            compiled: crate::api::cel::Compiled::new(
                rule.get("rule").and_then(Value::as_str).unwrap_or(""),
                rule.get("messageExpression").and_then(Value::as_str),
            ),
            rule: text(rule, "rule").unwrap_or_default(),
            message: text(rule, "message"),
            message_expression: text(rule, "messageExpression"),
            reason: text(rule, "reason"),
            field_path: text(rule, "fieldPath"),
            optional_old_self: flag(rule, "optionalOldSelf"),
        })
        .collect()
}

fn text(map: &Map<String, Value>, key: &str) -> Option<String> {
    map.get(key).and_then(Value::as_str).map(str::to_owned)
}

fn flag(map: &Map<String, Value>, key: &str) -> bool {
    map.get(key).and_then(Value::as_bool).unwrap_or(false)
}

fn number(map: &Map<String, Value>, key: &str) -> Option<f64> {
    map.get(key).and_then(Value::as_f64)
}

fn count(map: &Map<String, Value>, key: &str) -> Option<u64> {
    map.get(key).and_then(Value::as_u64)
}

fn strings(map: &Map<String, Value>, key: &str) -> Vec<String> {
    map.get(key)
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .map(str::to_owned)
        .collect()
}
