//! The definitions of the custom resources, to be applied or written to files.

use std::{collections::BTreeSet, time::Duration};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{
    Api, Client, CustomResourceExt,
    api::{Patch, PatchParams},
    runtime::{conditions::is_crd_established, wait::await_condition},
};

use serde_json::Value;

use crate::{
    labels::MANAGER,
    resources::{App, BatchJob, Project, Workspace},
};

/// Annotation: the [`SCHEMA`] that a definition is of.
const SCHEMA_VERSION: &str = "dormouse.dev/schema-version";

/// Grows with every change of a definition.
const SCHEMA: u64 = 1;

/// All of them, in the order in which they are written.
pub fn all() -> Vec<CustomResourceDefinition> {
    let mut all = vec![Project::crd(), Workspace::crd(), App::crd(), BatchJob::crd()];
    for crd in &mut all {
        let annotations = crd.metadata.annotations.get_or_insert_default();
        annotations.insert(SCHEMA_VERSION.to_owned(), SCHEMA.to_string());
    }
    all
}

/// Whether the definition that is there has to stay. With an older one in its place the API server would
/// hide fields, and the next write of an object would lose them for good. Of one schema version, or of none,
/// whatever knows more is the newer one.
fn is_newer(there: &CustomResourceDefinition, ours: &CustomResourceDefinition) -> bool {
    let version = |crd: &CustomResourceDefinition| {
        let text = crd.metadata.annotations.as_ref()?.get(SCHEMA_VERSION)?;
        text.parse::<u64>().ok()
    };
    match (version(there), version(ours)) {
        (Some(there), Some(ours)) if there != ours => there > ours,
        _ => !known(there).is_subset(&known(ours)),
    }
}

/// Every field and every value of an enumeration, with the path to it.
fn known(crd: &CustomResourceDefinition) -> BTreeSet<String> {
    fn collect(schema: &Value, path: &str, into: &mut BTreeSet<String>) {
        for value in schema["enum"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            into.insert(format!("{path}={value}"));
        }
        for (name, field) in schema["properties"].as_object().into_iter().flatten() {
            let path = format!("{path}.{name}");
            collect(field, &path, into);
            into.insert(path);
        }
        collect_if_object(&schema["items"], &format!("{path}[]"), into);
        collect_if_object(&schema["additionalProperties"], &format!("{path}{{}}"), into);
    }
    fn collect_if_object(schema: &Value, path: &str, into: &mut BTreeSet<String>) {
        if schema.is_object() {
            collect(schema, path, into);
        }
    }
    let mut known = BTreeSet::new();
    for version in &crd.spec.versions {
        let schema = version.schema.as_ref().and_then(|s| s.open_api_v3_schema.as_ref());
        let schema = schema.and_then(|schema| serde_json::to_value(schema).ok());
        collect(&schema.unwrap_or_default(), &version.name, &mut known);
    }
    known
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

/// What is done about a definition that is there and is not ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum There {
    /// An older one is replaced, a newer one stays.
    Replace,
    /// It stays, for it is somebody else's; what of ours it lacks is told.
    Keep,
}

/// Applies all definitions and waits until the API server serves them.
pub async fn apply(client: &Client, there: There, deadline: Duration) -> Result<(), ApplyError> {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    let params = PatchParams::apply(MANAGER).force();
    for crd in all() {
        let name = crd.metadata.name.clone().unwrap_or_default();
        let failed = |source| ApplyError::Apply { name: name.clone(), source: Box::new(source) };
        let old = api.get_opt(&name).await.map_err(failed)?;
        match old.as_ref().map(|old| (is_newer(old, &crd), there)) {
            Some((true, _)) => {
                tracing::warn!(
                    name,
                    "the custom resource definition there is newer than ours, and stays"
                );
            }
            Some((false, There::Keep)) => tell_kept(&name, old.as_ref(), &crd),
            None | Some((false, There::Replace)) => {
                api.patch(&name, &params, &Patch::Apply(&crd)).await.map_err(failed)?;
                tracing::info!(name, "the custom resource definition is applied");
            }
        }
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

fn tell_kept(name: &str, old: Option<&CustomResourceDefinition>, ours: &CustomResourceDefinition) {
    let known_there = old.map(known).unwrap_or_default();
    let lacks: Vec<_> = known(ours).difference(&known_there).cloned().collect();
    match lacks.is_empty() {
        true => tracing::info!(name, "the custom resource definition there stays"),
        false => tracing::warn!(
            name,
            lacks = lacks.join(", "),
            "the custom resource definition there is older than ours, and stays: the cluster does not keep these fields; to replace it for everybody there: kubectl apply --server-side --force-conflicts --field-manager=dormouse -f config/crd"
        ),
    }
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
    fn an_older_definition_never_takes_the_place_of_a_newer_one() {
        let of = |version: Option<&str>, field: Option<&str>| {
            let mut crd = serde_json::to_value(&all()[1]).unwrap();
            let annotations = &mut crd["metadata"]["annotations"];
            *annotations = version.map(|v| serde_json::json!({SCHEMA_VERSION: v})).into();
            if let Some(field) = field {
                let schema = &mut crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
                let spec = &mut schema["properties"]["spec"]["properties"];
                spec[field] = serde_json::json!({"type": "string"});
                let values = spec["protocol"]["enum"].as_array_mut().unwrap();
                values.push(format!("of {field}").into());
            }
            serde_json::from_value::<CustomResourceDefinition>(crd).unwrap()
        };
        let (plain, more) = (of(Some("7"), None), of(Some("7"), Some("more")));
        assert!(is_newer(&of(Some("8"), None), &plain), "a higher version");
        assert!(!is_newer(&of(Some("6"), Some("gone")), &plain), "a release may take a field away");
        assert!(is_newer(&more, &plain) && !is_newer(&plain, &more));
        assert!(is_newer(&of(None, Some("more")), &plain), "one that says no version");
        assert!(!is_newer(&of(None, None), &more) && !is_newer(&plain, &plain));
        assert!(known(&more).contains("v1alpha1.spec.more"));
        assert!(known(&more).contains("v1alpha1.spec.protocol=of more"));
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
