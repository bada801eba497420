//! The monotonic clock as the time since one moment, which fits into an atomic.

use std::{sync::LazyLock, time::Duration};

use tokio::time::Instant;

pub fn since_start(now: Instant) -> Duration {
    static START: LazyLock<std::time::Instant> = LazyLock::new(std::time::Instant::now);
    now.into_std().saturating_duration_since(*START)
}
