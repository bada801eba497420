//! The authority is asked through the client that every call of ours goes through.

use std::{pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, StatusCode, header::RETRY_AFTER};
use http_body_util::{BodyExt, Limited};
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient};
use jiff::{SignedDuration, Timestamp, fmt::rfc2822};
use parking_lot::Mutex;

/// A chain of certificates has a few kilobytes.
const ANSWER_MAX: usize = 256 * 1024;
const DEADLINE: Duration = Duration::from_secs(30);

#[derive(Debug, Clone)]
pub struct Http {
    client: reqwest::Client,
    /// What the last refusal said of when to come back.
    retry_after: Arc<Mutex<Option<SignedDuration>>>,
}

impl Http {
    pub fn new(client: reqwest::Client) -> Self {
        Self { client, retry_after: Arc::default() }
    }

    pub fn take_retry_after(&self) -> Option<SignedDuration> {
        self.retry_after.lock().take()
    }
}

impl HttpClient for Http {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        let this = self.clone();
        Box::pin(async move {
            let (parts, body) = request.into_parts();
            let body = match body.collect().await {
                Ok(body) => body.to_bytes(),
                Err(never) => match never {},
            };
            let request = reqwest::Request::try_from(Request::from_parts(parts, body));
            let mut request = request.map_err(other)?;
            *request.timeout_mut() = Some(DEADLINE);
            let response = this.client.execute(request).await.map_err(other)?;
            if matches!(
                response.status(),
                StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE
            ) {
                let said = response.headers().get(RETRY_AFTER).and_then(|v| v.to_str().ok());
                *this.retry_after.lock() =
                    said.and_then(|said| retry_after(said, Timestamp::now()));
            }
            let response = http::Response::from(response);
            Ok(BytesResponse::from(response.map(|body| Limited::new(body, ANSWER_MAX))))
        })
    }
}

fn other(error: reqwest::Error) -> Error {
    Error::Other(Box::new(error))
}

/// Seconds or a date (RFC 9110, section 10.2.3).
fn retry_after(said: &str, now: Timestamp) -> Option<SignedDuration> {
    if let Ok(seconds) = said.trim().parse::<u32>() {
        return Some(SignedDuration::from_secs(seconds.into()));
    }
    // The same form as in mail, but for the name of the time zone.
    let date = rfc2822::parse(&said.trim().replace("GMT", "+0000")).ok()?;
    Some(date.timestamp().duration_since(now).max(SignedDuration::ZERO))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_retry_after() {
        let now = Timestamp::from_second(784_111_777 - 90).unwrap();
        let seconds = |said: &str| retry_after(said, now).map(|wait| wait.as_secs());
        assert_eq!(seconds("120"), Some(120));
        assert_eq!(seconds("Sun, 06 Nov 1994 08:49:37 GMT"), Some(90));
        assert_eq!(seconds("Tue, 06 Nov 1990 08:49:37 GMT"), Some(0));
        assert_eq!(seconds("soon"), None);
        assert_eq!(seconds("-1"), None);
    }
}
