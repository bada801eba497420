//! A service's settings: one TOML file, and `DORMOUSE_*` variables that override it.
//!
//! An unknown key is an error that names the key, its line and the nearest known one: a setting
//! that is silently ignored is a trap. Unknown variables are no error, since Kubernetes itself sets
//! `DORMOUSE_..._PORT` and the like beside a Service of that name.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use figment::{
    Figment,
    providers::{Format, Serialized, Toml},
};
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde_json::Value;
use toml_edit::{Document, Item, TableLike};

/// Prefix of the variables; `__` stands for the dot between a table and its key.
const PREFIX: &str = "DORMOUSE_";

#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    #[error("cannot read {path}: {source}; name another file with --config")]
    Read { path: PathBuf, source: io::Error },
    #[error("no settings file; name one with --config ({message})")]
    NoFile { message: String },
    #[error("{path}:{line}: {message}")]
    Syntax { path: PathBuf, line: usize, message: String },
    #[error("{path}:{line}: unknown key `{key}`{}", nearest.as_ref().map(|n| format!("; did you mean `{n}`?")).unwrap_or_default())]
    UnknownKey { path: PathBuf, line: usize, key: String, nearest: Option<String> },
    #[error("{where_}: {message}")]
    Value { where_: String, message: String },
}

/// Reads the file, if any, then the process's variables.
pub fn load<T: DeserializeOwned + JsonSchema>(file: Option<&Path>) -> Result<T, SettingsError> {
    let text = match file {
        Some(path) => fs::read_to_string(path)
            .map_err(|source| SettingsError::Read { path: path.to_owned(), source })?,
        None => String::new(),
    };
    let variables = std::env::vars().filter(|(name, _)| name.starts_with(PREFIX)).collect();
    let Some(file) = file else {
        return parse(Path::new("settings"), &text, &variables)
            .map_err(|error| SettingsError::NoFile { message: error.to_string() });
    };
    parse(file, &text, &variables)
}

fn parse<T: DeserializeOwned + JsonSchema>(
    path: &Path,
    text: &str,
    variables: &BTreeMap<String, String>,
) -> Result<T, SettingsError> {
    let schema = schemars::schema_for!(T).to_value();
    let document = Document::parse(text).map_err(|error| SettingsError::Syntax {
        path: path.to_owned(),
        line: line_of(text, error.span().map_or(0, |span| span.start)),
        message: error.message().to_owned(),
    })?;
    let check = Check { path, text, root: &schema };
    check.table(document.as_table(), &schema, "")?;

    let known = leaves(&schema, &schema);
    let variable_of = |key: &str| format!("{PREFIX}{}", key.replace('.', "__").to_uppercase());
    let overrides: Vec<(String, String)> = known
        .iter()
        .filter_map(|key| Some((key.clone(), variables.get(&variable_of(key))?.clone())))
        .collect();
    let mut figment = Figment::new().merge(Toml::string(text));
    for (key, value) in &overrides {
        // Figment's own parser for variables: numbers, booleans and lists are what they look like.
        let parsed: figment::value::Value = value.parse().unwrap_or_else(|never| match never {});
        figment = figment.merge(Serialized::default(key, parsed));
    }
    figment.extract().map_err(|error| {
        let key = error.path.join(".");
        let from_variable = overrides.iter().any(|(name, _)| *name == key);
        let line = position(&document, &error.path).map(|at| line_of(text, at));
        let where_ = match (from_variable, line) {
            (true, _) => variable_of(&key),
            (false, Some(line)) => format!("{}:{line}", path.display()),
            (false, None) => path.display().to_string(),
        };
        let mut message = error.kind.to_string();
        if !key.is_empty() {
            message = format!("`{key}`: {message}");
        }
        SettingsError::Value { where_, message }
    })
}

struct Check<'a> {
    path: &'a Path,
    text: &'a str,
    root: &'a Value,
}

impl Check<'_> {
    fn table(
        &self,
        table: &dyn TableLike,
        schema: &Value,
        above: &str,
    ) -> Result<(), SettingsError> {
        let schema = resolve(self.root, schema);
        let Some(known) = schema["properties"].as_object() else { return Ok(()) };
        for (name, item) in table.iter() {
            let key = join(above, name);
            let Some(child) = known.get(name) else {
                let span = table.get_key_value(name).and_then(|(key, _)| key.span());
                let nearest = known
                    .keys()
                    .map(|candidate| (strsim::damerau_levenshtein(candidate, name), candidate))
                    .filter(|(distance, candidate)| {
                        *distance <= candidate.len().max(name.len()) / 2
                    })
                    .min();
                return Err(SettingsError::UnknownKey {
                    path: self.path.to_owned(),
                    line: line_of(self.text, span.map_or(0, |span| span.start)),
                    key,
                    nearest: nearest.map(|(_, candidate)| join(above, candidate)),
                });
            };
            self.item(item, child, &key)?;
        }
        Ok(())
    }

    fn item(&self, item: &Item, schema: &Value, key: &str) -> Result<(), SettingsError> {
        if let Some(table) = item.as_table_like() {
            return self.table(table, schema, key);
        }
        let items = &resolve(self.root, schema)["items"];
        if let Some(tables) = item.as_array_of_tables() {
            for table in tables.iter() {
                self.table(table, items, key)?;
            }
        }
        for value in item.as_array().into_iter().flatten() {
            if let Some(table) = value.as_inline_table() {
                self.table(table, items, key)?;
            }
        }
        Ok(())
    }
}

