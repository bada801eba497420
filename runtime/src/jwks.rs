//! Keeps a verifier's key set fresh.

use std::{sync::Arc, time::Duration};

use domain::token::{KeySet, Verifier};
use tokio::{
    sync::Notify,
    time::{sleep, timeout},
};
use url::Url;

use crate::{http::whole, service::Context};

/// Keys are published well before they sign, so this may be slow.
const REFRESH: Duration = Duration::from_secs(300);
/// Nobody makes us ask more often than this by sending unknown key ids.
const AT_MOST_EVERY: Duration = Duration::from_secs(5);
/// Replicas of the issuer look for other keys every second.
const TAKEN_OVER: Duration = Duration::from_secs(3);
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(30);
/// Twice as much as the most keys take (`domain::token::KEYS_MAX`).
const SIZE_MAX: usize = 512 * 1024;

/// Cheap to clone. The default follows nothing.
#[derive(Debug, Clone, Default)]
pub struct JwksFollower {
    asked: Arc<Notify>,
}

impl JwksFollower {
    /// A token names a key that is not known: fetch the set again soon. Never blocks.
    pub fn unknown_kid(&self) {
        self.asked.notify_one();
    }

    /// The issuer's keys have changed: fetch them now, and once more when each of its replicas has
    /// taken them over. Never blocks.
    pub fn changed(&self) {
        self.asked.notify_one();
        let asked = self.asked.clone();
        tokio::spawn(async move {
            sleep(TAKEN_OVER).await;
            asked.notify_one();
        });
    }
}

/// Fetches the key set now, every few minutes, and when asked; until the first one has arrived the
/// service is not ready. A failed fetch keeps the old keys.
pub fn follow(
    url: Url,
    http: reqwest::Client,
    verifier: Arc<Verifier>,
    ctx: &Context,
) -> JwksFollower {
    let asked = Arc::new(Notify::new());
    let follower = JwksFollower { asked: asked.clone() };
    let (health, shutdown) = (ctx.health.clone(), ctx.shutdown.clone());
    health.set("keys", Err("the issuer's key set has not been fetched yet".to_owned()));
    let refresh = async move {
        let mut retry = FIRST_RETRY;
        loop {
            match fetch(&http, url.clone()).await {
                Ok(keys) => {
                    verifier.set_keys(keys);
                    health.set("keys", Ok(()));
                    retry = FIRST_RETRY;
                    sleep(AT_MOST_EVERY).await;
                    let _ = timeout(REFRESH - AT_MOST_EVERY, asked.notified()).await;
                }
                Err(error) => {
                    let error = whole(&error);
                    tracing::warn!(error, %url, "the issuer's key set cannot be fetched; trying again");
                    if !verifier.has_keys() {
                        health.set("keys", Err(error));
                    }
                    sleep(retry).await;
                    retry = (retry * 2).min(LAST_RETRY);
                }
            }
        }
    };
    tokio::spawn(async move {
        tokio::select! {
            () = refresh => {}
            () = shutdown.cancelled() => {}
        }
    });
    follower
}

#[derive(Debug, thiserror::Error)]
enum FetchError {
    #[error(transparent)]
    Http(#[from] reqwest::Error),
    #[error("the answer is no key set with a usable key")]
    NoKeys,
}

async fn fetch(http: &reqwest::Client, url: Url) -> Result<KeySet, FetchError> {
    let mut response = http.get(url).send().await?.error_for_status()?;
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        if body.len() + chunk.len() > SIZE_MAX {
            return Err(FetchError::NoKeys);
        }
        body.extend_from_slice(&chunk);
    }
    let keys = KeySet::from_json(&body).map_err(|_| FetchError::NoKeys)?;
    if keys.is_empty() { Err(FetchError::NoKeys) } else { Ok(keys) }
}
