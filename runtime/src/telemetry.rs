//! Logs: pretty on a terminal, JSON otherwise.

use std::io::{IsTerminal, stderr};

use tracing_subscriber::EnvFilter;

const DEFAULT_FILTER: &str = "info";

/// Added to every filter. Pingora logs each broken connection as an error, and at lower levels the
/// heads it sends, with the tokens in them; what matters of it is in our own log.
/// The Kubernetes client logs whole answers that it cannot read, with every environment variable in them;
/// of its parts, only those stay that tell of certificates and connections.
const NEVER: [&str; 6] = [
    "pingora=off",
    "pingora_proxy=off",
    "pingora_core=off",
    "kube_client::client=off",
    "kube_client::client::tls=warn",
    "kube_client::client::builder=error",
];

/// Call once, first thing. `RUST_LOG` sets the filter.
pub fn init() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| DEFAULT_FILTER.into());
    let never = NEVER.iter().filter_map(|directive| directive.parse().ok());
    let filter = never.fold(filter, EnvFilter::add_directive);
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(stderr);
    // Failing means that a subscriber is already there, as in tests: that one serves.
    let _ = if stderr().is_terminal() {
        builder.compact().try_init()
    } else {
        builder.json().flatten_event(true).with_current_span(false).try_init()
    };
}
