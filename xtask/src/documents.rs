//! Tests that documents name as their proof: each of them exists.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context as _;

/// Attacks on the HTTP edge, each of which must have a test of its name.
const EDGE: [u32; 16] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 15, 16, 24, 26, 27];

/// Standards that have a section of docs/conformance.md.
const STANDARDS: [&str; 11] = [
    "OpenID Connect Core",
    "OpenID Connect Discovery",
    "RFC 6749",
    "RFC 6750",
    "RFC 7636",
    "RFC 8628",
    "RFC 7009",
    "RFC 7662",
    "RFC 9068",
    "RFC 9207",
    "RFC 9700",
];

/// Rules that docs/conformance.md has at least: fewer are a table that was not read.
const RULES: usize = 80;

pub fn faults(root: &Path) -> anyhow::Result<Vec<String>> {
    let read = |name: &str| fs::read_to_string(root.join(name)).with_context(|| name.to_owned());
    let mut faults = attacks(&read("docs/security.md")?, &tests(root)?);
    faults.extend(conformance(&read("docs/conformance.md")?, &tests(&root.join("authserver"))?));
    Ok(faults)
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() {
            let made = ["target", "node_modules", "artifacts"].contains(&&*name);
            if !made && !name.starts_with('.') {
                sources(&path, found)?;
            }
        } else if name.ends_with(".rs") || name.ends_with(".test.js") {
            found.push(path);
        }
    }
    Ok(())
}

/// Functions that carry a test attribute or are in `proptest!`, and files of end-to-end tests.
fn tests(root: &Path) -> anyhow::Result<BTreeSet<String>> {
    let mut files = Vec::new();
    sources(root, &mut files)?;
    let mut names = BTreeSet::new();
    for file in files {
        if file.extension().is_some_and(|kind| kind == "js") {
            names.extend(file.file_name().map(|name| name.to_string_lossy().into_owned()));
            continue;
        }
        let mut is_test = false;
        for line in fs::read_to_string(file)?.lines().map(str::trim) {
            if line == "#[test]" || line.starts_with("#[tokio::test") {
                is_test = true;
            } else if let Some((_, rest)) = line.split_once("fn ")
                && std::mem::take(&mut is_test)
            {
                names.extend(rest.split('(').next().map(str::to_owned));
            }
        }
    }
    Ok(names)
}

/// The first cell, and the names in the last one. `Err` with the line that has not three cells.
type Row<'a> = Result<(&'a str, Vec<&'a str>), &'a str>;

/// All lines of tables.
fn rows(text: &str) -> impl Iterator<Item = Row<'_>> {
    let lines = text.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| ---"));
    lines.map(|line| {
        let cells: Vec<_> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [first, _, tests] = cells.as_slice() else { return Err(line) };
        Ok((*first, tests.split(',').map(|name| name.trim().trim_matches('`')).collect()))
    })
}

fn attacks(text: &str, known: &BTreeSet<String>) -> Vec<String> {
    let table: BTreeMap<u32, Vec<&str>> = rows(text)
        .filter_map(Result::ok)
        .filter_map(|(number, tests)| Some((number.parse().ok()?, tests)))
        .collect();
    let mut faults = Vec::new();
    for attack in EDGE {
        let own = format!("attack_{attack}_");
        let names = table.get(&attack).into_iter().flatten();
        if !names.into_iter().any(|name| name.starts_with(&own)) {
            faults.push(format!("docs/security.md names no test for attack {attack}"));
        }
    }
    let named: BTreeSet<&str> = table.into_values().flatten().collect();
    let missing = named.iter().filter(|name| !known.contains(**name));
    faults.extend(missing.map(|name| format!("docs/security.md: there is no test `{name}`")));
    let unsaid =
        known.iter().filter(|name| name.starts_with("attack_") && !named.contains(&***name));
    faults.extend(unsaid.map(|name| format!("docs/security.md does not name `{name}`")));
    faults
}

fn conformance(text: &str, known: &BTreeSet<String>) -> Vec<String> {
    let mut faults = Vec::new();
    let mut rules = 0;
    for row in rows(text) {
        let (section, names) = match row {
            Ok(("Section", _)) => continue,
            Ok(row) => row,
            Err(line) => {
                faults.push(format!("docs/conformance.md: not three columns: {line}"));
                continue;
            }
        };
        rules += 1;
        let missing = names.iter().filter(|name| !known.contains(**name));
        let fault = |name| format!("docs/conformance.md, {section}: there is no test `{name}`");
        faults.extend(missing.map(fault));
    }
    if rules <= RULES {
        faults.push(format!("docs/conformance.md has {rules} rules only"));
    }
    let unsaid = STANDARDS.iter().filter(|name| !text.contains(&format!("\n## {name}")));
    faults.extend(unsaid.map(|name| format!("docs/conformance.md has no section on {name}")));
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn every_proof_that_is_named_exists() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        assert_eq!(faults(&root).expect("they are read"), [""; 0]);
    }

    #[test]
    fn attacks_without_a_test_and_tests_without_a_line_are_found() {
        let lines = EDGE.map(|attack| format!("| {attack} | what | `attack_{attack}_a` |\n"));
        let tests = EDGE.map(|attack| format!("attack_{attack}_a"));
        let tests: Vec<_> = tests.iter().map(String::as_str).collect();
        let text = lines.concat();
        assert_eq!(attacks(&text, &known(&tests)), [""; 0]);
        assert_eq!(attacks(&text.replace("attack_7_a", "x.test.js"), &known(&tests)).len(), 3);
        assert_eq!(attacks(&text.replace("| 7 |", "| seven |"), &known(&tests)).len(), 2);
        assert_eq!(attacks(&text, &known(&tests[1..])).len(), 1);
    }

    #[test]
    fn rules_without_a_test_and_standards_without_rules_are_found() {
        let sections = STANDARDS.map(|name| format!("\n## {name}\n"));
        let text = sections.concat() + &"| 1 | what | `a`, `b` |\n".repeat(RULES + 1);
        assert_eq!(conformance(&text, &known(&["a", "b"])), [""; 0]);
        assert_eq!(conformance(&text, &known(&["a"])).len(), RULES + 1);
        assert_eq!(conformance(&text.replace("## RFC 9700", ""), &known(&["a", "b"])).len(), 1);
        assert_eq!(conformance(&text.replacen("| 1 |", "1", 1), &known(&["a", "b"])).len(), 1);
        let wide = text.clone() + "| 1 | what | why | `a` |\n";
        assert_eq!(conformance(&wide, &known(&["a", "b"])).len(), 1);
        assert_eq!(conformance(&text.replacen("`a`, `b`", "", 1), &known(&["a", "b"])).len(), 1);
    }
}
