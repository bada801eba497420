use std::num::NonZeroU32;

use domain::traffic::{Rate, Traffic};
use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use super::DurationText;

/// What the workload's traffic is held to, of all its users together. Unset: nothing.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.keepAlive) || self.keepAlive != 'never'").message("leave keepAlive away for no keep-alives, or set a length of time such as 15s"))]
#[x_kube(validation = Rule::new("!has(self.burst) || has(self.requestsPerSecond)").message("burst goes with requestsPerSecond"))]
pub struct TrafficSpec {
    /// More than this, and the gate answers 429.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000000))]
    pub requests_per_second: Option<u32>,
    /// How many requests may come at once after a pause. Unset: two seconds' worth.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000000))]
    pub burst: Option<u32>,
    /// Requests and WebSockets at a time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000000))]
    pub concurrent: Option<u32>,
    /// Longest request body in bytes. More, and the gate answers 413.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub body_bytes: Option<i64>,
    /// For LLM servers: a stream of server-sent events that is silent for this long gets a comment
    /// line, so that nothing on the way takes it for dead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_alive: Option<DurationText>,
    /// Origins besides the workload's own whose pages may change things with a person's session, such
    /// as `https://front--alice.example.org`, and read answers that the program allows them to. Only
    /// pages that are trusted like the workload's own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 16),
        inner(
            length(max = 300),
            regex(
                pattern = r"^(https://[a-z0-9]([a-z0-9.-]*[a-z0-9])?|http://localhost)(:[1-9][0-9]{0,4})?$"
            )
        )
    )]
    pub allowed_origins: Vec<String>,
}

impl TrafficSpec {
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl From<&TrafficSpec> for Traffic {
    fn from(spec: &TrafficSpec) -> Self {
        let TrafficSpec {
            requests_per_second,
            burst,
            concurrent,
            body_bytes,
            keep_alive,
            allowed_origins,
        } = spec;
        Self {
            rate: requests_per_second.and_then(|rate| Rate::new(rate, *burst)),
            concurrent: concurrent.and_then(NonZeroU32::new),
            body_bytes: body_bytes.and_then(|bytes| u64::try_from(bytes).ok()),
            // Nobody needs one more often than each second.
            keep_alive: keep_alive
                .as_ref()
                .and_then(DurationText::duration)
                .map(|every| every.max(std::time::Duration::from_secs(1))),
            // Browsers leave the usual port out (RFC 6454, section 6.2).
            allowed_origins: allowed_origins
                .iter()
                .map(|origin| origin.strip_suffix(":443").unwrap_or(origin).to_owned())
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_is_set_holds_and_nothing_else() {
        let traffic = |json: &str| Traffic::from(&serde_json::from_str(json).unwrap());
        assert_eq!(traffic("{}"), Traffic::default());
        let set = traffic(
            r#"{"requestsPerSecond": 5, "burst": 7, "concurrent": 3, "bodyBytes": 10, "keepAlive": "15s"}"#,
        );
        assert_eq!(set.rate, Rate::new(5, Some(7)));
        assert_eq!(set.concurrent, NonZeroU32::new(3));
        assert_eq!((set.body_bytes, set.keep_alive), (Some(10), Some(Duration::from_secs(15))));
        assert_eq!(traffic(r#"{"keepAlive": "0s"}"#).keep_alive, Some(Duration::from_secs(1)));
        assert_eq!(traffic(r#"{"bodyBytes": -1}"#).body_bytes, None);
        let origins = r#"{"allowedOrigins": ["https://a.example:443", "https://b.example:8443"]}"#;
        assert_eq!(
            traffic(origins).allowed_origins,
            ["https://a.example", "https://b.example:8443"]
        );
    }
}
