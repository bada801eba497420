//! A server on a port of its own, with a clock that the test turns, and a browser of sorts.

pub mod authenticator;
mod browser;
pub mod keys;
pub mod postgres;
pub mod upstream;

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use authserver::{Authserver, Clock, Config, Database, NewPerson, NewPersonalToken, Store};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use domain::token::{Expected, KeySet, Verifier};
use jiff::Timestamp;
use reqwest::{Client, Method, RequestBuilder, Response, StatusCode, header};
use runtime::{audit::Audit, health::Health, service::Context};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};

pub use self::browser::Browser;

pub const ISSUER: &str = "https://auth.localhost:8443";
pub const CALLBACK: &str = "https://lab--alice.localhost:8443/.dormouse/callback";
pub const GATE: (&str, &str) = ("dormouse-gate", "gate-secret-gate-secret-gate-secret-1");
pub const OTHER: (&str, &str) = ("other", "other-secret-other-secret-other-secret");
pub const PASSWORD: &str = "correct horse battery";
pub const VERIFIER: &str = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";

const START: i64 = 1_800_000_000;

/// The tests of `tests/provider` are compiled twice: once more to run on PostgreSQL.
pub fn on_postgres() -> bool {
    env!("CARGO_CRATE_NAME") == "provider_on_postgres"
}

/// A new database: a file in the folder, or one of the tests' PostgreSQL server. The same again
/// for the same folder.
pub async fn database(folder: &Path) -> Database {
    if !on_postgres() {
        return folder.join("auth.db").into();
    }
    let note = folder.join("postgres-url");
    if !note.exists() {
        std::fs::write(&note, postgres::database().await).unwrap();
    }
    std::fs::read_to_string(note).unwrap().parse().unwrap()
}

/// The server's database, for what no operator has a command for.
pub async fn pool(server: &Server) -> sqlx::AnyPool {
    let url = match database(server.folder.path()).await {
        Database::File(path) => format!("sqlite://{}", path.display()),
        Database::Postgres(url) => url.to_string(),
    };
    sqlx::AnyPool::connect(&url).await.unwrap()
}

pub struct Server {
    pub folder: TempDir,
    pub store: Store,
    pub base: String,
    clock: Arc<AtomicI64>,
    http: Client,
    shutdown: DropGuard,
    serving: Option<tokio::task::JoinHandle<()>>,
}

/// `[[clients]]` beside the gate: `other` with a secret, and the public `tool`.
pub async fn config(folder: &Path) -> Config {
    let database = database(folder).await;
    std::fs::write(folder.join("gate-secret"), format!("{}\n", GATE.1)).unwrap();
    std::fs::write(folder.join("other-secret"), OTHER.1).unwrap();
    std::fs::write(folder.join("signed-keys"), keys::jwks(1).to_string()).unwrap();
    let config: Config = serde_json::from_value(json!({
        "issuer": ISSUER,
        "base_domain": "localhost",
        "database": "see below",
        "client_secret_file": folder.join("gate-secret"),
        "clients": [
            {
                "id": "other",
                "secret_file": folder.join("other-secret"),
                "redirect_uris": ["https://other.example/cb"],
                "post_logout_redirect_uris": ["https://other.example/bye"],
            },
            { "id": "tool", "public": true, "redirect_uris": ["http://127.0.0.1:7777/cb"] },
            {
                "id": "signed",
                "jwks_file": folder.join("signed-keys"),
                "redirect_uris": ["https://signed.example/cb"],
                "grant_types": [
                    "authorization_code", "refresh_token", "device_code", "token_exchange",
                ],
                "resources": ["https://api.example", "https://logs.example"],
                "scopes": ["openid", "profile", "workload:use", "workload:manage"],
            },
            {
                "id": "partner",
                "name": "Partner & Co",
                "secret_file": folder.join("other-secret"),
                "redirect_uris": ["https://partner.example/cb"],
                "third_party": true,
            },
            {
                "id": "bank",
                "secret_file": folder.join("other-secret"),
                "redirect_uris": ["https://bank.example/cb"],
                "pushed_requests_only": true,
            },
            {
                "id": "told",
                "secret_file": folder.join("other-secret"),
                "redirect_uris": ["https://told.example/cb"],
                "back_channel_logout_uri": std::fs::read_to_string(folder.join("told-uri"))
                    .unwrap_or("http://127.0.0.1:9/never".to_owned()),
            },
            {
                "id": "tv",
                "name": "Television",
                "public": true,
                "grant_types": ["device_code", "refresh_token"],
                "scopes": ["openid", "profile", "workload:use"],
            },
        ],
    }))
    .unwrap();
    Config { database, ..config }
}

