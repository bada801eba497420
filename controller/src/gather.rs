//! Asks each gateway what people did since it was last asked.

use std::{collections::HashMap, time::Duration};

use domain::{activity::Change, idle::GatewayReport, workload::WorkloadRef};
use jiff::Timestamp;
use runtime::activity::Report;
use url::Url;

/// A gateway that takes longer is silent for this round.
const DEADLINE: Duration = Duration::from_secs(2);

/// One gateway, and everything it has said.
#[derive(Debug)]
pub struct Gateway {
    url: Url,
    memory: Option<Memory>,
    silent: bool,
}

#[derive(Debug)]
struct Memory {
    gateway: String,
    remembers_since: Timestamp,
    answered_at: Timestamp,
    cursor: u64,
    workloads: HashMap<WorkloadRef, Change>,
}

#[derive(Debug, thiserror::Error)]
enum GatherError {
    #[error("{0} is no address of an admin port")]
    Url(Url),
    #[error("{0}")]
    Http(#[from] reqwest::Error),
}

impl Gateway {
    pub fn new(url: Url) -> Self {
        Self { url, memory: None, silent: false }
    }

    /// One question; false when it is not answered. What was known stays then, and grows old.
    /// Only a change is logged.
    pub async fn ask(&mut self, http: &reqwest::Client) -> bool {
        let url = self.url.clone();
        match self.try_ask(http).await {
            Ok(()) => {
                if std::mem::take(&mut self.silent) {
                    tracing::info!(%url, "the gateway answers again");
                }
            }
            Err(error) => {
                if !std::mem::replace(&mut self.silent, true) {
                    tracing::warn!(error = runtime::http::whole(&error), %url, "a gateway does not answer: no workload will be put to sleep");
                }
            }
        }
        !self.silent
    }

    async fn try_ask(&mut self, http: &reqwest::Client) -> Result<(), GatherError> {
        let asked_at = Timestamp::now();
        let since = self.memory.as_ref().map_or(0, |memory| memory.cursor);
        let mut report = self.get(http, since).await?;
        let known = self.memory.as_ref().map(|memory| memory.gateway.as_str());
        if since != 0 && known != Some(report.gateway.as_str()) {
            // It was started anew and our cursor means nothing to it.
            report = self.get(http, 0).await?;
        }
        self.learn(report, asked_at);
        Ok(())
    }

    async fn get(&self, http: &reqwest::Client, since: u64) -> Result<Report, GatherError> {
        let mut url = self.url.join("activity").map_err(|_| GatherError::Url(self.url.clone()))?;
        url.query_pairs_mut().append_pair("since", &since.to_string());
        Ok(http.get(url).timeout(DEADLINE).send().await?.error_for_status()?.json().await?)
    }

    /// `asked_at` by our own clock, before the question: what the gateway saw later is not in it.
    fn learn(&mut self, report: Report, asked_at: Timestamp) {
        let fresh = Memory {
            gateway: report.gateway.clone(),
            remembers_since: report.remembers_since,
            answered_at: asked_at,
            cursor: 0,
            workloads: HashMap::new(),
        };
        let memory = match &mut self.memory {
            Some(memory) if memory.gateway == report.gateway => memory,
            other => other.insert(fresh),
        };
        memory.answered_at = asked_at;
        memory.cursor = report.cursor;
        for change in report.changes {
            memory.workloads.insert(change.workload.clone(), change);
        }
    }

    /// What it said of one workload; `None` if it never answered.
    pub fn report(&self, workload: &WorkloadRef) -> Option<GatewayReport> {
        let memory = self.memory.as_ref()?;
        let change = memory.workloads.get(workload);
        Some(GatewayReport {
            remembers_since: memory.remembers_since,
            answered_at: memory.answered_at,
            last: change.and_then(|change| change.last.clone()),
            working: change.map_or(0, |change| change.working),
        })
    }

    /// Forgets workloads that exist no more.
    pub fn retain(&mut self, keep: impl Fn(&WorkloadRef) -> bool) {
        if let Some(memory) = &mut self.memory {
            memory.workloads.retain(|workload, _| keep(workload));
        }
    }
}

#[cfg(test)]
mod tests {
    use domain::{
        activity::{Evidence, How},
        workload::WorkloadKind,
    };

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn lab() -> WorkloadRef {
        WorkloadRef {
            kind: WorkloadKind::Workspace,
            project: "alice".parse().unwrap(),
            name: "lab".parse().unwrap(),
        }
    }

    fn report(gateway: &str, since: i64, cursor: u64, used: Option<i64>) -> Report {
        let changes = used.map(|second| Change {
            workload: lab(),
            last: Some(Evidence {
                at: at(second),
                who: "alice".parse().unwrap(),
                how: How::Http,
                what: "edit".to_owned(),
            }),
            open: 0,
            working: 0,
        });
        Report {
            gateway: gateway.to_owned(),
            remembers_since: at(since),
            now: at(0),
            cursor,
            changes: changes.into_iter().collect(),
        }
    }

    #[test]
    fn a_gateway_started_anew_forgets_and_says_since_when() {
        let mut gateway = Gateway::new("http://127.0.0.1:1/".parse().unwrap());
        assert_eq!(gateway.report(&lab()), None);
        gateway.learn(report("one", 10, 5, Some(90)), at(100));
        gateway.learn(report("one", 10, 6, None), at(105));
        let kept = gateway.report(&lab()).unwrap();
        assert_eq!((kept.last.unwrap().at, kept.answered_at), (at(90), at(105)));
        gateway.learn(report("two", 108, 1, None), at(110));
        let fresh = gateway.report(&lab()).unwrap();
        assert_eq!((fresh.last, fresh.remembers_since), (None, at(108)));
        assert_eq!(gateway.memory.unwrap().cursor, 1);
    }
}
