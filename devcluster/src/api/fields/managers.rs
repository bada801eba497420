//! The managers of an object's fields, and what applying and updating do to them.

use serde_json::{Value, json};

use super::set::FieldSet;
use super::typed;
use crate::api::schema::Schema;
use crate::api::status::ApiError;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    Apply,
    Update,
}

impl Operation {
    fn as_str(self) -> &'static str {
        match self {
            Self::Apply => "Apply",
            Self::Update => "Update",
        }
    }
}

/// Who writes, through which endpoint, when.
#[derive(Debug, Clone)]
pub struct Actor {
    pub manager: String,
    pub operation: Operation,
    /// `status`, `scale`, or empty.
    pub subresource: String,
    pub api_version: String,
    /// RFC 3339.
    pub time: String,
}

#[derive(Debug, Clone)]
struct Entry {
    manager: String,
    operation: Operation,
    subresource: String,
    api_version: String,
    time: String,
    set: FieldSet,
}

/// `metadata.managedFields`, decoded.
#[derive(Debug, Clone, Default)]
pub struct Managers(Vec<Entry>);

/// Fields that nobody owns.
const UNOWNED: &[&[&str]] = &[
    &["apiVersion"],
    &["kind"],
    &["metadata", "name"],
    &["metadata", "generateName"],
    &["metadata", "namespace"],
    &["metadata", "creationTimestamp"],
    &["metadata", "deletionTimestamp"],
    &["metadata", "deletionGracePeriodSeconds"],
    &["metadata", "selfLink"],
    &["metadata", "uid"],
    &["metadata", "generation"],
    &["metadata", "managedFields"],
    &["metadata", "resourceVersion"],
];

fn owned(mut set: FieldSet) -> FieldSet {
    for path in UNOWNED {
        set.remove_field(path);
    }
    if set.field("metadata").is_some_and(|meta| meta.children.is_empty()) {
        set.remove_field(&["metadata"]);
    }
    set
}

impl Managers {
    pub fn decode(object: &Value) -> Self {
        let list = object["metadata"]["managedFields"].as_array();
        Self(
            list.into_iter()
                .flatten()
                .filter_map(|entry| {
                    let text =
                        |key: &str| entry.get(key).and_then(Value::as_str).unwrap_or("").to_owned();
                    let operation = match entry.get("operation")?.as_str()? {
                        "Apply" => Operation::Apply,
                        "Update" => Operation::Update,
                        _ => return None,
                    };
                    Some(Entry {
                        manager: text("manager"),
                        operation,
                        subresource: text("subresource"),
                        api_version: text("apiVersion"),
                        time: text("time"),
                        set: FieldSet::decode(entry.get("fieldsV1")?),
                    })
                })
                .collect(),
        )
    }

    /// Puts the managers into `object`.
    pub fn encode_into(mut self, object: &mut Value) {
        self.0.retain(|entry| !entry.set.is_empty());
        let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) else {
            return;
        };
        if self.0.is_empty() {
            metadata.remove("managedFields");
            return;
        }
        self.0.sort_by(|a, b| {
            (a.operation.as_str(), &a.time, &a.manager).cmp(&(
                b.operation.as_str(),
                &b.time,
                &b.manager,
            ))
        });
        let list: Vec<Value> = self
            .0
            .into_iter()
            .map(|entry| {
                let mut json = json!({
                    "manager": entry.manager,
                    "operation": entry.operation.as_str(),
                    "apiVersion": entry.api_version,
                    "fieldsType": "FieldsV1",
                    "fieldsV1": entry.set.encode(),
                });
                if !entry.time.is_empty() {
                    json["time"] = Value::String(entry.time);
                }
                if !entry.subresource.is_empty() {
                    json["subresource"] = Value::String(entry.subresource);
                }
                json
            })
            .collect();
        metadata.insert("managedFields".to_owned(), Value::Array(list));
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn position(&self, actor: &Actor) -> Option<usize> {
        self.0.iter().position(|entry| {
            entry.manager == actor.manager
                && entry.operation == actor.operation
                && entry.subresource == actor.subresource
        })
    }

    fn set_of(&self, actor: &Actor) -> FieldSet {
        self.position(actor).map(|i| self.0[i].set.clone()).unwrap_or_default()
    }

