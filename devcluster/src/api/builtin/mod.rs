//! What API servers do for built-in types beyond their schema: defaults, names,
//! validation and immutability.

mod defaults;
mod pod_rules;
mod pods;
mod validate;

pub use defaults::defaults;
pub use pod_rules::warnings;
pub use validate::{requested, validate};

use super::names;
use super::registry::Resource;

/// Why an object of this type cannot have this name.
pub fn name_problem(resource: &Resource, name: &str) -> Option<String> {
    match (resource.group.as_str(), resource.plural.as_str()) {
        ("", "namespaces") => names::label_problem(name),
        ("", "services") => names::label_1035_problem(name),
        ("rbac.authorization.k8s.io", _) => names::path_segment_problem(name),
        _ => names::subdomain_problem(name),
    }
}
