//! A server that says much to whoever connects, and SSH connections whose channels nobody reads.

use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};

use anyhow::{Context as _, ensure};
use futures::{StreamExt, TryStreamExt, stream};
use russh::{
    Channel,
    client::{self, Handle, Msg},
    keys::PublicKeyOrCertificate,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    sync::watch,
    time::timeout,
};

/// Connections that are opened at a time.
const AT_ONCE: usize = 4;
const WITHIN: Duration = Duration::from_secs(120);

/// Writes without an end on each connection, once there are `after` of them.
pub async fn serve(socket: &Path, after: usize) -> anyhow::Result<()> {
    let listener = UnixListener::bind(socket)?;
    println!("ready");
    let (count, there) = watch::channel(0usize);
    loop {
        let (stream, _) = listener.accept().await?;
        count.send_modify(|count| *count += 1);
        tokio::spawn(flood(stream, there.clone(), after));
    }
}

async fn flood(
    mut stream: UnixStream,
    mut there: watch::Receiver<usize>,
    after: usize,
) -> anyhow::Result<()> {
    there.wait_for(|count| *count >= after).await?;
    let zeros = [0; 16 << 10];
    loop {
        stream.write_all(&zeros).await?;
    }
}

struct Trusting;

impl client::Handler for Trusting {
    type Error = russh::Error;

    async fn check_server_key(&mut self, _: &PublicKeyOrCertificate) -> Result<bool, Self::Error> {
        Ok(true)
    }
}

struct Connection {
    _handle: Handle<Trusting>,
    _channels: Vec<Channel<Msg>>,
}

/// Forwarded connections to a Unix socket in the workload, none of which is ever read.
pub struct Unread {
    pub address: SocketAddr,
    pub user: String,
    pub token: String,
    pub socket: String,
    pub connections: usize,
    pub channels: usize,
}

impl Unread {
    /// Opens them all, prints a line, and holds them until standard input ends.
    pub async fn hold(&self) -> anyhow::Result<()> {
        // A channel takes a few messages, and then its connection is not read any more.
        let config =
            Arc::new(client::Config { channel_buffer_size: 2, ..client::Config::default() });
        let open = |_| timeout(WITHIN, self.open(config.clone()));
        let open: Vec<Connection> = stream::iter(0..self.connections)
            .map(open)
            .buffer_unordered(AT_ONCE)
            .map(|opened| opened.context("a connection takes too long")?)
            .try_collect()
            .await?;
        println!("{{\"channels\":{}}}", open.len() * self.channels);
        let mut nothing = Vec::new();
        tokio::io::stdin().read_to_end(&mut nothing).await?;
        Ok(())
    }

    async fn open(&self, config: Arc<client::Config>) -> anyhow::Result<Connection> {
        let mut handle = client::connect(config, self.address, Trusting).await?;
        let signed_in = handle.authenticate_password(&self.user, &self.token).await?.success();
        ensure!(signed_in, "{} cannot sign in with that token", self.user);
        let mut channels = Vec::new();
        for _ in 0..self.channels {
            let channel = handle.channel_open_direct_streamlocal(&self.socket);
            channels.push(channel.await.context("a channel is refused")?);
        }
        Ok(Connection { _handle: handle, _channels: channels })
    }
}
