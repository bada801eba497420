//! Volumes on the node's own disk: the provisioner of the storage class `dormouse-local`.

use super::context::NodeContext;
use futures::{Stream, TryStreamExt};
use k8s_openapi::api::core::v1::{
    LocalVolumeSource, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, ObjectReference,
    PersistentVolume, PersistentVolumeClaim, PersistentVolumeSpec, VolumeNodeAffinity,
};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, DeleteParams, ListParams, PostParams, Preconditions};
use kube::runtime::{WatchStreamExt, watcher};
use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

pub const PROVISIONER: &str = "dormouse.dev/local";
pub const CLASS: &str = "dormouse-local";
const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
const DEFAULT_CLASS: &str = "storageclass.kubernetes.io/is-default-class";
const RETRY: Duration = Duration::from_secs(1);
const DEADLINE: Duration = Duration::from_secs(10);

/// Provisions and removes volumes until shutdown.
pub async fn run(ctx: Arc<NodeContext>, shutdown: CancellationToken) {
    let work = async {
        while let Err(error) = ensure_class(&ctx).await {
            tracing::warn!(%error, "the storage class {CLASS} cannot be made yet; trying again");
            tokio::time::sleep(RETRY).await;
        }
        tokio::join!(provision_all(&ctx), remove_all(&ctx));
    };
    tokio::select! {
        () = work => {}
        () = shutdown.cancelled() => {}
    }
}

async fn ensure_class(ctx: &NodeContext) -> kube::Result<()> {
    let classes: Api<StorageClass> = Api::all(ctx.client.clone());
    if classes.get_opt(CLASS).await?.is_some() {
        return Ok(());
    }
    let others = classes.list(&ListParams::default()).await?;
    let is_default = |class: &StorageClass| {
        class
            .metadata
            .annotations
            .iter()
            .flatten()
            .any(|(name, value)| name == DEFAULT_CLASS && value == "true")
    };
    let has_default = others.items.iter().any(is_default);
    let annotations =
        (!has_default).then(|| BTreeMap::from([(DEFAULT_CLASS.to_owned(), "true".to_owned())]));
    let class = StorageClass {
        metadata: ObjectMeta { name: Some(CLASS.to_owned()), annotations, ..ObjectMeta::default() },
        provisioner: PROVISIONER.to_owned(),
        reclaim_policy: Some("Delete".to_owned()),
        volume_binding_mode: Some("WaitForFirstConsumer".to_owned()),
        ..StorageClass::default()
    };
    match classes.create(&PostParams::default(), &class).await {
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
        other => other.map(drop),
    }
}

/// Calls `handle` for each object as it is and as it changes; again after a while when that fails.
async fn for_each<K, S, F>(stream: S, mut handle: impl FnMut(K) -> F)
where
    S: Stream<Item = Result<K, watcher::Error>>,
    F: Future<Output = ()>,
{
    let mut stream = pin!(stream);
    loop {
        match stream.try_next().await {
            Ok(Some(object)) => handle(object).await,
            Ok(None) => return,
            Err(error) => tracing::debug!(%error, "the watch is begun again"),
        }
    }
}

async fn provision_all(ctx: &NodeContext) {
    let claims: Api<PersistentVolumeClaim> = Api::all(ctx.client.clone());
    let stream = watcher(claims, watcher::Config::default()).default_backoff().applied_objects();
    for_each(stream, |claim| async move {
        if is_for(&claim, &ctx.options.name) {
            let name = claim.metadata.name.clone().unwrap_or_default();
            until_done(&format!("a volume for the claim {name}"), || provision(ctx, &claim)).await;
        }
    })
    .await;
}

async fn remove_all(ctx: &NodeContext) {
    let volumes: Api<PersistentVolume> = Api::all(ctx.client.clone());
    let stream = watcher(volumes, watcher::Config::default()).default_backoff().applied_objects();
    for_each(stream, |volume| async move {
        if is_to_remove(&volume) && is_on(&volume, &ctx.options.name) {
            let name = volume.metadata.name.clone().unwrap_or_default();
            until_done(&format!("the removal of volume {name}"), || remove(ctx, &volume)).await;
        }
    })
    .await;
}

