//! Names that our objects carry in the cluster.

/// The API group of the custom resources.
pub const GROUP: &str = "dormouse.dev";

/// On everything that is made for a workload: the workload's name.
pub const WORKLOAD: &str = "dormouse.dev/workload";

/// Beside [`WORKLOAD`]: `Workspace` or `App`.
pub const KIND: &str = "dormouse.dev/kind";

/// Beside [`WORKLOAD`] on a Service, and so on its EndpointSlices: [`CANARY`] where the pods of an
/// app's other revision are.
pub const REVISION: &str = "dormouse.dev/revision";

/// The value of [`REVISION`].
pub const CANARY: &str = "canary";

/// On the pods of an app's canary, in place of [`WORKLOAD`], by which the app's Service finds the
/// others: the app's name.
pub const CANARY_OF: &str = "dormouse.dev/canary-of";

/// On a project's namespace: the project's name. A namespace without it is never taken over.
pub const PROJECT: &str = "dormouse.dev/project";

/// On a Project, and on all that is made for the workloads in its namespace: which Dormouse looks after
/// them, where a cluster has several. See [`crate::scope::Scope`].
pub const SCOPE: &str = "dormouse.dev/scope";

/// Recommended by Kubernetes for what a tool manages.
pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";

/// The value of [`MANAGED_BY`], and the field manager of server-side apply.
pub const MANAGER: &str = "dormouse";

/// Annotation: the last time somebody asked for the workload, RFC 3339. Only ever moves forward.
pub const WAKE_AT: &str = "dormouse.dev/wake-at";

/// Annotation of a workspace's volume claim: the person whose files are in it. With
/// `onDelete: Retain` it outlives the workspace, and no other person's workspace gets the volume.
pub const OWNER: &str = "dormouse.dev/owner";
