//! OpenSSH's extensions (its PROTOCOL file, section 4).

use std::{
    io,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use russh_sftp::{
    extensions::{
        ExpandPathExtension, FsyncExtension, HardlinkExtension, LimitsExtension, Statvfs,
        StatvfsExtension,
    },
    protocol::{ExtendedReply, File, FileAttributes, Name, Packet, StatusCode},
};
use serde::{Deserialize, de::DeserializeOwned};

use super::{DATA_MAX, OPEN_MAX, PACKET_MAX, Reply, Session, attributes, beside, done, files};

const POSIX_RENAME: &str = "posix-rename@openssh.com";
const HARDLINK: &str = "hardlink@openssh.com";
const FSYNC: &str = "fsync@openssh.com";
const STATVFS: &str = "statvfs@openssh.com";
const FSTATVFS: &str = "fstatvfs@openssh.com";
const LSETSTAT: &str = "lsetstat@openssh.com";
const LIMITS: &str = "limits@openssh.com";
const EXPAND_PATH: &str = "expand-path@openssh.com";

pub const OFFERED: [(&str, &str); 8] = [
    (POSIX_RENAME, "1"),
    (HARDLINK, "1"),
    (FSYNC, "1"),
    (STATVFS, "2"),
    (FSTATVFS, "2"),
    (LSETSTAT, "1"),
    (LIMITS, "1"),
    (EXPAND_PATH, "1"),
];

#[derive(Deserialize)]
struct SetAttributes {
    path: String,
    attributes: FileAttributes,
}

fn decode<T: DeserializeOwned>(data: Vec<u8>) -> Reply<T> {
    russh_sftp::de::from_bytes(&mut Bytes::from(data)).map_err(|_| StatusCode::BadMessage.into())
}

fn reply(id: u32, value: &impl serde::Serialize) -> Reply<Packet> {
    let data = russh_sftp::ser::to_bytes(value).map_err(|_| StatusCode::Failure)?;
    Ok(ExtendedReply { id, data: data.to_vec() }.into())
}

impl Session {
    pub(super) async fn extension(
        &mut self,
        id: u32,
        request: &str,
        data: Vec<u8>,
    ) -> Reply<Packet> {
        match request {
            POSIX_RENAME => {
                let HardlinkExtension { oldpath, newpath } = decode(data)?;
                let (from, to) = (self.path(&oldpath), self.path(&newpath));
                beside(move || std::fs::rename(from, to)).await?;
            }
            HARDLINK => {
                let HardlinkExtension { oldpath, newpath } = decode(data)?;
                let (from, to) = (self.path(&oldpath), self.path(&newpath));
                beside(move || std::fs::hard_link(from, to)).await?;
            }
            FSYNC => {
                let file = self.file(&decode::<FsyncExtension>(data)?.handle)?;
                beside(move || file.sync()).await?;
            }
            LSETSTAT => {
                let SetAttributes { path, attributes } = decode(data)?;
                let path = self.path(&path);
                beside(move || attributes::set(&path, &attributes, false)).await?;
            }
            STATVFS => {
                let path = self.path(&decode::<StatvfsExtension>(data)?.path);
                return reply(id, &beside(move || space(&path)).await?);
            }
            FSTATVFS => {
                let file = self.file(&decode::<FsyncExtension>(data)?.handle)?;
                return reply(id, &beside(move || space(file.path())).await?);
            }
            LIMITS => {
                let limits = LimitsExtension {
                    max_packet_len: u64::from(PACKET_MAX),
                    max_read_len: u64::from(DATA_MAX),
                    max_write_len: u64::from(DATA_MAX),
                    max_open_handles: OPEN_MAX as u64,
                };
                return reply(id, &limits);
            }
            EXPAND_PATH => {
                let path = self.expand(&decode::<ExpandPathExtension>(data)?.path);
                let real = beside(move || Ok(files::real_path(&path))).await?;
                return Ok(Name { id, files: vec![File::dummy(files::text(real)?)] }.into());
            }
            _ => return Err(StatusCode::OpUnsupported.into()),
        }
        Ok(done(id).into())
    }

    /// `~` and `~/x` are the home; other people's homes are not looked up.
    fn expand(&self, path: &str) -> PathBuf {
        match path.strip_prefix('~') {
            Some("") => self.home.clone(),
            Some(rest) if rest.starts_with('/') => self.home.join(rest.trim_start_matches('/')),
            _ => self.path(path),
        }
    }
}

fn space(path: &Path) -> io::Result<Statvfs> {
    let found = nix::sys::statvfs::statvfs(path)?;
    Ok(Statvfs {
        block_size: found.block_size(),
        fragment_size: found.fragment_size(),
        blocks: found.blocks(),
        blocks_free: found.blocks_free(),
        blocks_avail: found.blocks_available(),
        inodes: found.files(),
        inodes_free: found.files_free(),
        inodes_avail: found.files_available(),
        fs_id: found.filesystem_id(),
        flags: found.flags().bits(),
        name_max: found.name_max(),
    })
}
