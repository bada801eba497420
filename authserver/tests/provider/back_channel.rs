//! Clients are told when a session is over (OpenID Connect Back-Channel Logout 1.0).

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use axum::{Form, Router, extract::State, http::StatusCode, routing::post};
use reqwest::{Method, header};
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::mpsc, time::timeout};

use crate::support::*;

type Answers = Arc<std::sync::Mutex<Vec<StatusCode>>>;

/// A client that hands on what it is told, and answers as given, and then with 200.
async fn client(answers: &[StatusCode]) -> (String, mpsc::Receiver<String>) {
    let (told, hears) = mpsc::channel(16);
    let answers: Answers = Arc::new(std::sync::Mutex::new(answers.to_vec()));
    let listen = async |State((told, answers)): State<(mpsc::Sender<String>, Answers)>,
                        Form(form): Form<BTreeMap<String, String>>| {
        told.send(form["logout_token"].clone()).await.unwrap();
        answers.lock().unwrap().pop().unwrap_or(StatusCode::OK)
    };
    let router = Router::new().route("/bye", post(listen)).with_state((told, answers));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let uri = format!("http://{}/bye", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await });
    (uri, hears)
}

async fn next(hears: &mut mpsc::Receiver<String>) -> String {
    timeout(Duration::from_secs(20), hears.recv()).await.unwrap().unwrap()
}

async fn server(uri: &str) -> Server {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("told-uri"), uri).unwrap();
    Server::start_in(folder).await
}

/// Signs alice in to the client; returns the browser and the ID token.
async fn sign_in(server: &Server) -> (Browser, String) {
    let callback = "https://told.example/cb";
    let mut browser = Browser::default();
    let path = authorize_with(&[("client_id", "told"), ("redirect_uri", callback)]);
    let to = browser.sign_in(server, &path, "alice").await;
    let code = query(&to)["code"].clone();
    let form = code_form(&code).map(|(n, v)| (n, if n == "redirect_uri" { callback } else { v }));
    let (_, tokens) = server.token(("told", OTHER.1), &form).await;
    (browser, text(&tokens, "id_token").to_owned())
}

async fn sign_out(browser: &mut Browser, server: &Server) {
    let page = browser.open(server, "/sign-out").await.text().await.unwrap();
    let out = server.request(Method::POST, "/sign-out").header(header::ORIGIN, ISSUER);
    browser.send(out.form(&[("ticket", ticket(&page))])).await;
}

#[tokio::test]
async fn a_client_is_told_that_a_session_is_over() {
    let (uri, mut hears) = client(&[]).await;
    let server = server(&uri).await;
    let (mut browser, id_token) = sign_in(&server).await;
    let (_other, _) = sign_in(&server).await;
    sign_out(&mut browser, &server).await;
    let token = next(&mut hears).await;
    let (told, id) = (claims(&token), claims(&id_token));
    for same in ["iss", "sub", "aud", "sid"] {
        assert_eq!(told[same], id[same], "{same}");
    }
    assert_eq!(told["events"], json!({ "http://schemas.openid.net/event/backchannel-logout": {} }));
    assert_eq!(
        (told["iat"].as_i64(), told["exp"].as_i64()),
        (Some(server.now().as_second()), Some(server.now().as_second() + 120))
    );
    assert!(told["jti"].is_string() && told.get("nonce").is_none());
    let header: Value = serde_json::from_slice(&decode(token.split('.').next().unwrap())).unwrap();
    assert_eq!(
        (header["typ"].as_str(), header["alg"].as_str()),
        (Some("logout+jwt"), Some("RS256"))
    );
    // It is neither an access token nor a hint.
    assert!(server.verifier().await.verify(&token, server.now()).is_err());
    server.audited("sign-out-told").await;
    // Once, and about this session alone: the next is about the other one.
    server.store.disable_user(&"alice".parse().unwrap(), server.now()).await.unwrap();
    assert_ne!(claims(&next(&mut hears).await)["sid"], id["sid"]);
    assert!(hears.try_recv().is_err());
}

#[tokio::test]
async fn a_client_that_fails_is_told_again_and_then_given_up() {
    let (uri, mut hears) = client(&[StatusCode::INTERNAL_SERVER_ERROR; 6]).await;
    let server = server(&uri).await;
    let (mut browser, _) = sign_in(&server).await;
    sign_out(&mut browser, &server).await;
    let first = claims(&next(&mut hears).await);
    for wait in [5, 30, 120, 600, 1800] {
        assert!(!server.audit().contains("sign-out-told"));
        server.wait(wait);
        let again = claims(&next(&mut hears).await);
        assert_eq!(again["sid"], first["sid"]);
        assert_ne!(again["jti"], first["jti"], "a token is used once");
    }
    let log = server.audited("sign-out-told").await;
    assert!(log.contains("it answered 500"), "{log}");
    server.wait(3600);
    assert!(timeout(Duration::from_millis(2500), hears.recv()).await.is_err(), "given up");
}

#[tokio::test]
async fn a_client_is_told_of_sessions_that_nobody_ended() {
    let (uri, mut hears) = client(&[]).await;
    let server = server(&uri).await;
    let (_browser, id_token) = sign_in(&server).await;
    server.wait(12 * 3600 - 1);
    assert!(timeout(Duration::from_millis(1500), hears.recv()).await.is_err(), "it lives still");
    server.wait(1 + 60);
    assert_eq!(claims(&next(&mut hears).await)["sid"], claims(&id_token)["sid"]);
    server.wait(60);
    assert!(timeout(Duration::from_millis(1500), hears.recv()).await.is_err(), "once is enough");
}
