//! Tells of a service's watches on the cluster: in its health and its metrics.

use std::collections::BTreeMap;

use cluster::watch::{Seen, Watches};
use prometheus::{IntGaugeVec, Opts};
use runtime::service::Context;

/// The watches of one service, reported until shutdown. Once per service: metrics have names.
pub fn watches(ctx: &Context) -> anyhow::Result<Watches> {
    let gauge = |name: &str, help: &str| {
        let gauge = IntGaugeVec::new(Opts::new(name, help), &["kind"])?;
        ctx.registry.register(Box::new(gauge.clone()))?;
        anyhow::Ok(gauge)
    };
    let blind = gauge(
        "dormouse_cluster_blind_since_timestamp_seconds",
        "Since when changes of a kind are not seen; 0 while they are.",
    )?;
    let failures =
        gauge("dormouse_cluster_watch_failures", "Lists and watches that failed since the start.")?;
    let unreadable = gauge(
        "dormouse_cluster_unreadable_objects",
        "Objects that this version cannot read and leaves as they are.",
    )?;
    let watches = Watches::default();
    let mut changes = watches.subscribe();
    let (health, shutdown) = (ctx.health.clone(), ctx.shutdown.clone());
    tokio::spawn(async move {
        loop {
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return },
                () = shutdown.cancelled() => return,
            }
            let seen = changes.borrow_and_update().clone();
            health.warn("cluster", seen.blind());
            health.warn("objects", unread(&seen));
            let mut kinds = BTreeMap::<&str, (i64, i64)>::new();
            for one in seen.all() {
                let (since, failed) = kinds.entry(&one.kind).or_default();
                if let Some(at) = one.blind_since {
                    let at = at.as_second();
                    *since = if *since == 0 { at } else { at.min(*since) };
                }
                *failed += i64::try_from(one.failures).unwrap_or(i64::MAX);
            }
            for (kind, (since, failed)) in kinds {
                blind.with_label_values(&[kind]).set(since);
                failures.with_label_values(&[kind]).set(failed);
                let not = seen.unreadable().keys().filter(|(of, _)| *of == kind).count();
                unreadable.with_label_values(&[kind]).set(i64::try_from(not).unwrap_or(i64::MAX));
            }
        }
    });
    Ok(watches)
}

/// Objects that are named; of more, only the number is told.
const NAMED: usize = 5;

fn unread(seen: &Seen) -> Option<String> {
    let all = seen.unreadable();
    let named = all.iter().take(NAMED).map(|((kind, (namespace, name)), report)| {
        format!("{kind} {namespace}/{name} ({})", report.field)
    });
    let named: Vec<_> = named.collect();
    let others = all.len().saturating_sub(NAMED);
    let others = if others == 0 { String::new() } else { format!(" and {others} more") };
    let told = format!(
        "cannot read {}{others}: they are left as they are; upgrade this program",
        named.join(", ")
    );
    (!all.is_empty()).then_some(told)
}
