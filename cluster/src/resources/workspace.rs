use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use super::parts::{
    ENV_ONCE, ENV_ONCE_SAYS, ENV_RESERVED, ENV_RESERVED_SAYS, SECRETS_APART, SECRETS_APART_SAYS,
};
use super::{
    EnvVar, IdleSpec, ProtocolName, Resources, SecretMount, Sharing, Storage, TrafficSpec,
    WorkloadStatus,
};

/// One person's JupyterLab, VS Code or shell.
#[derive(CustomResource, Debug, Clone, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "dormouse.dev",
    version = "v1alpha1",
    kind = "Workspace",
    plural = "workspaces",
    shortname = "ws",
    category = "dormouse",
    namespaced,
    status = "WorkloadStatus",
    derive = "PartialEq",
    scale(
        spec_replicas_path = ".spec.replicas",
        status_replicas_path = ".status.replicas",
        label_selector_path = ".status.selector"
    ),
    printcolumn(name = "State", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Owner", type_ = "string", json_path = ".spec.owner"),
    printcolumn(name = "Last activity", type_ = "date", json_path = ".status.lastActivity.at"),
    printcolumn(name = "By", type_ = "string", json_path = ".status.lastActivity.who", priority = 1),
    printcolumn(name = "Why", type_ = "string", json_path = ".status.idle.message", priority = 1),
    printcolumn(name = "URL", type_ = "string", json_path = ".status.url"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new("size(self.metadata.name) <= 30 && self.metadata.name.matches('^[a-z]([a-z0-9]|-[a-z0-9])*$')").message("metadata.name must be at most 30 characters: lower-case letters, digits and single hyphens, beginning with a letter")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.replicas == 0 || self.replicas == 1").message("replicas of a workspace is 0 (stopped) or 1"))]
// A stopped one passes: whatever was made before this rule can be stopped.
#[x_kube(validation = Rule::new("self.replicas == 0 || !has(self.secrets) || self.secrets.all(a, !has(a.mountPath) || !(self.storage.mountPath + '/').startsWith(a.mountPath + '/'))").message("a secret is mounted at the home folder (storage.mountPath) or above it: choose another folder"))]
pub struct WorkspaceSpec {
    /// The person it belongs to.
    #[schemars(length(min = 1, max = 64))]
    pub owner: String,
    #[schemars(length(min = 1))]
    pub image: String,
    /// Overrides the image's entry point. May refer to `$(POD_IP)`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    /// Where the program serves HTTP, on the pod's address.
    #[serde(default = "default_port")]
    #[schemars(range(min = 1, max = 65535))]
    #[x_kube(validation = Rule::new("self != 2022").message("port 2022 is the agent's, for SSH: choose another port"))]
    pub port: i32,
    /// 0 stops it until somebody sets 1 again.
    #[serde(default = "default_replicas")]
    pub replicas: i32,
    #[serde(default = "default_protocol")]
    pub protocol: ProtocolName,
    #[serde(default)]
    pub storage: Storage,
    #[serde(default)]
    pub resources: Resources,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    #[x_kube(
        validation = Rule::new(ENV_ONCE).message(ENV_ONCE_SAYS),
        validation = Rule::new(ENV_RESERVED).message(ENV_RESERVED_SAYS),
        validation = Rule::new("self.all(a, a.name != 'HOME')").message("HOME is reserved: it is spec.storage.mountPath")
    )]
    pub env: Vec<EnvVar>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    #[x_kube(validation = Rule::new(SECRETS_APART).message(SECRETS_APART_SAYS))]
    pub secrets: Vec<SecretMount>,
    #[serde(default)]
    pub idle: IdleSpec,
    #[serde(default)]
    pub sharing: Sharing,
    #[serde(default, skip_serializing_if = "TrafficSpec::is_empty")]
    pub traffic: TrafficSpec,
}

fn default_port() -> i32 {
    8888
}

fn default_replicas() -> i32 {
    1
}

fn default_protocol() -> ProtocolName {
    ProtocolName::Jupyter
}
