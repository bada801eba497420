//! As much of a browser as it takes.

use std::collections::BTreeMap;

use reqwest::{Method, RequestBuilder, Response, StatusCode, header};

use super::{ISSUER, PASSWORD, Server, authorize_with, location, query, ticket};

/// Keeps cookies, fills in the form, and stops at redirects.
#[derive(Default)]
pub struct Browser {
    pub cookies: BTreeMap<String, String>,
}

impl Browser {
    pub async fn send(&mut self, request: RequestBuilder) -> Response {
        let cookies: Vec<String> =
            self.cookies.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let request = if cookies.is_empty() {
            request
        } else {
            request.header(header::COOKIE, cookies.join("; "))
        };
        let response = request.send().await.unwrap();
        for cookie in response.headers().get_all(header::SET_COOKIE) {
            let text = cookie.to_str().unwrap();
            assert!(text.contains("; Path=/; Secure; HttpOnly; SameSite=Lax"), "{text}");
            let (name, value) = text.split(';').next().unwrap().split_once('=').unwrap();
            assert!(name.starts_with("__Host-dormouse-"), "{name}");
            if text.contains("Max-Age=0") {
                self.cookies.remove(name);
            } else {
                self.cookies.insert(name.to_owned(), value.to_owned());
            }
        }
        response
    }

    pub async fn open(&mut self, server: &Server, path: &str) -> Response {
        self.send(server.request(Method::GET, path)).await
    }

    pub async fn submit(
        &mut self,
        server: &Server,
        ticket: &str,
        name: &str,
        password: &str,
    ) -> Response {
        let form = [("ticket", ticket), ("name", name), ("password", password)];
        let request = server.request(Method::POST, "/sign-in").header(header::ORIGIN, ISSUER);
        self.send(request.form(&form)).await
    }

    /// Opens the request and signs in if asked; returns where the browser is sent.
    pub async fn sign_in(&mut self, server: &Server, path: &str, name: &str) -> String {
        let response = self.open(server, path).await;
        if response.status() == StatusCode::SEE_OTHER {
            return location(&response);
        }
        let ticket = ticket(&response.text().await.unwrap());
        location(&self.submit(server, &ticket, name, PASSWORD).await)
    }

    /// A fresh code for the gate.
    pub async fn code(&mut self, server: &Server) -> String {
        self.code_of(server, "alice").await
    }

    pub async fn code_of(&mut self, server: &Server, name: &str) -> String {
        let to = self.sign_in(server, &authorize_with(&[]), name).await;
        query(&to)["code"].clone()
    }
}
