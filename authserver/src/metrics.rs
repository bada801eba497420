//! What is counted.

use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, Opts, Registry};

pub(crate) struct Metrics {
    /// By `outcome`: `succeeded`, `refused`, `throttled`.
    pub sign_ins: IntCounterVec,
    /// By `provider`, an id of the settings.
    pub groups_unknown: IntCounterVec,
    /// By `grant`: `authorization_code`, `refresh_token`, `personal`.
    pub tokens_issued: IntCounterVec,
    /// By `error`, a code of RFC 6749, section 5.2.
    pub token_refusals: IntCounterVec,
    /// By `route`, a pattern of the router, and `status`, a class such as `2xx`.
    pub requests: HistogramVec,
}

impl Metrics {
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let counter = |name: &str, help: &str, label: &str| {
            let name = format!("dormouse_authserver_{name}");
            let counter = IntCounterVec::new(Opts::new(name, help), &[label])?;
            registry.register(Box::new(counter.clone()))?;
            Ok::<_, prometheus::Error>(counter)
        };
        let requests = HistogramVec::new(
            HistogramOpts::new(
                "dormouse_authserver_request_seconds",
                "Time from a request's head to its response's head.",
            ),
            &["route", "status"],
        )?;
        registry.register(Box::new(requests.clone()))?;
        Ok(Self {
            sign_ins: counter("sign_ins_total", "Sign-ins tried, by outcome.", "outcome")?,
            groups_unknown: counter(
                "groups_unknown_total",
                "Sign-ins at which the provider did not say the person's groups.",
                "provider",
            )?,
            tokens_issued: counter("tokens_issued_total", "Tokens issued, by grant.", "grant")?,
            token_refusals: counter(
                "token_refusals_total",
                "Requests to the token endpoint that were refused, by error.",
                "error",
            )?,
            requests,
        })
    }
}
