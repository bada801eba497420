//! A pod on this node, as its worker, its containers' runners and the log endpoint share it.

use super::env::Place;
use super::logs::Progress;
use super::model::{PodModel, Record, Slot};
use super::volumes::Mounted;
use k8s_openapi::api::core::v1::{Container, ObjectReference, Pod};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use tokio::sync::watch;

pub struct PodShared {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    /// As it was when the node first saw it. What matters of it cannot change.
    pub pod: Pod,
    pub log_dir: PathBuf,
    model: Mutex<PodModel>,
    changed: watch::Sender<u64>,
    /// The logs that are being written, by container.
    live_logs: Mutex<HashMap<String, (PathBuf, watch::Receiver<Progress>)>>,
}

/// What a pod's containers need before they can start.
#[derive(Clone)]
pub struct Surroundings {
    pub place: Place,
    pub mounted: Mounted,
}

impl PodShared {
    pub fn new(pod: Pod, model: PodModel, logs: &Path) -> Self {
        let namespace = pod.metadata.namespace.clone().unwrap_or_default();
        let name = pod.metadata.name.clone().unwrap_or_default();
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let log_dir = logs.join(format!("{namespace}_{name}_{uid}"));
        let (changed, _) = watch::channel(0);
        Self {
            namespace,
            name,
            uid,
            pod,
            log_dir,
            model: Mutex::new(model),
            changed,
            live_logs: Mutex::new(HashMap::new()),
        }
    }

    /// Name, namespace and uid as messages show them.
    pub fn shown(&self) -> String {
        format!("{}_{}({})", self.name, self.namespace, self.uid)
    }

    pub fn model(&self) -> PodModel {
        self.model.lock().clone()
    }

    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    pub fn update(&self, change: impl FnOnce(&mut PodModel)) {
        let mut model = self.model.lock();
        let before = model.clone();
        change(&mut model);
        if *model != before {
            self.changed.send_modify(|n| *n += 1);
        }
    }

    pub fn update_record(&self, slot: Slot, change: impl FnOnce(&mut Record)) {
        self.update(|model| {
            if let Some(record) = model.record_mut(slot) {
                change(record);
            }
        });
    }

    pub fn record(&self, slot: Slot) -> Option<Record> {
        self.model.lock().record(slot).cloned()
    }

    pub fn containers(&self, init: bool) -> &[Container] {
        let spec = self.pod.spec.as_ref();
        match (init, spec) {
            (true, Some(spec)) => spec.init_containers.as_deref().unwrap_or_default(),
            (false, Some(spec)) => &spec.containers,
            (_, None) => &[],
        }
    }

    /// The pod, or one of its containers, as events refer to it.
    pub fn reference(&self, container: Option<(Slot, &str)>) -> ObjectReference {
        ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            namespace: Some(self.namespace.clone()),
            name: Some(self.name.clone()),
            uid: Some(self.uid.clone()),
            resource_version: self.pod.metadata.resource_version.clone(),
            field_path: container.map(|(slot, name)| {
                let list = if slot.init { "initContainers" } else { "containers" };
                format!("spec.{list}{{{name}}}")
            }),
        }
    }

    pub fn container_logs(&self, container: &str) -> PathBuf {
        self.log_dir.join(container)
    }

    pub fn log_opened(&self, container: &str, path: PathBuf, progress: watch::Receiver<Progress>) {
        self.live_logs.lock().insert(container.to_owned(), (path, progress));
    }

    /// How far the log at `path` has come, if it was opened by this life of the node.
    pub fn live_log(&self, container: &str, path: &Path) -> Option<watch::Receiver<Progress>> {
        self.live_logs
            .lock()
            .get(container)
            .filter(|(live, _)| live == path)
            .map(|(_, progress)| progress.clone())
    }
}
