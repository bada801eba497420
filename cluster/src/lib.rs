//! Speaks Kubernetes: the custom resources, watches in and domain snapshots out, wake and status.
