//! Sets of field paths, and their `FieldsV1` form.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

/// One step of a path.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Element {
    Field(String),
    /// A list item, by its key fields as canonical JSON.
    Key(String),
    /// An item of a set, as JSON.
    Value(String),
    Index(u64),
}

impl Element {
    fn encode(&self) -> String {
        match self {
            Self::Field(name) => format!("f:{name}"),
            Self::Key(json) => format!("k:{json}"),
            Self::Value(json) => format!("v:{json}"),
            Self::Index(i) => format!("i:{i}"),
        }
    }

    fn decode(text: &str) -> Option<Self> {
        let (tag, rest) = text.split_once(':')?;
        match tag {
            "f" => Some(Self::Field(rest.to_owned())),
            // Re-encoded, so that the order of keys and white space do not matter.
            "k" => Some(Self::Key(
                serde_json::from_str::<BTreeMap<String, Value>>(rest)
                    .ok()
                    .and_then(|m| serde_json::to_string(&m).ok())?,
            )),
            "v" => Some(Self::Value(serde_json::from_str::<Value>(rest).ok()?.to_string())),
            "i" => Some(Self::Index(rest.parse().ok()?)),
            _ => None,
        }
    }
}

/// A set of paths as a tree: whether this path is in it, and what is below.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FieldSet {
    pub here: bool,
    pub children: BTreeMap<Element, FieldSet>,
}

impl FieldSet {
    pub fn leaf() -> Self {
        Self { here: true, children: BTreeMap::new() }
    }

    pub fn is_empty(&self) -> bool {
        !self.here && self.children.values().all(FieldSet::is_empty)
    }

    pub fn field(&self, name: &str) -> Option<&FieldSet> {
        self.children.get(&Element::Field(name.to_owned()))
    }

    pub fn remove_field(&mut self, path: &[&str]) {
        match path {
            [] => {}
            [last] => {
                self.children.remove(&Element::Field((*last).to_owned()));
            }
            [first, rest @ ..] => {
                let element = Element::Field((*first).to_owned());
                if let Some(child) = self.children.get_mut(&element) {
                    child.remove_field(rest);
                    if child.is_empty() {
                        self.children.remove(&element);
                    }
                }
            }
        }
    }

    pub fn insert(&mut self, element: Element, set: FieldSet) {
        if !set.is_empty() {
            self.children.insert(element, set);
        }
    }

    pub fn union(&self, other: &FieldSet) -> FieldSet {
        let mut both = self.clone();
        both.here |= other.here;
        for (element, child) in &other.children {
            match both.children.get_mut(element) {
                Some(mine) => *mine = mine.union(child),
                None => {
                    both.children.insert(element.clone(), child.clone());
                }
            }
        }
        both
    }

    pub fn intersection(&self, other: &FieldSet) -> FieldSet {
        let mut both = FieldSet { here: self.here && other.here, children: BTreeMap::new() };
        for (element, child) in &self.children {
            if let Some(theirs) = other.children.get(element) {
                both.insert(element.clone(), child.intersection(theirs));
            }
        }
        both
    }

    pub fn difference(&self, other: &FieldSet) -> FieldSet {
        let mut rest = FieldSet { here: self.here && !other.here, children: BTreeMap::new() };
        for (element, child) in &self.children {
            match other.children.get(element) {
                Some(theirs) => rest.insert(element.clone(), child.difference(theirs)),
                None => rest.insert(element.clone(), child.clone()),
            }
        }
        rest
    }

    /// Every member as `.spec.list[k="v"].field`.
    pub fn paths(&self) -> Vec<String> {
        let mut paths = Vec::new();
        self.collect("", &mut paths);
        paths
    }

    fn collect(&self, path: &str, paths: &mut Vec<String>) {
        if self.here && !path.is_empty() {
            paths.push(path.to_owned());
        }
        for (element, child) in &self.children {
            let step = match element {
                Element::Field(name) => format!(".{name}"),
                Element::Key(json) => {
                    let keys: BTreeMap<String, Value> =
                        serde_json::from_str(json).unwrap_or_default();
                    let parts: Vec<String> = keys.iter().map(|(k, v)| format!("{k}={v}")).collect();
                    format!("[{}]", parts.join(","))
                }
                Element::Value(json) => format!("[={json}]"),
                Element::Index(i) => format!("[{i}]"),
            };
            child.collect(&format!("{path}{step}"), paths);
        }
    }

    /// The `FieldsV1` form.
    pub fn encode(&self) -> Value {
        let mut map = Map::new();
        if self.here && !self.children.is_empty() {
            map.insert(".".to_owned(), Value::Object(Map::new()));
        }
        for (element, child) in &self.children {
            map.insert(element.encode(), child.encode());
        }
        Value::Object(map)
    }

    /// Reads the `FieldsV1` form; parts that are not understood are left out.
    pub fn decode(value: &Value) -> FieldSet {
        Self::decode_node(value, true)
    }

    fn decode_node(value: &Value, root: bool) -> FieldSet {
        let Some(map) = value.as_object() else { return FieldSet::default() };
        let mut set = FieldSet {
            here: (map.is_empty() && !root) || map.contains_key("."),
            ..Self::default()
        };
        for (key, child) in map {
            if let Some(element) = Element::decode(key) {
                set.children.insert(element, Self::decode_node(child, false));
            }
        }
        set
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn fields_v1_round_trips() {
        let json = json!({"f:spec": {"f:a": {}, "f:list": {".": {}, "k:{\"name\":\"x\"}": {".": {}, "f:name": {}}},
            "f:set": {"v:\"one\"": {}}}});
        let set = FieldSet::decode(&json);
        assert_eq!(set.encode(), json);
        assert_eq!(
            set.paths(),
            [
                ".spec.a",
                ".spec.list",
                ".spec.list[name=\"x\"]",
                ".spec.list[name=\"x\"].name",
                ".spec.set[=\"one\"]"
            ]
        );
    }

    #[test]
    fn set_algebra() {
        let a = FieldSet::decode(&json!({"f:x": {}, "f:y": {"f:z": {}}}));
        let b = FieldSet::decode(&json!({"f:y": {"f:z": {}, "f:w": {}}}));
        assert_eq!(a.difference(&b).encode(), json!({"f:x": {}}));
        assert_eq!(a.intersection(&b).encode(), json!({"f:y": {"f:z": {}}}));
        assert_eq!(a.union(&b).encode(), json!({"f:x": {}, "f:y": {"f:z": {}, "f:w": {}}}));
    }
}
