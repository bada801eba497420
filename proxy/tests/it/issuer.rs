//! A stand-in for the issuer: discovery, keys and the token endpoint.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering::SeqCst},
    },
};

use axum::{Form, Json, Router, extract::State, http::StatusCode, routing};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode, jwk::Jwk};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::{net::TcpListener, sync::Semaphore};
use url::Url;

/// Made for these tests with `openssl genpkey`; signs nothing else.
const KEY: &str = include_str!("test_key.pem");

pub struct Issuer {
    pub url: String,
    pub address: SocketAddr,
    pub refreshes: AtomicU32,
    /// Refresh tokens that were not known, or used before.
    pub refused: AtomicU32,
    /// Refreshes wait for a permit.
    pub let_refresh: Semaphore,
    pub sessions: Mutex<HashMap<String, String>>,
    /// A refresh token that was used gives the same successor once more, as our authserver does for a
    /// minute; without it every repetition is refused.
    pub repeats: AtomicBool,
    successors: Mutex<HashMap<String, (String, String)>>,
    codes: Mutex<HashMap<String, Approved>>,
    /// Put into the next ID token instead of the right nonce.
    pub wrong_nonce: Mutex<Option<String>>,
}

struct Approved {
    user: String,
    nonce: String,
    challenge: String,
    redirect_uri: String,
}

fn now() -> i64 {
    jiff::Timestamp::now().as_second()
}

impl Issuer {
    pub async fn start(url: String) -> Arc<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let issuer = Arc::new(Self {
            url,
            address: listener.local_addr().unwrap(),
            refreshes: AtomicU32::new(0),
            refused: AtomicU32::new(0),
            let_refresh: Semaphore::new(1_000_000),
            sessions: Mutex::default(),
            repeats: AtomicBool::new(false),
            successors: Mutex::default(),
            codes: Mutex::default(),
            wrong_nonce: Mutex::default(),
        });
        let app = Router::new()
            .route("/.well-known/openid-configuration", routing::get(discovery))
            .route("/jwks", routing::get(keys))
            .route("/token", routing::post(token))
            .fallback(|uri: axum::http::Uri| async move { format!("issuer {}", uri.path()) })
            .with_state(issuer.clone());
        tokio::spawn(async move { axum::serve(listener, app).await });
        issuer
    }

    pub fn sign(&self, typ: &str, claims: &Value) -> String {
        let mut header = Header::new(Algorithm::RS256);
        header.typ = Some(typ.to_owned());
        header.kid = Some("k1".to_owned());
        encode(&header, claims, &EncodingKey::from_rsa_pem(KEY.as_bytes()).unwrap()).unwrap()
    }

    /// An access token that ends so many seconds from now.
    pub fn access_token(&self, user: &str, seconds: i64) -> String {
        let claims = json!({
            "iss": self.url, "sub": format!("sub-{user}"), "aud": "dormouse", "exp": now() + seconds,
            "nbf": now() - 3600, "iat": now() - 3600, "jti": URL_SAFE_NO_PAD.encode(rand::random::<[u8; 6]>()),
            "client_id": "dormouse-gate", "sid": format!("sid-{user}"), "scope": "openid workload:use",
            "preferred_username": user, "email": format!("{user}@example.test"),
            "groups": ["ml", "eu,west"], "kind": "session",
        });
        self.sign("at+jwt", &claims)
    }

    /// A session's refresh token.
    pub fn session(&self, user: &str) -> String {
        let refresh = URL_SAFE_NO_PAD.encode(rand::random::<[u8; 32]>());
        self.sessions.lock().unwrap().insert(refresh.clone(), user.to_owned());
        refresh
    }

    /// The person signs in: from the authorization request to the way back.
    pub fn approve(&self, request: &str, user: &str) -> Url {
        let request = Url::parse(request).unwrap();
        let query: HashMap<String, String> = request.query_pairs().into_owned().collect();
        assert_eq!(request.as_str().split('?').next().unwrap(), format!("{}/authorize", self.url));
        assert_eq!(query["client_id"], "dormouse-gate");
        assert_eq!(query["response_type"], "code");
        assert_eq!(query["code_challenge_method"], "S256");
        let code = URL_SAFE_NO_PAD.encode(rand::random::<[u8; 16]>());
        let approved = Approved {
            user: user.to_owned(),
            nonce: query["nonce"].clone(),
            challenge: query["code_challenge"].clone(),
            redirect_uri: query["redirect_uri"].clone(),
        };
        self.codes.lock().unwrap().insert(code.clone(), approved);
        let mut back = Url::parse(&query["redirect_uri"]).unwrap();
        back.query_pairs_mut()
            .append_pair("code", &code)
            .append_pair("state", &query["state"])
            .append_pair("iss", &self.url);
        back
    }
}

