//! Volumes as folders.

mod content;

use super::context::NodeContext;
use super::env::{self, Place, Sources};
use super::pathmap::PathMap;
use content::{Entry, PathError, write_folder};
use k8s_openapi::api::core::v1 as core;
use kube::api::Api;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

#[derive(Debug, thiserror::Error)]
pub enum MountError {
    #[error("volume {volume:?}: {kind} {name:?} not found")]
    Missing { volume: String, kind: &'static str, name: String },
    #[error("volume {volume:?}: {kind} {name:?} has no key {key:?}")]
    MissingKey { volume: String, kind: &'static str, name: String, key: String },
    #[error("volume {volume:?}: claim {claim:?} is not bound to a volume yet")]
    NotBound { volume: String, claim: String },
    #[error(
        "volume {volume:?}: {what} is not a kind of volume that a node of local processes can mount"
    )]
    Unsupported { volume: String, what: String },
    #[error("volume {volume:?}: {what}")]
    Invalid { volume: String, what: String },
    #[error("volume {volume:?}: {path}: {error}")]
    Io { volume: String, path: String, error: io::Error },
    #[error("volume {volume:?}: {error}")]
    Api { volume: String, error: Box<kube::Error> },
}

/// The folders of a pod's volumes by the volumes' names.
#[derive(Debug, Clone, Default)]
pub struct Mounted {
    folders: BTreeMap<String, PathBuf>,
}

/// Makes the pod's volumes, or brings them up to date.
pub async fn mount(
    ctx: &NodeContext,
    pod: &core::Pod,
    place: &Place,
) -> Result<Mounted, MountError> {
    let namespace = pod.metadata.namespace.clone().unwrap_or_default();
    let uid = pod.metadata.uid.clone().unwrap_or_default();
    let mut folders = BTreeMap::new();
    for volume in pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()) {
        let own = ctx.dirs.pod(&uid).join("volumes").join(&volume.name);
        let mounter = Mounter { ctx, pod, place, namespace: &namespace, volume };
        folders.insert(volume.name.clone(), mounter.mount(own).await?);
    }
    Ok(Mounted { folders })
}

/// Whether the pod has volumes whose content may change while it runs.
pub fn can_change(pod: &core::Pod) -> bool {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    volumes.into_iter().any(|v| {
        v.secret.is_some()
            || v.config_map.is_some()
            || v.projected.is_some()
            || v.downward_api.is_some()
    })
}

struct Mounter<'a> {
    ctx: &'a NodeContext,
    pod: &'a core::Pod,
    place: &'a Place,
    namespace: &'a str,
    volume: &'a core::Volume,
}