    /// Replaces what the actor owns; the time moves only when that changes.
    fn record(&mut self, actor: &Actor, set: FieldSet) {
        match self.position(actor) {
            Some(i) => {
                let entry = &mut self.0[i];
                if entry.set != set {
                    entry.time.clone_from(&actor.time);
                }
                entry.api_version.clone_from(&actor.api_version);
                entry.set = set;
            }
            None => self.0.push(Entry {
                manager: actor.manager.clone(),
                operation: actor.operation,
                subresource: actor.subresource.clone(),
                api_version: actor.api_version.clone(),
                time: actor.time.clone(),
                set,
            }),
        }
    }

    fn others<'a>(&'a self, actor: &Actor) -> impl Iterator<Item = &'a Entry> {
        let mine = self.position(actor);
        self.0.iter().enumerate().filter(move |(i, _)| Some(*i) != mine).map(|(_, entry)| entry)
    }

    fn drop_from_others(&mut self, actor: &Actor, fields: &FieldSet) {
        let mine = self.position(actor);
        for (i, entry) in self.0.iter_mut().enumerate() {
            if Some(i) != mine {
                entry.set = entry.set.difference(fields);
            }
        }
    }
}

/// Applies `config` for `actor` on `live` (`None`: the object does not exist yet).
/// Returns the object with its managers; the caller defaults and validates it.
///
/// # Errors
/// 409 that names the managers of fields that would change, unless `force`.
pub fn apply(
    schema: &Schema,
    live: Option<&Value>,
    config: &Value,
    actor: &Actor,
    force: bool,
) -> Result<Value, ApiError> {
    let mut config = config.clone();
    if let Some(metadata) = config.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("managedFields");
        metadata.remove("resourceVersion");
    }
    typed::strip_nulls(Some(schema), &mut config);
    let wanted = owned(typed::set_of(Some(schema), &config));
    let Some(live) = live else {
        let mut managers = Managers::default();
        managers.record(actor, wanted);
        let mut object = config;
        managers.encode_into(&mut object);
        return Ok(object);
    };
    let mut managers = Managers::decode(live);
    let mut merged = typed::merge(Some(schema), live, &config);
    let difference = typed::difference(Some(schema), live, &merged);
    let mut conflicts = Vec::new();
    for other in managers.others(actor) {
        if other.manager == actor.manager && other.operation == actor.operation {
            continue; // The same applier through another endpoint.
        }
        for path in other.set.intersection(&difference.changed).paths() {
            conflicts.push((describe(other), path));
        }
    }
    if !conflicts.is_empty() && !force {
        return Err(ApiError::apply_conflict(&conflicts));
    }
    managers.drop_from_others(actor, &difference.changed);
    managers.drop_from_others(actor, &difference.removed);
    let before = managers.set_of(actor);
    let gone = before.difference(&wanted);
    if !gone.is_empty() {
        let kept = managers.others(actor).fold(wanted.clone(), |all, entry| all.union(&entry.set));
        typed::remove(Some(schema), &mut merged, &gone, &kept);
    }
    managers.record(actor, wanted);
    managers.encode_into(&mut merged);
    Ok(merged)
}

fn describe(entry: &Entry) -> String {
    let mut text = format!("{:?}", entry.manager);
    if !entry.subresource.is_empty() {
        text.push_str(&format!(" with subresource {:?}", entry.subresource));
    }
    if entry.operation == Operation::Update {
        text.push_str(&format!(" using {}", entry.api_version));
    }
    text
}

