//! What a Deployment must do next: a pure function of the deployment and its ReplicaSets.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, ReplicaSetSpec};
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::status;
use crate::controllers::names::{annotation, bounded_name, label, owned_by, set, short_hash};
use crate::controllers::pods;

pub const HASH: &str = "pod-template-hash";
pub const REVISION: &str = "deployment.kubernetes.io/revision";
const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
const MAXIMUM: &str = "deployment.kubernetes.io/max-replicas";

#[derive(Debug, PartialEq)]
pub enum Action {
    Create(Box<ReplicaSet>),
    /// Sets `replicas` and the annotations that say what the deployment wants.
    Scale {
        set: Arc<ReplicaSet>,
        replicas: i32,
        annotations: Vec<(&'static str, String)>,
    },
    Annotate {
        set: Arc<ReplicaSet>,
        annotations: Vec<(&'static str, String)>,
    },
    /// A set of an old revision, beyond the history limit.
    Delete(Arc<ReplicaSet>),
    /// Writes the revision on the deployment itself.
    Revision(String),
}

pub struct Plan {
    pub actions: Vec<Action>,
    pub status: status::Outcome,
}

/// `sets` are the deployment's own; `pods` are those of all its sets, terminating ones included.
pub fn plan(
    deployment: &Deployment,
    sets: &[Arc<ReplicaSet>],
    pods: &[Arc<Pod>],
    now: Timestamp,
) -> Plan {
    let Some(spec) = &deployment.spec else {
        return Plan { actions: Vec::new(), status: status::outcome(deployment, None, sets, now) };
    };
    let hash = short_hash(&spec.template);
    let newest = newest(&spec.template, &hash, sets);
    let status = status::outcome(deployment, newest.as_ref(), sets, now);
    let mut actions = Vec::new();
    if deployment.metadata.deletion_timestamp.is_some() {
        return Plan { actions, status };
    }
    let rollout = Rollout::new(deployment, sets, newest);
    if spec.paused == Some(true) {
        rollout.scale_paused(&mut actions);
    } else {
        rollout.revise(deployment, &mut actions);
        if rollout.recreate {
            rollout.recreate(pods, &hash, &mut actions);
        } else {
            rollout.roll(&hash, &mut actions);
        }
        rollout.clean_up(status.complete, &mut actions);
    }
    Plan { actions, status }
}

/// The set of the present template: the one with its hash, else the oldest one with an equal template.
fn newest(
    template: &PodTemplateSpec,
    hash: &str,
    sets: &[Arc<ReplicaSet>],
) -> Option<Arc<ReplicaSet>> {
    let by_hash = sets.iter().find(|set| label(&set.metadata, HASH) == Some(hash));
    let equal = || {
        let same = sets.iter().filter(|set| {
            let mut held =
                set.spec.as_ref().and_then(|spec| spec.template.clone()).unwrap_or_default();
            if let Some(labels) = held.metadata.as_mut().and_then(|meta| meta.labels.as_mut()) {
                labels.remove(HASH);
            }
            held == *template
        });
        same.min_by_key(|set| set.metadata.creation_timestamp.as_ref().map(|at| at.0))
    };
    by_hash.or_else(equal).cloned()
}

pub fn size(set: &ReplicaSet) -> i32 {
    set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1).max(0)
}

fn available(set: &ReplicaSet) -> i32 {
    set.status.as_ref().and_then(|status| status.available_replicas).unwrap_or(0)
}

fn revision(set: &ReplicaSet) -> i64 {
    annotation(&set.metadata, REVISION).and_then(|value| value.parse().ok()).unwrap_or(0)
}

/// `maxSurge` (rounded up) and `maxUnavailable` (rounded down) as numbers of pods, never both zero.
pub fn bounds(deployment: &Deployment) -> (i32, i32) {
    let spec = deployment.spec.as_ref();
    let replicas = spec.and_then(|spec| spec.replicas).unwrap_or(1).max(0);
    let rolling =
        spec.and_then(|spec| spec.strategy.as_ref()?.rolling_update.clone()).unwrap_or_default();
    let number = |value: Option<IntOrString>, up: bool| {
        let percent = match value {
            Some(IntOrString::Int(number)) => return number.max(0),
            Some(IntOrString::String(text)) => {
                text.strip_suffix('%').and_then(|text| text.parse::<i64>().ok()).unwrap_or(25)
            }
            None => 25,
        };
        let scaled = i64::from(replicas).saturating_mul(percent.max(0));
        i32::try_from(if up { scaled.saturating_add(99) / 100 } else { scaled / 100 })
            .unwrap_or(i32::MAX)
    };
    let (surge, unavailable) =
        (number(rolling.max_surge, true), number(rolling.max_unavailable, false));
    if surge == 0 && unavailable == 0 { (0, 1) } else { (surge, unavailable.min(replicas)) }
}

struct Rollout<'a> {
    deployment: &'a Deployment,
    replicas: i32,
    surge: i32,
    unavailable: i32,
    recreate: bool,
    newest: Option<Arc<ReplicaSet>>,
    /// By revision, oldest first.
    old: Vec<Arc<ReplicaSet>>,
}

