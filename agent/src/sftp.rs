//! File transfer: SFTP version 3 (draft-ietf-secsh-filexfer-02) with OpenSSH's extensions.
//!
//! File calls run on a few threads beside, so that a slow volume holds up nobody else's session.
//! Nothing is synced to disk unless the client asks for it.

mod attributes;
mod extended;
mod files;

use std::{collections::HashMap, io, path::PathBuf};

use russh_sftp::{
    protocol::{
        Attrs, Data, File, FileAttributes, Handle, Name, OpenFlags, Packet, Status, StatusCode,
        Version,
    },
    server::{Config, Handler, StatusReply, run_with_config},
};
use tokio::io::DuplexStream;

use self::files::{Directory, Open};

/// Longest packet, in bytes: OpenSSH's own limit.
const PACKET_MAX: u32 = 256 << 10;

/// Most bytes read or written by one request: a packet without its head.
const DATA_MAX: u32 = PACKET_MAX - 1024;

/// Most files and folders open at a time.
const OPEN_MAX: usize = 128;

/// Names per answer when a folder is listed.
const NAMES_MAX: usize = 100;

/// Serves until the other end of the stream is closed. Paths that are not absolute start at `home`.
pub fn start(stream: DuplexStream, home: PathBuf) {
    let session = Session { home, open: HashMap::new(), last: 0 };
    let config = Config { max_client_packet_len: PACKET_MAX };
    tokio::spawn(run_with_config(stream, session, config));
}

struct Session {
    home: PathBuf,
    open: HashMap<u64, Open>,
    last: u64,
}

type Reply<T> = Result<T, StatusReply>;

fn error(error: io::Error) -> StatusReply {
    let code = match error.kind() {
        io::ErrorKind::NotFound => StatusCode::NoSuchFile,
        io::ErrorKind::PermissionDenied => StatusCode::PermissionDenied,
        io::ErrorKind::Unsupported => StatusCode::OpUnsupported,
        _ => StatusCode::Failure,
    };
    let text = error.to_string();
    // Rust appends " (os error 2)", which tells a person nothing.
    code.with_message(text.split(" (os error").next().unwrap_or(&text))
}

fn done(id: u32) -> Status {
    Status {
        id,
        status_code: StatusCode::Ok,
        error_message: String::new(),
        language_tag: String::new(),
    }
}

/// Runs file calls on a thread beside.
async fn beside<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Reply<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result.map_err(error),
        Err(_) => Err(StatusCode::Failure.into()),
    }
}

impl Session {
    fn path(&self, path: &str) -> PathBuf {
        self.home.join(path)
    }

    fn keep(&mut self, id: u32, open: Open) -> Reply<Handle> {
        if self.open.len() >= OPEN_MAX {
            return Err(StatusCode::Failure.with_message("too many open files"));
        }
        self.last += 1;
        self.open.insert(self.last, open);
        Ok(Handle { id, handle: self.last.to_string() })
    }

    fn find(&self, handle: &str) -> Reply<&Open> {
        let found = handle.parse().ok().and_then(|number: u64| self.open.get(&number));
        found.ok_or_else(|| StatusCode::Failure.with_message("no such handle"))
    }

    fn file(&self, handle: &str) -> Reply<files::File> {
        match self.find(handle)? {
            Open::File(file) => Ok(file.clone()),
            Open::Directory(_) => Err(StatusCode::Failure.with_message("this is a folder")),
        }
    }
}

impl Handler for Session {
    type Error = StatusReply;

    fn unimplemented(&self) -> StatusReply {
        StatusCode::OpUnsupported.into()
    }

    async fn init(&mut self, _version: u32, _: HashMap<String, String>) -> Reply<Version> {
        let mut version = Version::new();
        for (name, revision) in extended::OFFERED {
            version.extensions.insert(name.to_owned(), revision.to_owned());
        }
        Ok(version)
    }

    async fn open(
        &mut self,
        id: u32,
        filename: String,
        flags: OpenFlags,
        attributes: FileAttributes,
    ) -> Reply<Handle> {
        let path = self.path(&filename);
        let file = beside(move || files::open(&path, flags, attributes.permissions)).await?;
        self.keep(id, Open::File(file))
    }

    async fn close(&mut self, id: u32, handle: String) -> Reply<Status> {
        self.find(&handle)?;
        if let Ok(number) = handle.parse::<u64>() {
            self.open.remove(&number);
        }
        Ok(done(id))
    }

