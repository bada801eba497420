//! Replaces the running process by a new one, perhaps of a newer binary, without closing a listener.
//!
//! On SIGQUIT the program is started again with the same arguments. It inherits the listening
//! sockets, becomes ready, accepts, and says so on a pipe; only then does the old process stop
//! accepting, and drains as it does on SIGTERM. A new process that fails, or does not become ready in
//! time, changes nothing: the old one goes on and says why.
//!
//! Both share one queue of connections in the kernel, so that none is lost in between. A stream from the
//! old process to the new one carries what is done in sessions that go on ([`crate::activity`]).

use std::{
    ffi::OsString,
    io::{self, Write},
    net::SocketAddr,
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd},
    path::PathBuf,
    process::{Child, Command, ExitStatus},
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use nix::{
    fcntl::{FcntlArg, FdFlag, fcntl},
    sys::socket::{getsockopt, sockopt::AcceptConn},
    unistd::{dup, getppid},
};
use parking_lot::Mutex;
use tokio::{
    io::AsyncReadExt,
    net::{TcpListener, UnixStream},
    signal::unix::{Signal, SignalKind, signal},
    sync::Notify,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::health::Health;

/// Names what is inherited: `parent=PID ready=FD news=FD NAME=FD ...`.
const VARIABLE: &str = "DORMOUSE_INHERITED";
const READY: &[u8] = b"ready\n";
/// How long a new process has until it is ready.
const PATIENCE: Duration = Duration::from_secs(60);

static SOCKETS: OnceLock<Sockets> = OnceLock::new();
/// A successor serves at our addresses.
static REPLACED: AtomicBool = AtomicBool::new(false);

#[derive(Debug, thiserror::Error)]
pub enum HandoverError {
    #[error("the program cannot be started: {0}")]
    Start(io::Error),
    #[error("the new process ended before it was ready ({0}); what it said is above")]
    Ended(ExitStatus),
    #[error(
        "the new process was not ready within {}; it was ended",
        humantime::format_duration(PATIENCE)
    )]
    Slow,
}

