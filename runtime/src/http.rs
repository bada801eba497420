//! The HTTP client for calls between services.

use std::{fs, path::Path, time::Duration};

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("cannot read the CA file {path}: {source}")]
    ReadCa { path: String, source: std::io::Error },
    #[error("the HTTP client cannot be made: {0}")]
    Build(#[from] reqwest::Error),
}

/// An error with everything that caused it, in one line: the first alone often says nothing.
pub fn whole(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}

/// Longest `Retry-After` that is said, in seconds.
const RETRY_AFTER_MAX: u64 = 120;

/// The field that tells a client when to try again: `Retry-After` (RFC 9110, section 10.2.3), from 1 to
/// 120 s. At 0 some clients send request after request (openai for Node); above two minutes they sleep for as
/// long as they are told, or give up (openai for Python). So a longer wait is `X-Should-Retry: false`, by
/// which such clients do not try again by themselves.
pub fn retry_field(seconds: u64) -> (&'static str, String) {
    match seconds {
        0..=RETRY_AFTER_MAX => ("Retry-After", seconds.max(1).to_string()),
        _ => ("X-Should-Retry", "false".to_owned()),
    }
}

/// Trusts the given authority besides the system's; every call has a deadline. Long polls set a
/// longer one per request.
pub fn client(ca: Option<&Path>) -> Result<reqwest::Client, ClientError> {
    let mut builder = reqwest::Client::builder()
        .connect_timeout(Duration::from_secs(5))
        .timeout(Duration::from_secs(15))
        .redirect(reqwest::redirect::Policy::none())
        .user_agent(concat!("dormouse/", env!("CARGO_PKG_VERSION")));
    if let Some(path) = ca {
        let pem = fs::read(path)
            .map_err(|source| ClientError::ReadCa { path: path.display().to_string(), source })?;
        for certificate in reqwest::Certificate::from_pem_bundle(&pem)? {
            builder = builder.add_root_certificate(certificate);
        }
    }
    Ok(builder.build()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_told_to_hammer_or_to_sleep_for_hours() {
        assert_eq!(retry_field(0), ("Retry-After", "1".to_owned()));
        assert_eq!(retry_field(120), ("Retry-After", "120".to_owned()));
        assert_eq!(retry_field(121), ("X-Should-Retry", "false".to_owned()));
    }

    #[test]
    fn causes_are_told() {
        let cause = std::io::Error::other("connection refused");
        let error = ClientError::ReadCa { path: "ca.pem".to_owned(), source: cause };
        assert_eq!(whole(&error), "cannot read the CA file ca.pem: connection refused");
    }
}
