//! Speaks Kubernetes: the custom resources, watches in and domain snapshots out, wake and status.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod certificates;
pub mod crds;
pub mod labels;
pub mod resources;
pub mod routes;
pub mod scope;
pub mod wake;
pub mod watch;
