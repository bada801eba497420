//! Recordings of real programs, reduced to what the judge sees (`scripts/reduce-traces.py`): where
//! nobody did anything, nothing counts, and where somebody did, every minute of it does.
#![allow(clippy::unwrap_used)]

use std::{
    fs,
    path::{Path, PathBuf},
};

use domain::classify::replay::{Counts, replay};

/// Minutes in which somebody did something that left no trace, and why.
const BLIND_SPOTS: [(&str, &[i64], &str); 4] = [
    ("jl_Gread", &[0, 1, 2, 3, 4], "scrolling and clicking within a notebook sends nothing"),
    (
        "jl_Gtype",
        &[0, 1, 3, 4],
        "typing is seen when JupyterLab saves, every two minutes, but for the first time",
    ),
    ("jupyter_ai_active", &[0], "a message to a chat without a model is not sent"),
    ("lab_plain_active", &[0], "the mouse was moved, and nothing else"),
];

fn all() -> Vec<Counts> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/traces");
    let mut files: Vec<_> =
        fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    let read = |file: &PathBuf| replay(&fs::read_to_string(file).unwrap()).unwrap();
    files.iter().map(read).collect()
}

#[test]
fn nobody_is_seen_where_nobody_is() {
    let quiet = ["idle", "hidden", "output-only"];
    let all = all();
    let quiet: Vec<_> = all.iter().filter(|counts| quiet.contains(&&*counts.label)).collect();
    assert!(quiet.len() > 50);
    for counts in quiet {
        assert_eq!(counts.active_minutes, 0, "{counts:?}");
    }
}

#[test]
fn whoever_is_there_is_seen_in_every_minute() {
    for counts in all().iter().filter(|counts| counts.label.starts_with("active")) {
        let unseen: Vec<_> = counts.acts.difference(&counts.minutes).copied().collect();
        let expected = BLIND_SPOTS.iter().find(|(case, ..)| *case == counts.case);
        assert_eq!(unseen, expected.map_or(&[][..], |(_, minutes, _)| minutes), "{counts:?}");
    }
}
