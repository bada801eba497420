//! `events.k8s.io/v1` and core v1 events are one thing in two forms; the core form is stored.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde_json::{Map, Value};

use super::meta;
use super::rest::App;
use super::store::Change;

/// How long events are kept, as API servers do by default.
const KEPT: SignedDuration = SignedDuration::from_hours(1);
const SWEEP: Duration = Duration::from_secs(300);

/// Field names: in the new form, in the core form.
const RENAMED: &[(&str, &str)] = &[
    ("regarding", "involvedObject"),
    ("note", "message"),
    ("deprecatedSource", "source"),
    ("deprecatedFirstTimestamp", "firstTimestamp"),
    ("deprecatedLastTimestamp", "lastTimestamp"),
    ("deprecatedCount", "count"),
    ("reportingController", "reportingComponent"),
];

fn renamed(object: &Value, api_version: &str, rename: impl Fn(&str) -> String) -> Value {
    let mut map = Map::new();
    for (key, value) in object.as_object().into_iter().flatten() {
        map.insert(rename(key), value.clone());
    }
    map.insert("apiVersion".to_owned(), api_version.into());
    Value::Object(map)
}

pub fn to_core(object: &Value) -> Value {
    renamed(object, "v1", |key| {
        RENAMED.iter().find(|(new, _)| *new == key).map_or(key, |(_, core)| core).to_owned()
    })
}

pub fn to_new(object: &Value) -> Value {
    renamed(object, "events.k8s.io/v1", |key| {
        RENAMED.iter().find(|(_, core)| *core == key).map_or(key, |(new, _)| new).to_owned()
    })
}

/// Whether an event was last seen too long ago to be kept.
fn is_expired(event: &Value, now: Timestamp) -> bool {
    let times = [
        &event["series"]["lastObservedTime"],
        &event["lastTimestamp"],
        &event["eventTime"],
        &event["metadata"]["creationTimestamp"],
    ];
    let seen = times
        .into_iter()
        .filter_map(Value::as_str)
        .filter_map(|text| text.parse::<Timestamp>().ok())
        .max();
    seen.is_none_or(|seen| now.duration_since(seen) > KEPT)
}

/// Removes old events until the server stops.
pub async fn sweep(app: Arc<App>) {
    let key = super::registry::store_key("", "events");
    loop {
        tokio::select! {
            () = tokio::time::sleep(SWEEP) => {}
            () = app.shutdown.cancelled() => return,
        }
        for event in app.store.all(&key, "") {
            let now = Timestamp::now();
            if !is_expired(&event, now) {
                continue;
            }
            let removed = app
                .store
                .write(&key, meta::namespace(&event), meta::name(&event), |current| {
                    Ok(match current {
                        Some(current) if is_expired(current, now) => {
                            Change::Delete((**current).clone())
                        }
                        _ => Change::Keep(event.clone()),
                    })
                })
                .await;
            if let Err(error) = removed {
                tracing::warn!(%error, "cannot remove an old event");
                break;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn events_are_kept_an_hour_after_they_were_last_seen() {
        let now: Timestamp = "2026-01-01T12:00:00Z".parse().unwrap();
        let event = |last: &str| json!({"metadata": {"creationTimestamp": "2026-01-01T01:00:00Z"}, "lastTimestamp": last});
        assert!(!is_expired(&event("2026-01-01T11:30:00Z"), now));
        assert!(is_expired(&event("2026-01-01T10:30:00Z"), now));
        assert!(is_expired(&json!({"metadata": {}}), now));
    }

    #[test]
    fn the_two_forms_convert_into_each_other() {
        let new = json!({"apiVersion": "events.k8s.io/v1", "kind": "Event", "regarding": {"name": "x"}, "note": "n", "reportingController": "c"});
        let core = to_core(&new);
        assert_eq!(core["involvedObject"]["name"], "x");
        assert_eq!(to_new(&core), new);
    }
}
