//! Connections to what is measured.

use std::{net::SocketAddr, path::PathBuf, pin::Pin, sync::Arc};

use anyhow::{Context as _, ensure};
use clap::Args;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;

/// Longest head of an answer.
const HEAD_MAX: usize = 16 * 1024;

#[derive(Args, Debug, Clone)]
pub struct Target {
    /// Where it listens
    #[arg(long, value_name = "ADDRESS:PORT")]
    to: SocketAddr,
    /// The Host field, and the name in the certificate
    #[arg(long, default_value = "localhost")]
    host: String,
    #[arg(long, default_value = "/")]
    path: String,
    /// More fields, such as "Authorization: Bearer ..."
    #[arg(long = "header", value_name = "FIELD")]
    headers: Vec<String>,
    /// Speak TLS, trusting the certificates of this file
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
}

pub trait Io: AsyncRead + AsyncWrite {}
impl<T: AsyncRead + AsyncWrite> Io for T {}

/// A connection, and what has been read of it and not been looked at.
pub struct Connection {
    pub io: Pin<Box<dyn Io>>,
    pub rest: Vec<u8>,
}

impl Target {
    /// Connects, sends a GET with these fields besides, and reads the head of the answer.
    pub async fn get(
        &self,
        path: Option<&str>,
        fields: &str,
    ) -> anyhow::Result<(u16, String, Connection)> {
        let mut connection = self.connect().await?;
        let (status, head) = self.ask(&mut connection, path, fields).await?;
        Ok((status, head, connection))
    }

    pub async fn connect(&self) -> anyhow::Result<Connection> {
        let tcp = TcpStream::connect(self.to).await.context("connecting")?;
        tcp.set_nodelay(true)?;
        let io: Pin<Box<dyn Io>> = match &self.ca {
            None => Box::pin(tcp),
            Some(file) => {
                let mut roots = RootCertStore::empty();
                for certificate in CertificateDer::pem_file_iter(file)? {
                    roots.add(certificate?)?;
                }
                let config =
                    ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
                let name = ServerName::try_from(self.host.clone())?;
                Box::pin(TlsConnector::from(Arc::new(config)).connect(name, tcp).await?)
            }
        };
        Ok(Connection { io, rest: Vec::new() })
    }

    pub async fn ask(
        &self,
        connection: &mut Connection,
        path: Option<&str>,
        fields: &str,
    ) -> anyhow::Result<(u16, String)> {
        self.send(connection, "GET", path.unwrap_or(&self.path), fields).await?;
        self.answer(connection).await
    }

    /// The same with another token.
    pub fn with_token(&self, token: &str) -> Self {
        let headers = vec![format!("Authorization: Bearer {token}")];
        Self { headers, ..self.clone() }
    }

    pub async fn send(
        &self,
        connection: &mut Connection,
        method: &str,
        path: &str,
        fields: &str,
    ) -> anyhow::Result<()> {
        let mut request = format!("{method} {path} HTTP/1.1\r\nHost: {}\r\n{fields}", self.host);
        for header in &self.headers {
            request.push_str(header);
            request.push_str("\r\n");
        }
        request.push_str("\r\n");
        connection.io.write_all(request.as_bytes()).await?;
        connection.io.flush().await?;
        Ok(())
    }

    /// Reads the head of an answer.
    pub async fn answer(&self, connection: &mut Connection) -> anyhow::Result<(u16, String)> {
        loop {
            let end = connection.rest.windows(4).position(|four| four == b"\r\n\r\n");
            if let Some(end) = end {
                let head: Vec<u8> = connection.rest.drain(..end + 4).collect();
                let head = String::from_utf8_lossy(&head).into_owned();
                let status = head.get(9..12).and_then(|code| code.parse().ok());
                return Ok((status.context("no status line")?, head));
            }
            ensure!(connection.rest.len() < HEAD_MAX, "the answer's head is too long");
            let read = connection.io.read_buf(&mut connection.rest).await?;
            ensure!(read > 0, "closed before it answered");
        }
    }
}
