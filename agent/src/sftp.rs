//! File transfer: SFTP version 3 (draft-ietf-secsh-filexfer-02) with OpenSSH's extensions.
//!
//! Names are bytes from one end to the other. File calls run on a few threads beside, so that a slow
//! volume holds up nobody else's session. Nothing is synced to disk unless the client asks for it.

mod attributes;
mod extended;
mod files;
mod packet;

use std::{collections::HashMap, ffi::OsStr, io, os::unix::ffi::OsStrExt, path::PathBuf};

use bytes::Bytes;
use jiff::Timestamp;
use tokio::sync::mpsc;

use self::{
    files::{File, Folder, Open},
    packet::{Code, DATA_HEAD, PACKET_MAX, Packet, Packets, Request},
};
use crate::queue;

/// Most bytes read or written by one request: a packet without its head.
const DATA_MAX: u32 = PACKET_MAX as u32 - 1024;

/// Most files and folders open at a time.
const OPEN_MAX: usize = 128;

/// Names per answer when a folder is listed.
const NAMES_MAX: usize = 100;

/// Answers that wait to be sent while the next request is carried out.
const ANSWERS_MAX: usize = 2;

/// Serves until the input ends, the answers cannot be sent, or a packet has a length that cannot be.
/// Paths that are not absolute start at `home`.
pub async fn serve<F>(mut input: queue::Receiver, mut send: impl FnMut(Bytes) -> F, home: PathBuf)
where
    F: Future<Output = io::Result<()>>,
{
    let (answers, mut waiting) = mpsc::channel::<Bytes>(ANSWERS_MAX);
    let work = async move {
        let mut session = Session { home, open: HashMap::new(), last: 0 };
        let mut packets = Packets::default();
        while let Some(bytes) = input.pop().await {
            packets.push(&bytes);
            loop {
                match packets.next() {
                    Ok(None) => break,
                    Ok(Some(body)) => {
                        let Some(packet) = Packet::parse(body) else { return };
                        if answers.send(session.answer(packet).await).await.is_err() {
                            return;
                        }
                    }
                    Err(packet::OutOfStep) => {
                        tracing::info!("a file transfer was ended: its packets are not SFTP");
                        return;
                    }
                }
            }
        }
    };
    let sending = async {
        while let Some(answer) = waiting.recv().await {
            if send(answer).await.is_err() {
                return;
            }
        }
    };
    // Ends with `sending`: when the answers have ended and are sent, or cannot be sent any more.
    let mut work = std::pin::pin!(work);
    let mut sending = std::pin::pin!(sending);
    tokio::select! {
        () = &mut work => sending.await,
        () = &mut sending => {}
    }
}

/// Reads a client's stream whole, and in two parts; both are the same packets.
///
/// # Panics
/// When they are not: for fuzzing.
pub fn read_apart(bytes: &[u8]) {
    let read = |parts: [&[u8]; 2]| {
        let (mut packets, mut found) = (Packets::default(), Vec::new());
        for part in parts {
            packets.push(part);
            while let Ok(Some(body)) = packets.next() {
                found.push(Packet::parse(body));
            }
        }
        found
    };
    let middle = usize::from(bytes.first().copied().unwrap_or(0)).min(bytes.len());
    assert_eq!(read([bytes, &[]]), read([&bytes[..middle], &bytes[middle..]]));
}

struct Session {
    home: PathBuf,
    open: HashMap<u32, Open>,
    last: u32,
}

/// Why a request is answered with a status that is not `Ok`.
#[derive(Debug)]
struct Refusal {
    code: Code,
    text: String,
}

type Reply = Result<Bytes, Refusal>;

impl Refusal {
    fn failure(text: &str) -> Self {
        Self { code: Code::Failure, text: text.to_owned() }
    }
}

impl From<Code> for Refusal {
    fn from(code: Code) -> Self {
        let text = match code {
            Code::Ok => "done",
            Code::Eof => "end of file",
            Code::NoSuchFile => "no such file",
            Code::PermissionDenied => "permission denied",
            Code::Failure => "failure",
            Code::BadMessage => "the request is cut short",
            Code::Unsupported => "this server does not do that",
        };
        Self { code, text: text.to_owned() }
    }
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        let code = match error.kind() {
            io::ErrorKind::NotFound => Code::NoSuchFile,
            io::ErrorKind::PermissionDenied => Code::PermissionDenied,
            io::ErrorKind::Unsupported => Code::Unsupported,
            _ => Code::Failure,
        };
        let text = error.to_string();
        // Rust appends " (os error 2)", which tells a person nothing.
        let text = text.split(" (os error").next().unwrap_or_default();
        Self { code, text: text.to_owned() }
    }
}

fn done(id: u32) -> Bytes {
    packet::status(id, Code::Ok, "")
}

/// Runs file calls on a thread beside.
async fn beside<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, Refusal> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result.map_err(Refusal::from),
        Err(_) => Err(Code::Failure.into()),
    }
}

impl Session {
    fn path(&self, path: &[u8]) -> PathBuf {
        self.home.join(OsStr::from_bytes(path))
    }

    /// A handle is four bytes for the client to give back.
    fn keep(&mut self, id: u32, open: Open) -> Reply {
        if self.open.len() >= OPEN_MAX {
            return Err(Refusal::failure("too many open files"));
        }
        while self.open.contains_key(&self.last) {
            self.last = self.last.wrapping_add(1);
        }
        self.open.insert(self.last, open);
        Ok(packet::handle(id, &self.last.to_be_bytes()))
    }

