use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::parts::{
    ENV_ONCE, ENV_ONCE_SAYS, ENV_RESERVED, ENV_RESERVED_SAYS, SECRETS_APART, SECRETS_APART_SAYS,
};
use super::{
    AppProtocol, Canary, EnvVar, IdleSpec, ProtocolName, Resources, RoutingSpec, SecretMount,
    Sharing, TlsSpec, TrafficSpec, WorkloadStatus,
};

/// A Streamlit app, a model API or an LLM server.
#[derive(CustomResource, Debug, Clone, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "dormouse.dev",
    version = "v1alpha1",
    kind = "App",
    plural = "apps",
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
    printcolumn(name = "Ready", type_ = "integer", json_path = ".status.readyReplicas"),
    printcolumn(name = "Last activity", type_ = "date", json_path = ".status.lastActivity.at"),
    printcolumn(name = "By", type_ = "string", json_path = ".status.lastActivity.who", priority = 1),
    printcolumn(name = "Why", type_ = "string", json_path = ".status.idle.message", priority = 1),
    printcolumn(name = "Canary %", type_ = "integer", json_path = ".status.canary.weight", priority = 1),
    printcolumn(name = "URL", type_ = "string", json_path = ".status.url"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new("size(self.metadata.name) <= 30 && self.metadata.name.matches('^[a-z]([a-z0-9]|-[a-z0-9])*$')").message("metadata.name must be at most 30 characters: lower-case letters, digits and single hyphens, beginning with a letter"),
    validation = Rule::new("!has(self.spec.tls) || self.spec.appProtocol == 'https'").message("tls goes with appProtocol: https")
)]
#[serde(rename_all = "camelCase")]
pub struct AppSpec {
    /// The person who answers for it.
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
    pub port: i32,
    /// How many run when it is awake; 0 stops it until somebody sets more again.
    #[serde(default = "default_replicas")]
    #[schemars(range(min = 0, max = 1000))]
    pub replicas: i32,
    #[serde(default = "default_protocol")]
    pub protocol: ProtocolName,
    /// What the program speaks at its port.
    #[serde(default)]
    pub app_protocol: AppProtocol,
    /// With `appProtocol: https`: how its certificate is checked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsSpec>,
    #[serde(default, skip_serializing_if = "RoutingSpec::is_empty")]
    pub routing: RoutingSpec,
    /// A new revision, tried by some of the people first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canary: Option<Canary>,
    /// When the app counts as ready. Unset: as soon as its port accepts connections.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probe: Option<Probe>,
    #[serde(default)]
    pub resources: Resources,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    #[x_kube(
        validation = Rule::new(ENV_ONCE).message(ENV_ONCE_SAYS),
        validation = Rule::new(ENV_RESERVED).message(ENV_RESERVED_SAYS)
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

/// A GET that answers with a status below 400 once the app is ready.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Probe {
    #[schemars(regex(pattern = r"^/.*"))]
    pub path: String,
}

fn default_port() -> i32 {
    8080
}

fn default_replicas() -> i32 {
    1
}

fn default_protocol() -> ProtocolName {
    ProtocolName::Http
}
