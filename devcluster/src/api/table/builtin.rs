//! Columns of built-in types, as `kubectl get` shows them (source: Kubernetes' printers).

use jiff::Timestamp;
use serde_json::{Value, json};

use super::human::since;
use super::{pods, rows};
use crate::api::registry::Resource;
use crate::api::rest::selector_text;

/// Name, type and priority (1: only with `-o wide`).
type Spec = (&'static str, &'static str, i64);

const AGE: &[Spec] = &[("Age", "string", 0)];

/// The columns after the name.
pub fn columns(resource: &Resource) -> &'static [Spec] {
    match (resource.group.as_str(), resource.plural.as_str()) {
        ("", "pods") => &[
            ("Ready", "string", 0),
            ("Status", "string", 0),
            ("Restarts", "string", 0),
            ("Age", "string", 0),
            ("IP", "string", 1),
            ("Node", "string", 1),
            ("Nominated Node", "string", 1),
            ("Readiness Gates", "string", 1),
        ],
        ("", "namespaces") => &[("Status", "string", 0), ("Age", "string", 0)],
        ("", "nodes") => &[
            ("Status", "string", 0),
            ("Roles", "string", 0),
            ("Age", "string", 0),
            ("Version", "string", 0),
            ("Internal-IP", "string", 1),
            ("OS-Image", "string", 1),
            ("Kernel-Version", "string", 1),
            ("Container-Runtime", "string", 1),
        ],
        ("", "services") => &[
            ("Type", "string", 0),
            ("Cluster-IP", "string", 0),
            ("External-IP", "string", 0),
            ("Port(s)", "string", 0),
            ("Age", "string", 0),
            ("Selector", "string", 1),
        ],
        ("", "secrets") => &[("Type", "string", 0), ("Data", "string", 0), ("Age", "string", 0)],
        ("", "configmaps") => &[("Data", "string", 0), ("Age", "string", 0)],
        ("", "serviceaccounts") => &[("Secrets", "string", 0), ("Age", "string", 0)],
        ("", "endpoints") => &[("Endpoints", "string", 0), ("Age", "string", 0)],
        ("", "persistentvolumes") => &[
            ("Capacity", "string", 0),
            ("Access Modes", "string", 0),
            ("Reclaim Policy", "string", 0),
            ("Status", "string", 0),
            ("Claim", "string", 0),
            ("StorageClass", "string", 0),
            ("Reason", "string", 0),
            ("Age", "string", 0),
            ("VolumeMode", "string", 1),
        ],
        ("", "persistentvolumeclaims") => &[
            ("Status", "string", 0),
            ("Volume", "string", 0),
            ("Capacity", "string", 0),
            ("Access Modes", "string", 0),
            ("StorageClass", "string", 0),
            ("Age", "string", 0),
            ("VolumeMode", "string", 1),
        ],
        ("" | "events.k8s.io", "events") => &[
            ("Last Seen", "string", 0),
            ("Type", "string", 0),
            ("Reason", "string", 0),
            ("Object", "string", 0),
            ("Source", "string", 1),
            ("Message", "string", 0),
            ("Count", "integer", 1),
        ],
        ("apps", "deployments") => &[
            ("Ready", "string", 0),
            ("Up-to-date", "integer", 0),
            ("Available", "integer", 0),
            ("Age", "string", 0),
            ("Containers", "string", 1),
            ("Images", "string", 1),
            ("Selector", "string", 1),
        ],
        ("apps", "replicasets") => &[
            ("Desired", "integer", 0),
            ("Current", "integer", 0),
            ("Ready", "integer", 0),
            ("Age", "string", 0),
            ("Containers", "string", 1),
            ("Images", "string", 1),
            ("Selector", "string", 1),
        ],
        ("apps", "statefulsets") => &[
            ("Ready", "string", 0),
            ("Age", "string", 0),
            ("Containers", "string", 1),
            ("Images", "string", 1),
        ],
        ("apps", "controllerrevisions") => {
            &[("Controller", "string", 0), ("Revision", "integer", 0), ("Age", "string", 0)]
        }
        ("batch", "jobs") => &[
            ("Status", "string", 0),
            ("Completions", "string", 0),
            ("Duration", "string", 0),
            ("Age", "string", 0),
            ("Containers", "string", 1),
            ("Images", "string", 1),
            ("Selector", "string", 1),
        ],
        ("batch", "cronjobs") => &[
            ("Schedule", "string", 0),
            ("Timezone", "string", 0),
            ("Suspend", "boolean", 0),
            ("Active", "integer", 0),
            ("Last Schedule", "string", 0),
            ("Age", "string", 0),
        ],
        ("discovery.k8s.io", "endpointslices") => &[
            ("AddressType", "string", 0),
            ("Ports", "string", 0),
            ("Endpoints", "string", 0),
            ("Age", "string", 0),
        ],
        ("coordination.k8s.io", "leases") => &[("Holder", "string", 0), ("Age", "string", 0)],
        ("storage.k8s.io", "storageclasses") => &[
            ("Provisioner", "string", 0),
            ("ReclaimPolicy", "string", 0),
            ("VolumeBindingMode", "string", 0),
            ("AllowVolumeExpansion", "boolean", 0),
            ("Age", "string", 0),
        ],
        ("networking.k8s.io", "networkpolicies") => {
            &[("Pod-Selector", "string", 0), ("Age", "string", 0)]
        }
        ("policy", "poddisruptionbudgets") => &[
            ("Min Available", "string", 0),
            ("Max Unavailable", "string", 0),
            ("Allowed Disruptions", "integer", 0),
            ("Age", "string", 0),
        ],
        ("apiextensions.k8s.io", _) => &[("Created At", "date", 0)],
        ("rbac.authorization.k8s.io", "rolebindings" | "clusterrolebindings") => {
            &[("Role", "string", 0), ("Age", "string", 0)]
        }
        ("rbac.authorization.k8s.io", _) => &[("Created At", "date", 0)],
        _ => AGE,
    }
}

