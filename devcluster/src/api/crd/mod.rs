//! CustomResourceDefinitions: what they define, whether they are valid, and their end.

mod structural;

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::meta;
use super::registry::{Column, Registry, Resource, ScalePaths, group_version, store_key};
use super::rest::App;
use super::schema::{self, Schema};
use super::status::{FieldError, FieldErrorKind};
use super::store::{Change, WatchFrom};

pub const GROUP: &str = "apiextensions.k8s.io";
pub const PLURAL: &str = "customresourcedefinitions";
pub const STORE_KEY: &str = "apiextensions.k8s.io/customresourcedefinitions";
const FINALIZER: &str = "customresourcecleanup.apiextensions.k8s.io";

pub fn group_and_plural(definition: &Value) -> (&str, &str) {
    let spec = &definition["spec"];
    (spec["group"].as_str().unwrap_or(""), spec["names"]["plural"].as_str().unwrap_or(""))
}

fn strings(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

/// The resource types that a definition serves, one per served version.
pub fn resources(definition: &Value) -> Vec<Resource> {
    let spec = &definition["spec"];
    let names = &spec["names"];
    let (group, plural) = group_and_plural(definition);
    let kind = names["kind"].as_str().unwrap_or("");
    let versions = spec["versions"].as_array().map(Vec::as_slice).unwrap_or_default();
    let storage = versions
        .iter()
        .find(|version| version["storage"] == true)
        .and_then(|version| version["name"].as_str())
        .unwrap_or("v1");
    versions
        .iter()
        .filter(|version| version["served"] == true)
        .filter_map(|version| {
            let published = version["schema"]["openAPIV3Schema"].clone();
            let schema = match schema::parse(&published) {
                Ok(schema) => root(schema),
                Err(error) => {
                    tracing::error!(%error, kind, "a stored definition has a schema that cannot be used");
                    return None;
                }
            };
            let subresources = &version["subresources"];
            Some(Resource {
                group: group.to_owned(),
                version: version["name"].as_str()?.to_owned(),
                kind: kind.to_owned(),
                list_kind: names["listKind"].as_str().map_or_else(|| format!("{kind}List"), str::to_owned),
                plural: plural.to_owned(),
                singular: names["singular"].as_str().map_or_else(|| kind.to_lowercase(), str::to_owned),
                short_names: strings(&names["shortNames"]),
                categories: strings(&names["categories"]),
                namespaced: spec["scope"] == "Namespaced",
                status: subresources["status"].is_object(),
                scale: scale_paths(&subresources["scale"]),
                subresources: Vec::new(),
                generation: true,
                schema: Arc::new(schema),
                published: Some(published),
                columns: columns(version),
                custom: true,
                storage_api_version: group_version(group, storage),
                store_key: store_key(group, plural),
            })
        })
        .collect()
}

/// A custom resource's root has the metadata that every object has.
fn root(mut schema: Schema) -> Schema {
    schema.properties.insert("metadata".to_owned(), schema::builtin::OBJECT_META.clone());
    let text = Arc::new(Schema { kind: Some(schema::Type::String), ..Schema::default() });
    schema.properties.entry("apiVersion".to_owned()).or_insert_with(|| text.clone());
    schema.properties.entry("kind".to_owned()).or_insert(text);
    schema
}

/// `.spec.replicas` as field names.
fn simple_path(path: &Value) -> Option<Vec<String>> {
    let path = path.as_str()?.strip_prefix('.')?;
    let fields: Vec<String> = path.split('.').map(str::to_owned).collect();
    fields.iter().all(|field| !field.is_empty() && !field.contains('[')).then_some(fields)
}

fn scale_paths(scale: &Value) -> Option<ScalePaths> {
    Some(ScalePaths {
        spec: simple_path(&scale["specReplicasPath"])?,
        status: simple_path(&scale["statusReplicasPath"])?,
        selector: simple_path(&scale["labelSelectorPath"]),
    })
}

fn columns(version: &Value) -> Vec<Column> {
    let text = |value: &Value| value.as_str().unwrap_or("").to_owned();
    let listed = version["additionalPrinterColumns"].as_array();
    let mut columns: Vec<Column> = listed
        .into_iter()
        .flatten()
        .map(|column| Column {
            name: text(&column["name"]),
            kind: text(&column["type"]),
            format: text(&column["format"]),
            description: text(&column["description"]),
            priority: column["priority"].as_i64().unwrap_or(0),
            json_path: text(&column["jsonPath"]),
        })
        .collect();
    if columns.is_empty() {
        columns.push(Column {
            name: "Age".to_owned(),
            kind: "date".to_owned(),
            format: String::new(),
            description: "CreationTimestamp is the time at which this object was created."
                .to_owned(),
            priority: 0,
            json_path: ".metadata.creationTimestamp".to_owned(),
        });
    }
    columns
}

/// What a definition gets when it is written: defaults, and the status of one that is
/// served at once.
pub fn defaults(object: &mut Value, old: Option<&Value>, now: Timestamp) {
    let kind = object["spec"]["names"]["kind"].as_str().unwrap_or("").to_owned();
    if object["spec"]["names"].is_object() {
        let names = meta::map_mut(&mut object["spec"], "names");
        names.entry("listKind").or_insert_with(|| format!("{kind}List").into());
        names.entry("singular").or_insert_with(|| kind.to_lowercase().into());
    }
    if object["spec"].is_object() {
        let spec = meta::map_mut(object, "spec");
        spec.entry("conversion").or_insert_with(|| json!({"strategy": "None"}));
    }
    if old.is_none() {
        let metadata = meta::metadata_mut(object);
        let finalizers = metadata.entry("finalizers").or_insert_with(|| json!([]));
        if let Some(list) = finalizers.as_array_mut()
            && !list.iter().any(|finalizer| finalizer == FINALIZER)
        {
            list.push(FINALIZER.into());
        }
    }
    let storage = object["spec"]["versions"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|version| version["storage"] == true)
        .and_then(|version| version["name"].as_str())
        .unwrap_or("")
        .to_owned();
    let since = old
        .and_then(|old| old["status"]["conditions"][0]["lastTransitionTime"].as_str())
        .map_or_else(|| meta::stamp(now), str::to_owned);
    let mut stored = old.map(|old| strings(&old["status"]["storedVersions"])).unwrap_or_default();
    if !storage.is_empty() && !stored.contains(&storage) {
        stored.push(storage);
    }
    let accepted = object["spec"]["names"].clone();
    object["status"] = json!({
        "acceptedNames": accepted,
        "storedVersions": stored,
        "conditions": [
            {"type": "NamesAccepted", "status": "True", "reason": "NoConflicts", "message": "no conflicts found", "lastTransitionTime": since},
            {"type": "Established", "status": "True", "reason": "InitialNamesAccepted", "message": "the initial names have been accepted", "lastTransitionTime": since},
        ],
    });
}

/// Formats that API servers know; with any other they warn, and do not check it.
const FORMATS: [&str; 31] = [
    "bsonobjectid",
    "byte",
    "cidr",
    "creditcard",
    "date",
    "date-time",
    "datetime",
    "double",
    "duration",
    "email",
    "float",
    "hexcolor",
    "hostname",
    "int32",
    "int64",
    "ipv4",
    "ipv6",
    "isbn",
    "isbn10",
    "isbn13",
    "k8s-long-name",
    "k8s-short-name",
    "mac",
    "password",
    "rgbcolor",
    "ssn",
    "uri",
    "uuid",
    "uuid3",
    "uuid4",
    "uuid5",
];

/// What a client is told of a definition that is accepted.
pub fn warnings(definition: &Value) -> Vec<String> {
    fn walk(schema: &Value, found: &mut std::collections::BTreeSet<String>) {
        match schema {
            Value::Object(map) => {
                if let Some(Value::String(format)) = map.get("format")
                    && !FORMATS.contains(&format.as_str())
                {
                    found.insert(format.clone());
                }
                map.values().for_each(|child| walk(child, found));
            }
            Value::Array(list) => list.iter().for_each(|child| walk(child, found)),
            _ => {}
        }
    }
    let mut found = std::collections::BTreeSet::new();
    for version in definition["spec"]["versions"].as_array().into_iter().flatten() {
        walk(&version["schema"]["openAPIV3Schema"], &mut found);
    }
    found.into_iter().map(|format| format!("unrecognized format {format:?}")).collect()
}

/// What is wrong with a definition.
pub fn validate(registry: &Registry, object: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let spec = &object["spec"];
    let (group, plural) = group_and_plural(object);
    let mut required = |field: &str, value: &Value| {
        if value.as_str().is_none_or(str::is_empty) {
            errors.push(FieldError::required(field));
        }
    };
    required("spec.group", &spec["group"]);
    required("spec.names.plural", &spec["names"]["plural"]);
    required("spec.names.kind", &spec["names"]["kind"]);
    required("spec.scope", &spec["scope"]);
    if !matches!(spec["scope"].as_str(), Some("Namespaced" | "Cluster") | None) {
        errors.push(FieldError::new(
            "spec.scope",
            FieldErrorKind::NotSupported,
            format!("{}: supported values: \"Cluster\", \"Namespaced\"", spec["scope"]),
        ));
    }
    let expected = format!("{plural}.{group}");
    if meta::name(object) != expected {
        errors.push(FieldError::invalid(
            "metadata.name",
            &object["metadata"]["name"],
            "must be spec.names.plural+\".\"+spec.group",
        ));
    }
    if !group.contains('.') {
        errors.push(FieldError::invalid(
            "spec.group",
            &spec["group"],
            "should be a domain with at least one dot",
        ));
    }
    if registry.iter().any(|r| !r.custom && r.group == group) {
        errors.push(FieldError::invalid("spec.group", &spec["group"], "is a built-in group"));
    }
    let kind = spec["names"]["kind"].as_str().unwrap_or("");
    if registry.iter().any(|r| r.custom && r.group == group && r.kind == kind && r.plural != plural)
    {
        errors.push(FieldError::invalid(
            "spec.names.kind",
            &spec["names"]["kind"],
            format!("{kind} is already defined in the group {group}"),
        ));
    }
    if let Some(old) = old {
        for field in ["group", "scope"] {
            if old["spec"][field] != spec[field] {
                errors.push(FieldError::invalid(
                    format!("spec.{field}"),
                    &spec[field],
                    "field is immutable",
                ));
            }
        }
    }
    let versions = spec["versions"].as_array().map(Vec::as_slice).unwrap_or_default();
    if versions.iter().filter(|version| version["storage"] == true).count() != 1 {
        errors.push(FieldError::new(
            "spec.versions",
            FieldErrorKind::Invalid,
            "must have exactly one version marked as storage version",
        ));
    }
    for (i, version) in versions.iter().enumerate() {
        let path = format!("spec.versions[{i}]");
        if version["name"].as_str().is_none_or(str::is_empty) {
            errors.push(FieldError::required(format!("{path}.name")));
        }
        let schema = &version["schema"]["openAPIV3Schema"];
        if !schema.is_object() {
            errors.push(FieldError::required(format!("{path}.schema.openAPIV3Schema")));
            continue;
        }
        if schema["type"] != "object" {
            errors.push(FieldError::invalid(
                format!("{path}.schema.openAPIV3Schema.type"),
                &schema["type"],
                "must be object at the root",
            ));
        }
        match schema::parse(schema) {
            Ok(parsed) => {
                let at = format!("{path}.schema.openAPIV3Schema");
                structural::check(schema, &parsed, &at, &mut errors);
                errors.extend(super::cel::check_rules(&parsed, &at));
            }
            Err(error) => {
                let at = format!("{path}.schema.openAPIV3Schema{}", error.path);
                errors.push(FieldError::new(at, FieldErrorKind::Invalid, error.why));
            }
        }
        for (j, column) in
            version["additionalPrinterColumns"].as_array().into_iter().flatten().enumerate()
        {
            let json_path = column["jsonPath"].as_str().unwrap_or("");
            if let Err(why) = super::table::jsonpath::parse(json_path) {
                errors.push(FieldError::invalid(
                    format!("{path}.additionalPrinterColumns[{j}].jsonPath"),
                    &column["jsonPath"],
                    why,
                ));
            }
        }
    }
    errors
}

/// Removes all objects of a definition that is being deleted, then lets it go.
pub fn clean_up(app: Arc<App>, name: String) {
    let shutdown = app.shutdown.clone();
    tokio::spawn(async move {
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = run_clean_up(&app, &name) => {}
        }
    });
}

