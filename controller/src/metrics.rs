//! What the controller counts.

use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts, Registry};

#[derive(Clone)]
pub struct Metrics {
    /// By kind of object.
    pub reconcile_errors: IntCounterVec,
    pub sleeps: IntCounter,
    /// By `Keep`, `Warn`, `Sleep`.
    pub verdicts: IntCounterVec,
    /// Gateways that did not answer the last time they were asked.
    pub silent_gateways: IntGauge,
    /// Verdicts that are still to be written.
    pub unwritten: IntGauge,
    /// 1 while no verdict is given, because changes of the cluster are not seen.
    pub verdicts_paused: IntGauge,
    /// 1 while it acts, 0 while it stands by.
    pub acting: IntGauge,
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
            unwritten: IntGauge::new(
                "dormouse_controller_unwritten_verdicts",
                "Idle verdicts that could not be written yet and are tried again.",
            )?,
            verdicts_paused: IntGauge::new(
                "dormouse_controller_verdicts_paused",
                "1 while no idle verdict is given, because changes of the cluster are not seen.",
            )?,
            acting: IntGauge::new(
                "dormouse_controller_acting",
                "1 while this controller holds its scope's Lease and acts, 0 while it stands by.",
            )?,
        };
        registry.register(Box::new(metrics.reconcile_errors.clone()))?;
        registry.register(Box::new(metrics.sleeps.clone()))?;
        registry.register(Box::new(metrics.verdicts.clone()))?;
        registry.register(Box::new(metrics.silent_gateways.clone()))?;
        registry.register(Box::new(metrics.unwritten.clone()))?;
        registry.register(Box::new(metrics.verdicts_paused.clone()))?;
        registry.register(Box::new(metrics.acting.clone()))?;
        Ok(metrics)
    }
}