/// Follows references, and looks through the `anyOf` that an `Option` makes.
fn resolve<'a>(root: &'a Value, schema: &'a Value) -> &'a Value {
    if let Some(reference) = schema["$ref"].as_str() {
        let pointer = reference.trim_start_matches('#');
        return root.pointer(pointer).map_or(schema, |found| resolve(root, found));
    }
    let some = schema["anyOf"].as_array().and_then(|any| any.iter().find(|s| s["type"] != "null"));
    some.map_or(schema, |found| resolve(root, found))
}

/// The dotted names of all keys that hold a value.
fn leaves(root: &Value, schema: &Value) -> Vec<String> {
    let schema = resolve(root, schema);
    let Some(properties) = schema["properties"].as_object() else { return Vec::new() };
    let mut found = Vec::new();
    for (name, child) in properties {
        let below = leaves(root, child);
        if below.is_empty() {
            found.push(name.clone());
        }
        found.extend(below.iter().map(|leaf| format!("{name}.{leaf}")));
    }
    found
}

fn position(document: &Document<&str>, path: &[String]) -> Option<usize> {
    let mut item = document.as_item();
    for name in path {
        item = item.get(name.as_str())?;
    }
    item.span().map(|span| span.start)
}

fn join(above: &str, name: &str) -> String {
    if above.is_empty() { name.to_owned() } else { format!("{above}.{name}") }
}

fn line_of(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|byte| *byte == b'\n').count() + 1
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde::Deserialize;

    use super::*;

    #[derive(Debug, PartialEq, Deserialize, JsonSchema)]
    #[serde(deny_unknown_fields)]
    struct Config {
        listen: String,
        #[serde(default, with = "humantime_serde")]
        #[schemars(with = "String")]
        grace: Duration,
        limits: Option<Limits>,
        #[serde(default)]
        hosts: Vec<Host>,
    }

    #[derive(Debug, PartialEq, Deserialize, JsonSchema)]
    #[serde(deny_unknown_fields)]
    struct Limits {
        connections: u32,
    }

    #[derive(Debug, PartialEq, Deserialize, JsonSchema)]
    #[serde(deny_unknown_fields)]
    struct Host {
        name: String,
    }

    fn read(text: &str, variables: &[(&str, &str)]) -> Result<Config, String> {
        let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        parse(Path::new("gate.toml"), text, &variables.iter().map(own).collect())
            .map_err(|error| error.to_string())
    }

    const GOOD: &str = "listen = \"[::1]:8443\"\ngrace = \"10s\"\n[limits]\nconnections = 7\n";

    #[test]
    fn a_file_is_read_and_variables_win() {
        let config = read(GOOD, &[("DORMOUSE_LIMITS__CONNECTIONS", "9")]).unwrap();
        assert_eq!(config.grace, Duration::from_secs(10));
        assert_eq!(config.limits, Some(Limits { connections: 9 }));
        let config = read("", &[("DORMOUSE_LISTEN", "127.0.0.1:1")]).unwrap();
        assert_eq!(config.listen, "127.0.0.1:1");
    }

    #[test]
    fn an_unknown_key_is_named_with_its_line_and_the_nearest() {
        let error = read(&format!("{GOOD}conections = 8\n"), &[]).unwrap_err();
        assert_eq!(
            error,
            "gate.toml:5: unknown key `limits.conections`; did you mean `limits.connections`?"
        );
        let error = read(&format!("xyzzy = 1\n{GOOD}"), &[]).unwrap_err();
        assert_eq!(error, "gate.toml:1: unknown key `xyzzy`");
        let error = read(&format!("{GOOD}[[hosts]]\nnam = \"a\"\n"), &[]).unwrap_err();
        assert_eq!(error, "gate.toml:6: unknown key `hosts.nam`; did you mean `hosts.name`?");
    }

    #[test]
    fn a_wrong_value_is_named_with_its_place() {
        let error = read("listen = 7", &[]).unwrap_err();
        assert!(error.starts_with("gate.toml:1: `listen`: "), "{error}");
        let error = read(GOOD, &[("DORMOUSE_LIMITS__CONNECTIONS", "many")]).unwrap_err();
        assert!(error.starts_with("DORMOUSE_LIMITS__CONNECTIONS: "), "{error}");
        let error = read("listen = ", &[]).unwrap_err();
        assert!(error.starts_with("gate.toml:1: "), "{error}");
        let error = read("", &[]).unwrap_err();
        assert!(error.contains("listen"), "{error}");
    }

    #[test]
    fn variables_of_kubernetes_services_are_no_error() {
        assert!(read(GOOD, &[("DORMOUSE_PROXY_PORT", "tcp://10.0.0.1:443")]).is_ok());
    }
}
