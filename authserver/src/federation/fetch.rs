//! HTTP as `openidconnect` wants it, over the client that everything uses: bounded in time and size.

use std::{future::Future, pin::Pin, time::Duration};

use openidconnect::{AsyncHttpClient, HttpRequest, HttpResponse};

/// Longest wait for one answer.
const ANSWER: Duration = Duration::from_secs(5);

/// Largest answer: key sets of big providers have some 10 KiB.
const BODY_MAX: usize = 1024 * 1024;

pub struct Fetch(pub reqwest::Client);

#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    #[error("{}", runtime::http::whole(.0))]
    Request(#[from] reqwest::Error),
    #[error("the answer is longer than {BODY_MAX} bytes")]
    TooLong,
    #[error("the answer cannot be read: {0}")]
    Malformed(#[from] http::Error),
}

impl<'c> AsyncHttpClient<'c> for Fetch {
    type Error = FetchError;
    type Future = Pin<Box<dyn Future<Output = Result<HttpResponse, FetchError>> + Send + 'c>>;

    fn call(&'c self, request: HttpRequest) -> Self::Future {
        Box::pin(fetch(&self.0, request))
    }
}

async fn fetch(client: &reqwest::Client, request: HttpRequest) -> Result<HttpResponse, FetchError> {
    let (parts, body) = request.into_parts();
    let mut answer = client
        .request(parts.method, parts.uri.to_string())
        .headers(parts.headers)
        .timeout(ANSWER)
        .body(body)
        .send()
        .await?;
    let mut response = http::Response::builder().status(answer.status());
    if let Some(headers) = response.headers_mut() {
        headers.extend(answer.headers().clone());
    }
    let mut body = Vec::new();
    while let Some(chunk) = answer.chunk().await? {
        if body.len().saturating_add(chunk.len()) > BODY_MAX {
            return Err(FetchError::TooLong);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(response.body(body)?)
}