impl Server {
    pub async fn start() -> Self {
        Self::start_in(tempfile::tempdir().unwrap()).await
    }

    pub async fn start_in(folder: TempDir) -> Self {
        let clock = Arc::new(AtomicI64::new(START));
        let config = config(folder.path()).await;
        Self::run(folder, config, clock).await
    }

    /// Ends the server as a signal would. What it kept stays.
    pub async fn stop(self) -> (TempDir, Store) {
        drop(self.shutdown);
        self.serving.unwrap().await.unwrap();
        (self.folder, self.store)
    }

    /// At the address of an earlier one.
    pub async fn start_at(folder: TempDir, address: &str) -> Self {
        let clock = Arc::new(AtomicI64::new(START));
        let config = config(folder.path()).await;
        Self::run_at(folder, config, clock, address).await
    }

    /// With other settings, and the time that it really is: for tests with programs that have
    /// clocks of their own.
    pub async fn start_changed(change: impl FnOnce(&Path, &mut Config)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut config = config(folder.path()).await;
        change(folder.path(), &mut config);
        let clock = Arc::new(AtomicI64::new(Timestamp::now().as_second()));
        Self::run(folder, config, clock).await
    }

    /// Another server with the same database and settings, and the same time.
    pub async fn replica(&self) -> Self {
        self.replica_changed(|_| {}).await
    }

    /// The same with other settings.
    pub async fn replica_changed(&self, change: impl FnOnce(&mut Config)) -> Self {
        let mut config = config(self.folder.path()).await;
        change(&mut config);
        Self::run(tempfile::tempdir().unwrap(), config, self.clock.clone()).await
    }

    async fn run(folder: TempDir, config: Config, seconds: Arc<AtomicI64>) -> Self {
        Self::run_at(folder, config, seconds, "127.0.0.1:0").await
    }

    async fn run_at(
        folder: TempDir,
        config: Config,
        seconds: Arc<AtomicI64>,
        address: &str,
    ) -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let clock: Clock = {
            let seconds = seconds.clone();
            Arc::new(move || Timestamp::from_second(seconds.load(Ordering::SeqCst)).unwrap())
        };
        let shutdown = CancellationToken::new();
        let context = Context {
            registry: prometheus::Registry::new(),
            audit: Audit::to_file("authserver", &folder.path().join("audit.jsonl")).unwrap(),
            health: Health::new(),
            shutdown: shutdown.clone(),
        };
        let server = Authserver::open(&config, context, clock).await.unwrap();
        let store = Store::open(&config.database).await.unwrap();
        for (name, groups) in [("alice", vec!["ml".to_owned()]), ("bob", vec![])] {
            let email = Some(format!("{name}@example.com"));
            let person = NewPerson { name: name.parse().unwrap(), email, groups };
            store.ensure_user(&person, Some(PASSWORD), start()).await.unwrap();
        }
        let listener = TcpListener::bind(address).await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let serving = Some(tokio::spawn(server.serve(listener)));
        let shutdown = shutdown.drop_guard();
        Self { folder, store, base, clock: seconds, http: http(), shutdown, serving }
    }

    /// A server of another process, which has the machine's own clock.
    pub fn elsewhere(folder: TempDir, store: Store, base: String) -> Self {
        let clock = Arc::new(AtomicI64::new(Timestamp::now().as_second()));
        let shutdown = CancellationToken::new().drop_guard();
        Self { folder, store, base, clock, http: http(), shutdown, serving: None }
    }

    pub fn now(&self) -> Timestamp {
        Timestamp::from_second(self.clock.load(Ordering::SeqCst)).unwrap()
    }

    pub fn wait(&self, seconds: i64) {
        self.clock.fetch_add(seconds, Ordering::SeqCst);
    }

    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{path}", self.base))
    }

    pub async fn get(&self, path: &str) -> Response {
        self.request(Method::GET, path).send().await.unwrap()
    }

    pub async fn token(&self, client: (&str, &str), form: &[(&str, &str)]) -> (StatusCode, Value) {
        let request =
            self.request(Method::POST, "/token").basic_auth(client.0, Some(client.1)).form(form);
        let response = request.send().await.unwrap();
        (response.status(), response.json().await.unwrap())
    }

    pub async fn redeem(&self, client: (&str, &str), code: &str) -> (StatusCode, Value) {
        let form = code_form(code);
        self.token(client, &form).await
    }

    pub async fn refresh(&self, token: &str) -> (StatusCode, Value) {
        self.token(GATE, &[("grant_type", "refresh_token"), ("refresh_token", token)]).await
    }

    /// A form to an endpoint, with the client's credentials in it.
    pub async fn post(&self, path: &str, form: &[(&str, &str)]) -> (StatusCode, Value) {
        let response = self.request(Method::POST, path).form(form).send().await.unwrap();
        let status = response.status();
        let text = response.text().await.unwrap();
        (status, serde_json::from_str(&text).unwrap_or(Value::Null))
    }

    pub async fn api(&self, method: Method, path: &str, token: &str, body: Value) -> Response {
        let request = self.request(method, path).bearer_auth(token);
        let request = if body.is_null() { request } else { request.json(&body) };
        request.send().await.unwrap()
    }

    pub async fn personal_token(&self, user: &str, lifetime: u64) -> String {
        let lifetime = Duration::from_secs(lifetime);
        let new = NewPersonalToken::full("test", lifetime, "dormouse");
        let issuer = ISSUER.parse().unwrap();
        let user = user.parse().unwrap();
        self.store.issue_personal_token(&issuer, &user, new, self.now()).await.unwrap().0
    }

    /// As a gateway has it: keys fetched from the issuer.
    pub async fn verifier(&self) -> Verifier {
        let expected = Expected {
            issuer: ISSUER.to_owned(),
            audience: "dormouse".to_owned(),
            leeway: Duration::from_secs(30),
        };
        let verifier = Verifier::new(expected, 16);
        let keys = self.get("/.well-known/jwks.json").await.bytes().await.unwrap();
        verifier.set_keys(KeySet::from_json(&keys).unwrap());
        verifier
    }

    /// The log once the text is in it: events are written by a thread of its own.
    pub async fn audited(&self, text: &str) -> String {
        let wait = async {
            loop {
                let log = self.audit();
                if log.contains(text) {
                    break log;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), wait).await.expect(text)
    }

    pub fn audit(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("audit.jsonl")).unwrap()
    }
}

