//! Open files and folders.

use std::{
    fs, io,
    os::unix::{
        ffi::OsStringExt,
        fs::{DirBuilderExt, FileExt, OpenOptionsExt},
    },
    path::{Component, Path, PathBuf},
    sync::Arc,
};

use jiff::Timestamp;
use nix::sys::statvfs::{Statvfs, fstatvfs};
use parking_lot::Mutex;

use super::{
    attributes,
    packet::{Attributes, DATA_HEAD, Entry, Flags},
};

pub enum Open {
    File(File),
    Folder(Folder),
}

#[derive(Clone)]
pub struct File(Arc<fs::File>);

pub fn open(path: &Path, flags: Flags, mode: Option<u32>) -> io::Result<File> {
    let append = flags.has(Flags::APPEND);
    let write = flags.has(Flags::WRITE) || append;
    let create = write && flags.has(Flags::CREATE);
    let file = fs::OpenOptions::new()
        .read(flags.has(Flags::READ) || !write)
        .write(write)
        .append(append)
        .create(create)
        .create_new(create && flags.has(Flags::EXCLUSIVE))
        // Nothing is both cut and appended to: what appends keeps what is there.
        .truncate(write && !append && flags.has(Flags::TRUNCATE))
        .mode(mode.unwrap_or(0o666) & 0o777)
        .open(path)?;
    Ok(File(Arc::new(file)))
}

impl File {
    /// [`DATA_HEAD`] bytes of room, then what was read: fewer bytes than asked for only at the end.
    pub fn read(&self, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        let mut room = vec![0; DATA_HEAD + length];
        let mut filled = DATA_HEAD;
        while let Some(rest) = room.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            let place = offset.saturating_add((filled - DATA_HEAD) as u64);
            match self.0.read_at(rest, place) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // A FIFO or a device has no positions.
                Err(error) if error.raw_os_error() == Some(libc::ESPIPE) => {
                    filled += io::Read::read(&mut &*self.0, rest)?;
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        room.truncate(filled);
        Ok(room)
    }

    pub fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        match self.0.write_all_at(data, offset) {
            Err(error) if error.raw_os_error() == Some(libc::ESPIPE) => {
                io::Write::write_all(&mut &*self.0, data)
            }
            other => other,
        }
    }

    pub fn metadata(&self) -> io::Result<fs::Metadata> {
        self.0.metadata()
    }

    pub fn set(&self, change: &Attributes) -> io::Result<()> {
        attributes::set_open(&self.0, change)
    }

    pub fn sync(&self) -> io::Result<()> {
        self.0.sync_all()
    }

    pub fn space(&self) -> io::Result<Statvfs> {
        Ok(fstatvfs(&*self.0)?)
    }
}

/// A listing in progress.
#[derive(Clone)]
pub struct Folder(Arc<Mutex<Listing>>);

struct Listing {
    /// `.` and `..`, which the iterator leaves out.
    dots: Vec<(Vec<u8>, PathBuf)>,
    entries: fs::ReadDir,
}

impl Folder {
    pub fn open(path: PathBuf) -> io::Result<Self> {
        let entries = fs::read_dir(&path)?;
        let dots = vec![(b"..".to_vec(), path.join("..")), (b".".to_vec(), path)];
        Ok(Self(Arc::new(Mutex::new(Listing { dots, entries }))))
    }

    /// Empty at the end.
    pub fn next(&self, most: usize, now: Timestamp) -> io::Result<Vec<Entry>> {
        let mut listing = self.0.lock();
        let mut found = Vec::new();
        while found.len() < most {
            let (name, path) = match listing.dots.pop() {
                Some(dot) => dot,
                None => match listing.entries.next() {
                    None => break,
                    Some(entry) => {
                        let entry = entry?;
                        (entry.file_name().into_vec(), entry.path())
                    }
                },
            };
            // Gone in the meantime: not worth an error.
            let Ok(metadata) = fs::symlink_metadata(path) else { continue };
            found.push(attributes::entry(name, &metadata, now));
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
