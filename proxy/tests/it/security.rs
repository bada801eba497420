//! docs/security.md names a test for every attack, and every test that is named after one.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// Attacks on the HTTP edge, each of which must have a test.
const EDGE: [u32; 16] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 15, 16, 24, 26, 27];

fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            if !["target", "node_modules", "artifacts"].contains(&&*name) && !name.starts_with('.')
            {
                files(&path, found);
            }
        } else if name.ends_with(".rs") || name.ends_with(".test.js") {
            found.push(path);
        }
    }
}

/// Functions that carry a test attribute or are in `proptest!`, and files of end-to-end tests.
fn tests(root: &Path) -> BTreeSet<String> {
    let mut all = Vec::new();
    files(root, &mut all);
    let mut names = BTreeSet::new();
    for file in all {
        if file.extension().is_some_and(|kind| kind == "js") {
            names.insert(file.file_name().unwrap().to_string_lossy().into_owned());
            continue;
        }
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

/// Tests by attack.
fn table(text: &str) -> BTreeMap<u32, Vec<&str>> {
    let rows = text.lines().filter_map(|line| {
        let cells: Vec<_> = line.strip_prefix("| ")?.trim_end_matches(" |").split(" | ").collect();
        let [number, _, tests] = cells.as_slice() else { return None };
        let names = tests.split(", ").map(|name| name.trim_matches('`'));
        Some((number.parse().ok()?, names.collect()))
    });
    rows.collect()
}

#[test]
fn each_attack_has_tests_and_each_of_these_is_named() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let text = fs::read_to_string(root.join("docs/security.md")).unwrap();
    let (known, table) = (tests(&root), table(&text));
    for attack in EDGE {
        let own = format!("attack_{attack}_");
        let names = table.get(&attack).unwrap_or_else(|| panic!("attack {attack} has no line"));
        assert!(names.iter().any(|name| name.starts_with(&own)), "attack {attack} has no test");
    }
    let named: BTreeSet<_> = table.into_values().flatten().collect();
    for name in &named {
        assert!(known.contains(*name), "there is no test {name}");
    }
    for name in known.iter().filter(|name| name.starts_with("attack_")) {
        assert!(named.contains(&**name), "docs/security.md does not name {name}");
    }
}