/// A few tries now; what stays undone is done when the object is seen again.
async fn until_done<F: Future<Output = kube::Result<()>>>(what: &str, act: impl Fn() -> F) {
    for _ in 0..5 {
        match tokio::time::timeout(DEADLINE, act()).await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => tracing::warn!(%error, "{what} fails; trying again"),
            Err(_) => tracing::warn!("{what} is not answered; trying again"),
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Whether the claim waits for a volume on this node.
fn is_for(claim: &PersistentVolumeClaim, node: &str) -> bool {
    let spec = claim.spec.as_ref();
    let is_bound =
        spec.is_some_and(|spec| spec.volume_name.as_ref().is_some_and(|name| !name.is_empty()));
    let selected = claim.metadata.annotations.as_ref().and_then(|all| all.get(SELECTED_NODE));
    !is_bound
        && claim.metadata.deletion_timestamp.is_none()
        && selected.is_some_and(|selected| selected == node)
        && spec.is_some_and(|spec| {
            spec.storage_class_name.as_ref().is_some_and(|name| !name.is_empty())
        })
}

async fn provision(ctx: &NodeContext, claim: &PersistentVolumeClaim) -> kube::Result<()> {
    let class_name =
        claim.spec.as_ref().and_then(|spec| spec.storage_class_name.clone()).unwrap_or_default();
    let classes: Api<StorageClass> = Api::all(ctx.client.clone());
    let Some(class) = classes.get_opt(&class_name).await? else { return Ok(()) };
    if class.provisioner != PROVISIONER {
        return Ok(());
    }
    let folder = folder_of(&ctx.dirs.volumes(), claim);
    if let Err(error) = std::fs::create_dir_all(&folder) {
        return Err(kube::Error::Service(format!("{}: {error}", folder.display()).into()));
    }
    let volume = volume_for(claim, &class, &folder, &ctx.options.name);
    let volumes: Api<PersistentVolume> = Api::all(ctx.client.clone());
    match volumes.create(&PostParams::default(), &volume).await {
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
        other => other.map(drop),
    }
}

/// A folder that people recognise, and that no second claim of the same name gets.
fn folder_of(root: &Path, claim: &PersistentVolumeClaim) -> PathBuf {
    let part = |text: Option<&String>| {
        let text = text.map(String::as_str).unwrap_or_default();
        text.chars().filter(|c| c.is_ascii_alphanumeric() || "-.".contains(*c)).collect::<String>()
    };
    let uid = part(claim.metadata.uid.as_ref());
    let short = uid.get(..8).unwrap_or(&uid).to_owned();
    let meta = &claim.metadata;
    root.join(format!("{}_{}_{short}", part(meta.namespace.as_ref()), part(meta.name.as_ref())))
}

fn volume_for(
    claim: &PersistentVolumeClaim,
    class: &StorageClass,
    folder: &Path,
    node: &str,
) -> PersistentVolume {
    let spec = claim.spec.clone().unwrap_or_default();
    let meta = &claim.metadata;
    let requested = spec.resources.and_then(|resources| resources.requests).unwrap_or_default();
    let here = NodeSelectorRequirement {
        key: "kubernetes.io/hostname".to_owned(),
        operator: "In".to_owned(),
        values: Some(vec![node.to_owned()]),
    };
    let term =
        NodeSelectorTerm { match_expressions: Some(vec![here]), ..NodeSelectorTerm::default() };
    PersistentVolume {
        metadata: ObjectMeta {
            name: Some(format!("pvc-{}", meta.uid.as_deref().unwrap_or_default())),
            annotations: Some(BTreeMap::from([(
                PROVISIONED_BY.to_owned(),
                PROVISIONER.to_owned(),
            )])),
            ..ObjectMeta::default()
        },
        spec: Some(PersistentVolumeSpec {
            access_modes: spec.access_modes,
            capacity: Some(requested.into_iter().filter(|(name, _)| name == "storage").collect()),
            claim_ref: Some(ObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("PersistentVolumeClaim".to_owned()),
                namespace: meta.namespace.clone(),
                name: meta.name.clone(),
                uid: meta.uid.clone(),
                resource_version: meta.resource_version.clone(),
                field_path: None,
            }),
            local: Some(LocalVolumeSource {
                path: folder.to_string_lossy().into_owned(),
                fs_type: None,
            }),
            node_affinity: Some(VolumeNodeAffinity {
                required: Some(NodeSelector { node_selector_terms: vec![term] }),
            }),
            persistent_volume_reclaim_policy: Some(
                class.reclaim_policy.clone().unwrap_or_else(|| "Delete".to_owned()),
            ),
            storage_class_name: class.metadata.name.clone(),
            volume_mode: Some("Filesystem".to_owned()),
            ..PersistentVolumeSpec::default()
        }),
        status: None,
    }
}

fn is_to_remove(volume: &PersistentVolume) -> bool {
    let ours = volume.metadata.annotations.as_ref().and_then(|all| all.get(PROVISIONED_BY));
    let policy =
        volume.spec.as_ref().and_then(|spec| spec.persistent_volume_reclaim_policy.as_deref());
    let phase = volume.status.as_ref().and_then(|status| status.phase.as_deref());
    ours.is_some_and(|by| by == PROVISIONER)
        && policy == Some("Delete")
        && phase == Some("Released")
}

fn is_on(volume: &PersistentVolume, node: &str) -> bool {
    let affinity =
        volume.spec.as_ref().and_then(|spec| spec.node_affinity.as_ref()?.required.as_ref());
    affinity.iter().flat_map(|required| &required.node_selector_terms).any(|term| {
        term.match_expressions.iter().flatten().any(|e| {
            e.key == "kubernetes.io/hostname" && e.values.iter().flatten().any(|name| name == node)
        })
    })
}

/// The folder of a volume, if it is one directly in `root`: nothing else may ever be removed.
fn removable(root: &Path, volume: &PersistentVolume) -> Option<PathBuf> {
    let path = PathBuf::from(&volume.spec.as_ref()?.local.as_ref()?.path);
    let mut inside = path.strip_prefix(root).ok()?.components();
    match (inside.next(), inside.next()) {
        (Some(Component::Normal(_)), None) => Some(path),
        _ => None,
    }
}

async fn remove(ctx: &NodeContext, volume: &PersistentVolume) -> kube::Result<()> {
    let name = volume.metadata.name.clone().unwrap_or_default();
    if let Some(folder) = removable(&ctx.dirs.volumes(), volume) {
        let removed = tokio::task::spawn_blocking(move || match std::fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(format!("{}: {error}", folder.display()))
            }
            _ => Ok(()),
        });
        match removed.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(kube::Error::Service(error.into())),
            Err(error) => return Err(kube::Error::Service(error.into())),
        }
    }
    let volumes: Api<PersistentVolume> = Api::all(ctx.client.clone());
    let preconditions = Preconditions { uid: volume.metadata.uid.clone(), resource_version: None };
    match volumes.delete(&name, &DeleteParams::default().preconditions(preconditions)).await {
        Err(kube::Error::Api(status)) if [404, 409].contains(&status.code) => Ok(()),
        other => other.map(drop),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn claim() -> PersistentVolumeClaim {
        serde_json::from_value(json!({
            "metadata": {"name": "home-lab-0", "namespace": "alice", "uid": "01234567-89ab", "annotations": {SELECTED_NODE: "here"}},
            "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": CLASS, "resources": {"requests": {"storage": "1Gi"}}},
        }))
        .unwrap()
    }

    #[test]
    fn only_claims_that_wait_for_this_node_are_served() {
        assert!(is_for(&claim(), "here") && !is_for(&claim(), "there"));
        let mut bound = claim();
        bound.spec.as_mut().unwrap().volume_name = Some("pv".to_owned());
        assert!(!is_for(&bound, "here"));
    }

    #[test]
    fn a_volume_belongs_to_its_claim_and_node_and_is_removed_only_inside_the_root() {
        let root = Path::new("/data/volumes");
        let folder = folder_of(root, &claim());
        assert_eq!(folder, root.join("alice_home-lab-0_01234567"));
        let mut volume = volume_for(&claim(), &StorageClass::default(), &folder, "here");
        assert!(is_on(&volume, "here") && !is_on(&volume, "there"));
        assert_eq!(removable(root, &volume), Some(folder));
        assert!(!is_to_remove(&volume));
        volume.status = serde_json::from_value(json!({"phase": "Released"})).unwrap();
        assert!(is_to_remove(&volume));
        for outside in
            ["/data/volumes", "/data/volumes/../x", "/etc", "/data/volumes/a/b", "/data/volumes/.."]
        {
            volume.spec.as_mut().unwrap().local.as_mut().unwrap().path = outside.to_owned();
            assert_eq!(removable(root, &volume), None, "{outside}");
        }
    }
}
