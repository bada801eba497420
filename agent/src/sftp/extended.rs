//! OpenSSH's extensions (its PROTOCOL file, section 4).

use std::{io, path::PathBuf};

use bytes::Bytes;
use nix::sys::statvfs::{Statvfs, statvfs};

use super::{
    DATA_MAX, OPEN_MAX, Refusal, Reply, Session, attributes, beside, done, files,
    packet::{self, Code, Fields, PACKET_MAX},
};

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

impl Session {
    pub(super) async fn extension(&mut self, id: u32, name: &[u8], mut fields: Fields) -> Reply {
        let mut string = || fields.string().ok_or(Refusal::from(Code::BadMessage));
        match std::str::from_utf8(name).unwrap_or_default() {
            POSIX_RENAME => {
                let (from, to) = (self.path(&string()?), self.path(&string()?));
                beside(move || std::fs::rename(from, to)).await?;
            }
            HARDLINK => {
                let (from, to) = (self.path(&string()?), self.path(&string()?));
                beside(move || std::fs::hard_link(from, to)).await?;
            }
            FSYNC => {
                let file = self.file(&string()?)?;
                beside(move || file.sync()).await?;
            }
            LSETSTAT => {
                let path = self.path(&string()?);
                let change = fields.attributes().ok_or(Code::BadMessage)?;
                beside(move || attributes::set(&path, &change, false)).await?;
            }
            STATVFS => {
                let path = self.path(&string()?);
                return Ok(space(id, &beside(move || Ok(statvfs(&path)?)).await?));
            }
            FSTATVFS => {
                let file = self.file(&string()?)?;
                return Ok(space(id, &beside(move || file.space()).await?));
            }
            LIMITS => {
                return Ok(packet::extended(id)
                    .long(PACKET_MAX as u64)
                    .long(u64::from(DATA_MAX))
                    .long(u64::from(DATA_MAX))
                    .long(OPEN_MAX as u64)
                    .done());
            }
            EXPAND_PATH => {
                let path = self.expand(&string()?);
                let real = beside(move || Ok::<_, io::Error>(files::real_path(&path))).await?;
                return Ok(packet::name(id, real.as_os_str()));
            }
            _ => return Err(Code::Unsupported.into()),
        }
        Ok(done(id))
    }

    /// `~` and `~/x` are the home; other people's homes are not looked up.
    fn expand(&self, path: &Bytes) -> PathBuf {
        match path.strip_prefix(b"~") {
            Some(b"") => self.home.clone(),
            Some([b'/', rest @ ..]) => {
                let rest = rest.iter().position(|byte| *byte != b'/').and_then(|n| rest.get(n..));
                self.path(rest.unwrap_or_default())
            }
            _ => self.path(path),
        }
    }
}

fn space(id: u32, of: &Statvfs) -> Bytes {
    packet::extended(id)
        .long(of.block_size())
        .long(of.fragment_size())
        .long(of.blocks())
        .long(of.blocks_free())
        .long(of.blocks_available())
        .long(of.files())
        .long(of.files_free())
        .long(of.files_available())
        .long(of.filesystem_id())
        .long(of.flags().bits())
        .long(of.name_max())
        .done()
}
