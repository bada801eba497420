//! Asking for a sleeping workload.

use jiff::Timestamp;

use crate::{name::UserName, workload::WorkloadRef};

/// Sent by a gateway on a bounded channel when somebody who may use a sleeping workload came back.
/// Idempotent: gateways repeat it while they hold a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WakeRequest {
    pub workload: WorkloadRef,
    pub at: Timestamp,
    pub who: UserName,
}