async fn discovery(State(issuer): State<Arc<Issuer>>) -> Json<Value> {
    let url = &issuer.url;
    Json(json!({
        "issuer": url,
        "authorization_endpoint": format!("{url}/authorize"),
        "token_endpoint": format!("{url}/token"),
        "end_session_endpoint": format!("{url}/end-session"),
    }))
}

async fn keys() -> Json<Value> {
    let key = EncodingKey::from_rsa_pem(KEY.as_bytes()).unwrap();
    let mut jwk = Jwk::from_encoding_key(&key, Algorithm::RS256).unwrap();
    jwk.common.key_id = Some("k1".to_owned());
    Json(json!({ "keys": [jwk] }))
}

async fn token(
    State(issuer): State<Arc<Issuer>>,
    headers: axum::http::HeaderMap,
    Form(form): Form<HashMap<String, String>>,
) -> (StatusCode, Json<Value>) {
    assert!(headers["authorization"].to_str().unwrap().starts_with("Basic "));
    let refused = || (StatusCode::BAD_REQUEST, Json(json!({ "error": "invalid_grant" })));
    match form["grant_type"].as_str() {
        "authorization_code" => {
            let Some(approved) = issuer.codes.lock().unwrap().remove(&form["code"]) else {
                return refused();
            };
            let challenge = URL_SAFE_NO_PAD.encode(Sha256::digest(&form["code_verifier"]));
            if challenge != approved.challenge || form["redirect_uri"] != approved.redirect_uri {
                return refused();
            }
            let nonce = issuer.wrong_nonce.lock().unwrap().take().unwrap_or(approved.nonce);
            let id_token = issuer.sign(
                "JWT",
                &json!({
                    "iss": issuer.url, "sub": format!("sub-{}", approved.user), "aud": "dormouse-gate",
                    "exp": now() + 600, "nonce": nonce,
                }),
            );
            let access_token = issuer.access_token(&approved.user, 600);
            let refresh_token = issuer.session(&approved.user);
            let tokens = json!({
                "access_token": access_token, "id_token": id_token, "refresh_token": refresh_token,
                "token_type": "Bearer", "expires_in": 600,
            });
            (StatusCode::OK, Json(tokens))
        }
        "refresh_token" => {
            issuer.refreshes.fetch_add(1, SeqCst);
            issuer.let_refresh.acquire().await.unwrap().forget();
            // Each is good for one use, and there is no second chance.
            let used = &form["refresh_token"];
            let user = issuer.sessions.lock().unwrap().remove(used);
            let repeated = || issuer.successors.lock().unwrap().get(used).cloned();
            let (user, refresh_token) = match user {
                Some(user) => {
                    let successor = issuer.session(&user);
                    let kept = (user.clone(), successor.clone());
                    issuer.successors.lock().unwrap().insert(used.clone(), kept);
                    (user, successor)
                }
                None => match repeated().filter(|_| issuer.repeats.load(SeqCst)) {
                    Some(successor) => successor,
                    None => {
                        issuer.refused.fetch_add(1, SeqCst);
                        return refused();
                    }
                },
            };
            let access_token = issuer.access_token(&user, 600);
            let tokens = json!({
                "access_token": access_token, "refresh_token": refresh_token, "expires_in": 600,
            });
            (StatusCode::OK, Json(tokens))
        }
        _ => refused(),
    }
}
