//! A workload mounts Secrets of its namespace by name. Those that hold the keys of workspaces are not
//! for it to read: whoever has a workspace's host key can pose as that workspace.

use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Resource};

use crate::{
    agent_key,
    refusal::{Problem, Reason},
};

/// What is to be done about a Secret that a workload names.
#[derive(Debug, PartialEq, Eq)]
pub enum Found {
    /// It may be mounted.
    Usable,
    /// It holds a workspace's keys, and is left out.
    Keys(Problem),
    /// There is none. A pod that waits for it would mount whatever gets its name, so no pod is changed
    /// or started until there is.
    Missing(Problem),
}

/// Looks at a Secret of a name that a workspace's keys may have.
pub async fn look(api: &Api<Secret>, name: &str) -> kube::Result<Found> {
    if !agent_key::is_secret_name(name) {
        return Ok(Found::Usable);
    }
    Ok(of(name, api.get_opt(name).await?.as_ref()))
}

fn of(name: &str, secret: Option<&Secret>) -> Found {
    let told = |message| Problem::new(Reason::NotOurs, message);
    let Some(secret) = secret else {
        return Found::Missing(told(format!(
            "The Secret {name} does not exist, and workspaces keep their keys in Secrets of such names: create it first, or choose another name"
        )));
    };
    let mut owners = secret.meta().owner_references.iter().flatten();
    match owners.find(|owner| owner.kind == "Workspace") {
        Some(workspace) => Found::Keys(told(format!(
            "The Secret {name} holds the keys of Workspace {}: take it off `secrets`",
            workspace.name
        ))),
        None => Found::Usable,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_workspaces_keys_are_told_from_other_secrets() {
        let secret = |owners| -> Secret {
            serde_json::from_value(json!({"metadata": {"ownerReferences": owners}})).unwrap()
        };
        let owner = |kind| json!([{"apiVersion": "dormouse.dev/v1alpha1", "kind": kind, "name": "lab", "uid": "1"}]);
        let told = |found| match found {
            Found::Usable => String::new(),
            Found::Keys(problem) | Found::Missing(problem) => problem.message,
        };
        let keys = of("lab-agent", Some(&secret(owner("Workspace"))));
        assert!(matches!(keys, Found::Keys(_)), "{keys:?}");
        assert!(told(keys).contains("keys of Workspace lab"));
        let missing = of("lab-agent", None);
        assert!(matches!(missing, Found::Missing(_)), "{missing:?}");
        assert!(told(missing).contains("create it first"));
        assert_eq!(of("lab-agent", Some(&secret(json!([])))), Found::Usable);
        assert_eq!(of("lab-agent", Some(&secret(owner("SealedSecret")))), Found::Usable);
    }
}
