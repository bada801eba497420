//! `x-kubernetes-validations`: CEL rules of custom resources.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use cel::objects::{Key, Map, OptionalValue};
use cel::{Context, Env, Program, Value as Cel, extensions};
use serde_json::Value;

use super::schema::{ListKind, Rule, Schema, Type, join};
use super::status::{FieldError, FieldErrorKind, short};

/// More errors than this help nobody.
const MOST_ERRORS: usize = 100;

static ENVIRONMENT: LazyLock<Arc<Env>> = LazyLock::new(|| {
    let mut env = Env::stdlib();
    let added = env
        .add_extension(extensions::strings)
        .and_then(|()| env.add_extension(extensions::lists))
        .and_then(|()| env.add_extension(extensions::math))
        .and_then(|()| env.add_extension(extensions::encoders));
    if let Err(error) = added {
        tracing::error!(?error, "some CEL functions are missing");
    }
    Arc::new(env)
});

static TIMESTAMP: LazyLock<Option<Program>> =
    LazyLock::new(|| ENVIRONMENT.compile("timestamp(text)").ok());
static DURATION: LazyLock<Option<Program>> =
    LazyLock::new(|| ENVIRONMENT.compile("duration(text)").ok());

/// A rule's expressions, compiled.
#[derive(Debug)]
pub struct Compiled {
    rule: Result<Program, String>,
    message: Option<Program>,
    /// Compares with the earlier value, so it says nothing about new objects.
    transition: bool,
}

impl Compiled {
    pub fn new(rule: &str, message: Option<&str>) -> Self {
        let program = compile(rule);
        let transition = program.as_ref().is_ok_and(|p| p.references().has_variable("oldSelf"));
        Self { rule: program, message: message.and_then(|text| compile(text).ok()), transition }
    }
}

fn compile(source: &str) -> Result<Program, String> {
    if source.trim().is_empty() {
        return Err("must not be empty".to_owned());
    }
    ENVIRONMENT.compile(source).map_err(|error| {
        let text = error.to_string();
        text.lines().next().unwrap_or("is not an expression").to_owned()
    })
}

/// What is wrong with the rules of a schema at `path`.
pub fn check_rules(schema: &Schema, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    check_node(schema, path, &mut errors);
    errors
}

fn check_node(schema: &Schema, path: &str, errors: &mut Vec<FieldError>) {
    for (i, rule) in schema.rules.iter().enumerate() {
        let at = format!("{path}.x-kubernetes-validations[{i}]");
        if let Err(why) = &rule.compiled.rule {
            errors.push(FieldError::invalid(
                format!("{at}.rule"),
                &Value::from(rule.rule.as_str()),
                format!("compilation failed: {why}"),
            ));
        }
        if rule.message_expression.is_some() && rule.compiled.message.is_none() {
            errors.push(FieldError::invalid(
                format!("{at}.messageExpression"),
                &Value::from(rule.message_expression.as_deref().unwrap_or("")),
                "compilation failed",
            ));
        }
    }
    for (name, field) in &schema.properties {
        check_node(field, &format!("{path}.properties[{name}]"), errors);
    }
    if let Some(field) = &schema.additional {
        check_node(field, &format!("{path}.additionalProperties"), errors);
    }
    if let Some(items) = &schema.items {
        check_node(items, &format!("{path}.items"), errors);
    }
}

/// The rules that `object` breaks. What did not change is not looked at again.
pub fn validate(schema: &Schema, object: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let (object, old) = (visible(object), old.map(visible));
    walk(schema, &object, old.as_ref(), "", &mut errors);
    errors
}

/// The object with what rules may see of its metadata: the names.
fn visible(object: &Value) -> Value {
    let mut object = object.clone();
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.retain(|key, _| matches!(key.as_str(), "name" | "generateName"));
    }
    object
}

fn walk(
    schema: &Schema,
    value: &Value,
    old: Option<&Value>,
    path: &str,
    errors: &mut Vec<FieldError>,
) {
    if old == Some(value) || value.is_null() || errors.len() >= MOST_ERRORS {
        return;
    }
    for rule in &schema.rules {
        if let Some(error) = run(rule, schema, value, old, path) {
            errors.push(error);
        }
    }
    match value {
        Value::Object(map) => {
            for (name, child) in map {
                if let Some(field) = schema.field(name) {
                    let path = if schema.properties.contains_key(name) {
                        join(path, name)
                    } else {
                        format!("{path}[{name}]")
                    };
                    walk(field, child, old.and_then(|old| old.get(name)), &path, errors);
                }
            }
        }
        Value::Array(list) => {
            let Some(items) = &schema.items else { return };
            for (i, item) in list.iter().enumerate() {
                walk(items, item, counterpart(schema, item, old), &format!("{path}[{i}]"), errors);
            }
        }
        _ => {}
    }
}

/// The earlier form of a list item, where items can be told apart.
fn counterpart<'v>(schema: &Schema, item: &Value, old: Option<&'v Value>) -> Option<&'v Value> {
    let ListKind::Map(keys) = &schema.list else { return None };
    old?.as_array()?.iter().find(|before| keys.iter().all(|key| before.get(key) == item.get(key)))
}

