//! A connection to a pod that is ours to read and write: plain, or TLS with HTTP/1.1 inside.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use domain::upstream::UpstreamProtocol;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{
    Picked,
    tls::{self, TlsSettings},
};
use crate::tcp;

#[derive(Debug)]
pub enum UpstreamStream {
    Plain(TcpStream),
    /// Boxed: nearly all are plain, and an idle one should cost little.
    Tls(Box<TlsStream<TcpStream>>),
}

impl UpstreamStream {
    /// Without a deadline of its own. A pod of HTTP/2 without TLS is tried with HTTP/1.1, which many
    /// of them speak as well.
    pub async fn connect(picked: &Picked, settings: &TlsSettings) -> io::Result<Self> {
        let stream = TcpStream::connect(picked.address).await?;
        tcp::tune(&stream);
        match &picked.protocol {
            UpstreamProtocol::Http1 | UpstreamProtocol::H2c => Ok(Self::Plain(stream)),
            UpstreamProtocol::Tls(tls) => {
                let bad = |error| io::Error::new(io::ErrorKind::InvalidData, error);
                let name = tls::server_name(tls).map_err(bad)?;
                let config = settings.client(picked.pool, tls).map_err(bad)?;
                let stream = TlsConnector::from(config).connect(name, stream).await?;
                Ok(Self::Tls(Box::new(stream)))
            }
        }
    }
}

impl AsyncRead for UpstreamStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, into),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, into),
        }
    }
}

impl AsyncWrite for UpstreamStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
