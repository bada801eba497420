//! Open files and folders.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt},
    path::{Component, Path, PathBuf},
    sync::Arc,
};

use parking_lot::Mutex;
use russh_sftp::{
    protocol::{File as Entry, FileAttributes, OpenFlags, StatusCode},
    server::StatusReply,
};

use super::attributes;

pub enum Open {
    File(File),
    Directory(Directory),
}

#[derive(Clone)]
pub struct File {
    file: Arc<fs::File>,
    path: Arc<Path>,
}

pub fn open(path: &Path, flags: OpenFlags, mode: Option<u32>) -> io::Result<File> {
    let mut options = fs::OpenOptions::from(flags);
    options.mode(mode.unwrap_or(0o666) & 0o777);
    Ok(File { file: Arc::new(options.open(path)?), path: path.into() })
}

impl File {
    /// Fewer bytes than asked for only at the end.
    pub fn read(&self, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        let mut data = vec![0; length];
        let mut filled = 0;
        while let Some(rest) = data.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match self.file.read_at(rest, offset + filled as u64) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // A FIFO or a device has no positions.
                Err(error) if error.raw_os_error() == Some(libc::ESPIPE) => {
                    filled += io::Read::read(&mut &*self.file, rest)?;
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        data.truncate(filled);
        Ok(data)
    }

    pub fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        match self.file.write_all_at(data, offset) {
            Err(error) if error.raw_os_error() == Some(libc::ESPIPE) => {
                io::Write::write_all(&mut &*self.file, data)
            }
            other => other,
        }
    }

    pub fn metadata(&self) -> io::Result<fs::Metadata> {
        self.file.metadata()
    }

    pub fn set(&self, change: &FileAttributes) -> io::Result<()> {
        attributes::set_open(&self.file, change)
    }

    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_all()
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// A listing in progress.
#[derive(Clone)]
pub struct Directory(Arc<Mutex<Listing>>);

struct Listing {
    /// `.` and `..`, which the iterator leaves out.
    dots: Vec<(String, PathBuf)>,
    entries: fs::ReadDir,
}

impl Directory {
    pub fn open(path: PathBuf) -> io::Result<Self> {
        let entries = fs::read_dir(&path)?;
        let dots = vec![("..".to_owned(), path.join("..")), (".".to_owned(), path)];
        Ok(Self(Arc::new(Mutex::new(Listing { dots, entries }))))
    }

    /// Empty at the end. Names that are not UTF-8 cannot be said in this version of the protocol
    /// as our library speaks it, and are left out.
    pub fn next(&self, most: usize) -> io::Result<Vec<Entry>> {
        let mut listing = self.0.lock();
        let mut found = Vec::new();
        while found.len() < most {
            let (name, path) = match listing.dots.pop() {
                Some(dot) => dot,
                None => match listing.entries.next() {
                    None => break,
                    Some(entry) => {
                        let entry = entry?;
                        let Ok(name) = entry.file_name().into_string() else { continue };
                        (name, entry.path())
                    }
                },
            };
            // Gone in the meantime: not worth an error.
            let Ok(metadata) = fs::symlink_metadata(path) else { continue };
            found.push(attributes::entry(name, &metadata));
        }
        Ok(found)
    }
}

pub fn create_folder(path: &Path, mode: Option<u32>) -> io::Result<()> {
    fs::DirBuilder::new().mode(mode.unwrap_or(0o777) & 0o7777).create(path)
}

/// The plain rename of version 3 must not replace a file; the extension `posix-rename` does.
pub fn rename_without_overwriting(from: &Path, to: &Path) -> io::Result<()> {
    if fs::symlink_metadata(to).is_ok() {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, "the target exists"));
    }
    fs::rename(from, to)
}

/// Absolute, and without `.` and `..` as far as it exists. Programs ask for files that they are
/// about to create, so a missing end is kept as it is.
pub fn real_path(path: &Path) -> PathBuf {
    if let Ok(real) = fs::canonicalize(path) {
        return real;
    }
    let mut plain = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::ParentDir => {
                plain.pop();
            }
            Component::Normal(name) => plain.push(name),
            _ => {}
        }
    }
    match (plain.parent().and_then(|parent| fs::canonicalize(parent).ok()), plain.file_name()) {
        (Some(parent), Some(name)) => parent.join(name),
        _ => plain,
    }
}

pub fn text(path: PathBuf) -> Result<String, StatusReply> {
    let failed = |_| StatusCode::Failure.with_message("the name is not UTF-8");
    path.into_os_string().into_string().map_err(failed)
}
