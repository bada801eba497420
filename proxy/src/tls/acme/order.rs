//! One order, from the request to the certificate (RFC 8555, section 7.4).

use std::time::Duration;

use instant_acme::{
    Account, AuthorizationStatus, ChallengeType, Error, Identifier, NewOrder, Order, OrderStatus,
    Problem, RetryPolicy,
};
use jiff::{SignedDuration, Timestamp};
use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use runtime::http::whole;
use rustls::crypto::CryptoProvider;
use tokio::time::{sleep, timeout};

use super::challenges::{ChallengeError, Challenges, KNOWN_AFTER, Offered};
use crate::tls::{
    certificate::{Certificate, Unusable},
    config::Challenge,
};

/// From the first request to the certificate.
const DEADLINE: Duration = Duration::from_secs(300);
const POLL: RetryPolicy = RetryPolicy::new()
    .initial_delay(Duration::from_millis(500))
    .backoff(1.5)
    .timeout(Duration::from_secs(120));

#[derive(Debug, thiserror::Error)]
pub enum OrderError {
    #[error("the authority asks for patience: {why}")]
    RateLimited { why: String, retry_after: Option<SignedDuration> },
    #[error("the authority does not know our account")]
    NoAccount,
    #[error("the authority did not accept that the name is ours: {0}")]
    Invalid(String),
    #[error("the authority does not offer the challenge {0}")]
    NotOffered(&'static str),
    #[error("the authority answered: {0}")]
    Authority(String),
    #[error("the authority cannot be reached: {0}")]
    Unreachable(String),
    #[error("the order took too long")]
    TooLong,
    #[error(transparent)]
    Challenge(#[from] ChallengeError),
    #[error("the request for a certificate cannot be made: {0}")]
    Make(#[from] rcgen::Error),
    #[error("the certificate that came cannot be used: {0}")]
    Unusable(#[from] Unusable),
    #[error("the certificate that came is for another name, or out of date")]
    Other,
}

impl From<Error> for OrderError {
    fn from(error: Error) -> Self {
        match &error {
            Error::Api(problem) => match kind(problem) {
                "rateLimited" => Self::RateLimited { why: problem.to_string(), retry_after: None },
                "accountDoesNotExist" => Self::NoAccount,
                _ => Self::Authority(problem.to_string()),
            },
            Error::Other(_) => Self::Unreachable(whole(&error)),
            _ => Self::Authority(whole(&error)),
        }
    }
}

/// The error's name without its namespace (RFC 8555, section 6.7).
fn kind(problem: &Problem) -> &str {
    let kind = problem.r#type.as_deref().unwrap_or_default();
    kind.strip_prefix("urn:ietf:params:acme:error:").unwrap_or_default()
}

/// Key and chain in PEM, looked into and found good. The challenges are answered as long as this
/// runs.
pub async fn order(
    account: &Account,
    name: &str,
    challenge: Challenge,
    challenges: &Challenges,
    provider: &CryptoProvider,
) -> Result<String, OrderError> {
    let ordered = timeout(DEADLINE, ordered(account, name, challenge, challenges, provider));
    let pem = ordered.await.map_err(|_| OrderError::TooLong)??;
    let certificate =
        Certificate::from_pem(name.to_owned(), pem.as_bytes(), pem.as_bytes(), provider)?;
    if !certificate.covers(name) || !certificate.is_current(Timestamp::now()) {
        return Err(OrderError::Other);
    }
    Ok(pem)
}

async fn ordered(
    account: &Account,
    name: &str,
    challenge: Challenge,
    challenges: &Challenges,
    provider: &CryptoProvider,
) -> Result<String, OrderError> {
    let identifiers = [Identifier::Dns(name.to_owned())];
    let mut order = account.new_order(&NewOrder::new(&identifiers)).await?;
    let offered = offer(&mut order, name, challenge, challenges, provider).await?;
    match order.poll_ready(&POLL).await {
        Ok(OrderStatus::Ready) => {}
        Ok(_) => return Err(why_invalid(&mut order).await),
        Err(Error::Api(_)) if order.state().status == OrderStatus::Invalid => {
            return Err(why_invalid(&mut order).await);
        }
        Err(error) => return Err(error.into()),
    }
    drop(offered);

    let mut params = CertificateParams::new(vec![name.to_owned()])?;
    params.distinguished_name = DistinguishedName::new();
    let key = KeyPair::generate()?;
    let request = params.serialize_request(&key)?;
    order.finalize_csr(request.der()).await?;
    let chain = order.poll_certificate(&POLL).await?;
    Ok(format!("{}{chain}", key.serialize_pem()))
}

/// Answers what is not validated yet.
async fn offer(
    order: &mut Order,
    name: &str,
    challenge: Challenge,
    challenges: &Challenges,
    provider: &CryptoProvider,
) -> Result<Vec<Offered>, OrderError> {
    let mut offered = Vec::new();
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let mut authorization = authorization?;
        match authorization.status {
            AuthorizationStatus::Valid => continue,
            AuthorizationStatus::Pending => {}
            _ => return Err(OrderError::Invalid("it did not wait for our answer".to_owned())),
        }
        let (kind, word) = match challenge {
            Challenge::Http01 => (ChallengeType::Http01, "http-01"),
            Challenge::TlsAlpn01 => (ChallengeType::TlsAlpn01, "tls-alpn-01"),
        };
        let handle = authorization.challenge(kind);
        let mut handle = handle.ok_or(OrderError::NotOffered(word))?;
        let answer = handle.key_authorization();
        offered.push(match challenge {
            Challenge::Http01 => challenges.offer_http(&handle.token, answer.as_str())?,
            Challenge::TlsAlpn01 => {
                let digest = answer.digest();
                let digest = digest.as_ref().try_into().map_err(|_| {
                    OrderError::Authority("a digest of the wrong length".to_owned())
                })?;
                challenges.offer_tls(name, digest, provider)?
            }
        });
        if challenge == Challenge::TlsAlpn01 {
            sleep(KNOWN_AFTER).await;
        }
        handle.set_ready().await?;
    }
    Ok(offered)
}

/// What the authority saw when it looked.
async fn why_invalid(order: &mut Order) -> OrderError {
    let mut why = Vec::new();
    let mut authorizations = order.authorizations();
    while let Some(Ok(mut authorization)) = authorizations.next().await {
        if let Ok(state) = authorization.refresh().await {
            let errors = state.challenges.iter().filter_map(|challenge| challenge.error.as_ref());
            why.extend(errors.map(|error| error.to_string()));
        }
    }
    if why.is_empty() {
        why.push("it did not say why".to_owned());
    }
    OrderError::Invalid(why.join("; "))
}
