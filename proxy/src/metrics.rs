//! What is counted. Labels are fixed words, never names of people or workloads.

use prometheus::{Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry};

/// Cheap to clone.
#[derive(Debug, Clone)]
pub struct Metrics {
    pub requests: IntCounterVec,
    /// Those of the fast lane by class of status, found once.
    lane: [IntCounter; CLASSES.len()],
    pub refusals: IntCounterVec,
    pub connections: IntGauge,
    pub connections_refused: IntCounterVec,
    pub websockets: IntGauge,
    pub websockets_opened: IntCounter,
    pub held: IntGauge,
    pub wakes: IntCounterVec,
    pub sign_ins: IntCounterVec,
    pub connect_retries: IntCounter,
    pub ejections: IntCounter,
    pub seconds: Histogram,
    pub access_log: IntCounterVec,
    judged: [IntCounter; VERDICTS.len()],
    judged_all: IntCounterVec,
}

/// What a request or message of a client was taken for.
const VERDICTS: [&str; 5] = ["noise", "person", "work", "doubt", "unknown"];

/// Classes of status; the first is for no answer.
const CLASSES: [&str; 6] = ["none", "1xx", "2xx", "3xx", "4xx", "5xx"];

fn class(status: u16) -> usize {
    if (100..600).contains(&status) { usize::from(status / 100) } else { 0 }
}

impl Metrics {
    /// Label of the fast lane.
    pub const LANE: &str = "lane";

    pub fn register(registry: &Registry) -> prometheus::Result<Self> {
        let counter = |name: &str, help: &str| IntCounter::new(name, help);
        let counters = |name: &str, help: &str, labels: &[&str]| {
            IntCounterVec::new(Opts::new(name, help), labels)
        };
        let gauge = |name: &str, help: &str| IntGauge::new(name, help);
        let buckets = vec![0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 60.0, 600.0];
        let requests = counters(
            "dormouse_proxy_requests_total",
            "Requests answered, by engine and class of status.",
            &["engine", "status"],
        )?;
        let judged = counters(
            "dormouse_proxy_judged_total",
            "Requests and messages to workloads, by whether a person did them, a running job, nobody, or that is in doubt or not understood.",
            &["verdict"],
        )?;
        let metrics = Self {
            judged: VERDICTS.map(|verdict| judged.with_label_values(&[verdict])),
            judged_all: judged,
            lane: CLASSES.map(|class| requests.with_label_values(&[Self::LANE, class])),
            requests,
            refusals: counters(
                "dormouse_proxy_refusals_total",
                "Requests that the gate refused, by reason.",
                &["reason"],
            )?,
            connections: gauge("dormouse_proxy_connections", "Client connections that are open.")?,
            connections_refused: counters(
                "dormouse_proxy_connections_refused_total",
                "Connections closed before a request, by reason.",
                &["reason"],
            )?,
            websockets: gauge("dormouse_proxy_websockets", "WebSockets that are open.")?,
            websockets_opened: counter(
                "dormouse_proxy_websockets_opened_total",
                "WebSockets that were opened.",
            )?,
            held: gauge("dormouse_proxy_held", "Requests held while workloads wake.")?,
            wakes: counters(
                "dormouse_proxy_wakes_total",
                "Wake requests, by whether the queue took them.",
                &["outcome"],
            )?,
            sign_ins: counters(
                "dormouse_proxy_sign_ins_total",
                "Sign-ins that ended.",
                &["outcome"],
            )?,
            connect_retries: counter(
                "dormouse_proxy_connect_retries_total",
                "Connections to workloads that were tried again.",
            )?,
            ejections: counter(
                "dormouse_proxy_ejections_total",
                "Times that a failing pod was left alone for a while.",
            )?,
            access_log: counters(
                "dormouse_proxy_access_log_lines_lost_total",
                "Lines of the access log that were not written: the queue was full, or there were too many refusals.",
                &["outcome"],
            )?,
            seconds: Histogram::with_opts(
                HistogramOpts::new(
                    "dormouse_proxy_request_seconds",
                    "Time from a request's head to the end of its answer.",
                )
                .buckets(buckets),
            )?,
        };
        for collector in metrics.collectors() {
            registry.register(collector)?;
        }
        Ok(metrics)
    }

    fn collectors(&self) -> Vec<Box<dyn prometheus::core::Collector>> {
        vec![
            Box::new(self.requests.clone()),
            Box::new(self.refusals.clone()),
            Box::new(self.connections.clone()),
            Box::new(self.connections_refused.clone()),
            Box::new(self.websockets.clone()),
            Box::new(self.websockets_opened.clone()),
            Box::new(self.held.clone()),
            Box::new(self.wakes.clone()),
            Box::new(self.sign_ins.clone()),
            Box::new(self.connect_retries.clone()),
            Box::new(self.ejections.clone()),
            Box::new(self.seconds.clone()),
            Box::new(self.access_log.clone()),
            Box::new(self.judged_all.clone()),
        ]
    }

    /// `verdict` is a word of [`domain::classify`].
    pub fn judged(&self, verdict: &str) {
        let of = VERDICTS.iter().zip(&self.judged).find(|(known, _)| **known == verdict);
        if let Some((_, counter)) = of {
            counter.inc();
        }
    }

    pub fn answered(&self, engine: &str, status: u16) {
        let class = class(status);
        match self.lane.get(class).filter(|_| engine == Self::LANE) {
            Some(counter) => counter.inc(),
            None => {
                self.requests.with_label_values(&[engine, CLASSES.get(class).unwrap_or(&"")]).inc()
            }
        }
    }
}
