//! The API server with real clients: kube in this process, and kubectl.

mod clients;
mod definitions;
mod kubectl;
mod logs;
mod strictness;
mod watches;
mod writes;

use std::net::{Ipv4Addr, SocketAddr};

use kube::config::{KubeConfigOptions, Kubeconfig};
use tokio_util::sync::CancellationToken;

use super::{ApiOptions, ApiServer, serve};

/// A server on a directory of its own.
pub struct Cluster {
    pub dir: tempfile::TempDir,
    pub server: ApiServer,
    pub shutdown: CancellationToken,
}

impl Cluster {
    pub async fn start() -> Self {
        Self::start_in(tempfile::tempdir().unwrap()).await
    }

    pub async fn start_in(dir: tempfile::TempDir) -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let shutdown = CancellationToken::new();
        let options = ApiOptions {
            data_dir: dir.path().join("api"),
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        };
        let server = serve(options, shutdown.clone()).await.unwrap();
        Self { dir, server, shutdown }
    }

    pub async fn config(&self) -> kube::Config {
        let file = Kubeconfig::read_from(self.server.kubeconfig()).unwrap();
        kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.unwrap()
    }

    pub async fn client(&self) -> kube::Client {
        kube::Client::try_from(self.config().await).unwrap()
    }

    /// Ends the server and gives its directory back.
    pub async fn stop(self) -> tempfile::TempDir {
        self.shutdown.cancel();
        self.server.ended().await;
        self.dir
    }
}

/// The Status of a failed request.
pub fn failure<T: std::fmt::Debug>(result: kube::Result<T>) -> kube::core::Status {
    match result.unwrap_err() {
        kube::Error::Api(status) => *status,
        other => panic!("not an answer of the API: {other}"),
    }
}