    fn find(&self, handle: &Bytes) -> Result<&Open, Refusal> {
        number(handle)
            .and_then(|number| self.open.get(&number))
            .ok_or_else(|| Refusal::failure("no such handle"))
    }

    fn file(&self, handle: &Bytes) -> Result<File, Refusal> {
        match self.find(handle)? {
            Open::File(file) => Ok(file.clone()),
            Open::Folder(_) => Err(Refusal::failure("this is a folder")),
        }
    }

    fn folder(&self, handle: &Bytes) -> Result<Folder, Refusal> {
        match self.find(handle)? {
            Open::Folder(folder) => Ok(folder.clone()),
            Open::File(_) => Err(Refusal::failure("this is a file")),
        }
    }

    async fn answer(&mut self, packet: Packet) -> Bytes {
        match packet {
            Packet::Init => packet::version(&extended::OFFERED),
            Packet::Request { id, request } => {
                let answer = match request {
                    Some(request) => self.carry_out(id, request).await,
                    None => Err(Code::BadMessage.into()),
                };
                answer.unwrap_or_else(|Refusal { code, text }| packet::status(id, code, &text))
            }
        }
    }

    async fn carry_out(&mut self, id: u32, request: Request) -> Reply {
        match request {
            Request::Open { path, flags, attributes } => {
                let path = self.path(&path);
                let file = beside(move || files::open(&path, flags, attributes.mode)).await?;
                return self.keep(id, Open::File(file));
            }
            Request::Close { handle } => {
                self.find(&handle)?;
                let gone = number(&handle).and_then(|number| self.open.remove(&number));
                // The last reference closes the file, which a volume may take its time for.
                beside(move || {
                    drop(gone);
                    Ok(())
                })
                .await?;
            }
            Request::Read { handle, offset, length } => {
                let file = self.file(&handle)?;
                let length = length.min(DATA_MAX) as usize;
                let room = beside(move || file.read(offset, length)).await?;
                if room.len() == DATA_HEAD && length > 0 {
                    return Err(Code::Eof.into());
                }
                return Ok(packet::data(id, room));
            }
            Request::Write { handle, offset, data } => {
                let file = self.file(&handle)?;
                beside(move || file.write(offset, &data)).await?;
            }
            Request::LinkStatus { path } => {
                let path = self.path(&path);
                let metadata = beside(move || std::fs::symlink_metadata(path)).await?;
                return Ok(packet::attributes(id, &attributes::of(&metadata)));
            }
            Request::Status { path } => {
                let path = self.path(&path);
                let metadata = beside(move || std::fs::metadata(path)).await?;
                return Ok(packet::attributes(id, &attributes::of(&metadata)));
            }
            Request::HandleStatus { handle } => {
                let file = self.file(&handle)?;
                let metadata = beside(move || file.metadata()).await?;
                return Ok(packet::attributes(id, &attributes::of(&metadata)));
            }
            Request::Set { path, attributes } => {
                let path = self.path(&path);
                beside(move || attributes::set(&path, &attributes, true)).await?;
            }
            Request::HandleSet { handle, attributes } => {
                let file = self.file(&handle)?;
                beside(move || file.set(&attributes)).await?;
            }
            Request::OpenFolder { path } => {
                let path = self.path(&path);
                let folder = beside(move || Folder::open(path)).await?;
                return self.keep(id, Open::Folder(folder));
            }
            Request::ReadFolder { handle } => {
                let folder = self.folder(&handle)?;
                let found = beside(move || folder.next(NAMES_MAX, Timestamp::now())).await?;
                if found.is_empty() {
                    return Err(Code::Eof.into());
                }
                return Ok(packet::names(id, &found));
            }
            Request::Remove { path } => {
                let path = self.path(&path);
                beside(move || std::fs::remove_file(path)).await?;
            }
            Request::MakeFolder { path, attributes } => {
                let path = self.path(&path);
                beside(move || files::create_folder(&path, attributes.mode)).await?;
            }
            Request::RemoveFolder { path } => {
                let path = self.path(&path);
                beside(move || std::fs::remove_dir(path)).await?;
            }
            Request::RealPath { path } => {
                let path = self.path(&path);
                let real = beside(move || Ok(files::real_path(&path))).await?;
                return Ok(packet::name(id, real.as_os_str()));
            }
            Request::Rename { from, to } => {
                let (from, to) = (self.path(&from), self.path(&to));
                beside(move || files::rename_without_overwriting(&from, &to)).await?;
            }
            Request::ReadLink { path } => {
                let path = self.path(&path);
                let target = beside(move || std::fs::read_link(path)).await?;
                return Ok(packet::name(id, target.as_os_str()));
            }
            Request::Link { target, link } => {
                let link = self.path(&link);
                let make = move || std::os::unix::fs::symlink(OsStr::from_bytes(&target), link);
                beside(make).await?;
            }
            Request::Extended { name, rest } => return self.extension(id, &name, rest).await,
            Request::Unknown => return Err(Code::Unsupported.into()),
        }
        Ok(done(id))
    }
}

fn number(handle: &Bytes) -> Option<u32> {
    handle.as_ref().try_into().ok().map(u32::from_be_bytes)
}

#[cfg(test)]
mod tests;
