//! A real OpenID provider as the company's: `oidc-provider`, run by Node.js.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use reqwest::{Client, Response, header};
use serde_json::{Value, json};

use super::ISSUER;

pub const SECRET: &str = "a-secret-of-the-upstream-with-%-and-+";

pub struct Upstream {
    id: String,
    pub port: u16,
    node: Child,
    http: Client,
}

impl Drop for Upstream {
    fn drop(&mut self) {
        let _ = self.node.kill();
        let _ = self.node.wait();
    }
}

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/upstream")
}

impl Upstream {
    /// For the provider of that id in our settings. Port 0 takes any.
    pub fn start(id: &str, port: u16) -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let installed = folder().join("node_modules/oidc-provider").exists();
        assert!(installed, "oidc-provider is not installed; run scripts/setup test");
        let mut node = Command::new("node")
            .arg(folder().join("upstream.js"))
            .arg(format!("{ISSUER}/sign-in/from/{id}"))
            .arg(format!("{ISSUER}/sign-out"))
            .arg(port.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("node is installed; run scripts/setup test");
        let mut lines = BufReader::new(node.stdout.take().unwrap()).lines().map_while(Result::ok);
        let port = lines.find_map(|line| line.parse().ok());
        let port = port.expect("the upstream provider starts");
        // It warns of what is fine in a test, and dies when nobody reads.
        std::thread::spawn(move || lines.for_each(drop));
        let http = Client::builder().redirect(reqwest::redirect::Policy::none()).build().unwrap();
        Self { id: id.to_owned(), port, node, http }
    }

    /// What our settings say about it, with more or other fields.
    pub fn config(&self, secret_file: &std::path::Path, more: Value) -> authserver::ProviderConfig {
        std::fs::write(secret_file, SECRET).unwrap();
        let mut config = json!({
            "id": self.id, "name": format!("{} & Sons", self.id), "issuer": self.issuer(),
            "client_id": "dormouse", "client_secret_file": secret_file,
        });
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        serde_json::from_value(config).unwrap()
    }

    /// As our settings name it.
    pub fn id(&self) -> &str {
        &self.id
    }

    pub fn issuer(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Adds or changes somebody.
    pub async fn set(&self, id: &str, claims: Value, disabled: bool) {
        let url = format!("{}/people/{id}", self.issuer());
        let body = json!({ "claims": claims, "disabled": disabled });
        let response = self.http.put(url).json(&body).send().await.unwrap();
        assert!(response.status().is_success());
    }

    /// Adds or changes somebody whose ID tokens say that besides, whatever the provider knows; null is
    /// nothing.
    pub async fn set_saying(&self, id: &str, claims: Value, says: Value) {
        let url = format!("{}/people/{id}", self.issuer());
        let body = json!({ "claims": claims, "says": says });
        let response = self.http.put(url).json(&body).send().await.unwrap();
        assert!(response.status().is_success());
    }

    /// Signs in there, as a browser that knows nothing yet; returns where it is sent back to.
    pub async fn sign_in(&self, url: &str, who: &str) -> String {
        self.sign_in_with(&mut BTreeMap::new(), url, who).await
    }

    pub async fn sign_in_with(
        &self,
        cookies: &mut BTreeMap<String, String>,
        url: &str,
        who: &str,
    ) -> String {
        let mut url = url.to_owned();
        for _ in 0..12 {
            let response = self.get(cookies, &url).await;
            let status = response.status();
            let Some(location) = response.headers().get(header::LOCATION) else {
                panic!("{url} answered {status}: {}", response.text().await.unwrap());
            };
            let location = location.to_str().unwrap().to_owned();
            if location.starts_with(ISSUER) {
                return location;
            }
            url = url::Url::parse(&url).unwrap().join(&location).unwrap().to_string();
            if url.contains("/interaction/") {
                url = format!("{url}?as={who}");
            }
        }
        panic!("the provider redirects for ever");
    }

    pub async fn get(&self, cookies: &mut BTreeMap<String, String>, url: &str) -> Response {
        let pairs: Vec<String> = cookies.iter().map(|(n, v)| format!("{n}={v}")).collect();
        let request = self.http.get(url).header(header::COOKIE, pairs.join("; "));
        let response = request.send().await.unwrap();
        for cookie in response.headers().get_all(header::SET_COOKIE) {
            let pair = cookie.to_str().unwrap().split(';').next().unwrap();
            let (name, value) = pair.split_once('=').unwrap();
            match value {
                "" => cookies.remove(name),
                value => cookies.insert(name.to_owned(), value.to_owned()),
            };
        }
        response
    }
}
