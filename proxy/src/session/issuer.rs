//! The issuer as we call it: discovery, the token endpoint, where browsers are sent.

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwapOption;
use runtime::{http::whole, service::Context};
use serde::Deserialize;
use tokio::time::sleep;

const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(15);
const REFRESH: Duration = Duration::from_secs(3600);
/// Discovery documents and token answers have a few kilobytes.
const BODY_MAX: usize = 128 * 1024;

/// The parts of the metadata that we use (RFC 8414, section 2).
#[derive(Debug, Clone, Deserialize)]
pub struct Metadata {
    pub issuer: String,
    pub authorization_endpoint: String,
    pub token_endpoint: String,
    pub end_session_endpoint: Option<String>,
    pub revocation_endpoint: Option<String>,
}

/// What the token endpoint answers (RFC 6749, section 5.1).
#[derive(Deserialize)]
pub struct Tokens {
    pub access_token: String,
    pub refresh_token: Option<String>,
    pub id_token: Option<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum TokenEndpointError {
    #[error("the sign-in service cannot be reached")]
    Unreachable,
    /// It may have done what was asked, and its answer did not arrive.
    #[error("the sign-in service broke off")]
    Interrupted,
    /// `invalid_grant` (RFC 6749, section 5.2): the code or session is over.
    #[error("the sign-in has ended")]
    InvalidGrant,
    #[error("the sign-in service refused: {0}")]
    Refused(String),
    #[error("the sign-in service gave no usable answer")]
    Nonsense,
}

pub struct Issuer {
    pub(crate) url: String,
    internal: String,
    pub(crate) client_id: String,
    client_secret: String,
    http: reqwest::Client,
    metadata: ArcSwapOption<Metadata>,
}

impl Issuer {
    pub fn new(
        url: &str,
        internal: &str,
        client_id: &str,
        client_secret: String,
        http: reqwest::Client,
    ) -> Self {
        Self {
            url: url.to_owned(),
            internal: internal.trim_end_matches('/').to_owned(),
            client_id: client_id.to_owned(),
            client_secret,
            http,
            metadata: ArcSwapOption::empty(),
        }
    }

    pub(crate) fn client_secret(&self) -> &str {
        &self.client_secret
    }

    /// `None` until the issuer has answered for the first time.
    pub fn metadata(&self) -> Option<Arc<Metadata>> {
        self.metadata.load_full()
    }

    /// Fetches the metadata now and then, for as long as the service runs.
    pub async fn follow(self: Arc<Self>, ctx: Context) {
        let mut retry = FIRST_RETRY;
        let forever = async {
            loop {
                match self.discover().await {
                    Ok(metadata) => {
                        self.metadata.store(Some(Arc::new(metadata)));
                        ctx.health.set("sign-in", Ok(()));
                        retry = FIRST_RETRY;
                        sleep(REFRESH).await;
                    }
                    Err(error) => {
                        if self.metadata.load().is_none() {
                            ctx.health.set("sign-in", Err(error.clone()));
                        }
                        tracing::warn!(
                            error,
                            "the issuer's metadata cannot be fetched; trying again"
                        );
                        sleep(retry).await;
                        retry = (retry * 2).min(LAST_RETRY);
                    }
                }
            }
        };
        tokio::select! {
            () = forever => {}
            () = ctx.shutdown.cancelled() => {}
        }
    }

    async fn discover(&self) -> Result<Metadata, String> {
        let url = format!("{}/.well-known/openid-configuration", self.internal);
        let response = self.http.get(url).send().await.map_err(|error| whole(&error))?;
        let response = response.error_for_status().map_err(|error| whole(&error))?;
        let body = read(response).await.ok_or("the metadata is too long or broke off")?;
        let metadata: Metadata =
            serde_json::from_slice(&body).map_err(|error| format!("bad metadata: {error}"))?;
        if metadata.issuer != self.url {
            return Err(format!(
                "the issuer calls itself {}, and the settings say {}; make them equal",
                metadata.issuer, self.url
            ));
        }
        Ok(metadata)
    }

    /// A form to an endpoint, by its inner address: a request of ours never goes through ourselves.
    fn post(&self, endpoint: &str, form: &[(&str, &str)]) -> reqwest::RequestBuilder {
        let endpoint = match endpoint.strip_prefix(&self.url) {
            Some(path) => format!("{}{path}", self.internal),
            None => endpoint.to_owned(),
        };
        let request = self.http.post(endpoint).form(form);
        request.basic_auth(&self.client_id, Some(&self.client_secret))
    }

    /// Withdraws a refresh token and what was issued with it (RFC 7009). Nobody waits for it: what
    /// fails here ends with the session by itself.
    pub async fn revoke(&self, refresh_token: &str) {
        let metadata = self.metadata();
        let endpoint = metadata.as_ref().and_then(|all| all.revocation_endpoint.as_deref());
        let Some(endpoint) = endpoint else { return };
        let form = [("token", refresh_token), ("token_type_hint", "refresh_token")];
        let sent = self.post(endpoint, &form).send().await;
        if let Err(error) = sent.and_then(reqwest::Response::error_for_status) {
            tracing::warn!(error = whole(&error), "a refresh token could not be withdrawn");
        }
    }

    /// Calls the token endpoint as our client (`client_secret_basic`; RFC 6749, section 2.3.1).
    pub async fn token(&self, form: &[(&str, &str)]) -> Result<Tokens, TokenEndpointError> {
        #[derive(Deserialize)]
        struct Refusal {
            error: String,
        }
        let metadata = self.metadata().ok_or(TokenEndpointError::Unreachable)?;
        let request = self.post(&metadata.token_endpoint, form);
        let response = request.send().await.map_err(|error| {
            if error.is_connect() {
                TokenEndpointError::Unreachable
            } else {
                TokenEndpointError::Interrupted
            }
        })?;
        let status = response.status();
        let body = read(response).await.ok_or(TokenEndpointError::Interrupted)?;
        if status.is_success() {
            return serde_json::from_slice(&body).map_err(|_| TokenEndpointError::Nonsense);
        }
        if status.is_server_error() {
            return Err(TokenEndpointError::Interrupted);
        }
        match serde_json::from_slice::<Refusal>(&body) {
            Ok(refusal) if refusal.error == "invalid_grant" => {
                Err(TokenEndpointError::InvalidGrant)
            }
            Ok(refusal) => Err(TokenEndpointError::Refused(refusal.error)),
            Err(_) => Err(TokenEndpointError::Nonsense),
        }
    }
}

async fn read(mut response: reqwest::Response) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.ok()? {
        if body.len() + chunk.len() > BODY_MAX {
            return None;
        }
        body.extend_from_slice(&chunk);
    }
    Some(body)
}
