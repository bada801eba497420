//! Rows that take more than reading fields: nodes, services, events and jobs.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::builtin::{containers, list, plain, selector, text};
use super::human::{self, since};
use crate::api::rest::selector_text;

pub fn node(node: &Value, age: Value) -> Vec<Value> {
    let status = &node["status"];
    let ready = list(&status["conditions"]).iter().find(|c| c["type"] == "Ready");
    let mut word = match ready.map(|condition| condition["status"] == "True") {
        Some(true) => "Ready",
        Some(false) => "NotReady",
        None => "Unknown",
    }
    .to_owned();
    if node["spec"]["unschedulable"] == true {
        word.push_str(",SchedulingDisabled");
    }
    let labels = node["metadata"]["labels"].as_object();
    let mut roles: Vec<&str> = labels
        .into_iter()
        .flatten()
        .filter_map(|(key, _)| key.strip_prefix("node-role.kubernetes.io/"))
        .filter(|role| !role.is_empty())
        .collect();
    roles.sort_unstable();
    let roles = if roles.is_empty() { "<none>".to_owned() } else { roles.join(",") };
    let address = list(&status["addresses"]).iter().find(|a| a["type"] == "InternalIP");
    let info = &status["nodeInfo"];
    vec![
        json!(word),
        json!(roles),
        age,
        plain(&info["kubeletVersion"]),
        address.map_or(json!("<none>"), |a| text(&a["address"])),
        text(&info["osImage"]),
        text(&info["kernelVersion"]),
        text(&info["containerRuntimeVersion"]),
    ]
}

pub fn service(service: &Value, age: Value) -> Vec<Value> {
    let spec = &service["spec"];
    let ports: Vec<String> = list(&spec["ports"])
        .iter()
        .map(|port| {
            let protocol = port["protocol"].as_str().unwrap_or("TCP");
            match port["nodePort"].as_i64().filter(|n| *n > 0) {
                Some(node) => format!("{}:{node}/{protocol}", port["port"]),
                None => format!("{}/{protocol}", port["port"]),
            }
        })
        .collect();
    let external: Vec<&str> = list(&spec["externalIPs"]).iter().filter_map(Value::as_str).collect();
    let external = match spec["type"].as_str() {
        Some("ExternalName") => text(&spec["externalName"]),
        _ if !external.is_empty() => json!(external.join(",")),
        Some("LoadBalancer") => json!("<pending>"),
        _ => json!("<none>"),
    };
    let labels = selector_text(&json!({"matchLabels": spec["selector"]}));
    vec![
        text(&spec["type"]),
        text(&spec["clusterIP"]),
        external,
        json!(if ports.is_empty() { "<none>".to_owned() } else { ports.join(",") }),
        age,
        json!(if labels.is_empty() { "<none>".to_owned() } else { labels }),
    ]
}

pub fn event(event: &Value, now: Timestamp) -> Vec<Value> {
    let times = [
        &event["series"]["lastObservedTime"],
        &event["lastTimestamp"],
        &event["eventTime"],
        &event["firstTimestamp"],
    ];
    let seen = times.into_iter().find(|time| time.is_string()).unwrap_or(&Value::Null);
    let involved = &event["involvedObject"];
    let object = format!(
        "{}/{}",
        involved["kind"].as_str().unwrap_or("").to_lowercase(),
        involved["name"].as_str().unwrap_or("")
    );
    let source = event["source"]["component"].as_str().filter(|t| !t.is_empty());
    let source = source.or(event["reportingComponent"].as_str()).unwrap_or("");
    let count = event["series"]["count"]
        .as_i64()
        .or(event["count"].as_i64())
        .filter(|n| *n > 0)
        .unwrap_or(1);
    vec![
        json!(since(now, seen)),
        plain(&event["type"]),
        plain(&event["reason"]),
        json!(object),
        json!(source),
        json!(event["message"].as_str().unwrap_or("").trim()),
        json!(count),
    ]
}

pub fn job(job: &Value, now: Timestamp, age: Value) -> Vec<Value> {
    let (spec, status) = (&job["spec"], &job["status"]);
    let has = |kind: &str| {
        list(&status["conditions"]).iter().any(|c| c["type"] == kind && c["status"] == "True")
    };
    let word = if has("Complete") {
        "Complete"
    } else if has("Failed") {
        "Failed"
    } else if !job["metadata"]["deletionTimestamp"].is_null() {
        "Terminating"
    } else if has("Suspended") {
        "Suspended"
    } else if has("FailureTarget") {
        "FailureTarget"
    } else if has("SuccessCriteriaMet") {
        "SuccessCriteriaMet"
    } else {
        "Running"
    };
    let succeeded = status["succeeded"].as_i64().unwrap_or(0);
    let completions = match (spec["completions"].as_i64(), spec["parallelism"].as_i64()) {
        (Some(completions), _) => format!("{succeeded}/{completions}"),
        (None, Some(parallel)) if parallel > 1 => format!("{succeeded}/1 of {parallel}"),
        _ => format!("{succeeded}/1"),
    };
    let time = |value: &Value| value.as_str().and_then(|text| text.parse::<Timestamp>().ok());
    let duration = match (time(&status["startTime"]), time(&status["completionTime"])) {
        (None, _) => String::new(),
        (Some(start), None) => human::age(now, start),
        (Some(start), Some(end)) => human::age(end, start),
    };
    let [names, images] = containers(&spec["template"]);
    vec![
        json!(word),
        json!(completions),
        json!(duration),
        age,
        names,
        images,
        selector(&spec["selector"]),
    ]
}