pub(super) fn text(value: &Value) -> Value {
    match value {
        Value::String(text) if !text.is_empty() => json!(text),
        Value::Number(_) | Value::Bool(_) => json!(value.to_string()),
        _ => json!("<none>"),
    }
}

/// Text, or nothing.
pub(super) fn plain(value: &Value) -> Value {
    json!(value.as_str().unwrap_or(""))
}

fn count(value: &Value) -> Value {
    json!(value.as_i64().unwrap_or(0))
}

pub(super) fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn size(value: &Value) -> usize {
    value.as_object().map_or(0, serde_json::Map::len)
}

/// Names and images of a template's containers.
pub(super) fn containers(template: &Value) -> [Value; 2] {
    let all = list(&template["spec"]["containers"]);
    let of = |field: &str| {
        let names: Vec<&str> = all.iter().filter_map(|c| c[field].as_str()).collect();
        json!(names.join(","))
    };
    [of("name"), of("image")]
}

pub(super) fn selector(value: &Value) -> Value {
    let text = selector_text(value);
    json!(if text.is_empty() { "<none>".to_owned() } else { text })
}

fn access_modes(value: &Value) -> Value {
    let short: Vec<&str> = list(value)
        .iter()
        .filter_map(Value::as_str)
        .map(|mode| match mode {
            "ReadWriteOnce" => "RWO",
            "ReadOnlyMany" => "ROX",
            "ReadWriteMany" => "RWX",
            "ReadWriteOncePod" => "RWOP",
            other => other,
        })
        .collect();
    json!(short.join(","))
}

