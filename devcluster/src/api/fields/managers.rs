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

/// What of a set somebody can own.
pub(super) fn owned(mut set: FieldSet) -> FieldSet {
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
