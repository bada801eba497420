//! What is told of certificates: metrics, warnings in health, lines in the log.

use std::collections::BTreeSet;

use jiff::Timestamp;
use parking_lot::Mutex;
use prometheus::{GaugeVec, IntCounterVec, IntGaugeVec, Opts, Registry};
use runtime::health::Health;

use super::{
    certificate::{Certificate, Source},
    store::Store,
};

/// Certificates that are named in metrics, at most.
const NAMED_MAX: usize = 200;

pub struct Report {
    health: Health,
    expires: GaugeVec,
    certificates: IntGaugeVec,
    loads: IntCounterVec,
    pub orders: IntCounterVec,
    /// Names of ACME's certificates that are configured; those ordered on demand are not bounded.
    acme_names: BTreeSet<String>,
    told: Mutex<BTreeSet<String>>,
    /// Names in `expires`.
    shown: Mutex<BTreeSet<String>>,
}

impl Report {
    pub fn new(
        registry: &Registry,
        health: Health,
        acme_names: BTreeSet<String>,
    ) -> prometheus::Result<Self> {
        let report = Self {
            health,
            acme_names,
            told: Mutex::default(),
            shown: Mutex::default(),
            expires: GaugeVec::new(
                Opts::new(
                    "dormouse_proxy_certificate_expires_seconds",
                    "When a configured certificate expires, in seconds since the epoch.",
                ),
                &["name"],
            )?,
            certificates: IntGaugeVec::new(
                Opts::new("dormouse_proxy_certificates", "Certificates in use, by source."),
                &["source"],
            )?,
            loads: IntCounterVec::new(
                Opts::new(
                    "dormouse_proxy_certificate_loads_total",
                    "Certificates that were new or had changed, by source and whether they can be used.",
                ),
                &["source", "outcome"],
            )?,
            orders: IntCounterVec::new(
                Opts::new(
                    "dormouse_proxy_acme_orders_total",
                    "Certificates ordered by ACME, by outcome.",
                ),
                &["outcome"],
            )?,
        };
        registry.register(Box::new(report.expires.clone()))?;
        registry.register(Box::new(report.certificates.clone()))?;
        registry.register(Box::new(report.loads.clone()))?;
        registry.register(Box::new(report.orders.clone()))?;
        Ok(report)
    }

    /// What is wrong with one source now; said once in the log, and in health as long as it is so.
    pub fn faults(&self, source: Source, faults: &[String]) {
        let component = match source {
            Source::Files => "certificate files",
            Source::Secrets => "certificate secrets",
            Source::Acme => "certificate orders",
        };
        let mut told = self.told.lock();
        let key = |fault: &String| format!("{component}: {fault}");
        for fault in faults {
            if told.insert(key(fault)) {
                tracing::error!(
                    source = source.name(),
                    fault,
                    "a certificate cannot be used; what was in use before stays in use"
                );
            }
        }
        let now: BTreeSet<_> = faults.iter().map(key).collect();
        let prefix = format!("{component}: ");
        told.retain(|line| !line.starts_with(&prefix) || now.contains(line));
        self.health.warn(component, (!faults.is_empty()).then(|| faults.join("; ")));
    }

    pub fn loaded(&self, source: Source, loaded: u64, broken: u64) {
        self.loads.with_label_values(&[source.name(), "loaded"]).inc_by(loaded);
        self.loads.with_label_values(&[source.name(), "broken"]).inc_by(broken);
    }

    /// Counts, expiries, and who needs attention.
    pub fn expiries(&self, store: &Store, now: Timestamp) {
        let all = store.all();
        for source in Source::ALL {
            let count = all.iter().filter(|(of, _)| *of == source).count();
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            self.certificates.with_label_values(&[source.name()]).set(count);
        }
        let mut ending = Vec::new();
        let mut names = BTreeSet::new();
        let named = all.iter().filter(|(source, certificate)| {
            *source != Source::Acme || self.acme_names.contains(&certificate.name)
        });
        for (_, certificate) in named.take(NAMED_MAX) {
            let seconds = certificate.not_after.as_second() as f64;
            self.expires.with_label_values(&[&certificate.name]).set(seconds);
            names.insert(certificate.name.clone());
        }
        let mut shown = self.shown.lock();
        for gone in shown.difference(&names) {
            let _ = self.expires.remove_label_values(&[gone]);
        }
        *shown = names;
        for (_, certificate) in &all {
            ending.extend(ending_soon(certificate, now));
        }
        let more = ending.len().saturating_sub(10);
        ending.truncate(10);
        if more > 0 {
            ending.push(format!("and {more} more"));
        }
        self.health.warn("certificate expiry", (!ending.is_empty()).then(|| ending.join("; ")));
    }