impl<'a> Rollout<'a> {
    fn new(
        deployment: &'a Deployment,
        sets: &[Arc<ReplicaSet>],
        newest: Option<Arc<ReplicaSet>>,
    ) -> Self {
        let spec = deployment.spec.as_ref();
        let replicas = spec.and_then(|spec| spec.replicas).unwrap_or(1).max(0);
        let recreate =
            spec.and_then(|spec| spec.strategy.as_ref()?.type_.as_deref()) == Some("Recreate");
        let (surge, unavailable) = if recreate { (0, 0) } else { bounds(deployment) };
        let name = newest.as_ref().and_then(|set| set.metadata.name.clone());
        let mut old: Vec<_> =
            sets.iter().filter(|set| set.metadata.name != name).cloned().collect();
        old.sort_by_key(|set| {
            (revision(set), set.metadata.creation_timestamp.as_ref().map(|at| at.0))
        });
        Self { deployment, replicas, surge, unavailable, recreate, newest, old }
    }

    fn wishes(&self) -> Vec<(&'static str, String)> {
        let maximum = self.replicas.saturating_add(self.surge);
        vec![(DESIRED, self.replicas.to_string()), (MAXIMUM, maximum.to_string())]
    }

    /// Scales, or corrects the annotations of a set that keeps its size.
    fn resize(&self, set: &Arc<ReplicaSet>, replicas: i32, actions: &mut Vec<Action>) {
        let mut annotations = self.wishes();
        annotations.retain(|(name, value)| annotation(&set.metadata, name) != Some(value));
        if size(set) != replicas {
            actions.push(Action::Scale { set: set.clone(), replicas, annotations });
        } else if !annotations.is_empty() && replicas > 0 {
            actions.push(Action::Annotate { set: set.clone(), annotations });
        }
    }

    /// Keeps the revision numbers: the present template has the highest.
    fn revise(&self, deployment: &Deployment, actions: &mut Vec<Action>) {
        let Some(newest) = &self.newest else { return };
        let highest = self.old.iter().map(|set| revision(set)).max().unwrap_or(0);
        let mut number = revision(newest);
        if number <= highest {
            number = highest.saturating_add(1);
            let annotations = vec![(REVISION, number.to_string())];
            actions.push(Action::Annotate { set: newest.clone(), annotations });
        }
        if annotation(&deployment.metadata, REVISION) != Some(&number.to_string()) {
            actions.push(Action::Revision(number.to_string()));
        }
    }

    fn create(&self, hash: &str, replicas: i32) -> Action {
        let deployment = self.deployment;
        let spec = deployment.spec.clone().unwrap_or_default();
        let mut template = spec.template;
        set(&mut template.metadata.get_or_insert_default().labels, HASH, hash);
        let LabelSelector { match_expressions, mut match_labels } = spec.selector;
        set(&mut match_labels, HASH, hash);
        let base = deployment.metadata.name.as_deref().unwrap_or_default();
        let mut metadata = ObjectMeta {
            name: Some(bounded_name(base, &format!("-{hash}"))),
            namespace: deployment.metadata.namespace.clone(),
            labels: template.metadata.as_ref().and_then(|meta| meta.labels.clone()),
            annotations: deployment.metadata.annotations.clone(),
            owner_references: Some(vec![owned_by(deployment)]),
            ..ObjectMeta::default()
        };
        if let Some(annotations) = &mut metadata.annotations {
            annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
        }
        let highest = self.old.iter().map(|set| revision(set)).max().unwrap_or(0);
        set(&mut metadata.annotations, REVISION, highest.saturating_add(1).to_string());
        for (name, value) in self.wishes() {
            set(&mut metadata.annotations, name, value);
        }
        Action::Create(Box::new(ReplicaSet {
            metadata,
            spec: Some(ReplicaSetSpec {
                replicas: Some(replicas),
                min_ready_seconds: spec.min_ready_seconds,
                selector: LabelSelector { match_expressions, match_labels },
                template: Some(template),
            }),
            status: None,
        }))
    }

