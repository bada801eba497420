//! The history of a StatefulSet's pod template as ControllerRevisions.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use serde_json::json;

use crate::controllers::names::{bounded_name, owned_by, short_hash};

/// The template a revision holds.
pub fn template(revision: &ControllerRevision) -> Option<PodTemplateSpec> {
    let data = &revision.data.as_ref()?.0;
    serde_json::from_value(data.pointer("/spec/template")?.clone()).ok()
}

/// What to do so that the present template has the newest revision.
pub enum Current {
    /// It is there.
    Found(Arc<ControllerRevision>),
    /// An earlier one has the same template: it becomes the newest again, with this number.
    Renumber(Arc<ControllerRevision>, i64),
    Create(Box<ControllerRevision>),
}

impl Current {
    pub fn revision(&self) -> &ControllerRevision {
        match self {
            Self::Found(revision) | Self::Renumber(revision, _) => revision,
            Self::Create(revision) => revision,
        }
    }
}

/// Finds or makes the revision of the set's template among its `history`.
pub fn current(set: &StatefulSet, history: &[Arc<ControllerRevision>]) -> Current {
    let wanted = set.spec.as_ref().map(|spec| spec.template.clone()).unwrap_or_default();
    let newest = history.iter().map(|revision| revision.revision).max().unwrap_or(0);
    let same = history.iter().filter(|revision| template(revision).as_ref() == Some(&wanted));
    match same.max_by_key(|revision| revision.revision) {
        Some(found) if found.revision == newest => Current::Found(found.clone()),
        Some(found) => Current::Renumber(found.clone(), newest + 1),
        None => Current::Create(Box::new(make(set, &wanted, newest + 1, history))),
    }
}

fn make(
    set: &StatefulSet,
    wanted: &PodTemplateSpec,
    number: i64,
    history: &[Arc<ControllerRevision>],
) -> ControllerRevision {
    let mut data = json!({"spec": {"template": wanted}});
    if let Some(template) =
        data.pointer_mut("/spec/template").and_then(|value| value.as_object_mut())
    {
        template.insert("$patch".to_owned(), json!("replace"));
    }
    let set_name = set.metadata.name.as_deref().unwrap_or_default();
    let mut hash = short_hash(&data);
    let taken =
        |name: &str| history.iter().any(|revision| revision.metadata.name.as_deref() == Some(name));
    while taken(&bounded_name(set_name, &format!("-{hash}"))) {
        hash = short_hash(&json!([data, hash]));
    }
    let mut revision = ControllerRevision {
        data: Some(RawExtension(data)),
        revision: number,
        ..ControllerRevision::default()
    };
    revision.metadata.name = Some(bounded_name(set_name, &format!("-{hash}")));
    revision.metadata.namespace = set.metadata.namespace.clone();
    revision.metadata.labels = wanted.metadata.as_ref().and_then(|meta| meta.labels.clone());
    revision
        .metadata
        .labels
        .get_or_insert_default()
        .insert("controller.kubernetes.io/hash".to_owned(), hash);
    revision.metadata.owner_references = Some(vec![owned_by(set)]);
    revision
}

/// The oldest revisions beyond the history limit that no pod and no status refers to.
pub fn outdated(
    set: &StatefulSet,
    history: &[Arc<ControllerRevision>],
    in_use: impl Fn(&str) -> bool,
) -> Vec<Arc<ControllerRevision>> {
    let limit = set.spec.as_ref().and_then(|spec| spec.revision_history_limit).unwrap_or(10).max(0);
    let mut unused: Vec<_> = history
        .iter()
        .filter(|revision| revision.metadata.name.as_deref().is_some_and(|name| !in_use(name)))
        .cloned()
        .collect();
    unused.sort_by_key(|revision| revision.revision);
    let surplus = unused.len().saturating_sub(usize::try_from(limit).unwrap_or(0));
    unused.truncate(surplus);
    unused
}
