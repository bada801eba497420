//! What the controller counts.

use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts, Registry};

pub struct Metrics {
    /// By kind of object.
    pub reconcile_errors: IntCounterVec,
    pub sleeps: IntCounter,
    /// By `Keep`, `Warn`, `Sleep`.
    pub verdicts: IntCounterVec,
    /// Gateways that did not answer the last time they were asked.
    pub silent_gateways: IntGauge,
}

impl Metrics {
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        let metrics = Self {
            reconcile_errors: IntCounterVec::new(
                Opts::new(
                    "dormouse_controller_reconcile_errors_total",
                    "Reconciliations that failed and will be tried again.",
                ),
                &["kind"],
            )?,
            sleeps: IntCounter::new(
                "dormouse_controller_sleeps_total",
                "Workloads that were put to sleep.",
            )?,
            verdicts: IntCounterVec::new(
                Opts::new("dormouse_controller_verdicts_total", "Idle verdicts given."),
                &["verdict"],
            )?,
            silent_gateways: IntGauge::new(
                "dormouse_controller_silent_gateways",
                "Gateways that did not answer when they were last asked.",
            )?,
        };
        registry.register(Box::new(metrics.reconcile_errors.clone()))?;
        registry.register(Box::new(metrics.sleeps.clone()))?;
        registry.register(Box::new(metrics.verdicts.clone()))?;
        registry.register(Box::new(metrics.silent_gateways.clone()))?;
        Ok(metrics)
    }
}
