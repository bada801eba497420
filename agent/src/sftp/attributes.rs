//! What is said of a file, and what may be changed.

use std::{
    fs::{self, Metadata, OpenOptions, Permissions},
    io::{self, Write as _},
    os::unix::fs::{MetadataExt, PermissionsExt, chown, fchown, lchown},
    path::Path,
    time::Duration,
};

use jiff::{Timestamp, tz::TimeZone};
use nix::sys::{
    stat::{UtimensatFlags, futimens, utimensat},
    time::TimeSpec,
};

use super::packet::{Attributes, Entry};

/// Half a year, in seconds: `ls` says the year of what is older, and the time of day of the rest.
const RECENT: i64 = 182 * 24 * 60 * 60;

pub fn of(metadata: &Metadata) -> Attributes {
    // Version 3 has 32 bits for a time.
    let seconds = |time: i64| u32::try_from(time.max(0)).unwrap_or(u32::MAX);
    Attributes {
        size: Some(metadata.len()),
        owner: Some((metadata.uid(), metadata.gid())),
        mode: Some(metadata.mode()),
        times: Some((seconds(metadata.atime()), seconds(metadata.mtime()))),
    }
}

/// An entry of a listing; the long name is what `ls -l` shows in clients that show it as it is.
pub fn entry(name: Vec<u8>, metadata: &Metadata, now: Timestamp) -> Entry {
    let time = Timestamp::from_second(metadata.mtime()).unwrap_or(Timestamp::MIN);
    let age = now.as_second().saturating_sub(time.as_second());
    let format = if (0..RECENT).contains(&age) { "%b %e %H:%M" } else { "%b %e  %Y" };
    let mut long_name = Vec::with_capacity(name.len() + 64);
    // Writing to a vector does not fail.
    let _ = write!(
        long_name,
        "{} {:>4} {:<8} {:<8} {:>8} {} ",
        letters(metadata.mode()),
        metadata.nlink(),
        metadata.uid(),
        metadata.gid(),
        metadata.len(),
        time.to_zoned(TimeZone::UTC).strftime(format),
    );
    long_name.extend_from_slice(&name);
    Entry { name, long_name, attributes: of(metadata) }
}

/// `drwxr-xr-x`, as `ls` writes it.
fn letters(mode: u32) -> String {
    let kind = match mode & libc::S_IFMT {
        libc::S_IFDIR => 'd',
        libc::S_IFLNK => 'l',
        libc::S_IFIFO => 'p',
        libc::S_IFSOCK => 's',
        libc::S_IFCHR => 'c',
        libc::S_IFBLK => 'b',
        _ => '-',
    };
    let bit = |mask: u32| mode & mask != 0;
    let execute = |mask, special, letter: char| match (bit(mask), bit(special)) {
        (true, false) => 'x',
        (true, true) => letter,
        (false, true) => letter.to_ascii_uppercase(),
        (false, false) => '-',
    };
    let letter = |mask, letter| if bit(mask) { letter } else { '-' };
    [
        kind,
        letter(0o400, 'r'),
        letter(0o200, 'w'),
        execute(0o100, libc::S_ISUID, 's'),
        letter(0o040, 'r'),
        letter(0o020, 'w'),
        execute(0o010, libc::S_ISGID, 's'),
        letter(0o004, 'r'),
        letter(0o002, 'w'),
        execute(0o001, libc::S_ISVTX, 't'),
    ]
    .into_iter()
    .collect()
}

/// `follow`: through a link at the end of the path.
pub fn set(path: &Path, change: &Attributes, follow: bool) -> io::Result<()> {
    if let Some(size) = change.size {
        OpenOptions::new().write(true).open(path)?.set_len(size)?;
    }
    if let Some((user, group)) = change.owner {
        let set = if follow { chown } else { lchown };
        set(path, Some(user), Some(group))?;
    }
    if let Some(mode) = change.mode
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

pub fn set_open(file: &fs::File, change: &Attributes) -> io::Result<()> {
    if let Some(size) = change.size {
        file.set_len(size)?;
    }
    if let Some((user, group)) = change.owner {
        fchown(file, Some(user), Some(group))?;
    }
    if let Some(mode) = change.mode {
        file.set_permissions(Permissions::from_mode(mode & 0o7777))?;
    }
    if let Some((accessed, modified)) = times(change) {
        futimens(file, &accessed, &modified)?;
    }
    Ok(())
}

fn times(change: &Attributes) -> Option<(TimeSpec, TimeSpec)> {
    let spec = |seconds: u32| TimeSpec::from(Duration::from_secs(u64::from(seconds)));
    change.times.map(|(accessed, modified)| (spec(accessed), spec(modified)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_name_reads_as_ls_writes_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, "12345").unwrap();
        let change = Attributes {
            mode: Some(0o4751),
            times: Some((0, 1_700_000_000)),
            ..Attributes::default()
        };
        set(&path, &change, true).unwrap();
        let metadata = fs::metadata(&path).unwrap();
        let line = |now| {
            let now = Timestamp::from_second(now).unwrap();
            String::from_utf8(entry(b"file".to_vec(), &metadata, now).long_name).unwrap()
        };
        let old = line(1_800_000_000);
        assert!(old.starts_with("-rwsr-x--x    1 "), "{old}");
        assert!(old.ends_with("        5 Nov 14  2023 file"), "{old}");
        let recent = line(1_700_000_100);
        assert!(recent.ends_with("        5 Nov 14 22:13 file"), "{recent}");
    }
}
