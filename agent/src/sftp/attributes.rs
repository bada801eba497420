//! What is said of a file, and what may be changed.

use std::{
    fs::{self, Metadata, OpenOptions, Permissions},
    io,
    os::unix::fs::{MetadataExt, PermissionsExt, chown, fchown, lchown},
    path::Path,
    time::Duration,
};

use nix::sys::{
    stat::{UtimensatFlags, futimens, utimensat},
    time::TimeSpec,
};
use russh_sftp::protocol::{File, FileAttributes};

pub fn of(metadata: &Metadata) -> FileAttributes {
    // Version 3 has 32 bits for a time.
    let seconds = |time: i64| Some(u32::try_from(time.max(0)).unwrap_or(u32::MAX));
    FileAttributes {
        size: Some(metadata.len()),
        uid: Some(metadata.uid()),
        user: None,
        gid: Some(metadata.gid()),
        group: None,
        permissions: Some(metadata.mode()),
        atime: seconds(metadata.atime()),
        mtime: seconds(metadata.mtime()),
    }
}

/// An entry of a listing; the long name is what `ls -l` shows in clients that show it as it is.
pub fn entry(name: String, metadata: &Metadata) -> File {
    let mut file = File::new(name, of(metadata));
    let kind = match metadata.mode() & libc::S_IFMT {
        libc::S_IFDIR => 'd',
        libc::S_IFLNK => 'l',
        libc::S_IFIFO => 'p',
        libc::S_IFSOCK => 's',
        libc::S_IFCHR => 'c',
        libc::S_IFBLK => 'b',
        _ => '-',
    };
    if let Some(rest) = file.longname.get(1..) {
        file.longname = format!("{kind}{rest}");
    }
    file
}

/// `follow`: through a link at the end of the path.
pub fn set(path: &Path, change: &FileAttributes, follow: bool) -> io::Result<()> {
    if let Some(size) = change.size {
        OpenOptions::new().write(true).open(path)?.set_len(size)?;
    }
    if change.uid.is_some() || change.gid.is_some() {
        let set = if follow { chown } else { lchown };
        set(path, change.uid, change.gid)?;
    }
    if let Some(mode) = change.permissions
        && follow
    {
        fs::set_permissions(path, Permissions::from_mode(mode & 0o7777))?;
    }
    if let Some((accessed, modified)) = times(change) {
        let flags =
            if follow { UtimensatFlags::FollowSymlink } else { UtimensatFlags::NoFollowSymlink };
        utimensat(nix::fcntl::AT_FDCWD, path, &accessed, &modified, flags)?;
    }
    Ok(())
}

pub fn set_open(file: &fs::File, change: &FileAttributes) -> io::Result<()> {
    if let Some(size) = change.size {
        file.set_len(size)?;
    }
    if change.uid.is_some() || change.gid.is_some() {
        fchown(file, change.uid, change.gid)?;
    }
    if let Some(mode) = change.permissions {
        file.set_permissions(Permissions::from_mode(mode & 0o7777))?;
    }
    if let Some((accessed, modified)) = times(change) {
        futimens(file, &accessed, &modified)?;
    }
    Ok(())
}

fn times(change: &FileAttributes) -> Option<(TimeSpec, TimeSpec)> {
    let spec = |seconds: u32| TimeSpec::from(Duration::from_secs(u64::from(seconds)));
    let (accessed, modified) = (change.atime?, change.mtime?);
    Some((spec(accessed), spec(modified)))
}
