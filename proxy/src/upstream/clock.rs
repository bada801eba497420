//! The monotonic clock as the time since one moment, which fits into an atomic.

use std::{sync::LazyLock, time::Duration};

use tokio::time::Instant;

static START: LazyLock<std::time::Instant> = LazyLock::new(std::time::Instant::now);

/// The present on the clock that exchanges with pods are counted by.
pub fn monotonic() -> Duration {
    since_start(Instant::now())
}

pub fn since_start(now: Instant) -> Duration {
    now.into_std().saturating_duration_since(*START)
}