    /// Whether there is any certificate at all, and the Secrets are known: else their hosts would get
    /// another one. With ACME the first one comes only when the authority can reach us, so waiting for
    /// it must not keep traffic away.
    pub fn readiness(&self, store: &Store, synced: bool, acme: bool) {
        let state = if !synced {
            Err("the Secrets have not been listed yet".to_owned())
        } else if store.all().is_empty() && !acme {
            Err("there is no usable certificate".to_owned())
        } else {
            Ok(())
        };
        self.health.set("certificates", state);
    }
}

fn ending_soon(certificate: &Certificate, now: Timestamp) -> Option<String> {
    let left = certificate.not_after.duration_since(now);
    let name = &certificate.name;
    if left.is_zero() || left.is_negative() {
        Some(format!("{name} expired at {}", certificate.not_after))
    } else if now < certificate.not_before {
        Some(format!("{name} is not good before {}", certificate.not_before))
    } else if now > certificate.ends_soon_at() {
        Some(format!("{name} expires at {}", certificate.not_after))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;

    use super::{super::certificate::tests::certificate, *};

    const DAY: i64 = 24 * 3600;

    #[test]
    fn people_are_warned_in_time_and_not_always() {
        let at = |days: i64| Timestamp::from_second(days * DAY).unwrap();
        let year = certificate("year", &["a.test"], 0, 360 * DAY);
        let week = certificate("week", &["b.test"], 10 * DAY, 16 * DAY);
        assert_eq!(ending_soon(&year, at(345)), None);
        assert!(ending_soon(&year, at(347)).unwrap().contains("expires at"));
        assert!(ending_soon(&year, at(360)).unwrap().contains("expired at"));
        assert!(ending_soon(&week, at(9)).unwrap().contains("not good before"));
        assert_eq!(ending_soon(&week, at(14)), None);
        let last_day = at(15).checked_add(SignedDuration::from_hours(1)).unwrap();
        assert!(ending_soon(&week, last_day).is_some());
    }

    #[test]
    fn faults_expiries_and_readiness_are_told() {
        let (registry, health) = (Registry::new(), Health::new());
        let names = BTreeSet::from(["auth.test".to_owned()]);
        let report = Report::new(&registry, health.clone(), names).unwrap();
        let store = Store::new();
        report.readiness(&store, false, false);
        assert!(health.problems()[0].1.contains("not been listed"));
        report.readiness(&store, true, true);
        assert!(health.problems().is_empty());

        let now = Timestamp::from_second(359 * DAY).unwrap();
        store.set(Source::Files, vec![certificate("f", &["a.test"], 0, 360 * DAY)], now);
        report.readiness(&store, false, true);
        assert!(health.problems()[0].1.contains("not been listed"), "others are no substitute");
        report.readiness(&store, true, false);
        assert!(health.problems().is_empty());
        let orders = ["auth.test", "lab--alice.test"];
        let orders = orders.map(|name| certificate(name, &[name], 0, 700 * DAY));
        store.set(Source::Acme, orders.to_vec(), now);
        report.expiries(&store, now);
        report.faults(Source::Files, &["f: half a file".to_owned()]);
        let warnings = health.warnings();
        assert_eq!(warnings.len(), 2, "{warnings:?}");
        assert!(warnings[0].1.starts_with("f expires at"));
        assert_eq!(warnings[1].1, "f: half a file");
        let families = registry.gather();
        let family = |name: &str| families.iter().find(|family| family.name() == name).unwrap();
        let expires = family("dormouse_proxy_certificate_expires_seconds").get_metric();
        let mut labels: Vec<_> = expires.iter().map(|m| m.get_label()[0].value()).collect();
        labels.sort_unstable();
        assert_eq!(labels, ["auth.test", "f"], "hosts ordered on demand have no metric each");
        report.faults(Source::Files, &[]);
        assert_eq!(health.warnings().len(), 1);
        store.set(Source::Files, Vec::new(), now);
        report.expiries(&store, now);
        assert!(health.warnings().is_empty());
        assert_eq!(report.shown.lock().len(), 1);
    }
}
