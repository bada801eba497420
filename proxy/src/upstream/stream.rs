//! Connections to pods that are ours to read and write.

use std::io;

use domain::upstream::UpstreamProtocol;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::{
    Picked,
    tls::{self, TlsSettings},
};
use crate::{io::ToPod, tcp};

/// Without a deadline of its own; TLS has HTTP/1.1 inside. A pod of HTTP/2 without TLS is tried with
/// HTTP/1.1, which many of them speak as well.
pub async fn connect(picked: &Picked, settings: &TlsSettings) -> io::Result<ToPod> {
    let stream = TcpStream::connect(picked.address).await?;
    tcp::tune(&stream);
    match &picked.protocol {
        UpstreamProtocol::Http1 | UpstreamProtocol::H2c => Ok(ToPod::Plain(stream)),
        UpstreamProtocol::Tls(tls) => {
            let bad = |error| io::Error::new(io::ErrorKind::InvalidData, error);
            let name = tls::server_name(tls).map_err(bad)?;
            let config = settings.client(picked.pool, tls).map_err(bad)?;
            let stream = TlsConnector::from(config).connect(name, stream).await?;
            Ok(ToPod::Tls(Box::new(stream)))
        }
    }
}
