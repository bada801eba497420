//! What is counted.

use domain::token::KEYS_MAX;
use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, IntGauge, Opts, Registry};

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
    /// Keys that are published. Gateways take a set of [`KEYS_MAX`] at most, and with more of them the
    /// one of before.
    pub signing_keys: IntGauge,
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
        let gauge = |name: &str, help: &str| {
            let gauge = IntGauge::new(format!("dormouse_authserver_{name}"), help)?;
            registry.register(Box::new(gauge.clone()))?;
            Ok::<_, prometheus::Error>(gauge)
        };
        gauge("signing_keys_max", "The most published keys that gateways take.")?
            .set(i64::try_from(KEYS_MAX).unwrap_or(i64::MAX));
        Ok(Self {
            signing_keys: gauge("signing_keys", "Signing keys that are published.")?,
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

    pub fn count_keys(&self, published: usize) {
        self.signing_keys.set(i64::try_from(published).unwrap_or(i64::MAX));
    }
}
