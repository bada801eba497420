//! What the reconcilers stand on: watches of our own, and what is told of objects that cannot be read.

use std::{collections::HashSet, sync::Arc, time::Duration};

use cluster::{
    labels,
    resources::WorkloadResource,
    scope,
    watch::{Source, follow, touched},
};
use futures::{Stream, StreamExt};
use kube::{
    Resource,
    core::PartialObjectMeta,
    runtime::{
        Controller, WatchStreamExt,
        events::{Event, EventType},
        reflector::{self, Store},
        watcher,
    },
};
use serde::de::DeserializeOwned;

use crate::Shared;

/// A failed reconciliation is tried again after this long at the least, and half as long again at the most:
/// nobody looks at a workload while the API server starts anew, and all come back to it at once.
const RETRY: Duration = Duration::from_secs(2);

pub fn retry() -> Duration {
    RETRY.mul_f64(1.0 + rand::random::<f64>() / 2.0)
}

/// Reconciles the objects of a kind that are told. One that cannot be read is not: nothing that is made
/// for it is touched, and it neither sleeps nor wakes.
pub fn controller<K, S>(events: impl FnOnce(Store<K>) -> S) -> Controller<K>
where
    K: Resource<DynamicType = ()>
        + Clone
        + std::fmt::Debug
        + DeserializeOwned
        + Send
        + Sync
        + 'static,
    S: Stream<Item = watcher::Event<K>> + Send + 'static,
{
    let (reader, writer) = reflector::store();
    let events = events(reader.clone()).map(Ok::<_, watcher::Error>);
    Controller::for_stream(reflector::reflector(writer, events).applied_objects(), reader)
}

/// Workloads of our scope that can be read.
pub fn members<W: WorkloadResource>(
    shared: &Shared,
) -> impl Stream<Item = watcher::Event<W>> + Send + 'static + use<W> {
    scope::members(shared.client.clone(), shared.config.scope.clone(), &shared.watches)
}

/// Whatever happens to objects of a kind that were made for workloads.
pub fn made_by_us<K>(
    shared: &Shared,
) -> impl Stream<Item = Result<PartialObjectMeta<K>, watcher::Error>> + Send + 'static + use<K>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Send + Sync + 'static,
{
    let source = Source::<PartialObjectMeta<K>>::metadata(shared.client.clone());
    // Those of other scopes would be looked for among ours in vain. A Project that comes from another scope brings
    // things along whose label is still the other's, until they are applied, which is soon.
    let selector = match shared.config.scope.name() {
        Some(scope) => format!("{},{}={scope}", labels::WORKLOAD, labels::SCOPE),
        None => format!("{},!{}", labels::WORKLOAD, labels::SCOPE),
    };
    touched(follow(source.labels(&selector), &shared.watches)).map(Ok)
}

/// An event for each object that cannot be read; its own status is not written, because what cannot be read
/// could be lost. Nothing is written to those of other scopes. Until the watches end.
pub async fn tell_unreadable(shared: Arc<Shared>) {
    let Shared { client, recorder, .. } = &*shared;
    let mut changes = shared.watches.subscribe();
    let mut told = HashSet::new();
    loop {
        let reports: Vec<_> =
            changes.borrow_and_update().unreadable().into_values().cloned().collect();
        let keys: HashSet<_> = reports
            .iter()
            .map(|report| (report.object.uid.clone(), report.field.clone()))
            .collect();
        told.retain(|key| keys.contains(key));
        for report in reports {
            if !told.insert((report.object.uid.clone(), report.field.clone())) {
                continue;
            }
            // A Project has the name of its namespace.
            let namespace = report.object.namespace.as_ref().or(report.object.name.as_ref());
            match shared.config.scope.holds(client, namespace.map_or("", String::as_str)).await {
                Ok(true) => {}
                Ok(false) => continue,
                Err(error) => {
                    tracing::debug!(
                        error = cluster::watch::told(&error),
                        "whose it is is not known"
                    );
                    told.remove(&(report.object.uid.clone(), report.field.clone()));
                    continue;
                }
            }
            let note = format!(
                "The controller cannot read {}: it leaves the object as it is until it is upgraded, or the field corrected",
                report.field
            );
            let event = Event {
                type_: EventType::Warning,
                reason: "Unreadable".to_owned(),
                note: Some(note),
                action: "Read".to_owned(),
                secondary: None,
            };
            if let Err(error) = recorder.publish(&event, &report.object).await {
                tracing::debug!(
                    error = cluster::watch::told(&error),
                    "an event could not be written"
                );
            }
        }
        if changes.changed().await.is_err() {
            return;
        }
    }
}