/// The listening sockets of this process.
#[derive(Debug)]
struct Sockets {
    /// The program as it was called; what lies there by then is what is started.
    program: PathBuf,
    arguments: Vec<OsString>,
    inherited: Mutex<Vec<(String, OwnedFd)>>,
    /// Where readiness is to be said; `None` unless this process takes over from another.
    ready: Mutex<Option<OwnedFd>>,
    /// From the process that is being taken over from.
    news: Mutex<Option<OwnedFd>>,
    /// To the one that has taken over.
    successor: Mutex<Option<UnixStream>>,
    takes_over: bool,
    handed_over: Notify,
    /// What is to be handed on. Emptied when accepting ends, so that the port is free by then.
    kept: Mutex<Vec<(&'static str, OwnedFd)>>,
}

/// By the path that it was called by, where there is one: a link may point to a newer file by then.
fn program() -> io::Result<PathBuf> {
    let called = std::env::args_os().next().map(PathBuf::from);
    match called.filter(|called| called.components().count() > 1 && called.exists()) {
        Some(called) => std::path::absolute(called),
        None => std::env::current_exe(),
    }
}

/// Takes what was inherited, and hands it on at SIGQUIT. Call once, before [`listen`].
pub fn begin(shutdown: CancellationToken) -> io::Result<()> {
    let value = std::env::var(VARIABLE).unwrap_or_default();
    let Inherited { listeners, ready, news } = inherit(&value, getppid().as_raw());
    let takes_over = ready.is_some();
    let sockets = Sockets {
        program: program()?,
        arguments: std::env::args_os().skip(1).collect(),
        inherited: Mutex::new(listeners),
        ready: Mutex::new(ready),
        news: Mutex::new(news),
        successor: Mutex::default(),
        takes_over,
        handed_over: Notify::new(),
        kept: Mutex::default(),
    };
    if SOCKETS.set(sockets).is_err() {
        return Ok(());
    }
    let mut quit = signal(SignalKind::quit())?;
    tokio::spawn(async move {
        let Some(sockets) = SOCKETS.get() else { return };
        tokio::select! {
            biased;
            // Who is asked to stop meanwhile leaves no successor behind.
            () = shutdown.cancelled() => {}
            () = sockets.hand_over_when_asked(&mut quit) => {
                REPLACED.store(true, Ordering::Release);
                sockets.handed_over.notify_one();
                shutdown.cancel();
            }
        }
        sockets.kept.lock().clear();
    });
    Ok(())
}

/// Listens on the address, with the socket of the process that is being taken over from, if it
/// listened there.
pub async fn listen(address: SocketAddr, name: &'static str) -> io::Result<TcpListener> {
    let Some(sockets) = SOCKETS.get() else { return TcpListener::bind(address).await };
    let there = {
        let mut inherited = sockets.inherited.lock();
        let place = inherited.iter().position(|(other, _)| other == name);
        place.map(|place| std::net::TcpListener::from(inherited.swap_remove(place).1))
    };
    let same = there.filter(|there| there.local_addr().is_ok_and(|other| is_same(other, address)));
    let listener = match same {
        Some(listener) => {
            listener.set_nonblocking(true)?;
            TcpListener::from_std(listener)?
        }
        None => TcpListener::bind(address).await?,
    };
    sockets.kept.lock().push((name, listener.as_fd().try_clone_to_owned()?));
    Ok(listener)
}

/// Port 0 stands for whichever it was.
fn is_same(there: SocketAddr, wanted: SocketAddr) -> bool {
    there.ip() == wanted.ip() && (wanted.port() == 0 || there.port() == wanted.port())
}

/// For a process that takes over, waits until all is well: who hands over serves until then.
pub async fn until_well(health: &Health) {
    while SOCKETS.get().is_some_and(|sockets| sockets.takes_over) && !health.problems().is_empty() {
        sleep(Duration::from_millis(10)).await;
    }
}

/// Waits until a successor has taken over; after a shutdown without one, for ever.
pub async fn replaced(shutdown: &CancellationToken) {
    shutdown.cancelled().await;
    if !is_replaced() {
        std::future::pending().await
    }
}

/// A successor has taken over.
pub fn is_replaced() -> bool {
    REPLACED.load(Ordering::Acquire)
}

/// What the process says that is being taken over from; once, and `None` when there is none.
pub fn predecessor() -> Option<UnixStream> {
    let news = SOCKETS.get()?.news.lock().take()?;
    let stream = std::os::unix::net::UnixStream::from(news);
    stream.set_nonblocking(true).ok()?;
    UnixStream::from_std(stream).ok()
}

/// Where a successor is told, once one has taken over.
pub async fn successor() -> UnixStream {
    let Some(sockets) = SOCKETS.get() else { return std::future::pending().await };
    loop {
        if is_replaced()
            && let Some(stream) = sockets.successor.lock().take()
        {
            return stream;
        }
        sockets.handed_over.notified().await;
    }
}

/// Says that this process accepts. Of no effect in one that takes over from nobody.
pub fn ready() {
    // What nobody listens on any more is closed, and does not keep its port.
    if let Some(sockets) = SOCKETS.get() {
        sockets.inherited.lock().clear();
    }
    let ready = SOCKETS.get().and_then(|sockets| sockets.ready.lock().take());
    if let Some(ready) = ready
        && let Err(error) = std::fs::File::from(ready).write_all(READY)
    {
        tracing::warn!(%error, "who handed over has left");
    }
    notify("READY=1");
}

/// A new process that is not known to serve yet: nobody's, once this is dropped.
struct Successor(Option<Child>);

impl Successor {
    /// Ends it, and says how it ended: by itself, if it was faster.
    fn end(&mut self) -> Option<io::Result<ExitStatus>> {
        let mut child = self.0.take()?;
        let _ = child.kill();
        // It has ended or was killed: this takes no time.
        Some(child.wait())
    }
}

impl Drop for Successor {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

impl Sockets {
    /// Resolves once a new process serves.
    async fn hand_over_when_asked(&self, quit: &mut Signal) {
        while quit.recv().await.is_some() {
            tracing::info!("asked to hand over to a new process");
            match self.hand_over().await {
                Ok(process) => {
                    tracing::info!(process, "the new process is ready; finishing what runs here");
                    return notify(&format!("MAINPID={process}"));
                }
                Err(error) => tracing::error!(%error, "not handed over; going on as before"),
            }
        }
        std::future::pending().await
    }