    async fn read(&mut self, id: u32, handle: String, offset: u64, length: u32) -> Reply<Data> {
        let file = self.file(&handle)?;
        let length = length.min(DATA_MAX) as usize;
        let data = beside(move || file.read(offset, length)).await?;
        if data.is_empty() && length > 0 {
            return Err(StatusCode::Eof.into());
        }
        Ok(Data { id, data })
    }

    async fn write(
        &mut self,
        id: u32,
        handle: String,
        offset: u64,
        data: Vec<u8>,
    ) -> Reply<Status> {
        let file = self.file(&handle)?;
        beside(move || file.write(offset, &data)).await?;
        Ok(done(id))
    }

    async fn lstat(&mut self, id: u32, path: String) -> Reply<Attrs> {
        let path = self.path(&path);
        let metadata = beside(move || std::fs::symlink_metadata(path)).await?;
        Ok(Attrs { id, attrs: attributes::of(&metadata) })
    }

    async fn stat(&mut self, id: u32, path: String) -> Reply<Attrs> {
        let path = self.path(&path);
        let metadata = beside(move || std::fs::metadata(path)).await?;
        Ok(Attrs { id, attrs: attributes::of(&metadata) })
    }

    async fn fstat(&mut self, id: u32, handle: String) -> Reply<Attrs> {
        let file = self.file(&handle)?;
        let metadata = beside(move || file.metadata()).await?;
        Ok(Attrs { id, attrs: attributes::of(&metadata) })
    }

    async fn setstat(&mut self, id: u32, path: String, change: FileAttributes) -> Reply<Status> {
        let path = self.path(&path);
        beside(move || attributes::set(&path, &change, true)).await?;
        Ok(done(id))
    }

    async fn fsetstat(&mut self, id: u32, handle: String, change: FileAttributes) -> Reply<Status> {
        let file = self.file(&handle)?;
        beside(move || file.set(&change)).await?;
        Ok(done(id))
    }

    async fn opendir(&mut self, id: u32, path: String) -> Reply<Handle> {
        let path = self.path(&path);
        let directory = beside(move || Directory::open(path)).await?;
        self.keep(id, Open::Directory(directory))
    }

    async fn readdir(&mut self, id: u32, handle: String) -> Reply<Name> {
        let Open::Directory(directory) = self.find(&handle)? else {
            return Err(StatusCode::Failure.with_message("this is a file"));
        };
        let directory = directory.clone();
        let files = beside(move || directory.next(NAMES_MAX)).await?;
        if files.is_empty() {
            return Err(StatusCode::Eof.into());
        }
        Ok(Name { id, files })
    }

    async fn remove(&mut self, id: u32, filename: String) -> Reply<Status> {
        let path = self.path(&filename);
        beside(move || std::fs::remove_file(path)).await?;
        Ok(done(id))
    }

    async fn mkdir(&mut self, id: u32, path: String, attrs: FileAttributes) -> Reply<Status> {
        let path = self.path(&path);
        beside(move || files::create_folder(&path, attrs.permissions)).await?;
        Ok(done(id))
    }

    async fn rmdir(&mut self, id: u32, path: String) -> Reply<Status> {
        let path = self.path(&path);
        beside(move || std::fs::remove_dir(path)).await?;
        Ok(done(id))
    }

    async fn realpath(&mut self, id: u32, path: String) -> Reply<Name> {
        let path = self.path(&path);
        let real = beside(move || Ok(files::real_path(&path))).await?;
        Ok(Name { id, files: vec![File::dummy(files::text(real)?)] })
    }

    async fn rename(&mut self, id: u32, oldpath: String, newpath: String) -> Reply<Status> {
        let (from, to) = (self.path(&oldpath), self.path(&newpath));
        beside(move || files::rename_without_overwriting(&from, &to)).await?;
        Ok(done(id))
    }

    async fn readlink(&mut self, id: u32, path: String) -> Reply<Name> {
        let path = self.path(&path);
        let target = beside(move || std::fs::read_link(path)).await?;
        Ok(Name { id, files: vec![File::dummy(files::text(target)?)] })
    }

    /// OpenSSH sends the target first, against the draft, and all others have followed it.
    async fn symlink(&mut self, id: u32, linkpath: String, targetpath: String) -> Reply<Status> {
        let (target, link) = (linkpath, self.path(&targetpath));
        beside(move || std::os::unix::fs::symlink(target, link)).await?;
        Ok(done(id))
    }

    async fn extended(&mut self, id: u32, request: String, data: Vec<u8>) -> Reply<Packet> {
        self.extension(id, &request, data).await
    }
}
