//! docs/conformance.md names a test for every rule; each of them has to exist.
#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|kind| kind == "rs") {
            found.push(path);
        }
    }
}

/// The functions that carry a test attribute, and those inside `proptest!`.
fn tests(crate_root: &Path) -> BTreeSet<String> {
    let mut files = Vec::new();
    sources(&crate_root.join("src"), &mut files);
    sources(&crate_root.join("tests"), &mut files);
    let mut names = BTreeSet::new();
    for file in files {
        let mut is_test = false;
        for line in fs::read_to_string(file).unwrap().lines().map(str::trim) {
            if line == "#[test]" || line.starts_with("#[tokio::test") {
                is_test = true;
            } else if let Some((_, rest)) = line.split_once("fn ")
                && std::mem::take(&mut is_test)
            {
                names.extend(rest.split('(').next().map(str::to_owned));
            }
        }
    }
    names
}

/// Sections, and the names in the last column of each line of a table.
fn table(text: &str) -> Vec<(&str, Vec<&str>)> {
    let mut rows = Vec::new();
    for line in text.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| ---")) {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [section, _, tests] = cells.as_slice() else { panic!("not three columns: {line}") };
        if *section != "Section" {
            rows.push((line, tests.split(',').map(|name| name.trim().trim_matches('`')).collect()));
        }
    }
    rows
}

#[test]
fn each_test_that_is_named_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(root.join("../docs/conformance.md")).unwrap();
    let known = tests(root);
    let rows = table(&text);
    assert!(rows.len() > 80, "the tables are read: {}", rows.len());
    for (line, names) in rows {
        assert!(!names.is_empty() && names.iter().all(|name| !name.is_empty()), "{line}");
        for name in names {
            assert!(known.contains(name), "there is no test {name}: {line}");
        }
    }
    for standard in [
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
    ] {
        assert!(text.contains(&format!("\n## {standard}")), "{standard}");
    }
}
