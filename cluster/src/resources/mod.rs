//! The custom resources: group `dormouse.dev`, version `v1alpha1`.

mod app;
mod batch_job;
mod parts;
mod project;
mod routing;
mod status;
mod traffic;
mod workload;
mod workspace;

pub use app::{App, AppSpec, Probe};
pub use batch_job::{BatchJob, BatchJobSpec, BatchJobStatus, JobPhase};
pub use parts::{
    DurationText, EnvVar, IdleSpec, OnDelete, ProtocolName, Resources, SecretMount, Sharing,
    Storage,
};
pub use project::{Member, Project, ProjectPolicy, ProjectSpec, ProjectStatus, Quota, Role};
pub use routing::{AppProtocol, Canary, RoutingSpec, TlsSpec};
pub use status::{
    AgentStatus, CanaryStatus, IdleStatus, LastActivity, Phase, ProgressStatus, WorkloadStatus,
};
pub use traffic::TrafficSpec;
pub use workload::WorkloadResource;
pub use workspace::{Workspace, WorkspaceSpec};
