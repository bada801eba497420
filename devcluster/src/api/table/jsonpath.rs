//! The part of JSON path that printer columns use: `.a.b`, `['a']`, `[0]`, `[*]`, `.*`,
//! `..name` and filters `[?(@.type=="Ready")]`.

use serde_json::Value;

#[derive(Debug, Clone, PartialEq)]
enum Step {
    Field(String),
    Index(i64),
    All,
    Descend(String),
    /// Items whose field at the path compares with the value.
    Filter(Vec<String>, Compare, Value),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Compare {
    Exists,
    Equal,
    NotEqual,
}

/// A parsed path.
#[derive(Debug, Clone, PartialEq)]
pub struct JsonPath(Vec<Step>);

/// Parses a path, with or without its braces.
///
/// # Errors
/// What is not understood, in words.
pub fn parse(text: &str) -> Result<JsonPath, String> {
    let mut rest = text.trim();
    rest = rest.strip_prefix('{').and_then(|inner| inner.strip_suffix('}')).unwrap_or(rest);
    rest = rest.strip_prefix('$').unwrap_or(rest);
    if rest.is_empty() {
        return Err("must not be empty".to_owned());
    }
    let mut steps = Vec::new();
    while !rest.is_empty() {
        if let Some(after) = rest.strip_prefix("..") {
            let (name, after) = word(after);
            if name.is_empty() {
                return Err(format!("a name must follow \"..\" in {text:?}"));
            }
            steps.push(Step::Descend(name));
            rest = after;
        } else if let Some(after) = rest.strip_prefix(".*") {
            steps.push(Step::All);
            rest = after;
        } else if let Some(after) = rest.strip_prefix('.') {
            if after.starts_with('[') {
                rest = after;
                continue;
            }
            let (name, after) = word(after);
            if name.is_empty() {
                return Err(format!("a name must follow \".\" in {text:?}"));
            }
            steps.push(Step::Field(name));
            rest = after;
        } else if let Some(after) = rest.strip_prefix('[') {
            let end =
                bracket_end(after).ok_or_else(|| format!("a bracket is not closed in {text:?}"))?;
            steps.push(bracket(after[..end].trim())?);
            rest = &after[end + 1..];
        } else {
            return Err(format!("{text:?} must begin with a dot"));
        }
    }
    Ok(JsonPath(steps))
}

/// A field name up to the next step; a backslash takes the next character as it is.
fn word(text: &str) -> (String, &str) {
    let mut name = String::new();
    let mut chars = text.char_indices();
    while let Some((i, c)) = chars.next() {
        match c {
            '\\' => {
                if let Some((_, escaped)) = chars.next() {
                    name.push(escaped);
                }
            }
            '.' | '[' => return (name, &text[i..]),
            other => name.push(other),
        }
    }
    (name, "")
}

/// Where the bracket closes, past quoted text and nested brackets.
fn bracket_end(text: &str) -> Option<usize> {
    let (mut depth, mut quote) = (0, None);
    for (i, c) in text.char_indices() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (Some(_), _) => {}
            (None, '\'' | '"') => quote = Some(c),
            (None, '[') => depth += 1,
            (None, ']') if depth == 0 => return Some(i),
            (None, ']') => depth -= 1,
            _ => {}
        }
    }
    None
}

fn unquote(text: &str) -> Option<&str> {
    let text = text.trim();
    let inner = |quote| text.strip_prefix(quote).and_then(|rest: &str| rest.strip_suffix(quote));
    inner('\'').or_else(|| inner('"'))
}

