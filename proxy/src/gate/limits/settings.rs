//! The shares as an operator writes them.

use std::time::Duration;

use domain::traffic::Rate;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::config::Limits;

/// What one person, token, route or stranger may take. What is not set has the default of its kind;
/// 0 is no limit.
#[derive(Debug, Clone, Copy, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Share {
    pub requests_per_second: Option<u32>,
    /// How many requests may come at once after a pause; two seconds' worth when unset.
    pub burst: Option<u32>,
    /// Requests and WebSockets at a time.
    pub concurrent: Option<u32>,
    /// Longest request body, in bytes.
    pub body_bytes: Option<u64>,
}

impl Share {
    const NONE: Self =
        Self { requests_per_second: None, burst: None, concurrent: None, body_bytes: None };

    fn or(self, default: Self) -> Self {
        Self {
            requests_per_second: self.requests_per_second.or(default.requests_per_second),
            // A burst belongs to its rate.
            burst: match self.requests_per_second {
                Some(_) => self.burst,
                None => self.burst.or(default.burst),
            },
            concurrent: self.concurrent.or(default.concurrent),
            body_bytes: self.body_bytes.or(default.body_bytes),
        }
    }

    pub(super) fn rate(&self) -> Option<Rate> {
        Rate::new(self.requests_per_second?, self.burst)
    }

    pub(super) fn concurrent(&self) -> Option<u32> {
        self.concurrent.filter(|&most| most > 0)
    }

    pub(super) fn body_bytes(&self) -> Option<u64> {
        self.body_bytes.filter(|&most| most > 0)
    }
}

/// Who may take how much, with the defaults for what is not set.
#[derive(Debug, Clone)]
pub struct Shares {
    pub person: Share,
    pub token: Share,
    pub route: Share,
    pub stranger: Share,
    pub stranger_connection: Share,
    pub stranger_body: Duration,
}

impl From<&Limits> for Shares {
    fn from(limits: &Limits) -> Self {
        let person = Share { concurrent: Some(20_000), ..Share::NONE };
        let stranger = Share {
            requests_per_second: Some(500),
            burst: Some(5_000),
            concurrent: Some(2_000),
            body_bytes: Some(1 << 20),
        };
        let connection = Share { requests_per_second: Some(50), burst: Some(500), ..Share::NONE };
        Self {
            person: limits.person.or(person),
            token: limits.token,
            route: limits.route,
            stranger: limits.stranger.or(stranger),
            stranger_connection: limits.stranger_connection.or(connection),
            stranger_body: limits.stranger_body,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_set_keeps_its_default_and_zero_is_no_limit() {
        let mut limits = Limits::default();
        limits.stranger.burst = Some(7);
        limits.person.concurrent = Some(0);
        let shares = Shares::from(&limits);
        assert_eq!(shares.stranger.rate(), Rate::new(500, Some(7)));
        assert_eq!(shares.person.concurrent(), None);
        assert_eq!(shares.person.rate(), None);
        limits.stranger.requests_per_second = Some(3);
        limits.stranger.burst = None;
        assert_eq!(Shares::from(&limits).stranger.rate(), Rate::new(3, None));
    }
}
