//! What every service is given besides its own configuration.

use prometheus::Registry;
use tokio_util::sync::CancellationToken;

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
