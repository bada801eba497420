//! The definitions of the custom resources, to be applied or written to files.

use std::time::Duration;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{
    Api, Client, CustomResourceExt,
    api::{Patch, PatchParams},
    runtime::{conditions::is_crd_established, wait::await_condition},
};

use crate::{
    labels::MANAGER,
    resources::{App, BatchJob, Project, Workspace},
};

/// All of them, in the order in which they are written.
pub fn all() -> Vec<CustomResourceDefinition> {
    vec![Project::crd(), Workspace::crd(), App::crd(), BatchJob::crd()]
}

#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    #[error("the custom resource definition {name} cannot be applied: {source}")]
    Apply { name: String, source: Box<kube::Error> },
    #[error(
        "the custom resource definition {name} is not served after {after:?}; look at it with: kubectl describe crd {name}"
    )]
    NotEstablished { name: String, after: Duration },
}

/// Applies all definitions and waits until the API server serves them.
pub async fn apply(client: &Client, deadline: Duration) -> Result<(), ApplyError> {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    let params = PatchParams::apply(MANAGER).force();
    for crd in all() {
        let name = crd.metadata.name.clone().unwrap_or_default();
        api.patch(&name, &params, &Patch::Apply(&crd))
            .await
            .map_err(|source| ApplyError::Apply { name: name.clone(), source: Box::new(source) })?;
        let established = await_condition(api.clone(), &name, is_crd_established());
        match tokio::time::timeout(deadline, established).await {
            Ok(Ok(_)) => {}
            Ok(Err(_)) | Err(_) => {
                return Err(ApplyError::NotEstablished { name, after: deadline });
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A structural schema has no null types and no tagged unions; the API server refuses them.
    #[test]
    fn schemas_are_structural() {
        for crd in all() {
            let text = serde_json::to_string(&crd).unwrap();
            assert!(!text.contains("\"oneOf\""), "{}: oneOf", crd.spec.names.kind);
            assert!(!text.contains("[\"string\",\"null\"]"), "{}: null type", crd.spec.names.kind);
            assert!(!text.contains("\"$ref\""), "{}: reference", crd.spec.names.kind);
        }
    }

    #[test]
    fn defaults_reach_the_schema() {
        let crd = serde_json::to_value(Workspace::crd()).unwrap();
        let spec = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
        assert_eq!(spec["properties"]["port"]["default"], 8888);
        assert_eq!(spec["properties"]["idle"]["default"]["wakeHold"], "60s");
        assert_eq!(spec["required"], serde_json::json!(["image", "owner"]));
    }
}