fn bracket(text: &str) -> Result<Step, String> {
    if text == "*" {
        return Ok(Step::All);
    }
    if let Some(name) = unquote(text) {
        return Ok(Step::Field(name.to_owned()));
    }
    if let Ok(index) = text.parse() {
        return Ok(Step::Index(index));
    }
    let filter = text.strip_prefix("?(").and_then(|rest| rest.strip_suffix(')'));
    let Some(filter) = filter else {
        return Err(format!("[{text}] is not supported in a column's path"));
    };
    let (left, compare, right) = match (filter.split_once("=="), filter.split_once("!=")) {
        (Some((left, right)), _) => (left, Compare::Equal, literal(right)),
        (_, Some((left, right))) => (left, Compare::NotEqual, literal(right)),
        _ => (filter, Compare::Exists, Value::Null),
    };
    let left = left
        .trim()
        .strip_prefix('@')
        .ok_or_else(|| format!("the filter {filter:?} must begin with @"))?;
    let fields = match left {
        "" => Vec::new(),
        path => {
            let steps = parse(path)?.0;
            let fields: Option<Vec<String>> = steps
                .into_iter()
                .map(|step| match step {
                    Step::Field(name) => Some(name),
                    _ => None,
                })
                .collect();
            fields.ok_or_else(|| format!("the filter {filter:?} may only name fields"))?
        }
    };
    Ok(Step::Filter(fields, compare, right))
}

fn literal(text: &str) -> Value {
    match unquote(text) {
        Some(text) => text.into(),
        None => serde_json::from_str(text.trim()).unwrap_or_else(|_| text.trim().into()),
    }
}

impl JsonPath {
    /// All values at the path.
    pub fn find<'v>(&self, value: &'v Value) -> Vec<&'v Value> {
        let mut found = vec![value];
        for step in &self.0 {
            let mut next = Vec::new();
            for value in found {
                take(step, value, &mut next);
            }
            found = next;
        }
        found
    }
}

fn take<'v>(step: &Step, value: &'v Value, out: &mut Vec<&'v Value>) {
    match (step, value) {
        (Step::Field(name), Value::Object(map)) => out.extend(map.get(name)),
        (Step::Index(index), Value::Array(list)) => {
            let length = i64::try_from(list.len()).unwrap_or(i64::MAX);
            let at = if *index < 0 { length + index } else { *index };
            out.extend(usize::try_from(at).ok().and_then(|at| list.get(at)));
        }
        (Step::All, Value::Array(list)) => out.extend(list),
        (Step::All, Value::Object(map)) => out.extend(map.values()),
        (Step::Descend(name), value) => descend(name, value, out),
        (Step::Filter(fields, compare, wanted), Value::Array(list)) => {
            for item in list {
                let field = fields.iter().try_fold(item, |at, name| at.get(name));
                let fits = match compare {
                    Compare::Exists => field.is_some(),
                    Compare::Equal => field == Some(wanted),
                    Compare::NotEqual => field != Some(wanted),
                };
                if fits {
                    out.push(item);
                }
            }
        }
        _ => {}
    }
}

fn descend<'v>(name: &str, value: &'v Value, out: &mut Vec<&'v Value>) {
    match value {
        Value::Object(map) => {
            out.extend(map.get(name));
            map.values().for_each(|child| descend(name, child, out));
        }
        Value::Array(list) => list.iter().for_each(|child| descend(name, child, out)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn find(path: &str) -> Vec<Value> {
        let value = json!({"metadata": {"annotations": {"a.b/c": "x"}}, "spec": {"list": [1, 2, 3]},
            "status": {"conditions": [{"type": "Ready", "status": "True"}, {"type": "Other", "status": "False"}]}});
        parse(path).unwrap().find(&value).into_iter().cloned().collect()
    }

    #[test]
    fn paths_of_printer_columns() {
        assert_eq!(find(".spec.list[1]"), [json!(2)]);
        assert_eq!(find("{.spec.list[-1]}"), [json!(3)]);
        assert_eq!(find(".spec.list[*]"), [json!(1), json!(2), json!(3)]);
        assert_eq!(find(".status.conditions[?(@.type==\"Ready\")].status"), [json!("True")]);
        assert_eq!(find(".status.conditions[?(@.type=='Other')].status"), [json!("False")]);
        assert_eq!(find(".metadata.annotations.a\\.b/c"), [json!("x")]);
        assert_eq!(find(".metadata.annotations['a.b/c']"), [json!("x")]);
        assert_eq!(find(".gone.x"), Vec::<Value>::new());
        assert_eq!(find("..type").len(), 2);
        for bad in ["", "spec", ".a[", ".a[?(x)]", "."] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }
}
