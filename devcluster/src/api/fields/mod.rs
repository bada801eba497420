//! Field ownership: server-side apply and `metadata.managedFields`
//! (structured merge and diff, as Kubernetes documents it).

mod managers;
mod set;
#[cfg(test)]
mod tests;
mod typed;

pub use managers::{Actor, Operation, apply, track_update};
