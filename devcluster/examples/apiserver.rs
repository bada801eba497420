//! The API server alone, for trying it with kubectl:
//! `cargo run -p dormouse-devcluster --example apiserver -- DIR`, then
//! `kubectl --kubeconfig DIR/kubeconfig get ns`.

use std::net::{Ipv4Addr, SocketAddr};

use devcluster::api::{ApiOptions, serve};
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let data_dir = std::env::args_os().nth(1).ok_or("say a data directory")?.into();
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let shutdown = CancellationToken::new();
    let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let server = serve(ApiOptions { data_dir, listen }, shutdown.clone()).await?;
    eprintln!("serving; kubectl --kubeconfig {}", server.kubeconfig().display());
    tokio::signal::ctrl_c().await?;
    shutdown.cancel();
    server.ended().await;
    Ok(())
}
