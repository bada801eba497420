//! Objects read one by one: what this version cannot read does not hide the others.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Deserializer, de::DeserializeOwned};
use serde_json::Value;

/// One object of a list or a watch.
#[derive(Debug, Clone)]
pub enum Item<K> {
    Read(Box<K>),
    Unreadable(Box<Unreadable>),
}

/// An object of a newer version, or one that the API server never checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Unreadable {
    /// What could be read of it: at least name, namespace and version, when they are there.
    pub meta: ObjectMeta,
    /// The path of the first field that cannot be read, such as `spec.protocol`. Never its content.
    pub field: String,
}

/// Longest path that is told, in bytes.
const FIELD_MAX: usize = 200;

impl<'de, K: DeserializeOwned> Deserialize<'de> for Item<K> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(from)?;
        if let Ok(object) = K::deserialize(&value) {
            return Ok(Self::Read(Box::new(object)));
        }
        // Once more, slowly, for the field's path.
        let field = match serde_path_to_error::deserialize::<_, K>(&value) {
            Ok(object) => return Ok(Self::Read(Box::new(object))),
            Err(error) => error.path().to_string(),
        };
        let field = field[..field.floor_char_boundary(FIELD_MAX)].to_owned();
        Ok(Self::Unreadable(Box::new(Unreadable { meta: meta(&value), field })))
    }
}

fn meta(object: &Value) -> ObjectMeta {
    let meta = &object["metadata"];
    ObjectMeta::deserialize(meta).unwrap_or_else(|_| {
        let text = |name: &str| meta[name].as_str().map(str::to_owned);
        ObjectMeta {
            name: text("name"),
            namespace: text("namespace"),
            uid: text("uid"),
            resource_version: text("resourceVersion"),
            ..ObjectMeta::default()
        }
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::resources::Workspace;

    fn read(spec: Value) -> Item<Workspace> {
        let meta = json!({"name": "lab", "namespace": "alice", "resourceVersion": "7"});
        let object = json!({"apiVersion": "dormouse.dev/v1alpha1", "kind": "Workspace",
            "metadata": meta, "spec": spec});
        serde_json::from_value(object).unwrap()
    }

    #[test]
    fn the_field_is_named_and_nothing_of_what_is_in_it() {
        let env = json!([{"name": "PASSWORD", "value": {"hunter2": "hunter2"}}]);
        for (spec, field) in [
            (json!({"owner": "alice", "image": "any", "protocol": "hunter2"}), "spec.protocol"),
            (json!({"owner": "alice", "image": "any", "env": env}), "spec.env[0].value"),
        ] {
            let Item::Unreadable(unreadable) = read(spec) else { panic!("{field} was read") };
            assert_eq!(unreadable.field, field);
            assert_eq!(unreadable.meta.name.as_deref(), Some("lab"));
            assert!(!format!("{unreadable:?}").contains("hunter2"));
        }
        assert!(matches!(read(json!({"owner": "alice", "image": "any"})), Item::Read(_)));
    }

    #[test]
    fn what_is_no_object_at_all_is_unreadable_as_well() {
        for value in [json!(null), json!(5), json!([]), json!({}), json!({"metadata": {"name": 5}})]
        {
            let item: Item<Workspace> = serde_json::from_value(value.clone()).unwrap();
            assert!(matches!(item, Item::Unreadable(_)), "{value}");
        }
    }
}
