//! The pods of a Job.

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Container, EnvVar, EnvVarSource, ObjectFieldSelector, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::controllers::names::{annotation, bounded_name, owned_by, set};

pub const INDEX: &str = "batch.kubernetes.io/job-completion-index";
/// Keeps an ended pod until it is counted (KEP-2307).
pub const TRACKING: &str = "batch.kubernetes.io/job-tracking";

pub fn is_indexed(job: &Job) -> bool {
    job.spec.as_ref().and_then(|spec| spec.completion_mode.as_deref()) == Some("Indexed")
}

pub fn index(pod: &Pod) -> Option<u32> {
    annotation(&pod.metadata, INDEX)?.parse().ok()
}

pub fn is_tracked(pod: &Pod) -> bool {
    pod.metadata.finalizers.iter().flatten().any(|finalizer| finalizer == TRACKING)
}

/// A new pod, for one index if the job is indexed; `suffix` makes its name unique.
pub fn make(job: &Job, index: Option<u32>, suffix: &str) -> Pod {
    let name = job.metadata.name.as_deref().unwrap_or_default();
    let template = job.spec.as_ref().map(|spec| spec.template.clone()).unwrap_or_default();
    let from = template.metadata.unwrap_or_default();
    let mut metadata = ObjectMeta {
        namespace: job.metadata.namespace.clone(),
        labels: from.labels,
        annotations: from.annotations,
        finalizers: from.finalizers,
        owner_references: Some(vec![owned_by(job)]),
        ..ObjectMeta::default()
    };
    metadata.finalizers.get_or_insert_default().push(TRACKING.to_owned());
    let uid = job.metadata.uid.as_deref().unwrap_or_default();
    for (label, value) in [
        ("batch.kubernetes.io/job-name", name),
        ("job-name", name),
        ("batch.kubernetes.io/controller-uid", uid),
        ("controller-uid", uid),
    ] {
        set(&mut metadata.labels, label, value);
    }
    let mut spec = template.spec.unwrap_or_default();
    let base = match index {
        None => name.to_owned(),
        Some(index) => {
            set(&mut metadata.labels, INDEX, index.to_string());
            set(&mut metadata.annotations, INDEX, index.to_string());
            let base = format!("{name}-{index}");
            spec.hostname = Some(base.clone());
            spec.containers.iter_mut().for_each(tell_index);
            spec.init_containers.iter_mut().flatten().for_each(tell_index);
            base
        }
    };
    metadata.name = Some(bounded_name(&base, &format!("-{suffix}")));
    metadata.generate_name = Some(format!("{base}-"));
    Pod { metadata, spec: Some(spec), status: None }
}

fn tell_index(container: &mut Container) {
    const NAME: &str = "JOB_COMPLETION_INDEX";
    let env = container.env.get_or_insert_default();
    if env.iter().all(|variable| variable.name != NAME) {
        let field = ObjectFieldSelector {
            field_path: format!("metadata.annotations['{INDEX}']"),
            api_version: None,
        };
        env.push(EnvVar {
            name: NAME.to_owned(),
            value: None,
            value_from: Some(EnvVarSource { field_ref: Some(field), ..EnvVarSource::default() }),
        });
    }
}