fn run(
    rule: &Rule,
    schema: &Schema,
    value: &Value,
    old: Option<&Value>,
    path: &str,
) -> Option<FieldError> {
    let compiled = &rule.compiled;
    let Ok(program) = &compiled.rule else { return None };
    let mut context = Context::with_env(ENVIRONMENT.clone());
    context.add_variable_from_value("self", convert(Some(schema), value));
    if compiled.transition {
        let before = old.map(|old| convert(Some(schema), old));
        if rule.optional_old_self {
            let optional = before.map_or_else(OptionalValue::none, OptionalValue::of);
            context.add_variable_from_value("oldSelf", Cel::Opaque(Arc::new(optional)));
        } else {
            context.add_variable_from_value("oldSelf", before?);
        }
    }
    let failure = match program.execute(&context) {
        Ok(Cel::Bool(true)) => return None,
        Ok(Cel::Bool(false)) => message_of(rule, &context),
        Ok(_) => format!("rule must evaluate to a boolean: {}", rule.rule),
        Err(error) => format!("rule evaluation error: {error}: {}", rule.rule),
    };
    let field = match &rule.field_path {
        Some(below) => {
            format!("{path}{}", if path.is_empty() { below.trim_start_matches('.') } else { below })
        }
        None => path.to_owned(),
    };
    Some(match rule.reason.as_deref() {
        Some("FieldValueForbidden") => FieldError::forbidden(field, failure),
        Some("FieldValueRequired") => FieldError::new(field, FieldErrorKind::Required, failure),
        Some("FieldValueDuplicate") => {
            FieldError::new(field, FieldErrorKind::Duplicate, short(value))
        }
        // A rule at the root names no value.
        _ if field.is_empty() => FieldError::new(field, FieldErrorKind::Invalid, failure),
        _ => {
            FieldError::new(field, FieldErrorKind::Invalid, format!("{}: {failure}", short(value)))
        }
    })
}

fn message_of(rule: &Rule, context: &Context<'_, '_>) -> String {
    if let Some(program) = &rule.compiled.message
        && let Ok(Cel::String(text)) = program.execute(context)
        && !text.trim().is_empty()
        && !text.contains('\n')
    {
        return text.trim().to_owned();
    }
    match &rule.message {
        Some(message) => message.clone(),
        None => format!("failed rule: {}", rule.rule.trim()),
    }
}

/// A value as rules see it: numbers and times by their schema, property names escaped.
fn convert(schema: Option<&Schema>, value: &Value) -> Cel {
    match value {
        Value::Null => Cel::Null,
        Value::Bool(flag) => Cel::Bool(*flag),
        Value::Number(number) => {
            let float = schema.and_then(|schema| schema.kind) == Some(Type::Number);
            match number.as_i64() {
                Some(whole) if !float => Cel::Int(whole),
                _ => match number.as_f64() {
                    #[allow(clippy::cast_possible_truncation)] // It has no fraction.
                    Some(n)
                        if schema.and_then(|s| s.kind) == Some(Type::Integer)
                            && n.fract() == 0.0 =>
                    {
                        Cel::Int(n as i64)
                    }
                    other => Cel::Float(other.unwrap_or(0.0)),
                },
            }
        }
        Value::String(text) => {
            let format = schema
                .and_then(|schema| schema.checks.as_ref())
                .and_then(|checks| checks.format.as_deref());
            match format {
                Some("date-time") => through(&TIMESTAMP, text),
                Some("date") => through(&TIMESTAMP, &format!("{text}T00:00:00Z")),
                Some("duration") => through(&DURATION, text),
                _ => Cel::String(Arc::new(text.clone())),
            }
        }
        Value::Array(list) => {
            let items = schema.and_then(|schema| schema.items.as_deref());
            Cel::List(Arc::new(list.iter().map(|item| convert(items, item)).collect()))
        }
        Value::Object(map) => {
            let mut converted: HashMap<Key, Cel> = HashMap::with_capacity(map.len());
            for (name, child) in map {
                let is_property = schema.is_some_and(|schema| schema.properties.contains_key(name));
                let key = if is_property { escape(name) } else { name.clone() };
                let field = schema.and_then(|schema| schema.field(name)).map(AsRef::as_ref);
                converted.insert(Key::String(Arc::new(key)), convert(field, child));
            }
            Cel::Map(Map { map: Arc::new(converted) })
        }
    }
}

fn through(program: &Option<Program>, text: &str) -> Cel {
    let plain = || Cel::String(Arc::new(text.to_owned()));
    let Some(program) = program else { return plain() };
    let mut context = Context::with_env(ENVIRONMENT.clone());
    context.add_variable_from_value("text", plain());
    program.execute(&context).unwrap_or_else(|_| plain())
}

