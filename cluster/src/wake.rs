//! Carries gateways' wishes to the cluster: an annotation that only ever moves forward.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use domain::{
    wake::WakeRequest,
    workload::{WorkloadKind, WorkloadRef},
};
use jiff::{SignedDuration, Timestamp};
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::json;
use tokio::{sync::mpsc, task::JoinSet};
use tokio_util::sync::CancellationToken;

use crate::{
    labels::WAKE_AT,
    resources::{App, WorkloadResource, Workspace},
    scope::Scope,
};

/// Gateways repeat their wish while they hold a request; more often than this it changes nothing.
const REPEAT: Duration = Duration::from_secs(2);
/// Workloads that are woken at once.
const AT_ONCE: usize = 16;
const DEADLINE: Duration = Duration::from_secs(10);
const TRIES: usize = 5;

/// Runs until shutdown or until every sender is gone. Wakes nothing of another scope.
pub async fn run(
    client: Client,
    scope: Scope,
    mut requests: mpsc::Receiver<WakeRequest>,
    shutdown: CancellationToken,
) {
    let mut running = JoinSet::new();
    let mut recent: HashMap<WorkloadRef, Instant> = HashMap::new();
    loop {
        let request = tokio::select! {
            () = shutdown.cancelled() => return,
            request = requests.recv() => match request {
                Some(request) => request,
                None => return,
            },
        };
        recent.retain(|_, asked| asked.elapsed() < REPEAT);
        if recent.contains_key(&request.workload) {
            continue;
        }
        recent.insert(request.workload.clone(), Instant::now());
        while running.len() >= AT_ONCE {
            running.join_next().await;
        }
        let (client, scope) = (client.clone(), scope.clone());
        running.spawn(async move {
            match tokio::time::timeout(DEADLINE, wake(&client, &scope, &request)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    tracing::warn!(%error, workload = %request.workload, "a wake could not be written");
                }
                Err(_) => {
                    tracing::warn!(workload = %request.workload, "a wake could not be written in time");
                }
            }
        });
    }
}

/// Writes one wish. Fine if the workload is gone, or of another scope by now.
pub async fn wake(client: &Client, scope: &Scope, request: &WakeRequest) -> kube::Result<()> {
    if !scope.holds(client, request.workload.project.as_str()).await? {
        return Ok(());
    }
    match request.workload.kind {
        WorkloadKind::Workspace => write::<Workspace>(client, request).await,
        WorkloadKind::App => write::<App>(client, request).await,
    }
}

async fn write<W: WorkloadResource>(client: &Client, request: &WakeRequest) -> kube::Result<()> {
    let WorkloadRef { project, name, .. } = &request.workload;
    let api: Api<W> = Api::namespaced(client.clone(), project.as_str());
    for attempt in 1.. {
        let Some(object) = api.get_opt(name.as_str()).await? else { return Ok(()) };
        let slept = object.status().and_then(|status| status.sleep_at);
        let Some(at) = next_wake(request.at, slept, object.woken_at()) else { return Ok(()) };
        // With the version it was read at, so that two gateways cannot move it back.
        let patch = json!({"metadata": {
            "resourceVersion": object.meta().resource_version,
            "annotations": {WAKE_AT: at.to_string()},
        }});
        match api.patch(name.as_str(), &PatchParams::default(), &Patch::Merge(patch)).await {
            Ok(_) => {
                tracing::info!(workload = %request.workload, who = %request.who, "waking");
                return Ok(());
            }
            Err(kube::Error::Api(status)) if status.code == 409 && attempt < TRIES => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The time to write, or `None` when the one that is there says it already. Our clock may be behind
/// the controller's: a wake is always later than the sleep it ends.
fn next_wake(
    asked: Timestamp,
    slept: Option<Timestamp>,
    written: Option<Timestamp>,
) -> Option<Timestamp> {
    let after_sleep = slept.and_then(|s| s.checked_add(SignedDuration::from_millis(1)).ok());
    let at = after_sleep.map_or(asked, |after| asked.max(after));
    match written {
        Some(written) if written >= at => None,
        // Awake already and only just asked for: nothing would change.
        Some(written)
            if slept.is_none_or(|slept| written > slept)
                && at.duration_since(written) < SignedDuration::from_secs(2) =>
        {
            None
        }
        _ => Some(at),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn a_slow_clock_still_wakes() {
        let wake = next_wake(at(90), Some(at(100)), None).unwrap();
        assert!(wake > at(100));
    }

    #[test]
    fn repeating_writes_nothing() {
        assert_eq!(next_wake(at(100), Some(at(50)), Some(at(100))), None);
        assert_eq!(next_wake(at(101), Some(at(50)), Some(at(100))), None);
        assert_eq!(next_wake(at(110), Some(at(50)), Some(at(100))), Some(at(110)));
    }

    proptest! {
        #[test]
        fn only_forward_and_always_past_the_sleep(
            asked in 0i64..1000,
            slept in prop::option::of(0i64..1000),
            written in prop::option::of(0i64..1000),
        ) {
            let (slept, written) = (slept.map(at), written.map(at));
            let next = next_wake(at(asked), slept, written);
            let result = next.or(written);
            if let (Some(result), Some(slept)) = (result, slept) {
                prop_assert!(result > slept);
            }
            if let (Some(next), Some(written)) = (next, written) {
                prop_assert!(next > written);
            }
        }
    }
}
