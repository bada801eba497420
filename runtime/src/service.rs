//! What every service is given besides its own configuration.

use prometheus::Registry;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{audit::Audit, health::Health};

/// Cheap to clone.
#[derive(Clone)]
pub struct Context {
    pub registry: Registry,
    pub audit: Audit,
    pub health: Health,
    /// Cancelled when the process is asked to stop: finish what runs, take nothing new.
    pub shutdown: CancellationToken,
}

impl Context {
    /// For what a service rests on while it drains, such as routes and revocations: its shutdown is
    /// the guard's end and not the process's.
    pub fn behind(&self) -> (Self, DropGuard) {
        let shutdown = CancellationToken::new();
        let guard = shutdown.clone().drop_guard();
        (Self { shutdown, ..self.clone() }, guard)
    }
}
