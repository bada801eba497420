//! Structural schemas: of custom resources (their `openAPIV3Schema`) and of built-ins
//! (generated from the field's Rust types), in one compact form that pruning,
//! defaulting, validation and field ownership walk along.

pub mod builtin;
mod defaulting;
mod lists;
mod parse;
mod prune;
mod typed;
mod validate;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;

pub use defaulting::apply_defaults;
pub use parse::parse;
pub use prune::prune;
pub use typed::{bad_quantity, untyped};
pub use validate::validate;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Type {
    Object,
    Array,
    String,
    Integer,
    Number,
    Boolean,
}

/// How a list merges when several managers apply to it
/// (`x-kubernetes-list-type`, or the built-ins' patch strategy).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum ListKind {
    #[default]
    Atomic,
    Set,
    /// Items are told apart by these fields.
    Map(Vec<String>),
}

/// One node of a structural schema.
#[derive(Debug, Default)]
pub struct Schema {
    pub kind: Option<Type>,
    pub nullable: bool,
    pub int_or_string: bool,
    /// A Kubernetes quantity: numbers are accepted and kept as strings.
    pub quantity: bool,
    pub preserve_unknown: bool,
    pub embedded_resource: bool,
    pub properties: BTreeMap<String, Arc<Schema>>,
    pub additional: Option<Arc<Schema>>,
    pub items: Option<Arc<Schema>>,
    pub list: ListKind,
    pub map_atomic: bool,
    /// The single key of a strategic merge patch, where it differs from the list's keys.
    pub merge_key: Option<String>,
    pub required: Vec<String>,
    pub default: Option<Value>,
    pub checks: Option<Box<Checks>>,
    /// `x-kubernetes-validations`, as written.
    pub rules: Vec<Rule>,
    /// The definition's name, for built-ins.
    pub name: Option<String>,
}

/// Value validations, apart because most nodes have none.
#[derive(Debug, Default)]
pub struct Checks {
    pub enumeration: Option<Vec<Value>>,
    pub pattern: Option<(String, regex::Regex)>,
    pub format: Option<String>,
    pub minimum: Option<f64>,
    pub exclusive_minimum: bool,
    pub maximum: Option<f64>,
    pub exclusive_maximum: bool,
    pub multiple_of: Option<f64>,
    pub min_length: Option<u64>,
    pub max_length: Option<u64>,
    pub min_items: Option<u64>,
    pub max_items: Option<u64>,
    pub unique_items: bool,
    pub min_properties: Option<u64>,
    pub max_properties: Option<u64>,
    pub all_of: Vec<Schema>,
    pub any_of: Vec<Schema>,
    pub one_of: Vec<Schema>,
    pub not: Option<Box<Schema>>,
}

/// One CEL rule of `x-kubernetes-validations`.
#[derive(Debug)]
pub struct Rule {
    pub rule: String,
    pub message: Option<String>,
    pub message_expression: Option<String>,
    pub reason: Option<String>,
    pub field_path: Option<String>,
    pub optional_old_self: bool,
    pub compiled: super::cel::Compiled,
}

impl Schema {
    /// A node about which nothing is known: everything below it is kept.
    pub fn open() -> Self {
        Self { preserve_unknown: true, ..Self::default() }
    }

    /// The schema of a field: a named property, else that of further properties.
    pub fn field(&self, name: &str) -> Option<&Arc<Schema>> {
        self.properties.get(name).or(self.additional.as_ref())
    }

    pub fn is_empty_map(&self) -> bool {
        self.properties.is_empty() && self.additional.is_none()
    }
}

/// The path of a child field as error messages write it.
pub fn join(path: &str, field: &str) -> String {
    if path.is_empty() { field.to_owned() } else { format!("{path}.{field}") }
}
