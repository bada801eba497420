//! Plain HTTP goes to HTTPS, and nowhere else.

use std::{net::SocketAddr, time::Duration};

use proxy::{Certificates, Config, Tls, tls_config::TlsConfig};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{pki::Authority, world::World};

async fn start(adjust: impl FnOnce(&mut Config)) -> (World, SocketAddr) {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let (chain, key) = authority.issue(&["*.example.test"]).write(folder.path(), "a");
    let redirect = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = redirect.local_addr().unwrap();
    let config =
        TlsConfig { certificate_file: Some(chain), key_file: Some(key), ..TlsConfig::default() };
    let certificates = Certificates::Managed { config: Box::new(config), elsewhere: None };
    let tls = Tls { certificates, redirect: Some(redirect) };
    (World::with_tls(tls, authority.der, adjust).await, address)
}

async fn ask(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

fn location(answer: &str) -> Option<&str> {
    answer.lines().find_map(|line| line.strip_prefix("Location: "))
}

#[tokio::test(flavor = "multi_thread")]
async fn ours_go_to_https_with_their_path_and_nobody_else_anywhere() {
    let (_world, address) = start(|config| config.external_port = 443).await;
    let host = "Lab--Alice.example.test:80";
    for (request, expected) in [
        ("GET /a%2Fb?c=d HTTP/1.1", "https://lab--alice.example.test/a%2Fb?c=d"),
        ("HEAD / HTTP/1.1", "https://lab--alice.example.test/"),
        ("GET //evil.test/ HTTP/1.0", "https://lab--alice.example.test//evil.test/"),
        // No authority asks for anything here.
        (
            "GET /.well-known/acme-challenge/x HTTP/1.1",
            "https://lab--alice.example.test/.well-known/acme-challenge/x",
        ),
    ] {
        let answer = ask(address, &format!("{request}\r\nHost: {host}\r\n\r\n")).await;
        assert!(answer.starts_with("HTTP/1.1 308 "), "{request}: {answer}");
        assert_eq!(location(&answer), Some(expected), "{request}");
        assert!(answer.contains("Connection: close\r\n"), "{answer}");
        assert!(!answer.contains("Strict-Transport-Security"), "not over plain HTTP: {answer}");
    }
    let body = format!(
        "POST /x HTTP/1.1\r\nHost: {host}\r\nContent-Length: 5\r\n\r\nhello GET / HTTP/1.1\r\n\r\n"
    );
    let answer = ask(address, &body).await;
    assert!(answer.starts_with("HTTP/1.1 308 "), "{answer}");
    assert_eq!(answer.matches("HTTP/1.1").count(), 1, "one request a connection: {answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_10_no_open_redirect() {
    let (_world, address) = start(|_| {}).await;
    for (lines, status) in [
        ("GET / HTTP/1.1\r\nHost: evil.test", "404"),
        ("GET / HTTP/1.1\r\nHost: lab.example.test.evil.test", "404"),
        ("GET / HTTP/1.1\r\nHost: evil.test#.example.test", "400"),
        ("GET / HTTP/1.1\r\nHost: evil.test/.example.test", "400"),
        ("GET / HTTP/1.1\r\nHost: user@lab.example.test", "400"),
        ("GET / HTTP/1.1\r\nHost: lab.example.test\r\nHost: evil.test", "400"),
        ("GET http://evil.test/ HTTP/1.1\r\nHost: lab.example.test", "400"),
        ("GET /\u{b}x HTTP/1.1\r\nHost: lab.example.test", "400"),
        ("GET / HTTP/1.1", "400"),
        ("CONNECT lab.example.test:443 HTTP/1.1\r\nHost: lab.example.test", "405"),
    ] {
        let answer = ask(address, &format!("{lines}\r\n\r\n")).await;
        assert_eq!(answer.get(9..12), Some(status), "{lines}: {answer}");
        assert_eq!(location(&answer), None, "{lines}");
    }
    let long = format!("GET / HTTP/1.1\r\nHost: lab.example.test\r\nX: {}", "y".repeat(20_000));
    assert!(ask(address, &long).await.starts_with("HTTP/1.1 431 "));
}

#[tokio::test(flavor = "multi_thread")]
async fn attack_11_a_slow_head_is_cut_on_the_plain_port() {
    let (world, address) =
        start(|config| config.limits.head_timeout = Duration::from_millis(200)).await;
    let mut slow = TcpStream::connect(address).await.unwrap();
    slow.write_all(b"GET / HTTP/1.1\r\nHost: ").await.unwrap();
    let request = "GET / HTTP/1.1\r\nHost: lab.example.test\r\n\r\n";
    let port = world.address.port();
    let answer = ask(address, request).await;
    assert_eq!(location(&answer).unwrap(), format!("https://lab.example.test:{port}/"));
    let mut nothing = Vec::new();
    let _ = slow.read_to_end(&mut nothing).await;
    assert!(nothing.is_empty());
    world.shutdown.cancel();
    world.served.await.unwrap().unwrap();
    assert!(TcpStream::connect(address).await.is_err());
}