fn http() -> Client {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .timeout(Duration::from_secs(60))
        .build()
        .unwrap()
}

pub fn start() -> Timestamp {
    Timestamp::from_second(START).unwrap()
}

pub fn code_form(code: &str) -> [(&str, &str); 4] {
    [
        ("grant_type", "authorization_code"),
        ("code", code),
        ("redirect_uri", CALLBACK),
        ("code_verifier", VERIFIER),
    ]
}

pub fn challenge() -> String {
    URL_SAFE_NO_PAD.encode(Sha256::digest(VERIFIER))
}

/// The gate's request, with some parameters replaced; an empty value takes one out.
pub fn authorize_with(changes: &[(&str, &str)]) -> String {
    let challenge = challenge();
    let mut fields = BTreeMap::from([
        ("client_id", GATE.0),
        ("redirect_uri", CALLBACK),
        ("response_type", "code"),
        ("scope", "openid profile email groups"),
        ("state", "state-1"),
        ("nonce", "nonce-1"),
        ("code_challenge", challenge.as_str()),
        ("code_challenge_method", "S256"),
    ]);
    fields.extend(changes.iter().copied());
    let fields = fields.iter().filter(|(_, value)| !value.is_empty());
    let query = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(fields).finish();
    format!("/authorize?{query}")
}

pub fn location(response: &Response) -> String {
    assert_eq!(response.status(), StatusCode::SEE_OTHER);
    response.headers()[header::LOCATION].to_str().unwrap().to_owned()
}

pub fn query(uri: &str) -> BTreeMap<String, String> {
    url::Url::parse(uri).unwrap().query_pairs().into_owned().collect()
}

pub fn ticket(page: &str) -> String {
    let (_, rest) = page.split_once("name=\"ticket\" value=\"").expect("the page has a form");
    rest.split('"').next().unwrap().to_owned()
}

pub fn decode(part: &str) -> Vec<u8> {
    URL_SAFE_NO_PAD.decode(part).unwrap()
}

/// The claims of a token that has been verified elsewhere, or needs no verification here.
pub fn claims(token: &str) -> Value {
    let payload = token.split('.').nth(1).unwrap();
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).unwrap()).unwrap()
}

pub fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name].as_str().unwrap_or_else(|| panic!("{name} in {value}"))
}

/// The peer of a connection is always loopback here; this is who a proxy says it is.
pub fn from(request: RequestBuilder, address: &str) -> RequestBuilder {
    let _: std::net::IpAddr = address.parse().unwrap();
    request.header("x-forwarded-for", address)
}
