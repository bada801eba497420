//! Folders whose files the API decides: secrets, config maps and the like.

use std::collections::BTreeSet;
use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

/// A file in such a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    path: String,
    content: Vec<u8>,
    mode: u32,
}

impl Entry {
    pub fn new(path: &str, content: Vec<u8>, mode: i32) -> Self {
        Self { path: path.to_owned(), content, mode: u32::try_from(mode).unwrap_or(0o600) & 0o777 }
    }
}

#[derive(Debug)]
pub enum PathError {
    Outside(String),
    Io { path: PathBuf, error: io::Error },
}

/// `path` if it stays below where it starts.
pub fn relative(path: &str) -> Option<&Path> {
    let path = Path::new(path);
    let inside =
        path.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    (inside && path.components().next().is_some()).then_some(path)
}

/// Makes `folder` hold exactly `entries`. A file appears whole, and one that is right already is not touched.
pub fn write_folder(folder: &Path, entries: &[Entry]) -> Result<(), PathError> {
    let at = |path: &Path| {
        let path = path.to_owned();
        move |error| PathError::Io { path, error }
    };
    fs::create_dir_all(folder).map_err(at(folder))?;
    let mut wanted = BTreeSet::new();
    for entry in entries {
        let inside = relative(&entry.path).ok_or_else(|| PathError::Outside(entry.path.clone()))?;
        let path = folder.join(inside);
        write_file(&path, entry).map_err(at(&path))?;
        wanted.insert(path);
    }
    remove_others(folder, &wanted).map_err(at(folder))
}

fn write_file(path: &Path, entry: &Entry) -> io::Result<()> {
    let is_right = fs::read(path).is_ok_and(|old| old == entry.content)
        && fs::metadata(path).is_ok_and(|meta| meta.permissions().mode() & 0o777 == entry.mode);
    if is_right {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(".new~");
    let mut file =
        File::options().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
    file.write_all(&entry.content)?;
    file.set_permissions(Permissions::from_mode(entry.mode))?;
    fs::rename(&fresh, path)
}

fn remove_others(folder: &Path, wanted: &BTreeSet<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            if wanted.iter().any(|file| file.starts_with(&path)) {
                remove_others(&path, wanted)?;
            } else {
                fs::remove_dir_all(&path)?;
            }
        } else if !wanted.contains(&path) {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_folder_follows_what_the_api_says() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("v");
        let entries =
            [Entry::new("a", b"1".to_vec(), 0o600), Entry::new("sub/b", b"2".to_vec(), 0o440)];
        write_folder(&folder, &entries).unwrap();
        let mode =
            |name: &str| fs::metadata(folder.join(name)).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode("a"), mode("sub/b")), (0o600, 0o440));
        write_folder(&folder, &[Entry::new("a", b"3".to_vec(), 0o644)]).unwrap();
        assert_eq!(fs::read(folder.join("a")).unwrap(), b"3");
        assert_eq!(mode("a"), 0o644);
        assert!(!folder.join("sub").exists());
    }

    #[test]
    fn no_path_leads_out() {
        for path in ["../x", "/etc/passwd", "a/../../b", "", ".."] {
            assert!(relative(path).is_none(), "{path}");
        }
        let dir = tempfile::tempdir().unwrap();
        let bad = [Entry::new("../x", vec![], 0o600)];
        assert!(matches!(write_folder(&dir.path().join("v"), &bad), Err(PathError::Outside(_))));
    }

    proptest! {
        #[test]
        fn what_is_relative_stays_inside(path in "[./a]{0,12}") {
            if let Some(inside) = relative(&path) {
                let joined = Path::new("/v").join(inside);
                prop_assert!(joined.starts_with("/v") && !joined.components().any(|c| c == Component::ParentDir));
            }
        }
    }
}
