//! What the traffic of a workload is held to, and how its streams are kept alive.

use std::{num::NonZeroU32, time::Duration};

/// A route's own limits, besides those of whoever asks. The default holds nothing back.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Of all its users together.
    pub rate: Option<Rate>,
    /// Exchanges and WebSockets at a time, of all its users together.
    pub concurrent: Option<NonZeroU32>,
    /// Longest request body, in bytes.
    pub body_bytes: Option<u64>,
    /// A `text/event-stream` answer that is silent for this long gets a comment.
    pub keep_alive: Option<Duration>,
    /// Origins besides its own whose pages may act with a browser's session (RFC 6454, section 6.2).
    pub allowed_origins: Vec<String>,
}

/// A token bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// How many tokens come back in a second.
    pub per_second: NonZeroU32,
    /// How many there are when nothing was asked for a while.
    pub burst: NonZeroU32,
}

impl Rate {
    /// Without a burst of its own, the bucket holds two seconds' worth. `None` for a rate of 0, which
    /// means that there is no limit.
    pub fn new(per_second: u32, burst: Option<u32>) -> Option<Self> {
        let per_second = NonZeroU32::new(per_second)?;
        let burst = burst.and_then(NonZeroU32::new);
        let burst = burst.unwrap_or(per_second.saturating_mul(NonZeroU32::MIN.saturating_add(1)));
        Some(Self { per_second, burst })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_rate_is_no_limit_and_a_burst_is_two_seconds_unless_told() {
        let rate = |per_second, burst| {
            Rate::new(per_second, burst).map(|r| (r.per_second.get(), r.burst.get()))
        };
        assert_eq!(rate(0, Some(5)), None);
        assert_eq!(rate(10, None), Some((10, 20)));
        assert_eq!(rate(10, Some(3)), Some((10, 3)));
        assert_eq!(rate(u32::MAX, None), Some((u32::MAX, u32::MAX)));
    }
}
