//! What the gateway counts. Labels are few and fixed: no names of people or workloads.

use prometheus::{
    Histogram, HistogramOpts, IntCounterVec, IntGauge, Opts, Registry, exponential_buckets,
};

#[derive(Clone)]
pub struct Metrics {
    /// By `outcome`: `accepted`, `refused` (too many).
    pub connections: IntCounterVec,
    pub connections_open: IntGauge,
    /// By `method` and `outcome`: `allowed`, `denied`.
    pub sign_ins: IntCounterVec,
    /// By `kind` (`session`, `forward`, `remote-forward`) and `outcome`: `opened`, `failed`.
    pub channels: IntCounterVec,
    pub channels_open: IntGauge,
    /// Bytes that wait because somebody does not read them.
    pub unread: IntGauge,
    /// By `scope` (`connection`, `person`, `process`): how often somebody had to wait for its room.
    pub slowed: IntCounterVec,
    /// From the first request to a workload that answers, in seconds; only those that slept.
    pub wake: Histogram,
}

impl Metrics {
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        let counter = |name: &str, help: &str, labels: &[&str]| {
            let counter = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(counter.clone()))?;
            Ok::<_, prometheus::Error>(counter)
        };
        let gauge = |name: &str, help: &str| {
            let gauge = IntGauge::new(name, help)?;
            registry.register(Box::new(gauge.clone()))?;
            Ok::<_, prometheus::Error>(gauge)
        };
        let buckets = exponential_buckets(0.25, 2.0, 11)?;
        let wake = Histogram::with_opts(
            HistogramOpts::new(
                "dormouse_ssh_gateway_wake_seconds",
                "Time that people waited for a sleeping workload.",
            )
            .buckets(buckets),
        )?;
        registry.register(Box::new(wake.clone()))?;
        Ok(Self {
            connections: counter(
                "dormouse_ssh_gateway_connections_total",
                "Connections, by outcome.",
                &["outcome"],
            )?,
            connections_open: gauge(
                "dormouse_ssh_gateway_connections_open",
                "Connections that are open.",
            )?,
            sign_ins: counter(
                "dormouse_ssh_gateway_sign_ins_total",
                "Proven and failed attempts to sign in, by method.",
                &["method", "outcome"],
            )?,
            channels: counter(
                "dormouse_ssh_gateway_channels_total",
                "Channels, by kind and outcome.",
                &["kind", "outcome"],
            )?,
            channels_open: gauge("dormouse_ssh_gateway_channels_open", "Channels that are open.")?,
            unread: gauge(
                "dormouse_ssh_gateway_unread_bytes",
                "Bytes that wait because somebody does not read them.",
            )?,
            slowed: counter(
                "dormouse_ssh_gateway_slowed_total",
                "How often a connection waited because a bound of unread bytes was reached, by scope.",
                &["scope"],
            )?,
            wake,
        })
    }
}

/// Counts something as open for as long as it lives.
pub struct Counted(IntGauge);

impl Counted {
    pub fn new(gauge: &IntGauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}