/// Property names that are not identifiers (Kubernetes' rules for CEL).
fn escape(name: &str) -> String {
    const RESERVED: [&str; 19] = [
        "true",
        "false",
        "null",
        "in",
        "as",
        "break",
        "const",
        "continue",
        "else",
        "for",
        "function",
        "if",
        "import",
        "let",
        "loop",
        "package",
        "namespace",
        "return",
        "var",
    ];
    if RESERVED.contains(&name) {
        return format!("__{name}__");
    }
    let escaped = name.replace("__", "__underscores__");
    escaped.replace('.', "__dot__").replace('-', "__dash__").replace('/', "__slash__")
}

#[cfg(test)]
mod tests {
    use super::super::schema::parse;
    use super::*;
    use serde_json::json;

    fn schema(rules: Value) -> Schema {
        parse(&json!({"type": "object", "properties": {"spec": {
            "type": "object",
            "properties": {
                "name": {"type": "string"}, "min": {"type": "integer"}, "max": {"type": "integer"},
                "ratio": {"type": "number"},
                "at": {"type": "string", "format": "date-time"},
                "my-list": {"type": "array", "items": {"type": "string"}},
                "labels": {"type": "object", "additionalProperties": {"type": "string"}},
            },
            "x-kubernetes-validations": rules,
        }}}))
        .unwrap()
    }

    fn failures(rule: &str, spec: Value, old: Option<Value>) -> Vec<String> {
        let schema = schema(json!([{"rule": rule}]));
        assert!(check_rules(&schema, "").is_empty(), "{rule}");
        let old = old.map(|old| json!({ "spec": old }));
        validate(&schema, &json!({ "spec": spec }), old.as_ref())
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    fn holds(rule: &str, spec: Value) -> bool {
        failures(rule, spec, None).is_empty()
    }

    #[test]
    fn rules_see_the_object() {
        assert!(holds("!has(self.max) || self.min <= self.max", json!({"min": 1})));
        assert!(holds("self.min <= self.max", json!({"min": 1, "max": 2})));
        assert!(!holds("self.min <= self.max", json!({"min": 3, "max": 2})));
        assert!(holds("size(self.name) == 3 && self.name.size() == 3", json!({"name": "abc"})));
        assert!(holds(
            "self.name.matches('^[a-z]+$') && self.name.startsWith('a')",
            json!({"name": "abc"})
        ));
        assert!(holds(
            "self.name.endsWith('c') && self.name.contains('b')",
            json!({"name": "abc"})
        ));
        assert!(holds("self.my__dash__list.all(x, x != '')", json!({"my-list": ["a"]})));
        assert!(!holds("self.my__dash__list.exists(x, x == 'b')", json!({"my-list": ["a"]})));
        assert!(holds(
            "'a' in self.labels && self.labels['a'] == 'b'",
            json!({"labels": {"a": "b"}})
        ));
        assert!(holds("self.ratio < 2.0", json!({"ratio": 1})));
        assert!(holds(
            "self.at > timestamp('2020-01-01T00:00:00Z')",
            json!({"at": "2021-01-01T00:00:00Z"})
        ));
        assert!(holds("self.name.lowerAscii() == 'abc'", json!({"name": "ABC"})));
        assert!(holds("self.min in [1, 2] ? true : false", json!({"min": 2})));
        assert!(holds("[has(self.min), has(self.max)].exists_one(x, x)", json!({"min": 2})));
        assert!(holds(
            "self.my__dash__list.filter(x, x == 'a').size() == 1",
            json!({"my-list": ["a", "b"]})
        ));
    }

    #[test]
    fn a_missing_field_is_an_error_and_not_a_pass() {
        let failed = failures("self.min > 1", json!({}), None);
        assert!(failed[0].contains("rule evaluation error"), "{failed:?}");
    }

    #[test]
    fn transition_rules_hold_for_changes_only() {
        let rule = "self.name == oldSelf.name";
        assert!(failures(rule, json!({"name": "a"}), None).is_empty());
        assert_eq!(
            failures(rule, json!({"name": "a"}), Some(json!({"name": "b"}))),
            ["spec: Invalid value: \"object\": failed rule: self.name == oldSelf.name"]
        );
    }

    #[test]
    fn messages_and_reasons() {
        let failed = |rule: Value| {
            let schema = schema(json!([rule]));
            validate(&schema, &json!({"spec": {"min": 3}}), None)[0].to_string()
        };
        assert_eq!(
            failed(
                json!({"rule": "false", "message": "no", "fieldPath": ".min", "reason": "FieldValueForbidden"})
            ),
            "spec.min: Forbidden: no"
        );
        assert_eq!(
            failed(json!({"rule": "false", "messageExpression": "'min is ' + string(self.min)"})),
            "spec: Invalid value: \"object\": min is 3"
        );
    }

    #[test]
    fn a_rule_that_is_no_expression_is_named() {
        let errors = check_rules(&schema(json!([{"rule": "self.("}])), "schema");
        assert_eq!(errors[0].field, "schema.properties[spec].x-kubernetes-validations[0].rule");
    }

    #[test]
    fn what_did_not_change_is_not_judged_again() {
        assert!(failures("false", json!({"min": 1}), Some(json!({"min": 1}))).is_empty());
    }
}
