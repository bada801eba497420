use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::parts::{
    ENV_ONCE, ENV_ONCE_SAYS, ENV_RESERVED, ENV_RESERVED_SAYS, SECRETS_APART, SECRETS_APART_SAYS,
};
use super::{DurationText, EnvVar, Resources, SecretMount};

/// Work that ends: once or on a schedule, on one node or many.
#[derive(CustomResource, Debug, Clone, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "dormouse.dev",
    version = "v1alpha1",
    kind = "BatchJob",
    plural = "batchjobs",
    shortname = "bj",
    category = "dormouse",
    namespaced,
    status = "BatchJobStatus",
    derive = "PartialEq",
    printcolumn(name = "State", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Owner", type_ = "string", json_path = ".spec.owner"),
    printcolumn(name = "Nodes", type_ = "integer", json_path = ".spec.nodes"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new("size(self.metadata.name) <= 30 && self.metadata.name.matches('^[a-z]([a-z0-9]|-[a-z0-9])*$')").message("metadata.name must be at most 30 characters: lower-case letters, digits and single hyphens, beginning with a letter")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self == oldSelf").message("a job's work is not changed after it was submitted: delete it and submit another"))]
pub struct BatchJobSpec {
    #[schemars(length(min = 1, max = 64))]
    pub owner: String,
    #[schemars(length(min = 1))]
    pub image: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    /// How many pods work together.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 1024))]
    pub nodes: i32,
    /// A cron line; unset runs it once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schedule: Option<String>,
    /// How often a failed run is tried again.
    #[serde(default)]
    #[schemars(range(min = 0, max = 100))]
    pub retries: i32,
    /// The longest a run may take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<DurationText>,
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
}

fn one() -> i32 {
    1
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum JobPhase {
    Pending,
    Running,
    Succeeded,
    Failed,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct BatchJobStatus {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<JobPhase>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>", extend("format" = "date-time"))]
    pub started_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>", extend("format" = "date-time"))]
    pub finished_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}
