//! The node with real processes.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

mod cluster;
mod killed;
mod pods;
mod shim;
