//! Projects: a namespace each.

use std::sync::Arc;

use cluster::{
    labels,
    resources::Project,
    scope::Scope,
    watch::{News, Source, Unread, events, follow, key, touched},
};
use futures::StreamExt;
use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::Namespace,
    apimachinery::pkg::apis::meta::v1::{Condition, OwnerReference, Time},
};
use kube::{
    Api, Resource, ResourceExt,
    api::{Patch, PatchParams},
    core::PartialObjectMeta,
    runtime::{controller::Action, watcher::Event},
};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::{
    Projects, Shared, acting, own,
    refusal::{Problem, Reason, ReconcileError},
};

pub async fn run(shared: Arc<Shared>, shutdown: CancellationToken) {
    let namespaces = Source::<PartialObjectMeta<Namespace>>::metadata(shared.client.clone());
    let namespaces = follow(namespaces.labels(labels::PROJECT), &shared.watches);
    let scope = shared.config.scope.clone();
    let projects = follow(Source::<Project>::all(shared.client.clone()), &shared.watches);
    let projects = projects.filter_map(move |news| std::future::ready(ours(&scope, news)));
    acting::controller(|known| events(projects, known, Unread::LeaveOut))
        .owns_stream(touched(namespaces).map(Ok))
        .graceful_shutdown_on(shutdown.cancelled_owned())
        .run(
            |project, shared| async move { reconcile(&project, &shared).await },
            |project: Arc<Project>, error: &ReconcileError, shared| {
                shared.metrics.reconcile_errors.with_label_values(&["Project"]).inc();
                let error = error.told();
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

/// Without those of other scopes: one that leaves ours is told as gone.
fn ours(scope: &Scope, news: News<Project>) -> Option<News<Project>> {
    match news {
        News::Event(Event::Apply(project)) if !scope.has(&project.metadata) => {
            Some(News::Gone(key(&project.metadata)))
        }
        News::Event(Event::InitApply(project)) if !scope.has(&project.metadata) => None,
        other => Some(other),
    }
}

async fn reconcile(project: &Project, shared: &Shared) -> Result<Action, ReconcileError> {
    if project.meta().deletion_timestamp.is_some() {
        return Ok(Action::await_change());
    }
    if !shared.held.now() {
        return Ok(Action::requeue(acting::retry()));
    }
    let name = project.name_any();
    let Some(owner) = project.controller_owner_ref(&()) else { return Ok(Action::await_change()) };
    if !shared.config.scope.holds(&shared.client, &name).await? {
        return Ok(Action::requeue(acting::retry()));
    }
    let namespaces: Api<Namespace> = Api::all(shared.client.clone());
    let manifest = json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": {
            "name": name,
            "labels": {labels::PROJECT: name, labels::MANAGED_BY: labels::MANAGER},
            "ownerReferences": [owner],
        },
    });
    let check = |found: &Namespace| check(found, &owner);
    let put = own::put(&namespaces, &name, check, |_| Ok(manifest.clone())).await;
    let failures = &shared.failures;
    let key = format!("Project {name}");
    let (status, reason, message, again) = match put {
        Ok(_) => {
            failures.over(&key);
            ("True", "Ready", String::new(), None)
        }
        Err(error) => {
            let Some(problem) = error.problem().or_else(|| failures.again(&key, &error)) else {
                return Err(error);
            };
            let reason = match problem.reason {
                Reason::NotOurs => "NamespaceTaken",
                other => other.as_str(),
            };
            ("False", reason, problem.message, Some(problem.reason.again()))
        }
    };
    write_status(project, shared, status, reason, message).await?;
    Ok(again.map_or_else(Action::await_change, Action::requeue))
}

/// Ours is a namespace with the project's label, which we set or an operator did to hand it over,
/// unless something else controls it.
fn check(found: &Namespace, owner: &OwnerReference) -> Result<(), Problem> {
    let name = found.name_any();
    let labelled = found.labels().get(labels::PROJECT) == Some(&owner.name);
    let controlled = found.owner_references().iter().any(|it| it.controller == Some(true));
    let ours = own::is_controlled_by(&found.metadata, owner);
    if !ours && (!labelled || controlled) {
        if own::is_left_by_namesake(&found.metadata, owner) {
            return own::check(found, owner);
        }
        let message = format!(
            "The namespace {name} exists and is not the project's; to hand it over: kubectl label namespace {name} {}={name}",
            labels::PROJECT
        );
        return Err(Problem::new(Reason::NotOurs, message));
    }
    if found.metadata.deletion_timestamp.is_some() {
        let message =
            format!("The namespace {name} is being deleted: it is made anew when it is gone");
        return Err(Problem::new(Reason::Ending, message));
    }
    Ok(())
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

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn checked(metadata: Value) -> Result<(), Reason> {
        let owner = json!({"apiVersion": "dormouse.dev/v1alpha1", "kind": "Project",
            "name": "vision", "uid": "u1", "controller": true});
        let owner = serde_json::from_value(owner).unwrap();
        let mut namespace = json!({"metadata": metadata});
        namespace["metadata"]["name"] = json!("vision");
        let namespace: Namespace = serde_json::from_value(namespace).unwrap();
        check(&namespace, &owner).map_err(|problem| problem.reason)
    }

    #[test]
    fn a_namespace_is_the_projects_by_label_and_nobody_elses() {
        let ours = json!({labels::PROJECT: "vision"});
        let controlled = |kind, uid| {
            json!([{"apiVersion": "dormouse.dev/v1alpha1", "kind": kind, "name": "vision",
                "uid": uid, "controller": true}])
        };
        assert_eq!(checked(json!({})), Err(Reason::NotOurs));
        assert_eq!(checked(json!({"labels": ours})), Ok(()), "handed over");
        let held = json!({"labels": ours, "ownerReferences": controlled("Tenant", "u9")});
        assert_eq!(checked(held), Err(Reason::NotOurs));
        let earlier = json!({"labels": ours, "ownerReferences": controlled("Project", "u0")});
        assert_eq!(checked(earlier), Err(Reason::Ending));
        let ending = json!({"labels": ours, "ownerReferences": controlled("Project", "u1"),
            "deletionTimestamp": "2026-01-01T00:00:00Z"});
        assert_eq!(checked(ending), Err(Reason::Ending), "not ready while it ends");
    }
}
