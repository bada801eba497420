//! `dormouse agent install`: puts this program into a volume that the workload's image can see.

use std::{
    fs, io,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

/// The program's name in the folder.
pub const NAME: &str = "dormouse";

const MODE: u32 = 0o755;

#[derive(Debug, thiserror::Error)]
#[error("cannot put the agent into {dir}: {error}; the folder must exist and be writable")]
pub struct InstallError {
    dir: PathBuf,
    error: io::Error,
}

/// Replaces `dir`/dormouse at once by a link to `program`, or a copy where a link is impossible: a
/// reader sees the old file or the new one and never half of it.
pub fn install(program: &Path, dir: &Path) -> Result<PathBuf, InstallError> {
    put(program, dir).map_err(|error| InstallError { dir: dir.to_owned(), error })
}

fn put(program: &Path, dir: &Path) -> io::Result<PathBuf> {
    let target = dir.join(NAME);
    let fresh = dir.join(format!(".{NAME}.{}", std::process::id()));
    let _ = fs::remove_file(&fresh);
    // The mode belongs to the file and not to the link, so a link must not change it.
    let linkable = fs::metadata(program)?.mode() & 0o777 == MODE;
    if !linkable || fs::hard_link(program, &fresh).is_err() {
        fs::copy(program, &fresh)?;
        fs::set_permissions(&fresh, fs::Permissions::from_mode(MODE))?;
    }
    let renamed = fs::rename(&fresh, &target);
    // When both names were links to one file already, renaming leaves the first one.
    let _ = fs::remove_file(&fresh);
    renamed.map(|()| target)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn installs_again_and_again_and_leaves_one_file() {
        let dir = tempfile::tempdir().unwrap();
        let (source, to) = (dir.path().join("program"), dir.path().join("to"));
        fs::create_dir(&to).unwrap();
        for (mode, text) in [(0o755, "one"), (0o755, "one"), (0o700, "two")] {
            fs::write(&source, text).unwrap();
            fs::set_permissions(&source, fs::Permissions::from_mode(mode)).unwrap();
            let target = install(&source, &to).unwrap();
            assert_eq!(fs::read_to_string(&target).unwrap(), text);
            assert_eq!(fs::metadata(&target).unwrap().mode() & 0o777, 0o755);
            assert_eq!(fs::read_dir(&to).unwrap().count(), 1);
        }
        assert_eq!(fs::metadata(&source).unwrap().mode() & 0o777, 0o700, "source untouched");
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_named() {
        let error = install(Path::new("/proc/self/exe"), Path::new("/nowhere/at/all"));
        assert!(error.unwrap_err().to_string().contains("/nowhere/at/all"));
    }
}
