//! A workload mounts Secrets of its namespace by name. Those that hold the keys of workspaces are not
//! for it to read: whoever has a workspace's host key can pose as that workspace.

use cluster::resources::SecretMount;
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Resource};

use crate::{
    agent_key,
    refusal::{Problem, Reason, ReconcileError},
};

/// Takes Secrets with workspaces' keys off the list, and tells of each.
///
/// # Errors
/// When the API server does not say what a Secret is.
pub async fn take_off(
    secrets: &mut Vec<SecretMount>,
    api: &Api<Secret>,
) -> Result<Vec<Problem>, ReconcileError> {
    let mut problems = Vec::new();
    let named = std::mem::take(secrets);
    for mount in named {
        if !agent_key::is_secret_name(&mount.name) {
            secrets.push(mount);
            continue;
        }
        match problem(&mount.name, api.get_opt(&mount.name).await?.as_ref()) {
            Some(problem) => problems.push(problem),
            None => secrets.push(mount),
        }
    }
    Ok(problems)
}

/// One that does not exist yet may become a workspace's, and a pod that waits for it would mount it.
fn problem(name: &str, found: Option<&Secret>) -> Option<Problem> {
    let message = match found {
        None => format!(
            "The Secret {name} does not exist, and workspaces keep their keys in Secrets of such names: create it first, or choose another name"
        ),
        Some(found) => {
            let owners = found.meta().owner_references.iter().flatten();
            let workspace = owners.into_iter().find(|owner| owner.kind == "Workspace")?;
            format!(
                "The Secret {name} holds the keys of Workspace {}: take it off `secrets`",
                workspace.name
            )
        }
    };
    Some(Problem::new(Reason::NotOurs, message))
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
        let keys = problem("lab-agent", Some(&secret(owner("Workspace")))).unwrap();
        assert!(keys.message.contains("keys of Workspace lab"), "{}", keys.message);
        assert!(problem("lab-agent", None).unwrap().message.contains("create it first"));
        assert_eq!(problem("lab-agent", Some(&secret(json!([])))), None);
        assert_eq!(problem("lab-agent", Some(&secret(owner("SealedSecret")))), None);
    }
}
