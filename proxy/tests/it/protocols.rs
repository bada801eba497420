//! What is spoken to pods: HTTP/2 without TLS with trailers, and TLS that is checked.

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use domain::{
    route::{RouteSpec, State},
    upstream::{Routing, UpstreamProtocol, UpstreamTls, Verification},
};
use futures::{StreamExt, channel::mpsc};
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::{
    body::{Frame, Incoming},
    client::conn::http2::SendRequest,
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use crate::world::{HOST, World, spec};

type Answer = Response<BoxBody<Bytes, Infallible>>;

fn over(protocol: UpstreamProtocol, upstream: SocketAddr) -> RouteSpec {
    let routing = Routing { protocol, ..Routing::default() };
    RouteSpec { routing, ..spec(State::Running, &[upstream]) }
}

/// Says what it was sent, as a gRPC server would: the body back piece by piece, then trailers.
async fn echo(request: Request<Incoming>) -> Result<Answer, Infallible> {
    let header = |name: &str| {
        request.headers().get(name).map_or("-", |value| value.to_str().unwrap()).to_owned()
    };
    let names = ["te", "x-forwarded-user", "authorization", "connection", "host"];
    let said: Vec<_> = names.iter().map(|name| header(name)).collect();
    let said = format!("{:?} {} {}", request.version(), request.uri(), said.join(" "));
    let head_only = request.method() == "HEAD";
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    let end = futures::stream::iter([Ok(Frame::trailers(trailers))]);
    let pieces =
        request.into_body().into_data_stream().map(|piece| Ok(Frame::data(piece.unwrap())));
    let body = BodyExt::boxed(StreamBody::new(pieces.chain(end)));
    let answer = Response::builder().header("x-said", said);
    Ok(if head_only {
        answer.header("content-length", 1234).body(BodyExt::boxed(Full::new(Bytes::new())))
    } else {
        answer.body(body)
    }
    .unwrap())
}

async fn h2c() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(
                hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), service_fn(echo)),
            );
        }
    });
    address
}

type Body = BoxBody<Bytes, Infallible>;

async fn h2_client(world: &World) -> SendRequest<Body> {
    let tls = TokioIo::new(world.tls(&[b"h2"]).await);
    let (send, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), tls).await.unwrap();
    tokio::spawn(connection);
    send
}