async fn run_clean_up(app: &Arc<App>, name: &str) {
    let Some(definition) = app.store.get(STORE_KEY, "", name) else { return };
    let (group, plural) = group_and_plural(&definition);
    let key = store_key(group, plural);
    loop {
        let Ok(mut watch) = app.store.watch(&key, "", WatchFrom::Now) else { return };
        let objects = app.store.all(&key, "");
        if objects.is_empty() {
            break;
        }
        for object in objects {
            super::rest::delete_custom(app, &key, &object).await;
        }
        if app.store.all(&key, "").is_empty() {
            break;
        }
        // Some wait for their finalizers: go on when something changes.
        let _ = tokio::time::timeout(Duration::from_secs(60), watch.live.recv()).await;
    }
    let ended = app
        .store
        .write(&STORE_KEY.into(), "", name, |current| {
            let Some(current) = current.filter(|current| meta::is_terminating(current)) else {
                return Ok(Change::Keep(definition.clone()));
            };
            let mut object = (**current).clone();
            let rest: Vec<Value> = meta::finalizers(&object)
                .into_iter()
                .filter(|f| *f != FINALIZER)
                .map(Value::from)
                .collect();
            let none_left = rest.is_empty();
            meta::metadata_mut(&mut object).insert("finalizers".to_owned(), rest.into());
            Ok(if none_left { Change::Delete(object) } else { Change::Put(object) })
        })
        .await;
    match ended {
        Ok((object, super::store::Wrote::Deleted)) => app.sync_definition(&object),
        Ok(_) => {}
        Err(error) => tracing::warn!(%error, name, "cannot finish deleting a definition"),
    }
}