/// The cells of those columns.
pub fn cells(resource: &Resource, object: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (&object["spec"], &object["status"]);
    let age = json!(since(now, &object["metadata"]["creationTimestamp"]));
    match (resource.group.as_str(), resource.plural.as_str()) {
        ("", "pods") => pods::cells(object, now),
        ("", "namespaces") => vec![text(&status["phase"]), age],
        ("", "nodes") => rows::node(object, age),
        ("", "services") => rows::service(object, age),
        ("", "secrets") => vec![text(&object["type"]), json!(size(&object["data"])), age],
        ("", "configmaps") => vec![json!(size(&object["data"]) + size(&object["binaryData"])), age],
        ("", "serviceaccounts") => vec![json!(list(&object["secrets"]).len()), age],
        ("", "endpoints") => {
            let addresses: Vec<&str> = list(&object["subsets"])
                .iter()
                .flat_map(|subset| list(&subset["addresses"]))
                .filter_map(|address| address["ip"].as_str())
                .collect();
            vec![json!(shortened(&addresses)), age]
        }
        ("", "persistentvolumes") => {
            let claim = &spec["claimRef"];
            let claim = match (claim["namespace"].as_str(), claim["name"].as_str()) {
                (Some(namespace), Some(name)) => format!("{namespace}/{name}"),
                _ => String::new(),
            };
            vec![
                plain(&spec["capacity"]["storage"]),
                access_modes(&spec["accessModes"]),
                plain(&spec["persistentVolumeReclaimPolicy"]),
                going(object, &status["phase"]),
                json!(claim),
                plain(&spec["storageClassName"]),
                plain(&status["reason"]),
                age,
                text(&spec["volumeMode"]),
            ]
        }
        ("", "persistentvolumeclaims") => vec![
            going(object, &status["phase"]),
            plain(&spec["volumeName"]),
            plain(&status["capacity"]["storage"]),
            access_modes(&status["accessModes"]),
            plain(&spec["storageClassName"]),
            age,
            text(&spec["volumeMode"]),
        ],
        (_, "events") => rows::event(object, now),
        ("apps", "deployments") => {
            let [names, images] = containers(&spec["template"]);
            vec![
                of(&status["readyReplicas"], &spec["replicas"]),
                count(&status["updatedReplicas"]),
                count(&status["availableReplicas"]),
                age,
                names,
                images,
                selector(&spec["selector"]),
            ]
        }
        ("apps", "replicasets") => {
            let [names, images] = containers(&spec["template"]);
            vec![
                count(&spec["replicas"]),
                count(&status["replicas"]),
                count(&status["readyReplicas"]),
                age,
                names,
                images,
                selector(&spec["selector"]),
            ]
        }
        ("apps", "statefulsets") => {
            let [names, images] = containers(&spec["template"]);
            vec![of(&status["readyReplicas"], &spec["replicas"]), age, names, images]
        }
        ("apps", "controllerrevisions") => {
            let owner = list(&object["metadata"]["ownerReferences"])
                .iter()
                .find(|o| o["controller"] == true);
            let owner = owner.map_or_else(
                || "<none>".to_owned(),
                |o| {
                    let kind = o["kind"].as_str().unwrap_or("").to_lowercase();
                    format!("{kind}.apps/{}", o["name"].as_str().unwrap_or(""))
                },
            );
            vec![json!(owner), count(&object["revision"]), age]
        }
        ("batch", "jobs") => rows::job(object, now, age),
        ("batch", "cronjobs") => vec![
            text(&spec["schedule"]),
            text(&spec["timeZone"]),
            json!(spec["suspend"] == true),
            json!(list(&status["active"]).len()),
            match &status["lastScheduleTime"] {
                Value::Null => json!("<none>"),
                time => json!(since(now, time)),
            },
            age,
        ],
        ("discovery.k8s.io", "endpointslices") => {
            let ports: Vec<String> =
                list(&object["ports"]).iter().map(|port| port["port"].to_string()).collect();
            let addresses: Vec<&str> = list(&object["endpoints"])
                .iter()
                .flat_map(|endpoint| list(&endpoint["addresses"]))
                .filter_map(Value::as_str)
                .collect();
            let ports = if ports.is_empty() { "<unset>".to_owned() } else { ports.join(",") };
            vec![text(&object["addressType"]), json!(ports), json!(shortened(&addresses)), age]
        }
        ("coordination.k8s.io", "leases") => vec![plain(&spec["holderIdentity"]), age],
        ("storage.k8s.io", "storageclasses") => vec![
            text(&object["provisioner"]),
            text(&object["reclaimPolicy"]),
            text(&object["volumeBindingMode"]),
            json!(object["allowVolumeExpansion"] == true),
            age,
        ],
        ("networking.k8s.io", "networkpolicies") => vec![selector(&spec["podSelector"]), age],
        ("policy", "poddisruptionbudgets") => {
            let or_na = |value: &Value| if value.is_null() { json!("N/A") } else { text(value) };
            vec![
                or_na(&spec["minAvailable"]),
                or_na(&spec["maxUnavailable"]),
                count(&status["disruptionsAllowed"]),
                age,
            ]
        }
        ("rbac.authorization.k8s.io", "rolebindings" | "clusterrolebindings") => {
            let role = &object["roleRef"];
            vec![
                json!(format!(
                    "{}/{}",
                    role["kind"].as_str().unwrap_or(""),
                    role["name"].as_str().unwrap_or("")
                )),
                age,
            ]
        }
        ("apiextensions.k8s.io" | "rbac.authorization.k8s.io", _) => {
            vec![object["metadata"]["creationTimestamp"].clone()]
        }
        _ => vec![age],
    }
}

fn of(part: &Value, whole: &Value) -> Value {
    json!(format!("{}/{}", part.as_i64().unwrap_or(0), whole.as_i64().unwrap_or(0)))
}

fn going(object: &Value, phase: &Value) -> Value {
    if object["metadata"]["deletionTimestamp"].is_null() {
        plain(phase)
    } else {
        json!("Terminating")
    }
}

/// The first three of many.
fn shortened(items: &[&str]) -> String {
    match items {
        [] => "<unset>".to_owned(),
        few if few.len() <= 3 => few.join(","),
        many => format!("{} + {} more...", many[..3].join(","), many.len() - 3),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::registry::Registry;

    #[test]
    fn each_row_has_a_cell_for_each_column() {
        for resource in Registry::with_builtins().iter() {
            let row = cells(resource, &json!({"metadata": {}}), Timestamp::UNIX_EPOCH);
            assert_eq!(row.len(), columns(resource).len(), "{}", resource.plural);
        }
    }

    #[test]
    fn a_long_list_is_shortened() {
        assert_eq!(shortened(&["a", "b", "c", "d"]), "a,b,c + 1 more...");
    }
}
