//! Secrets in files: made once, kept private.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    #[error("cannot read the secret file {path}: {source}")]
    Read { path: PathBuf, source: io::Error },
    #[error("the secret file {0} is empty; write the secret into it")]
    Empty(PathBuf),
    #[error("cannot write the secret file {path}: {source}")]
    Write { path: PathBuf, source: io::Error },
}

/// The file's content without the line end that editors leave.
pub fn read(path: &Path) -> Result<String, SecretError> {
    let text = fs::read_to_string(path)
        .map_err(|source| SecretError::Read { path: path.to_owned(), source })?;
    let text = text.trim_end_matches(['\r', '\n']);
    if text.is_empty() { Err(SecretError::Empty(path.to_owned())) } else { Ok(text.to_owned()) }
}

/// Writes a file that only its owner can read, whole or not at all.
pub fn write(path: &Path, content: &[u8]) -> Result<(), SecretError> {
    let failed = |source| SecretError::Write { path: path.to_owned(), source };
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new = path.with_file_name(name);
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&new)
        .map_err(failed)?;
    file.set_permissions(fs::Permissions::from_mode(0o600)).map_err(failed)?;
    file.write_all(content).and_then(|()| file.sync_all()).map_err(failed)?;
    fs::rename(&new, path).map_err(failed)
}

/// The secret in the file, made by `make` when there is none yet.
pub fn read_or_create(path: &Path, make: impl FnOnce() -> String) -> Result<String, SecretError> {
    if path.exists() {
        return read(path);
    }
    let secret = make();
    write(path, secret.as_bytes())?;
    Ok(secret)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn made_once_kept_private() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        assert_eq!(read_or_create(&path, || "one".to_owned()).unwrap(), "one");
        assert_eq!(read_or_create(&path, || "two".to_owned()).unwrap(), "one");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn an_empty_file_is_no_secret() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        fs::write(&path, "\n").unwrap();
        assert!(matches!(read(&path), Err(SecretError::Empty(_))));
    }
}