fn call(world: &World, te: Option<&str>, body: Body) -> Request<Body> {
    let mut request = Request::post(format!("https://{HOST}:{}/svc/Call", world.address.port()))
        .header("authorization", world.bearer("alice"))
        .header("content-type", "application/grpc");
    if let Some(te) = te {
        request = request.header("te", te);
    }
    request.body(body).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn http_2_reaches_the_pod_with_te_and_the_trailers_come_back() {
    let world = World::start().await;
    world.set([over(UpstreamProtocol::H2c, h2c().await)]);
    let mut client = h2_client(&world).await;
    for (te, arrives) in [(Some("trailers"), "trailers"), (None, "-")] {
        let body = BodyExt::boxed(Full::new(Bytes::from("hello")));
        let answer = client.send_request(call(&world, te, body)).await.unwrap();
        assert_eq!(answer.status(), 200);
        let said = answer.headers()["x-said"].to_str().unwrap().to_owned();
        assert!(said.starts_with("HTTP/2.0 "), "{said}");
        assert!(said.contains(&format!("/svc/Call {arrives} alice - - ")), "{said}");
        let collected = answer.into_body().collect().await.unwrap();
        assert_eq!(collected.trailers().unwrap()["grpc-status"], "0");
        assert_eq!(collected.to_bytes(), "hello");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_pass_both_ways_while_the_call_is_open_and_a_cancel_reaches_the_pod() {
    let world = World::start().await;
    world.set([over(UpstreamProtocol::H2c, h2c().await)]);
    let mut client = h2_client(&world).await;
    let (send, pieces) = mpsc::unbounded::<Bytes>();
    let body = StreamBody::new(pieces.map(|piece| Ok::<_, Infallible>(Frame::data(piece))));
    let request = call(&world, Some("trailers"), BodyExt::boxed(body));
    let answer = client.send_request(request).await.unwrap();
    let mut answers = answer.into_body().into_data_stream();
    for n in 0..20 {
        let said = Bytes::from(format!("message {n}"));
        send.unbounded_send(said.clone()).unwrap();
        let heard = tokio::time::timeout(Duration::from_secs(10), answers.next());
        assert_eq!(heard.await.unwrap().unwrap().unwrap(), said);
    }
    let endpoint = world.endpoints("alice").remove(0);
    assert_eq!(endpoint.load().outstanding(), 1);
    // Dropping the body resets the stream (RFC 9113, section 8.1).
    drop((answers, send));
    while endpoint.load().outstanding() > 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_http_1_client_reaches_a_pod_that_speaks_http_2_only() {
    let world = World::start().await;
    world.set([over(UpstreamProtocol::H2c, h2c().await)]);
    let url = world.url(HOST, "/x?y=1");
    let request = world.client(true).post(&url).header("Authorization", world.bearer("alice"));
    let answer = request.header("TE", "trailers").body("hello").send().await.unwrap();
    assert_eq!(answer.status(), 200);
    let said = answer.headers()["x-said"].to_str().unwrap().to_owned();
    assert!(said.contains("/x?y=1 - alice - - "), "{said}");
    assert_eq!(answer.text().await.unwrap(), "hello");
    let head = world.client(true).head(&url).header("Authorization", world.bearer("alice"));
    let head = head.send().await.unwrap();
    assert_eq!(head.headers()["content-length"], "1234");
}

/// A pod with a certificate for `web.alice.svc`, by an authority of its own: HTTP/1.1, one answer a
/// connection, or an upgrade.
async fn tls_pod() -> (SocketAddr, String) {
    let key = rcgen::generate_simple_self_signed(vec!["web.alice.svc".to_owned()]).unwrap();
    let private = PrivateKeyDer::try_from(key.signing_key.serialize_der()).unwrap();
    let mut config = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![key.cert.der().clone()], private)
        .unwrap();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(mut stream) = acceptor.accept(stream).await else { return };
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    match stream.read_u8().await {
                        Ok(byte) => head.push(byte),
                        Err(_) => return,
                    }
                }
                let upgrade = String::from_utf8_lossy(&head).contains("Upgrade: websocket");
                let answer = if upgrade {
                    "HTTP/1.1 101 S\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nhi"
                } else {
                    "HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\nsecret"
                };
                let _ = stream.write_all(answer.as_bytes()).await;
                let _ = stream.read(&mut [0]).await;
            });
        }
    });
    (address, key.cert.pem())
}

async fn asked(world: &World) -> (u16, String) {
    let request = world.client(true).get(world.url(HOST, "/"));
    let answer = request.header("Authorization", world.bearer("alice")).send().await.unwrap();
    (answer.status().as_u16(), answer.text().await.unwrap())
}

async fn upgraded(world: &World) -> String {
    let mut raw = world.raw().await;
    raw.send(&format!(
        "GET / HTTP/1.1\r\nHost: {HOST}\r\nAuthorization: {}\r\nConnection: Upgrade\r\n\
         Upgrade: websocket\r\nSec-WebSocket-Key: x\r\nSec-WebSocket-Version: 13\r\n\r\n",
        world.bearer("alice")
    ))
    .await;
    raw.answer().await.0.split(' ').nth(1).unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pods_certificate_is_checked_unless_it_is_told_not_to() {
    let world = World::start().await;
    let (pod, authority) = tls_pod().await;
    let other = rcgen::generate_simple_self_signed(vec!["web.alice.svc".to_owned()]).unwrap();
    assert!(CertificateDer::from_pem_slice(authority.as_bytes()).is_ok());
    let given = |pem: &str| Verification::Authorities(pem.to_owned());
    for (name, verification, let_through) in [
        ("web.alice.svc", given(&authority), true),
        ("other.alice.svc", given(&authority), false),
        ("web.alice.svc", given(&other.cert.pem()), false),
        ("web.alice.svc", given("no certificate"), false),
        ("web.alice.svc", Verification::System, false),
        ("", given(&authority), false),
        ("", Verification::Skip, false),
        ("anything", Verification::Skip, true),
    ] {
        let tls = UpstreamTls { server_name: name.to_owned(), verification };
        let what = format!("{tls:?}");
        world.set([over(UpstreamProtocol::Tls(Arc::new(tls)), pod)]);
        let (status, body) = asked(&world).await;
        let upgrade = upgraded(&world).await;
        if let_through {
            assert_eq!((status, body.as_str(), upgrade.as_str()), (200, "secret", "101"), "{what}");
        } else {
            assert!(
                (status == 502 || status == 503) && !body.contains("secret"),
                "{what}: {status}"
            );
            assert!(upgrade == "502" || upgrade == "503", "{what}: {upgrade}");
        }
    }
}
