//! Remote forwarding of Unix sockets (OpenSSH's PROTOCOL file, section 2.4): a socket in the
//! workspace's file system whose connections go to the person's side.

use std::{
    fs, io,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use nix::sys::stat::{Mode, fchmod};
use tokio::net::{UnixListener, UnixSocket, UnixStream};
use tokio_util::sync::CancellationToken;

use crate::{
    forward::{self, ACCEPTED_MAX, CONFIRM},
    gateway::Gateway,
};

/// Connections that wait to be accepted.
const BACKLOG: u32 = 64;

/// A socket that is taken away again when it is dropped, unless another has its place by then.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode.
    number: (u64, u64),
}

impl Drop for Socket {
    fn drop(&mut self) {
        if number(&self.path).is_ok_and(|now| now == self.number) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn number(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|found| (found.dev(), found.ino()))
}

/// Listens there, for this user alone. What exists is left as it is, but for a socket that nobody
/// listens on any more, as a killed agent leaves it.
pub async fn bind(path: PathBuf) -> io::Result<Socket> {
    let listener = match try_bind(&path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_left_over(&path).await => {
            fs::remove_file(&path)?;
            try_bind(&path)?
        }
        other => other?,
    };
    let number = number(&path)?;
    Ok(Socket { listener, path, number })
}

fn try_bind(path: &Path) -> io::Result<UnixListener> {
    let socket = UnixSocket::new_stream()?;
    // Before it has a name, so that nobody else can connect in between.
    fchmod(&socket, Mode::S_IRUSR | Mode::S_IWUSR)?;
    socket.bind(path)?;
    socket.listen(BACKLOG)
}

async fn is_left_over(path: &Path) -> bool {
    let is_socket = fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket());
    let refused = |error: io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
    is_socket && UnixStream::connect(path).await.is_err_and(refused)
}

/// Until `stop`. `asked` is the path as the client wrote it: it finds its forwarding by it.
pub async fn listen(socket: Socket, asked: String, gateway: Gateway, stop: CancellationToken) {
    let room = Arc::new(tokio::sync::Semaphore::new(ACCEPTED_MAX));
    loop {
        let Ok(permit) = room.clone().acquire_owned().await else { return };
        let accepted = tokio::select! {
            accepted = socket.listener.accept() => accepted,
            () = stop.cancelled() => return,
        };
        let Ok((stream, _)) = accepted else {
            // Out of descriptors, most likely: others must end first.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let (gateway, asked, stop) = (gateway.clone(), asked.clone(), stop.clone());
        tokio::spawn(async move {
            let open = gateway.handle.channel_open_forwarded_streamlocal(asked);
            if let Ok(Ok(channel)) = tokio::time::timeout(CONFIRM, open).await {
                forward::bridge(channel, stream, gateway, stop).await;
            }
            drop(permit);
        });
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[tokio::test]
    async fn a_socket_is_its_users_alone_and_goes_when_it_ends() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.sock");
        let socket = bind(path.clone()).await.unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(bind(path.clone()).await.is_err(), "somebody listens there");
        drop(socket);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn what_is_left_over_is_replaced_and_what_is_not_a_socket_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.sock");
        // Closing does not take the name away.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let first = bind(path.clone()).await.unwrap();
        // Another has its place by now.
        fs::remove_file(&path).unwrap();
        fs::write(&path, "a file").unwrap();
        drop(first);
        assert!(bind(path.clone()).await.is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "a file");
    }
}