    /// A paused deployment starts no new revision, but follows `replicas` with what is active.
    fn scale_paused(&self, actions: &mut Vec<Action>) {
        let active = || self.old.iter().chain(&self.newest).filter(|set| size(set) > 0);
        let latest = active().next_back().or(self.newest.as_ref()).or(self.old.last());
        let Some(latest) = latest else { return };
        let others: i32 = active()
            .filter(|set| set.metadata.name != latest.metadata.name)
            .map(|set| size(set))
            .sum();
        self.resize(latest, self.replicas.saturating_sub(others).max(0), actions);
    }

    /// Recreate: all of the old is gone before anything of the new starts.
    fn recreate(&self, pods: &[Arc<Pod>], hash: &str, actions: &mut Vec<Action>) {
        for set in self.old.iter().filter(|set| size(set) > 0) {
            self.resize(set, 0, actions);
        }
        let old_runs = pods.iter().any(|pod| {
            let new =
                self.newest.as_ref().and_then(|set| label(&set.metadata, HASH)).unwrap_or(hash);
            label(&pod.metadata, HASH) != Some(new) && !pods::is_finished(pod)
        });
        if old_runs || self.old.iter().any(|set| size(set) > 0) {
            return;
        }
        match &self.newest {
            Some(newest) => self.resize(newest, self.replicas, actions),
            None => actions.push(self.create(hash, self.replicas)),
        }
    }

    /// A rolling update: never more than `replicas + maxSurge` pods, never fewer than
    /// `replicas - maxUnavailable` available ones.
    fn roll(&self, hash: &str, actions: &mut Vec<Action>) {
        let old_total: i32 = self.old.iter().map(|set| size(set)).sum();
        let room = self.replicas.saturating_add(self.surge).saturating_sub(old_total).max(0);
        let Some(newest) = &self.newest else {
            actions.push(self.create(hash, room.min(self.replicas)));
            return;
        };
        let have = size(newest);
        // Growing is bounded by the surge; a smaller deployment shrinks at once.
        let wanted =
            if have > self.replicas { self.replicas } else { have.max(room.min(self.replicas)) };
        self.resize(newest, wanted, actions);
        if old_total == 0 {
            return;
        }
        let unready = (have - available(newest)).max(0);
        let least = self.replicas.saturating_sub(self.unavailable);
        let mut spare =
            old_total.saturating_add(have).saturating_sub(least).saturating_sub(unready);
        // What does not run serves nobody: it goes first.
        let broken = |set: &ReplicaSet| (size(set) - available(set)).max(0);
        let mut left: Vec<i32> = self.old.iter().map(|set| size(set)).collect();
        for (set, left) in self.old.iter().zip(&mut left) {
            let cut = broken(set).min(spare).max(0);
            *left -= cut;
            spare -= cut;
        }
        // Of the rest, only as many as are more than enough.
        let serving: i32 = self.old.iter().chain([newest]).map(|set| available(set)).sum();
        let mut spare = serving.saturating_sub(least).max(0).min(spare.max(0));
        for left in &mut left {
            let cut = (*left).min(spare);
            *left -= cut;
            spare -= cut;
        }
        for (set, left) in self.old.iter().zip(left) {
            self.resize(set, left, actions);
        }
    }

    /// Drops the oldest empty sets beyond the history limit, once the rollout is complete.
    fn clean_up(&self, complete: bool, actions: &mut Vec<Action>) {
        if !complete {
            return;
        }
        let limit = self
            .deployment
            .spec
            .as_ref()
            .and_then(|spec| spec.revision_history_limit)
            .unwrap_or(10);
        let surplus = self.old.len().saturating_sub(usize::try_from(limit).unwrap_or(0));
        let empty = |set: &&Arc<ReplicaSet>| {
            let status = set.status.as_ref();
            size(set) == 0
                && status.is_none_or(|status| status.replicas == 0)
                && set.metadata.deletion_timestamp.is_none()
        };
        actions.extend(self.old.iter().take(surplus).filter(empty).cloned().map(Action::Delete));
    }
}
