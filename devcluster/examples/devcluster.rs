//! API server, controllers and node in one process, for trying them with kubectl:
//! `cargo build -p dormouse-devcluster --bins`, `cargo run -p dormouse-devcluster --example devcluster -- DIR`, then
//! `kubectl --kubeconfig DIR/api/kubeconfig get nodes`.

use devcluster::api::{ApiOptions, serve};
use devcluster::{controllers, node};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = PathBuf::from(std::env::args_os().nth(1).ok_or("say a data directory")?);
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let (stop_server, stop_rest) = (CancellationToken::new(), CancellationToken::new());
    let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let options = ApiOptions { data_dir: dir.join("api"), listen };
    let server = serve(options, stop_server.clone()).await?;
    let kubeconfig = kube::config::Kubeconfig::read_from(server.kubeconfig())?;
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &Default::default()).await?;
    let client = kube::Client::try_from(config.clone())?;
    let shim = std::env::current_exe()?.with_file_name("../pod-shim");
    let options =
        node::NodeOptions::new("dormouse", dir.join("node"), vec![shim.into_os_string()], &config);
    let controllers = tokio::spawn(controllers::run(client.clone(), stop_rest.clone()));
    let node = tokio::spawn(node::run(client, options, stop_rest.clone()));
    eprintln!("serving; kubectl --kubeconfig {}", server.kubeconfig().display());
    tokio::signal::ctrl_c().await?;
    stop_rest.cancel();
    node.await??;
    controllers.await??;
    stop_server.cancel();
    server.ended().await;
    Ok(())
}