impl Mounter<'_> {
    async fn mount(&self, own: PathBuf) -> Result<PathBuf, MountError> {
        let v = self.volume;
        if v.empty_dir.is_some() {
            std::fs::create_dir_all(&own).map_err(self.io(&own))?;
            return Ok(own);
        }
        if let Some(host) = &v.host_path {
            return self.host_path(host);
        }
        if let Some(claim) = &v.persistent_volume_claim {
            return self.claim(&claim.claim_name).await;
        }
        if v.ephemeral.is_some() {
            let pod = self.pod.metadata.name.as_deref().unwrap_or_default();
            return self.claim(&format!("{pod}-{}", v.name)).await;
        }
        let entries = if let Some(secret) = &v.secret {
            let name = secret.secret_name.as_deref().unwrap_or_default();
            // Unless the pod asks for other modes: 0644 is only what the API fills in, and a real mount is inside a
            // container, while this one is a folder of the machine.
            let mode = secret.default_mode.filter(|&mode| mode != 0o644).unwrap_or(0o600);
            self.secret(name, secret.items.as_deref(), mode, secret.optional == Some(true)).await?
        } else if let Some(map) = &v.config_map {
            let mode = map.default_mode.unwrap_or(0o644);
            self.config_map(&map.name, map.items.as_deref(), mode, map.optional == Some(true))
                .await?
        } else if let Some(downward) = &v.downward_api {
            self.downward(
                downward.items.as_deref().unwrap_or_default(),
                downward.default_mode.unwrap_or(0o644),
            )?
        } else if let Some(projected) = &v.projected {
            self.projected(projected).await?
        } else {
            return Err(self.unsupported());
        };
        write_folder(&own, &entries).map_err(|error| match error {
            PathError::Io { path, error } => self.io(&path)(error),
            PathError::Outside(path) => {
                self.invalid(format!("path {path:?} leads out of the volume"))
            }
        })?;
        Ok(own)
    }

    fn io(&self, path: &Path) -> impl FnOnce(io::Error) -> MountError {
        let (volume, path) = (self.volume.name.clone(), path.display().to_string());
        move |error| MountError::Io { volume, path, error }
    }

    fn invalid(&self, what: String) -> MountError {
        MountError::Invalid { volume: self.volume.name.clone(), what }
    }

    fn unsupported(&self) -> MountError {
        let kinds = serde_json::to_value(self.volume).unwrap_or_default();
        let kind = kinds.as_object().and_then(|map| map.keys().find(|key| *key != "name")).cloned();
        MountError::Unsupported {
            volume: self.volume.name.clone(),
            what: kind.unwrap_or_else(|| "nothing".to_owned()),
        }
    }

    fn missing(&self, kind: &'static str, name: &str) -> MountError {
        MountError::Missing { volume: self.volume.name.clone(), kind, name: name.to_owned() }
    }

    fn api(&self, error: kube::Error) -> MountError {
        MountError::Api { volume: self.volume.name.clone(), error: Box::new(error) }
    }

    fn host_path(&self, host: &core::HostPathVolumeSource) -> Result<PathBuf, MountError> {
        let path = PathBuf::from(&host.path);
        match host.type_.as_deref().unwrap_or_default() {
            "DirectoryOrCreate" => std::fs::create_dir_all(&path).map_err(self.io(&path))?,
            "FileOrCreate" => {
                std::fs::File::options()
                    .create(true)
                    .append(true)
                    .open(&path)
                    .map_err(self.io(&path))?;
            }
            "Directory" if !path.is_dir() => {
                return Err(self.invalid(format!("{} is not a directory", host.path)));
            }
            "File" if !path.is_file() => {
                return Err(self.invalid(format!("{} is not a file", host.path)));
            }
            _ => {}
        }
        Ok(path)
    }

    async fn claim(&self, name: &str) -> Result<PathBuf, MountError> {
        let claims: Api<core::PersistentVolumeClaim> =
            Api::namespaced(self.ctx.client.clone(), self.namespace);
        let claim = claims.get_opt(name).await.map_err(|e| self.api(e))?;
        let claim = claim.ok_or_else(|| self.missing("persistentvolumeclaim", name))?;
        let bound =
            claim.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Bound");
        let volume =
            claim.spec.as_ref().and_then(|spec| spec.volume_name.clone()).filter(|_| bound);
        let not_bound =
            || MountError::NotBound { volume: self.volume.name.clone(), claim: name.to_owned() };
        let volumes: Api<core::PersistentVolume> = Api::all(self.ctx.client.clone());
        let volume = volumes.get(&volume.ok_or_else(not_bound)?).await.map_err(|e| self.api(e))?;
        let spec = volume.spec.unwrap_or_default();
        let path = match (&spec.local, &spec.host_path) {
            (Some(local), _) => PathBuf::from(&local.path),
            (None, Some(host)) => PathBuf::from(&host.path),
            (None, None) => {
                let what = format!("persistentvolume {}", volume.metadata.name.unwrap_or_default());
                return Err(MountError::Unsupported { volume: self.volume.name.clone(), what });
            }
        };
        if !path.is_dir() {
            std::fs::create_dir_all(&path).map_err(self.io(&path))?;
        }
        Ok(path)
    }

    async fn secret(
        &self,
        name: &str,
        items: Option<&[core::KeyToPath]>,
        mode: i32,
        optional: bool,
    ) -> Result<Vec<Entry>, MountError> {
        let api: Api<core::Secret> = Api::namespaced(self.ctx.client.clone(), self.namespace);
        match api.get_opt(name).await.map_err(|e| self.api(e))? {
            Some(secret) => {
                let data = secret
                    .data
                    .unwrap_or_default()
                    .into_iter()
                    .map(|(key, value)| (key, value.0))
                    .collect();
                self.select(&data, items, mode, optional, "secret", name)
            }
            None if optional => Ok(Vec::new()),
            None => Err(self.missing("secret", name)),
        }
    }

    async fn config_map(
        &self,
        name: &str,
        items: Option<&[core::KeyToPath]>,
        mode: i32,
        optional: bool,
    ) -> Result<Vec<Entry>, MountError> {
        let api: Api<core::ConfigMap> = Api::namespaced(self.ctx.client.clone(), self.namespace);
        match api.get_opt(name).await.map_err(|e| self.api(e))? {
            Some(map) => {
                let text = map
                    .data
                    .unwrap_or_default()
                    .into_iter()
                    .map(|(key, value)| (key, value.into_bytes()));
                let binary = map
                    .binary_data
                    .unwrap_or_default()
                    .into_iter()
                    .map(|(key, value)| (key, value.0));
                self.select(&text.chain(binary).collect(), items, mode, optional, "configmap", name)
            }
            None if optional => Ok(Vec::new()),
            None => Err(self.missing("configmap", name)),
        }
    }

    fn select(
        &self,
        data: &BTreeMap<String, Vec<u8>>,
        items: Option<&[core::KeyToPath]>,
        mode: i32,
        optional: bool,
        kind: &'static str,
        name: &str,
    ) -> Result<Vec<Entry>, MountError> {
        let Some(items) = items.filter(|items| !items.is_empty()) else {
            return Ok(data
                .iter()
                .map(|(key, value)| Entry::new(key, value.clone(), mode))
                .collect());
        };
        let mut entries = Vec::new();
        for item in items {
            match data.get(&item.key) {
                Some(value) => {
                    entries.push(Entry::new(&item.path, value.clone(), item.mode.unwrap_or(mode)))
                }
                None if optional => {}
                None => {
                    return Err(MountError::MissingKey {
                        volume: self.volume.name.clone(),
                        kind,
                        name: name.to_owned(),
                        key: item.key.clone(),
                    });
                }
            }
        }
        Ok(entries)
    }

    fn downward(
        &self,
        items: &[core::DownwardAPIVolumeFile],
        mode: i32,
    ) -> Result<Vec<Entry>, MountError> {
        let mut entries = Vec::new();
        for item in items {
            let value = match (&item.field_ref, &item.resource_field_ref) {
                (Some(field), _) => env::field_value(self.pod, self.place, &field.field_path),
                (None, Some(selector)) => {
                    env::resource_value(self.pod, &core::Container::default(), self.place, selector)
                }
                (None, None) => None,
            };
            let value = value.ok_or_else(|| {
                self.invalid(format!("{:?} has no field of the downward API", item.path))
            })?;
            entries.push(Entry::new(&item.path, value.into_bytes(), item.mode.unwrap_or(mode)));
        }
        Ok(entries)
    }

    async fn projected(
        &self,
        projected: &core::ProjectedVolumeSource,
    ) -> Result<Vec<Entry>, MountError> {
        let mode = projected.default_mode.unwrap_or(0o644);
        let mut entries = Vec::new();
        for source in projected.sources.iter().flatten() {
            if let Some(secret) = &source.secret {
                let optional = secret.optional == Some(true);
                let private = if mode == 0o644 { 0o600 } else { mode };
                entries.extend(
                    self.secret(&secret.name, secret.items.as_deref(), private, optional).await?,
                );
            }
            if let Some(map) = &source.config_map {
                let optional = map.optional == Some(true);
                entries.extend(
                    self.config_map(&map.name, map.items.as_deref(), mode, optional).await?,
                );
            }
            if let Some(downward) = &source.downward_api {
                entries.extend(self.downward(downward.items.as_deref().unwrap_or_default(), mode)?);
            }
            if let Some(token) = &source.service_account_token {
                entries.extend(self.token(token).await);
            }
        }
        Ok(entries)
    }

    /// A service account's token, or nothing where the API gives none: few pods use theirs.
    async fn token(&self, source: &core::ServiceAccountTokenProjection) -> Option<Entry> {
        let account = self.pod.spec.as_ref()?.service_account_name.as_deref().unwrap_or("default");
        let api: Api<core::ServiceAccount> =
            Api::namespaced(self.ctx.client.clone(), self.namespace);
        let request = serde_json::json!({
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {
                "audiences": source.audience.iter().collect::<Vec<_>>(),
                "expirationSeconds": source.expiration_seconds.unwrap_or(3600),
                "boundObjectRef": {
                    "apiVersion": "v1", "kind": "Pod",
                    "name": self.pod.metadata.name, "uid": self.pod.metadata.uid,
                },
            },
        });
        let answer: Result<serde_json::Value, _> = api
            .create_subresource("token", account, &kube::api::PostParams::default(), &request)
            .await;
        match answer {
            Ok(answer) => {
                let token = answer.pointer("/status/token")?.as_str()?;
                Some(Entry::new(&source.path, token.as_bytes().to_vec(), 0o600))
            }
            Err(error) => {
                tracing::debug!(account, %error, "the pod gets no service account token");
                None
            }
        }
    }
}