    /// Starts the program and waits until it is ready. Returns its process number.
    async fn hand_over(&self) -> Result<u32, HandoverError> {
        let (said, tell) = io::pipe().map_err(HandoverError::Start)?;
        let (ours, news) = UnixStream::pair().map_err(HandoverError::Start)?;
        let mut successor = {
            // Copies that a new program keeps: this process starts no other one meanwhile.
            let mut passed =
                vec![("ready", dup(&tell).map_err(errno)?), ("news", dup(&news).map_err(errno)?)];
            for (name, socket) in self.kept.lock().iter() {
                passed.push((name, dup(socket).map_err(errno)?));
            }
            let list = passed.iter().map(|(name, fd)| format!(" {name}={}", fd.as_raw_fd()));
            let value = format!("parent={}{}", std::process::id(), list.collect::<String>());
            let mut command = Command::new(&self.program);
            command.args(&self.arguments).env(VARIABLE, value);
            Successor(Some(command.spawn().map_err(HandoverError::Start)?))
        };
        // So that the end of the new process is the end of the pipe.
        drop((tell, news));
        let answer = async {
            let mut said = tokio::net::unix::pipe::Receiver::from_owned_fd(said.into())?;
            let mut text = [0; READY.len()];
            said.read_exact(&mut text).await.map(|_| text == READY)
        };
        let failed = match timeout(PATIENCE, answer).await {
            Ok(Ok(true)) => {
                *self.successor.lock() = Some(ours);
                return Ok(successor.0.take().map_or(0, |child| child.id()));
            }
            Ok(_) => None,
            Err(_) => Some(HandoverError::Slow),
        };
        match (failed, successor.end()) {
            (None, Some(status)) => {
                Err(HandoverError::Ended(status.map_err(HandoverError::Start)?))
            }
            (failed, _) => Err(failed.unwrap_or(HandoverError::Slow)),
        }
    }
}

fn errno(errno: nix::errno::Errno) -> HandoverError {
    HandoverError::Start(errno.into())
}

/// What a parent has passed on.
#[derive(Default)]
struct Inherited {
    /// By name.
    listeners: Vec<(String, OwnedFd)>,
    /// Where to say that we are ready.
    ready: Option<OwnedFd>,
    news: Option<OwnedFd>,
}

/// Numbers that are no such thing are left alone.
fn inherit(value: &str, parent: i32) -> Inherited {
    let pairs: Vec<_> = value.split(' ').filter_map(|pair| pair.split_once('=')).collect();
    // Else the variable came by way of somebody who did not pass the sockets.
    let ours = |(name, number): &(&str, &str)| *name == "parent" && *number == parent.to_string();
    let mut taken = Inherited::default();
    if !pairs.iter().any(ours) {
        return taken;
    }
    for (name, number) in pairs {
        let Some(number) = number.parse().ok().filter(|&number: &RawFd| number > 2) else {
            continue;
        };
        match name {
            "parent" => {}
            "ready" => taken.ready = adopt(number),
            "news" => taken.news = adopt(number),
            _ => {
                let socket = adopt(number);
                let socket = socket.filter(|s| getsockopt(s, AcceptConn).unwrap_or(false));
                taken.listeners.extend(socket.map(|socket| (name.to_owned(), socket)));
            }
        }
    }
    taken
}

/// Takes over a descriptor, which children of ours shall not have.
fn adopt(number: RawFd) -> Option<OwnedFd> {
    // SAFETY: the parent has opened it for us, and nothing else here knows its number: it is read
    // once, at the start, before anything else is opened by that number.
    let fd = unsafe { OwnedFd::from_raw_fd(number) };
    match fcntl(&fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)) {
        Ok(_) => Some(fd),
        Err(_) => {
            // It is not open, so there is nothing to close either.
            std::mem::forget(fd);
            None
        }
    }
}

/// Tells systemd, if it is there (sd_notify(3)).
fn notify(state: &str) {
    use std::os::{
        linux::net::SocketAddrExt,
        unix::{ffi::OsStrExt, net},
    };
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let address = match path.as_bytes().strip_prefix(b"@") {
        Some(name) => net::SocketAddr::from_abstract_name(name),
        None => net::SocketAddr::from_pathname(&path),
    };
    let sent = address
        .and_then(|address| net::UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address));
    if let Err(error) = sent {
        tracing::warn!(%error, "systemd cannot be told");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(socket: &impl AsFd) -> RawFd {
        // A copy, as a parent passes it.
        let copy = dup(socket.as_fd()).unwrap();
        let number = copy.as_raw_fd();
        std::mem::forget(copy);
        number
    }

    #[test]
    fn listeners_and_the_pipe_are_taken_over_from_the_parent_alone() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let (_, pipe) = io::pipe().unwrap();
        let file = std::fs::File::open("/dev/null").unwrap();
        let value = format!(
            "parent=7 ready={} listen={} admin_listen={} gone=999999 bad=x low=1",
            raw(&pipe),
            raw(&listener),
            raw(&file)
        );
        let none = inherit(&value, 8);
        assert!(none.listeners.is_empty() && none.ready.is_none());
        let taken = inherit(&value, 7);
        assert!(taken.ready.is_some());
        let names: Vec<_> = taken.listeners.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["listen"], "a file is no listener");
        let same = std::net::TcpListener::from(taken.listeners.into_iter().next().unwrap().1);
        assert_eq!(same.local_addr().unwrap(), listener.local_addr().unwrap());
        let flags = fcntl(&same, FcntlArg::F_GETFD).unwrap();
        assert_eq!(flags & FdFlag::FD_CLOEXEC.bits(), FdFlag::FD_CLOEXEC.bits());
    }

    fn sockets(program: &str, arguments: &[&str]) -> Sockets {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        Sockets {
            program: program.into(),
            arguments: arguments.iter().map(Into::into).collect(),
            inherited: Mutex::default(),
            ready: Mutex::default(),
            news: Mutex::default(),
            successor: Mutex::default(),
            takes_over: false,
            handed_over: Notify::new(),
            kept: Mutex::new(vec![("listen", listener.into())]),
        }
    }

    const SAYS_READY: &str = "for pair in $DORMOUSE_INHERITED; do case $pair in ready=*) \
                              eval \"echo ready >&${pair#ready=}\";; esac; done";

    #[tokio::test]
    async fn a_process_that_says_it_is_ready_takes_over() {
        let process = sockets("/bin/bash", &["-c", SAYS_READY]).hand_over().await.unwrap();
        assert!(process > 0);
    }

    #[tokio::test]
    async fn one_that_ends_or_cannot_be_started_changes_nothing() {
        let failed = sockets("/bin/bash", &["-c", "exit 3"]).hand_over().await.unwrap_err();
        assert!(failed.to_string().contains("exit status: 3"), "{failed}");
        let failed = sockets("/nonexistent", &[]).hand_over().await.unwrap_err();
        assert!(matches!(failed, HandoverError::Start(_)), "{failed}");
    }

    #[tokio::test]
    async fn who_stops_meanwhile_leaves_no_successor_behind() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("pid");
        let script = format!("echo $$ > {0}.new; mv {0}.new {0}; exec sleep 1000", file.display());
        let sockets = sockets("/bin/bash", &["-c", &script]);
        let started = async {
            while !file.exists() {
                sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::select! {
            _ = sockets.hand_over() => panic!("it never says that it is ready"),
            () = started => {}
        }
        let process = std::fs::read_to_string(&file).unwrap();
        assert!(!std::path::Path::new("/proc").join(process.trim()).exists(), "{process}");
    }

    #[test]
    fn the_same_address_is_not_listened_on_twice() {
        let address = |text: &str| text.parse::<SocketAddr>().unwrap();
        assert!(is_same(address("127.0.0.1:5"), address("127.0.0.1:5")));
        assert!(is_same(address("127.0.0.1:5"), address("127.0.0.1:0")));
        assert!(!is_same(address("127.0.0.1:5"), address("127.0.0.1:6")));
        assert!(!is_same(address("127.0.0.1:5"), address("0.0.0.0:5")));
    }
}
