//! Projects: a namespace each.

use std::sync::Arc;

use cluster::{
    labels,
    resources::Project,
    watch::{Source, follow, touched},
};
use futures::StreamExt;
use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::Namespace,
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
};
use kube::{
    Api, Resource, ResourceExt,
    api::{Patch, PatchParams},
    core::PartialObjectMeta,
    runtime::controller::Action,
};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::{Projects, Shared, acting};

pub async fn run(shared: Arc<Shared>, shutdown: CancellationToken) {
    let namespaces = Source::<PartialObjectMeta<Namespace>>::metadata(shared.client.clone());
    let namespaces = follow(namespaces.labels(labels::PROJECT), &shared.watches);
    acting::controller(&shared)
        .owns_stream(touched(namespaces).map(Ok))
        .graceful_shutdown_on(shutdown.cancelled_owned())
        .run(
            |project, shared| async move { reconcile(&project, &shared).await },
            |project: Arc<Project>, error: &kube::Error, shared| {
                shared.metrics.reconcile_errors.with_label_values(&["Project"]).inc();
                let error = cluster::watch::told(error);
                tracing::warn!(
                    error,
                    project = project.name_any(),
                    "reconciliation failed; trying again"
                );
                Action::requeue(acting::retry())
            },
            shared,
        )
        .for_each(|_| std::future::ready(()))
        .await;
}

async fn reconcile(project: &Project, shared: &Shared) -> kube::Result<Action> {
    if project.meta().deletion_timestamp.is_some() {
        return Ok(Action::await_change());
    }
    let name = project.name_any();
    let namespaces: Api<Namespace> = Api::all(shared.client.clone());
    let existing = namespaces.get_opt(&name).await?;
    let foreign = existing
        .as_ref()
        .is_some_and(|namespace| namespace.labels().get(labels::PROJECT) != Some(&name));
    let (status, reason, message) = if foreign {
        let message = format!(
            "The namespace {name} exists and is not the project's; to hand it over: kubectl label namespace {name} {}={name}",
            labels::PROJECT
        );
        ("False", "NamespaceTaken", message)
    } else {
        let namespace = json!({
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": {
                "name": name,
                "labels": {labels::PROJECT: name, labels::MANAGED_BY: labels::MANAGER},
                "ownerReferences": [project.controller_owner_ref(&())],
            },
        });
        let params = PatchParams::apply(labels::MANAGER).force();
        namespaces.patch(&name, &params, &Patch::Apply(namespace)).await?;
        ("True", "Ready", String::new())
    };
    write_status(project, shared, status, reason, message).await?;
    Ok(Action::await_change())
}

async fn write_status(
    project: &Project,
    shared: &Shared,
    status: &str,
    reason: &str,
    message: String,
) -> kube::Result<()> {
    let before = project.status.clone().unwrap_or_default();
    let old = before.conditions.iter().find(|c| c.type_ == "Ready" && c.status == status);
    let condition = Condition {
        type_: "Ready".to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message,
        last_transition_time: old
            .map_or_else(|| Time(Timestamp::now()), |c| c.last_transition_time.clone()),
        observed_generation: project.metadata.generation,
    };
    let mut after = before.clone();
    after.namespace = (status == "True").then(|| project.name_any());
    after.observed_generation = project.metadata.generation;
    after.conditions = vec![condition];
    if after == before {
        return Ok(());
    }
    let projects: Projects = Api::all(shared.client.clone());
    let patch = Patch::Merge(json!({"status": after}));
    projects.patch_status(&project.name_any(), &PatchParams::default(), &patch).await?;
    Ok(())
}
