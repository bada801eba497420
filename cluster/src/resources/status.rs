//! What the controller says of a workload.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Phase {
    Starting,
    Running,
    Sleeping,
    /// Scaled to zero by a person: traffic does not wake it.
    Stopped,
    Failed,
}

impl Phase {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "Starting",
            Self::Running => "Running",
            Self::Sleeping => "Sleeping",
            Self::Stopped => "Stopped",
            Self::Failed => "Failed",
        }
    }
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct WorkloadStatus {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,
    /// One sentence for a person: what it is doing, or why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub progress: Option<ProgressStatus>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_activity: Option<LastActivity>,
    /// When it was put to sleep last. Awake when a wake was asked for after it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>", extend("format" = "date-time"))]
    pub sleep_at: Option<Timestamp>,
    /// Since when it has been ready without a break.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>", extend("format" = "date-time"))]
    pub ready_since: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle: Option<IdleStatus>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agent: Option<AgentStatus>,
    /// Of an app with a canary.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub canary: Option<CanaryStatus>,
    pub replicas: i32,
    pub ready_replicas: i32,
    /// Label selector of its pods, for the scale subresource.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selector: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// The second revision of an app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CanaryStatus {
    /// People out of a hundred who get it while it is ready.
    #[schemars(with = "i32")]
    pub weight: u8,
    pub replicas: i32,
    pub ready_replicas: i32,
    /// Why the cluster refuses it.
    #[serde(default)]
    pub message: Option<String>,
}

/// How far a start has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ProgressStatus {
    /// `Requested`, `Scheduled`, `Starting` or `AlmostReady`.
    pub step: String,
    pub message: String,
}

/// The last doing of a person that a gateway saw.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LastActivity {
    #[schemars(with = "String", extend("format" = "date-time"))]
    pub at: Timestamp,
    pub who: String,
    /// `Http`, `WebSocket` or `Ssh`.
    pub how: String,
    pub what: String,
}

/// The last verdict and its evidence: why it is awake, or why it was stopped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct IdleStatus {
    /// `Keep`, `Warn` or `Sleep`.
    pub verdict: String,
    pub reason: String,
    /// One sentence that explains it.
    pub message: String,
    /// When the verdict changed last.
    #[schemars(with = "String", extend("format" = "date-time"))]
    pub since: Timestamp,
}

/// How the SSH gateway reaches and recognises the agent in the pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AgentStatus {
    #[schemars(with = "i32")]
    pub port: u16,
    /// `ssh-ed25519 AAAA...`
    pub host_key: String,
}