/// What a container's mount paths are on this machine. `extra` are paths of its own, such as its termination log.
pub fn paths(
    mounted: &Mounted,
    pod: &core::Pod,
    container: &core::Container,
    place: &Place,
    sources: &Sources,
    extra: impl IntoIterator<Item = (String, String)>,
) -> Result<PathMap, MountError> {
    let mut mounts: Vec<(String, String)> = extra.into_iter().collect();
    for mount in container.volume_mounts.iter().flatten() {
        let invalid = |what: String| MountError::Invalid { volume: mount.name.clone(), what };
        let folder = mounted.folders.get(&mount.name).ok_or_else(|| {
            invalid("the container mounts it, but the pod has no such volume".to_owned())
        })?;
        let sub = match (&mount.sub_path_expr, &mount.sub_path) {
            (Some(expr), _) if !expr.is_empty() => {
                let env = env::resolve(
                    pod,
                    container,
                    place,
                    sources,
                    &PathMap::default(),
                    BTreeMap::new(),
                )
                .map_err(|error| invalid(error.to_string()))?;
                env::expand(expr, |name| env.get(name).cloned())
            }
            (_, Some(sub)) => sub.clone(),
            _ => String::new(),
        };
        let target = if sub.is_empty() {
            folder.clone()
        } else {
            let relative = content::relative(&sub)
                .ok_or_else(|| invalid(format!("subPath {sub:?} leads out of it")))?;
            let target = folder.join(relative);
            if !target.exists() {
                std::fs::create_dir_all(&target).map_err(|error| MountError::Io {
                    volume: mount.name.clone(),
                    path: target.display().to_string(),
                    error,
                })?;
            }
            target
        };
        mounts.push((mount.mount_path.clone(), target.to_string_lossy().into_owned()));
    }
    Ok(PathMap::new(mounts))
}
