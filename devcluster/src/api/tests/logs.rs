use std::sync::Arc;

use futures::AsyncReadExt as _;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Api, LogParams, Patch, PatchParams, PostParams};
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::{Cluster, failure};

/// A node's endpoint that knows callers by the cluster's authority alone. It answers one
/// request after another with the request's first line, or with 404 for container `gone`.
async fn node_endpoint(cluster: &Cluster) -> u16 {
    let mut roots = rustls::RootCertStore::empty();
    let ca = cluster.dir.path().join("api/pki/ca.crt");
    roots.add(CertificateDer::from_pem_file(ca).unwrap()).unwrap();
    let verifier = WebPkiClientVerifier::builder(Arc::new(roots)).build().unwrap();
    let made = rcgen::generate_simple_self_signed(vec!["node".to_owned()]).unwrap();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
    let config = rustls::ServerConfig::builder()
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let mut head = vec![0; 4096];
            let n = stream.read(&mut head).await.unwrap_or(0);
            let line = String::from_utf8_lossy(&head[..n]).lines().next().unwrap_or("").to_owned();
            let status = if line.contains("/gone") { "404 Not Found" } else { "200 OK" };
            let text = format!("HTTP/1.1 {status}\r\nconnection: close\r\n\r\n{line}\n");
            let _ = stream.write_all(text.as_bytes()).await;
            let _ = stream.shutdown().await;
        }
    });
    port
}

#[tokio::test]
async fn logs_come_from_the_pods_node() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let pods: Api<Pod> = Api::default_namespaced(client.clone());
    let pod: Pod = serde_json::from_value(
        json!({"metadata": {"name": "p"}, "spec": {"nodeName": "n1", "containers": [
        {"name": "c", "image": "x"}, {"name": "gone", "image": "x"}]}}),
    )
    .unwrap();
    pods.create(&PostParams::default(), &pod).await.unwrap();
    let of = |container: &str| LogParams {
        container: Some(container.into()),
        tail_lines: Some(5),
        follow: true,
        ..LogParams::default()
    };
    let status = failure(pods.logs("p", &of("c")).await);
    assert!(status.message.contains("node \"n1\" of the pod does not exist"), "{}", status.message);

    let nodes: Api<Node> = Api::all(client);
    let node: Node = serde_json::from_value(json!({"metadata": {"name": "n1"}})).unwrap();
    nodes.create(&PostParams::default(), &node).await.unwrap();
    let port = node_endpoint(&cluster).await;
    let status = json!({"status": {"addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": port}}}});
    nodes.patch_status("n1", &PatchParams::default(), &Patch::Merge(&status)).await.unwrap();

    let mut text = String::new();
    pods.log_stream("p", &of("c")).await.unwrap().read_to_string(&mut text).await.unwrap();
    assert!(text.starts_with("GET /containerLogs/default/p/c?"), "{text}");
    assert!(text.contains("follow=true") && text.contains("tailLines=5"), "{text}");
    assert_eq!(failure(pods.logs("p", &of("gone")).await).code, 404);
    let status = failure(pods.logs("p", &LogParams::default()).await);
    assert!(status.message.contains("choose one of: [c gone]"), "{}", status.message);
    assert_eq!(failure(pods.logs("p", &of("other")).await).code, 400);
}
