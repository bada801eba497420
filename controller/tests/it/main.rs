//! The controller against the embedded API server, without the controllers of a control plane: what
//! lies under a workload is there and does nothing.
#![allow(clippy::unwrap_used)]

mod foreign;
mod ready;
mod schema;
mod scopes;
mod stopping;
mod world;
