//! Tells the authserver, once a minute, which personal tokens were used here: people are shown when
//! each of theirs was used last. A request waits for none of it.

use std::{sync::Arc, time::Duration};

use domain::token::Verifier;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::time::{MissedTickBehavior, interval};

use crate::{http::whole, revocations::Feed, service::Context};

const PACE: Duration = Duration::from_secs(60);

/// Uses in one request: well below what the authserver reads.
pub const REPORT_MAX: usize = 500;

/// A personal token and the second of its last use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Use {
    pub id: String,
    pub at: i64,
}

/// The body of a report.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Report {
    pub uses: Vec<Use>,
}

/// Reports until the shutdown. What cannot be told is told with the next report.
pub fn report(feed: Feed, http: reqwest::Client, verifier: Arc<Verifier>, ctx: &Context) {
    let shutdown = ctx.shutdown.clone();
    tokio::spawn(async move {
        let mut pace = interval(PACE);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut since = Timestamp::now();
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                _ = pace.tick() => {}
            }
            let now = Timestamp::now();
            match send(&feed, &http, verifier.personal_uses(since)).await {
                Ok(()) => since = now,
                Err(error) => {
                    let error = whole(&error);
                    tracing::info!(error, "uses of personal tokens are told later");
                }
            }
        }
    });
}

async fn send(
    feed: &Feed,
    http: &reqwest::Client,
    uses: Vec<(String, i64)>,
) -> Result<(), reqwest::Error> {
    let mut url = feed.authserver.clone();
    url.set_path("/internal/token-uses");
    for uses in uses.chunks(REPORT_MAX) {
        let uses = uses.iter().map(|(id, at)| Use { id: id.clone(), at: *at }).collect();
        let request = http.post(url.clone()).json(&Report { uses });
        let request = request.basic_auth(&feed.client_id, Some(&feed.client_secret));
        request.send().await?.error_for_status()?;
    }
    Ok(())
}
