//! The API server: Kubernetes' REST API over objects in SQLite, on TLS with one credential.
//!
//! `kubectl` and kube clients work against it: watches, server-side apply, custom
//! resources, status and scale, tables, logs. It carries what this project uses, and
//! refuses the rest instead of pretending.

mod access;
mod builtin;
mod cel;
mod crd;
mod db;
mod discovery;
mod events;
mod fields;
mod identity;
mod meta;
mod names;
mod openapi;
mod protobuf;
mod registry;
mod rest;
mod schema;
mod selector;
mod server;
mod status;
mod store;
mod strategic;
mod table;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub use identity::IdentityError;

/// Where the API server keeps its state and listens.
#[derive(Debug, Clone)]
pub struct ApiOptions {
    /// Made if it is missing, readable by this user alone.
    pub data_dir: PathBuf,
    /// With port 0 the server takes the port it had before when that is free, else any.
    pub listen: SocketAddr,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error("cannot listen on {address}: {source}; is another server using the port?")]
    Listen { address: SocketAddr, source: std::io::Error },
    #[error(
        "cannot open the database {path}: {source}; is another process using this data directory?"
    )]
    Database { path: PathBuf, source: sqlx::Error },
    #[error("cannot prepare the cluster: {0}")]
    Bootstrap(String),
    #[error("cannot make the client for nodes: {0}")]
    NodeClient(#[from] reqwest::Error),
}

/// A running API server.
pub struct ApiServer {
    kubeconfig: PathBuf,
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl ApiServer {
    /// A kubeconfig with this server's authority and credential, for this user alone.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Waits until the server has ended after `shutdown`.
    pub async fn ended(self) {
        if let Err(error) = self.task.await {
            tracing::error!(%error, "the API server failed");
        }
    }
}

/// Starts the API server. It serves when this returns.
///
/// # Errors
/// When the directory, the database or the address cannot be used.
pub async fn serve(options: ApiOptions, shutdown: CancellationToken) -> Result<ApiServer, Error> {
    let data_dir = &options.data_dir;
    identity::private_dir(data_dir)?;
    // The database's lock comes first: it keeps a second process out.
    let path = data_dir.join("objects.db");
    let opened = db::Db::open(&path).await;
    let database = opened.map_err(|source| Error::Database { path: path.clone(), source })?;
    let loaded = store::Store::load(database).await;
    let store = loaded.map_err(|source| Error::Database { path, source })?;
    let (listener, address) = bind(data_dir, options.listen).await?;
    let identity = identity::Identity::load(data_dir, address)?;
    let kubelets = rest::Kubelets::new(&identity.kubelet_client)?;
    let app = Arc::new(rest::App::new(store, kubelets, shutdown.clone()));
    rest::bootstrap(&app).await.map_err(|error| Error::Bootstrap(error.message))?;
    rest::resume(&app);
    tokio::spawn(events::sweep(app.clone()));
    let host = if address.ip().is_unspecified() {
        format!("127.0.0.1:{}", address.port())
    } else {
        address.to_string()
    };
    let kubeconfig = identity.write_kubeconfig(data_dir, &format!("https://{host}"))?;
    let server = server::Server { app, token: identity.token, tls: identity.tls };
    let task = tokio::spawn(server.run(listener, shutdown));
    Ok(ApiServer { kubeconfig, address, task })
}

async fn bind(data_dir: &Path, listen: SocketAddr) -> Result<(TcpListener, SocketAddr), Error> {
    let failed = |source| Error::Listen { address: listen, source };
    let remembered_path = data_dir.join("port");
    let mut listener = None;
    if listen.port() == 0 {
        let port = std::fs::read_to_string(&remembered_path)
            .ok()
            .and_then(|text| text.trim().parse::<u16>().ok());
        if let Some(port) = port.filter(|port| *port != 0) {
            listener = TcpListener::bind(SocketAddr::new(listen.ip(), port)).await.ok();
        }
    }
    let listener = match listener {
        Some(listener) => listener,
        None => TcpListener::bind(listen).await.map_err(failed)?,
    };
    let address = listener.local_addr().map_err(failed)?;
    identity::write_private(&remembered_path, address.port().to_string().as_bytes())?;
    Ok((listener, address))
}