/// Records who changed what after a write that is not an apply: the actor owns what it
/// changed, nobody owns what it removed. `new` carries the result.
pub fn track_update(schema: &Schema, live: Option<&Value>, new: &mut Value, actor: &Actor) {
    let sent = new["metadata"].get("managedFields");
    // A single empty entry is the documented way to reset ownership.
    let reset = sent.and_then(Value::as_array).is_some_and(
        |list| matches!(list.as_slice(), [one] if one.as_object().is_some_and(|m| m.is_empty())),
    );
    let mut managers = if reset { Managers::default() } else { Managers::decode(new) };
    let Some(live) = live else {
        let mut managers = Managers::default();
        managers.record(actor, owned(typed::set_of(Some(schema), new)));
        managers.encode_into(new);
        return;
    };
    if managers.is_empty() && !reset {
        managers = Managers::decode(live);
    }
    let mut difference = typed::difference(Some(schema), live, new);
    difference.changed = owned(difference.changed);
    managers.drop_from_others(actor, &difference.changed);
    managers.drop_from_others(actor, &difference.removed);
    let mine = managers.set_of(actor).difference(&difference.removed).union(&difference.changed);
    if !mine.is_empty() || managers.position(actor).is_some() {
        managers.record(actor, mine);
    }
    managers.encode_into(new);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::schema::{builtin, parse};
    use proptest::prelude::*;

    fn actor(manager: &str, operation: Operation) -> Actor {
        Actor {
            manager: manager.into(),
            operation,
            subresource: String::new(),
            api_version: "v1".into(),
            time: "2026-01-01T00:00:00Z".into(),
        }
    }

    fn applier(manager: &str) -> Actor {
        actor(manager, Operation::Apply)
    }

    fn open() -> Schema {
        parse(&json!({"type": "object", "properties": {
            "metadata": {"type": "object"},
            "spec": {"type": "object", "x-kubernetes-preserve-unknown-fields": true, "properties": {
                "set": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
                "map": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"],
                    "items": {"type": "object", "properties": {"k": {"type": "string"}, "v": {"type": "integer"}}}},
            }},
        }}))
        .unwrap()
    }

    fn spec(value: Value) -> Value {
        json!({"metadata": {"name": "n"}, "spec": value})
    }

    #[test]
    fn a_field_no_longer_applied_goes_away() {
        let schema = open();
        let first =
            apply(&schema, None, &spec(json!({"a": 1, "b": {"c": 2}})), &applier("x"), false)
                .unwrap();
        let second =
            apply(&schema, Some(&first), &spec(json!({"a": 1})), &applier("x"), false).unwrap();
        assert_eq!(second["spec"], json!({"a": 1}));
    }

    #[test]
    fn a_shared_field_stays_until_the_last_owner_lets_go() {
        let schema = open();
        let one = apply(&schema, None, &spec(json!({"a": 1})), &applier("x"), false).unwrap();
        let two = apply(&schema, Some(&one), &spec(json!({"a": 1})), &applier("y"), false).unwrap();
        let three = apply(&schema, Some(&two), &spec(json!({})), &applier("x"), false).unwrap();
        assert_eq!(three["spec"]["a"], 1);
        let four = apply(&schema, Some(&three), &spec(json!({})), &applier("y"), false).unwrap();
        assert!(four["spec"].get("a").is_none());
    }

    #[test]
    fn another_managers_field_conflicts_until_forced() {
        let schema = open();
        let one = apply(&schema, None, &spec(json!({"a": 1})), &applier("x"), false).unwrap();
        let error =
            apply(&schema, Some(&one), &spec(json!({"a": 2})), &applier("y"), false).unwrap_err();
        assert_eq!(error.message, "Apply failed with 1 conflict: conflict with \"x\": .spec.a");
        let two = apply(&schema, Some(&one), &spec(json!({"a": 2})), &applier("y"), true).unwrap();
        assert_eq!(two["spec"]["a"], 2);
        // x no longer owns it, so its next apply without the field changes nothing.
        let three = apply(&schema, Some(&two), &spec(json!({})), &applier("x"), false).unwrap();
        assert_eq!(three["spec"]["a"], 2);
    }

    #[test]
    fn an_update_takes_ownership_of_what_it_changes() {
        let schema = open();
        let one =
            apply(&schema, None, &spec(json!({"a": 1, "b": 1})), &applier("x"), false).unwrap();
        let mut two = one.clone();
        two["spec"]["a"] = json!(5);
        track_update(&schema, Some(&one), &mut two, &actor("kubectl", Operation::Update));
        let error =
            apply(&schema, Some(&two), &spec(json!({"a": 1, "b": 1})), &applier("x"), false)
                .unwrap_err();
        assert_eq!(
            error.message,
            "Apply failed with 1 conflict: conflict with \"kubectl\" using v1: .spec.a"
        );
    }

    #[test]
    fn list_items_are_owned_one_by_one() {
        let schema = open();
        let one = apply(
            &schema,
            None,
            &spec(json!({"set": ["a"], "map": [{"k": "x", "v": 1}]})),
            &applier("x"),
            false,
        )
        .unwrap();
        let two = apply(
            &schema,
            Some(&one),
            &spec(json!({"set": ["b"], "map": [{"k": "y", "v": 2}]})),
            &applier("y"),
            false,
        )
        .unwrap();
        assert_eq!(two["spec"]["set"], json!(["a", "b"]));
        let three = apply(&schema, Some(&two), &spec(json!({})), &applier("x"), false).unwrap();
        assert_eq!(three["spec"], json!({"set": ["b"], "map": [{"k": "y", "v": 2}]}));
    }

    #[test]
    fn containers_of_a_pod_merge_by_name_and_defaults_of_others_survive() {
        let schema = builtin::schema("io.k8s.api.core.v1.Pod");
        let pod = |image: &str| {
            json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "a", "image": image,
            "ports": [{"containerPort": 80}]}]}})
        };
        let mut one = apply(&schema, None, &pod("i1"), &applier("x"), false).unwrap();
        one["spec"]["containers"][0]["terminationMessagePath"] = json!("/dev/log");
        one["spec"]["containers"][0]["ports"][0]["protocol"] = json!("TCP");
        let two = apply(&schema, Some(&one), &pod("i2"), &applier("x"), false).unwrap();
        assert_eq!(
            two["spec"]["containers"],
            json!([{"name": "a", "image": "i2", "terminationMessagePath": "/dev/log",
                "ports": [{"containerPort": 80, "protocol": "TCP"}]}])
        );
    }

    fn config() -> impl Strategy<Value = Value> {
        let names = prop::collection::btree_map("[ab]", 0..3i64, 0..3);
        let set = prop::collection::btree_set("[xyz]", 0..3);
        let map = prop::collection::btree_map("[pq]", 0..3i64, 0..3);
        (names, set, map).prop_map(|(names, set, map)| {
            let mut spec = json!({});
            for (name, value) in names {
                spec[name] = json!(value);
            }
            if !set.is_empty() {
                spec["set"] = json!(set);
            }
            if !map.is_empty() {
                spec["map"] = map.into_iter().map(|(k, v)| json!({"k": k, "v": v})).collect();
            }
            super::tests::spec(spec)
        })
    }

    proptest! {
        #[test]
        fn applying_twice_changes_nothing(a in config(), b in config()) {
            let schema = open();
            let one = apply(&schema, None, &a, &applier("x"), false).unwrap();
            let two = apply(&schema, Some(&one), &b, &applier("y"), true).unwrap();
            let again = apply(&schema, Some(&two), &b, &applier("y"), false).unwrap();
            prop_assert_eq!(again, two);
        }

        #[test]
        fn what_is_applied_is_there_and_what_nobody_applies_is_not(a in config(), b in config(), c in config()) {
            let schema = open();
            let one = apply(&schema, None, &a, &applier("x"), false).unwrap();
            let two = apply(&schema, Some(&one), &b, &applier("y"), true).unwrap();
            let three = apply(&schema, Some(&two), &c, &applier("x"), true).unwrap();
            let has = typed::set_of(Some(&schema), &three);
            let applied = |v: &Value| owned(typed::set_of(Some(&schema), v));
            prop_assert_eq!(typed::merge(Some(&schema), &three, &c), three);
            let anybody = applied(&b).union(&applied(&c)).union(&FieldSet::decode(&json!({"f:spec": {}})));
            prop_assert!(owned(has).difference(&anybody).is_empty());
        }

        #[test]
        fn a_second_appliers_fields_survive_the_firsts_withdrawal(a in config(), b in config()) {
            let schema = open();
            let one = apply(&schema, None, &a, &applier("x"), false).unwrap();
            let two = apply(&schema, Some(&one), &b, &applier("y"), true).unwrap();
            let three = apply(&schema, Some(&two), &spec(json!({})), &applier("x"), true).unwrap();
            let only_b = apply(&schema, None, &b, &applier("y"), false).unwrap();
            for (name, value) in only_b["spec"].as_object().unwrap() {
                if name.len() == 1 {
                    prop_assert_eq!(&three["spec"][name], value);
                }
            }
            prop_assert_eq!(typed::set_of(Some(&schema), &three["spec"]), typed::set_of(Some(&schema), &only_b["spec"]));
        }
    }
}
