//! A pod's row: readiness, restarts, and the one word that says how it is.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::human;

fn statuses<'a>(pod: &'a Value, field: &str) -> &'a [Value] {
    pod["status"][field].as_array().map(Vec::as_slice).unwrap_or_default()
}

pub fn cells(pod: &Value, now: Timestamp) -> Vec<Value> {
    let containers = statuses(pod, "containerStatuses");
    let total = pod["spec"]["containers"].as_array().map_or(0, Vec::len);
    let ready = containers
        .iter()
        .filter(|c| c["ready"] == true && !c["state"]["running"].is_null())
        .count();
    let or_none =
        |value: &Value| value.as_str().filter(|t| !t.is_empty()).unwrap_or("<none>").to_owned();
    let gates = pod["spec"]["readinessGates"].as_array().map(Vec::as_slice).unwrap_or_default();
    let gates_text = if gates.is_empty() {
        "<none>".to_owned()
    } else {
        let met = gates
            .iter()
            .filter(|gate| {
                statuses(pod, "conditions")
                    .iter()
                    .any(|c| c["type"] == gate["conditionType"] && c["status"] == "True")
            })
            .count();
        format!("{met}/{}", gates.len())
    };
    vec![
        json!(format!("{ready}/{total}")),
        json!(status(pod)),
        json!(restarts(pod, now)),
        json!(human::since(now, &pod["metadata"]["creationTimestamp"])),
        json!(or_none(&pod["status"]["podIP"])),
        json!(or_none(&pod["spec"]["nodeName"])),
        json!(or_none(&pod["status"]["nominatedNodeName"])),
        json!(gates_text),
    ]
}

fn restarts(pod: &Value, now: Timestamp) -> String {
    let mut count = 0;
    let mut last: Option<Timestamp> = None;
    for container in statuses(pod, "containerStatuses") {
        count += container["restartCount"].as_i64().unwrap_or(0);
        let finished = container["lastState"]["terminated"]["finishedAt"].as_str();
        if let Some(Ok(time)) = finished.map(str::parse::<Timestamp>) {
            last = last.max(Some(time));
        }
    }
    match last {
        Some(time) if count > 0 => format!("{count} ({} ago)", human::age(now, time)),
        _ => count.to_string(),
    }
}

/// Source: `printPod` of Kubernetes' printers.
fn status(pod: &Value) -> String {
    let text = |value: &Value| value.as_str().filter(|t| !t.is_empty()).map(str::to_owned);
    let mut reason = text(&pod["status"]["reason"])
        .or_else(|| text(&pod["status"]["phase"]))
        .unwrap_or_else(|| "Unknown".to_owned());
    let init = statuses(pod, "initContainerStatuses");
    let init_total = pod["spec"]["initContainers"].as_array().map_or(0, Vec::len);
    let mut initializing = false;
    for (i, container) in init.iter().enumerate() {
        let (terminated, waiting) =
            (&container["state"]["terminated"], &container["state"]["waiting"]);
        if terminated["exitCode"] == 0 {
            continue;
        }
        initializing = true;
        reason = if !terminated.is_null() {
            match text(&terminated["reason"]) {
                Some(why) => format!("Init:{why}"),
                None => ended("Init:", terminated),
            }
        } else {
            match text(&waiting["reason"]) {
                Some(why) if why != "PodInitializing" => format!("Init:{why}"),
                _ => format!("Init:{i}/{init_total}"),
            }
        };
        break;
    }
    if !initializing {
        let mut running = false;
        for container in statuses(pod, "containerStatuses").iter().rev() {
            let state = &container["state"];
            if let Some(why) = text(&state["waiting"]["reason"]) {
                reason = why;
            } else if !state["terminated"].is_null() {
                let terminated = &state["terminated"];
                reason = text(&terminated["reason"]).unwrap_or_else(|| ended("", terminated));
            } else if container["ready"] == true && !state["running"].is_null() {
                running = true;
            }
        }
        if reason == "Completed" && running {
            let ready = statuses(pod, "conditions")
                .iter()
                .any(|c| c["type"] == "Ready" && c["status"] == "True");
            reason = if ready { "Running" } else { "NotReady" }.to_owned();
        }
    }
    if !pod["metadata"]["deletionTimestamp"].is_null() {
        reason = if pod["status"]["reason"] == "NodeLost" { "Unknown" } else { "Terminating" }
            .to_owned();
    }
    reason
}

fn ended(prefix: &str, terminated: &Value) -> String {
    match terminated["signal"].as_i64().filter(|signal| *signal != 0) {
        Some(signal) => format!("{prefix}Signal:{signal}"),
        None => format!("{prefix}ExitCode:{}", terminated["exitCode"]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_word_is_kubectls() {
        let pod = |status: Value| json!({"metadata": {}, "spec": {"containers": [{}], "initContainers": [{}]}, "status": status});
        let word = |value: Value| status(&pod(value));
        assert_eq!(word(json!({"phase": "Pending"})), "Pending");
        assert_eq!(
            word(
                json!({"phase": "Pending", "containerStatuses": [{"state": {"waiting": {"reason": "CreateContainerConfigError"}}}]})
            ),
            "CreateContainerConfigError"
        );
        assert_eq!(
            word(
                json!({"phase": "Failed", "containerStatuses": [{"state": {"terminated": {"exitCode": 3}}}]})
            ),
            "ExitCode:3"
        );
        assert_eq!(
            word(
                json!({"phase": "Pending", "initContainerStatuses": [{"state": {"running": {}}}]})
            ),
            "Init:0/1"
        );
        let mut going = pod(json!({"phase": "Running"}));
        going["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        assert_eq!(status(&going), "Terminating");
    }
}
