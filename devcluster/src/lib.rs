//! A small Kubernetes control plane and node in one process: an API server whose
//! objects live in SQLite, the controllers a control plane has, and a node whose pods
//! are local processes.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod api;
pub mod controllers;
pub mod node;
mod quantity;
