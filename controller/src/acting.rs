//! What the reconcilers stand on: watches of our own, and what is told of objects that cannot be read.

use std::{collections::HashSet, time::Duration};

use cluster::{
    labels,
    watch::{Source, Unread, Watches, events, follow, touched},
};
use futures::{Stream, StreamExt};
use kube::{
    Resource,
    core::PartialObjectMeta,
    runtime::{
        Controller, WatchStreamExt,
        events::{Event, EventType, Recorder},
        reflector, watcher,
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

/// Reconciles all objects of a kind that can be read. One that cannot be is left out: nothing that is made
/// for it is touched, and it neither sleeps nor wakes.
pub fn controller<K>(shared: &Shared) -> Controller<K>
where
    K: Resource<DynamicType = ()>
        + Clone
        + std::fmt::Debug
        + DeserializeOwned
        + Send
        + Sync
        + 'static,
{
    let (reader, writer) = reflector::store();
    let news = follow(Source::<K>::all(shared.client.clone()), &shared.watches);
    let events = events(news, reader.clone(), Unread::LeaveOut).map(Ok::<_, watcher::Error>);
    Controller::for_stream(reflector::reflector(writer, events).applied_objects(), reader)
}

/// Whatever happens to objects of a kind that were made for workloads.
pub fn made_by_us<K>(
    shared: &Shared,
) -> impl Stream<Item = Result<PartialObjectMeta<K>, watcher::Error>> + Send + 'static + use<K>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Send + Sync + 'static,
{
    let source = Source::<PartialObjectMeta<K>>::metadata(shared.client.clone());
    touched(follow(source.labels(labels::WORKLOAD), &shared.watches)).map(Ok)
}

/// An event for each object that cannot be read; its own status is not written, because what cannot be read
/// could be lost. Until the watches end.
pub async fn tell_unreadable(watches: Watches, recorder: Recorder) {
    let mut changes = watches.subscribe();
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
