//! The table of the page, read and written.

use std::{fmt::Write as _, fs, path::PathBuf};

use super::{corpus::Case, outcome::Outcome};

/// Written anew instead of compared.
pub fn writes() -> bool {
    std::env::var_os("DORMOUSE_WRITE_STRICT_HTTP").is_some()
}

const BEGIN: &str = "<!-- The tables below are written by proxy/tests/it/strictness. -->\n";

pub struct Table {
    before: String,
    versions: [String; 3],
    rows: Vec<(String, [String; 3])>,
}

fn file() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs/strict-http.md")
}

impl Table {
    pub fn read() -> Self {
        let text = fs::read_to_string(file()).unwrap();
        let (before, tables) = text.split_once(BEGIN).expect("the mark is gone from the page");
        let mut table =
            Self { before: before.to_owned(), versions: Default::default(), rows: Vec::new() };
        for line in tables.lines() {
            let cells: Vec<_> =
                line.split(" | ").map(|cell| cell.trim_matches(['|', ' '])).collect();
            let &[name, ours, nginx, haproxy, _] = cells.as_slice() else { continue };
            match name.strip_prefix('`').and_then(|name| name.strip_suffix('`')) {
                Some(name) => {
                    table.rows.push((name.to_owned(), [ours, nginx, haproxy].map(str::to_owned)))
                }
                None if name == "case" => {
                    let version =
                        |cell: &str| cell.rsplit(' ').next().unwrap_or_default().to_owned();
                    table.versions = [ours, nginx, haproxy].map(version);
                }
                None => {}
            }
        }
        table
    }

    pub fn cell(&self, case: &str, column: usize) -> Option<&str> {
        let row = self.rows.iter().find(|(name, _)| name == case).filter(|_| !writes());
        row.map(|(_, cells)| cells[column].as_str())
    }

    pub fn version(&self, column: usize) -> &str {
        &self.versions[column]
    }

    /// Compares a column with what was seen, or writes it.
    pub fn settle(
        &mut self,
        column: usize,
        version: Option<&str>,
        cases: &[Case],
        outcomes: &[Outcome],
    ) {
        let seen = cases.iter().zip(outcomes.iter().map(Outcome::to_string));
        if writes() {
            // The other columns as they are in the file now: another test may have written them.
            *self = Self::read();
            if let Some(version) = version {
                self.versions[column] = version.to_owned();
            }
            let rows = seen.map(|(case, cell)| {
                let old = self.rows.iter().find(|(name, _)| name == case.name);
                let mut cells = old.map(|(_, cells)| cells.clone()).unwrap_or_default();
                cells[column] = cell;
                (case.name.to_owned(), cells)
            });
            self.rows = rows.collect();
            return self.write(cases);
        }
        let mut wrong = String::new();
        for (case, cell) in seen {
            let expected = self.cell(case.name, column).unwrap_or("nothing");
            if expected != cell {
                let _ = writeln!(wrong, "{}: {cell}, and the page says {expected}", case.name);
            }
        }
        assert!(wrong.is_empty(), "column {column}:\n{wrong}");
    }

    fn write(&self, cases: &[Case]) {
        let mut text = format!("{}{BEGIN}", self.before);
        let mut part = "";
        for (case, (_, [ours, nginx, haproxy])) in cases.iter().zip(&self.rows) {
            if case.part != part {
                part = case.part;
                let [_, nginx, haproxy] = &self.versions;
                let _ = write!(
                    text,
                    "\n## {part}\n\n| case | Dormouse | nginx {nginx} | HAProxy {haproxy} | why |\n\
                     | --- | --- | --- | --- | --- |\n"
                );
            }
            let _ = writeln!(
                text,
                "| `{}` | {ours} | {nginx} | {haproxy} | {} |",
                case.name, case.remark
            );
        }
        fs::write(file(), text).unwrap();
    }

    /// Cases on which the columns differ.
    pub fn differing(&self) -> impl Iterator<Item = &str> {
        let differ = |cells: &[String; 3]| cells.iter().any(|cell| cell != &cells[0]);
        self.rows.iter().filter(move |(_, cells)| differ(cells)).map(|(name, _)| name.as_str())
    }
}
